"""Scoring by parts: the plain formula's values and gradients, and never all logits at once."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rank_e import sampling
from rank_e.sampling.distribution import SamplingConfig
from rank_e.sampling.scoring import by_parts, score
from rank_e.seeds import generator
from rank_e.training.sft_update import sft_loss

N, L, V, DIM = 3, 7, 50, 16
CONFIGS = [
    SamplingConfig(),
    SamplingConfig(temperature=0.7, top_k=9),
    SamplingConfig(guidance=3.0),
    SamplingConfig(guidance=2.5, temperature=1.3, top_k=12, top_p=0.8),
]


class Rows:
    """A prefix that is its own hidden row."""

    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden

    def rows(self, index: Tensor) -> "Rows":
        return Rows(self.hidden.index_select(0, index))


class Head(nn.Module):
    """A policy whose hidden rows are free, so that nothing but the head and the formula is compared."""

    vocab_size, device = V, torch.device("cpu")

    def __init__(self, dtype: torch.dtype, length: int = L) -> None:
        super().__init__()
        draw = generator(0, "head")
        self.norm = nn.RMSNorm(DIM)
        self.first, self.second = nn.Linear(DIM, 2 * DIM), nn.Linear(2 * DIM, V, bias=False)
        self.length, self.body = length, nn.Parameter(torch.randn(2 * N, length, DIM, generator=draw))
        with torch.no_grad():
            for weight in self.head_parameters():
                weight.normal_(0.0, 0.5, generator=draw)
        self.asked: list[int] = []
        self.types: list[torch.dtype] = []
        self.to(dtype)

    def head_parameters(self) -> list[nn.Parameter]:
        return [*self.norm.parameters(), *self.first.parameters(), *self.second.parameters()]

    def prefix(self, text: Tensor, mask: Tensor, unconditional: Tensor | None = None, checkpointing: bool = False):
        return Rows(text[:, 0])

    def hidden(self, prefix: Rows, tokens: Tensor, checkpointing: bool = False, fast: bool = False) -> Tensor:
        return self.body[: len(tokens)]

    def logits(self, hidden: Tensor) -> Tensor:
        self.asked.append(hidden.shape[:-1].numel() * V)
        found = self.second(F.gelu(self.first(self.norm(hidden))))
        self.types.append(found.dtype)
        return found.float()


def inputs(length: int = L) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """text, mask, tokens, and what each token's log-probability weighs in a sum."""
    draw = generator(0, "scoring")
    tokens = torch.randint(V, (N, length), generator=draw)
    return torch.zeros(N, 2, 4), torch.ones(N, 2, dtype=torch.bool), tokens, torch.randn(N, length, generator=draw)


def plain_score(policy: Head, tokens: Tensor, config: SamplingConfig) -> Tensor:
    """The formula, a token at a time, by sorting alone."""
    logits = policy.logits(policy.body[: config.branches * N])
    found = []
    for row in range(N):
        for place in range(L):
            z = logits[row, place]
            if config.branches == 2:
                z = logits[N + row, place] + config.guidance * (z - logits[N + row, place])
            z = z / config.temperature
            order = z.detach().argsort(descending=True)
            kept = order[: config.top_k] if config.top_k else order
            before = z.detach()[kept].softmax(0).cumsum(0) - z.detach()[kept].softmax(0)
            kept = torch.cat([kept[before < config.top_p], tokens[row, place, None]]).unique()
            found.append(z[tokens[row, place]] - z[kept].logsumexp(0))
    return torch.stack(found).view(N, L)


def gradients(policy: Head, values: Tensor, weights: Tensor) -> list[Tensor]:
    """Of the weighted sum, by the hidden rows and the head's weights."""
    return list(torch.autograd.grad((values * weights).sum(), [policy.body, *policy.head_parameters()]))


