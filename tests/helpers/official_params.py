"""params.yaml for runs on official formats, at toy size: the tiny profile with other backbones, data and metrics."""

from pathlib import Path
from typing import Any

import yaml

from rank_e.config import merge
from rank_e.config.profiles import resolve
from tests.helpers.discriminator_files import NAME as EFFICIENTNET

ROOT = Path(__file__).parents[2]
COMMON: dict[str, Any] = {
    "weights": {"training": "weights/training", "evaluation": "weights/evaluation"},
    "prompts": {"per_round": 6},
    "rollouts": {"group_size": 3, "batch_size": 8, "top_k": 48},
    "ranking": {"keep": 3, "batch_size": 8},
    "policy": {"minibatch_size": 6, "microbatch_size": 4, "learning_rate": 1e-3},
    "decoder": {
        "rollouts_per_step": 4,
        "reals_per_step": 4,
        "microbatch_size": 3,
        "reward_ratio": 0.05,
        "discriminator": {"channels": 8},
    },
    "evaluation": {
        "prompts": 6,
        "batch_size": 4,
        "reference_images": 8,
        "real_images": 4,
        "bootstrap": 4,
        "images": 2,
        "matched": None,
        "diversity": None,
        "distances": {"fd_clip": {"kind": "clip_features", "file": "evaluator.safetensors", "model": "evaluator.json"}},
        "scores": {"clip": {"kind": "clip_score", "file": "evaluator.safetensors", "model": "evaluator.json"}},
    },
}
CLIP_FILE = {"file": "clip.safetensors", "model": "clip.json"}
LLAMAGEN: dict[str, Any] = {
    "backbone": {"name": "llamagen", "base": "base"},
    "data": {
        "training": {
            "kind": "webdataset",
            "folder": "data/training",
            "tars": "*.tar",
            "column": None,
            "prompts": None,
            "max_bad_share": 0.1,
            "max_image_pixels": 1_000_000,
        },
        "held_out": {
            "kind": "coco",
            "folder": "data/coco",
            "split": "val2014",
            "every_caption": False,
            "prompts": None,
            "max_bad_share": 0.0,
            "max_image_pixels": 1_000_000,
        },
    },
    "ranking": {
        "rewards": {
            "clip": {"kind": "clip", "weight": 1.0, "normalise": "none", **CLIP_FILE},
            "beauty": {
                "kind": "aesthetic",
                "weight": 0.5,
                "normalise": "running",
                "file": "sa_0_4_linear.pth",
                "clip_file": "clip.safetensors",
                "model": "clip.json",
            },
        }
    },
    "decoder": {"perceptual": {"kind": "lpips", "file": "vgg16.pth"}},
    "evaluation": {
        "distances": {"fid": {"kind": "inception", "file": "inception.pt"}},
        "benchmarks": {
            "drawbench": {
                "kind": "prompts",
                "file": "drawbench.csv",
                "column": "Prompts",
                "category": "Category",
                "prompts": 2,
                "samples_per_prompt": 2,
                "scores": {"clip": {"kind": "clip_score", "file": "evaluator.safetensors", "model": "evaluator.json"}},
            },
            "geneval": {
                "kind": "geneval",
                "prompts": "geneval.jsonl",
                "samples_per_prompt": 1,
                "detector": "mask2former",
                "clip": "evaluator.safetensors",
                "model": "evaluator.json",
            },
        },
    },
}
FOLDER = {
    "kind": "folder",
    "captions": "captions.csv",
    "column": "caption",
    "image_column": "file_name",
    "prompts": {"file": "prompts.csv", "column": "prompt", "category": "kind"},
    "max_bad_share": 0.0,
    "max_image_pixels": 1_000_000,
}
JANUS: dict[str, Any] = {
    "backbone": {"name": "janus", "base": "base"},
    "data": {"training": FOLDER | {"folder": "data/training"}, "held_out": FOLDER | {"folder": "data/held_out"}},
    "runtime": {"dtype": "bfloat16"},
    "ranking": {
        "rewards": {
            "hps": {"kind": "hpsv2", "weight": 1.0, "normalise": "none", "file": "HPS_v2.1.pt", "model": "clip.json"}
        }
    },
    "policy": {"checkpointing": True, "reference": "ema"},
    "decoder": {
        "perceptual": {"kind": "mine:squares", "power": 2.0},
        "adversarial_rule": "adaptive",
        "lambda_gan": 1.0,
        "lambda_reward": 0.1,
        "reward_ratio": None,
        "discriminator_inputs": "both",
        "discriminator": {
            "kind": "projected",
            "dinov3": "dinov3",
            "efficientnet": f"{EFFICIENTNET}.pth",
            "efficientnet_name": EFFICIENTNET,
            "image_size": 64,
            "channels": 8,
        },
    },
    "evaluation": {
        "benchmarks": {
            "hps": {
                "kind": "hpsv2",
                "prompts": "hpsv2",
                "per_style": 1,
                "file": "evaluator.safetensors",
                "model": "evaluator.json",
            }
        }
    },
}


def params_of(*changes: dict[str, Any]) -> dict[str, Any]:
    """The whole of a params.yaml: the tiny profile with COMMON and `changes` laid over it, one after another."""
    params: dict[str, Any] = yaml.safe_load(resolve(ROOT / "profiles/tiny.yaml"))
    params["ranking"]["rewards"] = {}  # what the profile names here is the embedded world's
    params["evaluation"] |= {"distances": {}, "scores": {}}
    for change in (COMMON, *changes):
        params = merge(params, change)
    return params


def write_params(folder: Path, *changes: dict[str, Any]) -> None:
    """params.yaml in `folder`."""
    (folder / "params.yaml").write_text(yaml.safe_dump(params_of(*changes), sort_keys=False))
