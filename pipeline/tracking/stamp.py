"""What the tracker leaves for others to read without MLflow: where its runs are, and what was copied last."""

import contextlib
import hashlib
import json
import os
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from rank_e.io.files import replacing

EXPERIMENT = "rank-e"
PREFIX = "sqlite:///"
LINKS = Path(".rank-e") / "mlflow-runs.json"
"""Addresses of the runs in a server's pages: {"coevolved/s0/r3": "http://..."}."""
STAMP = Path(".rank-e") / "tracked.json"
"""What was whole when it was copied last: the store, how many of its runs were there, and the sha256 of dvc.lock."""
RUNS = """
select count(*) from runs join experiments using (experiment_id)
where experiments.name = ? and experiments.lifecycle_stage = 'active' and runs.lifecycle_stage = 'active'
"""


def default_uri(project: Path) -> str:
    """MLFLOW_TRACKING_URI if it is set, else the project's own sqlite store."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"{PREFIX}{(project / 'mlflow.db').resolve()}"


def server_of(uri: str) -> str | None:
    """The address of a server's pages, without the password that a uri may hold; None where it is no server's."""
    scheme, server, path, *_ = urlsplit(uri)
    return f"{scheme}://{server.rpartition('@')[2]}{path.rstrip('/')}" if scheme in ("http", "https") else None


def pages() -> str:
    """Where a project's runs are seen: a server's address, or the command that opens the store."""
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        return f"mlflow ui --backend-store-uri {PREFIX}mlflow.db"
    return server_of(uri) or 'mlflow ui --backend-store-uri "$MLFLOW_TRACKING_URI"'


def tracked(project: Path) -> bool:
    """Whether everything that DVC has recorded was copied to the store that would be copied to now, and is there.

    A server is not asked: it may be away.
    """
    uri = default_uri(project)
    try:
        known = json.loads((project / STAMP).read_text(encoding="utf-8"))
        return bool(known == _now(project, uri))
    except (FileNotFoundError, ValueError, sqlite3.Error):
        return False


def stamp(project: Path, uri: str) -> None:
    """Note that everything which DVC has recorded is copied."""
    if (project / "dvc.lock").is_file():
        _write(project / STAMP, _now(project, uri))


def write_links(project: Path, found: Mapping[str, str]) -> None:
    """Note where the runs are."""
    _write(project / LINKS, found)


def _now(project: Path, uri: str) -> dict[str, str]:
    lock = hashlib.sha256((project / "dvc.lock").read_bytes()).hexdigest()
    return {"store": uri, "runs": _runs(uri), "dvc.lock": lock}


def _runs(uri: str) -> str:
    """How many runs a sqlite store has, "" for a server's; sqlite3.Error where it is no store."""
    if not uri.startswith(PREFIX):
        return ""
    file = Path(uri.removeprefix(PREFIX)).absolute().as_uri()
    with contextlib.closing(sqlite3.connect(f"{file}?mode=ro", uri=True)) as store:
        return str(store.execute(RUNS, (EXPERIMENT,)).fetchone()[0])


def _write(path: Path, value: Mapping[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write_text(json.dumps(value, indent=1, sort_keys=True), encoding="utf-8")
