"""The colour of a detected object: CLIP's zero-shot choice among ten, on the object cut out of its image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from rank_e.evaluation.geneval.rules import Detection
from rank_e.evaluation.geneval.tasks import COLORS, GenEvalError
from rank_e.evaluation.networks import load_clip_evaluator
from rank_e.io.torchvision_ops import import_open_clip
from rank_e.rewards.clip import ClipModel, Tokenize

BACKGROUND = (0x99, 0x99, 0x99)  # what stands where the mask is not
TEMPLATES = ("a photo of a {color} {name}", "a photo of a {color}-colored {name}", "a photo of a {color} object")

Transform = Callable[[Image.Image], Tensor]


class ColorClassifier(Protocol):
    """Colours of detected objects of class `name` in one image uint8 [H, W, 3]: one of COLORS for each. `name`, the
    attribute, says which classifier it is, and `sha256` stands for its weights.
    """

    name: str
    sha256: str

    def __call__(self, image: NDArray[np.uint8], objects: Sequence[Detection], name: str) -> list[str]: ...


def cut_out(image: NDArray[np.uint8], item: Detection) -> Image.Image:
    """The object's box with everything outside its mask painted grey; without a mask, the box as it is.

    Raises GenEvalError for a mask of another size than the image and for a box without pixels.
    """
    pixels = image
    if item.mask is not None:
        if item.mask.shape != image.shape[:2]:
            raise GenEvalError(
                f"geneval: mask {item.mask.shape} of a {item.name} in an image {image.shape[:2]}; bring it to size"
            )
        pixels = np.where(item.mask[..., None], image, np.array(BACKGROUND, np.uint8))
    box = (round(item.box[0]), round(item.box[1]), round(item.box[2]), round(item.box[3]))
    if box[2] <= box[0] or box[3] <= box[1]:
        raise GenEvalError(f"geneval: box {item.box} of a {item.name} holds no pixel; drop it in the detector")
    return Image.fromarray(pixels).crop(box)


class ClipColors:
    """A `ColorClassifier` on an open_clip `model` in eval mode, its `tokenize` and its image `preprocess`.

    A colour's vector is the normalised mean of its normalised embeddings under three templates that name the object;
    the colour with the largest cosine wins. Vectors are kept for each object name. float32 throughout (the published
    script lets CUDA use float16 here).
    """

    def __init__(
        self, model: ClipModel, tokenize: Tokenize, preprocess: Transform, name: str, sha256: str = ""
    ) -> None:
        self.model = model
        self.tokenize = tokenize
        self.preprocess = preprocess
        self.name = name
        self.sha256 = sha256
        self._vectors: dict[str, Tensor] = {}

    @classmethod
    def from_file(cls, file: Path, device: torch.device, model: str = "ViT-L-14-quickgelu") -> ClipColors:
        """CLIP from a local file as OpenAI, open_clip or timm publish it, in float32. Raises RankEError naming the file
        or the model.
        """
        network, tokenize, sha256 = load_clip_evaluator(file, model, device)
        preprocess = import_open_clip().image_transform(network.visual.image_size, is_train=False)  # OpenAI's mean, std
        return cls(network, tokenize, preprocess, f"clip:{model}", sha256)

    @torch.no_grad()
    def vectors(self, name: str) -> Tensor:
        """Unit vectors float32 [10, D], one for each of COLORS, of objects called `name`."""
        if name not in self._vectors:
            texts = [template.format(color=color, name=name) for color in COLORS for template in TEMPLATES]
            tokens = self.tokenize(texts).to(self._device)
            embeddings = F.normalize(self.model.encode_text(tokens).float(), dim=-1)
            means = embeddings.view(len(COLORS), len(TEMPLATES), -1).mean(1)
            self._vectors[name] = F.normalize(means, dim=-1)
        return self._vectors[name]

    @torch.no_grad()
    def __call__(self, image: NDArray[np.uint8], objects: Sequence[Detection], name: str) -> list[str]:
        inputs = torch.stack([self.preprocess(cut_out(image, item)) for item in objects]).to(self._device)
        embeddings = F.normalize(self.model.encode_image(inputs).float(), dim=-1)
        cosines = embeddings @ self.vectors(name).T
        if not bool(torch.isfinite(cosines).all()):
            raise GenEvalError(f"geneval: classifier {self.name} gave values that are not finite; check its weights")
        return [COLORS[i] for i in cosines.argmax(1).tolist()]

    @property
    def _device(self) -> torch.device:
        device: torch.device = next(self.model.parameters()).device
        return device
