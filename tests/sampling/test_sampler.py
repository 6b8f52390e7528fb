"""Sampling and scoring: LlamaGen's greedy tokens, independence of batches, and one distribution for both."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from rank_e.backbones.llamagen.policy import Policy, PolicyConfig
from rank_e.backbones.protocol import PrefixRows
from rank_e.errors import RankEError
from rank_e.sampling.distribution import SamplingConfig
from rank_e.sampling.filters import filter_logits, guide
from rank_e.sampling.loop import TokenLoop
from rank_e.sampling.sampler import Sampler, sample
from rank_e.sampling.scoring import score
from rank_e.seeds import generator, seed_for

GOLDEN = Path(__file__).parents[1] / "golden" / "llamagen_policy.safetensors"
SETTINGS = [
    SamplingConfig(),
    SamplingConfig(guidance=3.0),
    SamplingConfig(guidance=2.0, temperature=0.8, top_k=10),
    SamplingConfig(guidance=1.5, top_p=0.9),
    SamplingConfig(temperature=1.3, top_k=12, top_p=0.8),
]
PROMPTS, GROUP = 3, 4


@pytest.fixture(scope="module")
def golden() -> tuple[Policy, dict[str, Tensor]]:
    with safe_open(GOLDEN, "pt") as file:
        config = json.loads(file.metadata()["config"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    config.pop("ffn_hidden")
    policy = Policy(PolicyConfig(**config))
    weights = {key.removeprefix("weights."): value for key, value in tensors.items() if key.startswith("weights.")}
    policy.load_state_dict(weights, strict=True)
    tensors["text_mask"] = tensors["text_mask"].bool()
    return policy, tensors


@pytest.fixture(scope="module")
def world() -> tuple[Policy, Tensor, Tensor]:
    config = PolicyConfig(
        dim=32,
        n_layer=2,
        n_head=2,
        vocab_size=24,
        block_size=9,
        cls_token_num=5,
        caption_dim=8,
        multiple_of=32,
    )
    policy, draw = Policy(config).initialise(generator(0, "policy")), generator(0, "weights")
    with torch.no_grad():
        for weight in policy.parameters():
            if weight.ndim > 1:
                weight.normal_(0.0, 0.2, generator=draw)
    mask = torch.arange(5) >= torch.tensor([[0], [2], [2]])
    return policy, torch.randn(PROMPTS, 5, 8, generator=draw) * mask[..., None], mask


def seeds(count: int = PROMPTS * GROUP) -> list[int]:
    return [seed_for(0, "rollouts", i) for i in range(count)]


@pytest.mark.parametrize("guidance", [1, 3, 6])
def test_greedy_tokens_equal_llamagen(golden: tuple[Policy, dict[str, Tensor]], guidance: int) -> None:
    policy, data = golden
    config = SamplingConfig(guidance=guidance)
    found = sample(policy, data["text_embeddings"], data["text_mask"], [0] * 3, config, batch_size=2, greedy=True)
    assert torch.equal(found.tokens, data[f"greedy_tokens_cfg{guidance}"])


def test_scores_equal_llamagen(golden: tuple[Policy, dict[str, Tensor]]) -> None:
    policy, data = golden
    with torch.no_grad():
        found = score(policy, data["text_embeddings"], data["text_mask"], data["tokens"], SamplingConfig())
    torch.testing.assert_close(found, data["log_probs"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("config", SETTINGS, ids=str)
def test_what_is_sampled_is_what_is_scored(world: tuple[Policy, Tensor, Tensor], config: SamplingConfig) -> None:
    policy, text, mask = world
    samples = sample(policy, text, mask, seeds(), config, batch_size=5, repeats=GROUP)
    owners = torch.arange(PROMPTS).repeat_interleave(GROUP)
    with torch.no_grad():
        by_owner = score(policy, text, mask, samples.tokens, config, owners=owners)
        by_row = score(policy, text[owners], mask[owners], samples.tokens, config)
    torch.testing.assert_close(by_owner, samples.log_probs, atol=1e-5, rtol=0)
    torch.testing.assert_close(by_row, samples.log_probs, atol=1e-5, rtol=0)


def test_unguided_scores_of_guided_samples_would_be_off_policy(world: tuple[Policy, Tensor, Tensor]) -> None:
    policy, text, mask = world
    config = SamplingConfig(guidance=3.0, top_k=8)
    samples = sample(policy, text, mask, seeds(PROMPTS), config, batch_size=8)
    with torch.no_grad():
        unguided = score(policy, text, mask, samples.tokens, config, guided=False)
        plain = score(policy, text, mask, samples.tokens, SamplingConfig())
    assert torch.equal(unguided, plain)
    assert (unguided - samples.log_probs).abs().max() > 0.1


def test_a_sample_depends_on_its_prompt_and_seed_alone(world: tuple[Policy, Tensor, Tensor]) -> None:
    policy, text, mask = world
    config, every = SamplingConfig(guidance=2.0), seeds()
    whole = sample(policy, text, mask, every, config, batch_size=12, repeats=GROUP)
    single = sample(policy, text, mask, every, config, batch_size=1, repeats=GROUP)
    assert torch.equal(whole.tokens, single.tokens)
    torch.testing.assert_close(whole.log_probs, single.log_probs, atol=1e-5, rtol=0)
    order = torch.tensor([2, 0, 1])
    turned = [every[p * GROUP + g] for p in order.tolist() for g in range(GROUP)]
    moved = sample(policy, text[order], mask[order], turned, config, batch_size=5, repeats=GROUP)
    assert torch.equal(moved.tokens.view(PROMPTS, GROUP, -1), whole.tokens.view(PROMPTS, GROUP, -1)[order])
    assert len(whole.tokens.unique(dim=0)) == PROMPTS * GROUP


class Replay:
    """A captured step, as a CPU can have it: replayed on the same buffers, whatever the batch."""

    def __init__(self, loop: TokenLoop) -> None:
        self.replay = loop._step


def test_a_captured_loop_serves_every_batch_and_the_last_one_is_filled_up(
    world: tuple[Policy, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, text, mask = world
    made: list[int] = []

    def capture(self: TokenLoop, prefix: PrefixRows) -> Replay:
        made.append(self.count)
        return Replay(self)

    monkeypatch.setattr("rank_e.sampling.loop.can_capture", lambda device: True)
    monkeypatch.setattr(TokenLoop, "_capture", capture)
    config = SamplingConfig(guidance=2.0, top_k=10)
    plain, captured = (Sampler(policy, config, batch_size=5, fast=fast) for fast in (False, True))
    for order in ([0, 1, 2], [2, 0, 1]):
        found, expected = (s(text[order], mask[order], seeds(), repeats=GROUP) for s in (captured, plain))
        assert torch.equal(found.tokens, expected.tokens)
        torch.testing.assert_close(found.log_probs, expected.log_probs, atol=1e-5, rtol=0)
    assert made == [5]


def test_sampling_leaves_the_global_generator_alone(world: tuple[Policy, Tensor, Tensor]) -> None:
    policy, text, mask = world
    state = torch.get_rng_state()
    sample(policy, text, mask, seeds(PROMPTS), SamplingConfig(), batch_size=2)
    assert torch.equal(torch.get_rng_state(), state)


def test_frequencies_follow_the_distribution(world: tuple[Policy, Tensor, Tensor]) -> None:
    policy, text, mask = world
    config, count = SamplingConfig(guidance=2.0, top_k=6), 4000
    tokens = sample(policy, text[:1], mask[:1], seeds(count), config, batch_size=1000, repeats=count).tokens
    with torch.no_grad():
        conditional = policy(text[:1], mask[:1], tokens[:1])[0, 0]
        unconditional = policy(text[:1], mask[:1], tokens[:1], torch.tensor([True]))[0, 0]
    expected = filter_logits(unconditional + 2 * (conditional - unconditional), top_k=6).softmax(-1)
    found = tokens[:, 0].bincount(minlength=24) / count
    assert (found[expected == 0] == 0).all()
    assert (found - expected).abs().max() < 5 * math.sqrt(0.25 / count)


def test_scores_move_both_branches(world: tuple[Policy, Tensor, Tensor]) -> None:
    policy, text, mask = world
    tokens = sample(policy, text, mask, seeds(PROMPTS), SamplingConfig(), batch_size=3).tokens
    gradients = []
    for guidance in (1.0, 3.0):
        policy.zero_grad()
        score(policy, text, mask, tokens, SamplingConfig(guidance=guidance), checkpointing=True).sum().backward()
        gradients.append(policy.cls_embedding.uncond_embedding.grad)
    assert gradients[0] is None
    assert gradients[1] is not None and gradients[1].abs().sum() > 0
    policy.zero_grad()


def test_a_token_that_new_weights_exclude_is_scored_finite(world: tuple[Policy, Tensor, Tensor]) -> None:
    policy, text, mask = world
    config = SamplingConfig(guidance=2.0, top_k=2, top_p=0.5)
    tokens = torch.randint(24, (PROMPTS, 9), generator=generator(0))
    scores = score(policy, text, mask, tokens, config)
    assert scores.isfinite().all()
    scores.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in policy.parameters())
    policy.zero_grad()


def test_guidance_extrapolates_from_unconditional_to_conditional() -> None:
    conditional, unconditional = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])
    for scale, expected in ((0.0, [0.0, 2.0]), (1.0, [1.0, 0.0]), (3.0, [3.0, -4.0])):
        torch.testing.assert_close(guide(conditional, unconditional, scale), torch.tensor(expected))


def test_top_k_then_top_p() -> None:
    logits = torch.tensor([0.1, 0.4, 0.2, 0.3]).log()
    out = -math.inf

    def kept(**options: float) -> list[bool]:
        return (filter_logits(logits, **options) != out).tolist()  # type: ignore[arg-type]

    assert kept() == [True] * 4
    assert kept(top_k=2) == [False, True, False, True]
    assert kept(top_k=9) == [True] * 4
    assert kept(top_p=0.65) == [False, True, False, True]
    assert kept(top_p=0.75) == [False, True, True, True]
    assert kept(top_p=1e-9) == [False, True, False, False]
    assert kept(top_k=2, top_p=0.5) == [False, True, False, False]  # 0.4 / 0.7 is already more than half
    always = filter_logits(logits, top_k=1, always=torch.tensor(0))
    assert (always != out).tolist() == [True, True, False, False]
    torch.testing.assert_close(filter_logits(logits, temperature=0.5), 2 * logits)


def test_requests_that_cannot_be_met_are_refused(world: tuple[Policy, Tensor, Tensor]) -> None:
    policy, text, mask = world
    with pytest.raises(RankEError, match="2 seeds for 3 prompts x 1"):
        sample(policy, text, mask, seeds(2), SamplingConfig(), batch_size=1)
    with pytest.raises(RankEError, match="temperature"):
        SamplingConfig(temperature=0.0)
    with pytest.raises(RankEError, match="top_p"):
        SamplingConfig(top_p=1.5)
