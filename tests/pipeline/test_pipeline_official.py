"""The whole pipeline on official formats: tiny seeded LlamaGen and Janus files, converted, post-trained, exported."""

import json
import math
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from rank_e.backbones.janus import TEXT_EMBEDDING
from rank_e.backbones.janus.backbone import JanusBackbone
from rank_e.backbones.janus.tokenizer import theirs
from rank_e.backbones.llamagen.backbone import LlamaGenBackbone
from rank_e.backbones.protocol import Backbone
from rank_e.sampling.distribution import SamplingConfig
from rank_e.sampling.sampler import sample
from rank_e.seeds import seed_for
from stages.runtime.artifacts import MANIFEST, read_artifact
from stages.runtime.warm import warm_stages
from tests.helpers import official, official_params
from tests.helpers.tiny_janus import JanusForConditionalGeneration

pytestmark = pytest.mark.slow
CPU = torch.device("cpu")
ARMS = ("frozen", "coevolved")
CELLS = ("rollouts", "ranking", "policy", "decoder", "evaluation", "factorial")
CELL = ("--arm", "coevolved", "--seed", "0", "--round", "2")
Tensors = dict[str, Tensor]


def checked(folder: Path, *command: str) -> str:
    done = official.run(folder, *command)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def repro(folder: Path) -> str:
    return checked(folder, "dvc", "repro")


def workspace(folder: Path, write: Callable[[Path], list[str]]) -> Path:
    """A project that was written, converted by the real command and run by the real pipeline."""
    arguments = write(folder)
    official.copy_code(folder)
    checked(folder, "pipeline.cli", "convert", *arguments, "--to", "base")
    checked(folder, "dvc", "init", "--no-scm", "--quiet")
    checked(folder, "dvc", "config", "core.analytics", "false")
    with warm_stages(folder):
        repro(folder)
    return folder


@pytest.fixture(scope="module")
def llamagen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return workspace(tmp_path_factory.mktemp("llamagen"), official.write_llamagen_project)


@pytest.fixture(scope="module")
def janus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return workspace(tmp_path_factory.mktemp("janus"), official.write_janus_project)


def cell(folder: Path, arm: str, kind: str, round_id: int = 2) -> Path:
    return folder / "artifacts" / arm / "s0" / f"r{round_id}" / kind


