"""Writes the pages that are made from the source: `python -m docs.generated`; `make docs` begins with it.

index.md: the table of the shipped claim. parameters.md: see `docs.parameter_reference`. api.md: signatures and
docstrings of what a notebook or a user's own module calls, as they stand in the source.
"""

import ast
import json
import re
from typing import Any

from docs.parameter_reference import ROOT, parameters, path_of, table, tree_of

MODULES = (
    "rank_e.backbones",
    "rank_e.backbones.protocol",
    "rank_e.sampling.sampler",
    "rank_e.sampling.scoring",
    "rank_e.sampling.distribution",
    "rank_e.objectives.grpo",
    "rank_e.objectives.rank_gan",
    "rank_e.objectives.anchors",
    "rank_e.objectives.decoder_loss",
    "rank_e.training.update",
    "rank_e.training.policy_update",
    "rank_e.training.decoder_update",
    "rank_e.training.discriminator_update",
    "rank_e.training.sft_update",
    "rank_e.rewards.base",
    "rank_e.rewards.mixture",
    "rank_e.evaluation.metric",
    "rank_e.evaluation.base",
    "rank_e.evaluation.frechet",
    "rank_e.evaluation.evaluator",
    "rank_e.data.dataset",
    "rank_e.data.file_dataset",
    "rank_e.config.loading",
    "rank_e.config.profiles",
    "rank_e.io.pixels",
    "rank_e.io.plugins",
    "rank_e.seeds",
    "rank_e.errors",
)
"""What the API page shows, in this order."""

METRICS = {
    "accuracy": ("accuracy, pp", 100.0, 1),
    "clip": ("CLIP score", 1.0, 2),
    "reward": ("reward", 1.0, 2),
    "token_kl": ("token KL", 1.0, 3),
    "fd": ("FD", 1.0, 1),
    "fd_matched": ("FD, matched", 1.0, 1),
    "fd_mid": ("mid-level FD", 1.0, 1),
    "fd_patch": ("patch FD", 1.0, 2),
}
"""What of the claim the first page shows: name, factor and decimals, by key."""
CLAIM = "<!-- claim: from docs/results/claim.json, by `python -m docs.generated` -->"

API = """# API of `rank_e`

Made from the source by `python -m docs.generated`: what a notebook, or [a module of your own](extending.md), calls.
`rank_e` knows nothing of DVC, Prefect or MLflow. Images are float32 [N, 3, H, W] in [0, 1] unless said otherwise; what
a user can mend is a `RankEError` of one line. The [tutorial](tutorial.md) uses it.
"""


def api() -> str:
    """The text of api.md."""
    lines = [API]
    for module in MODULES:
        tree, source = tree_of(module), path_of(module).read_text(encoding="utf-8").splitlines()
        shown = "\n".join(part for node in tree.body for part in _stub(node, source)).rstrip()
        lines += [f"## {module}", "", ast.get_docstring(tree) or "", "", "```python", shown, "```", ""]
    return "\n".join(lines).rstrip() + "\n"


def _stub(node: ast.stmt, source: list[str]) -> list[str]:
    """What of a public function or class whoever calls it reads: its head and docstring, fields and public methods."""
    if not isinstance(node, ast.FunctionDef | ast.ClassDef) or (node.name[0] == "_" and node.name[:2] != "__"):
        return []
    doc = node.body[0] if ast.get_docstring(node) is not None else None
    if isinstance(node, ast.FunctionDef) and doc is None:
        return []
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    end = doc.end_lineno if doc else node.body[0].lineno - 1
    lines = source[first - 1 : end]
    for part in node.body if isinstance(node, ast.ClassDef) else ():
        if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name) and part.target.id[0] != "_":
            lines += source[part.lineno - 1 : part.end_lineno]
        elif inner := _stub(part, source):
            lines += ["", *inner]
    return lines if node.col_offset else [*lines, ""]


def index() -> str:
    """The text of index.md, with the table of the shipped claim between its marks."""
    head, mark, rest = (ROOT / "docs/index.md").read_text(encoding="utf-8").partition(CLAIM)
    _, end, tail = rest.partition("<!-- end -->")
    return "\n".join([head + mark, "", *_claim(), "", end + tail])


def _claim() -> list[str]:
    """Every paired difference of the claim with its interval, bold where that leaves zero out; then the bar."""
    claim = json.loads((ROOT / "docs/results/claim.json").read_text(encoding="utf-8"))
    pairs = ("frozen-base", "coevolved-base", "coevolved-frozen")
    rows = [
        [name, *(_interval(claim["paired"][pair][key], scale, decimals) for pair in pairs)]
        for key, (name, scale, decimals) in METRICS.items()
        if all(key in claim["paired"][pair] for pair in pairs)  # with few images a matched distance is left out
    ]
    seeds = "1 seed" if len(claim["seeds"]) == 1 else f"{len(claim['seeds'])} seeds"
    head = [
        f"mean change over {seeds}, 95 % interval",
        *(pair.replace("-", " - ") for pair in pairs),
    ]
    words = {True: "met", False: "not met", None: "not measured"}
    ablations = json.loads((ROOT / "docs/results/ablations.json").read_text(encoding="utf-8"))
    answers = claim["bar"] | {"d": ablations["bar"]["d"]}  # which wants arms that the claim itself has not
    bar = ", ".join(f"({letter}) {words[met]}" for letter, met in answers.items())
    bar += f" ((d) of {len(ablations['seeds'])} seeds)"
    said = f"{claim['rounds']} rounds an arm, {claim['images']:,} images a judgement. The bar: {bar}."
    return [*table(head, iter(rows)), "", said]


def _interval(entry: dict[str, Any], scale: float, decimals: int) -> str:
    if entry["low"] is None:  # one seed has no interval
        return f"{scale * entry['mean']:+.{decimals}f}"
    mean, low, high = (f"{scale * entry[key]:+.{decimals}f}" for key in ("mean", "low", "high"))
    return f"**{mean}** [{low}, {high}]" if entry["low"] > 0 or entry["high"] < 0 else f"{mean} [{low}, {high}]"


PAGES = {"parameters.md": parameters, "api.md": api, "index.md": index}
"""The pages that are written here, by name; index.md in part."""


def text_of(name: str) -> str:
    """What the page called `name` must hold."""
    return re.sub(r"\n{3,}", "\n\n", PAGES[name]())


if __name__ == "__main__":
    for name in PAGES:
        (ROOT / "docs" / name).write_text(text_of(name), encoding="utf-8")
        print(f"docs/{name}")
