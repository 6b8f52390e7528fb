"""The world's CLIPs: tokens, left-padded text features, half-precision storage, a loss that knows repeated
captions.
"""

import pytest
import torch
from safetensors.torch import load, save
from torch.nn import functional as F

from rank_e.errors import RankEError
from rank_e.io import torchvision_ops
from rank_e.rewards.clip import clip_inputs
from rank_e.seeds import generator
from rank_e.shapes import clip, world
from rank_e.shapes.captions import COMPOSITIONS

SIZES = {"text": clip.TEXT, "reward": clip.REWARD, "evaluator": clip.EVALUATOR}
PROMPTS = ["a circle", "a red circle left of a square", "three yellow triangles"]


def test_open_clip_imports_and_the_declaration_is_idempotent() -> None:
    first = torchvision_ops.declare_torchvision_ops()
    assert torchvision_ops.import_open_clip().__name__ == "open_clip"
    assert torchvision_ops.declare_torchvision_ops() == first


def test_every_caption_has_its_own_ids_ending_in_the_largest() -> None:
    ids = clip.tokenize(list(COMPOSITIONS))
    assert ids.dtype == torch.int64 and ids.shape == (len(COMPOSITIONS), clip.CONTEXT)
    assert len(ids.unique(dim=0)) == len(COMPOSITIONS)
    lengths = torch.tensor([len(caption.split()) for caption in COMPOSITIONS])
    assert torch.equal(ids.argmax(1), lengths + 1)  # where open_clip pools the text
    assert torch.equal((ids != clip.PAD).sum(1), lengths + 2)


def test_tokenize_names_what_it_does_not_know() -> None:
    with pytest.raises(RankEError, match="'hexagon'"):
        clip.tokenize(["a red hexagon"])
    with pytest.raises(RankEError, match="words"):
        clip.tokenize(["a " * 40])


