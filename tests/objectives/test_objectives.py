"""Objectives against the reference functions' numbers, and the properties the method rests on."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rank_e.errors import RankEError
from rank_e.objectives.anchors import adaptive_weight, consistency, output_gradient_weight
from rank_e.objectives.grpo import group_advantages, k2_kl, policy_loss
from rank_e.objectives.rank_gan import (
    hinge_discriminator_loss,
    keep_top,
    lecam,
    rank_gan_loss,
    rank_weights,
    reward_loss,
    temperature_at,
)
from rank_e.seeds import generator

CASES = json.loads((Path(__file__).parents[1] / "golden" / "objectives.json").read_text())


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_equal_to_the_reference(case: dict[str, Any]) -> None:
    given: dict[str, Any] = {
        name: torch.tensor(value) if isinstance(value, list) else value for name, value in case["inputs"].items()
    }
    expected = {name: torch.tensor(value) for name, value in case["expected"].items()}
    advantages = group_advantages(given["rewards"])
    new, old = given["new_log_probs"], given["old_log_probs"]
    loss = policy_loss(new, old, advantages.flatten(), given["clip_epsilon"])
    kl = k2_kl(new, given["reference_log_probs"])
    kept = keep_top(given["rewards"], given["top_k"])
    weights = rank_weights(given["rewards"].gather(1, kept), given["rank_temperature"])
    actual = {
        "advantages": advantages,
        "policy_loss": loss,
        "kl": kl,
        "total": loss + given["kl_coefficient"] * kl,
        "top_k_indices": kept,
        "rank_weights": weights,
        "rank_gan_generator_loss": rank_gan_loss(given["logits_fake"], weights),
        "discriminator_hinge_loss": hinge_discriminator_loss(given["logits_real"], given["logits_fake"]),
    }
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, atol=1e-5, rtol=0, msg=name)


def rewards() -> Tensor:
    return torch.randn(4, 8, generator=generator(0, "rewards"))


def test_advantages_rank_inside_the_group_only() -> None:
    shift = torch.tensor([[0.0], [5.0], [-3.0], [100.0]])
    torch.testing.assert_close(group_advantages(rewards() * 3 + shift), group_advantages(rewards()), atol=1e-4, rtol=0)


def test_a_group_that_agrees_teaches_nothing_and_an_outlier_is_clamped() -> None:
    groups = torch.zeros(2, 64)
    groups[0] += torch.arange(64) * 1e-7
    groups[1, 3] = 1.0
    advantages = group_advantages(groups)
    assert torch.equal(advantages[0], torch.zeros(64))
    assert advantages[1, 3] == 5.0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_reward_that_is_no_number_is_an_error_with_its_place(bad: float) -> None:
    broken = rewards()
    broken[2, 5] = bad
    for function in (group_advantages, lambda r: keep_top(r, 2), lambda r: rank_weights(r, 1.0)):
        with pytest.raises(RankEError, match=r"\[2, 5\]"):
            function(broken)


def test_groups_of_one_have_no_rank() -> None:
    with pytest.raises(RankEError, match="group size >= 2"):
        group_advantages(torch.ones(3, 1))


def test_before_an_update_the_policy_gradient_is_plain_reinforce() -> None:
    old = torch.randn(3, 4, generator=generator(0))
    new = old.clone().requires_grad_()
    advantages = torch.tensor([1.0, -2.0, 0.5])
    policy_loss(new, old, advantages[:, None], 0.2).backward()
    assert new.grad is not None
    torch.testing.assert_close(new.grad, -advantages[:, None].expand(3, 4) / 12)


def test_clipping_stops_what_has_moved_enough_and_only_that() -> None:
    new = torch.tensor([[0.5], [-0.5], [0.5], [-0.5]], requires_grad=True)
    policy_loss(new, torch.zeros(4, 1), torch.tensor([1.0, 1.0, -1.0, -1.0]), 0.2).backward()
    assert new.grad is not None
    assert (new.grad != 0).flatten().tolist() == [False, True, True, False]


def test_k2_is_half_the_squared_difference_and_pulls_back() -> None:
    new = torch.tensor([[1.0, -1.0]], requires_grad=True)
    kl = k2_kl(new, torch.zeros(1, 2))
    kl.backward()
    assert kl.item() == pytest.approx(0.5)
    assert new.grad is not None
    torch.testing.assert_close(new.grad, torch.tensor([[0.5, -0.5]]))


def test_the_best_are_kept_in_order_and_ties_stay_stable() -> None:
    assert keep_top(torch.tensor([[1.0, 3.0, 2.0, 3.0]]), 3).tolist() == [[1, 3, 2]]
    with pytest.raises(RankEError, match="k = 5"):
        keep_top(torch.zeros(1, 4), 5)


def test_rank_weights_have_mean_one_and_sharpen_as_tau_falls() -> None:
    hot, cold = rank_weights(rewards(), 4.0), rank_weights(rewards(), 0.5)
    for weights in (hot, cold):
        torch.testing.assert_close(weights.mean(1), torch.ones(4))
        assert torch.equal(weights.argsort(1), rewards().argsort(1))
    assert (cold.std(1) > hot.std(1)).all()
    torch.testing.assert_close(rank_weights(rewards(), 1e6), torch.ones(4, 8), atol=1e-4, rtol=0)
    assert torch.equal(rank_weights(rewards()[:, :1], 0.1), torch.ones(4, 1))
    with pytest.raises(RankEError, match="temperature"):
        rank_weights(rewards(), 0.0)


def test_equal_weights_make_rank_gan_the_plain_gan_and_weights_scale_gradients() -> None:
    logits = torch.randn(4, 1, 3, 3, generator=generator(0), requires_grad=True)
    assert rank_gan_loss(logits, torch.ones(2, 2)).item() == pytest.approx(-logits.mean().item(), abs=1e-6)
    weights = torch.tensor([[2.0, 0.0], [0.5, 1.5]])
    rank_gan_loss(logits, weights).backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad[:, 0, 0, 0], -weights.flatten() / 36)


def test_the_reward_loss_passes_its_gradient_by_rank() -> None:
    scores = torch.tensor([1.0, 2.0], requires_grad=True)
    loss = reward_loss(scores, torch.tensor([0.5, 1.5]))
    loss.backward()
    assert loss.item() == pytest.approx(-1.75)
    assert scores.grad is not None
    torch.testing.assert_close(scores.grad, torch.tensor([-0.25, -0.75]))


def test_hinge_ignores_what_is_settled() -> None:
    assert hinge_discriminator_loss(torch.full((2, 1, 3, 3), 2.0), torch.full((4,), -1.5)).item() == 0.0
    assert hinge_discriminator_loss(torch.zeros(3), torch.zeros(3)).item() == 1.0


def test_lecam_holds_each_side_near_the_other() -> None:
    real, fake = torch.tensor([2.0, 0.0]), torch.tensor([-2.0, 1.5])
    value = lecam(real, fake, torch.tensor(1.0), torch.tensor(-1.0))
    assert value.item() == pytest.approx((9 + 1) / 2 + (9 + 0) / 2)


def test_adaptive_weight_is_the_ratio_of_gradients_at_the_last_layer() -> None:
    ones = torch.ones(2, requires_grad=True)
    assert adaptive_weight(6 * ones, 3 * ones).item() == pytest.approx(2.0, rel=1e-3)
    assert adaptive_weight(10 * ones, 0 * ones).item() == 1e4
    assert not adaptive_weight(ones, ones).requires_grad


def test_the_gradient_weight_gives_the_adversarial_term_its_share() -> None:
    reconstruction, adversarial = torch.randn(2, 2, 3, 4, 4, generator=generator(0)).unbind()
    for scale in (1e-6, 1.0, 1e3):
        weight = output_gradient_weight(reconstruction, adversarial * scale, 0.7)
        torch.testing.assert_close((weight * adversarial * scale).norm(), 0.7 * reconstruction.norm())
    assert output_gradient_weight(reconstruction, torch.zeros_like(adversarial), 1.0).item() == 0.0


def test_consistency_moves_the_new_decoder_only() -> None:
    new, frozen = torch.ones(2, 3, requires_grad=True), torch.zeros(2, 3, requires_grad=True)
    consistency(lambda a, b: (a - b).square().mean(1), new, frozen).backward()
    assert frozen.grad is None
    assert new.grad is not None and (new.grad > 0).all()


def test_tau_falls_by_half_a_cosine_and_stays() -> None:
    assert [temperature_at(step, 4.0, 1.0, 4) for step in (0, 2, 4, 9)] == pytest.approx([4.0, 2.5, 1.0, 1.0])
    assert temperature_at(1, 4.0, 1.0, 4) == pytest.approx(2.5 + 1.5 * 2**-0.5)
    assert temperature_at(0, 4.0, 1.0, 0) == 1.0
