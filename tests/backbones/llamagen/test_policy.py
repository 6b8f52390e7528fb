"""The policy against LlamaGen's own numbers, and against a plain transformer written the long way."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional as F

from rank_e.backbones.llamagen.policy import LLAMAGEN, Policy, PolicyConfig, attention_mask, rotary_table
from rank_e.errors import RankEError
from rank_e.seeds import generator

GOLDEN = Path(__file__).parents[2] / "golden"
SMALL = PolicyConfig(
    dim=32, n_layer=2, n_head=2, vocab_size=16, block_size=9, cls_token_num=5, caption_dim=8, multiple_of=32
)


@pytest.fixture(scope="module")
def golden() -> tuple[Policy, dict[str, Tensor]]:
    with safe_open(GOLDEN / "llamagen_policy.safetensors", "pt") as file:
        config = json.loads(file.metadata()["config"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    hidden = config.pop("ffn_hidden")
    policy = Policy(PolicyConfig(**config))
    assert policy.config.hidden_dim == hidden
    weights = {key.removeprefix("weights."): value for key, value in tensors.items() if key.startswith("weights.")}
    policy.load_state_dict(weights, strict=True)
    return policy, tensors


def small() -> tuple[Policy, Tensor, Tensor, Tensor]:
    policy = Policy(SMALL).initialise(generator(0, "policy"))
    draw = generator(0, "inputs")
    with torch.no_grad():
        for weight in policy.parameters():  # larger than at the start of training, so that everything matters
            if weight.ndim > 1:
                weight.normal_(0.0, 0.3, generator=draw)
    mask = torch.arange(5) >= torch.tensor([[0], [2], [4]])
    text = torch.randn(3, 5, 8, generator=draw) * mask[..., None]
    return policy, text, mask, torch.randint(16, (3, 9), generator=draw)


def long_way(policy: Policy, text: Tensor, allowed: Tensor, tokens: Tensor) -> Tensor:
    """Text and image as one sequence in full attention under `allowed` bool [N, T + L - 1, T + L - 1]."""
    config, prefix = policy.config, text.shape[1]
    image = policy.tok_embeddings(tokens[:, :-1])
    x = torch.cat([policy.cls_embedding.cap_proj(text), image], dim=1)
    n, length, _ = x.shape
    table = torch.view_as_real(rotary_table(config))[: image.shape[1]]
    table = torch.cat([torch.zeros(prefix, *table.shape[1:]), table])[:, None]

    def turn(rows: Tensor) -> Tensor:
        even, odd = rows[..., 0::2], rows[..., 1::2]
        cosine, sine = table[..., 0], table[..., 1]
        return torch.stack([even * cosine - odd * sine, odd * cosine + even * sine], dim=-1).flatten(-2)

    for layer in policy.blocks:
        parts = layer.attention.wqkv(layer.attention_norm(x)).view(n, length, 3, config.n_head, -1).unbind(2)
        query, key, value = (rows.transpose(1, 2) for rows in (turn(parts[0]), turn(parts[1]), parts[2]))
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        mixed = scores.masked_fill(~allowed[:, None], -math.inf).softmax(-1) @ value
        x = x + layer.attention.wo(mixed.transpose(1, 2).flatten(-2))
        x = x + layer.feed_forward(layer.ffn_norm(x))
    return policy.logits(x)[:, prefix - 1 :]


def full_mask(mask: Tensor, images: int) -> Tensor:
    return attention_mask(torch.cat([mask, torch.ones(len(mask), images, dtype=torch.bool)], dim=1))


def test_logits_equal_llamagen(golden: tuple[Policy, dict[str, Tensor]]) -> None:
    policy, data = golden
    mask = data["text_mask"].bool()
    with torch.no_grad():
        logits = policy(data["text_embeddings"], mask, data["tokens"])
        unconditional = policy(data["text_embeddings"], mask, data["tokens"], torch.ones(len(mask), dtype=torch.bool))
    torch.testing.assert_close(logits, data["logits"], atol=1e-4, rtol=0)
    torch.testing.assert_close(unconditional, data["unconditional_logits"], atol=1e-4, rtol=0)


def test_state_dict_is_llamagen_xls() -> None:
    with torch.device("meta"):
        policy = Policy(
            PolicyConfig(**LLAMAGEN["XL"], vocab_size=16384, block_size=256, cls_token_num=120, caption_dim=2048)
        )
    official = json.loads((GOLDEN / "llamagen_xl_t2i_256_state_dict.json").read_text())
    assert {name: list(weight.shape) for name, weight in policy.state_dict().items()} == official


def test_collapsed_prefix_equals_full_attention() -> None:
    policy, text, mask, tokens = small()
    with torch.no_grad():
        expected = long_way(policy, text, full_mask(mask, 8), tokens)
        torch.testing.assert_close(policy(text, mask, tokens), expected, atol=1e-5, rtol=1e-5)


def test_a_bidirectional_prefix_would_score_otherwise() -> None:
    policy, text, mask, tokens = small()
    allowed = full_mask(mask, 8)
    allowed[:, :5, :5] |= mask[:, None, :]
    with torch.no_grad():
        assert (long_way(policy, text, allowed, tokens) - policy(text, mask, tokens)).abs().max() > 1e-2


def test_the_mask_is_causal_skips_padding_and_keeps_the_diagonal() -> None:
    expected = torch.tensor([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]], dtype=torch.bool)
    assert torch.equal(attention_mask(torch.tensor([[False, False, True, True]]))[0], expected)


def test_padding_changes_nothing() -> None:
    policy, text, mask, tokens = small()
    with torch.no_grad():
        padded = policy(text, mask, tokens)[1]
        bare = policy(text[1:2, 2:], mask[1:2, 2:], tokens[1:2])[0]
        unconditional = torch.ones(1, dtype=torch.bool)
        padded_u = policy(text[1:2], mask[1:2], tokens[1:2], unconditional)
        bare_u = policy(text[1:2, 2:], mask[1:2, 2:], tokens[1:2], unconditional)
    torch.testing.assert_close(padded, bare, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(padded_u, bare_u, atol=1e-5, rtol=1e-5)


def test_no_logit_sees_its_own_or_a_later_token() -> None:
    policy, text, mask, tokens = small()
    changed = tokens.clone()
    changed[:, 4] = (changed[:, 4] + 1) % 16
    with torch.no_grad():
        before, after = policy(text, mask, tokens), policy(text, mask, changed)
    assert torch.equal(before[:, :5], after[:, :5])
    assert ((before[:, 5:] - after[:, 5:]).abs().amax(-1) > 1e-4).all()


def test_unconditional_rows_ignore_the_words_but_not_their_number() -> None:
    policy, text, mask, tokens = small()
    drop = torch.tensor([True, False, True])
    tokens = tokens[:1].expand(3, -1)
    with torch.no_grad():
        mixed = policy(text, mask, tokens, drop)
        other = policy(text.flip(-1), mask, tokens, drop)
        plain = policy(text, mask, tokens)
    assert torch.equal(mixed[drop], other[drop])
    torch.testing.assert_close(mixed[1], plain[1])
    assert (mixed[0] - mixed[2]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("mask", "part"),
    [
        ([[1, 1, 1, 0, 0]], "left-padded"),
        ([[0, 0, 0, 0, 0]], "left-padded"),
        ([[1, 0, 1, 1, 1]], "left-padded"),
    ],
)
def test_right_padded_empty_or_broken_text_is_refused(mask: list[list[int]], part: str) -> None:
    policy, text, _, tokens = small()
    with pytest.raises(RankEError, match=part):
        policy(text[:1], torch.tensor(mask).bool(), tokens[:1])


def test_text_longer_than_the_unconditional_text_is_refused() -> None:
    policy, _, _, tokens = small()
    with pytest.raises(RankEError, match="T <= 5"):
        policy(torch.zeros(1, 6, 8), torch.ones(1, 6, dtype=torch.bool), tokens[:1])


def test_step_by_step_equals_teacher_forcing() -> None:
    policy, text, mask, tokens = small()
    with torch.no_grad():
        expected = policy(text, mask, tokens)
        prefix = policy.prefix(text, mask)
        cache, logits = policy.cache(prefix), [policy.logits(prefix.hidden)]
        logits += [policy.step(tokens[:, i], cache) for i in range(8)]
    torch.testing.assert_close(torch.stack(logits, 1), expected, atol=1e-5, rtol=1e-5)


def test_checkpointing_recomputes_blocks_and_gives_the_same_gradients() -> None:
    policy, text, mask, tokens = small()
    calls: list[int] = []
    policy.blocks[0].attention_norm.register_forward_hook(lambda *_: calls.append(1))
    counts, gradients = [], []
    for checkpointing in (False, True):
        policy.zero_grad()
        calls.clear()
        logits = policy(text, mask, tokens, checkpointing=checkpointing)
        F.cross_entropy(logits.flatten(0, 1), tokens.flatten()).backward()
        counts.append(len(calls))
        gradients.append({name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None})
    assert counts == [2, 4]  # text and image rows: once, then once more in the backward pass
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)
        if name != "layers.1.attention.wqkv.weight":
            assert gradient.abs().sum() > 0, name


def test_weights_are_a_function_of_the_generator() -> None:
    states = [Policy(SMALL).initialise(generator(seed, "policy")).state_dict() for seed in (0, 0, 1)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["tok_embeddings.weight"], states[2]["tok_embeddings.weight"])


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(RankEError, match="square"):
        replace(SMALL, block_size=10)
    with pytest.raises(RankEError, match="dim"):
        replace(SMALL, dim=36, n_head=2)


def test_text_of_another_precision_is_read_in_the_policys_own() -> None:
    config = PolicyConfig(32, 2, 2, vocab_size=16, block_size=4, cls_token_num=3, caption_dim=8, multiple_of=16)
    policy = Policy(config).initialise(generator(0, "policy")).bfloat16()
    text, mask = torch.randn(2, 3, 8, generator=generator(0, "text")), torch.ones(2, 3, dtype=torch.bool)
    tokens = torch.zeros(2, 4, dtype=torch.int64)
    with torch.no_grad():
        assert torch.equal(policy(text, mask, tokens), policy(text.bfloat16(), mask, tokens))


def test_the_caption_projection_is_drawn_as_wide_as_its_input_asks() -> None:
    config = PolicyConfig(128, 1, 2, vocab_size=16, block_size=4, cls_token_num=3, caption_dim=64)
    weights = dict(Policy(config).initialise(generator(0, "policy")).named_parameters())
    for name in ("cap_proj.fc1.weight", "cap_proj.fc2.weight", "uncond_embedding"):
        assert weights[f"cls_embedding.{name}"].std().item() == pytest.approx(64**-0.5, rel=0.15), name
    assert weights["layers.0.attention.wo.weight"].std().item() == pytest.approx(0.02, rel=0.05)
