"""HPSv2's benchmark prompts (Wu et al., 2023): four styles of 800; the metric is each style's mean reward, and all's.

With the style as category and the HPSv2.1 reward as score (`RewardScore`), `mean_estimates` is the benchmark. The
authors print the spread over ten tenths instead of an interval.
"""

from __future__ import annotations

from pathlib import Path

from rank_e.evaluation.base import EvaluationError
from rank_e.io.json_text import parse_json

STYLES = ("anime", "concept-art", "paintings", "photo")


def read_benchmark(folder: str | Path, limit: int | None = None) -> list[tuple[str, str]]:
    """(style, prompt) of `anime.json`, `concept-art.json`, `paintings.json` and `photo.json`: each a list of prompts.

    `limit` keeps the first so many of each style. EvaluationError names a file that is missing or of another form.
    """
    rows = []
    for style in STYLES:
        path = Path(folder) / f"{style}.json"
        if not path.is_file():
            raise EvaluationError(f"{path} does not exist; HPDv2's folder `benchmark` holds it")
        try:
            prompts = parse_json(path.read_text(encoding="utf-8"))
        except ValueError:
            raise EvaluationError(f"{path} is not JSON; get it again") from None
        if not isinstance(prompts, list) or not prompts or not all(isinstance(p, str) and p.strip() for p in prompts):
            raise EvaluationError(f"{path} is not a list of prompts; get it again")
        rows += [(style, prompt) for prompt in prompts[:limit]]
    return rows
