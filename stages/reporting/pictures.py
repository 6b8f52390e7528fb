"""The pictures of a run: the same prompts drawn by reality, the tokenizer, the base and every arm."""

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from rank_e.config import Params
from stages.artifacts import read_artifact
from stages.runtime import artifact_path

SMALL = 96
"""Side in pixels up to which a picture is kept lossless and shown with its pixels visible."""


@dataclass(frozen=True)
class Column:
    """One maker's pictures: uint8 [K, 3, H, W], and whether the checker accepted each (None: not asked)."""

    name: str
    title: str
    note: str
    pictures: np.ndarray
    correct: Sequence[bool] | None = None


def columns(params: Params, project: Path, seed: int) -> tuple[list[str], list[Column]]:
    """The K prompts, and a column for each maker, for one run seed after the last round."""
    reference = read_artifact(project / artifact_path("reference"), "reference")
    base = read_artifact(project / artifact_path("baseline"), "evaluation")
    real = reference.arrays("pictures")
    samples = base.table("samples")
    shown = len(base.arrays("pictures")["pictures"])
    prompts = [str(prompt) for prompt in samples["prompt"][:shown]]
    found = [
        Column("real", "real", "a rendered scene", real["real"]),
        Column("reconstruction", "recon.", "the real picture through the tokenizer", real["reconstruction"]),
        Column(
            "base",
            "base",
            "before any round",
            base.arrays("pictures")["pictures"],
            list(samples["correct"][:shown]),
        ),
    ]
    for arm in params.arms:
        artifact = read_artifact(project / artifact_path("evaluation", arm, seed, params.last_round), "evaluation")
        table, tensors = artifact.table("samples"), artifact.arrays("pictures")
        found.append(
            Column(arm, arm, "its policy and its decoder", tensors["pictures"], list(table["correct"][:shown]))
        )
        if params.arm(arm).decoder.train:
            found.append(Column(arm, "its tokens, original decoder", f"the tokens of {arm}", tensors["original"]))
    return prompts, found


def data_uri(picture: np.ndarray) -> str:
    """uint8 [3, H, W] as an address that holds the picture itself: PNG when small, WebP otherwise."""
    buffer = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(picture.transpose(1, 2, 0)))
    kind = "png" if max(image.size) <= SMALL else "webp"
    if kind == "png":
        image.save(buffer, "PNG", optimize=True)
    else:
        image.save(buffer, "WEBP", quality=88)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def sheet(rows: Sequence[np.ndarray], columns_shown: int, gap: int = 2) -> Image.Image:
    """A contact sheet: of each row, uint8 [K, 3, H, W], the first `columns_shown` pictures."""
    side = rows[0].shape[-1]
    width = min(columns_shown, *(len(row) for row in rows))
    canvas = np.full((len(rows) * (side + gap) + gap, width * (side + gap) + gap, 3), 255, np.uint8)
    for line, row in enumerate(rows):
        for place, picture in enumerate(row[:width]):
            top, left = gap + line * (side + gap), gap + place * (side + gap)
            canvas[top : top + side, left : left + side] = picture.transpose(1, 2, 0)
    return Image.fromarray(canvas)


def grid(prompts: Sequence[str], makers: Sequence[Column]) -> str:
    """A table: a row for each prompt, a column for each maker, the checker's mark where it was asked."""
    heads = "".join(
        f'<th scope="col" class="c-{html.escape(maker.name)}" title="{html.escape(maker.note)}">'
        f"{html.escape(maker.title)}</th>"
        for maker in makers
    )
    rows = []
    for index, prompt in enumerate(prompts):
        cells = []
        for maker in makers:
            mark = ""
            if maker.correct is not None:
                right = bool(maker.correct[index])
                mark = f'<i class="{"yes" if right else "no"}">{"✓" if right else "✗"}</i>'
            kind = " class=pixels" if maker.pictures.shape[-1] <= SMALL else ""
            words = html.escape(f"{maker.title}: {prompt}", quote=True)
            cells.append(f'<td><img{kind} alt="{words}" src="{data_uri(maker.pictures[index])}">{mark}</td>')
        rows.append(f'<tr><th scope="row">{html.escape(prompt)}</th>{"".join(cells)}</tr>')
    return (
        '<div class="scroll"><table class="pictures"><thead><tr><th scope="col">prompt</th>'
        f"{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )
