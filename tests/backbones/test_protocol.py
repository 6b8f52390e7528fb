"""Every architecture's networks behind one protocol: they fit it, sample and score alike, and take both updates."""

from types import SimpleNamespace

import pytest
import torch

from rank_e.backbones.protocol import PolicyModel, PrefixRows, TokenizerModel
from rank_e.objectives.grpo import group_advantages
from rank_e.sampling.distribution import SamplingConfig
from rank_e.sampling.filters import cumulative_by_products
from rank_e.sampling.sampler import sample
from rank_e.seeds import generator, seed_for
from rank_e.training.decoder_update import DecoderUpdate, Nets
from rank_e.training.patchgan import PatchGAN
from rank_e.training.policy_update import PolicyUpdate, Rollouts
from rank_e.training.ranked_images import RankedImages
from tests.helpers.tiny_nets import decoder_params, moved, policy_params, snapshot, tiny_policy, tiny_tokenizer

CONFIG = SamplingConfig(guidance=2.0)


@pytest.fixture(scope="module", params=["llamagen", "janus"])
def world(request, tmp_path_factory):
    """Three texts, and makers of equal policies and tokenizers."""
    if request.param == "llamagen":
        mask = torch.arange(3) >= torch.tensor([[0], [2], [1]])
        text = torch.randn(3, 3, 8, generator=generator(0, "text")) * mask[..., None]
        return SimpleNamespace(policy=tiny_policy, tokenizer=tiny_tokenizer, text=text, mask=mask)
    from rank_e.backbones.janus.backbone import JanusBackbone
    from rank_e.backbones.janus.convert import convert_janus
    from tests.helpers import tiny_janus

    root = tmp_path_factory.mktemp("janus")
    convert_janus(tiny_janus.save(root / "hub"), root / "base")
    backbone = JanusBackbone(root / "base", torch.device("cpu"), torch.float32)
    text, mask = backbone.encode_text(["a cat", "two dogs", "the sky at night"])
    return SimpleNamespace(
        policy=lambda: backbone.policy(backbone.policy_weights()),
        tokenizer=lambda: backbone.tokenizer(backbone.decoder_weights()),
        text=text,
        mask=mask,
    )


def test_networks_fit_the_protocol(world):
    policy, tokenizer = world.policy(), world.tokenizer()
    assert isinstance(policy, PolicyModel)
    assert isinstance(tokenizer, TokenizerModel)
    prefix = policy.prefix(world.text, world.mask)
    assert isinstance(prefix, PrefixRows)
    assert policy.device == torch.device("cpu")
    assert (tokenizer.config.grid**2, tokenizer.config.codebook_size) == (policy.length, policy.vocab_size)
    assert {name for name, _ in policy.named_parameters()} == set(policy.state_dict())


@torch.no_grad()
def test_steps_and_teacher_forcing_agree(world):
    policy = world.policy()
    owners = torch.tensor([2, 0, 0, 1])
    prefix = policy.prefix(world.text, world.mask).rows(owners)
    tokens = torch.randint(policy.vocab_size, (4, policy.length), generator=generator(0, "tokens"))
    forced = policy.logits(policy.hidden(prefix, tokens))
    assert forced.shape == (4, policy.length, policy.vocab_size)
    assert forced.dtype == torch.float32
    cache, logits = policy.cache(prefix), [policy.logits(prefix.hidden)]
    logits += [policy.step(tokens[:, i], cache) for i in range(policy.length - 1)]
    torch.testing.assert_close(torch.stack(logits, 1), forced, atol=1e-4, rtol=1e-4)
    again = policy.prefix(world.text, world.mask).rows(torch.tensor([1, 2])).rows(torch.tensor([1, 0, 1]))
    torch.testing.assert_close(policy.logits(policy.hidden(again, tokens[:3]))[0], forced[0], atol=1e-4, rtol=0)


