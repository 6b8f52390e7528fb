"""GenEval's detector on a seeded tiny Mask2Former, against transformers, PIL and the published steps one by one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from rank_e.evaluation.geneval.detector import (
    Mask2FormerDetector,
    box_of,
    coco_labels,
    instances,
    network_input,
    resized_shape,
)
from rank_e.evaluation.geneval.tasks import CLASS_NAMES, GenEvalError
from rank_e.io.files import sha256_of
from tests.helpers.geneval_nets import COCO, CPU, image, noise, write_mask2former


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mask2former(tmp_path_factory.mktemp("models") / "mask2former-tiny")


@pytest.fixture(scope="module")
def detector(folder: Path) -> Mask2FormerDetector:
    loaded = Mask2FormerDetector.from_folder(folder, CPU)
    return Mask2FormerDetector(loaded.model, loaded.labels, loaded.name, short=96, long=160)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((256, 256), (800, 800)), ((384, 384), (800, 800)), ((1024, 1024), (800, 800)), ((480, 640), (800, 1067)),
     ((300, 900), (444, 1333)), ((800, 800), (800, 800))],
)  # fmt: skip
def test_images_are_brought_to_the_published_sides(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert resized_shape(*size) == expected


def test_network_input_is_transformers_resize_and_normalisation() -> None:
    from transformers import Mask2FormerImageProcessor

    shown = image(64, 64)
    processor = Mask2FormerImageProcessor(size={"shortest_edge": 160, "longest_edge": 320}, size_divisor=32)
    expected = processor(Image.fromarray(shown), return_tensors="pt")["pixel_values"]
    ours = network_input(shown, 160, 320)
    assert ours.shape == expected.shape == (1, 3, 160, 160)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1.01 / 255 / 0.224)  # one level of rounding


def test_network_input_pads_right_and_below_and_keeps_the_ratio() -> None:
    shown = image(48, 60)
    ours = network_input(shown, 100, 200)
    assert ours.shape == (1, 3, 128, 128) and resized_shape(48, 60, 100, 200) == (100, 125)
    assert not ours[..., 100:, :].any() and not ours[..., 125:].any()
    resized = np.asarray(Image.fromarray(shown).resize((125, 100), Image.Resampling.BILINEAR))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = ((torch.from_numpy(resized.copy()) / 255 - mean) / std).permute(2, 0, 1)
    torch.testing.assert_close(ours[0, :, :100, :125], expected, rtol=0, atol=1.01 / 255 / 0.224)


def test_instances_are_transformers_where_its_fixed_384_is_the_image() -> None:
    from transformers import Mask2FormerImageProcessor
    from transformers.models.mask2former.modeling_mask2former import Mask2FormerForUniversalSegmentationOutput

    classes, masks = 3 * noise(1, 100, 81), 4 * noise(1, 100, 12, 12, seed=1)
    outputs = Mask2FormerForUniversalSegmentationOutput(class_queries_logits=classes, masks_queries_logits=masks)
    result = Mask2FormerImageProcessor().post_process_instance_segmentation(
        outputs, threshold=0.3, return_binary_maps=True
    )[0]
    side = (384, 384)
    ours = instances(classes[0], masks[0], side, side, side, 0.3)
    expected = {(s["label_id"], s["score"]): m for s, m in zip(result["segments_info"], result["segmentation"])}  # noqa: B905
    assert len(ours) == len(expected) > 10
    for label, score, mask in ours:
        assert np.array_equal(mask, expected[label, round(score, 6)].numpy().astype(bool))


def test_instances_follow_the_published_steps_where_sizes_differ() -> None:
    classes, masks = 3 * noise(20, 81, seed=2), 4 * noise(20, 6, 8, seed=3)
    padded, resized, size = (24, 32), (20, 31), (13, 17)
    probabilities = classes.softmax(-1)
    pairs = sorted(((float(probabilities[q, c]), q, c) for q in range(20) for c in range(80)), reverse=True)[:100]
    expected = {}
    for probability, query, label in pairs:  # one mask after the other, without dropping any early
        logits = torch.nn.functional.interpolate(masks[query][None, None], padded, mode="bilinear")
        logits = logits[..., : resized[0], : resized[1]]
        logits = torch.nn.functional.interpolate(logits, size, mode="bilinear")[0, 0]
        inside = [1 / (1 + np.exp(-v)) for v in logits.flatten().tolist() if v > 0]
        score = probability * sum(inside) / (len(inside) + 1e-6)
        if score > 0.3:
            expected[label, round(score, 4)] = logits.numpy() > 0
    ours = {
        (label, round(score, 4)): mask for label, score, mask in instances(classes, masks, padded, resized, size, 0.3)
    }
    assert ours.keys() == expected.keys() and len(ours) > 5
    assert all(np.array_equal(ours[key], expected[key]) for key in ours)
    assert instances(classes, masks, padded, resized, size, 0.999999) == []


def test_the_no_object_class_is_never_found_and_an_empty_mask_is_no_object() -> None:
    classes = torch.zeros(2, 81)
    classes[0, 80] = classes[1, 7] = 50
    assert instances(classes, torch.ones(2, 4, 4), (4, 4), (4, 4), (4, 4), 0.3)[0][0] == 7
    assert instances(classes, torch.full((2, 4, 4), -1.0), (4, 4), (4, 4), (4, 4), 0.3) == []


def test_box_ends_one_past_the_last_pixel() -> None:
    mask = np.zeros((9, 12), bool)
    mask[2:5, 3] = mask[4, 7] = True
    assert box_of(mask) == (3, 2, 8, 5)


def test_the_real_detector_is_the_network_between_our_two_ends(detector: Mask2FormerDetector) -> None:
    shown = image(72, 90, seed=4)
    found = detector(shown, 0.05)
    assert found and all(item.name in CLASS_NAMES and item.score > 0.05 for item in found)
    outputs = detector.model(pixel_values=network_input(shown, 96, 160))
    direct = instances(
        outputs.class_queries_logits[0], outputs.masks_queries_logits[0], (96, 128), (96, 120), (72, 90), 0.05
    )
    assert [(CLASS_NAMES[label], score) for label, score, _ in direct] == [(item.name, item.score) for item in found]
    for item, (_, _, mask) in zip(found, direct, strict=True):
        assert item.mask is not None and item.mask.shape == (72, 90) and np.array_equal(item.mask, mask)
    again = detector(shown, 0.2)
    assert [item.score for item in again] == [item.score for item in found if item.score > 0.2]


def test_the_folder_loads_in_float32_without_gradients(folder: Path) -> None:
    loaded = Mask2FormerDetector.from_folder(folder, CPU)
    assert loaded.labels == list(CLASS_NAMES) and loaded.name == "mask2former:mask2former-tiny"
    assert loaded.sha256 == sha256_of(folder / "model.safetensors")
    assert (loaded.short, loaded.long) == (800, 1333)
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in loaded.model.parameters())
    stored = load_file(folder / "model.safetensors")
    assert torch.equal(loaded.model.class_predictor.weight, stored["class_predictor.weight"])
    assert not loaded.model.training


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_file_in_the_published_layout_loads(folder: Path, tmp_path: Path, kind: str) -> None:
    """Hub files keep transformers' first names, have index tables and lack a norm that a backbone never reads."""
    file = broken(folder, tmp_path / "hub") / "model.safetensors"
    tensors = {k: v for k, v in load_file(file).items() if not k.startswith("criterion") and ".swin." not in k}
    block = "model.pixel_level_module.encoder.encoder.layers.0.blocks.0.attention.self."
    assert f"{block}query.weight" in tensors
    tensors[f"{block}relative_position_index"] = torch.zeros(16, 16, dtype=torch.int64)
    file.unlink()
    if kind == "bin":
        torch.save(tensors, tmp_path / "hub" / "pytorch_model.bin")
    else:
        save_file(tensors, file, metadata={"format": "pt"})
    ours, other = (Mask2FormerDetector.from_folder(f, CPU).model for f in (tmp_path / "hub", folder))
    inputs = noise(1, 3, 64, 64)
    assert torch.equal(ours(pixel_values=inputs).masks_queries_logits, other(pixel_values=inputs).masks_queries_logits)


