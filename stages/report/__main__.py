"""Stage report: the artifacts of a whole run as one self-contained page, its figures and its numbers."""

from pathlib import Path

from stages.report.writing import write_report
from stages.runtime.stage import Stage, main


def run(stage: Stage) -> None:
    """report/, from every artifact of the run."""
    write_report(stage.params, Path(), stage.check)


if __name__ == "__main__":
    main("report", run, computes=False)
