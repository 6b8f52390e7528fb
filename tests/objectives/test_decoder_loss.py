"""L_D against the paper's formula, and what each rule weighs the terms by."""

import pytest
import torch
from torch import Tensor

from rank_e.objectives.decoder_loss import Term, adaptive_weights, decoder_loss, gradient_norm_weights
from rank_e.seeds import generator
from tests.helpers.tiny_nets import decoder_params

TERMS: tuple[Term, ...] = ("reward", "rank_gan", "adversarial", "reconstruction", "consistency")


def lambdas(**changes: object) -> dict[str, object]:
    return {
        "lambda_reward": 0.3,
        "lambda_gan": 0.7,
        "lambda_reconstruction": 1.5,
        "lambda_consistency": 0.9,
        "adversarial_ratio": 2.0,
        "reward_ratio": 0.5,
    } | changes


def gradients() -> Tensor:
    """Of three terms, at the decoder's output."""
    return torch.randn(3, 2, 3, 4, 4, generator=generator(0, "gradients")) * torch.tensor([1.0, 50.0, 0.01]).view(
        3, 1, 1, 1, 1
    )


def test_the_loss_is_the_papers_sum() -> None:
    terms = dict(zip(TERMS, torch.tensor([2.0, 3.0, 5.0, 7.0, 11.0]), strict=True))
    weights = dict(zip(TERMS, (0.1, torch.tensor(0.2), 0.3, 0.4, 0.5), strict=True))
    assert decoder_loss(terms, weights).item() == pytest.approx(0.2 + 0.6 + 1.5 + 2.8 + 5.5)
    for off in TERMS:
        rest = {name: term for name, term in terms.items() if name != off}
        lost = float(weights[off]) * terms[off].item()
        assert decoder_loss(rest, weights).item() == pytest.approx(10.6 - lost)


def test_by_the_gradient_norm_rule_each_alignment_term_has_its_share() -> None:
    reconstruction, reward, rank_gan = gradients()
    weights, measured = gradient_norm_weights(reconstruction, reward, rank_gan, decoder_params(**lambdas()))
    target = reconstruction.norm().item()
    pulls = [(weights["reward"] * reward).norm().item(), (weights["rank_gan"] * rank_gan).norm().item()]
    assert pulls == pytest.approx([0.5 * target, 2.0 * target], rel=1e-4)
    assert [weights[name] for name in TERMS[2:]] == [0.0, 1.5, 0.9]
    assert measured == {"weight_reward": float(weights["reward"]), "weight_gan": float(weights["rank_gan"])}


def test_by_the_adaptive_rule_the_papers_lambdas_hold_and_vqgans_weight_scales_its_share_of_reconstruction() -> None:
    reconstruction, adversarial, _ = gradients()
    weights, measured = adaptive_weights(reconstruction, adversarial, decoder_params(**lambdas()))
    ratio = reconstruction.norm().item() / adversarial.norm().item()
    assert measured == {"weight_adaptive": pytest.approx(ratio, rel=1e-3)}
    assert float(weights["adversarial"]) == pytest.approx(1.5 * 2.0 * ratio, rel=1e-3)
    assert (weights["reward"], weights["rank_gan"]) == (0.3, 0.7 * 2.0)
    assert (weights["reconstruction"], weights["consistency"]) == (1.5, 0.9)


def test_a_term_that_is_off_is_not_logged() -> None:
    params = decoder_params(**lambdas())
    weights, measured = gradient_norm_weights(gradients()[0], None, None, params)
    assert (weights["reward"], weights["rank_gan"], measured) == (0.0, 0.0, {})
    weights, measured = adaptive_weights(None, None, params)
    assert (weights["adversarial"], measured) == (0.0, {})
