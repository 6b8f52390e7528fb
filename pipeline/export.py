"""Trained weights as files that other software loads: what `rank-e convert` took in, given back.

The base folder tells the format: LlamaGen's files, a Hugging Face Janus folder, or a base folder of the embedded
world. What no stage trains is the base's, bit for bit. Trained weights keep their dtype in LlamaGen's files, whose
loader casts; elsewhere they are rounded to the base's.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from rank_e.backbones.janus.convert import FORMAT as JANUS
from rank_e.backbones.janus.export import export_janus
from rank_e.backbones.llamagen.convert import FORMAT as LLAMAGEN
from rank_e.backbones.llamagen.export import export as export_llamagen
from rank_e.backbones.llamagen.tokenizer import DECODER_PREFIXES
from rank_e.config import ConfigError, Params
from rank_e.errors import RankEError
from rank_e.io.checkpoints import (
    MANIFEST,
    check_absent,
    check_finite,
    check_shapes,
    check_space,
    files_of,
    read_tensors,
    save_json,
    save_tensors,
    shapes_of,
    write_folder,
)
from rank_e.io.files import sha256_of
from stages.runtime.artifacts import manifest_sha256, read_artifact
from stages.runtime.stage import artifact_path

Weights = Literal["ema", "online"]
SHAPES = "shapes"  # the embedded world's base.json names no format
ORIGIN = "manifest.json"
DECODER = "the decoder and post_quant_conv alone"
CONTENTS = {
    LLAMAGEN: {"t2i_*": "the policy", "vq_*": "the tokenizer with the decoder", "decoder.*": DECODER},
    JANUS: {
        "model*": "the whole model; transformers loads the folder",
        "decoder.safetensors": DECODER,
    },
    SHAPES: {
        "base.json": "with it the folder can be backbone.base",
        "policy.safetensors": "the policy",
        "tokenizer.safetensors": "the tokenizer with the decoder",
        "decoder.safetensors": DECODER,
    },
}
"""What the files of an export hold, by format and pattern."""


def export(params: Params, arm: str, seed: int | None, round_id: int, weights: Weights, to: Path) -> dict[str, Any]:
    """Write policy and decoder of a cell over the base into the new folder `to`; its manifest.json.

    seed: None for the only one. round_id: 0 for the weights that the arm began with. weights: "ema" is what the
    evaluation judges. RankEError in one line for a cell that is unknown or not there yet, a damaged artifact, a base
    of another size and a `to` that exists; then nothing is left on disk.
    """
    check_absent(to)
    seed = check_cell(params, arm, seed, round_id)
    base = Path(params.backbone.base)
    manifest = read_base(base)
    kind = manifest.get("format", SHAPES)
    paths = {part: artifact_path(part, arm, seed, round_id) for part in ("policy", "decoder")}
    policy, decoder = (read_weights(part, path, weights) for part, path in paths.items())
    check_space(to, sum(path.stat().st_size for path in base.glob("*.safetensors")))
    with write_folder(to) as folder:
        # The writers of the formats make a folder of their own; inside this one, a kill leaves nothing else behind.
        written = folder / "written"
        WRITERS[kind](base, written, policy, decoder)
        for path in sorted(written.iterdir()):
            path.rename(folder / path.name)
        written.rmdir()
        origin = {
            "format": kind,
            "arm": arm,
            "seed": seed,
            "round": round_id,
            "weights": weights,
            "artifacts": {str(path): manifest_sha256(path) for path in paths.values()},
            "base": {
                "folder": str(base),
                "sha256": sha256_of(base / MANIFEST),
                "source": manifest["files"] if kind == SHAPES else manifest["source"],
            },
            "files": files_of(folder),
        }
        save_json(origin, folder / ORIGIN)
    return origin


def check_cell(params: Params, arm: str, seed: int | None, round_id: int) -> int:
    """The seed, the only one where None is given; ConfigError for an arm, seed or round that params.yaml lacks."""
    params.arm(arm)
    known = ", ".join(map(str, params.seeds))
    if seed is None and len(params.seeds) > 1:
        raise ConfigError(f"params.yaml has the seeds {known}: choose one with --seed")
    if seed is not None and seed not in params.seeds:
        raise ConfigError(f"seed {seed} is not in params.yaml: it has {known}")
    if round_id not in [0, *(item.id for item in params.rounds)]:
        raise ConfigError(f"round {round_id} is not in params.yaml: it has 0 (the base) to {params.last_round}")
    return params.seeds[0] if seed is None else seed


def read_base(base: Path) -> dict[str, Any]:
    """base.json of a base folder of a format that can be exported."""
    path = base / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        known = manifest.get("format", SHAPES) in WRITERS and "files" in manifest
    except (OSError, ValueError, AttributeError, TypeError):
        known = False
    if not known:
        raise RankEError(f"backbone.base: {path} is no base folder's manifest; run `rank-e convert`, or fix the path")
    return manifest


def read_weights(kind: str, path: Path, weights: Weights) -> dict[str, Tensor]:
    """The tensors of an artifact of `kind` after a look at every file's sha256."""
    if not path.exists():
        raise RankEError(f"{path} does not exist yet: run `rank-e run` or `dvc repro`")
    artifact = read_artifact(path, kind)
    artifact.verify()
    return artifact.tensors(weights)


