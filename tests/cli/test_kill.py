"""A study that is killed outright, twice, ends as one that never was."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import psutil
import pytest
from mlflow import MlflowClient

from dipa_bench.search.journal import JOURNAL, trial_records
from dipa_bench.tracking import records
from dipa_bench.tracking.wording import experiment_name

METHODS, TRIALS = ("identity", "scalar"), 5
OPTIONS = ("--methods", ",".join(METHODS), "--trials", str(TRIALS), "--name", "killed")
PATIENCE = 90  # seconds for a process to get to a trial


def start(small: list[str]) -> subprocess.Popen:
    """The study as a process of its own; every call of its prior takes a while."""
    return subprocess.Popen(
        [sys.executable, "-m", "dipa_bench", "study", *small, *OPTIONS],
        env={**os.environ, "DEN_SLEEP": "0.2"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def wait_for(record: Path, process: subprocess.Popen) -> None:
    """Waits until the trial of a record has begun."""
    end = time.monotonic() + PATIENCE
    while not (record / records.RECORD).exists():
        assert process.poll() is None, "the study ended by itself"
        assert time.monotonic() < end, "the study never got there"
        time.sleep(0.01)


def kill(process: subprocess.Popen, place: Path) -> set[tuple[str, int]]:
    """Kills a study; the trials, as method and number, that it leaves running."""
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    return {
        (trial.method, trial.number)
        for method in METHODS
        for trial in trial_records(place / method)
        if trial.state == "running"
    }


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_study_killed_twice_ends_like_one_that_never_was(
    work: Path, small: list[str], study, furnish, tmp_path: Path, monkeypatch
) -> None:
    place = work / "mlruns" / "studies" / "killed"
    chance, victims = random.Random(0), set()
    process = start(small)
    try:
        wait_for(place / "identity" / "trial-0002", process)
        assert "is being run by another process" in study(*OPTIONS).line
        time.sleep(chance.uniform(0, 0.3))
    finally:
        victims |= kill(process, place)
    process = start(small)
    try:
        wait_for(place / "scalar" / "trial-0001", process)
        time.sleep(chance.uniform(0, 0.3))
    finally:
        victims |= kill(process, place)
    assert victims, "no kill hit a trial"
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
        one, other = (records.read(folder / method) for folder in (place, theirs_of(whole)))
        assert one.params == other.params
        assert one.metrics["test/psnr"] == other.metrics["test/psnr"]
        assert states_in_journal(place / method) == [
            "COMPLETE" if trial.state == "finished" else "FAIL" for trial in ours
        ]
    sent = sent_runs(work)
    expected = [
        (method, trial.number, trial.state)
        for method in METHODS
        for trial in trial_records(place / method)
    ]
    assert sorted(sent) == sorted(expected)


AT_ONCE = """
from dipa_bench.learning import checkpoint
checkpoint.PAUSE = 0.0
from dipa_bench.cli.main import main
main()
"""
FITS = (
    *("--methods", "ndipa/cnn", "--trials", "2", "--name", "killed", "--set", "budget.seeds=1"),
    *("--set", "budget.epochs=8", "--set", "budget.final_epochs=8", "--set", "operator.width=8"),
)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["trial-0000", "seed-0"])
def test_a_fit_killed_in_the_middle_goes_on(
    work: Path, small: list[str], study, furnish, tmp_path: Path, monkeypatch, where: str
) -> None:
    """From its checkpoint, and ends as one that was never killed; nothing of it stays behind."""
    place = work / "mlruns" / "studies" / "killed" / "ndipa__cnn"
    process = subprocess.Popen(
        [sys.executable, "-c", AT_ONCE, "study", *small, *FITS],
        env={**os.environ, "DEN_SLEEP": "0.1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(place / where, process)
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
    assert [(one.kind, one.state) for one in resumed] == [(where.split("-")[0], "finished")]
    assert not any("resumed_after_epoch" in one.notes for one in theirs)
    finished = [one for one in ours if one.state == "finished"]
    for one, other in zip(finished, theirs, strict=True):
        assert one.params == other.params
        for name in ("val/psnr", "test/psnr"):
            assert one.metrics.get(name) == other.metrics.get(name)
        assert one.series["train/loss"] == other.series["train/loss"]
    assert not list(place.glob(".checkpoints/*"))


class Victim:
    """A study in a process group of its own that is killed again and again, here and there.

    Args:
        command: of the study.
        place: its folder.
        seed: of what is killed when.
    """

    def __init__(self, command: list[str], place: Path, seed: int) -> None:
        self._command, self._place, self._chance = command, place, random.Random(seed)
        self._process: subprocess.Popen | None = None
        self.kills = {"study": 0, "worker": 0}

    def kill_one(self, workers: bool) -> bool:
        """Kills the study, or one of its workers, at work; False once it has ended by itself."""
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                self._command,
                env={**os.environ, "DEN_SLEEP": "0.3"},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        if not self._at_work():
            return False
        time.sleep(self._chance.uniform(0, 0.8))
        hands = [child for child in self._children() if "spawn_main" in " ".join(child.cmdline())]
        if workers and hands and self._chance.random() < 0.5:
            self._chance.choice(hands).kill()
            self.kills["worker"] += 1
        else:
            orphans = self._children()
            self._process.kill()
            self._process.wait()
            psutil.wait_procs(orphans, timeout=60)  # one that still imports ends after that
            assert not any(orphan.is_running() for orphan in orphans)
            self.kills["study"] += 1
        return True

    def end(self) -> None:
        """Kills the study for the last time."""
        if self._process is not None:
            orphans = self._children()
            self._process.kill()
            self._process.wait()
            psutil.wait_procs(orphans, timeout=60)  # one that still imports ends after that

    def _children(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self._process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def _at_work(self) -> bool:
        """Waits for a run that begins from now on."""
        began, end = time.time(), time.monotonic() + PATIENCE
        while self._process.poll() is None:
            assert time.monotonic() < end, "the study never got to a trial"
            for path in self._place.glob(f"*/*/{records.RECORD}"):
                with contextlib.suppress(OSError):
                    if path.stat().st_mtime > began:
                        return True
            time.sleep(0.02)
        return False


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize(("workers", "kills"), [(1, 20), (3, 20)])
def test_nothing_is_lost_or_counted_twice_however_often_it_is_killed(
    workers: int, kills: int, work: Path, small: list[str], study
) -> None:
    trials, place = 24, work / "mlruns" / "studies" / "killed"
    options = ["--methods", ",".join(METHODS), "--trials", str(trials), "--name", "killed"]
    options += ["--set", "search.race=false"]
    if workers > 1:
        options += ["--workers", str(workers)]
    command = [sys.executable, "-m", "dipa_bench", "study", *small, *options]
    victim = Victim(command, place, seed=workers)
    for _ in range(kills):
        assert victim.kill_one(workers > 1), f"the study ended after {victim.kills}"
    victim.end()
    assert study(*options).code == 0
    interrupted = 0
    for method in METHODS:
        ours = trial_records(place / method)
        finished = [trial for trial in ours if trial.state == "finished"]
        assert sorted(trial.index for trial in finished) == list(range(trials))
        assert {trial.state for trial in ours} <= {"finished", "interrupted"}
        interrupted += len(ours) - len(finished)
        complete = {trial.number for trial in finished}
        for number, state in enumerate(states_in_journal(place / method)):
            assert state == ("COMPLETE" if number in complete else "FAIL")
        assert records.read(place / method).metrics["search/trials"] == trials
    assert interrupted >= kills // 2, (interrupted, victim.kills)
    assert sorted(sent_runs(work)) == sorted(
        (method, trial.number, trial.state)
        for method in METHODS
        for trial in trial_records(place / method)
    )


def theirs_of(folder: Path) -> Path:
    return folder / "mlruns" / "studies" / "killed"


def states_in_journal(folder: Path) -> list[str]:
    backend = optuna.storages.journal.JournalFileBackend(str(folder / JOURNAL))
    storage = optuna.storages.JournalStorage(backend)
    found = optuna.load_study(study_name=folder.name, storage=storage)
    return [trial.state.name for trial in found.trials]


def sent_runs(folder: Path) -> list[tuple[str, int, str]]:
    """Method, number and state of every trial in the store."""
    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(experiment_name("sr"))
    return [
        (tags["dipa.method"], int(tags["dipa.number"]), tags["dipa.state"])
        for run in client.search_runs([experiment.experiment_id])
        if (tags := run.data.tags)["dipa.kind"] == "trial"
    ]
