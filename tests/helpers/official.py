"""A project on official formats at toy size: seeded checkpoints, data, rewards and metrics, and how a test runs it."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rank_e.backbones.llamagen.policy import PolicyConfig
from rank_e.backbones.llamagen.tokenizer import TokenizerConfig
from rank_e.evaluation.hpsv2 import STYLES
from rank_e.io.torchvision_ops import import_open_clip
from rank_e.seeds import generator
from tests.helpers import tiny_janus
from tests.helpers.discriminator_files import NAME as EFFICIENTNET
from tests.helpers.discriminator_files import seeded_weights, vgg_features
from tests.helpers.geneval_nets import write_mask2former
from tests.helpers.llamagen_files import tiny_policy, tiny_tokenizer
from tests.helpers.official_params import JANUS, LLAMAGEN, ROOT, write_params
from tests.helpers.t5_files import write_t5
from tests.helpers.tars import write_tar

COPIED = ("rank_e", "stages", "pipeline", "profiles", "dvc.yaml", ".dvcignore")
POLICY = PolicyConfig(32, 2, 2, vocab_size=64, block_size=16, cls_token_num=120, caption_dim=32)
TOKENIZER = TokenizerConfig(16, 32, (1, 1, 2), 1, 32, 64, 8)  # 16 pixels, 4 x 4 tokens
CLIP: dict[str, Any] = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
COLOURS = ("red", "green", "blue", "yellow", "black", "white", "purple", "orange")
THINGS = ("cat", "dog", "bench", "clock")
LONG = "a dog and a cat " * 60
"""A caption of more than 120 tokens."""


def caption(number: int) -> str:
    return f"a photo of a {COLOURS[number % 8]} {THINGS[number // 8 % 4]}"


def image(number: int, kind: str = "jpeg", size: tuple[int, int] = (28, 24)) -> bytes:
    """Coarse coloured noise as an image file."""
    coarse = np.random.default_rng(number).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(buffer, kind)
    return buffer.getvalue()


def write_tars(folder: Path, count: int = 12, broken: int = 1, long: int = 4) -> None:
    """Two webdataset tars of jpg + txt; the last `broken` images are no images, the first `long` captions LONG."""
    folder.mkdir(parents=True)
    for number, part in enumerate((range(count // 2), range(count // 2, count))):
        members = []
        for index in part:
            text = f"{COLOURS[index % 8]} {LONG}" if index < long else caption(index)
            data = b"no image" if index >= count - broken else image(index)
            members += [(f"{index:04d}.jpg", data), (f"{index:04d}.txt", text.encode())]
        write_tar(folder / f"part-{number}.tar", members)


def write_coco(folder: Path, count: int = 14) -> None:
    """COCO 2014's layout, two captions for each image."""
    (folder / "annotations").mkdir(parents=True)
    (folder / "val2014").mkdir()
    images, notes = [], []
    for number in range(count):
        name = f"COCO_val2014_{number:012d}.jpg"
        (folder / "val2014" / name).write_bytes(image(100 + number))
        images.append({"id": number, "file_name": name})
        notes += [{"image_id": number, "id": 10 * number + k, "caption": caption(number + k)} for k in range(2)]
    content = {"images": images, "annotations": notes}
    (folder / "annotations/captions_val2014.json").write_text(json.dumps(content))


def write_folder(folder: Path, first: int, count: int = 14) -> None:
    """Image files beside captions.csv, and prompts.csv with categories."""
    (folder / "images").mkdir(parents=True)
    rows = ["file_name,caption"]
    for number in range(first, first + count):
        (folder / "images" / f"{number}.png").write_bytes(image(number, "png"))
        rows.append(f"images/{number}.png,{caption(number)}")
    (folder / "captions.csv").write_text("\n".join(rows) + "\n")
    prompts = [f'"{caption(number)}, please",{THINGS[number % 3]}' for number in range(12)]
    (folder / "prompts.csv").write_text("\n".join(["prompt,kind", *prompts]) + "\n")


def write_clip(folder: Path, name: str, seed: int, config: dict[str, Any] = CLIP) -> None:
    """NAME.json (an open_clip configuration) and NAME.safetensors: a seeded CLIP."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = import_open_clip().CLIP(**config)
    (folder / f"{name}.json").write_text(json.dumps(config))
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, folder / f"{name}.safetensors")


def write_training_weights(folder: Path) -> None:
    """Rewards (CLIP, HPSv2.1, the linear aesthetic head) and VGG16."""
    folder.mkdir(parents=True)
    write_clip(folder, "clip", seed=5)
    state = {f"module.{key}": value for key, value in load_file(folder / "clip.safetensors").items()}
    torch.save({"epoch": 1, "state_dict": state}, folder / "HPS_v2.1.pt")
    head = nn.Linear(16, 1).requires_grad_(False)
    head.bias.zero_()
    head.weight.normal_(0.0, 1.0, generator=generator(0, "aesthetic head"))
    torch.save(head.state_dict(), folder / "sa_0_4_linear.pth")


def write_vgg16(path: Path) -> None:
    """VGG16 as torchvision publishes it, without the classifier, which nothing reads: 59 MB."""
    torch.save({f"features.{name}": weight for name, weight in vgg_features().state_dict().items()}, path)


def write_projected(folder: Path) -> None:
    """A tiny DINOv3 in folder dinov3, and timm's smallest EfficientNet of this family, 18 MB."""
    import timm
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    config = DINOv3ViTConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=8, num_attention_heads=2, num_register_tokens=4
    )
    seeded_weights(DINOv3ViTModel(config), "dinov3").save_pretrained(folder / "dinov3")
    network = seeded_weights(timm.create_model(EFFICIENTNET), "efficientnet")
    torch.save(network.state_dict(), folder / f"{EFFICIENTNET}.pth")