def test_the_head_is_all_that_logits_read_and_reads_each_row_by_itself(world):
    policy = world.policy()
    prefix = policy.prefix(world.text, world.mask)
    tokens = torch.randint(policy.vocab_size, (3, policy.length), generator=generator(0, "tokens"))
    hidden = policy.hidden(prefix, tokens).detach()
    assert hidden.shape == (3, policy.length, *prefix.hidden.shape[1:])
    logits = policy.logits(hidden)
    logits.square().sum().backward()
    read = {name for name, weight in policy.named_parameters() if weight.grad is not None}
    names = {weight: name for name, weight in policy.named_parameters()}
    assert {names[weight] for weight in policy.head_parameters()} == read
    torch.testing.assert_close(policy.logits(hidden[1:, 2:3]), logits[1:, 2:3], atol=1e-5, rtol=0)


@torch.no_grad()
def test_unconditional_rows_read_the_mask_alone(world):
    policy = world.policy()
    flag = torch.tensor([True, False, True])
    one = policy.prefix(world.text, world.mask, flag).hidden
    other = policy.prefix(torch.where(flag.view(-1, *[1] * (world.text.ndim - 1)), 0, world.text), world.mask, flag)
    assert torch.equal(one, other.hidden)
    plain = policy.prefix(world.text, world.mask).hidden
    torch.testing.assert_close(one[1], plain[1])
    assert (one[0] - plain[0]).abs().max() > 1e-3


def test_policy_update(world):
    policies = [world.policy() for _ in range(3)]
    seeds = [seed_for(1, "rollouts", i) for i in range(12)]
    samples = sample(policies[0], world.text, world.mask, seeds, CONFIG, batch_size=5, repeats=4)
    rewards = (samples.tokens < policies[0].vocab_size // 2).float().sum(1)
    advantages = group_advantages(rewards.view(3, 4)).flatten()
    data = Rollouts(world.text, world.mask, samples.tokens, samples.log_probs, advantages, rewards)
    params = policy_params(learning_rate=1e-3, checkpointing=True)
    update = PolicyUpdate(*policies, data, params, CONFIG, seed=5, round_id=1, steps_before=0)
    before = [snapshot(policy) for policy in policies]
    assert update.prepare()["sampler_gap"] < 1e-4
    assert update.step(0)["ratio_deviation"] == 0.0
    trained = set(policies[0].state_dict())
    assert moved(before[0], policies[0]) == moved(before[1], policies[1]) == trained
    assert moved(before[2], policies[2]) == set()
    update.load(update.state())
    assert update.step(1)["ratio_deviation"] > 0.0


def test_decoder_update(world):
    online, average = world.tokenizer(), world.tokenizer()
    size, codes = online.config.image_size, online.config.codebook_size
    random = generator(3, "data")
    data = RankedImages(
        torch.randint(codes, (2, 3, online.config.grid**2), generator=random),
        torch.ones(2, 3),
        ["a", "b"],
        torch.rand(4, 3, size, size, generator=random),
    )
    params = decoder_params(lambda_reward=1.0)
    discriminator = PatchGAN(8, 1).initialise(generator(3, "discriminator"))
    nets = Nets(online, average, discriminator, lambda x, _: x.mean((1, 2, 3)), lambda a, b: (a - b).square().mean())
    update = DecoderUpdate(nets, data, params, seed=7, round_id=1, steps_before=0)
    before = snapshot(online)
    metrics = update.step(0)
    assert moved(before, online) == set(online.decoder_state())
    assert all(torch.isfinite(torch.tensor(value)) for value in metrics.values())


@pytest.mark.parametrize("width", [1, 127, 128, 1000])
def test_cumulative_by_products_is_the_cumulative_sum(width):
    values = torch.rand(3, width, dtype=torch.float64, generator=generator(0, "values"))
    torch.testing.assert_close(cumulative_by_products(values), values.cumsum(-1), atol=1e-12, rtol=0)
