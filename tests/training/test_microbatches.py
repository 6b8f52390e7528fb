"""The decoder update by microbatches: the gradients of the whole batch, by either rule and discriminator."""

from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from rank_e.errors import RankEError
from rank_e.seeds import generator
from rank_e.training.decoder_update import DecoderUpdate, Nets
from rank_e.training.microbatched import Microbatched
from rank_e.training.patchgan import PatchGAN
from rank_e.training.projected_discriminator import ProjectedDiscriminator
from rank_e.training.ranked_images import RankedImages
from rank_e.training.term_gradients import TermGradients
from tests.helpers.discriminator_files import frozen_networks
from tests.helpers.tiny_nets import decoder_params, tiny_tokenizer

ROLLOUTS, REALS = 7, 5


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return frozen_networks(tmp_path_factory.mktemp("frozen"))


def perceptual(a: Tensor, b: Tensor) -> Tensor:
    return (a.square() - b.square()).square().mean() + (a - b).abs().mean()


def reward(images: Tensor, prompts: list[str]) -> Tensor:
    wanted = torch.tensor([len(prompt) / 10 for prompt in prompts])
    return -(images.square().mean((1, 2, 3)) - wanted).square()


def stepped(size: int, files=None, index: int = 0, dtype: torch.dtype = torch.float32, **changes: object):
    """The log of one step, and the gradients that it moved decoder and discriminator by."""
    shared = {"rollouts_per_step": ROLLOUTS, "reals_per_step": REALS, "microbatch_size": size, "instance_noise": 0.2}
    params = decoder_params(**shared, **({"lecam": 0.5, "discriminator_inputs": "both"} | changes))
    random = generator(0, "data")
    weights = torch.rand(3, 4, generator=random) + 0.2
    data = RankedImages(
        torch.randint(16, (3, 4, 4), generator=random),
        weights / weights.mean(1, keepdim=True),
        ["a", "four", "sixteen or so"],
        torch.rand(6, 3, 8, 8, generator=random),
    )
    net = PatchGAN(8, 1) if files is None else ProjectedDiscriminator(*files, image_size=64, channels=16)
    nets = Nets(tiny_tokenizer(), tiny_tokenizer(), net.initialise(generator(0, "net")), reward, perceptual)
    update = DecoderUpdate(nets, data, params, seed=1, round_id=1, steps_before=0, dtype=dtype)
    with torch.no_grad():  # an average that the decoder has left, as later steps have
        for _, parameter in nets.average.decoder_parameters():
            parameter.mul_(1.02)
    log = update.step(index)
    moved = [*update.named, *update.discriminator.optimizer.named]
    return log, {name: parameter.grad for name, parameter in moved if parameter.grad is not None}


RULES = {
    "gradient_norm": {"adversarial_rule": "gradient_norm", "reward_ratio": 0.7, "adversarial_ratio": 1.3},
    "adaptive": {"adversarial_rule": "adaptive", "lambda_reward": 2.0, "lambda_gan": 0.6, "adversarial_ratio": 0.8},
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("size", "projected"), [(1, False), (3, False), (5, False), (3, True)])
# 3: last ones of 1 and 2, and of the discriminator's 6 + 6; 5: rollouts alone in two
def test_a_step_is_that_of_the_whole_batch(size, rule, projected, files):
    given = files if projected else None
    whole, wanted = stepped(ROLLOUTS, given, **RULES[rule])
    log, found = stepped(size, given, **RULES[rule])
    assert log == pytest.approx(whole, rel=1e-4, abs=1e-6) and list(log) == list(whole)
    assert found.keys() == wanted.keys() and len(found) > 40
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("rule", RULES)
def test_a_step_before_the_discriminator_starts_and_one_of_its_warm_up(rule):
    for index, changes in ((0, {"discriminator_start": 5}), (-1, {})):
        whole, wanted = stepped(ROLLOUTS, index=index, **RULES[rule], **changes)
        log, found = stepped(2, index=index, **RULES[rule], **changes)
        assert log == pytest.approx(whole, rel=1e-4, abs=1e-6)
        assert found.keys() == wanted.keys() != set()
        for name, gradient in wanted.items():
            torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4)


def joined_up(gradients: dict[str, Tensor]) -> Tensor:
    return torch.cat([gradient.flatten() for _, gradient in sorted(gradients.items())])


