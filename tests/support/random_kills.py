"""A study whose processes are killed at random, and what must be true of it afterwards."""

from __future__ import annotations

import contextlib
import random
import time
from pathlib import Path

import optuna
import psutil
from commands import Command, workers
from mlflow import MlflowClient

from dipa_bench.search.journal import JOURNAL, trial_records
from dipa_bench.tracking import records
from dipa_bench.tracking.mlflow_format import experiment_name

METHODS = ("identity", "scalar")
PATIENCE = 90  # seconds for a process to get to a trial


class Victim:
    """A study that is killed again and again, here and there.

    Args:
        options: of `dipa-bench study`.
        place: the study's folder.
        seed: of what is killed when.
        sleep: seconds that each call of its prior takes.

    Attributes:
        kills: how often the study and its workers were killed.
    """

    def __init__(self, options: list[str], place: Path, seed: int, sleep: float = 0.3) -> None:
        self._command = ["study", *options]
        self._place, self._chance, self._sleep = place, random.Random(seed), sleep
        self._process: Command | None = None
        self.kills = {"study": 0, "worker": 0}

    def kill_one(self, workers_too: bool) -> bool:
        """Kills the study, or one of its workers, at work; False once it has ended by itself."""
        if self._process is None or self._process.poll() is not None:
            self._process = Command(
                self._command, self._place.parents[2], {"DEN_SLEEP": str(self._sleep)}
            )
        if not self._at_work():
            return False
        time.sleep(self._chance.uniform(0, 0.8))
        at_work = workers(psutil.Process(self._process.pid)) if workers_too else []
        if at_work and self._chance.random() < 0.5:
            self._chance.choice(at_work).kill()
            self.kills["worker"] += 1
        else:
            self.end()
            self.kills["study"] += 1
        return True

    def end(self) -> None:
        """Kills the study; its workers end by themselves, one that still imports after that."""
        if self._process is not None:
            orphans = self._children()
            self._process.kill()
            self._process.wait()
            _, left = psutil.wait_procs(orphans, timeout=60)
            assert not left, f"processes that outlive their study: {left}"

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


def check(place: Path, trials: int) -> int:
    """Asserts that nothing of a finished study was lost or counted twice.

    Every index finished exactly once, and records, journal and MLflow say the same.

    Returns:
        How many trials were interrupted.
    """
    interrupted = 0
    for method in METHODS:
        ours = trial_records(place / method)
        finished = [trial for trial in ours if trial.state == "finished"]
        assert sorted(trial.index for trial in finished) == list(range(trials))
        assert {trial.state for trial in ours} <= {"finished", "interrupted"}
        interrupted += len(ours) - len(finished)
        complete = {trial.number for trial in finished}
        assert states_in_journal(place / method) == [
            "COMPLETE" if number in complete else "FAIL"
            for number in range(len(states_in_journal(place / method)))
        ]
        assert records.read(place / method).metrics["search/trials"] == trials
    assert sorted(sent_runs(place.parents[2])) == sorted(
        (method, trial.number, trial.state)
        for method in METHODS
        for trial in trial_records(place / method)
    )
    return interrupted


def states_in_journal(folder: Path) -> list[str]:
    """States of a row's trials as Optuna knows them."""
    backend = optuna.storages.journal.JournalFileBackend(str(folder / JOURNAL))
    storage = optuna.storages.JournalStorage(backend)
    found = optuna.load_study(study_name=folder.name, storage=storage)
    return [trial.state.name for trial in found.trials]


def sent_runs(folder: Path) -> list[tuple[str, int, str]]:
    """Method, number and state of every trial in the store of a working folder."""
    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(experiment_name("sr"))
    return [
        (tags["dipa.method"], int(tags["dipa.number"]), tags["dipa.state"])
        for run in client.search_runs([experiment.experiment_id])
        if (tags := run.data.tags)["dipa.kind"] == "trial"
    ]
