"""`dipa-bench study` and what shows its results, in this process."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
import signal
from pathlib import Path

import pytest
from mlflow import MlflowClient

from dipa_bench import files
from dipa_bench.execution.study_folder import claimed
from dipa_bench.tracking import records
from dipa_bench.tracking.mlflow_format import experiment_name

STORE = ("--tracking-uri", "sqlite:///mlflow.db")
IDENTITY = ("--methods", "identity", "--trials", "2", "--name", "one")


def studies(work: Path) -> Path:
    return work / "mlruns" / "studies"


def runs_in(path: Path) -> list:
    client = MlflowClient(tracking_uri=f"sqlite:///{path}")
    experiment = client.get_experiment_by_name(experiment_name("sr"))
    return list(client.search_runs([experiment.experiment_id]))


# ---------------------------------------------------------------------------- the whole way


def test_a_study_its_leaderboard_and_its_dashboard(study, call, work: Path) -> None:
    done = study("--methods", "identity,scalar,ldipa,bicubic", "--trials", "3", "--name", "all")
    assert done.code == 0
    assert "\x1b" not in done.out + done.err
    lines = done.err.splitlines()
    assert lines[0].startswith("study 'all': identity, scalar, ldipa, bicubic on cpu")
    # trials, winner, published settings, the row: of identity, scalar and ldipa; of bicubic
    assert len(lines) == 1 + (3 + 1 + 1 + 1) * 3 + (1 + 1 + 1)
    assert "best learned method" in done.out
    assert len(runs_in(work / "mlflow.db")) == 4 + (3 + 1 + 1) * 3 + (1 + 1)

    board = json.loads(call("leaderboard", "--task", "sr", "--format", "json").out)
    assert {row["method"] for row in board} == {"identity", "scalar", "ldipa", "bicubic"}
    assert all(row["state"] == "finished" and row["psnr"] for row in board)
    assert {row["method"]: row["trials"] for row in board}["identity"] == 3
    for row in board:
        record = records.read(studies(work) / "all" / row["method"])
        assert row["psnr"] == pytest.approx(record.metrics["test/psnr"])

    given = {row["method"]: row["learns_from"] for row in board}
    objective = records.read(studies(work) / "all" / "scalar").params["objective"]
    assert given.pop("scalar") == {"value": "measurements", "distance": "ground truth"}[objective]
    assert given == {"identity": "nothing", "ldipa": "teacher", "bicubic": "nothing"}

    text = call("leaderboard", "--task", "sr", "--format", "csv").out
    assert len(list(csv.DictReader(io.StringIO(text)))) == 4
    markdown = call("leaderboard", "--task", "sr", "--format", "markdown").out
    assert markdown.startswith("### ")
    asked = call("leaderboard", "--task", "sr", "--columns", "method,p_wilcoxon").out
    assert re.search(r"^scalar +0\.\d", asked, re.MULTILINE), asked
    table = call("leaderboard", "--task", "sr", "--study", "all")
    assert (table.code, table.err) == (0, "")
    assert "best learned method" in table.out
    part = call("leaderboard", "--task", "sr", "--methods", "identity,scalar", "--sort", "psnr").out
    rows = re.findall(r"^\d (\w+) +\d", part, re.MULTILINE)
    assert sorted(rows) == ["identity", "scalar"]
    assert part.splitlines()[-1] == table.out.splitlines()[-1]  # the verdict is on all rows
    to_file = call("leaderboard", "--task", "sr", "--format", "json", "--output", "board.json")
    assert to_file.out == "wrote board.json\n"
    assert json.loads((work / "board.json").read_text()) == board

    soon = call("profile", "--task", "sr")
    assert "within 0.1 dB of what identity ends with" in soon.out
    rows = json.loads(call("profile", "--task", "sr", "--format", "json").out)
    assert {row["method"]: row["runs"] for row in rows}["ldipa"] == 4  # images
    assert "unknown format 'pdf'" in call("profile", "--task", "sr", "--format", "pdf").line

    gained = {row["method"]: row["difference"] for row in board}["ldipa"]
    pair = call("compare", "ldipa", "identity", "--task", "sr", "--output", "pair.html")
    assert (pair.code, pair.err) == (0, "")
    assert f"{gained:+.2f}" in pair.out
    assert pair.out.splitlines()[-1] == "wrote pair.html: open it in a browser"
    assert (work / "pair.html").stat().st_size > 10_000
    assert (
        "unknown row 'ldpa': did you mean 'ldipa'"
        in call("compare", "ldpa", "identity", "--task", "sr").line
    )
    pivoted = call("leaderboard", "--task", "sr", "--pivot", "study", "--format", "json").out
    cells = {row["method"]: row["all"] for row in json.loads(pivoted)}
    assert cells.keys() == {"identity", "scalar", "ldipa", "bicubic"}
    assert cells["ldipa"].startswith(f"{gained:+.2f} ± ")

    page = call("dashboard", "--task", "sr")
    assert page.code == 0
    assert "wrote dashboard-sr.html" in page.out
    assert (work / "dashboard-sr.html").stat().st_size > 10_000

    again = study("--methods", "identity,scalar,ldipa,bicubic", "--trials", "3", "--name", "all")
    assert again.code == 0
    assert sum("trial" in line or "seed" in line for line in again.err.splitlines()) == 0
    assert json.loads(call("leaderboard", "--task", "sr", "--format", "json").out) == board
    sync = call("sync")
    assert "0 runs sent" in sync.out
    store = call("leaderboard", "--task", "sr", "--format", "json", *STORE)
    assert json.loads(store.out) == board


@pytest.mark.exhaustive
def test_a_hostile_name_goes_all_the_way(study, call, work: Path) -> None:
    name = "<script>alert(1)<!-- [x](y) |"
    refused = study("--methods", "identity", "--name", "<script>alert(1)</script>")
    assert "no slashes" in refused.line
    done = study("--methods", "identity,adjoint", "--trials", "1", "--name", name)
    assert done.code == 0
    assert name in done.out
    board = call("leaderboard", "--task", "sr", "--study", name, "--format", "json")
    assert {row["study"] for row in json.loads(board.out)} == {name}
    assert call("dashboard", "--task", "sr", "--study", name).code == 0
    html = (work / "dashboard-sr.html").read_text()
    assert "<script>alert(1)" not in html
    assert "alert(1)" in html
    assert call("rerun", f"{name}/identity/trial-0000").code == 0


def test_a_dry_run_leaves_nothing(study, work: Path) -> None:
    (work / "mlflow.db").unlink()
    done = study("--methods", "identity,ldipa,hessian", "--trials", "7", "--dry-run")
    assert done.code == 0
    left = {path.name for path in work.iterdir()} - {"__pycache__"}
    assert left == {"den.py"}
    rows = {line.split()[0]: line.split()[1] for line in done.out.splitlines() if line.strip()}
    assert rows["identity"] == "7"
    assert rows["ldipa"] == "7"
    assert "21 trials" in done.out
    assert "nothing was started" in done.out


def test_a_failing_row_is_on_the_leaderboard_with_its_reason(
    study, call, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import baselines.hessian
    from dipa_bench.errors import UserError

    def fail(self, gradient, state):
        raise UserError("no inverse today")

    monkeypatch.setattr(baselines.hessian.InverseHessian, "forward", fail)
    done = study("--methods", "hessian,identity", "--trials", "2")
    assert done.code == 0
    (row,) = [
        row
        for row in json.loads(call("leaderboard", "--task", "sr", "--format", "json").out)
        if row["method"] == "hessian"
    ]
    assert row["state"] == "failed"
    assert row["reason"] == "all 2 trials failed: no inverse today"
    assert "hessian: failed (all 2 trials failed: no inverse today)" in done.err
    assert "not ranked: hessian (failed): all 2 trials failed" in done.out


# ---------------------------------------------------------------------------- being stopped


def test_a_stop_that_a_library_trips_over_is_a_stop(
    study, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Optuna's file lock, interrupted half-way, complains of a missing file."""
    from dipa_bench.execution import trials

    def race(*arguments, **options):
        try:
            raise KeyboardInterrupt
        finally:
            (work / "gone").unlink()

    monkeypatch.setattr(trials, "race", race)
    monkeypatch.setattr("dipa_bench.execution.attempt.STORAGE", {errno.ENOENT})
    done = study("--methods", "identity", "--trials", "3", "--name", "one")
    assert (done.code, done.err.splitlines()[-1]) == (
        130,
        "stopped; run the same command to continue study 'one'",
    )


