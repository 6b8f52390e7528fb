"""A project on LlamaGen's published sizes with random weights, in which `benchmarks.round` measures what a round costs.

    python -m benchmarks.published_project FOLDER [--size XL] [--device cpu] [--updates 1]
    python -m benchmarks.round --project FOLDER

Policy, tokenizer, CLIP ViT-L/14 and VGG16 have their published shapes, so that what a stage reads, hashes, writes and
hands to DVC has its real size; flan-T5 is two layers of the right width. What a round computes is as little as may be:
two prompts, two rollouts each, one update. `rank-e validate` there says what XL takes: 34 GB of memory on a CPU.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.demo import copy_project
from benchmarks.networks import PUBLISHED, llamagen_config
from rank_e.backbones.llamagen.policy import LLAMAGEN as NAMED
from rank_e.io.torchvision_ops import import_open_clip
from tests.helpers.llamagen_files import tiny_policy, tiny_tokenizer
from tests.helpers.official import (
    run,
    write_clip,
    write_coco,
    write_evaluation_weights,
    write_tars,
    write_training_weights,
    write_vgg16,
)
from tests.helpers.official_params import LLAMAGEN, write_params
from tests.helpers.t5_files import write_t5

BASE = "models/llamagen"


def changes(device: str, updates: int) -> dict[str, Any]:
    """What the sizes and the counts lay over the tests' LlamaGen project: `updates` of each kind a round."""
    kind = {"dtype": "bfloat16", "fast": True} if device == "cuda" else {"dtype": "float32", "fast": False}
    small = {"prompts": 4, "batch_size": 4, "reference_images": 4, "real_images": 4}
    return {
        "backbone": {"base": BASE},
        "runtime": {"device": device, "threads": 2, "deterministic": False, **kind},
        "sft": {"train": False},
        "prompts": {"per_round": 2 * updates},
        "rollouts": {"group_size": 2, "guidance": 6.0, "top_k": 1000, "batch_size": 4},
        "ranking": {"keep": 2, "batch_size": 4},
        "policy": {"minibatch_size": 4, "microbatch_size": 2, "checkpointing": True, "reference": "ema"},
        "decoder": {
            "steps": updates, "rollouts_per_step": 2, "reals_per_step": 2, "microbatch_size": 2,
            "discriminator": {"channels": 64},
        },
        "evaluation": {**small, "benchmarks": {}},
        "guards": dict.fromkeys(("kl", "token_drift", "gradient_norm", "clip_fraction")),
    }  # fmt: skip


def write(folder: Path, size: str, device: str, updates: int) -> None:
    """The whole project, its base converted from files in LlamaGen's own format."""
    folder.mkdir(parents=True)
    copy_project(folder)
    write_tars(folder / "data/training", long=0)
    write_coco(folder / "data/coco")
    training = folder / "weights/training"
    write_training_weights(training)
    clip = import_open_clip().get_model_config(PUBLISHED.clip)
    write_clip(training, "clip", 5, clip)
    torch.save(torch.nn.Linear(clip["embed_dim"], 1).state_dict(), training / "sa_0_4_linear.pth")
    write_vgg16(training / "vgg16.pth")
    write_evaluation_weights(folder / "weights/evaluation")
    write_params(folder, LLAMAGEN, changes(device, updates))
    official, config = folder / "official", llamagen_config(size)
    text = write_t5(official / "flan-t5", width=config.caption_dim)
    files = [official / f"t2i_{size}_stage1_256.pt", official / "vq_ds16_t2i.pt"]
    torch.save({"model": tiny_policy(config)}, files[0])
    torch.save({"model": tiny_tokenizer(PUBLISHED.tokenizer)}, files[1])
    words = ["llamagen", *map(str, files), "--text", str(text), "--image-size", "256", "--heads", str(config.n_head)]
    done = run(folder, "pipeline.cli", "convert", *words, "--to", BASE)
    if done.returncode != 0:
        sys.exit(done.stderr)
    for file in files:  # the base holds their numbers
        file.unlink()


def main() -> None:
    """Write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", default="XL", choices=NAMED)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--updates", type=int, default=1, help="policy and decoder updates a round")
    given = parser.parse_args()
    write(given.folder.resolve(), given.size, given.device, given.updates)
    subprocess.run(["du", "-sh", str(given.folder)], check=True)


if __name__ == "__main__":
    main()