def metrics(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


def same(found: Tensors, expected: Tensors) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def check_run(folder: Path, backbone: Backbone) -> None:
    """What holds whatever the backbone: whole artifacts, what moved and what did not, finite numbers."""
    manifests = sorted((folder / "artifacts").rglob(MANIFEST))
    # reference, baseline; supervised start and its evaluation; prompts; arms
    assert len(manifests) == 2 + 2 + 2 + 2 * (3 + 2 * len(CELLS))
    assert (folder / "report" / "index.html").stat().st_size > 10_000
    for path in manifests:
        read_artifact(path.parent, json.loads(path.read_text())["kind"]).verify()
    assert not list((folder / "artifacts").rglob("*.tmp-*")) and not list((folder / ".rank-e/state").glob("*/*"))

    policy, decoder = backbone.policy_weights(), backbone.decoder_weights()
    for arm in ARMS:
        for kind in ("online", "ema"):
            weights = load_file(cell(folder, arm, "policy") / f"{kind}.safetensors")
            assert weights.keys() == policy.keys() and {w.dtype for w in weights.values()} == {torch.float32}
            assert all(not torch.equal(weights[name], policy[name]) for name in policy), arm
    for kind in ("online", "ema"):
        assert same(load_file(cell(folder, "frozen", "decoder") / f"{kind}.safetensors"), decoder)
        evolved = load_file(cell(folder, "coevolved", "decoder") / f"{kind}.safetensors")
        assert evolved.keys() == decoder.keys()
        assert all(not torch.equal(evolved[name], decoder[name]) for name in decoder)
    base = (cell(folder, "frozen", "decoder", 0) / "ema.safetensors").read_bytes()
    assert (cell(folder, "frozen", "decoder") / "ema.safetensors").read_bytes() == base

    for path in (folder / "artifacts").rglob("metrics.json"):
        assert all(math.isfinite(value) for value in numbers(json.loads(path.read_text()))), path
    rollouts = [(cell(folder, arm, "rollouts", 1) / "rollouts.safetensors").read_bytes() for arm in ARMS]
    assert rollouts[0] == rollouts[1]  # arms are paired


def numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [number for item in value.values() for number in numbers(item)]
    return [float(value)]


def check_metrics(folder: Path, arm: str, names: set[str]) -> None:
    """An evaluation's metrics are `names` (METRIC/CATEGORY), each with an interval and through the original decoder."""
    found = metrics(cell(folder, arm, "evaluation"))
    own, original = by_name(found), by_name(found.pop("original"))
    assert found["images"] > 0 and own.keys() == names | {"token_kl", "token_entropy"}
    assert all(own[name].keys() >= {"value", "low", "high"} for name in names)
    assert original.keys() == names and not any("low" in entry for entry in original.values())
    described = json.loads((cell(folder, arm, "evaluation") / "descriptions.json").read_text())
    assert {row["key"] for row in described} == {name.partition("/")[0] for name in own}


def by_name(nested: dict[str, Any]) -> dict[str, dict[str, float]]:
    """{metric or METRIC/CATEGORY: its value and interval} of nested metrics."""
    entries = {name: entry for name, entry in nested.items() if isinstance(entry, dict) and "value" in entry}
    return entries | {
        f"{name}/{category}": own
        for name, entry in entries.items()
        for category, own in entry.get("categories", {}).items()
    }


def tokens_again(backbone: Backbone, folder: Path, count: int) -> Tensor:
    """The evaluation's first tokens, drawn anew with the policy of another base folder."""
    params = official_params.params_of()["evaluation"]
    prompts = read_artifact(folder, "evaluation").table("samples")["prompt"].tolist()[:count]
    seeds = [seed_for(params["seed"], "evaluation", "held_out", place) for place in range(count)]
    config = SamplingConfig(params["guidance"], params["temperature"], params["top_k"], params["top_p"])
    text, mask = backbone.encode_text(prompts)
    return sample(backbone.policy(backbone.policy_weights()), text, mask, seeds, config, batch_size=count).tokens


def test_llamagen_runs_and_only_what_should_move_moves(llamagen: Path) -> None:
    check_run(llamagen, LlamaGenBackbone(llamagen / "base", CPU, torch.float32))
    names = {"fid", "fd_clip", "clip", "reward", "drawbench_clip", "drawbench_clip/Colors", "drawbench_clip/Counting"}
    names |= {"geneval", "geneval/single_object", "geneval/colors"}
    check_metrics(llamagen, "coevolved", names)
    check_metrics(llamagen, "frozen", names)
    frozen = metrics(cell(llamagen, "frozen", "evaluation"))
    own, original = by_name(frozen), by_name(frozen["original"])
    assert all(original[name]["value"] == own[name]["value"] for name in names)
    table = metrics(cell(llamagen, "coevolved", "factorial"))
    assert {whose: set(row) for whose, row in table.items()} == {
        "coevolved": {"original", "affine", "coevolved"},
        "frozen": {"coevolved"},
        "real": {"coevolved"},
    }
    assert table.pop("real")["coevolved"].keys() == {"fid", "fd_clip", "l1"}
    assert all(entry.keys() == {"fid", "fd_clip", "clip", "reward"} for row in table.values() for entry in row.values())


def test_llamagens_mixture_data_and_captions_are_accounted_for(llamagen: Path) -> None:
    for round_id in (1, 2):
        prompts = read_artifact(llamagen / f"artifacts/prompts/s0/r{round_id}", "prompts")
        texts = prompts.table("prompts")["prompt"].tolist()
        long = sum(official.LONG.strip() in text for text in texts)
        assert len(set(texts)) == 6 and prompts.json("metrics") == {"truncated": long, "skipped": 0}
        assert long > 0 and bool(prompts.tensors("text")["mask"].all(1).sum() == long)
    skipped = [read_artifact(cell(llamagen, "coevolved", "decoder", r), "decoder").json("skipped") for r in (1, 2)]
    broken = f"{Path('data/training/part-1.tar')}:0011"
    assert {row["name"] for rows in skipped for row in rows} == {broken}

    ranking = read_artifact(cell(llamagen, "coevolved", "ranking"), "ranking")
    parts = ranking.json("metrics")
    assert {"reward_clip", "reward_beauty"} <= parts.keys()
    assert ranking.json("rewards")["beauty"]["count"] == 2 * 6 * 3  # both rounds, P x G
    step = metrics(cell(llamagen, "coevolved", "decoder"))
    assert step.keys() >= {"reward", "weight_reward", "weight_gan", "perceptual", "consistency", "discriminator"}
    assert step["weight_reward"] > 0 and step["perceptual"] > 0


def test_nothing_is_left_to_do(llamagen: Path, janus: Path) -> None:
    for folder in (llamagen, janus):
        assert "Running stage" not in repro(folder)


def test_an_exported_llamagen_draws_the_images_that_were_evaluated(llamagen: Path, tmp_path: Path) -> None:
    out, again = tmp_path / "out", tmp_path / "again"
    checked(llamagen, "pipeline.cli", "export", "--arm", "coevolved", "--round", "2", "--to", str(out))
    files = {}
    for name in ("t2i_custom_16", "vq_ds4_t2i"):
        loaded = torch.load(out / f"{name}.pt", map_location="cpu", weights_only=True)  # as LlamaGen's scripts do
        assert list(loaded) == ["model"]
        files[name] = loaded["model"]
    assert same(files["t2i_custom_16"], load_file(cell(llamagen, "coevolved", "policy") / "ema.safetensors"))
    evolved = load_file(cell(llamagen, "coevolved", "decoder") / "ema.safetensors")
    converted = torch.load(llamagen / "official/vq_ds4_t2i.pt", weights_only=True)["model"]
    assert same(files["vq_ds4_t2i"], converted | evolved)  # encoder, codebook and quant_conv are the official ones

    files_again = [str(out / "t2i_custom_16.pt"), str(out / "vq_ds4_t2i.pt")]
    options = ["--text", "official/flan-t5", "--image-size", "16", "--heads", "2"]
    checked(llamagen, "pipeline.cli", "convert", "llamagen", *files_again, *options, "--to", str(again))
    backbone = LlamaGenBackbone(again, CPU, torch.float32)
    found = read_artifact(cell(llamagen, "coevolved", "evaluation"), "evaluation")
    tokens = tokens_again(backbone, found.path, 4)
    assert torch.equal(tokens, found.tensors("tokens")["tokens"][:4].long())
    with torch.no_grad():
        drawn = backbone.tokenizer(backbone.decoder_weights()).decode_tokens(tokens[:2])
    close_to_bytes(drawn, found.tensors("images")["images"])


def close_to_bytes(drawn: Tensor, expected: Tensor) -> None:
    """Images in [-1, 1] are the stored bytes, up to one level of rounding."""
    levels = ((drawn + 1) / 2).clamp(0, 1) * 255
    torch.testing.assert_close(levels, expected.float(), atol=0.51, rtol=0)
    assert expected.float().std() > 5


def test_janus_runs_in_bfloat16_and_stores_only_what_is_trained(janus: Path) -> None:
    backbone = JanusBackbone(janus / "base", CPU, torch.float32)
    check_run(janus, backbone)
    names = {"fd_clip", "clip", "reward", "hps", "hps/anime", "hps/concept-art", "hps/paintings", "hps/photo"}
    prompts = read_artifact(janus / "artifacts/prompts/s0/r1", "prompts").table("prompts")
    assert set(prompts["category"]) <= set(official.THINGS[:3]) and prompts["prompt"].str.endswith(", please").all()
    samples = read_artifact(cell(janus, "coevolved", "evaluation"), "evaluation").table("samples")
    kinds = {f"{score}/{kind}" for score in ("clip", "reward") for kind in samples["category"].unique()}
    check_metrics(janus, "coevolved", names | kinds)

    stored = load_file(cell(janus, "coevolved", "policy") / "online.safetensors")
    parts = {name.split(".")[0] for name in stored}
    assert parts == {"language_model", "generation_embeddings", "generation_aligner", "generation_head"}
    assert TEXT_EMBEDDING not in stored
    step = metrics(cell(janus, "coevolved", "decoder"))
    assert step.keys() >= {"reward", "weight_adaptive", "perceptual", "discriminator"}
    discriminator = load_file(cell(janus, "coevolved", "decoder") / "discriminator.safetensors")
    assert all(name.startswith("heads.") for name in discriminator)  # the frozen networks are not stored
    assert metrics(cell(janus, "coevolved", "policy"))["sampler_gap_mean"] > 1e-5  # it did run in bfloat16


def test_transformers_loads_an_exported_janus(janus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    checked(janus, "pipeline.cli", "export", "--arm", "coevolved", "--round", "2", "--to", str(out))
    before, model = (
        JanusForConditionalGeneration.from_pretrained(place, local_files_only=True, dtype=torch.float32).eval()
        for place in (janus / "official/janus", out)
    )
    policy = load_file(cell(janus, "coevolved", "policy") / "ema.safetensors")
    decoder = load_file(cell(janus, "coevolved", "decoder") / "ema.safetensors")
    trained = {f"model.{name}": tensor for name, tensor in policy.items()}
    trained |= {f"model.vqmodel.{theirs(name)}": tensor for name, tensor in decoder.items()}
    assert same(model.state_dict(), before.state_dict() | trained)
    found = read_artifact(cell(janus, "coevolved", "evaluation"), "evaluation")
    with torch.no_grad():
        drawn = model.decode_image_tokens(found.tensors("tokens")["tokens"][:2].long())
    close_to_bytes(drawn.reshape(2, 8, 8, 3).permute(0, 3, 1, 2), found.tensors("images")["images"])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def copy_of(project: Path, folder: Path, target: Path) -> dict[str, bytes]:
    """`project` in `folder`, all but its artifacts shared, without the artifact `target`, whose files it gives."""
    for path in project.iterdir():
        if path.name not in ("artifacts", ".dvc", ".rank-e"):
            (folder / path.name).symlink_to(path)
    shutil.copytree(project / "artifacts", folder / "artifacts")
    whole = contents(folder / target)
    shutil.rmtree(folder / target)
    return whole


def test_an_evaluation_killed_in_its_middle_ends_in_the_same_bytes(llamagen: Path, tmp_path: Path) -> None:
    target = cell(Path(), "coevolved", "evaluation")
    whole = copy_of(llamagen, tmp_path, target)
    command = [sys.executable, "-m", "stages", "evaluation", *CELL]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not list((tmp_path / ".rank-e/state").glob("evaluation-*/held_out-own/part-*")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / target).exists() and not list((tmp_path / target).parent.glob("*.tmp-*"))
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "evaluating held_out-own 2/2" not in done.stderr  # images that were evaluated are not evaluated again
    assert contents(tmp_path / target) == whole


@pytest.mark.parametrize(("name", "left"), [("policy", 2), ("decoder", 1)])
def test_a_janus_update_killed_in_its_middle_ends_in_the_same_bytes(
    janus: Path, tmp_path: Path, name: str, left: int
) -> None:
    """bfloat16 with checkpointing, and the projected discriminator: what is stored half-way is all that moves."""
    target = cell(Path(), "coevolved", name)
    whole = copy_of(janus, tmp_path, target)
    killed = subprocess.run([sys.executable, "-c", official.KILLED, name, *CELL], cwd=tmp_path, capture_output=True)
    assert killed.returncode == -signal.SIGKILL and not (tmp_path / target).exists(), killed.stderr
    command = [sys.executable, "-m", "stages", name, *CELL]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert f"{left}/{left} 100 %" in done.stderr
    assert contents(tmp_path / target) == whole
