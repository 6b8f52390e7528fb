"""The long campaigns' own judgement: what is believed, orphaned or doubled is seen and counted."""

import json
import random
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.faults import counted
from benchmarks.faults_damage import WAYS, damage
from benchmarks.faults_kills import kill, orphans, points
from benchmarks.faults_readers import judge
from benchmarks.faults_workspace import MARK, Journal, forget, names_of, objects, rot, whole_cache, write
from rank_e.errors import RankEError


def test_every_way_damages_a_little(tmp_path: Path) -> None:
    document = json.dumps({"a1": 12.5, "text": "2026", "rows": [3, 40]}).encode()
    for way, change in WAYS.items():
        for seed in range(50):
            changed = change(random.Random(seed), document)
            assert changed != document, way
            different = [a != b for a, b in zip(changed, document, strict=False)]
            if way == "flip":
                assert sum(different) == 1 and len(changed) == len(document)
            if way == "truncation":
                assert document.startswith(changed)
            if way == "edit":
                found = json.loads(changed)
                assert found.keys() == {"a1", "text", "rows"} and found["text"] == "2026"
    (tmp_path / "a.json").write_bytes(document)
    (tmp_path / "b.json").write_bytes(b"{}")
    files = [tmp_path / "a.json"]
    drawn = [damage(random.Random(seed), files, lambda file: [file.with_name("b.json")]) for seed in range(80)]
    assert {done.kind for done in drawn} == {*WAYS, "swap"} and (tmp_path / "a.json").read_bytes() == document
    assert all(done.data == b"{}" for done in drawn if done.kind == "swap")


def test_what_is_read_is_judged_by_what_was_written() -> None:
    place = Path("artifacts/x")

    def fails(words: str) -> object:
        raise RankEError(words)

    def breaks() -> object:
        raise KeyError("x")

    whole = {"metrics": {"accuracy": 0.5}, "tensors": {"w": np.arange(3)}}
    other = {"metrics": {"accuracy": 0.5}, "tensors": {"w": np.array([0, 1, 3])}}
    assert judge(lambda: whole, whole, place).outcome == "unchanged"
    assert judge(lambda: other, whole, place).outcome == "believed"
    assert judge(lambda: fails("artifacts/x/a is not what was written"), whole, place).outcome == "named"
    assert judge(lambda: fails("it is not what was written"), whole, place).outcome == "no line"
    assert judge(lambda: fails("artifacts/x\nartifacts/y"), whole, place).outcome == "no line"
    assert judge(breaks, whole, place).outcome == "no line"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    cached = tmp_path / ".dvc/cache/files/md5/5d"
    cached.mkdir(parents=True)
    (cached / "41402abc4b2a76b9719d911017c592").write_bytes(b"hello")
    out = tmp_path / "artifacts/x"
    out.mkdir(parents=True)
    (out / "a").hardlink_to(cached / "41402abc4b2a76b9719d911017c592")
    return tmp_path


def test_rot_is_in_all_names_and_no_time_tells(project: Path) -> None:
    (cached,), file = objects(project), project / "artifacts/x/a"
    assert names_of(project, cached) == [file, cached] and whole_cache(project)
    before = file.stat()
    rot(file, b"hellp")
    assert cached.read_bytes() == b"hellp" and not whole_cache(project)
    assert (file.stat().st_mtime_ns, file.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    write(file, b"hello")  # another file: the object keeps what it had
    assert cached.read_bytes() == b"hellp" and file.stat().st_mtime_ns == before.st_mtime_ns


def test_what_is_forgotten_has_to_be_made_again(project: Path) -> None:
    (project / "artifacts/y").mkdir()
    (project / "artifacts/y/a").hardlink_to(project / "artifacts/x/a")
    forget(project, ["artifacts/x"])
    assert not (project / "artifacts/x").exists() and objects(project)  # it is y's too
    forget(project, ["artifacts/y"])
    assert not objects(project)


def test_a_stopped_campaign_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    Journal(path).go_through(range(3), lambda number: {"outcome": "named", "target": "cache"})
    with path.open("a") as file:
        file.write('{"trial": 3, "outc')  # killed
    ran: list[int] = []
    journal = Journal(path)
    journal.go_through(range(5), lambda number: ran.append(number) or {"outcome": "believed", "target": "state"})
    assert ran == [3, 4] and [row["trial"] for row in Journal(path).rows] == [0, 1, 2, 3, 4]
    assert counted(journal.rows, ["target"]) == {"cache": {"named": 3}, "state": {"believed": 2}}


def test_orphans_are_those_that_carry_the_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.faults_kills.GRACE", 0.2)
    mark = str(tmp_path)
    child = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])"
    process = subprocess.Popen(
        [sys.executable, "-c", f"{child}; time.sleep(60)"], env={MARK: mark}, start_new_session=True
    )
    assert kill(process.pid, mark, "command", 9, 1.0)
    assert process.wait() == -9
    (left,) = orphans(mark)
    left.kill()
    left.wait()
    assert orphans(mark) == []


def test_points_of_current_runs_are_counted_twice_where_they_are_there_twice(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "mlflow.db") as store:
        store.execute("create table metrics (run_uuid, key, step, value)")
        store.execute("create table tags (run_uuid, key, value)")
        for run, state in (("a", "current"), ("b", "superseded")):
            store.execute("insert into tags values (?, 'rank_e.round_key', 'frozen/s0/r1')", (run,))
            store.execute("insert into tags values (?, 'rank_e.state', ?)", (run, state))
            store.execute("insert into metrics values (?, 'fd', 1, 2.5)", (run,))
        store.execute("insert into metrics values ('a', 'fd', 1, 2.5)")
    store.close()
    assert points(tmp_path) == [("frozen/s0/r1", "fd", 1, 2.5)] * 2