@pytest.mark.parametrize("projected", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_in_bfloat16_gradients_point_where_those_in_float32_do_whole_or_not(rule, projected, files):
    given = files if projected else None
    exact, gradients = stepped(ROLLOUTS, given, **RULES[rule])
    for size in (ROLLOUTS, 3):
        log, found = stepped(size, given, dtype=torch.bfloat16, **RULES[rule])
        assert log == pytest.approx(exact, rel=0.15, abs=0.02)
        assert all(gradient.dtype == torch.float32 for gradient in found.values())
        assert torch.cosine_similarity(joined_up(gradients), joined_up(found), dim=0) > 0.97


def test_one_microbatch_runs_once_and_of_several_one_graph_is_held_at_a_time():
    runs: list[int] = []
    graphs: list[int] = []
    layer = nn.Linear(3, 2)

    def network(rows: Tensor) -> Tensor:
        runs.append(len(rows))
        output = layer(rows)
        if output.requires_grad:
            graphs.append(len(rows))
        return output

    inputs = torch.randn(5, 3, generator=generator(0, "inputs"))
    wanted = None
    for size, all_runs, all_graphs in ((5, [5], [5]), (2, [2, 2, 1] * 2, [2, 2, 1])):
        runs.clear(), graphs.clear(), layer.zero_grad()
        values = Microbatched(network, inputs, size)
        pulls = torch.autograd.grad(values.joined().square().sum(), values.outputs)
        values.backward(pulls)
        assert runs == all_runs and graphs == all_graphs
        assert layer.weight.grad is not None
        wanted = layer.weight.grad.clone() if wanted is None else wanted
        torch.testing.assert_close(layer.weight.grad, wanted)


def test_a_terms_graph_goes_before_the_next_terms_networks_run():
    images = [torch.rand(rows, 3, generator=generator(rows, "images")).requires_grad_() for rows in (2, 1)]
    pull = torch.rand(3, 3, generator=generator(0, "pull"))

    def means(part: Tensor, rows: slice):
        first = part.square().mean()
        yield "reconstruction", first, {"l1": part.sum()}
        with pytest.raises(RuntimeError, match="second time"):
            first.backward()
        yield "reward", (part * pull[rows]).exp().mean(), {}

    found = TermGradients(images, means)
    whole = torch.cat([part.detach() for part in images]).requires_grad_()
    terms = {"reconstruction": whole.square().mean(), "reward": (whole * pull).exp().mean()}
    for name, term in terms.items():
        torch.testing.assert_close(found.terms[name], term.detach())
        (wanted,) = torch.autograd.grad(term, whole, retain_graph=True)
        torch.testing.assert_close(found.at_output_joined(name), wanted)
    assert found.at_output_joined("rank_gan") is None and not found.terms["reward"].requires_grad
    weights = {"reconstruction": 0.3, "reward": torch.tensor(2.0)}
    (wanted,) = torch.autograd.grad(0.3 * terms["reconstruction"] + 2.0 * terms["reward"], whole)
    torch.testing.assert_close(torch.cat(found.weighted(weights)), wanted)
    torch.testing.assert_close(found.logged["l1"], images[0].sum().detach() * 2 / 3 + images[1].sum().detach() / 3)


@pytest.mark.parametrize("detached", [True, False])
def test_a_term_without_a_gradient_in_the_images_is_named(detached):
    images, weight = torch.rand(2, 3, requires_grad=True), torch.rand(3, requires_grad=True)

    def means(part: Tensor, rows: slice):
        yield "consistency", part.detach().mean() if detached else weight.mean(), {}

    with pytest.raises(RankEError, match=r"^decoder: its term consistency has no gradient in the images;"):
        TermGradients([images], means)


def test_terms_of_one_graph_and_a_term_that_is_no_scalar_are_named():
    images = torch.rand(2, 3, requires_grad=True)

    def shared(part: Tensor, rows: slice):
        features = part.exp()
        yield "consistency", features.square().mean(), {}
        yield "reward", features.square().sum(), {}

    def vector(part: Tensor, rows: slice):
        yield "reconstruction", part.mean(1), {}

    with pytest.raises(RankEError, match=r"^decoder: its term reward shares a graph with a term before it,"):
        TermGradients([images], shared)
    with pytest.raises(RankEError, match=r"^decoder: its term reconstruction is \[2\] numbers, not one;"):
        TermGradients([images], vector)


class Counted(torch.autograd.Function):
    """A network's output as it is, and how often a gradient came back to it."""

    backwards: ClassVar[list[str]] = []

    @staticmethod
    def forward(ctx, output: Tensor, name: str) -> Tensor:
        ctx.name = name
        return output.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        Counted.backwards.append(ctx.name)
        return gradient, None


@pytest.mark.parametrize("rule", RULES)
def test_the_networks_of_a_term_run_backward_once_a_step(rule, monkeypatch):
    for name, network in (("perceptual", perceptual), ("reward", reward)):
        monkeypatch.setitem(globals(), name, lambda *given, n=name, net=network: Counted.apply(net(*given), n))
    Counted.backwards.clear()
    stepped(ROLLOUTS, **RULES[rule])
    assert sorted(Counted.backwards) == ["perceptual", "perceptual", "reward"]  # L_consist, L_recon, L_reward
