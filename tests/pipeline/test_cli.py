"""The command `rank-e`: quick to start, plain about errors, and each command does what it says."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from pipeline import cli
from pipeline.tracking import beside
from rank_e.config.profiles import resolve
from tests.helpers.fake_artifacts import write_project
from tests.helpers.project import dvc

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_project(tmp_path, seeds=[0, 1], rounds=1)
    shutil.copytree(ROOT / "profiles", tmp_path / "profiles")
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_help_and_validate_import_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from pipeline.cli import main\n"
        "main(['validate'])\n"
        "print(sorted({'torch', 'prefect', 'mlflow', 'pandas', 'scipy'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["--help"])
    assert end.value.code == 0
    words = capsys.readouterr().out
    for name in ("run", "serve", "compare", "track", "report", "profile", "export", "validate"):
        assert f"\n    {name} " in words


@pytest.mark.parametrize(
    "arguments",
    [["run", "--jobs", "0"], ["run", "--retries", "-1"], ["run", "--job", "2"], ["nothing"], []],
)
def test_wrong_arguments_exit_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert end.value.code == 2
    assert "rank-e" in capsys.readouterr().err


def test_compare_prints_every_seed_and_the_number_of_seeds(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["compare"])
    words = capsys.readouterr().out
    for expected in (
        "n = 2 seeds",
        "coevolved − frozen",
        "s1",
        "FD ↓",
        "higher is better",
        "open",
    ):
        assert expected in words


def test_report_writes_the_page(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["report"])
    assert capsys.readouterr().out.strip() == "report/index.html"
    assert (project / "report" / "index.html").stat().st_size > 10_000


def test_profile_replaces_params_only_by_a_valid_one(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["profile", "tiny"])
    assert (project / "params.yaml").read_text() == resolve(project / "profiles/tiny.yaml")
    before = (project / "params.yaml").read_bytes()
    (project / "profiles" / "broken.yaml").write_text("schema: 2\nseeds: nought\n")
    for name, words in (("broken", "seeds"), ("absent", "profiles are broken, .*shapes, tiny")):
        with pytest.raises(SystemExit, match=words) as end:
            cli.main(["profile", name])
        assert str(end.value.code).startswith("rank-e: ")
        assert (project / "params.yaml").read_bytes() == before


def test_a_profile_waits_for_a_run(project: Path) -> None:
    before = (project / "params.yaml").read_bytes()
    held = "import os, sys; from pathlib import Path; from stages.runtime.locks import project_lock"
    held += "; lock = project_lock(Path(), 'rank-e run', 0.0); lock.take(); print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", held]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=project, env=environment, stdin=-1, stdout=-1) as run:
        assert run.stdout is not None and run.stdout.readline() == b"\n"
        with pytest.raises(SystemExit, match=rf"^rank-e: rank-e run \(pid {run.pid}\) works in this project"):
            cli.main(["profile", "tiny"])
        run.communicate()
    assert (project / "params.yaml").read_bytes() == before
    cli.main(["profile", "tiny"])


def test_validate_reports_every_problem_on_its_own_line(project: Path) -> None:
    yaml = YAML(typ="safe", pure=True)
    data = yaml.load((project / "params.yaml").read_text(encoding="utf-8"))
    data["prompts"]["per_round"], data["rollouts"]["group_size"] = 0, "one"
    with (project / "params.yaml").open("w", encoding="utf-8") as file:
        yaml.dump(data, file)
    with pytest.raises(SystemExit) as end:
        cli.main(["validate"])
    lines = str(end.value.code).splitlines()
    assert len(lines) >= 2 and all(line.startswith("rank-e: params.yaml") for line in lines)
    assert any("prompts.per_round" in line for line in lines)
    assert any("rollouts.group_size" in line for line in lines)


def test_outside_a_project_the_fix_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r"params\.yaml does not exist"):
        cli.main(["validate"])


def test_serve_needs_a_server(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with pytest.raises(SystemExit, match="PREFECT_API_URL is not set"):
        cli.main(["serve"])


def test_serve_names_a_wrong_schedule_and_a_server_that_is_away(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")  # the port `discard`: nobody listens
    for arguments, lines in (
        (
            ["--cron", "61 2 * * *", "--timezone", "Mars"],
            [
                "--cron '61 2 * * *' cannot be read: give minute hour day month weekday, such as \"0 3 * * *\"",
                "--timezone 'Mars' cannot be read: give such as Europe/Berlin",
            ],
        ),
        (["--timezone", "UTC"], ["--timezone UTC: of what? give --cron EXPRESSION too"]),
    ):
        with pytest.raises(SystemExit) as end:
            cli.main(["serve", *arguments])
        assert str(end.value.code).splitlines() == [f"rank-e: {line}" for line in lines]
    code = "from pipeline import cli; cli.main(['serve', '--cron', '0 2 * * *'])"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("rank-e: Prefect at http://127.0.0.1:9/api: ") and "`prefect server start`" in line


def test_a_served_run_is_what_the_command_line_says(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline import serving

    offered: dict[str, Any] = {}
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    monkeypatch.setattr(serving, "check_server", lambda: None)
    monkeypatch.setattr(cli, "do_validate", lambda _: None)
    monkeypatch.setattr(serving.co_evolution, "serve", offered.update)
    dvc(project, "init", "--no-scm", "--quiet")
    dvc(project, "remote", "add", "team", str(project / "team"), "--quiet")
    words = "--jobs 3 --retries 0 --wait 5 --keep last,every=10 --remote team --cron 0_2_*_*_*"
    cli.main(["serve", *(word.replace("_", " ") for word in words.split())])
    given = serving.co_evolution.validate_parameters(offered["parameters"])
    named = {"jobs": 3, "retries": 0, "wait": 5.0, "keep": "last,every=10", "remote": "team"}
    assert given.items() >= {"project": str(project), **named}.items()
    assert offered["global_limit"] == 1 and offered["schedule"].cron == "0 2 * * *"
    with pytest.raises(SystemExit, match=r"^rank-e: remote elsewhere: [^\n]*is kept here[^\n]*$"):
        cli.main(["serve", "--remote", "elsewhere"])


def test_a_schedule_is_in_utc_where_no_zone_is_given() -> None:
    from pipeline.serving import schedule

    assert schedule(None, None) is None
    for given, zone in ((None, "UTC"), ("Europe/Berlin", "Europe/Berlin")):
        times = schedule("0 2 * * *", given)
        assert times is not None and (times.cron, times.timezone) == ("0 2 * * *", zone)


@pytest.mark.parametrize(
    ("to", "said"),
    [
        ("", "--to names no folder; give a new one's name"),
        (
            "artifacts/x",
            "--to artifacts/x lies among the artifacts, which the report is made from; name another folder",
        ),
        ("report/../artifacts", "--to report/../artifacts lies among the artifacts, "),
    ],
)
def test_weights_are_not_written_among_the_artifacts(project: Path, to: str, said: str) -> None:
    with pytest.raises(SystemExit, match=f"^rank-e: {re.escape(said)}"):
        cli.main(["export", "--arm", "frozen", "--round", "1", "--to", to])


@pytest.mark.parametrize("text", ["x", "-1", "1.5", ""])
def test_what_is_no_number_is_named(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["export", "--arm", "frozen", f"--seed={text}", "--round", "1", "--to", "x"])
    assert f"argument --seed: {text!r} must be a whole number, 0 or more" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", [["export", "--arm", "frozen", "--round", "1"], ["claim"], ["convert", "janus", "hub"]]
)
def test_a_link_is_no_folder_to_write_to(project: Path, command: list[str]) -> None:
    (project / "out").symlink_to("gone")
    with pytest.raises(SystemExit, match=r"^rank-e: --to out is a link to gone; name the folder itself"):
        cli.main([*command, "--to", "out"])
    assert not (project / "gone").exists()


def test_a_follower_stopped_at_once_still_makes_its_last_copy(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    process = beside.start_tracker(project)
    beside.stop_tracker(project, process)
    assert process.returncode == 0
    assert (project / "mlflow.db").exists() and list((project / "mlruns").glob("*/artifacts/images.png"))


@pytest.mark.parametrize(("seconds", "patience", "said"), [(0, 9, False), (0.5, 9, True), (60, 0.3, True)])
def test_a_last_copy_that_takes_long_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], seconds: float,
    patience: float, said: bool,
) -> None:  # fmt: skip
    monkeypatch.setattr(beside, "SILENCE", 0.1 if said else 9.0)
    monkeypatch.setattr(beside, "PATIENCE", patience)
    (tmp_path / ".rank-e").mkdir()
    (tmp_path / beside.TRACKING_LOG).touch()
    copies = f"import signal, time; signal.signal(signal.SIGTERM, lambda *_: (time.sleep({seconds}), exit(0))); print()"
    command = [sys.executable, "-c", f"{copies}; time.sleep(60)"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"\n"
        problem = beside.stop_tracker(tmp_path, process)
    assert capsys.readouterr().out == ("tracking: waiting for the last copy to MLflow\n" if said else "")
    assert problem == ("the last copy to MLflow took too long; `rank-e track` copies the rest" if seconds == 60 else "")


@pytest.mark.parametrize(
    ("log", "problem"),
    [
        ("Traceback\nrank-e: not copied\n  later noise\n", "not copied"),
        ('Traceback\n  File "persistence.', "the tracker ended with 1"),
        ("", "the tracker ended with 1"),
    ],
)
def test_a_tracker_that_failed_is_told_in_its_own_words_or_none(tmp_path: Path, log: str, problem: str) -> None:
    (tmp_path / ".rank-e").mkdir()
    (tmp_path / beside.TRACKING_LOG).write_text(log)  # cut off where the disk was full
    with subprocess.Popen([sys.executable, "-c", "exit(1)"]) as process:
        process.wait()
        assert beside.stop_tracker(tmp_path, process) == problem
