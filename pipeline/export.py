"""Trained weights as files that other software loads: what `rank-e convert` took in, given back.

The backbone decides the layout and the dtypes. What no stage trains is the base's, bit for bit.
"""

from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from rank_e.backbones.info import backbone_info
from rank_e.config import ConfigError, Params
from rank_e.errors import RankEError
from rank_e.io.checkpoints import check_absent, check_space, write_folder
from rank_e.io.files import sha256_of
from rank_e.io.manifest import BASE_FILE, files_of, read_manifest, save_json
from stages.runtime.artifacts import MANIFEST, manifest_sha256, read_artifact
from stages.runtime.stage import artifact_path

WeightsKind = Literal["ema", "online"]


def export(params: Params, arm: str, seed: int | None, round_id: int, weights: WeightsKind, to: Path) -> dict[str, Any]:
    """Write policy and decoder of a cell over the base into the new folder `to`; its manifest.json.

    seed: None for the only one. round_id: 0 for the weights that the arm began with. weights: "ema" is what the
    evaluation measures. RankEError in one line for a cell that is unknown or not there yet, a damaged artifact, a base
    of another size and a `to` that exists; then nothing is left on disk.
    """
    check_absent(to)
    seed = check_cell(params, arm, seed, round_id)
    base, info = Path(params.backbone.base), backbone_info(params.backbone.name)
    base_manifest = read_manifest(base, info.format)
    paths = {part: artifact_path(part, arm, seed, round_id) for part in ("policy", "decoder")}
    policy, decoder = (read_weights(part, path, weights) for part, path in paths.items())
    check_space(to, sum(path.stat().st_size for path in base.glob("*.safetensors")))
    with write_folder(to) as folder:
        # The backbone makes a folder of its own; inside this one, a kill leaves nothing else behind.
        written = folder / "written"
        info.export(base, written, policy, decoder)
        for path in sorted(written.iterdir()):
            path.rename(folder / path.name)
        written.rmdir()
        manifest = {
            "format": info.format.name,
            "arm": arm,
            "seed": seed,
            "round": round_id,
            "weights": weights,
            "artifacts": {str(path): manifest_sha256(path) for path in paths.values()},
            "base": {
                "folder": str(base),
                "sha256": sha256_of(base / BASE_FILE),
                "files": base_manifest["files"],
                "origin": base_manifest["origin"],
            },
            "files": files_of(folder),
        }
        save_json(manifest, folder / MANIFEST)
    return manifest


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


def read_weights(kind: str, path: Path, weights: WeightsKind) -> dict[str, Tensor]:
    """The tensors of an artifact of `kind` after a look at every file's sha256."""
    if not path.exists():
        raise RankEError(f"{path} does not exist yet: run `rank-e run` or `dvc repro`")
    artifact = read_artifact(path, kind)
    artifact.verify()
    return artifact.tensors(weights)


def summary(to: Path, exported: Mapping[str, str], manifest: Mapping[str, Any]) -> str:
    """What lies where in an export, in lines for the terminal; exported: what files hold, by pattern of their names."""
    lines = [
        f"{to}: {manifest['arm']}, seed {manifest['seed']}, round {manifest['round']}, {manifest['weights']} weights"
    ]
    for pattern, content in exported.items():
        names = ", ".join(name for name in manifest["files"] if fnmatch(name, pattern))
        lines.append(f"  {names}: {content}")
    return "\n".join([*lines, f"  {MANIFEST}: what they were made from"])