@pytest.mark.exhaustive(after=1)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_with_one_line_and_the_same_command_goes_on(
    number: int, study, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dipa_bench.execution import trials

    real, calls = trials.race, []

    def race(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), number)
        return real(*arguments, **options)

    monkeypatch.setattr(trials, "race", race)
    done = study("--methods", "identity", "--trials", "3", "--name", "one")
    assert done.code == 130
    last = done.err.splitlines()[-1]
    assert last == "stopped; run the same command to continue study 'one'"
    assert "Traceback" not in done.err
    folder = studies(work) / "one" / "identity"
    assert records.read(folder / "trial-0001").state == "interrupted"
    done = study("--methods", "identity", "--trials", "3", "--name", "one")
    assert done.code == 0
    states = [records.read(place).state for place in sorted(folder.glob("trial-*"))]
    assert states == ["finished", "interrupted", "finished", "finished"]


def test_ctrl_c_before_a_study_begins(call, work: Path, small, monkeypatch) -> None:
    from dipa_bench.execution import context

    def stopped(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(context, "build_task", stopped)
    done = call("study", *small)
    assert (done.code, done.err) == (130, "stopped\n")


def test_two_at_once(study, work: Path) -> None:
    with claimed(studies(work) / "one"):
        assert "is being run by another process" in study(*IDENTITY).line


# ---------------------------------------------------------------------------- disks


@pytest.mark.exhaustive(after=1)
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_refuses_ends_in_one_line_and_nothing_finished_is_lost(
    code: int, study, call, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = files.os.replace, []

    def replace(source, target):
        if Path(target).name == records.RECORD:
            calls.append(target)
            if len(calls) == 5:  # of the method, twice the first trial, the second begins
                raise OSError(code, os.strerror(code), str(target))
        real(source, target)

    monkeypatch.setattr(files.os, "replace", replace)
    done = study("--methods", "identity", "--trials", "3", "--name", "one")
    assert done.code == 2
    ours = [line for line in done.err.splitlines() if line.startswith("dipa-bench: ")]
    assert len(ours) == 1
    assert os.strerror(code) in ours[0]
    assert "run the same command again" in ours[0]
    assert "Traceback" not in done.err
    monkeypatch.setattr(files.os, "replace", real)
    folder = studies(work) / "one" / "identity"
    assert records.read(folder / "trial-0000").state == "finished"
    kept = (folder / "trial-0000" / records.RECORD).read_bytes()
    assert study("--methods", "identity", "--trials", "3", "--name", "one").code == 0
    assert (folder / "trial-0000" / records.RECORD).read_bytes() == kept
    states = [records.read(place).state for place in sorted(folder.glob("trial-*"))]
    assert states.count("finished") == 3


def test_results_that_cannot_be_written_at_all(study, work: Path) -> None:
    (work / "mlruns").write_text("in the way")
    line = study(*IDENTITY).line
    assert "mlruns" in line


def test_a_damaged_record_is_one_line(study, work: Path) -> None:
    assert study(*IDENTITY).code == 0
    path = studies(work) / "one" / "identity" / "trial-0001" / records.RECORD
    path.write_text("{")
    done = study(*IDENTITY)
    assert done.code == 2
    assert "damaged run record" in done.err.splitlines()[-1]
    assert "Traceback" not in done.err


# ---------------------------------------------------------------------------- stores that are away


def test_a_server_that_is_away_does_not_stop_a_study(study, call, work: Path) -> None:
    done = study(*IDENTITY, "--tracking-uri", "http://127.0.0.1:9")
    assert done.code == 0
    assert sum("127.0.0.1:9" in line for line in done.err.splitlines()) == 1
    assert (done.out + done.err).count("does not take or give runs") == 1
    assert "dipa-bench sync" in done.out
    assert records.read(studies(work) / "one" / "identity").state == "finished"
    away = call("leaderboard", "--task", "sr", "--tracking-uri", "http://127.0.0.1:9")
    assert "does not take or give runs" in away.line
    sent = call("sync", *STORE)
    assert (sent.code, sent.out.count("5 runs sent")) == (0, 1)
    board = call("leaderboard", "--task", "sr", "--format", "json", *STORE)
    assert [row["method"] for row in json.loads(board.out)] == ["identity"]


def test_the_environment_names_the_store(study, call, work: Path, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///elsewhere.db")
    (work / "mlflow.db").rename(work / "elsewhere.db")
    assert study(*IDENTITY).code == 0
    assert len(runs_in(work / "elsewhere.db")) == 5
    assert not (work / "mlflow.db").exists()