def write_shapes(base: Path, to: Path, policy: Mapping[str, Tensor], decoder: Mapping[str, Tensor]) -> None:
    """A base folder of the embedded world with another policy and decoder, in `base`'s dtypes."""
    manifest = read_base(base)
    old, tokenizer = read_tensors(base / "policy.safetensors"), read_tensors(base / "tokenizer.safetensors")
    part = {name: tensor for name, tensor in tokenizer.items() if name.startswith(DECODER_PREFIXES)}
    new_policy = _fitted(policy, old, "the policy to export")
    new_decoder = _fitted(decoder, part, "the decoder to export")
    files = {"policy": new_policy, "tokenizer": tokenizer | new_decoder, "decoder": new_decoder}
    to.mkdir()
    for stem, tensors in files.items():
        save_tensors(tensors, to / f"{stem}.safetensors")
    for name in manifest["files"]:
        if Path(name).stem in files:
            continue
        if not (base / name).is_file():
            raise RankEError(f"backbone.base: {base / name} does not exist; check the folder out again")
        shutil.copyfile(base / name, to / name)
    # How the base was trained and what it measured is not true of these weights.
    kept = {key: value for key, value in manifest.items() if key not in ("commit", "metrics", "params")}
    save_json(kept | {"files": {path.name: sha256_of(path) for path in sorted(to.iterdir())}}, to / MANIFEST)


def _fitted(given: Mapping[str, Tensor], like: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """`given` in the order and the dtypes of `like`, which must have the same names and shapes."""
    check_shapes(given, shapes_of(like), where)
    fitted = {name: given[name].to(tensor.dtype) for name, tensor in like.items()}
    check_finite(fitted, where)  # float16 ends at 65504
    return fitted


WRITERS: dict[str, Callable[[Path, Path, Mapping[str, Tensor], Mapping[str, Tensor]], object]] = {
    LLAMAGEN: export_llamagen,
    JANUS: export_janus,
    SHAPES: write_shapes,
}


def summary(to: Path, origin: Mapping[str, Any]) -> str:
    """What lies where in an export, in lines for the terminal."""
    lines = [f"{to}: {origin['arm']}, seed {origin['seed']}, round {origin['round']}, {origin['weights']} weights"]
    for pattern, content in CONTENTS[origin["format"]].items():
        names = ", ".join(name for name in origin["files"] if fnmatch(name, pattern))
        lines.append(f"  {names}: {content}")
    return "\n".join([*lines, f"  {ORIGIN}: what they were made from"])
