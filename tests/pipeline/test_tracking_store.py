"""MLflow's store on disk: whole or not there, at home in its project, for one tracker at a time; what fails is said."""

import fcntl
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from mlflow import MlflowClient

from pipeline import cli
from pipeline.graph import Node, NodeGroup
from pipeline.plan import Plan
from pipeline.tracking import beside, following, local, lock
from pipeline.tracking.following import follow
from pipeline.tracking.local import make_whole
from pipeline.tracking.lock import TrackingError
from pipeline.tracking.stamp import default_uri, stamp
from pipeline.tracking.store import EXPERIMENT, Store, refusals
from pipeline.tracking.tracking import Tracker
from rank_e.config import Params
from rank_e.errors import RankEError
from tests.helpers.fake_artifacts import write_project

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store without runs: making its tables takes seconds, copying it none."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    assert make_whole(path) == [] and [file.name for file in path.parent.iterdir()] == ["mlflow.db"]
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, whole: Path) -> tuple[Path, Params]:
    """A finished run of one round that nobody has tracked."""
    folder = tmp_path_factory.mktemp("run")
    params = write_project(folder, seeds=[0], rounds=1)
    shutil.copy(whole, folder / "mlflow.db")
    return folder, params


@pytest.fixture
def project(run: tuple[Path, Params], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Params]:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Path(shutil.copytree(run[0], tmp_path / "project")), run[1]


def client(folder: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")


def count(folder: Path) -> int:
    experiment = client(folder).get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    return len(client(folder).search_runs([experiment.experiment_id]))


def cut_off(path: Path) -> None:
    """As a kill leaves it while MLflow makes the tables one after another."""
    with sqlite3.connect(path) as connection:
        connection.execute("DELETE FROM experiments")
        connection.execute("DROP TABLE webhooks")
        connection.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")
    connection.close()


def without_tables(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
    connection.close()


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (cut_off, "was not finished"),
        (without_tables, "was not finished"),
        (lambda path: path.write_bytes(b""), "was not finished"),
        (lambda path: path.write_bytes(b"not a database" * 1000), r"is damaged \(file is not a database\)"),
    ],
)
def test_what_is_no_store_is_moved_aside(
    project: tuple[Path, Params], whole: Path, monkeypatch: pytest.MonkeyPatch, damage: object, word: str
) -> None:
    folder, params = project
    monkeypatch.setattr(local, "_make", lambda path: shutil.copy(whole, path))
    damage(folder / "mlflow.db")  # type: ignore[operator]
    before = (folder / "mlflow.db").read_bytes()
    tally = Tracker(folder, params).sync()
    (said,) = tally.said
    assert said.startswith(str(folder / "mlflow.db")) and "moved to mlflow.db.unusable-1" in said
    assert re.search(word, said)
    assert (folder / "mlflow.db.unusable-1").read_bytes() == before
    assert count(folder) == 5 and str(tally).startswith(said)
    assert Tracker(folder, params).sync().said == []


def test_a_file_that_cannot_be_opened_stays_where_it_is(project: tuple[Path, Params]) -> None:
    folder, params = project
    (folder / "mlflow.db").unlink()
    (folder / "mlflow.db").mkdir()
    with pytest.raises(TrackingError, match=r"mlflow\.db: unable to open database file; correct it, or set MLFLOW"):
        Tracker(folder, params).sync()
    assert (folder / "mlflow.db").is_dir() and not list(folder.glob("mlflow.db.unusable*"))


def test_a_store_of_another_version_stays_and_the_upgrade_is_named(project: tuple[Path, Params]) -> None:
    folder, params = project
    with sqlite3.connect(folder / "mlflow.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")
    connection.close()
    with pytest.raises(
        TrackingError, match=r"out-of-date database schema .*; save a copy of it, then `mlflow db upgrade"
    ):
        Tracker(folder, params).sync()
    assert not list(folder.glob("mlflow.db.unusable*"))


def test_a_tracker_killed_while_it_makes_the_store_leaves_none(tmp_path: Path, whole: Path) -> None:
    imports = "import sys\nfrom pathlib import Path\nfrom pipeline.tracking.local import make_whole\n"
    code = imports + "make_whole(Path(sys.argv[1]))"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "m.db")], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    while not list(tmp_path.glob(".m.db.tmp-new/m.db")) and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (tmp_path / "m.db").exists()
    (tmp_path / ".m.db.tmp-new" / "m.db-journal").write_bytes(b"left")
    assert make_whole(tmp_path / "m.db") == []
    assert [path.name for path in tmp_path.iterdir()] == ["m.db"]
    MlflowClient(f"sqlite:///{tmp_path / 'm.db'}").search_experiments()


