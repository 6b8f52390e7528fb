"""The decoder update: what moves, what does not, rank weights and their controls, gradients, resume."""

import pytest
import torch

from rank_e.errors import RankEError
from rank_e.seeds import generator
from rank_e.training.decoder_update import DecoderUpdate, Nets
from rank_e.training.patchgan import PatchGAN
from rank_e.training.ranked_images import RankedImages
from tests.helpers.tiny_nets import decoder_params, moved, snapshot, tiny_tokenizer

PROMPTS, GROUP = 3, 4


def brightness(images, prompts):
    assert len(images) == len(prompts)
    return images.mean((1, 2, 3))


def squared(a, b):
    return (a - b).square().mean()


def data(weights=None):
    random = generator(3, "data")
    tokens = torch.randint(16, (PROMPTS, GROUP, 4), generator=random)
    if weights is None:
        weights = torch.rand(PROMPTS, GROUP, generator=random) + 0.5
        weights = weights / weights.mean(1, keepdim=True)
    return RankedImages(tokens, weights, ["a", "b", "c"], torch.rand(5, 3, 8, 8, generator=random))


def make(ranked=None, reward=brightness, steps_before=0, **changes):
    params = decoder_params(**changes)
    discriminator = PatchGAN(params.discriminator.channels, params.discriminator.layers)
    discriminator.initialise(generator(3, "discriminator"))
    nets = Nets(tiny_tokenizer(), tiny_tokenizer(), discriminator, reward, squared)
    return DecoderUpdate(nets, ranked or data(), params, seed=7, round_id=1, steps_before=steps_before)


def decoder_names(tokenizer):
    return {name for name, _ in tokenizer.decoder_parameters()}


@pytest.mark.parametrize("rule", ["gradient_norm", "adaptive"])
def test_only_decoder_average_and_discriminator_move(rule):
    update = make(adversarial_rule=rule, lambda_reward=1.0, reward_ratio=1.0)
    before = snapshot(update.nets.online), snapshot(update.nets.average), snapshot(update.nets.discriminator)
    metrics = update.step(0)
    assert moved(before[0], update.nets.online) == decoder_names(update.nets.online)
    assert moved(before[1], update.nets.average) == decoder_names(update.nets.average)
    assert moved(before[2], update.nets.discriminator)
    assert all(torch.isfinite(torch.tensor(value)) for value in metrics.values())
    state = update.nets.online.state_dict()
    for name, value in update.nets.average.decoder_parameters():
        torch.testing.assert_close(value, (before[1][name] + state[name]) / 2)


def test_tokens_keep_their_meaning():
    update = make()
    images = update.batches.data.reals * 2 - 1
    before = update.nets.online.encode(images)
    update.step(0)
    after = update.nets.online.encode(images)
    assert torch.equal(before[1], after[1])
    assert torch.equal(before[0], after[0])


def test_warm_up_moves_the_discriminator_alone():
    update = make()
    assert update.first_step == -2
    before = [snapshot(net) for net in (update.nets.online, update.nets.average, update.nets.discriminator)]
    update.step(-2)
    assert moved(before[0], update.nets.online) == moved(before[1], update.nets.average) == set()
    assert moved(before[2], update.nets.discriminator)
    assert make(steps_before=5).first_step == 0


def test_a_decoder_step_follows_as_many_discriminator_steps_as_it_is_to():
    """All but the last one see batches of their own; the last one, and the decoder, see what they would see anyway."""
    seen = {}
    for count in (1, 3):
        update, seen[count] = make(discriminator_steps=count), []
        step, start = update.discriminator.step, snapshot(update.nets.online)

        def judged(index, reals, fakes, random, step=step, start=start, seen=seen[count], update=update):
            assert not moved(start, update.nets.online), "the decoder must wait"
            seen.append((reals.clone(), fakes.detach().clone()))
            return step(index, reals, fakes, random)

        update.discriminator.step = judged
        update.step(0)
    assert [len(seen[count]) for count in (1, 3)] == [1, 3]
    for images, fakes in seen[3][:-1]:
        assert not torch.equal(images, seen[3][-1][0]) and not torch.equal(fakes, seen[3][-1][1])
    assert not torch.equal(seen[3][0][1], seen[3][1][1])
    assert all(torch.equal(a, b) for a, b in zip(seen[3][-1], seen[1][-1], strict=True))


def test_before_its_start_the_discriminator_rests():
    update = make(discriminator_start=1, discriminator_steps=2)
    before = snapshot(update.nets.discriminator)
    assert "discriminator" not in update.step(0)
    assert moved(before, update.nets.discriminator) == set()
    assert "discriminator" in update.step(1)
    assert moved(before, update.nets.discriminator)


def test_the_decoders_gradient_never_moves_the_discriminator():
    update = make(learning_rate=1e-6)
    update.step(-1)
    before = snapshot(update.nets.discriminator)
    update.discriminator.optimizer.step = lambda index: 0.0  # only the decoder's backward pass is left to move anything
    update.step(0)
    assert moved(before, update.nets.discriminator) == set()


