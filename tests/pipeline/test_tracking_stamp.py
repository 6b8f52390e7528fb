"""What the tracker leaves for others: whether all is copied, and where its runs are."""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow.exceptions import MlflowException

from pipeline.tracking.following import follow
from pipeline.tracking.lock import TrackingError
from pipeline.tracking.stamp import default_uri, pages, stamp, tracked
from pipeline.tracking.store import Store, refusals
from pipeline.tracking.tracking import Tracker
from rank_e.config import Params


def test_all_is_copied_until_dvc_records_more_or_the_store_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    uri = default_uri(tmp_path)
    stamp(tmp_path, uri)  # before DVC has recorded anything
    with sqlite3.connect(tmp_path / "mlflow.db") as store:
        store.execute("create table experiments (experiment_id, name, lifecycle_stage)")
        store.execute("create table runs (experiment_id, lifecycle_stage)")
    assert not tracked(tmp_path)
    (tmp_path / "dvc.lock").write_text("one")
    stamp(tmp_path, uri)
    assert tracked(tmp_path)
    (tmp_path / "dvc.lock").write_text("two")
    assert not tracked(tmp_path)
    stamp(tmp_path, uri)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere")
    assert not tracked(tmp_path)
    stamp(tmp_path, "http://elsewhere")
    assert tracked(tmp_path)  # a server is not asked
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    stamp(tmp_path, uri)
    (tmp_path / "mlflow.db").unlink()
    assert not tracked(tmp_path) and not (tmp_path / "mlflow.db").exists()


def delete_a_run(store: Path) -> None:
    with sqlite3.connect(store) as opened:
        opened.execute("update runs set lifecycle_stage = 'deleted' where name = 'r1'")


def delete_the_experiment(store: Path) -> None:
    with sqlite3.connect(store) as opened:
        opened.execute("update experiments set lifecycle_stage = 'deleted' where name = 'rank-e'")


def rename_the_experiment(store: Path) -> None:
    with sqlite3.connect(store) as opened:
        opened.execute("update experiments set name = 'renamed' where name = 'rank-e'")


def write_garbage(store: Path) -> None:
    store.write_bytes(bytes(range(256)) * 100)


@pytest.mark.parametrize("change", [delete_a_run, delete_the_experiment, rename_the_experiment, write_garbage])
def test_what_is_no_longer_in_the_store_is_not_copied(
    project: tuple[Path, Params], change: Callable[[Path], None]
) -> None:
    folder, params = project
    (folder / "dvc.lock").write_text("recorded")
    follow(lambda: Tracker(folder, params), lambda _: True, lambda _: None, 0.0)
    assert tracked(folder)
    change(folder / "mlflow.db")
    assert not tracked(folder)


def test_the_last_pass_notes_that_all_is_copied(project: tuple[Path, Params]) -> None:
    folder, params = project
    (folder / "dvc.lock").write_text("recorded")
    follow(lambda: Tracker(folder, params), lambda _: True, lambda _: None, 0.0)
    assert tracked(folder)


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        ("http://here:5000", "http://here:5000/#/experiments/3/runs/a1"),
        ("https://me:secret@here/mlflow/", "https://here/mlflow/#/experiments/3/runs/a1"),
        ("sqlite:////tmp/mlflow.db", None),
    ],
)
def test_a_run_has_an_address_where_a_server_shows_it_without_the_password(uri: str, address: str | None) -> None:
    store: Any = SimpleNamespace(uri=uri, experiment="3")
    run: Any = SimpleNamespace(info=SimpleNamespace(run_id="a1"))
    assert Store.address(store, run) == address


def test_a_full_disk_is_said_and_not_what_sqlalchemy_remarks_first() -> None:
    said = r"^MLflow at sqlite:///mlflow.db: \(sqlite3.OperationalError\) database or disk is full; free some room;"
    with pytest.raises(TrackingError, match=said), refusals("sqlite:///mlflow.db"):
        remark = "(raised as a result of Query-invoked autoflush; and more)"
        raise MlflowException(f"{remark}\n(sqlite3.OperationalError) database or disk is full\n[SQL: INSERT]")


def test_a_race_of_two_trackers_is_said() -> None:
    with (
        pytest.raises(TrackingError, match="another tracker wrote there at the same moment: copy"),
        refusals("http://x"),
    ):
        raise MlflowException("BAD_REQUEST: (sqlite3.IntegrityError) UNIQUE constraint failed: datasets.experiment_id")


def test_a_server_is_named_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    uri = "https://me:secret@here/mlflow/"
    said = r"^MLflow at https://here/mlflow: API request to https://here/mlflow/api failed; "
    with pytest.raises(TrackingError, match=said), refusals(uri):
        pool = "HTTPSConnectionPool(host='here'): Max retries exceeded (Caused by NewConnectionError())"
        raise MlflowException(
            f"API request to https://me:secret@here/mlflow/api failed with exception {pool}\nand more"
        )
    for given, said in (
        ("", "mlflow ui --backend-store-uri sqlite:///mlflow.db"),
        (uri, "https://here/mlflow"),
        ("postgresql://me:secret@here/db", 'mlflow ui --backend-store-uri "$MLFLOW_TRACKING_URI"'),
    ):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
        assert pages() == said
