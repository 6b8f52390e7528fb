"""A store of MLflow's in a sqlite file: whole or not there, and at home wherever its project lies.

MLflow makes the tables in the file itself, in steps that take seconds: killed meanwhile, the file is neither empty nor
a store, and MLflow refuses it for ever. So a store is made beside its place and renamed. MLflow also writes down where
artifacts lie as an absolute path, whatever it is given; in a project's own store the path is made relative here, to the
folder that `mlflow ui` is started in, so that a project that is moved takes its images along.
"""

import os
import shutil
import sqlite3
from pathlib import Path

from mlflow import MlflowClient

from pipeline.tracking.lock import TrackingError
from pipeline.tracking.stamp import PREFIX

PLACE = "mlruns"
"""Where a project's own store keeps artifacts, relative to the project."""
SECONDS = 20.0
"""How long to wait for another process that has the file locked."""


def file_of(uri: str) -> Path | None:
    """The file of a sqlite store; None for any other."""
    return Path(uri.removeprefix(PREFIX)) if uri.startswith(PREFIX) else None


def make_whole(path: Path) -> list[str]:
    """Make the store if it is not there, after moving aside what is none; a line for what was moved.

    TrackingError if another process has it locked.
    """
    said = []
    if path.exists() and (problem := _problem(path)):
        names = (path.with_name(f"{path.name}.unusable-{number}") for number in range(1, 10_000))
        aside = next(name for name in names if not name.exists())
        path.rename(aside)
        for end in ("-journal", "-wal", "-shm"):
            path.with_name(path.name + end).unlink(missing_ok=True)
        said.append(f"{path} {problem}: moved to {aside.name}, and a new one made; all artifacts are copied anew")
    if not path.exists():
        _make(path)
    return said


def _make(path: Path) -> None:
    folder = path.with_name(f".{path.name}.tmp-new")
    shutil.rmtree(folder, ignore_errors=True)  # a killed tracker's
    folder.mkdir(parents=True)
    MlflowClient(f"{PREFIX}{folder.absolute() / path.name}").search_experiments(max_results=1)  # makes the tables
    os.replace(folder / path.name, path)
    shutil.rmtree(folder)


def _problem(path: Path) -> str:
    """Why a file is no store, "" for a whole one, be it of another version of MLflow."""
    connection = sqlite3.connect(path, timeout=SECONDS)
    try:
        count = connection.execute("SELECT count(*) FROM experiments").fetchone()[0]
    except sqlite3.OperationalError as error:  # of this machine, now
        if "no such table" in str(error):
            return "was not finished"
        if "locked" not in str(error):
            raise
        raise TrackingError(f"MLflow's {path} is locked by another process: end it; copying is tried again") from None
    except sqlite3.DatabaseError as error:  # of the file
        return f"is damaged ({error})"
    finally:
        connection.close()
    return "" if count else "was not finished"  # its own experiment is the last thing that MLflow makes


def bring_home(path: Path, experiment: str) -> None:
    """Make the places of an experiment's artifacts relative, where they are absolute paths in a sqlite store."""
    connection = sqlite3.connect(path, timeout=SECONDS)
    try:
        with connection:
            connection.execute(
                "UPDATE experiments SET artifact_location = ? WHERE experiment_id = ? "
                "AND (artifact_location LIKE 'file:%' OR artifact_location LIKE '/%')",
                (PLACE, experiment),
            )
            connection.execute(
                "UPDATE runs SET artifact_uri = ? || '/' || run_uuid || '/artifacts' WHERE experiment_id = ? "
                "AND (artifact_uri LIKE 'file:%' OR artifact_uri LIKE '/%')",
                (PLACE, experiment),
            )
    finally:
        connection.close()