@pytest.mark.parametrize("positions", [1, 3, 5, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_parts_give_the_plain_formulas_values_and_gradients(monkeypatch, config, dtype, positions):
    policy, (text, mask, tokens, weights) = Head(dtype), inputs()
    wanted = plain_score(policy, tokens, config)
    expected = gradients(policy, wanted, weights)
    most = positions * config.branches * N * V
    monkeypatch.setattr(sampling, "LOGITS_AT_ONCE", most + V)  # more than that many positions, less than one more
    policy.asked.clear()
    values = score(policy, text, mask, tokens, config)
    found = gradients(policy, values, weights)
    # Forward and, where there are several parts, backward again: never more logits than allowed.
    parts = -(-L // positions)
    assert max(policy.asked) == most
    assert len(policy.asked) == (1 if parts == 1 else 2 * parts)
    torch.testing.assert_close(values, wanted, atol=2e-5, rtol=1e-5)
    # Of bfloat16 gradients every part is rounded once, and their sum once more.
    near = {"atol": 1e-5, "rtol": 1e-4} if dtype == torch.float32 else {"atol": 0.05, "rtol": 0.02}
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one, other, **near)


def test_a_hundred_parts_of_a_bfloat16_head_lose_no_more_than_one(monkeypatch):
    length = 100
    policy, exact = Head(torch.bfloat16, length), Head(torch.float32, length)
    text, mask, tokens, weights = inputs(length)
    exact.load_state_dict(policy.state_dict())
    config = SamplingConfig(guidance=2.0)
    wanted = gradients(exact, score(exact, text, mask, tokens, config), weights)
    errors = []
    for positions in (length, 1):
        monkeypatch.setattr(sampling, "LOGITS_AT_ONCE", positions * 2 * N * V)
        found = gradients(policy, score(policy, text, mask, tokens, config), weights)
        errors.append([(one.float() - other).norm() / other.norm() for one, other in zip(found, wanted, strict=True)])
    for whole, parts in zip(*errors, strict=True):
        assert parts < 1.2 * whole + 1e-4


def test_autocast_holds_in_the_backward_pass_too(monkeypatch):
    policy, (text, mask, tokens, weights) = Head(torch.float32), inputs()
    monkeypatch.setattr(sampling, "LOGITS_AT_ONCE", 2 * N * V)
    with torch.autocast("cpu", torch.bfloat16):
        values = score(policy, text, mask, tokens, SamplingConfig())
    gradients(policy, values, weights)
    assert policy.types == [torch.bfloat16] * 8


@pytest.mark.parametrize("config", [SamplingConfig(), SamplingConfig(guidance=3.0, top_k=9)], ids=str)
def test_no_logits_are_kept_for_the_backward_pass(monkeypatch, config):
    policy, (text, mask, tokens, _) = Head(torch.float32), inputs()
    own = {weight.untyped_storage().data_ptr() for weight in policy.parameters()}
    kept: list[int] = []

    def note(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        kept.extend([storage.nbytes()] * (storage.data_ptr() not in own))
        return x

    def bytes_kept() -> tuple[int, int]:
        """All that is kept from forward to backward, and the largest tensor that any part of either keeps."""
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            values = score(policy, text, mask, tokens, config)
            between = sum(kept)
            values.sum().backward()
        return between, max(kept)

    whole = 4 * N * L * V
    assert min(bytes_kept()) >= whole  # what this guards against
    monkeypatch.setattr(sampling, "LOGITS_AT_ONCE", 2 * config.branches * N * V)
    between, largest = bytes_kept()
    assert between == tokens.nbytes
    assert largest <= 4 * 2 * config.branches * N * V < whole


def test_fine_tunings_loss_takes_parts_too(monkeypatch):
    policy, (text, mask, tokens, weights) = Head(torch.float32), inputs()
    wanted = F.cross_entropy(policy.logits(policy.body[:N]).transpose(1, 2), tokens, reduction="none").mean(1)
    expected = gradients(policy, wanted, weights[:, 0])
    monkeypatch.setattr(sampling, "LOGITS_AT_ONCE", 2 * N * V)
    policy.asked.clear()
    found = sft_loss(policy, text, mask, tokens)
    torch.testing.assert_close(found, wanted)
    for one, other in zip(gradients(policy, found, weights[:, 0]), expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    assert max(policy.asked) == 2 * N * V


def test_a_head_that_names_a_weight_it_does_not_read_is_noticed(monkeypatch):
    policy, (_, _, tokens, _) = Head(torch.float32), inputs()
    monkeypatch.setattr(sampling, "LOGITS_AT_ONCE", 2 * N * V)
    monkeypatch.setattr(policy, "head_parameters", lambda: [policy.body])
    values = by_parts(policy, policy.body[:N], tokens, lambda logits, part: logits.sum(-1))
    with pytest.raises(RuntimeError):
        values.sum().backward()
