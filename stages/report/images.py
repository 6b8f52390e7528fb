"""A run's images: real ones, their reconstructions, and those of the base and every arm for the same prompts."""

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from rank_e.config import Params
from stages.runtime.artifacts import Artifact, read_artifact
from stages.report.data import BASE, SFT, Results
from stages.runtime.stage import artifact_path

SMALL = 96
"""Side in pixels up to which an image is kept lossless and shown with its pixels visible."""
THUMBNAIL = 224
"""Side in pixels to which the page shrinks larger images: twice what it shows of them."""
SHEET = 128
"""Side in pixels to which a contact sheet shrinks larger images."""
ROWS = 16
"""Prompts that the page shows at most."""


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

    def opened(kind: str, arm: str = "") -> Artifact:
        return read_artifact(project / artifact_path(kind, arm, seed, params.last_round), "evaluation")

    def maker(name: str, note: str, artifact: Artifact) -> Maker:
        images, samples = artifact.arrays("images")["images"], artifact.table("samples")
        correct = None if checker is None else [bool(value) for value in samples[checker][: len(images)]]
        return Maker(name, name, note, images, prompts_of(samples, images), correct)

    found = [*real_makers(project), maker(BASE, "before any round", opened("baseline"))]
    if params.sft.train:
        found.append(maker(SFT, "the supervised start of every arm", opened("sft_evaluation")))
    for arm in params.arms:
        artifact = opened("evaluation", arm)
        found.append(maker(arm, "its policy and its decoder", artifact))
        if params.arm(arm).decoder.train:
            original, prompts = artifact.arrays("images")["original"], found[-1].prompts
            found.append(Maker(arm, "its tokens, original decoder", f"the tokens of {arm}", original, prompts))
    return found


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


def grids(params: Params, project: Path, results: Results) -> tuple[str, bool]:
    """A table of images for each run seed, and whether a checker marks them.

    Real images that came with captions of their own stand in a table of their own and not beside other prompts.
    """
    checker = next((metric.key for metric in results.metrics if metric.group == "score" and metric.percent), None)
    real = real_makers(project)
    blocks: list[str] = []
    apart = False
    for seed in results.seeds:
        makers = makers_of(params, project, seed, checker)
        prompts = makers[-1].prompts
        apart = real[0].prompts[:ROWS] != prompts[:ROWS]
        table = grid(makers[len(real) :] if apart else makers)
        blocks.append(f"<details{' open' if not blocks else ''}><summary>seed {seed}</summary>{table}</details>")
    if apart:
        words = "real images, with captions of their own"
        blocks.append(f"<details><summary>{words}</summary>{grid(real)}</details>")
    return "".join(blocks), checker is not None


def grid(makers: Sequence[Maker]) -> str:
    """A table: a row for each of the makers' common prompts, a column for each maker, the checker's mark if asked."""
    heads = "".join(
        f'<th scope="col" title="{html.escape(maker.note)}">{html.escape(maker.title)}</th>' for maker in makers
    )
    rows = []
    for index, prompt in enumerate(makers[0].prompts[:ROWS]):
        cells = []
        for maker in makers:
            mark = ""
            if maker.correct is not None:
                right = maker.correct[index]
                mark = f'<i class="{"yes" if right else "no"}">{"✓" if right else "✗"}</i>'
            kind = "pixels" if maker.images.shape[-1] <= SMALL else "large"
            words = html.escape(f"{maker.title}: {prompt}", quote=True)
            cells.append(f'<td><img class={kind} alt="{words}" src="{data_uri(maker.images[index])}">{mark}</td>')
        rows.append(f'<tr><th scope="row">{html.escape(prompt)}</th>{"".join(cells)}</tr>')
    return (
        '<div class="scroll"><table class="images"><thead><tr><th scope="col">prompt</th>'
        f"{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )
