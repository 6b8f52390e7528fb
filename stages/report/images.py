"""A run's images: real ones, their reconstructions, and those of the base and every arm for the same prompts."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from rank_e.config import Params
from stages.report.data import BASE, SFT
from stages.runtime.artifacts import Artifact, read_artifact
from stages.runtime.stage import artifact_path

SMALL = 96
"""Side in pixels up to which an image is kept lossless and shown with its pixels visible."""
THUMBNAIL = 256
"""Side in pixels to which the page shrinks larger images: what it shows when one is clicked."""
SHEET = 128
"""Side in pixels to which a contact sheet shrinks larger images."""


@dataclass(frozen=True)
class Maker:
    """One maker's images, uint8 [K, 3, H, W], their prompts, and what the checker says of each (None: not asked)."""

    name: str
    title: str
    note: str
    images: np.ndarray
    prompts: list[str]
    correct: list[bool] | None = None


def makers_of(params: Params, project: Path, seed: int, checker: str | None = None) -> list[Maker]:
    """Everyone's images for one run seed after the last round; `checker`: the column of samples with its marks."""
    starts, arms = (
        start_makers(params, project, seed, checker),
        arm_makers(params, project, seed, params.last_round, checker),
    )
    return [*real_makers(project), *starts, *arms]


def start_makers(params: Params, project: Path, seed: int, checker: str | None) -> list[Maker]:
    """The base's images, and those of the supervised start where there is one."""
    path = project / artifact_path("baseline")
    found = [_maker(BASE, "before any round", read_artifact(path, "evaluation"), checker)]
    if params.sft.train:
        path = project / artifact_path("sft_evaluation", seed=seed)
        found.append(_maker(SFT, "the supervised start of every arm", read_artifact(path, "evaluation"), checker))
    return found


def arm_makers(params: Params, project: Path, seed: int, round_id: int, checker: str | None) -> list[Maker]:
    """Every arm's images after an evaluated round; with a trained decoder also its tokens by the original one."""
    found = []
    for arm in params.arms:
        artifact = read_artifact(project / artifact_path("evaluation", arm, seed, round_id), "evaluation")
        found.append(_maker(arm, "its policy and its decoder", artifact, checker))
        if params.arm(arm).decoder.train:
            original, prompts = artifact.arrays("images")["original"], found[-1].prompts
            found.append(Maker(arm, "its tokens, original decoder", f"the tokens of {arm}", original, prompts))
    return found


def _maker(name: str, note: str, artifact: Artifact, checker: str | None) -> Maker:
    images, samples = artifact.arrays("images")["images"], artifact.table("samples")
    correct = None if checker is None else [bool(value) for value in samples[checker][: len(images)]]
    return Maker(name, name, note, images, prompts_of(samples, images), correct)


def real_makers(project: Path) -> list[Maker]:
    """Real images and their reconstructions, with the captions that they came with."""
    reference = read_artifact(project / artifact_path("reference"), "reference")
    images, captions = reference.arrays("images"), reference.table("prompts")
    return [
        Maker(name, title, note, images[name], prompts_of(captions, images[name]))
        for name, title, note in (
            ("real", "real", "a real image"),
            ("reconstruction", "recon.", "the real image through the tokenizer"),
        )
    ]


def prompts_of(table: pd.DataFrame, images: np.ndarray) -> list[str]:
    """The prompts of the first rows, one for each image."""
    return [str(prompt) for prompt in table["prompt"][: len(images)]]


def shrunk(image: np.ndarray, side: int) -> Image.Image:
    """uint8 [3, H, W] as an image of Pillow's that is at most `side` wide and high."""
    pil = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
    pil.thumbnail((side, side), Image.Resampling.LANCZOS)
    return pil


def data_uri(image: np.ndarray) -> str:
    """uint8 [3, H, W] as an address that holds the image itself: PNG when small, a WebP thumbnail otherwise."""
    buffer = io.BytesIO()
    kind = "png" if max(image.shape) <= SMALL else "webp"
    if kind == "png":
        shrunk(image, SMALL).save(buffer, "PNG", optimize=True)
    else:
        shrunk(image, THUMBNAIL).save(buffer, "WEBP", quality=80)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def sheet(rows: Sequence[np.ndarray], columns_shown: int, gap: int = 2) -> Image.Image:
    """A contact sheet: of each row, uint8 [K, 3, S, S], the first `columns_shown` images, at most `SHEET` wide."""
    side = min(rows[0].shape[-1], SHEET)
    width = min(columns_shown, *(len(row) for row in rows))
    canvas = Image.new("RGB", (width * (side + gap) + gap, len(rows) * (side + gap) + gap), "white")
    for line, row in enumerate(rows):
        for place, image in enumerate(row[:width]):
            canvas.paste(shrunk(image, side), (gap + place * (side + gap), gap + line * (side + gap)))
    return canvas
