"""Training the embedded world's base: one network a call, then packing, and comparison with the one that is shipped.

python -m base.train text|reward|evaluator|tokenizer|decoder|policy|pack|compare|adopt
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from rank_e.backbones.llamagen.tokenizer import Tokenizer, TokenizerConfig
from rank_e.errors import RankEError
from rank_e.io.manifest import BASE_FILE, seal_manifest, write_manifest
from rank_e.shapes import FORMAT, clip
from rank_e.shapes.base import (
    CLIPS,
    BaseParams,
    load_params,
    policy_config,
    train_base_clip,
    train_base_decoder,
    train_base_policy,
    train_base_tokenizer,
)
from rank_e.shapes.measure import TOLERANCE, measure
from stages.runtime.artifact_writer import ArtifactWriter
from stages.runtime.artifacts import read_artifact
from stages.runtime.progress import EventLog, track
from stages.runtime.stage import WORK, follow_parent

ROOT = Path("base/trained")
SHIPPED = Path("assets/shapes")
TRAINED = (*CLIPS, "tokenizer", "decoder", "policy")
# file of the packed base -> what is trained; a tokenizer travels with the decoder that was trained last
PACKED = {**{name: name for name in CLIPS}, "tokenizer": "decoder", "policy": "policy"}


class Steps:
    """A training's log: a progress line with ETA, and the events file."""

    def __init__(self, name: str, total: int) -> None:
        self.events, self.total = EventLog(WORK / "events" / f"base-{name}.jsonl"), total
        self.bar = track(range(total), f"base {name}")
        next(self.bar)

    def __call__(self, step: int, metrics: dict[str, float]) -> None:
        self.events.log(step, self.total, metrics)
        next(self.bar, None)


def trained_clip(name: str) -> torch.nn.Module:
    model = clip.build(CLIPS[name])
    model.load_state_dict(read_artifact(ROOT / name, name).tensors("weights"))
    return model.eval().requires_grad_(False)


def load_tokenizer(params: BaseParams, name: str = "tokenizer") -> Tokenizer:
    tokenizer = Tokenizer(TokenizerConfig(**params.tokenizer_size.model_dump()))
    tokenizer.load_state_dict(read_artifact(ROOT / name, name).tensors("weights"))
    return tokenizer.eval()


def train(name: str, params: BaseParams) -> None:
    """Train one network and write base/trained/NAME."""
    settings = getattr(params, name)
    log = Steps(name, settings.steps)
    model: torch.nn.Module
    inputs = {}
    if name == "tokenizer":
        model = train_base_tokenizer(settings, params.tokenizer_size, log)
    elif name == "decoder":
        inputs = {"tokenizer": ROOT / "tokenizer"}
        model = train_base_decoder(settings, load_tokenizer(params), log)
    elif name == "policy":
        inputs = {"text": ROOT / "text", "tokenizer": ROOT / "tokenizer"}
        text = clip.TextEncoder(trained_clip("text"))
        model = train_base_policy(settings, params.policy_size, text, load_tokenizer(params), log)
    else:
        model = train_base_clip(name, settings, log)
    with ArtifactWriter(ROOT / name, name, seed=settings.seed, deterministic=False, inputs=inputs) as out:
        out.tensors("weights", model.state_dict())


def pack(params: BaseParams) -> None:
    """All networks in float16 with a manifest of sizes, parameters and metrics: base/trained/packed."""
    text = clip.TextEncoder(trained_clip("text"))
    tokenizer = load_tokenizer(params, "decoder")
    sizes = {
        "policy": vars(policy_config(params.policy_size, text, tokenizer)),
        "tokenizer": params.tokenizer_size.model_dump(mode="json"),
    }
    trained = {name: ROOT / name for name in PACKED.values()}
    with ArtifactWriter(ROOT / "packed", "packed", seed=0, deterministic=False, inputs=trained) as out:
        for name, source in PACKED.items():
            weights = read_artifact(ROOT / source, source).tensors("weights")
            out.tensors(name, {k: v.half() if v.is_floating_point() else v for k, v in weights.items()})
        folder = out.file(BASE_FILE).parent
        base = {"schema_version": 1, "origin": {}, "params": params.model_dump(mode="json"), **sizes}
        write_manifest(folder, FORMAT, base)  # what measures it reads the folder as any base
        write_manifest(folder, FORMAT, {**base, "metrics": measure(folder)})


def compare() -> bool:
    """Print the retrained base's metrics beside the shipped one's; True if all lie within tolerance."""
    new, old = (json.loads((folder / BASE_FILE).read_text())["metrics"] for folder in (ROOT / "packed", SHIPPED))
    table = Table(title="base: retrained beside shipped")
    for column in ("metric", "shipped", "retrained", "tolerance", "agrees"):
        table.add_column(column)
    agree = {name: abs(new[name] - old[name]) <= bound for name, bound in TOLERANCE.items()}
    for name, bound in TOLERANCE.items():
        row = (name, f"{old[name]:.4f}", f"{new[name]:.4f}", f"± {bound}", "yes" if agree[name] else "NO")
        table.add_row(*row)
    Console().print(table)
    return all(agree.values())


def adopt() -> None:
    """Make the retrained base the shipped one: assets/shapes, with the commit that trained each network."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    SHIPPED.mkdir(parents=True, exist_ok=True)
    commits = json.loads((SHIPPED / BASE_FILE).read_text())["commits"] if (SHIPPED / BASE_FILE).is_file() else {}
    for name in PACKED:
        new, old = (folder / f"{name}.safetensors" for folder in (ROOT / "packed", SHIPPED))
        if not old.is_file() or new.read_bytes() != old.read_bytes():
            shutil.copyfile(new, old)
            commits[name] = commit
    seal_manifest(SHIPPED, {**json.loads((ROOT / "packed" / BASE_FILE).read_text()), "commits": commits})


def main() -> None:
    """Entry point of the base's DVC stages and of `make base`."""
    parser = argparse.ArgumentParser(prog="python -m base.train", description=__doc__)
    parser.add_argument("what", choices=(*TRAINED, "pack", "compare", "adopt"))
    what = parser.parse_args().what
    follow_parent()
    params = load_params("base/params.yaml")
    torch.set_num_threads(params.threads)
    try:
        if what == "pack":
            pack(params)
        elif what == "compare":
            sys.exit(0 if compare() else "the retrained base disagrees with the shipped one: see the rows marked NO")
        elif what == "adopt":
            adopt()
        else:
            train(what, params)
    except RankEError as error:
        sys.exit(f"base: {error}")


if __name__ == "__main__":
    main()
