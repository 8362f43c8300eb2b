"""How long a study still takes: counted by hand, and shown on a terminal."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import pytest

from dipa_bench.cli.time_left import TimeLeft
from dipa_bench.execution.work import Work
from dipa_bench.tracking.records import RunRecord

WORK = {
    "identity": Work(setting=15, final=100, settings=10, finals=2),  # 150 + 200
    "ldipa": Work(setting=15, fit=400, final=1000, settings=10, fits=2, finals=1),  # 950 + 1000
}


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Screen(io.StringIO):
    """A terminal that keeps what is drawn."""

    def isatty(self) -> bool:
        return True


def run(method: str, kind: str = "trial", stage: str = "settings", **values: object) -> RunRecord:
    return RunRecord(kind=kind, study="s", task="sr", method=method, stage=stage, **values)


def test_the_pace_so_far_says_how_long() -> None:
    clock = Clock()
    left = TimeLeft(WORK, 2, clock)
    assert left.seconds is None and str(left) == ""
    left.begins("identity", 0)
    for _ in range(10):
        left.ended(run("identity"))
    clock.now = 30.0  # 150 of 2 x 2300
    assert left.seconds == pytest.approx((4600 - 150) * 30 / 150)
    assert str(left) == "about 15 min left"
    left.ended(run("identity", "seed"))
    left.ended(run("identity", "published"))
    left.ended(run("identity", "method"))
    clock.now = 70.0
    assert left.seconds == pytest.approx((4600 - 350) * 70 / 350)
    left.begins("ldipa", 0)
    left.ended(run("ldipa", stage="fit"))
    clock.now = 150.0
    assert left.seconds == pytest.approx((4600 - 750) * 150 / 750)


def test_what_is_left_out_or_was_there_needs_no_time() -> None:
    """A search that stops early, and trials of a study that goes on."""
    clock = Clock()
    left = TimeLeft(WORK, 1, clock)
    left.begins("identity", 5)  # of 10
    clock.now = 20.0
    left.ended(run("identity"))
    assert left.seconds == pytest.approx((2300 - 75 - 15) * 20 / 15)
    left.ended(run("identity", "method"))  # three settings and both tests were not needed
    assert left.seconds == pytest.approx((2300 - 350) * 20 / 15)
    left.begins("ldipa", 0)
    left.ended(run("ldipa", "method"))
    assert left.seconds == 0.0


def test_a_budget_in_minutes_is_counted_in_seconds() -> None:
    clock = Clock()
    left = TimeLeft({"identity": Work(setting=15, seconds=600.0)}, 1, clock)
    clock.now = 120.0
    left.ended(run("identity", metrics={"trial/seconds": 100.0}))
    assert left.seconds == pytest.approx(500 * 120 / 100)
    assert str(left) == "about 10 min left"


def test_a_terminal_shows_rows_and_quiet_only_the_board(
    work: Path, small: list[str], run_there, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    command = ["study", *small, "--methods", "identity", "--trials", "3", "--quiet"]
    run_there(work, [*command, "--name", "quiet"])
    out, err = capfd.readouterr()
    assert err.splitlines()[1:] == []  # the first says what is run
    assert "identity" in out
    terminal = Screen()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("dipa_bench.cli.time_left.SOONEST", 0.0)
    run_there(work, [*command[:-1], "--name", "loud"])
    text = terminal.getvalue()
    assert "rows of the study" in text and "0/1" in text
    assert re.search(r"about \d+ s left", text)
