"""A study that is killed outright ends as one that never was."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest
from commands import Command
from random_kills import METHODS, PATIENCE, Victim, check, sent_runs, states_in_journal

from dipa_bench.search.journal import trial_records
from dipa_bench.tracking import records

TRIALS = 4
OPTIONS = ("--methods", ",".join(METHODS), "--trials", str(TRIALS), "--name", "killed")
pytestmark = [
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
]


def wait_for(record: Path, process: Command) -> None:
    """Waits until the trial of a record has begun."""
    end = time.monotonic() + PATIENCE
    while not (record / records.RECORD).exists():
        assert process.poll() is None, "the study ended by itself"
        assert time.monotonic() < end, "the study never got there"
        time.sleep(0.01)


@pytest.mark.exhaustive
def test_a_killed_study_ends_like_one_that_never_was(
    work: Path, small: list[str], study, furnish, tmp_path: Path, monkeypatch
) -> None:
    place = work / "mlruns" / "studies" / "killed"
    process = Command(["study", *small, *OPTIONS], work, {"DEN_SLEEP": "0.1"})
    try:
        wait_for(place / "scalar" / "trial-0001", process)
        assert "is being run by another process" in study(*OPTIONS).line
        time.sleep(random.Random(0).uniform(0, 0.3))
    finally:
        process.kill()
        assert process.wait() == -signal.SIGKILL
    victims = {
        (trial.method, trial.number)
        for method in METHODS
        for trial in trial_records(place / method)
        if trial.state == "running"
    }
    assert victims, "the kill hit no trial"
    assert study(*OPTIONS).code == 0

    whole = furnish(tmp_path / "whole")
    monkeypatch.chdir(whole)
    assert study(*OPTIONS).code == 0
    for method in METHODS:
        ours = trial_records(place / method)
        theirs = trial_records(whole / "mlruns" / "studies" / "killed" / method)
        finished = [trial for trial in ours if trial.state == "finished"]
        assert [trial.notes["index"] for trial in finished] == list(range(TRIALS))
        others = {(method, trial.number) for trial in ours if trial not in finished}
        assert others == {victim for victim in victims if victim[0] == method}
        assert {trial.state for trial in ours} <= {"finished", "interrupted"}
        assert [(trial.params, trial.metrics["val/psnr"]) for trial in finished] == [
            (trial.params, trial.metrics["val/psnr"]) for trial in theirs
        ]
        one, other = (
            records.read(folder / "mlruns" / "studies" / "killed" / method)
            for folder in (work, whole)
        )
        assert one.params == other.params
        assert one.metrics["test/psnr"] == other.metrics["test/psnr"]
        assert states_in_journal(place / method) == [
            "COMPLETE" if trial.state == "finished" else "FAIL" for trial in ours
        ]
    expected = [
        (method, trial.number, trial.state)
        for method in METHODS
        for trial in trial_records(place / method)
    ]
    assert sorted(sent_runs(work)) == sorted(expected)


AT_ONCE = "from dipa_bench.learning import checkpoint; checkpoint.PAUSE = 0.0"
FITS = (
    *("--methods", "ndipa/cnn", "--trials", "1", "--name", "killed"),
    *("--set", "budget.epochs=8", "--set", "budget.final_epochs=8", "--set", "operator.width=8"),
)


@pytest.mark.exhaustive
def test_a_fit_killed_in_the_middle_goes_on(
    work: Path, small: list[str], study, furnish, tmp_path: Path, monkeypatch
) -> None:
    """From its checkpoint, and ends as one that was never killed; nothing of it stays behind."""
    place = work / "mlruns" / "studies" / "killed" / "ndipa__cnn"
    process = Command(["study", *small, *FITS], work, {"DEN_SLEEP": "0.05"}, prepare=AT_ONCE)
    try:
        wait_for(place / "seed-0", process)
        end = time.monotonic() + PATIENCE
        while not list(place.glob(".checkpoints/*/[!.]*.safetensors")):  # whole ones
            assert time.monotonic() < end, "no checkpoint was written"
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    assert study(*FITS).code == 0
    whole = furnish(tmp_path / "whole")
    monkeypatch.chdir(whole)
    assert study(*FITS).code == 0
    ours, theirs = (
        [records.read(path) for path in records.children(folder)]
        for folder in (place, whole / "mlruns" / "studies" / "killed" / "ndipa__cnn")
    )
    resumed = [one for one in ours if "resumed_after_epoch" in one.notes]
    assert [(one.kind, one.state) for one in resumed] == [("seed", "finished")]
    assert not any("resumed_after_epoch" in one.notes for one in theirs)
    finished = [one for one in ours if one.state == "finished"]
    for one, other in zip(finished, theirs, strict=True):
        assert one.params == other.params
        for name in ("val/psnr", "test/psnr"):
            assert one.metrics.get(name) == other.metrics.get(name)
        assert one.series["train/loss"] == other.series["train/loss"]
    assert not list(place.glob(".checkpoints/*"))


def test_nothing_is_lost_or_counted_twice_after_three_kills_at_random(
    work: Path, small: list[str], study
) -> None:
    """Of the study or one of its two workers; `tests/soak/kills.py` kills more often."""
    trials, place = 4, work / "mlruns" / "studies" / "killed"
    options = ["--methods", ",".join(METHODS), "--trials", str(trials), "--name", "killed"]
    options += ["--set", "search.race=false"]
    victim = Victim([*small, *options, "--workers", "2"], place, seed=2, sleep=0.1)
    try:
        for _ in range(3):
            assert victim.kill_one(workers_too=True), f"the study ended after {victim.kills}"
    finally:
        victim.end()
    assert study(*options).code == 0
    check(place, trials)