@pytest.mark.parametrize("kind", ["rollouts", "reconstructions", "both"])
@pytest.mark.parametrize(("index", "names"), [(-2, ("warmup", 0)), (0, (0,))])
def test_what_the_discriminator_is_trained_on(kind, index, names):
    update = make(discriminator_inputs=kind)
    batch = update.batches.batch(generator(7, "decoder", 1, *names))
    with torch.no_grad():
        decoded = {
            "rollouts": update.nets.online.decode_tokens(batch.tokens) / 2 + 0.5,
            "reconstructions": update.nets.online.decode_tokens(batch.real_tokens) / 2 + 0.5,
        }
    seen = []

    def spy(index, reals, fakes, random):
        seen.append((reals, fakes.detach()))
        return {}

    update.discriminator.step = spy
    update.step(index)
    ((reals, fakes),) = seen
    assert torch.equal(reals, batch.reals)
    torch.testing.assert_close(fakes, torch.cat(list(decoded.values())) if kind == "both" else decoded[kind])


def test_rank_weights_steer_the_decoder():
    ranked = data()
    results = []
    for weighting in ("rank", "uniform", "shuffled"):
        update = make(ranked, rank_weighting=weighting)
        update.step(0)
        results.append(update.nets.online.decoder_state()["decoder.conv_out.weight"].clone())
    assert not torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_controls_keep_the_kept_and_the_mean():
    weights = torch.tensor([[3.0, 1.0, 0.0, 0.0], [0.0, 0.5, 1.5, 0.0], [1.0, 0.0, 0.0, 1.0]])
    ranked = data(weights)
    shuffled, uniform = (
        make(ranked, rank_weighting="shuffled").batches.weights,
        make(ranked, rank_weighting="uniform").batches.weights,
    )
    assert torch.equal(uniform, (weights > 0).float())
    assert torch.equal(shuffled > 0, weights > 0)
    assert torch.equal(shuffled.sort(1).values, weights.sort(1).values)
    many = data(torch.rand(3, 4, generator=generator(0, "w")) + 0.1)
    assert not torch.equal(make(many, rank_weighting="shuffled").batches.weights, many.weights)


def test_rollouts_that_were_not_kept_are_never_learned_from():
    weights = torch.zeros(PROMPTS, GROUP)
    weights[:, 2] = 1.0
    ranked = data(weights)
    update = make(ranked)
    for step in range(5):
        batch = update.batches.batch(generator(0, step))
        assert bool((batch.weights == 1).all())
        assert all(any(torch.equal(row, ranked.tokens[p, 2]) for p in range(PROMPTS)) for row in batch.tokens)


def test_the_reward_reaches_the_decoders_first_layer():
    update = make(
        lambda_gan=0.0,
        lambda_reconstruction=0.0,
        lambda_consistency=0.0,
        lambda_reward=1.0,
        adversarial_rule="adaptive",
    )
    update.step(0)
    gradient = update.nets.online.decoder.conv_in.weight.grad
    assert torch.isfinite(gradient).all()
    assert gradient.abs().sum() > 0


def test_a_reward_only_decoder_raises_its_reward():
    update = make(
        lambda_gan=0.0,
        lambda_reconstruction=0.0,
        lambda_consistency=0.0,
        lambda_reward=1.0,
        adversarial_rule="adaptive",
        discriminator_start=100,
    )
    rewards = [update.step(index)["reward"] for index in range(12)]
    assert rewards[-1] > rewards[0] + 0.01


def test_the_reconstruction_anchor_lowers_the_error():
    update = make(adversarial_ratio=0.0, lambda_consistency=0.0, discriminator_start=100, learning_rate=5e-3)
    errors = [update.step(index)["l1"] for index in range(12)]
    assert errors[-1] < errors[0]


@pytest.mark.parametrize("killed", [-1, 0, 1])  # in the warm-up, after it, and later
def test_resuming_between_steps_gives_the_same_bits(killed):
    whole, first, second = make(steps=3), make(steps=3), make(steps=3)
    for index in range(whole.first_step, 3):
        whole.step(index)
    for index in range(first.first_step, killed):
        first.step(index)
    second.load(first.state())
    for index in range(killed, 3):
        second.step(index)
    left, right = whole.state(), second.state()
    assert left.keys() == right.keys() == {"online", "ema", "discriminator", "optimizer"}
    for file, tensors in left.items():
        assert tensors.keys() == right[file].keys() != set()
        assert all(torch.equal(tensors[name], right[file][name]) for name in tensors), file


def test_a_state_without_a_moment_is_named():
    update = make()
    update.step(0)
    state = update.state()
    del state["optimizer"]["discriminator.layers.0.weight.exp_avg"]
    with pytest.raises(RankEError, match=r"no tensor discriminator\.layers\.0\.weight\.exp_avg"):
        make().load(state)


def test_a_gradient_that_is_not_finite_is_an_error_and_nothing_moves():
    update = make(reward=lambda images, prompts: brightness(images, prompts) * float("inf"), reward_ratio=1.0)
    before = snapshot(update.nets.online), snapshot(update.nets.average)
    with pytest.raises(RankEError, match=r"decoder\.learning_rate: .*step 0 is not finite"):
        update.step(0)
    assert moved(before[0], update.nets.online) == moved(before[1], update.nets.average) == set()


def test_the_consistency_anchor_holds_the_decoder_near_its_average():
    distances = []
    for weight in (0.0, 1000.0):
        update = make(
            lambda_gan=0.0,
            lambda_reconstruction=0.0,
            lambda_consistency=weight,
            lambda_reward=1.0,
            adversarial_rule="adaptive",
            discriminator_start=100,
            ema_decay=0.999,
        )
        tokens = update.batches.data.tokens.flatten(0, 1)
        before = update.nets.online.decode_tokens(tokens).detach()
        for index in range(12):
            update.step(index)
        distances.append((update.nets.online.decode_tokens(tokens) - before).square().mean().item())
    assert distances[1] < distances[0] / 4
