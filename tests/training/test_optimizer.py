"""AdamW of named weights: which decay, how gradients are clipped, what its state holds."""

import pytest
import torch
from torch import nn

from rank_e.errors import RankEError
from rank_e.seeds import generator
from rank_e.training.optimizer import NamedAdamW
from tests.helpers.tiny_nets import copied, decoder_params


def weights() -> list[tuple[str, nn.Parameter]]:
    shapes = {"matrix": (3, 2), "gain": (3,), "unread": (2,)}
    return [
        (name, nn.Parameter(torch.randn(shape, generator=generator(0, name)) + 3.0)) for name, shape in shapes.items()
    ]


def make(**options: bool) -> NamedAdamW:
    params = decoder_params(weight_decay=0.5, gradient_clip=1.0)
    return NamedAdamW("decoder.learning_rate", weights(), 0.1, params, **options)


def backward(optimizer: NamedAdamW, scale: float = 1.0) -> None:
    optimizer.zero_grad()
    (sum(weight.square().sum() for name, weight in optimizer.named if name != "unread") * scale).backward()


@pytest.mark.parametrize("vectors", [True, False])
def test_matrices_decay_and_vectors_where_they_should(vectors: bool) -> None:
    optimizer = make(decay_vectors=vectors)
    before = {name: weight.detach().clone() for name, weight in optimizer.named}
    backward(optimizer)
    optimizer.step(0)
    for name, weight in optimizer.named:
        decay = 0.1 * 0.5 if name == "matrix" or vectors else 0.0
        moved = 0.1 * before[name].sign() if name != "unread" else 0.0  # Adam's first step is the rate itself
        wanted = before[name] * (1 - decay) - moved if name != "unread" else before[name]
        torch.testing.assert_close(weight.detach(), wanted, atol=1e-6, rtol=1e-5)


def test_the_norm_is_that_before_clipping_and_the_gradient_is_clipped() -> None:
    optimizer = make()
    backward(optimizer, 100.0)
    wanted = torch.cat([w.grad.flatten() for w in optimizer.weights if w.grad is not None]).norm().item()
    assert optimizer.step(0) == pytest.approx(wanted)
    clipped = torch.cat([w.grad.flatten() for w in optimizer.weights if w.grad is not None]).norm().item()
    assert clipped == pytest.approx(1.0, rel=1e-4)


def test_another_rate_holds_from_its_step_on() -> None:
    optimizer = make(decay_vectors=False)
    gain = dict(optimizer.named)["gain"]
    before = gain.detach().clone()
    backward(optimizer)
    optimizer.step(0, learning_rate=0.01)
    torch.testing.assert_close(gain.detach(), before - 0.01 * before.sign(), atol=1e-6, rtol=1e-5)


def test_its_state_takes_up_where_it_was_and_holds_only_what_a_gradient_has_reached() -> None:
    whole, first, second = make(), make(), make()
    for optimizer, steps in ((whole, 3), (first, 1)):
        for index in range(steps):
            backward(optimizer)
            optimizer.step(index)
    state = first.state()
    assert {name.partition(".")[0] for name in state} == {"matrix", "gain"}
    with torch.no_grad():
        for (_, weight), (_, other) in zip(second.named, first.named, strict=True):
            weight.copy_(other)
    second.load(state)
    for index in (1, 2):
        backward(second)
        second.step(index)
    assert all(torch.equal(a, b) for a, b in zip(whole.weights, second.weights, strict=True))


def test_the_fused_form_goes_on_from_the_loops_state_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    # CUDA's form; a CPU has it too, so that what it reads and writes can be held against the loop's.
    loop, resumed = make(), make()
    for index in range(2):
        backward(loop)
        loop.step(index)
    before = copied(loop.state())
    with torch.no_grad():
        for (_, weight), (_, other) in zip(resumed.named, loop.named, strict=True):
            weight.copy_(other)
    monkeypatch.setattr("rank_e.training.optimizer._fuses", lambda weights: True)
    fused = NamedAdamW("decoder.learning_rate", resumed.named, 0.1, decoder_params(weight_decay=0.5))
    fused.load(before)
    for each in (loop, fused):
        backward(each)
        each.step(2)
    for weight, other in zip(fused.weights, loop.weights, strict=True):
        torch.testing.assert_close(weight, other, atol=1e-6, rtol=1e-6)
    mine, theirs = fused.state(), loop.state()
    assert list(mine) == list(theirs)
    for name, value in mine.items():
        assert (value.dtype, value.shape, value.device) == (torch.float32, theirs[name].shape, theirs[name].device)
        torch.testing.assert_close(value, theirs[name], atol=1e-6, rtol=1e-6)


def test_a_missing_moment_and_a_gradient_that_is_not_finite_are_errors() -> None:
    optimizer = make()
    backward(optimizer)
    optimizer.step(0)
    state = optimizer.state()
    del state["gain.exp_avg"]
    with pytest.raises(RankEError, match=r"no tensor gain\.exp_avg;"):
        make().load(state)
    before = [weight.detach().clone() for weight in optimizer.weights]
    backward(optimizer, float("nan"))
    with pytest.raises(RankEError, match=r"decoder\.learning_rate: the gradient of step 7 is not finite"):
        optimizer.step(7)
    assert all(torch.equal(a, b) for a, b in zip(before, optimizer.weights, strict=True))
