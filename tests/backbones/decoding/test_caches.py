"""The three key-value caches against attention by hand, and against each other behind both policies."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from rank_e.backbones.decoding import flash
from rank_e.backbones.decoding.attention import merge
from rank_e.backbones.decoding.flash import FlashCache
from rank_e.backbones.decoding.host import HostCache
from rank_e.backbones.decoding.masked import MaskedCache
from rank_e.backbones.decoding.slots import TextSlots
from rank_e.backbones.llamagen.transformer import Block, rotate
from rank_e.seeds import generator
from tests.helpers.slot_attention import attend_by_hand
from tests.helpers.tiny_nets import tiny_policy

LENGTH, LAYERS, HEADS, HEAD_DIM = 5, 2, 4, 8


@pytest.fixture
def by_hand(monkeypatch):
    """The flash cache without a GPU."""
    monkeypatch.setattr(flash, "attend_slots", attend_by_hand)


def texts(kind: str, index: list[int], kv_heads: int, seed: int) -> TextSlots:
    """Three texts: of one slot each, or of up to four rows, left-padded."""
    draw = generator(seed, "texts")
    if kind == "slot":
        values = tuple(torch.randn(3, 1, kv_heads, HEAD_DIM, generator=draw) for _ in range(LAYERS))
        return TextSlots(None, values, torch.tensor([[0.0], [1.5], [0.7]]), torch.tensor(index))
    shape = 3, 4, kv_heads, HEAD_DIM
    keys, values = (tuple(torch.randn(shape, generator=draw) for _ in range(LAYERS)) for _ in range(2))
    hidden = torch.arange(4) < torch.tensor([[2], [0], [1]])
    bias = torch.zeros(3, 4).masked_fill(hidden, -math.inf)
    return TextSlots(keys, values, bias, torch.tensor(index))


def expected(text: TextSlots, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Rows [L, N, heads, head_dim] behind one layer: softmax over the text's slots and the image's up to each row."""
    rows = torch.empty_like(queries)
    zeros = torch.zeros_like(text.values[layer])
    for n, which in enumerate(text.index.tolist()):
        for head in range(queries.shape[2]):
            kv = head // (queries.shape[2] // keys.shape[2])
            before = (zeros if text.keys is None else text.keys[layer])[which, :, kv]
            for i in range(len(queries)):
                slots = torch.cat([before, keys[: i + 1, n, kv]])
                seen = torch.cat([text.values[layer][which, :, kv], values[: i + 1, n, kv]])
                bias = torch.cat([text.bias[which], torch.zeros(i + 1)])
                rows[i, n, head] = (slots @ queries[i, n, head] + bias).softmax(0) @ seen
    return rows


CACHES = {
    "host": partial(HostCache, length=LENGTH),
    "masked": partial(MaskedCache, length=LENGTH),
    "flash": partial(FlashCache, length=LENGTH),
}