@pytest.mark.parametrize("name", SIZES)
def test_weights_are_a_function_of_the_seed_and_survive_half_precision(name: str) -> None:
    state = torch.random.get_rng_state()
    model = clip.build(SIZES[name], seed=4).eval()
    assert torch.equal(torch.random.get_rng_state(), state)  # the global generator is left as it was
    again, other = clip.build(SIZES[name], seed=4), clip.build(SIZES[name], seed=5)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert not torch.equal(model.token_embedding.weight, other.token_embedding.weight)
    half = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    stored = load(save({k: v.contiguous() for k, v in half.items()}))
    restored = clip.build(SIZES[name], seed=5).eval()
    restored.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in stored.items()})
    images = torch.rand(4, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for encode, inputs in (
            ("encode_image", clip_inputs(model, images)),
            ("encode_text", clip.tokenize(PROMPTS)),
        ):
            a, b = getattr(model, encode)(inputs), getattr(restored, encode)(inputs)
            assert F.cosine_similarity(a, b).min() > 0.999


@torch.no_grad()
def test_text_features_are_left_padded_with_exact_zeros_and_independent_of_the_batch() -> None:
    model = clip.build(clip.TEXT).eval()
    encode = clip.TextEncoder(model)
    features, mask = encode(PROMPTS)
    assert features.shape == (3, clip.CONTEXT, 64) and mask.shape == (3, clip.CONTEXT)
    assert mask.sum(1).tolist() == [4, 9, 5]
    assert mask[:, -1].all() and torch.equal(mask.int().cummax(1).values, mask.int())  # valid ones at the end
    assert (features[~mask] == 0).all() and (features[mask].abs().sum(-1) > 0).all()
    alone, _ = encode(PROMPTS[:1])
    torch.testing.assert_close(alone[0], features[0], rtol=1e-5, atol=1e-6)
    pooled = model.encode_text(clip.tokenize(PROMPTS))
    torch.testing.assert_close(features[:, -1] @ model.text_projection, pooled, rtol=1e-4, atol=1e-5)


def test_loss_takes_every_pair_of_the_same_caption_as_a_positive() -> None:
    draw = torch.Generator().manual_seed(2)
    image, text = (F.normalize(torch.randn(4, 8, generator=draw), dim=-1) for _ in range(2))
    scale, eye = torch.tensor(7.0), torch.eye(4, dtype=torch.bool)
    logits = 7 * image @ text.T
    plain = (F.cross_entropy(logits, torch.arange(4)) + F.cross_entropy(logits.T, torch.arange(4))) / 2
    torch.testing.assert_close(clip.contrastive_loss(image, text, scale, eye), plain)
    # Two pairs of captions, and images that match both of their pair perfectly: only log 2 remains.
    ends = torch.eye(2).repeat_interleave(2, 0)
    same = (ends @ ends.T).bool()
    best = clip.contrastive_loss(ends, ends, torch.tensor(50.0), same)
    assert best.item() == pytest.approx(0.6931, abs=1e-3)
    mixed = clip.contrastive_loss(ends, ends[[0, 2, 1, 3]], torch.tensor(50.0), same)
    assert mixed > best + 1


def test_training_learns_and_repeats_itself() -> None:
    scenes = world.scenes("train", 256, 1)
    images = world.images(scenes).mul(255).round().to(torch.uint8)
    captions = [scene.caption for scene in scenes]

    def train(seed: int) -> tuple[list[float], torch.nn.Module]:
        model, losses = clip.build(clip.TEXT, seed=1), []
        clip.train_clip(
            model,
            images,
            captions,
            steps=40,
            batch=32,
            lr=2e-3,
            seed=seed,
            log=lambda _, m: losses.append(m["loss"]),
        )
        return losses, model

    losses, model = train(0)
    mixed = losses[1::2]  # the other batches are of one category each, and harder or easier by its captions
    assert sum(mixed[-4:]) / 4 < sum(mixed[:3]) / 3 - 0.4
    assert not model.training
    assert train(0)[0] == losses
    assert train(1)[0] != losses


def test_word_recall_is_the_cross_entropy_of_every_word_but_padding() -> None:
    ids = clip.tokenize(["a red circle", "two blue squares", "a circle left of a square"])
    recall = clip.WordRecall(8, generator(0, "words"))
    states = torch.randn(*ids.shape, 8, generator=generator(1, "states"))
    own, every = [], []
    for row, words in zip(states, ids.tolist(), strict=True):
        length = words.index(clip.END) + 1
        own += [-(row[place] @ recall.own).log_softmax(0)[words[place]] for place in range(length)]
        guesses = (row[length - 1] @ recall.all).view(len(words), -1)
        every += [-guesses[place].log_softmax(0)[word] for place, word in enumerate(words)]
    expected = torch.stack(own).mean() + torch.stack(every).mean()
    assert torch.allclose(recall(states, ids), expected, atol=1e-5)


def test_a_text_tower_that_recalls_words_tells_directions_apart() -> None:
    scenes = world.scenes("train", 256, 1)
    images = world.images(scenes).mul(255).round().to(torch.uint8)
    captions = [scene.caption for scene in scenes]

    def likeness(recall_words: bool) -> float:
        model = clip.build(clip.TEXT, seed=1)
        options = {"steps": 40, "batch": 32, "lr": 2e-3, "seed": 0, "log": lambda *_: None}
        clip.train_clip(model, images, captions, **options, recall_words=recall_words)
        with torch.no_grad():
            states, _ = clip.TextEncoder(model)(["a circle left of a square", "a circle right of a square"])
        return torch.cosine_similarity(states[0].mean(0), states[1].mean(0), dim=0).item()

    assert likeness(True) < likeness(False) - 0.02


def test_every_second_batch_is_of_one_category() -> None:
    captions = ["a red circle", "a circle", "a blue square", "a circle left of a square", "a square"]
    pools = [pool.tolist() for pool in clip.pools_of(captions)]
    everything = [0, 1, 2, 3, 4]
    assert pools == [[1, 4], everything, [0, 2], everything, [3], everything]  # in the order of CATEGORIES
