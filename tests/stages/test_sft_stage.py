"""Stages sft, sft_evaluation and start on the embedded world: what is trained, handed on, resumed and left alone."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML
from safetensors.torch import load_file
from torch import Tensor

from rank_e.config import parse
from rank_e.config.profiles import resolve
from rank_e.data.opening import open_dataset
from rank_e.seeds import seed_for
from rank_e.shapes.backbone import ShapesBackbone
from rank_e.training.sft_update import SftUpdate
from stages import sft, sft_evaluation, start
from stages.runtime import state
from stages.runtime.artifacts import Artifact, read_artifact
from stages.runtime.backbone import backbone_of
from stages.runtime.stage import Stage, make_stage
from tests.helpers.fake_artifacts import write_evaluation

ROOT = Path(__file__).parents[2]
TINY: dict[str, Any] = YAML(typ="safe", pure=True).load(resolve(ROOT / "profiles/tiny.yaml"))
SMALL = {
    "train": True,
    "images": 24,
    "steps": 6,
    "batch_size": 8,
    "microbatch_size": 4,
    "warmup_steps": 2,
    "caption_dropout": 0.3,
}


class Killed(BaseException):
    """What stops a stage here; like a signal, no handler of errors sees it."""


class Calls:
    """Stands in for a function: counts its calls, and is killed at the one after `most`."""

    def __init__(self, owner: Any, name: str, most: int = 1000) -> None:
        self.real, self.most, self.done = getattr(owner, name), most, 0

    def bound(self) -> Any:
        def call(*arguments: Any) -> Any:
            if self.done == self.most:
                raise Killed
            self.done += 1
            return self.real(*arguments)

        return call


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project's folder of its own, as the current one, with the data's folder."""
    (tmp_path / "rank_e").symlink_to(ROOT / "rank_e")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def cell(name: str = "sft", arm: str = "", **changes: object) -> Stage:
    """A stage of the tiny profile with other settings of sft."""
    backbone = {"name": "shapes", "base": str(ROOT / "assets/shapes")}
    params = parse(TINY | {"backbone": backbone, "sft": TINY["sft"] | SMALL | changes})
    return make_stage(name, params, arm=arm, seed=0)


def policy() -> Artifact:
    found = read_artifact("artifacts/sft/s0/policy", "policy")
    found.verify()
    return found


def contents(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def base() -> dict[str, Tensor]:
    return backbone_of(cell()).policy_weights()


def equal(some: dict[str, Tensor], others: dict[str, Tensor]) -> bool:
    return some.keys() == others.keys() and all(torch.equal(some[name], others[name]) for name in some)


def test_a_short_training_lowers_the_loss_and_moves_every_weight() -> None:
    steps = {"steps": 30, "batch_size": 16, "microbatch_size": 16, "learning_rate": 1e-3, "ema_decay": 0.9}
    sft.run(cell(images=32, **steps))
    found = policy()
    log = found.table("log")
    assert log["step"].tolist() == list(range(30))
    assert log["loss"][-6:].mean() < log["loss"][:6].mean() - 0.15
    online, average, before = found.tensors("online"), found.tensors("ema"), base()
    assert online.keys() == average.keys() == before.keys()
    for name, weight in before.items():  # the text of no caption too
        assert not torch.equal(online[name], weight) and not torch.equal(average[name], weight), name
        assert not torch.equal(online[name], average[name]), name
    assert found.json("progress") == {"updates": 30}
    metrics = found.json("metrics")
    assert metrics["loss"] == pytest.approx(log["loss"].mean()) and metrics["skipped"] == metrics["truncated"] == 0
    events = Path(".rank-e/events/s0-sft.jsonl").read_text().splitlines()
    assert len(events) == 30 and not list(Path(".rank-e/state").glob("*"))


def test_the_policy_learns_the_tokens_of_images_from_their_own_captions(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Tensor, list[str]]] = []
    made = SftUpdate.__init__

    def spy(self: SftUpdate, online: Any, data: Any, *others: Any) -> None:
        seen.append((data.tokens, data.text))
        made(self, online, data, *others)

    monkeypatch.setattr(SftUpdate, "__init__", spy)
    stage = cell()
    backbone = backbone_of(stage)
    sft.run(stage)
    (tokens, text), *more = seen
    dataset = open_dataset(stage.params.data.training, backbone.image_size, "data.training")
    pairs = list(dataset.captioned_images(24, seed_for(0, "sft", "pictures")))
    images = torch.stack([pair.image for pair in pairs])
    assert not more
    with torch.no_grad():
        assert torch.equal(tokens, backbone.tokenizer(backbone.decoder_weights()).encode(images * 2 - 1)[1])
    features, mask = text(torch.tensor([5, 0, 23]))
    wanted = backbone.encode_text([pairs[row].caption for row in (5, 0, 23)])
    assert torch.equal(features, wanted[0]) and torch.equal(mask, wanted[1])


def test_the_other_networks_are_left_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = backbone_of(cell())
    assert isinstance(backbone, ShapesBackbone)
    tokenizer = backbone.tokenizer(backbone.decoder_weights())
    networks = (tokenizer, backbone.text_encoder.clip)
    before = [{name: x.clone() for name, x in network.state_dict().items()} for network in networks]
    monkeypatch.setattr(backbone, "tokenizer", lambda decoder: tokenizer)
    monkeypatch.setattr(sft, "backbone_of", lambda stage: backbone)
    files = {path: path.read_bytes() for path in (ROOT / "assets/shapes").iterdir()}
    sft.run(cell())
    for network, weights in zip(networks, before, strict=True):
        assert equal(weights, network.state_dict())
        assert all(parameter.grad is None for parameter in network.parameters())
    assert files == {path: path.read_bytes() for path in files}


