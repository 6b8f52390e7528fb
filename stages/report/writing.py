"""The report as files: a self-contained page, its figures and its numbers, written whole or not at all."""

from collections.abc import Callable, Collection
from pathlib import Path

from rank_e.config import Params
from rank_e.io.files import replacing
from stages.report.curves import pareto
from stages.report.data import load_results
from stages.report.headline import write_headline
from stages.report.images import makers_of, sheet
from stages.report.page import render
from stages.report.present import present
from stages.report.summary import json_text
from stages.runtime.artifacts import ArtifactError
from stages.runtime.stage import artifact_path


def write_report(
    params: Params, project: Path, check: Callable[[], None] = lambda: None, stale: Collection[str] = ()
) -> Path:
    """Write report/ whole or not at all: index.html, results.json, images.png; with any distance, pareto.svg.

    For DVC metrics/ and plots/.

    Of a run that is there in part it shows that part and says what is missing. check: raises, just before the report
    would appear, where it must not. stale: places of artifacts that are not up to date. ArtifactError where no arm was
    evaluated yet.
    """
    target = project / artifact_path("report")
    params, missing = present(params, project, stale)
    results = load_results(params, project, missing=missing)
    if not results.cells:
        raise ArtifactError(f"{missing[0]} is not written yet, nor is another evaluation of an arm: `rank-e run`")
    with replacing(target) as folder:
        folder.mkdir()
        (folder / "index.html").write_text(render(params, project, results), encoding="utf-8")
        (folder / "results.json").write_text(json_text(results), encoding="utf-8")
        if distance := results.first("distance"):
            (folder / "pareto.svg").write_text(pareto(results, distance), encoding="utf-8")
        makers = makers_of(params, project, results.seeds[0])
        sheet([maker.images for maker in makers], 12).save(folder / "images.png")
        write_headline(params, results, folder)
        check()
    return target / "index.html"
