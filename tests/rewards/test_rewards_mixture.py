"""Mixtures: weights, running normalisation that no batch size changes, a user's own reward, and errors by name."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from rank_e.io.torchvision_ops import import_open_clip
from rank_e.rewards import mixture as mixtures
from rank_e.rewards.base import RewardError
from rank_e.rewards.mixture import Mixture, Term
from rank_e.rewards.running import RunningNormaliser
from tests.helpers.sections import rewards

TINY: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1},
}
OWN = {"kind": "tests.rewards.test_rewards_mixture:brightness"}
PROMPTS = ["a", "b", "c", "d"]


def build_rewards(settings: dict[str, dict[str, Any]], folder: Path, device: str) -> Mixture:
    return mixtures.build_rewards(rewards(settings), folder, device)


def brightness(folder: Path, device: torch.device, factor: float = 1.0) -> Any:
    """A user's own reward."""
    return lambda images, prompts: factor * images.mean((1, 2, 3))


def scored_as(folder: Path, device: torch.device, result: object) -> Any:
    return lambda images, prompts: result


def undefined(folder: Path, device: torch.device) -> Any:
    return lambda images, prompts: torch.tensor([0.0] * (len(prompts) - 1) + [float("nan")])


def unhelpful(folder: Path, device: torch.device) -> Any:
    raise ValueError("no such\nscorer")


def dividing(folder: Path, device: torch.device) -> Any:
    return lambda images, prompts: 1 / 0


def no_callable(folder: Path, device: torch.device) -> str:
    return "scores"


@pytest.fixture
def images() -> Tensor:
    return torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_scores_are_the_weighted_sum_of_the_raw_scores(images: Tensor) -> None:
    mixture = build_rewards(
        {"light": OWN | {"weight": 2.0}, "dark": OWN | {"factor": -3.0, "weight": 0.5}}, Path(), "cpu"
    )
    scores = mixture.raw_scores(images, PROMPTS)
    means = images.mean((1, 2, 3))
    torch.testing.assert_close(scores["light"], means)
    torch.testing.assert_close(scores["dark"], -3 * means)
    torch.testing.assert_close(mixture(images, PROMPTS), 0.5 * means)
    assert mixture.state() == {}


