"""One step each of sampling, ranking, policy and decoder update: toy sizes anywhere, XL and Janus-Pro-1B on a GPU."""

from math import isfinite
from pathlib import Path

import pytest
import torch

from rank_e.backbones.protocol import PolicyModel
from rank_e.config.profiles import load_profile
from stages.runtime.algorithms import configure_torch
from tests.helpers.official import write_vgg16
from tests.helpers.one_round import Kind, OneRound, Size

ROOT = Path(__file__).parents[2]
gpu = pytest.mark.gpu


@pytest.fixture(scope="module")
def vgg16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vgg") / "vgg16.pth"
    write_vgg16(path)
    return path


def configure(deterministic: bool) -> None:
    params = load_profile(ROOT / "profiles/tiny.yaml")
    runtime = params.runtime.model_copy(update={"deterministic": deterministic})
    configure_torch(params.model_copy(update={"runtime": runtime}))


def everything(made: OneRound) -> dict[str, torch.Tensor]:
    """All that one round makes, on the CPU; its logs are checked here."""
    rollouts = made.sample()
    rewards = made.rank(rollouts.tokens)
    policy_log, policy = made.update_policy(rollouts, rewards)
    decoder_log, decoder = made.update_decoder(rollouts.tokens, rewards)
    before = {f"policy/{name}": x for name, x in made.policy().state_dict().items()}
    before |= {f"decoder/{name}": x for name, x in made.tokenizer().decoder_state().items()}
    after = {f"policy/{name}": x for name, x in policy.items()} | {f"decoder/{name}": x for name, x in decoder.items()}
    assert all(isfinite(value) for value in (policy_log | decoder_log).values())
    assert policy_log["ratio_deviation"] == 0.0  # microbatches are scored as in `prepare`
    assert decoder_log.keys() >= {"reward", "weight_gan", "weight_reward", "perceptual", "discriminator"}
    unmoved = {name for name, x in after.items() if torch.equal(x.cpu(), before[name].float().cpu())}
    assert not unmoved, unmoved
    found = {"tokens": rollouts.tokens, "log_probs": rollouts.log_probs, "rewards": rewards} | after
    assert all(bool(x.isfinite().all()) for x in found.values())
    return {name: x.cpu() for name, x in found.items()}


@pytest.mark.parametrize("kind", ["llamagen", "janus"])
def test_a_round_runs_at_toy_size(kind: Kind, vgg16: Path) -> None:
    configure(deterministic=True)
    everything(OneRound(kind, "toy", torch.device("cpu"), torch.float32, vgg16))


@gpu
@pytest.mark.parametrize("size", ["toy", "published"])
@pytest.mark.parametrize("kind", ["llamagen", "janus"])
def test_a_deterministic_round_is_the_same_twice(kind: Kind, size: Size, vgg16: Path) -> None:
    configure(deterministic=True)
    made = OneRound(kind, size, torch.device("cuda"), torch.float32 if size == "toy" else torch.bfloat16, vgg16)
    first, second = everything(made), everything(made)
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


@gpu
@pytest.mark.parametrize("size", ["toy", "published"])
@pytest.mark.parametrize("kind", ["llamagen", "janus"])
def test_a_fast_round_runs(kind: Kind, size: Size, vgg16: Path) -> None:
    configure(deterministic=False)
    everything(OneRound(kind, size, torch.device("cuda"), torch.bfloat16, vgg16))


def teacher_forced(policy: PolicyModel, *inputs: torch.Tensor) -> torch.Tensor:
    """Logits of text, mask and tokens."""
    text, mask, tokens = inputs
    return policy.logits(policy.hidden(policy.prefix(text, mask), tokens))


@gpu
@pytest.mark.parametrize("kind", ["llamagen", "janus"])
def test_a_gpu_finds_what_a_cpu_does(kind: Kind, vgg16: Path) -> None:
    configure(deterministic=True)
    host = OneRound(kind, "toy", torch.device("cpu"), torch.float32, vgg16)
    policy, tokenizer = host.policy(), host.tokenizer()
    text, mask = host.text
    with torch.no_grad():
        tokens = torch.randint(policy.vocab_size, (2, policy.length), generator=torch.Generator().manual_seed(0))
        on_host = teacher_forced(policy, text, mask, tokens)
        images = tokenizer.decode_tokens(tokens)
        policy.to("cuda"), tokenizer.to("cuda")  # type: ignore[attr-defined]
        on_card = teacher_forced(policy, text.cuda(), mask.cuda(), tokens.cuda())
        torch.testing.assert_close(on_card.cpu(), on_host, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(tokenizer.decode_tokens(tokens.cuda()).cpu(), images, rtol=1e-3, atol=1e-3)