class Inception(nn.Module):
    """NVIDIA's archive from outside: `layers` of a normalised image, here with few features."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 16, 64), nn.ReLU(), nn.AdaptiveAvgPool2d(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def write_evaluation_weights(folder: Path) -> None:
    """Evaluators: another CLIP, an Inception archive, a prompt list, GenEval's prompts and networks."""
    folder.mkdir(parents=True)
    write_clip(folder, "evaluator", seed=6)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        torch.jit.script(Inception().requires_grad_(False)).save(str(folder / "inception.pt"))
    (folder / "drawbench.csv").write_text("Prompts,Category\na red cat,Colors\ntwo dogs,Counting\na bench,Colors\n")
    tasks = [
        {"tag": "single_object", "include": [{"class": "cat", "count": 1}], "prompt": "a photo of a cat"},
        {"tag": "colors", "include": [{"class": "dog", "count": 1, "color": "red"}], "prompt": "a photo of a red dog"},
    ]
    (folder / "geneval.jsonl").write_text("".join(json.dumps(task) + "\n" for task in tasks))
    write_mask2former(folder / "mask2former")
    (folder / "hpsv2").mkdir()
    for style in STYLES:
        (folder / "hpsv2" / f"{style}.json").write_text(json.dumps([f"{style} of a cat", f"{style} of a dog"]))


MINE = """
def squares(folder, device, power):
    return lambda a, b: (a - b).abs().pow(power).mean()
"""
"""A user's own perceptual loss, beside the project."""


KILLED = """
import os, signal, sys
from stages.runtime import state
from stages.runtime.process import run_module
from stages.runtime.progress import EventLog

def log(self, step, total, metrics):
    steps.append(step)
    if len(steps) == 2:
        os.kill(os.getpid(), signal.SIGKILL)

steps, state.SAVE_SECONDS, state.SHARE, EventLog.log = [], 0.0, 0.0, log
run_module(sys.argv[1], sys.argv[2:])
"""
"""A stage that saves its state after the first step and is killed in the second."""


def write_llamagen(folder: Path) -> list[str]:
    """LlamaGen's files and a flan-T5 folder in `folder`; the arguments of `rank-e convert` for them."""
    folder.mkdir(parents=True)
    torch.save({"model": tiny_policy(POLICY)}, folder / "t2i_tiny.pt")
    torch.save({"model": tiny_tokenizer(TOKENIZER)}, folder / "vq_ds4_t2i.pt")
    text = write_t5(folder / "flan-t5")
    files = [folder / "t2i_tiny.pt", folder / "vq_ds4_t2i.pt"]
    return ["llamagen", *map(str, files), "--text", str(text), "--image-size", "16", "--heads", "2"]


def write_llamagen_project(folder: Path) -> list[str]:
    """Everything that LLAMAGEN names but the base; the arguments of `rank-e convert` that makes it."""
    write_tars(folder / "data/training")
    write_coco(folder / "data/coco")
    write_training_weights(folder / "weights/training")
    write_vgg16(folder / "weights/training/vgg16.pth")
    write_evaluation_weights(folder / "weights/evaluation")
    write_params(folder, LLAMAGEN)
    return write_llamagen(folder / "official")


def write_janus_project(folder: Path) -> list[str]:
    """Everything that JANUS names but the base; the arguments of `rank-e convert` that makes it."""
    write_folder(folder / "data/training", first=0)
    write_folder(folder / "data/held_out", first=200)
    write_training_weights(folder / "weights/training")
    write_projected(folder / "weights/training")
    write_evaluation_weights(folder / "weights/evaluation")
    (folder / "mine.py").write_text(MINE)
    write_params(folder, JANUS)
    return ["janus", str(tiny_janus.save(folder / "official/janus", shard="60KB"))]


PARAMS = {"llamagen": LLAMAGEN, "janus": JANUS}
"""What each kind of project lays over the tiny profile."""


def copy_code(folder: Path) -> None:
    """What a run needs of the project itself."""
    for name in COPIED:
        source, ignore = ROOT / name, shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, folder / name, ignore=ignore) if source.is_dir() else shutil.copy(source, folder / name)
    if (folder / "mine.py").exists():  # as dvc.yaml asks its user to
        pipeline = folder / "dvc.yaml"
        pipeline.write_text(pipeline.read_text().replace("      - rank_e\n", "      - rank_e\n      - mine.py\n", 1))


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """`python -m COMMAND` in a project's folder, with the code that lies there."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": ".", "DVC_NO_ANALYTICS": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.run([sys.executable, "-m", *command], cwd=folder, env=environment, capture_output=True, text=True)