def test_running_normalisation_is_by_earlier_scores_alone(images: Tensor) -> None:
    mixture = build_rewards({"light": OWN | {"normalise": "running", "weight": 2.0}}, Path(), "cpu")
    raw = images.mean((1, 2, 3))
    torch.testing.assert_close(mixture(images, PROMPTS), 2 * raw)  # nothing was observed yet
    torch.testing.assert_close(mixture(images, PROMPTS), 2 * raw)  # scoring observes nothing
    earlier = torch.rand(50, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    mixture.observe(mixture.raw_scores(earlier, ["x"] * 50))
    seen = earlier.mean((1, 2, 3)).double()
    expected = 2 * (raw.double() - seen.mean()) / seen.std()
    torch.testing.assert_close(mixture(images, PROMPTS).double(), expected, rtol=1e-5, atol=1e-5)
    differentiable = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(mixture(differentiable, PROMPTS).sum(), differentiable)
    torch.testing.assert_close(gradient.double().mean(), 2 / seen.std() / (3 * 8 * 8), rtol=1e-5, atol=0)


def test_statistics_depend_on_the_order_of_scores_not_on_their_batches() -> None:
    scores = torch.randn(64, generator=torch.Generator().manual_seed(2)) * 1e-3 + 20
    states = []
    for batch in (1, 7, 64):
        normaliser = RunningNormaliser("x")
        for part in scores.split(batch):
            normaliser.observe(part)
        states.append(normaliser.state())
    assert states[0] == states[1] == states[2]
    assert states[0]["squares"] == pytest.approx(scores.double().var().item() * 63, rel=1e-9)


def test_running_state_goes_on_where_it_was_through_json(images: Tensor) -> None:
    settings = {"light": OWN | {"normalise": "running"}, "raw": OWN}
    first, second = build_rewards(settings, Path(), "cpu"), build_rewards(settings, Path(), "cpu")
    first.observe(first.raw_scores(images, PROMPTS))
    second.load_state(json.loads(json.dumps(first.state())))
    assert torch.equal(first(images, PROMPTS), second(images, PROMPTS))
    for mixture in (first, second):
        mixture.observe(mixture.raw_scores(images + 0.1, PROMPTS))
    assert first.state() == second.state() and first.state()["light"]["count"] == 8
    with pytest.raises(RewardError, match=r"running state is of \['other'\], normalised here are \['light'\]"):
        first.load_state({"other": {}})
    with pytest.raises(RewardError, match=r"rewards\.light: its running state is \{'count': -1"):
        first.load_state({"light": {"count": -1, "mean": 0.0, "squares": 0.0}})


def test_scores_without_spread_cannot_be_normalised() -> None:
    normaliser = RunningNormaliser("flat")
    normaliser.observe(torch.full((5,), 0.25))
    with pytest.raises(RewardError, match=r"rewards\.flat\.normalise: all 5 observed scores are 0\.25"):
        normaliser(torch.zeros(2))


def test_scores_are_computed_in_float32_under_autocast() -> None:
    seen: list[tuple[torch.dtype, bool]] = []

    def reward(images: Tensor, prompts: list[str]) -> Tensor:
        seen.append((images.dtype, torch.is_autocast_enabled("cpu")))
        return images.mean((1, 2, 3))

    with torch.autocast("cpu", dtype=torch.bfloat16):
        Mixture({"r": Term(reward)})(torch.rand(1, 3, 4, 4).bfloat16(), ["a"])
    assert seen == [(torch.float32, False)]


def test_what_a_users_reward_returns_is_checked(images: Tensor) -> None:
    def own(function: str, **options: object) -> Mixture:
        return build_rewards(
            {"mine": {"kind": f"tests.rewards.test_rewards_mixture:{function}", **options}}, Path(), "cpu"
        )

    with pytest.raises(RewardError, match="reward mine: score of image 3 is nan"):
        own("undefined")(images, PROMPTS)
    broken = (
        r"reward mine: failed with ZeroDivisionError: division by zero \(test_rewards_mixture\.py, line \d+\); fix it"
    )
    with pytest.raises(RewardError, match=broken):
        own("dividing")(images, PROMPTS)
    with pytest.raises(RewardError, match=r"reward mine: gave float; return float scores \[4\]"):
        own("scored_as", result=0.5)(images, PROMPTS)
    with pytest.raises(RewardError, match=r"reward mine: gave torch.int64 \[4\]"):
        own("scored_as", result=torch.ones(4).long())(images, PROMPTS)
    constant = own("scored_as", result=torch.ones(4))
    assert torch.equal(constant(images, PROMPTS), torch.ones(4))
    with pytest.raises(RewardError, match="reward mine: its scores have no gradient in the images"):
        constant(images.requires_grad_(), PROMPTS)
    with torch.no_grad():
        assert torch.equal(constant(images, PROMPTS), torch.ones(4))
    with pytest.raises(RewardError, match="reward mine: 4 images for 1 prompts"):
        constant(images, ["a"])


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"kind": "clip", "file": "no.pt"}, r"rewards\.r: no\.pt does not exist"),
        ({"kind": "hpsv2", "file": "x", "model": "ViT-Q-1"}, r"rewards\.r: model: unknown open_clip model 'ViT-Q-1'"),
        ({"kind": "clip", "file": "x", "model": "ViT-B-16-SigLIP"}, r"rewards\.r: model: ViT-B-16-SigLIP is no plain"),
        ({"kind": "clip", "file": "x", "model": "no.json"}, r"rewards\.r: model: no\.json does not exist"),
        ({"kind": "tests.nowhere:f"}, r"rewards\.r\.kind: tests\.nowhere:f cannot be imported"),
        ({"kind": "tests.rewards.test_rewards_mixture:none"}, r"rewards\.r\.kind: .*:none cannot be imported"),
        (
            {"kind": "tests.rewards.test_rewards_mixture:unhelpful"},
            r"unhelpful failed with ValueError: no such scorer \(test_rewards_mixture\.py, line \d+\); fix it",
        ),
        (
            {"kind": "tests.rewards.test_rewards_mixture:no_callable"},
            r"no_callable gave a str; return something that can be called",
        ),
    ],
)
def test_bad_parameters_are_named(section: dict[str, Any], message: str) -> None:
    with pytest.raises(RewardError, match=message) as error:
        build_rewards({"r": section}, Path(), "cpu")
    assert "\n" not in str(error.value)


