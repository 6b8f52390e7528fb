"""The policy update: on-policy at first, moves what should move, learns, resumes to the same bits."""

from functools import cache

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from rank_e.backbones.layers import layer_kernel
from rank_e.backbones.llamagen.policy import Policy
from rank_e.errors import RankEError
from rank_e.objectives.grpo import group_advantages, k2_kl
from rank_e.sampling.distribution import SamplingConfig
from rank_e.sampling.sampler import sample
from rank_e.seeds import generator, seed_for
from rank_e.training.policy_update import PolicyUpdate, Rollouts
from tests.helpers.tiny_nets import moved, policy_params, snapshot, tiny_policy

GUIDED = SamplingConfig(guidance=3.0, top_k=8)
PROMPTS, GROUP = 4, 8


def rollouts(policy, config=GUIDED):
    text = torch.randn(PROMPTS, 3, 8, generator=generator(1, "text"))
    mask = torch.tensor([[0, 1, 1], [1, 1, 1], [0, 0, 1], [1, 1, 1]]).bool()
    text = text * mask[..., None]
    seeds = [seed_for(1, "rollouts", i) for i in range(PROMPTS * GROUP)]
    samples = sample(policy, text, mask, seeds, config, batch_size=8, repeats=GROUP)
    rewards = (samples.tokens < 8).float().sum(1)
    advantages = group_advantages(rewards.view(PROMPTS, GROUP)).flatten()
    return Rollouts(text, mask, samples.tokens, samples.log_probs, advantages, rewards)


def make(params=None, config=GUIDED, data=None, steps_before=0, fast=False):
    online = tiny_policy()
    return PolicyUpdate(
        online,
        tiny_policy(),
        tiny_policy(),
        data or rollouts(online, config),
        params or policy_params(),
        config,
        seed=5,
        round_id=1,
        steps_before=steps_before,
        fast=fast,
    )


@pytest.mark.parametrize("config", [GUIDED, SamplingConfig(), SamplingConfig(6.0, 0.7, 5, 0.9)])
def test_ratio_is_exactly_one_before_the_first_update(config):
    update = make(config=config)
    assert update.prepare()["sampler_gap"] < 1e-4
    assert update.step(0)["ratio_deviation"] == 0.0
    assert update.step(1)["ratio_deviation"] > 0.0


def test_in_float32_the_samplers_log_probabilities_are_the_denominator_but_for_the_first_minibatch():
    guided, unguided = make(policy_params(minibatch_size=8)), make(policy_params(minibatch_size=8, scoring="unguided"))
    for update in (guided, unguided):
        update.prepare()
    first, later = guided.minibatches[0], torch.cat(guided.minibatches[1:])
    assert torch.equal(guided.old[first], guided._score(guided.online, first))
    assert torch.equal(guided.old[later], guided.rollouts.log_probs[later])
    torch.testing.assert_close(guided.old[later], guided._score(guided.online, later), atol=1e-5, rtol=0)
    # Another distribution than the sampled one: every rollout is scored.
    for rows in unguided.minibatches:
        assert torch.equal(unguided.old[rows], unguided._score(unguided.online, rows))


def test_a_policy_that_starts_as_the_reference_is_scored_once_to_rounding():
    once, twice = make(), make()
    for update in (once, twice):
        update.prepare()
    assert once.starts_from_reference
    twice.starts_from_reference = False
    for i in range(2):
        assert once.step(i) == pytest.approx(twice.step(i), rel=1e-4, abs=1e-6)


def test_a_reference_that_is_another_policy_or_moves_is_scored_itself():
    moving, other = make(policy_params(reference="ema")), make()
    with torch.no_grad():
        next(iter(other.reference.parameters())).add_(0.1)
    for update in (moving, other):
        update.prepare()
        assert not update.starts_from_reference
    assert other.step(0)["kl"] > 0


