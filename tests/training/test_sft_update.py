"""Supervised fine-tuning: the right loss, every image once an epoch, captions dropped, resumed to the same bits."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rank_e.config import SftParams
from rank_e.errors import RankEError
from rank_e.sampling.distribution import SamplingConfig
from rank_e.sampling.sampler import sample
from rank_e.sampling.scoring import score
from rank_e.seeds import generator
from rank_e.training.sft_update import (
    CaptionReader,
    EncodedImages,
    SftUpdate,
    encode_images,
    learning_rate_at,
    rows_at,
    sft_loss,
)
from tests.helpers.tiny_nets import copied, moved, snapshot, tiny_policy, tiny_tokenizer

COUNT = 12
PARAMS = SftParams(
    train=True,
    images=COUNT,
    steps=6,
    batch_size=8,
    microbatch_size=8,
    learning_rate=1e-2,
    warmup_steps=0,
    betas=[0.9, 0.95],
    weight_decay=0.0,
    gradient_clip=1.0,
    caption_dropout=0.25,
    ema_decay=0.5,
    ema_every=1,
    checkpointing=False,
)


def captions() -> tuple[Tensor, Tensor]:
    mask = torch.tensor([[0, 1, 1], [1, 1, 1], [0, 0, 1]]).bool().repeat(COUNT // 3, 1)
    return torch.randn(COUNT, 3, 8, generator=generator(1, "text")) * mask[..., None], mask


def stored(text: Tensor, mask: Tensor) -> CaptionReader:
    return lambda rows: (text[rows], mask[rows])


def data() -> EncodedImages:
    return EncodedImages(torch.randint(16, (COUNT, 4), generator=generator(1, "tokens")), stored(*captions()))


def make(policy: Any = None, **changes: object) -> Any:
    return SftUpdate(policy or tiny_policy(), data(), PARAMS.model_copy(update=changes), seed=5)


def test_online_and_average_move_and_nothing_that_is_read_does():
    update = make()
    read = update.data.tokens, *update.data.text(torch.arange(COUNT))
    before, kept = copied(update.state()["online"]), [x.clone() for x in read]
    update.step(0)
    after = update.state()
    for name, old in before.items():
        assert not torch.equal(after["online"][name], old), name
        torch.testing.assert_close(after["ema"][name], (old + after["online"][name]) / 2)  # EMA of decay 0.5: half-way
    assert all(torch.equal(*pair) for pair in zip(read, kept, strict=True))


def test_the_loss_is_minus_the_mean_log_probability_that_scoring_gives():
    policy, images, (text, mask) = tiny_policy(), data(), captions()
    losses = sft_loss(policy, text, mask, images.tokens)
    torch.testing.assert_close(losses, -score(policy, text, mask, images.tokens, SamplingConfig()).mean(1))
    dropped = torch.arange(COUNT) % 2 == 0
    mixed = sft_loss(policy, text, mask, images.tokens, dropped)
    other = sft_loss(policy, torch.zeros_like(text) + 7, mask, images.tokens, torch.ones(COUNT, dtype=torch.bool))
    torch.testing.assert_close(mixed[~dropped], losses[~dropped])
    torch.testing.assert_close(mixed[dropped], other[dropped])  # the caption itself is not seen
    with torch.no_grad():
        policy.output.weight.zero_()
        uniform = sft_loss(policy, text, mask, images.tokens)
    torch.testing.assert_close(uniform, torch.full((COUNT,), math.log(16)))


def test_a_guided_sample_says_what_the_images_of_its_caption_are():
    text, mask = captions()
    tokens = (torch.arange(COUNT) % 3)[:, None] * 5 + torch.arange(4)
    text = torch.eye(3, 8)[torch.arange(COUNT) % 3][:, None].repeat(1, 3, 1) * mask[..., None]
    images = EncodedImages(tokens, stored(text, mask))
    update = SftUpdate(tiny_policy(), images, PARAMS.model_copy(update={"learning_rate": 2e-2}), seed=5)
    before = sft_loss(update.online, text, mask, tokens).mean().item()
    for index in range(80):
        update.step(index)
    assert sft_loss(update.online, text, mask, tokens).mean().item() < 0.2 < before
    samples = sample(update.online, text, mask, range(COUNT), SamplingConfig(guidance=3.0), 12, greedy=True)
    assert torch.equal(samples.tokens, tokens)


def test_each_epoch_holds_every_image_once_in_an_order_of_its_own():
    rows = torch.cat([rows_at(step, COUNT, 5, seed=5) for step in range(12)]).view(5, COUNT)
    assert all(sorted(epoch) == list(range(COUNT)) for epoch in rows.tolist())
    assert len({tuple(epoch) for epoch in rows.tolist()}) == 5
    assert torch.equal(rows_at(7, COUNT, 5, seed=5), rows.flatten()[35:40])  # a function of the step alone
    assert torch.equal(rows_at(1, COUNT, 30, seed=5), rows.flatten()[30:60])  # batches of many epochs
    assert not torch.equal(rows_at(0, COUNT, 5, seed=6), rows.flatten()[:5])


def test_captions_are_dropped_at_the_given_share_and_only_then_is_no_caption_learned():
    name = "cls_embedding.uncond_embedding"
    never, sometimes = make(caption_dropout=0.0, weight_decay=0.1), make(caption_dropout=0.25)
    before = snapshot(never.online)
    shares = [(never.step(i)["dropped"], sometimes.step(i)["dropped"]) for i in range(40)]
    assert {share for share, _ in shares} == {0.0}
    assert 0.15 < sum(share for _, share in shares) / 40 < 0.35
    assert len({share for _, share in shares}) > 2  # another choice each step
    assert name not in moved(before, never.online)
    assert name in moved(before, sometimes.online)


def test_eight_by_one_is_one_by_eight():
    states = []
    for size in (1, 3, 8):
        update = make(microbatch_size=size)
        losses = [update.step(i)["loss"] for i in range(3)]
        states.append(
            (losses, update.step(3)["grad_norm"], [weight.grad for weight in update.trained.optimizer.weights])
        )
    for losses, norm, gradients in states[:2]:
        assert losses == pytest.approx(states[2][0], rel=1e-4)
        assert norm == pytest.approx(states[2][1], rel=1e-3)
        for gradient, whole in zip(gradients, states[2][2], strict=True):
            torch.testing.assert_close(gradient, whole, atol=1e-4, rtol=1e-2)


def test_the_average_follows_when_it_is_due():
    update = make(ema_every=2)
    before = copied(update.state()["ema"])
    update.step(0)
    assert all(torch.equal(before[name], x) for name, x in update.state()["ema"].items())
    update.step(1)
    after = update.state()
    assert all(torch.equal(x, before[name].lerp(after["online"][name], 0.5)) for name, x in after["ema"].items())


def test_the_step_is_adamws_with_decay_of_matrices_alone():
    update, reference = make(weight_decay=0.1, learning_rate=1e-3), tiny_policy()
    rows = rows_at(0, COUNT, 8, seed=5)
    text, mask = captions()
    dropped = torch.rand(8, generator=generator(5, "sft", "dropout", 0)) < 0.25
    sft_loss(reference, text[rows], mask[rows], data().tokens[rows], dropped).mean().backward()
    nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
    update.step(0)
    for (name, new), old in zip(update.online.named_parameters(), reference.parameters(), strict=True):
        decayed = old.detach() * (1 - 1e-3 * 0.1 * (old.ndim >= 2))
        gradient = old.grad
        assert gradient is not None
        expected = decayed - 1e-3 * gradient / (gradient.abs() + 1e-8)  # Adam's first step
        torch.testing.assert_close(new.detach(), expected, atol=1e-6, rtol=1e-5, msg=name)


def test_resuming_between_steps_gives_the_same_bits():
    whole, first, second = make(), make(), make()
    for index in range(6):
        whole.step(index)
    for index in range(3):
        first.step(index)
    second.load(first.state())
    for index in range(3, 6):
        second.step(index)
    assert moved(snapshot(whole.online), second.online) == set()
    state, other = whole.state(), second.state()
    assert state.keys() == other.keys() == {"online", "ema", "optimizer"}
    for file, tensors in state.items():
        assert tensors.keys() == other[file].keys() != set()
        assert all(torch.equal(tensors[name], other[file][name]) for name in tensors), file


def test_training_begins_at_float32_weights_that_half_precision_would_round():
    policy = tiny_policy()
    wanted = {name: x.detach().clone() for name, x in policy.named_parameters()}
    update = make(policy.bfloat16())
    assert not torch.equal(update.state()["online"]["output.weight"], wanted["output.weight"])
    update.load({"online": wanted, "ema": wanted, "optimizer": {}})
    for name, weight in update.state()["online"].items():
        assert torch.equal(weight, wanted[name]) and torch.equal(update.state()["ema"][name], wanted[name]), name
    assert torch.equal(update.online.output.weight, wanted["output.weight"].bfloat16())


def test_a_state_from_before_the_first_step_loads_and_a_broken_one_is_named():
    fresh = make().state()
    make().load(fresh)
    for file, name in (("ema", "norm.weight"), ("optimizer", "norm.weight.exp_avg_sq")):
        update = make()
        update.step(0)
        broken = update.state()
        del broken[file][name]
        with pytest.raises(RankEError, match=f"no tensor {name}"):
            make().load(broken)


def test_half_precision_weights_keep_what_small_steps_add_up_to():
    settings = {"learning_rate": 1e-5, "caption_dropout": 0.0}
    half, full = make(tiny_policy().bfloat16(), **settings), make(tiny_policy(), **settings)
    start = copied(half.state()["online"])
    for index in range(20):
        half.step(index)
        full.step(index)
    change = half.state()["online"]["output.weight"] - start["output.weight"]
    assert 5e-5 < change.abs().mean() < 2.5e-4  # 20 steps of about 1e-5, each below bfloat16's rounding of 0.3
    for name, parameter in half.online.named_parameters():
        master = half.state()["online"][name]
        assert parameter.dtype == torch.bfloat16 and torch.equal(parameter, master.bfloat16()), name
    wanted = full.state()["online"]["output.weight"] - tiny_policy().output.weight.detach()
    assert torch.corrcoef(torch.stack([change.flatten(), wanted.flatten()]))[0, 1] > 0.9
    assert all(x.dtype == torch.float32 for x in half.state()["ema"].values())
    again = make(tiny_policy().bfloat16(), **settings)
    again.load(half.state())
    assert moved(snapshot(half.online), again.online) == set()


def test_the_rate_warms_up():
    rates = [learning_rate_at(step, 1e-2, 4) for step in range(6)]
    assert rates == pytest.approx([2.5e-3, 5e-3, 7.5e-3, 1e-2, 1e-2, 1e-2])
    assert learning_rate_at(0, 1e-2, 0) == 1e-2
    update = make(warmup_steps=4)
    before = update.state()["online"]["output.weight"].clone()
    assert update.step(0)["learning_rate"] == pytest.approx(2.5e-3)
    change = (update.state()["online"]["output.weight"] - before).abs()
    assert change.max().item() == pytest.approx(2.5e-3, rel=1e-2)  # Adam's first step is the rate itself


def test_checkpointing_changes_memory_and_not_results():
    updates = [make(checkpointing=value) for value in (False, True)]
    for update in updates:
        update.step(0)
    states = [update.state()["online"] for update in updates]
    torch.testing.assert_close(states[0], states[1], atol=1e-6, rtol=1e-5)


class Bigram(nn.Module):
    """Another policy: text is ids int64 [P, T]; a token depends on the last id and on the token before it."""

    length, vocab_size, device = 4, 16, torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        self.first, self.next = nn.Parameter(torch.zeros(4, 16)), nn.Parameter(torch.zeros(16, 16))
        self.checkpointed: list[bool] = []

    def prefix(self, text: Tensor, mask: Tensor, unconditional: Tensor, checkpointing: bool = False) -> Tensor:
        assert text.dtype == torch.int64
        self.checkpointed.append(checkpointing)
        return self.first[torch.where(unconditional, 3, text[:, -1])]

    def hidden(self, prefix: Tensor, tokens: Tensor, checkpointing: bool = False, fast: bool = False) -> Tensor:
        self.checkpointed.append(checkpointing)
        return torch.cat([prefix[:, None], self.next[tokens[:, :-1]]], 1)

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden


def test_any_policy_of_the_protocol_can_be_trained():
    ids = torch.arange(COUNT)[:, None] % 3
    text = stored(ids, torch.ones_like(ids, dtype=torch.bool))
    images = EncodedImages(ids + torch.arange(4), text)
    params = PARAMS.model_copy(update={"learning_rate": 0.3, "checkpointing": True})
    policy: Any = Bigram()
    update = SftUpdate(policy, images, params, seed=5)
    losses = [update.step(index)["loss"] for index in range(30)]
    assert losses[0] == pytest.approx(math.log(16)) and losses[-1] < 0.7
    assert policy.checkpointed == [True] * 60
    assert policy.first[:3].argmax(1).tolist() == [0, 1, 2]


def test_images_are_encoded_by_the_tokenizer():
    tokenizer, images = tiny_tokenizer(), torch.rand(5, 3, 8, 8, generator=generator(0, "images"))
    assert torch.equal(encode_images(tokenizer, images), tokenizer.encode(images * 2 - 1)[1])
    with pytest.raises(RankEError, match=r"\[N, 3, 8, 8\]"):
        encode_images(tokenizer, torch.zeros(1, 3, 16, 16))


def test_wrong_data_are_refused():
    text = stored(*captions())
    for tokens in (torch.zeros(0, 4).long(), torch.zeros(3, 5).long(), torch.zeros(3, 4)):
        with pytest.raises(RankEError, match="sft: tokens"):
            SftUpdate(tiny_policy(), EncodedImages(tokens, text), PARAMS, seed=5)
    with pytest.raises(RankEError, match=r"beyond 0 \.\.\. 15"):
        SftUpdate(tiny_policy(), EncodedImages(torch.full((3, 4), 16), text), PARAMS, seed=5)


def test_a_gradient_that_is_not_finite_stops_before_the_weights_move():
    policy = tiny_policy()
    with torch.no_grad():
        policy.tok_embeddings.weight[3] = float("inf")
    update = make(policy)
    before = copied(update.state()["online"])
    with pytest.raises(RankEError, match=r"sft\.learning_rate: .*step 0 is not finite"):
        update.step(0)
    assert all(torch.equal(before[name], x) for name, x in update.state()["online"].items())