def test_a_project_that_is_moved_takes_its_images_along(project: tuple[Path, Params]) -> None:
    folder, params = project
    Tracker(folder, params).sync()
    with sqlite3.connect(folder / "mlflow.db") as connection:  # as MLflow itself writes it, in an older project
        old = (folder / "mlruns").as_uri()
        connection.execute("UPDATE experiments SET artifact_location = ? WHERE name = ?", (old, EXPERIMENT))
        connection.execute("UPDATE runs SET artifact_uri = ? || '/' || run_uuid || '/artifacts'", (old,))
    connection.close()
    moved = folder.rename(folder.with_name("moved"))
    shutil.rmtree(moved / "artifacts" / "coevolved")
    params = write_project(moved, seeds=[0], rounds=2)
    Tracker(moved, params).sync()
    assert not folder.exists()
    places = {run.info.artifact_uri for run in client(moved).search_runs(["1"])}
    assert all(place.startswith("mlruns/") for place in places)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(moved)  # where `mlflow ui` is started
        for run in client(moved).search_runs(["1"], "tags.`rank_e.kind` = 'round'"):
            names = {file.path for file in client(moved).list_artifacts(run.info.run_id)}
            assert {"images.png", "scores.csv"} <= names


def test_a_deleted_experiment_says_how_to_bring_it_back(project: tuple[Path, Params]) -> None:
    folder, params = project
    tracker = Tracker(folder, params)
    tracker.sync()
    client(folder).delete_experiment("1")
    with pytest.raises(
        TrackingError, match=r"was deleted; bring it back by `.* experiments restore --experiment-id 1`"
    ):
        Tracker(folder, params).sync()
    client(folder).restore_experiment("1")
    assert not Tracker(folder, params).sync().created