@pytest.mark.parametrize("size", [3, 8])
def test_gradients_of_parts_add_up_to_those_of_the_minibatch(size):
    whole, small = make(policy_params(minibatch_size=8)), make(policy_params(minibatch_size=8, microbatch_size=size))
    for update in (whole, small):
        update.prepare()
    first = whole.step(0), small.step(0)
    assert first[1]["ratio_deviation"] == 0.0  # each microbatch is scored as it was before
    for name in ("loss", "kl", "grad_norm"):
        assert first[1][name] == pytest.approx(first[0][name], rel=1e-4, abs=1e-6)
    second = whole.step(1), small.step(1)
    for name in ("loss", "kl", "grad_norm", "clip_fraction"):
        assert second[1][name] == pytest.approx(second[0][name], rel=1e-3, abs=1e-5)
    assert second[0]["kl"] > 0


def test_unguided_scoring_is_off_policy_and_the_gap_is_reported():
    update = make(policy_params(scoring="unguided"))
    assert update.prepare()["sampler_gap"] > 0.1


def test_rollouts_of_another_policy_are_refused():
    update = make(data=rollouts(tiny_policy("another")))
    with pytest.raises(RankEError, match="not sampled by this policy"):
        update.prepare()


def test_online_and_average_move_and_the_reference_does_not():
    update = make()
    before = snapshot(update.online), snapshot(update.average), snapshot(update.reference)
    update.prepare()
    update.step(0)
    trainable = {name for name, _ in update.online.named_parameters()}
    assert moved(before[0], update.online) == trainable
    assert moved(before[1], update.average) == trainable
    assert moved(before[2], update.reference) == set()
    for name, value in update.online.named_parameters():  # EMA of decay 0.5: half-way
        expected = (before[1][name] + value) / 2
        torch.testing.assert_close(update.average.state_dict()[name], expected)


def test_average_waits_for_ema_every():
    update = make(policy_params(ema_every=2))
    before = snapshot(update.average)
    update.prepare()
    update.step(0)
    assert moved(before, update.average) == set()
    update.step(1)
    assert moved(before, update.average)
    later = make(policy_params(ema_every=2), steps_before=1)  # counted over all rounds
    before = snapshot(later.average)
    later.prepare()
    later.step(0)
    assert moved(before, later.average)


def test_the_policy_learns_what_is_rewarded():
    update = make(policy_params(epochs=4, kl_coefficient=0.0, learning_rate=2e-3))
    data = update.rollouts
    update.prepare()
    for index in range(update.steps):
        update.step(index)
    seeds = [seed_for(1, "fresh", i) for i in range(PROMPTS * 64)]
    counts = [
        (sample(policy, data.text, data.mask, seeds, GUIDED, 256, repeats=64).tokens < 8).float().mean().item()
        for policy in (tiny_policy(), update.online)
    ]
    assert counts[1] > counts[0] + 0.1


def test_the_anchor_holds_the_policy_near_its_reference():
    gaps = []
    for beta in (0.0, 50.0):
        update = make(policy_params(epochs=6, kl_coefficient=beta))
        update.prepare()
        for index in range(update.steps):
            update.step(index)
        rows = torch.cat(update.minibatches[-2:])
        with torch.no_grad():
            gaps.append(k2_kl(update._score(update.online, rows), update._score(tiny_policy(), rows)).item())
    assert gaps[1] < gaps[0] / 4


def test_without_an_anchor_no_reference_is_kept_or_run(monkeypatch):
    free = policy_params(kl_coefficient=0.0)
    update = PolicyUpdate(tiny_policy(), tiny_policy(), None, rollouts(tiny_policy()), free, GUIDED, 5, 1, 0)
    held = make(policy_params(kl_coefficient=1e-12))
    for each in (update, held):
        each.prepare()
    held.starts_from_reference = False
    ran = []
    hidden = Policy.hidden
    monkeypatch.setattr(Policy, "hidden", lambda self, *given: ran.append(self) or hidden(self, *given))
    found, wanted = update.step(0), held.step(0)
    assert "kl" not in found and update.reference is None
    assert ran == [update.online, held.reference, held.online]
    for name in ("loss", "grad_norm", "clip_fraction"):
        assert found[name] == pytest.approx(wanted[name], rel=1e-6)
    with pytest.raises(RankEError, match=r"no base to anchor to; .*policy\.kl_coefficient"):
        PolicyUpdate(tiny_policy(), tiny_policy(), None, update.rollouts, policy_params(), GUIDED, 5, 1, 0)


