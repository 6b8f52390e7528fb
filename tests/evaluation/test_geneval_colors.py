"""GenEval's colour classifier on a seeded tiny CLIP, against open_clip and PIL; and the whole of GenEval."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file

from rank_e.errors import RankEError
from rank_e.evaluation.geneval.colors import TEMPLATES, ClipColors, cut_out
from rank_e.evaluation.geneval.detector import (
    Mask2FormerDetector,
    box_of,
)
from rank_e.evaluation.geneval.evaluator import GenEval
from rank_e.evaluation.geneval.rules import Detection, Thresholds
from rank_e.evaluation.geneval.scores import summarise
from rank_e.evaluation.geneval.tasks import COLORS, GenEvalError, Requirement, Task
from rank_e.io.files import sha256_of
from rank_e.io.pixels import to_bytes
from rank_e.io.torchvision_ops import import_open_clip
from tests.helpers.geneval_nets import CPU, image, write_clip, write_mask2former


@pytest.fixture(scope="module")
def clip_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def colors(clip_file: Path) -> ClipColors:
    return ClipColors.from_file(clip_file, CPU, "Tiny-quickgelu")


def found(box: tuple[float, float, float, float], mask: NDArray[np.bool_] | None) -> Detection:
    return Detection("cat", 0.9, box, mask)


def test_objects_are_cut_out_on_grey() -> None:
    shown = image(40, 50)
    mask = np.random.default_rng(1).random((40, 50)) > 0.5
    grey = Image.new("RGB", (50, 40), "#999")
    expected = Image.composite(Image.fromarray(shown), grey, Image.fromarray(mask)).crop((5, 6, 30, 22))
    assert np.array_equal(np.asarray(cut_out(shown, found((5, 6, 30, 22), mask))), np.asarray(expected))
    bare = cut_out(shown, found((5.4, 5.6, 29.9, 22.2), None))
    assert np.array_equal(np.asarray(bare), shown[6:22, 5:30])
    with pytest.raises(GenEvalError, match="bring it to size"):
        cut_out(shown, found((5, 6, 30, 22), mask[:-1]))
    with pytest.raises(GenEvalError, match="holds no pixel"):
        cut_out(shown, found((5, 6, 5.2, 22), mask))


def test_colour_vectors_are_open_clips_zero_shot_classifier(colors: ClipColors) -> None:
    assert TEMPLATES == (
        "a photo of a {color} {name}",
        "a photo of a {color}-colored {name}",
        "a photo of a {color} object",
    )
    open_clip = import_open_clip()
    templates = ["a photo of a {} wine glass", "a photo of a {}-colored wine glass", "a photo of a {} object"]
    expected = open_clip.build_zero_shot_classifier(
        colors.model, open_clip.get_tokenizer("ViT-L-14"), COLORS, templates
    )
    torch.testing.assert_close(colors.vectors("wine glass"), expected.T, rtol=0, atol=1e-5)
    assert not torch.allclose(colors.vectors("wine glass"), colors.vectors("cow"), atol=1e-3)


def test_colours_are_the_nearest_by_open_clips_own_preprocessing(colors: ClipColors) -> None:
    open_clip = import_open_clip()
    transform = open_clip.create_model_and_transforms("Tiny-quickgelu")[2]
    shown, mask = image(96, 96, seed=5), np.random.default_rng(2).random((96, 96)) > 0.3
    boxes = [(4 * i, 0, 4 * i + 30 + i, 60.0) for i in range(12)]
    objects = [found(box, mask if i % 2 else None) for i, box in enumerate(boxes)]
    answers = colors(shown, objects, "cat")
    inputs = torch.stack([transform(cut_out(shown, item)) for item in objects])
    cosines = colors.model.encode_image(inputs, normalize=True) @ colors.vectors("cat").T
    assert answers == [COLORS[i] for i in cosines.argmax(1)]
    alone = [colors(shown, [item], "cat")[0] for item in objects]
    assert alone == answers


def test_each_colour_can_win(colors: ClipColors) -> None:
    """With images' embeddings set to the colours' own vectors, the answer is that colour."""

    class Echo(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.anchor = torch.nn.Parameter(torch.zeros(1))

        def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
            return 3 * torch.nn.functional.one_hot(tokens[:, 0], 10).float()

        def encode_image(self, inputs: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.one_hot(inputs[:, 0, 0, 0].long(), 10).float()

    def tokenize(texts: list[str]) -> torch.Tensor:
        spoken = [next(c for c in COLORS if f" {c} " in t or f" {c}-" in t) for t in texts]
        return torch.tensor([[COLORS.index(c)] for c in spoken])

    echo = ClipColors(
        Echo(), tokenize, lambda image: torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1), "echo"
    )
    shown = np.repeat(np.arange(10, dtype=np.uint8), 4)[None, :, None].repeat(4, 0).repeat(3, 2)
    boxes = [found((4.0 * i, 0, 4.0 * i + 4, 4), None) for i in range(10)]
    assert echo(shown, boxes, "cup") == list(COLORS)


def test_bad_clip_files_are_refused_by_name(clip_file: Path, tmp_path: Path) -> None:
    for unknown in ("ViT-L-15", "coca_ViT-B-32"):
        with pytest.raises(RankEError, match=unknown):
            ClipColors.from_file(clip_file, CPU, unknown)
    with pytest.raises(RankEError, match=r"none\.pt does not exist"):
        ClipColors.from_file(tmp_path / "none.pt", CPU, "Tiny-quickgelu")
    tensors = load_file(clip_file)
    (tmp_path / "cut.safetensors").write_bytes(clip_file.read_bytes()[:-100])
    torch.save(["not", "weights"], tmp_path / "list.pt")
    torch.save({"state_dict": tensors, "extra": Path("x")}, tmp_path / "pickle.pt")
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "empty.pt").write_bytes(b"")
    torch.save({}, tmp_path / "nothing.pt")
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "archive.pt")
    save_file({k: v for k, v in tensors.items() if k != "ln_final.bias"}, tmp_path / "lacking.safetensors")
    save_file({**tensors, "visual.positional_embedding": torch.zeros(26, 16)}, tmp_path / "larger.safetensors")
    for file in sorted(tmp_path.iterdir()):
        with pytest.raises(RankEError, match=re.escape(file.name)) as raised:
            ClipColors.from_file(file, CPU, "Tiny-quickgelu")
        assert "\n" not in str(raised.value)
    torch.save({"state_dict": {f"module.{k}": v for k, v in tensors.items()}}, tmp_path / "fine.pt")
    ours = ClipColors.from_file(tmp_path / "fine.pt", CPU, "Tiny-quickgelu")
    assert ours.sha256 == sha256_of(tmp_path / "fine.pt")
    assert ours.name == "clip:Tiny-quickgelu" and ours.model.text_projection.dtype == torch.float32


class Painted:
    """Sees a filled square of each pure colour as an object, for the test of GenEval itself."""

    name, sha256 = "painted", "p"

    def __call__(self, image: NDArray[np.uint8], floor: float) -> list[Detection]:
        kinds = {(255, 0, 0): "apple", (0, 255, 0): "cow"}
        masks = {name: (image == np.array(rgb)).all(-1) for rgb, name in kinds.items()}
        return [Detection(name, 0.95, box_of(mask), mask) for name, mask in masks.items() if mask.any()]


class Named:
    name, sha256 = "named", "n"

    def __call__(self, image: NDArray[np.uint8], objects: Sequence[Detection], name: str) -> list[str]:
        return [{"apple": "red", "cow": "green"}[name]] * len(objects)


def test_geneval_takes_images_to_scores() -> None:
    apple, cow = Requirement("apple", 1, "red"), Requirement("cow", 1, None, "below", 0)
    tasks = [Task(0, "position", "a cow below an apple", (apple, cow)), Task(1, "colors", "a red apple", (apple,))]
    drawn = torch.zeros(3, 40, 40)
    drawn[0, 4:12, 16:24] = 1
    upside = drawn.clone()
    drawn[1, 28:36, 16:24] = 1
    upside[1, 0:3, 16:24] = 1
    shown = {(0, 0): drawn, (0, 1): upside, (1, 0): drawn, (1, 1): torch.zeros(3, 40, 40)}
    geneval = GenEval(Painted(), Named())
    items = [(tasks[index], sample) for index, sample in shown]
    results = geneval(torch.stack([shown[0, 0]]), items[:1])  # in any batches
    results += geneval(torch.stack([shown[task.index, sample] for task, sample in items[1:]]), items[1:])
    assert [(r.index, r.sample, r.correct) for r in results] == [
        (0, 0, True),
        (0, 1, False),
        (1, 0, True),
        (1, 1, False),
    ]
    assert results[1].reason == "expected cow below target, found above"
    assert json.loads(results[0].objects)["apple"] == [[16, 4, 24, 12, 0.95]]
    assert summarise(tasks, results, seed=0, samples=2).tasks == {"position": 0.5, "colors": 0.5}
    assert geneval.sha256 == "p n"
    assert geneval.protocol == (
        "GenEval; detector painted; colours named; confidence 0.3, counting 0.9, max_objects 16, max_overlap 1, "
        "position 0.1"
    )
    with pytest.raises(GenEvalError, match="1 images for 0 prompts"):
        geneval(drawn[None], [])
    assert geneval([to_bytes(drawn)], [(tasks[0], 0)]) == results[:1]
    for bad, message in [(drawn[:2], "give uint8"), (drawn / 0, "NaN or infinity"), (drawn.long(), "give float")]:
        with pytest.raises(RankEError, match=message):
            geneval([bad], [(tasks[0], 0)])


def test_the_real_path_end_to_end(tmp_path: Path, colors: ClipColors) -> None:
    """Tiny networks, real code: results depend on each image alone, and the lowest threshold reaches the detector."""
    loaded = Mask2FormerDetector.from_folder(write_mask2former(tmp_path / "mask2former-tiny"), CPU)
    detector = Mask2FormerDetector(loaded.model, loaded.labels, loaded.name, short=96, long=160)
    geneval = GenEval(detector, colors, Thresholds(confidence=0.02, counting=0.05))
    shown = torch.stack([torch.from_numpy(image(64, 64, seed=i)).permute(2, 0, 1) / 255 for i in range(2)])
    seen = detector(to_bytes(shown[0]).permute(1, 2, 0).numpy(), 0.02)
    names = [item.name for item in seen]
    assert min(item.score for item in seen) < 0.3 and max(map(names.count, names)) <= 16
    task = Task(0, "colors", "one", (Requirement(names[0], 1, "red"),))
    together = geneval(shown, [(task, 0), (task, 1)])
    assert together == [geneval(shown[i : i + 1], [(task, i)])[0] for i in range(2)]
    listed = json.loads(together[0].objects)
    assert sorted(row[4] for rows in listed.values() for row in rows) == sorted(item.score for item in seen)
    assert together[0].correct or "red" in together[0].reason


def test_the_default_colour_model_has_openais_shapes() -> None:
    """ViT-L/14: QuickGELU, 427,616,513 parameters as OpenAI's file has, on the meta device."""
    open_clip = import_open_clip()
    with torch.device("meta"):
        model = open_clip.CLIP(**open_clip.get_model_config("ViT-L-14-quickgelu"))
    assert sum(p.numel() for p in model.parameters()) == 427_616_513
    assert any(isinstance(m, open_clip.transformer.QuickGELU) for m in model.modules())
    assert model.visual.image_size == (224, 224) or model.visual.image_size == 224
