"""The page's images: for each prompt everyone's beside each other, by round; marks stand below images, not on them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rank_e.config import Params
from stages.report.data import Results
from stages.report.images import SMALL, Maker, arm_makers, data_uri, real_makers, start_makers
from stages.report.tables import escape

ROWS = 16
"""Prompts that the page shows at most."""
STOPS = 8
"""Rounds whose images the page holds at most, evenly spread, besides what the arms began with."""


def stops(params: Params) -> list[int]:
    """The rounds whose images are shown: those that are evaluated, at most STOPS of them, the last one always."""
    ids, count = params.evaluated, min(STOPS, len(params.evaluated))
    return [ids[(place + 1) * len(ids) // count - 1] for place in range(count)]


def checker_of(results: Results) -> str | None:
    """The key of the score whose values are right or wrong, image by image; None where there is none."""
    return next((metric.key for metric in results.metrics if metric.group == "score" and metric.percent), None)


def drawn(maker: Maker, index: int, name: str = "", of: str = "") -> str:
    """One image, to be clicked, and below it who made it and whether the checker finds in it what the prompt says.

    name: the element's id; of: the id of the element whose image this one repeats.
    """
    kind = "pixels" if maker.images.shape[-1] <= SMALL else "smooth"
    known = f' id="{escape(name)}"' if name else ""
    source = f'data-of="{escape(of)}"' if of else f'src="{data_uri(maker.images[index])}"'
    words = escape(f"{maker.title}: {maker.prompts[index]}")
    mark = ""
    if maker.correct is not None:
        right = maker.correct[index]
        mark = f' <b class="{"better" if right else "worse"}">{"✓" if right else "✗"}</b>'
    return (
        f'<button type="button" class="zoom"><img{known} class="{kind}" alt="{words}" {source}></button>'
        f'<figcaption title="{escape(maker.note)}">{escape(maker.title)}{mark}</figcaption>'
    )


def row(prompt: str, cells: Sequence[str]) -> str:
    """A prompt's images."""
    return f'<div class="prompt"><p>{escape(prompt)}</p><div class="images">{"".join(cells)}</div></div>'


def first_row(params: Params, project: Path, results: Results) -> str:
    """Everyone's image of the first prompt for the first seed after the last round."""
    checker, seed = checker_of(results), results.seeds[0]
    real, starts = real_makers(project), start_makers(params, project, seed, checker)
    arms = arm_makers(params, project, seed, params.last_round, checker)
    shown = [*(real if real[0].prompts[:1] == arms[0].prompts[:1] else []), *starts, *arms]
    return row(arms[0].prompts[0], [f"<figure>{drawn(maker, 0)}</figure>" for maker in shown])


def galleries(params: Params, project: Path, results: Results) -> list[tuple[str, str]]:
    """(title, images) of each run seed; real images that came with captions of their own are the last.

    The arms' images are there for each round of `stops`; a slider shows those of one. Round 0 is what they began with:
    those images stand there once, and the page's script repeats them.
    """
    checker, real = checker_of(results), real_makers(project)
    found = []
    apart = False
    for seed in results.seeds:
        starts = start_makers(params, project, seed, checker)
        by_round = {item: arm_makers(params, project, seed, item, checker) for item in stops(params)}
        prompts = by_round[params.last_round][0].prompts[:ROWS]
        apart = real[0].prompts[:ROWS] != prompts
        rows = []
        for index, prompt in enumerate(prompts):
            cells = [] if apart else [f"<figure>{drawn(maker, index)}</figure>" for maker in real]
            names = [f"s{seed}-{maker.name}-{index}" for maker in starts]
            cells += [f"<figure>{drawn(m, index, name)}</figure>" for m, name in zip(starts, names, strict=True)]
            for place, last in enumerate(by_round[params.last_round]):
                begun = replace(last, correct=last.correct and starts[-1].correct)
                shown = {0: drawn(begun, index, of=names[-1])}
                shown |= {item: drawn(makers[place], index) for item, makers in by_round.items()}
                cells += [_of_round(item, image, item == params.last_round) for item, image in shown.items()]
            rows.append(row(prompt, cells))
        found.append((f"seed {seed}", "".join(rows)))
    if apart:
        own = [
            row(caption, [f"<figure>{drawn(maker, index)}</figure>" for maker in real])
            for index, caption in enumerate(real[0].prompts[:ROWS])
        ]
        found.append(("real images, with captions of their own", "".join(own)))
    return found


def _of_round(round_id: int, image: str, shown: bool) -> str:
    return f'<figure data-round="{round_id}"{"" if shown else " hidden"}>{image}</figure>'