def test_one_tracker_copies_at_a_time(project: tuple[Path, Params], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, params = project
    monkeypatch.setattr(lock, "PATIENCE", 0.2)
    path = folder / ".rank-e" / "locks" / "tracker.lock"
    with lock.one_tracker(folder):
        pass
    with path.open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(TrackingError, match=rf"another tracker holds {path}: wait for it, or end it"):
            Tracker(folder, params).sync()
    assert Tracker(folder, params).sync().created


def test_a_store_that_is_locked_is_tried_again(project: tuple[Path, Params], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, params = project
    monkeypatch.setattr(local, "SECONDS", 0.1)
    monkeypatch.setattr(following, "PAUSE", 0.0)
    said: list[str] = []
    holder = sqlite3.connect(folder / "mlflow.db", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(TrackingError) as caught:
        follow(lambda: Tracker(folder, params), lambda _: True, said.append, 0.0)
    words = str(caught.value)
    assert words.startswith("not copied to MLflow: base, frozen/s0, coevolved/s0 (") and "is locked by" in words
    assert words.endswith("; `rank-e track` copies it") and len(said) == 1  # of several tries
    waits = iter([False, True])

    def stop(_: float) -> bool:
        if holder.in_transaction:
            holder.execute("ROLLBACK")
        return next(waits)

    said.clear()
    follow(lambda: Tracker(folder, params), stop, said.append, 0.0)
    assert "is locked by another process: end it" in said[0] and said[0].endswith("(trying again)")
    holder.close()
    assert count(folder) == 5


def test_a_run_whose_tracking_failed_says_so_at_its_end(
    project: tuple[Path, Params], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = project
    (folder / ".dvc").mkdir()  # a run's lock looks at DVC's
    (folder / ".dvc/config").write_text("[core]\n    no_scm = true\n")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # the port `discard`: nobody listens
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setattr(cli, "do_validate", lambda _: None)
    monkeypatch.setattr("pipeline.running.repair", lambda *_, **__: [])
    node = Node("policy", "policy", None, None, None, (), ())
    plan = Plan([NodeGroup("policy", (node,), frozenset())], [], [], [], False)
    monkeypatch.setattr("pipeline.running.make_plan", lambda *_: plan)
    ran: list[Path] = []
    monkeypatch.setattr("pipeline.serving.run", lambda project, jobs, retries, choice: ran.append(project))
    given = cli.parser().parse_args(["run"])
    with pytest.raises(RankEError) as caught:
        cli.do_run(given)
    words = str(caught.value)
    assert words.startswith("every stage is done, but not copied to MLflow: base, frozen/s0, coevolved/s0 (")
    assert "127.0.0.1:9" in words and words.endswith("`rank-e track` copies it") and len(words.splitlines()) == 1
    assert ran == [folder] and "Where to look next" in capsys.readouterr().out
    # Another error of the run is not hidden by this one.
    monkeypatch.setattr("pipeline.serving.run", lambda *_: (_ for _ in ()).throw(RankEError("these failed: policy")))
    monkeypatch.setattr(beside, "start_tracker", lambda _: subprocess.Popen(["true"]))
    monkeypatch.setattr(beside, "stop_tracker", lambda *_: "not copied to MLflow: base")
    with pytest.raises(RankEError, match="these failed: policy"):
        cli.do_run(given)
    assert "tracking: not copied to MLflow: base" in capsys.readouterr().err


def test_with_nothing_to_do_and_all_copied_neither_prefect_nor_mlflow_starts(
    project: tuple[Path, Params], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = project
    (folder / ".dvc").mkdir()
    (folder / ".dvc/config").write_text("[core]\n    no_scm = true\n")
    (folder / "dvc.lock").touch()
    monkeypatch.chdir(folder)
    stamp(folder, default_uri(folder))
    monkeypatch.setattr(cli, "do_validate", lambda _: None)
    monkeypatch.setattr("pipeline.running.make_plan", lambda *_: Plan([], [], [], [], False))
    monkeypatch.setitem(sys.modules, "pipeline.serving", None)  # whoever imports it fails
    started: list[Path] = []
    monkeypatch.setattr(beside, "start_tracker", lambda given: started.append(given) or subprocess.Popen(["true"]))
    monkeypatch.setattr(beside, "stop_tracker", lambda *_: "")
    cli.do_run(cli.parser().parse_args(["run"]))
    said = capsys.readouterr().out
    assert "nothing to do" in said and "After round 1" in said and started == []
    (folder / "dvc.lock").write_text("another")  # of a run whose end was not copied
    cli.do_run(cli.parser().parse_args(["run"]))
    assert started == [folder]


def test_a_store_elsewhere_keeps_whole_paths(
    project: tuple[Path, Params], whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = project
    monkeypatch.setattr(local, "_make", lambda path: shutil.copy(whole, path))
    other = folder / "other"
    other.mkdir()
    store = Store(f"sqlite:///{other / 'mlflow.db'}", folder)
    location = store.client.get_experiment(store.experiment).artifact_location
    assert location == (folder / "mlruns").as_uri()  # relative to where, nobody could say
    assert os.listdir(other) == ["mlflow.db"]
    # Files go where the store says: to a server by its client.
    asked: list[tuple[str, str]] = []
    monkeypatch.setattr(MlflowClient, "log_artifact", lambda _, run_id, file: asked.append((run_id, file)))
    for place in ("mlflow-artifacts:/1/a/artifacts", "s3://bucket/a", "file:///a", "/a"):
        store.log_file(SimpleNamespace(info=SimpleNamespace(run_id="a", artifact_uri=place)), folder / "params.yaml")
    assert asked == 4 * [("a", str(folder / "params.yaml"))]


@pytest.mark.parametrize("uri", ["sqlite://", "sqlite:///", "sqlite:///:memory:"])
def test_a_store_that_would_keep_nothing_is_refused(tmp_path: Path, uri: str) -> None:
    with pytest.raises(TrackingError, match="a store in memory keeps nothing; set MLFLOW_TRACKING_URI to a file's"):
        Store(uri, tmp_path)


def test_a_database_without_its_driver_is_named_without_its_password() -> None:
    with pytest.raises(TrackingError) as error, refusals("postgresql://me:secret@host/db"):
        raise ModuleNotFoundError("No module named 'psycopg2'", name="psycopg2")
    said = str(error.value)
    assert said.startswith("MLflow at postgresql: no module psycopg2; install it into ") and "secret" not in said