def test_a_models_own_file_lies_in_the_folder_of_the_weights(tmp_path: Path) -> None:
    (tmp_path / "tiny.json").write_text(json.dumps(TINY))
    state = import_open_clip().CLIP(**TINY).state_dict()
    save_file({k: v.clone() for k, v in state.items()}, tmp_path / "a.safetensors")
    section = {"kind": "clip", "file": "a.safetensors", "model": "tiny.json"}
    images = torch.rand(2, 3, 16, 16)
    assert build_rewards({"r": section}, tmp_path, "cpu")(images, ["a", "b"]).shape == (2,)


def test_bad_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "clip.json").write_text(json.dumps(TINY))
    torch.manual_seed(0)
    state = import_open_clip().CLIP(**TINY).state_dict()
    good = tmp_path / "good.safetensors"
    save_file({k: v.clone() for k, v in state.items()}, good)
    clip = {"model": str(tmp_path / "clip.json")}

    def load(kind: str, **files: object) -> Mixture:
        return build_rewards({"r": {"kind": kind} | {k: str(v) for k, v in files.items()}}, Path(), "cpu")

    truncated = tmp_path / "truncated.safetensors"
    truncated.write_bytes(good.read_bytes()[:1000])
    with pytest.raises(RewardError, match=r"rewards\.r: .*truncated\.safetensors is truncated"):
        load("clip", file=truncated, **clip)
    torch.save({"state_dict": state, "args": Path("x")}, tmp_path / "pickle.pt")
    with pytest.raises(RewardError, match=r"rewards\.r: .*pickle\.pt is refused"):
        load("hpsv2", file=tmp_path / "pickle.pt", **clip)
    wrong = {k: v for k, v in state.items() if k != "visual.proj"} | {"extra": torch.zeros(1)}
    wrong["token_embedding.weight"] = torch.zeros(5, 16)
    torch.save(wrong, tmp_path / "wrong.pt")
    with pytest.raises(RewardError, match=r"wrong\.pt.*1 missing: visual\.proj; 1 unexpected: extra; 1 of another sha"):
        load("clip", file=tmp_path / "wrong.pt", **clip)
    torch.save(nn.Linear(24, 1).state_dict(), tmp_path / "head.pth")
    with pytest.raises(RewardError, match=r"head\.pth reads embeddings of 24, the CLIP gives 16"):
        load("aesthetic", file=tmp_path / "head.pth", clip_file=good, **clip)
    with pytest.raises(RewardError, match=r"wrong\.pt is no published aesthetic head"):
        load("aesthetic", file=tmp_path / "wrong.pt", clip_file=good, **clip)
    with pytest.raises(RewardError, match=r"wrong\.pt: unexpected key"):
        load("imagereward", file=tmp_path / "wrong.pt", tokenizer=tmp_path)


def test_one_clip_serves_all_that_use_it(tmp_path: Path) -> None:
    (tmp_path / "clip.json").write_text(json.dumps(TINY))
    torch.manual_seed(0)
    torch.save(import_open_clip().CLIP(**TINY).state_dict(), tmp_path / "clip.pt")
    torch.save(nn.Linear(16, 1).state_dict(), tmp_path / "head.pth")
    model, file = str(tmp_path / "clip.json"), str(tmp_path / "clip.pt")
    mixture = build_rewards(
        {
            "match": {"kind": "clip", "file": file, "model": model},
            "beauty": {"kind": "aesthetic", "file": str(tmp_path / "head.pth"), "clip_file": file, "model": model},
        },
        Path(),
        "cpu",
    )
    assert mixture.terms["match"].reward.model is mixture.terms["beauty"].reward.model  # type: ignore[attr-defined]
    assert mixture(torch.rand(2, 3, 16, 16), ["a", "b"]).shape == (2,)


def test_an_empty_mixture_is_refused() -> None:
    with pytest.raises(RewardError, match="rewards: none is given"):
        build_rewards({}, Path(), "cpu")