@pytest.mark.parametrize(
    ("place", "after"), [("encode_images", 1), ("encode_images", 4), ("step", 0), ("step", 1), ("step", 4)]
)
def test_killed_and_run_again_it_ends_in_the_same_bytes(
    monkeypatch: pytest.MonkeyPatch, place: str, after: int
) -> None:
    sft.run(cell())
    whole = contents("artifacts/sft/s0/policy")
    owner: Any = SftUpdate if place == "step" else sft
    monkeypatch.setattr(state, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(state, "SHARE", 0.0)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(owner, place, Calls(owner, place, after).bound())
        sft.run(cell())
    rest = Calls(owner, place)
    monkeypatch.setattr(owner, place, rest.bound())
    sft.run(cell())
    assert rest.done == 6 - after  # six batches of images, six updates: none is done again
    assert contents("artifacts/sft/s0/policy") == whole


def test_what_was_skipped_before_a_kill_is_reported_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dataset that meets a bad sample in its first batch and another in its last."""

    class Damaged:
        def __init__(self, dataset: Any) -> None:
            self.dataset, self.bad = dataset, dict[str, str]()

        def captioned_images(self, count: int, seed: int, start: int) -> Iterator[Any]:
            for number, item in enumerate(self.dataset.captioned_images(count, seed, start), start):
                self.bad |= {f"{number}.png": "is broken"} if number in (1, 22) else {}
                yield item

        def skipped(self) -> list[dict[str, str]]:
            return [{"name": name, "reason": reason} for name, reason in self.bad.items()]

    monkeypatch.setattr(sft, "open_dataset", lambda *arguments: Damaged(open_dataset(*arguments)))
    sft.run(cell())
    whole = contents("artifacts/sft/s0/policy")
    assert [row["name"] for row in policy().json("skipped")] == ["1.png", "22.png"]
    monkeypatch.setattr(state, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(state, "SHARE", 0.0)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(sft, "encode_images", Calls(sft, "encode_images", 3).bound())
        sft.run(cell())
    sft.run(cell())
    assert contents("artifacts/sft/s0/policy") == whole


def test_without_training_the_base_is_handed_on_and_nothing_else_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("policy", "tokenizer", "encode_text", "decoder_weights"):
        monkeypatch.setattr(ShapesBackbone, name, None)
    sft.run(cell(train=False))
    found = policy()
    assert equal(found.tensors("online"), base()) and equal(found.tensors("ema"), base())
    assert found.json("progress") == {"updates": 0} and found.json("metrics") == {}
    assert found.table("log").columns.tolist() == ["step"] and found.table("log").empty
    unchanged = contents("artifacts/sft/s0/policy")
    sft.run(cell(train=False, learning_rate=0.5))
    assert contents("artifacts/sft/s0/policy") == unchanged  # so that nothing after it runs again


@pytest.mark.parametrize("train", [True, False])
def test_every_arm_starts_from_its_average(train: bool) -> None:
    sft.run(cell(train=train))
    for arm in ("frozen", "coevolved"):
        start.run(cell("start", arm=arm, train=train))
        first = read_artifact(f"artifacts/{arm}/s0/r0/policy", "policy")
        for kind in ("online", "ema"):
            assert equal(first.tensors(kind), policy().tensors("ema"))
            decoder = load_file(f"artifacts/{arm}/s0/r0/decoder/{kind}.safetensors")
            assert equal(decoder, backbone_of(cell()).decoder_weights())
        assert first.json("progress") == {"updates": 0}
        assert equal(first.tensors("online"), base()) is not train


def test_without_training_the_baselines_evaluation_is_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sft_evaluation, "evaluate", None)
    monkeypatch.setattr(sft_evaluation, "backbone_of", None)
    write_evaluation(Path("artifacts/base/evaluation"), "base", 0, 0)
    sft_evaluation.run(cell("sft_evaluation", train=False))
    given, handed = (
        read_artifact(path, "evaluation") for path in ("artifacts/base/evaluation", "artifacts/sft/s0/evaluation")
    )
    handed.verify()
    assert handed.manifest["files"] == given.manifest["files"]  # the shapes too


def test_a_trained_start_is_evaluated_as_the_baseline_is(monkeypatch: pytest.MonkeyPatch) -> None:
    sft.run(cell())
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(sft_evaluation, "evaluate", lambda *arguments: calls.append(arguments))
    opened = sft_evaluation.read_artifact
    reference = Artifact(Path("artifacts/reference"), {})
    monkeypatch.setattr(
        sft_evaluation, "read_artifact", lambda path, kind: reference if kind == "reference" else opened(path, kind)
    )
    stage = cell("sft_evaluation")
    sft_evaluation.run(stage)
    ((given, weights, decoder, inputs, target),) = calls
    assert given is stage and target == Path("artifacts/sft/s0/evaluation")
    assert equal(weights, policy().tensors("ema")) and equal(decoder, backbone_of(stage).decoder_weights())
    assert {name: str(item.path) for name, item in inputs.items()} == {
        "reference": "artifacts/reference",
        "policy": "artifacts/sft/s0/policy",
    }
