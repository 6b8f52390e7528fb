"""L_D against the paper's formula, and what each rule weighs the terms by."""

import pytest
import torch
from torch import Tensor

from rank_e.objectives.decoder_loss import (
    OFF,
    Terms,
    TermWeights,
    adaptive_weights,
    decoder_loss,
    gradient_norm_weights,
)
from rank_e.seeds import generator
from tests.helpers.tiny_nets import decoder_params


class Decoded:
    """Two images of one last layer, and the terms that depend on them."""

    def __init__(self, *, reward: bool = True, discriminator: bool = True, adaptive: bool = False) -> None:
        self.layer = torch.randn(3, generator=generator(0, "layer"), requires_grad=True)
        inputs = torch.randn(2, 5, 3, generator=generator(0, "inputs"))
        self.rollouts, self.reconstructions = inputs[0] @ self.layer, inputs[1] @ self.layer
        self.terms = Terms(
            reward=-2 * self.rollouts.tanh().mean() if reward else OFF,
            rank_gan=(self.rollouts * 3 + 1).square().mean() if discriminator else OFF,
            adversarial=(self.reconstructions * 2 - 1).sin().mean() if adaptive and discriminator else OFF,
            reconstruction=(self.reconstructions - 0.5).abs().mean(),
            consistency=self.rollouts.square().mean(),
        )

    def slope(self, term: Tensor, place: Tensor) -> float:
        """The length of the term's gradient there."""
        (gradient,) = torch.autograd.grad(term, place, retain_graph=True)
        return gradient.norm().item()


def lambdas(**changes: object) -> dict[str, object]:
    return {
        "lambda_reward": 0.3,
        "lambda_gan": 0.7,
        "lambda_reconstruction": 1.5,
        "lambda_consistency": 0.9,
        "adversarial_ratio": 2.0,
        "reward_ratio": 0.5,
    } | changes


def test_the_loss_is_the_papers_sum() -> None:
    numbers = torch.tensor([2.0, 3.0, 5.0, 7.0, 11.0])
    weights = TermWeights(0.1, torch.tensor(0.2), 0.3, 0.4, 0.5, {})
    assert decoder_loss(Terms(*numbers), weights).item() == pytest.approx(0.2 + 0.6 + 1.5 + 2.8 + 5.5)


def test_by_the_gradient_norm_rule_each_alignment_term_has_its_share() -> None:
    found = Decoded()
    params = decoder_params(**lambdas())
    weights = gradient_norm_weights(found.terms, found.rollouts, found.reconstructions, params)
    target = found.slope(found.terms.reconstruction, found.reconstructions)
    pulls = [
        found.slope(weights.reward * found.terms.reward, found.rollouts),
        found.slope(weights.rank_gan * found.terms.rank_gan, found.rollouts),
    ]
    assert pulls == pytest.approx([0.5 * target, 2.0 * target], rel=1e-4)
    assert (weights.adversarial, weights.reconstruction, weights.consistency) == (0.0, 1.5, 0.9)
    assert weights.measured == {"weight_reward": float(weights.reward), "weight_gan": float(weights.rank_gan)}


def test_by_the_adaptive_rule_the_papers_lambdas_hold_and_vqgans_weight_scales_its_share_of_reconstruction() -> None:
    found = Decoded(adaptive=True)
    weights = adaptive_weights(found.terms, found.layer, decoder_params(**lambdas()))
    ratio = found.slope(found.terms.reconstruction, found.layer) / found.slope(found.terms.adversarial, found.layer)
    assert weights.measured == {"weight_adaptive": pytest.approx(ratio, rel=1e-3)}
    assert float(weights.adversarial) == pytest.approx(1.5 * 2.0 * ratio, rel=1e-3)
    assert (weights.reward, weights.rank_gan) == (0.3, 0.7 * 2.0)
    assert (weights.reconstruction, weights.consistency) == (1.5, 0.9)


@pytest.mark.parametrize("rule", ["gradient_norm", "adaptive"])
def test_a_term_that_is_off_adds_nothing_and_is_not_logged(rule: str) -> None:
    found = Decoded(reward=False, discriminator=False, adaptive=True)
    params = decoder_params(**lambdas())
    weights = (
        gradient_norm_weights(found.terms, found.rollouts, found.reconstructions, params)
        if rule == "gradient_norm"
        else adaptive_weights(found.terms, found.layer, params)
    )
    assert weights.measured == {}
    wanted = 1.5 * found.terms.reconstruction + 0.9 * found.terms.consistency
    assert decoder_loss(found.terms, weights).item() == pytest.approx(wanted.item())


@pytest.mark.parametrize("rule", ["gradient_norm", "adaptive"])
def test_weights_are_constants_and_the_terms_keep_their_graphs(rule: str) -> None:
    found = Decoded(adaptive=rule == "adaptive")
    params = decoder_params(**lambdas())
    weights = (
        gradient_norm_weights(found.terms, found.rollouts, found.reconstructions, params)
        if rule == "gradient_norm"
        else adaptive_weights(found.terms, found.layer, params)
    )
    every = (weights.reward, weights.rank_gan, weights.adversarial)
    assert not any(isinstance(weight, Tensor) and weight.requires_grad for weight in every)
    decoder_loss(found.terms, weights).backward()
    assert found.layer.grad is not None and found.layer.grad.abs().sum() > 0