def test_ema_reference_is_the_average():
    update = make(policy_params(reference="ema"))
    assert update.reference is update.average


def test_equal_rewards_teach_nothing_but_the_anchor():
    online = tiny_policy()
    data = rollouts(online)
    flat = Rollouts(data.text, data.mask, data.tokens, data.log_probs, torch.zeros_like(data.advantages), data.rewards)
    update = make(policy_params(kl_coefficient=0.0, weight_decay=0.0), data=flat)
    before = snapshot(update.online)
    update.prepare()
    assert update.step(0)["grad_norm"] == 0.0
    assert moved(before, update.online) == set()


def test_resuming_between_steps_gives_the_same_bits():
    whole = make(policy_params(epochs=2))
    whole.prepare()
    for index in range(whole.steps):
        whole.step(index)
    first = make(policy_params(epochs=2))
    first.prepare()
    first.step(0)
    second = make(policy_params(epochs=2))
    second.prepare()
    second.load(first.state())
    for index in range(1, second.steps):
        second.step(index)
    assert moved(snapshot(whole.online), second.online) == set()
    assert moved(snapshot(whole.average), second.average) == set()


def test_checkpointing_changes_memory_and_not_results():
    results = []
    for checkpointing in (False, True):
        update = make(policy_params(checkpointing=checkpointing))
        update.prepare()
        update.step(0)
        results.append(snapshot(update.online))
    for name, value in results[0].items():
        torch.testing.assert_close(value, results[1][name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_one_compilation_serves_all_layers_of_prepare_and_of_a_step_and_changes_nothing(monkeypatch, checkpointing):
    counter, asked = CompileCounter(), []

    @cache
    def compiled(function):
        return torch.compile(function, backend=counter, dynamic=False, fullgraph=True)

    def kernel(function, x, fast):
        asked.append(fast)
        return compiled(function) if fast else function

    monkeypatch.setattr("rank_e.backbones.llamagen.policy.layer_kernel", kernel)
    params = policy_params(checkpointing=checkpointing)
    logs = []
    for fast in (False, True):
        update = make(params, fast=fast)
        assert len(update.online.blocks) > 1
        logs.append(update.prepare() | update.step(0))
        assert set(asked) == {fast}
        asked.clear()
        assert counter.frame_count == int(fast)
    # The graph of a step is that of `prepare`: another one could round differently.
    assert logs[1]["ratio_deviation"] == 0.0
    assert logs[1] == pytest.approx(logs[0], rel=1e-4, abs=1e-6)


def test_layers_are_compiled_for_half_precision_on_cuda_alone():
    rows = {dtype: torch.zeros(1, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)}
    assert [layer_kernel(snapshot, x, True) for x in rows.values()] == [snapshot, snapshot]


@pytest.mark.parametrize(
    ("params", "config"),
    [(policy_params(scoring="unguided"), GUIDED), (policy_params(), SamplingConfig(guidance=1.0))],
    ids=["unguided scoring", "guidance 1"],
)
def test_weights_that_no_gradient_reaches_stay_and_the_next_round_goes_on(params, config):
    # Nothing reads the unconditional text: Adam has no moments of it, and the next round must not miss them.
    first = make(params, config)
    before = snapshot(first.online)
    first.prepare()
    first.step(0)
    assert "cls_embedding.uncond_embedding" not in moved(before, first.online)
    second = make(params, config, data=first.rollouts, steps_before=1)
    second.load(first.state())
    second.old.copy_(first.old)
    second.starts_from_reference = first.starts_from_reference
    first.step(1)
    second.step(1)
    for name, value in first.online.state_dict().items():
        assert torch.equal(value, second.online.state_dict()[name]), name


def test_a_gradient_that_is_not_finite_is_an_error_and_nothing_moves():
    update = make()
    update.prepare()
    update.rollouts.advantages[:] = float("inf")
    before = snapshot(update.online), snapshot(update.average)
    with pytest.raises(RankEError, match=r"policy\.learning_rate: .*step 1 is not finite"):
        update.step(1)
    assert moved(before[0], update.online) == moved(before[1], update.average) == set()