def broken(folder: Path, target: Path, **config: Any) -> Path:
    shutil.copytree(folder, target)
    values = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**values, **config}))
    return target


def test_bad_detector_folders_are_refused_by_name(folder: Path, tmp_path: Path) -> None:
    names = json.loads((folder / "config.json").read_text())["id2label"]
    kinds: list[tuple[str, dict[str, Any], str]] = [
        ("kind", {"model_type": "detr"}, "is not a Mask2Former"),
        ("few", {"id2label": {"0": "person"}}, "id2label has 1 classes"),
        ("bare", {"id2label": {i: f"LABEL_{i}" for i in names}}, "id2label lacks airplane"),
    ]
    for key, config, message in kinds:
        with pytest.raises(GenEvalError, match=f"{key}/config.json.*{message}"):
            Mask2FormerDetector.from_folder(broken(folder, tmp_path / key, **config), CPU)
    with pytest.raises(GenEvalError, match=r"none/config\.json: not readable"):
        Mask2FormerDetector.from_folder(tmp_path / "none", CPU)

    cut = broken(folder, tmp_path / "cut") / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-100])
    lacking = broken(folder, tmp_path / "lacking") / "model.safetensors"
    tensors = load_file(lacking)
    tensors.pop("class_predictor.bias")
    save_file(tensors, lacking, metadata={"format": "pt"})
    odd = broken(folder, tmp_path / "odd") / "model.safetensors"
    save_file({**load_file(odd), "surplus": torch.zeros(2)}, odd, metadata={"format": "pt"})
    reshaped = broken(folder, tmp_path / "reshaped") / "model.safetensors"
    save_file({**tensors, "class_predictor.bias": torch.zeros(5)}, reshaped, metadata={"format": "pt"})
    (broken(folder, tmp_path / "absent") / "model.safetensors").unlink()
    (broken(folder, tmp_path / "code") / "model.safetensors").unlink()
    torch.save({**tensors, "extra": Path("x")}, tmp_path / "code" / "pytorch_model.bin")
    for key, message in [
        ("cut", "does not load"),
        ("lacking", "1 tensors are missing, first class_predictor.bias"),
        ("code", "does not load"),
        ("odd", "1 tensors are unexpected, first surplus"),
        ("reshaped", "does not load"),
        ("absent", "holds none of"),
    ]:
        with pytest.raises(GenEvalError, match=f"{key}.*{message}") as raised:
            Mask2FormerDetector.from_folder(tmp_path / key, CPU)
        assert "\n" not in str(raised.value)


def test_other_label_files_names_are_known(folder: Path, tmp_path: Path) -> None:
    other = {"motorcycle": "motorbike", "airplane": "aeroplane", "couch": "sofa", "potted plant": "pottedplant",
             "dining table": "diningtable", "tv": "tvmonitor"}  # fmt: skip
    names = {str(i): other.get(name, COCO.get(name, name)) for i, name in enumerate(CLASS_NAMES)}
    assert coco_labels(broken(folder, tmp_path / "voc", id2label=names)) == list(CLASS_NAMES)