@torch.no_grad()
@pytest.mark.parametrize(("kind", "kv_heads"), [("slot", HEADS), ("rows", HEADS), ("rows", 2)])
@pytest.mark.parametrize("name", CACHES)
def test_a_cache_is_attention_to_text_and_image_and_can_be_filled_again(by_hand, name, kind, kv_heads):
    cache = None
    for batch, index in enumerate(([0, 0, 1, 2, 2, 1], [2, 2, 2, 0, 0, 0])):
        text, draw = texts(kind, index, kv_heads, batch), generator(batch, "rows")
        cache = cache or CACHES[name](text)
        assert cache.fits(text)
        cache.fill(text)
        queries = torch.randn(LENGTH, LAYERS, 6, HEADS, HEAD_DIM, generator=draw)
        keys, values = torch.randn(2, LENGTH, LAYERS, 6, kv_heads, HEAD_DIM, generator=draw)
        found = []
        for i in range(LENGTH):
            steps = zip(cache.layers, queries[i], keys[i], values[i], strict=True)
            found.append(torch.stack([layer.attend(*row) for layer, *row in steps]))
            cache.advance()
        for layer in range(LAYERS):
            wanted = expected(text, layer, queries[:, layer], keys[:, layer], values[:, layer])
            torch.testing.assert_close(torch.stack(found)[:, layer], wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", CACHES)
def test_a_batch_of_another_size_does_not_fit(by_hand, name):
    cache = CACHES[name](texts("rows", [0, 0, 1, 1], HEADS, 0))
    assert not cache.fits(texts("rows", [0, 0, 1], HEADS, 0))


def test_a_flash_cache_has_room_for_a_few_more_texts_and_says_when_it_has_not(by_hand):
    text = texts("rows", [0] * 6, HEADS, 0)
    cache = FlashCache(text, LENGTH)

    def more(count: int) -> TextSlots:
        keys, values = (
            [torch.cat([x, x[:1].expand(count, -1, -1, -1)]) for x in part] for part in (text.keys, text.values)
        )
        return TextSlots(keys, values, torch.cat([text.bias, text.bias[:1].expand(count, -1)]), text.index)

    assert cache.fits(more(2))
    assert not cache.fits(more(3))


def test_merging_two_sets_of_slots_is_attention_to_both():
    draw = generator(0, "merge")
    query, keys, values = torch.randn(3, 9, 1, 4, generator=draw)
    parts = []
    for slots in (slice(0, 2), slice(2, 9)):
        scores = (keys[slots, 0] @ query[0, 0])[None, None]
        parts += [scores.softmax(-1) @ values[slots, 0], scores.logsumexp(-1)]
    whole = (keys[:, 0] @ query[0, 0]).softmax(0) @ values[:, 0]
    torch.testing.assert_close(merge(*parts)[0, 0], whole)
    far = torch.tensor([[200.0]])  # a set that weighs nothing leaves the other as it is
    assert torch.equal(merge(parts[0], parts[1] + far, parts[2], parts[3]), parts[0])


def test_both_forms_of_a_rotation_agree():
    x, angles = torch.randn(3, 6, 8, generator=generator(0, "x")), torch.linspace(0, 3, 24).view(6, 4)
    rotation = torch.polar(torch.ones_like(angles), angles)
    assert torch.equal(rotate(x, torch.view_as_real(rotation)), rotate(x, rotation))


def take(monkeypatch, kind) -> None:
    """Give this machine the cache of another."""
    monkeypatch.setattr("rank_e.backbones.decoding.opening.HostCache", kind)


@torch.no_grad()
@pytest.mark.parametrize("kind", [MaskedCache, FlashCache])
def test_a_policy_steps_alike_on_every_machine(by_hand, monkeypatch, kind):
    policy, draw = tiny_policy(), generator(0, "policy")
    for weight in policy.parameters():
        if weight.ndim > 1:
            weight.normal_(0.0, 0.2, generator=draw)
    mask = torch.arange(3) >= torch.tensor([[0], [2], [1]])
    prefix = policy.prefix(torch.randn(3, 3, 8, generator=draw) * mask[..., None], mask)
    tokens = torch.randint(policy.vocab_size, (3, policy.length), generator=draw)

    def logits() -> Tensor:
        cache = policy.cache(prefix)
        return torch.stack([policy.step(token, cache) for token in tokens.T])

    host = logits()
    take(monkeypatch, kind)
    torch.testing.assert_close(logits(), host, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_one_compilation_serves_all_layers_and_positions(monkeypatch):
    take(monkeypatch, MaskedCache)
    policy, counter = tiny_policy(), CompileCounter()
    prefix = policy.prefix(torch.randn(2, 3, 8), torch.ones(2, 3, dtype=torch.bool))
    cache, tokens = policy.cache(prefix), torch.zeros(2, dtype=torch.int64)
    assert len(policy.blocks) > 1
    step, x = torch.compile(Block.step, backend=counter, dynamic=False, fullgraph=True), policy.tok_embeddings(tokens)
    for _ in range(2):
        rotation = cache.position.read(cache.rotation)
        for block, layer in zip(policy.blocks, cache.slots.layers, strict=True):
            step(block, x, rotation, layer)
        cache.slots.advance()
    assert counter.frame_count == 1
