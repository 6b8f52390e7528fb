"""The object detector of GenEval: a Mask2Former trained on COCO instances, through transformers, from a local folder.

The network is transformers'; what stands before and after it follows GenEval's detector settings (OpenMMLab's
Mask2Former test configuration), because transformers' own post-processing first shrinks every mask to 384 x 384 and
scores differently. GenEval's numbers were published with OpenMMLab's training of Mask2Former Swin-S; a folder in
transformers' format such as `facebook/mask2former-swin-small-coco-instance` is the same network from its authors'
training, so name the detector beside the score.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional as F

from rank_e.evaluation.geneval.rules import Detection
from rank_e.evaluation.geneval.tasks import CLASS_NAMES, GenEvalError
from rank_e.io.checkpoints import check_finite, check_whole
from rank_e.io.json_text import parse_json
from rank_e.io.torchvision_ops import declare_torchvision_ops
from rank_e.io.verified import WEIGHTS

SHORT_SIDE, LONG_SIDE, DIVISOR = 800, 1333, 32
MAX_DETECTIONS = 100  # (query, class) pairs an image
_MEAN, _STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # ImageNet, of 0 to 255

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")

# What the network never reads: the last norm of a Swin used as a backbone, training's class weights, and tables that
# transformers computes by itself. Published files lack the first and have the last.
_UNREAD = re.compile(r"\.swin\.layernorm\.|^criterion\.|\.relative_position_index$")

# Names that label files give to classes which GenEval calls otherwise.
_ALIASES = {
    "mouse": "computer mouse",
    "remote": "tv remote",
    "keyboard": "computer keyboard",
    "motorbike": "motorcycle",
    "aeroplane": "airplane",
    "sofa": "couch",
    "pottedplant": "potted plant",
    "diningtable": "dining table",
    "tvmonitor": "tv",
}

Mask2Former = Any  # transformers.Mask2FormerForUniversalSegmentation, imported only to load one


class Detector(Protocol):
    """Every object of one image uint8 [H, W, 3] RGB whose score exceeds `floor`, in any order, with GenEval's class
    names. `name` says which detector it is, and `sha256` stands for its weights.
    """

    name: str
    sha256: str

    def __call__(self, image: NDArray[np.uint8], floor: float) -> list[Detection]: ...


def resized_shape(height: int, width: int, short: int = SHORT_SIDE, long: int = LONG_SIDE) -> tuple[int, int]:
    """(height, width) after the largest resize that keeps the ratio, the shorter side <= `short` and the longer
    <= `long`; rounded half up.
    """
    scale = min(short / min(height, width), long / max(height, width))
    return math.floor(height * scale + 0.5), math.floor(width * scale + 0.5)


def network_input(image: NDArray[np.uint8], short: int = SHORT_SIDE, long: int = LONG_SIDE) -> Tensor:
    """uint8 [H, W, 3] -> float32 [1, 3, H', W'], normalised, the sides padded with zeros to multiples of 32.

    Resized bilinearly without antialiasing and rounded to whole levels, as OpenCV resizes an 8-bit image.
    """
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float()
    shape = resized_shape(image.shape[0], image.shape[1], short, long)
    if shape != image.shape[:2]:
        pixels = F.interpolate(pixels, shape, mode="bilinear", align_corners=False).round().clamp(0, 255)
    pixels = (pixels - torch.tensor(_MEAN).view(3, 1, 1)) / torch.tensor(_STD).view(3, 1, 1)
    return F.pad(pixels, (0, -shape[1] % DIVISOR, 0, -shape[0] % DIVISOR))


def instances(
    class_logits: Tensor,
    mask_logits: Tensor,
    padded: tuple[int, int],
    resized: tuple[int, int],
    size: tuple[int, int],
    floor: float,
) -> list[tuple[int, float, NDArray[np.bool_]]]:
    """(class, score, mask bool [H, W]) of every instance above `floor`, from one image's outputs.

    `class_logits` [Q, C + 1] (the last is "no object") and `mask_logits` [Q, h, w]. The 100 best (query, class) pairs
    are taken; masks are enlarged to the `padded` input, cut to the `resized` image and brought to `size` (H, W); a
    score is the class's probability times the mean mask probability within the mask. A score cannot exceed the
    class's probability, so pairs at or below `floor` are dropped before their masks are enlarged.
    """
    probabilities = class_logits.float().softmax(-1)[:, :-1]
    classes = probabilities.shape[1]
    best, places = probabilities.flatten().topk(min(MAX_DETECTIONS, probabilities.numel()))
    best, places = best[best > floor], places[best > floor]
    if len(best) == 0:
        return []
    queries, rows = torch.unique(places // classes, return_inverse=True)
    logits = F.interpolate(mask_logits[queries].float()[:, None], padded, mode="bilinear", align_corners=False)
    logits = logits[..., : resized[0], : resized[1]]
    logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)[:, 0]
    masks = logits > 0
    certainty = (logits.sigmoid() * masks).flatten(1).sum(1) / (masks.flatten(1).sum(1) + 1e-6)
    scores = (best * certainty[rows]).tolist()
    kept = masks.cpu().numpy()
    found = zip((places % classes).tolist(), scores, rows.tolist(), strict=True)
    return [(label, score, kept[row]) for label, score, row in found if score > floor]


def box_of(mask: NDArray[np.bool_]) -> tuple[float, float, float, float]:
    """The box around a mask [H, W] that is not empty: right and bottom are one past the last pixel."""
    xs, ys = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    return float(xs[0]), float(ys[0]), float(xs[-1] + 1), float(ys[-1] + 1)


class Mask2FormerDetector:
    """A `Detector` on a transformers Mask2Former in eval mode, whose `labels` name its classes in GenEval's words.

    One image at a time: a detection then never depends on which images share its batch. `short` and `long` limit
    the sides of the network's input; the defaults are the published ones.
    """

    def __init__(
        self,
        model: Mask2Former,
        labels: list[str],
        name: str,
        sha256: str = "",
        short: int = SHORT_SIDE,
        long: int = LONG_SIDE,
    ) -> None:
        self.model = model
        self.labels = labels
        self.name = name
        self.sha256 = sha256
        self.short, self.long = short, long

    @classmethod
    def from_folder(cls, folder: Path, device: torch.device) -> Mask2FormerDetector:
        """Load a transformers folder (config.json with COCO's 80 class names, and weights), in float32.

        Reads local files alone. Raises GenEvalError, naming the folder, where it is missing, is no Mask2Former, has
        other classes, or its weights are cut off, hold more than tensors, or lack one or have one too many.
        """
        labels = coco_labels(folder)
        file = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
        if file is None:
            raise GenEvalError(f"{folder}: holds none of {', '.join(_WEIGHTS)}; put the detector's weights there")
        return cls(_load(file, device), labels, f"mask2former:{folder.name}", WEIGHTS.contents(file).sha256)

    @torch.inference_mode()
    def __call__(self, image: NDArray[np.uint8], floor: float) -> list[Detection]:
        height, width = image.shape[:2]
        device = next(self.model.parameters()).device
        inputs = network_input(image, self.short, self.long).to(device)
        outputs = self.model(pixel_values=inputs)
        classes, masks = outputs.class_queries_logits[0], outputs.masks_queries_logits[0]
        if not bool(torch.isfinite(classes).all() and torch.isfinite(masks).all()):
            raise GenEvalError(f"geneval: detector {self.name} gave values that are not finite; check its weights")
        padded = (inputs.shape[-2], inputs.shape[-1])
        resized = resized_shape(height, width, self.short, self.long)
        found = instances(classes, masks, padded, resized, (height, width), floor)
        return [Detection(self.labels[label], score, box_of(mask), mask) for label, score, mask in found]


def coco_labels(folder: Path) -> list[str]:
    """GenEval's names of a folder's classes, in the network's order. Raises GenEvalError if they are not COCO's 80."""
    file = folder / "config.json"
    try:
        config = parse_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise GenEvalError(
            f"{file}: not readable ({error}); give the folder of a transformers Mask2Former for COCO instances"
        ) from error
    if not isinstance(config, dict) or config.get("model_type") != "mask2former":
        raise GenEvalError(f"{file}: is not a Mask2Former; give the folder of one trained on COCO instances")
    by_id = config.get("id2label") or {}
    if set(by_id) != {str(i) for i in range(len(CLASS_NAMES))}:
        raise GenEvalError(f"{file}: id2label has {len(by_id)} classes; give a COCO instance model with its 80")
    labels = [_ALIASES.get(str(by_id[str(i)]), str(by_id[str(i)])) for i in range(len(CLASS_NAMES))]
    missing = sorted(set(CLASS_NAMES) - set(labels))
    if missing:
        raise GenEvalError(f"{file}: id2label lacks {', '.join(missing)}; give a model with COCO's class names")
    return labels


def _load(file: Path, device: torch.device) -> Mask2Former:
    declare_torchvision_ops()
    from transformers import Mask2FormerForUniversalSegmentation

    check_whole(file)
    loader: Any = Mask2FormerForUniversalSegmentation  # its types do not know output_loading_info
    try:
        # transformers renames the tensors of published files itself; a .bin is read with weights_only=True
        model, report = loader.from_pretrained(
            file.parent,
            local_files_only=True,
            use_safetensors=file.suffix == ".safetensors",
            dtype=torch.float32,
            output_loading_info=True,
        )
    except (OSError, EOFError, ValueError, RuntimeError, UnpicklingError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise GenEvalError(f"{file}: does not load as a Mask2Former ({reason}); fetch it again") from error
    for problem in ("missing", "unexpected"):
        keys = sorted(key for key in report[f"{problem}_keys"] if not _UNREAD.search(key))
        if keys:
            raise GenEvalError(f"{file}: {len(keys)} tensors are {problem}, first {keys[0]}; give a whole Mask2Former")
    check_finite({name: x for name, x in model.state_dict().items() if not _UNREAD.search(name)}, file)
    return model.to(device).eval().requires_grad_(False)
