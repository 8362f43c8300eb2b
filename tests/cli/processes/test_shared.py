"""Many machines, one study: `--storage postgresql://...` against a real server."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commands import Command
from mlflow import MlflowClient
from real_postgresql import PASSWORD, Missing, Server, postgresql

from dipa_bench.search import storage, trial_queue
from dipa_bench.tracking import records
from dipa_bench.tracking.location import sqlite_uri
from dipa_bench.tracking.mlflow_format import experiment_name

TRIALS, METHODS = 4, ("identity", "scalar")
PATIENCE = 120  # seconds for a process to get to a trial
QUICK = """
from dipa_bench.search import queues
from dipa_bench.search import storage
storage.HEARTBEAT, storage.GRACE, queues.POLL = 1, 4, 0.2
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    try:
        with postgresql() as running:
            yield running
    except Missing as reason:
        pytest.skip(f"no PostgreSQL here: {reason}")


class Machine:
    """A folder of its own that joins a study."""

    def __init__(self, folder: Path, command: list[str], url: str) -> None:
        self.folder, self.log = folder, folder / "log.txt"
        surroundings = {"DEN_SLEEP": "0.08", "DIPA_BENCH_STORAGE": url}
        self._process = Command(command, folder, surroundings, self.log, prepare=QUICK)

    def end(self) -> None:
        """Ends it, whatever it does."""
        self._process.kill()
        self._process.wait()

    def kill_in_a_trial(self) -> None:
        """Kills it as soon as it has a trial under way."""
        end = time.monotonic() + PATIENCE
        while not list(self.folder.glob(f"mlruns/studies/*/*/trial-*/{records.RECORD}")):
            assert self._process.poll() is None, self.log.read_text()
            assert time.monotonic() < end
            time.sleep(0.02)
        self._process.kill()
        self._process.wait()

    def finish(self) -> str:
        """Waits for its end; what it printed."""
        code = self._process.wait(timeout=PATIENCE)
        text = self.log.read_text()
        assert code == 0, text
        return text


@pytest.fixture
def machines(
    tmp_path: Path, furnish: Callable[[Path], Path], small: list[str], server: Server
) -> Iterator[Callable[..., list[Machine]]]:
    """Starts several at the same study, one tracking store for all."""
    furnish(tmp_path / "store")
    store = sqlite_uri(tmp_path / "store" / "mlflow.db")

    started: list[Machine] = []

    def start(name: str, count: int, *more: str, first: int = 0) -> list[Machine]:
        options = ["--methods", ",".join(METHODS), "--trials", str(TRIALS), "--name", name]
        command = ["study", *small, *options, "--tracking-uri", store, *more]
        numbers = range(first, first + count)
        folders = [furnish(tmp_path / f"machine-{number}") for number in numbers]
        found = [Machine(folder, command, server.url) for folder in folders]
        started.extend(found)
        return found

    yield start
    for machine in started:
        machine.end()


def runs(store: Path, study: str) -> list[dict[str, str]]:
    """Tags of a study's runs in the tracking store."""
    client = MlflowClient(tracking_uri=sqlite_uri(store))
    experiment = client.get_experiment_by_name(experiment_name("sr"))
    found = client.search_runs([experiment.experiment_id], f"tags.`dipa.study` = '{study}'")
    return [run.data.tags for run in found]


def reads(folder: Path) -> list[str]:
    """Reasons for which test images were read, over all machines."""
    logs = folder.glob("machine-*/mlruns/studies/*/test-reads.log")
    return [line.split(" ", 1)[1] for log in logs for line in log.read_text().splitlines()]


@pytest.mark.exhaustive
def test_machines_share_a_study_and_take_over_what_one_left(
    machines: Callable[..., list[Machine]], tmp_path: Path
) -> None:
    dead, *others = machines("together", 3)
    dead.kill_in_a_trial()
    texts = [machine.finish() for machine in others]
    tags = runs(tmp_path / "store" / "mlflow.db", "together")
    for method in METHODS:
        trials = [tag for tag in tags if tag["dipa.method"] == method]
        finished = [
            tag
            for tag in trials
            if tag["dipa.kind"] == "trial" and tag["dipa.state"] in ("finished", "pruned")
        ]
        assert len(finished) == TRIALS
        assert len({tag["dipa.number"] for tag in finished}) == TRIALS
        assert sum(tag["dipa.kind"] == "method" for tag in trials) == 1
    assert len(reads(tmp_path)) == len(set(reads(tmp_path))) == 4, reads(tmp_path)
    for text in texts:
        assert all(method in text.split("vs identity")[1] for method in METHODS)
    stores = list(tmp_path.rglob("*"))
    hits = [path for path in stores if path.is_file() and PASSWORD.encode() in path.read_bytes()]
    assert not hits


def test_a_server_that_goes_away_comes_back_to_a_study_that_waited(
    machines: Callable[..., list[Machine]], tmp_path: Path, server: Server
) -> None:
    (machine,) = machines("patient", 1)
    end = time.monotonic() + PATIENCE
    while not list(machine.folder.glob("mlruns/studies/*/*/trial-0001")):
        assert time.monotonic() < end
        time.sleep(0.05)
    server.stop()
    time.sleep(3)
    server.start()
    machine.finish()
    numbers = {
        method: sorted(
            record["notes"]["index"]
            for path in machine.folder.glob(f"mlruns/studies/*/{method}/trial-*/record.json")
            if (record := json.loads(path.read_text()))["state"] in ("finished", "pruned")
        )
        for method in METHODS
    }
    assert numbers == {method: list(range(TRIALS)) for method in METHODS}


@pytest.mark.exhaustive
def test_one_that_comes_later_adds_trials_or_is_told_what_differs(
    study, furnish, tmp_path: Path, server: Server, monkeypatch
) -> None:
    store = sqlite_uri(furnish(tmp_path / "store") / "mlflow.db")
    options = ["--methods", ",".join(METHODS), "--name", "grown", "--tracking-uri", store]
    options += ["--storage", server.url, "--trials"]
    for number, trials in enumerate((TRIALS, TRIALS + 2)):
        monkeypatch.chdir(furnish(tmp_path / f"machine-{number}"))
        assert study(*options, str(trials)).code == 0
    tags = runs(tmp_path / "store" / "mlflow.db", "grown")
    for method in METHODS:
        numbers = {
            int(tag["dipa.number"])
            for tag in tags
            if tag["dipa.method"] == method and tag["dipa.kind"] == "trial"
        }
        assert numbers == set(range(TRIALS + 2))
    monkeypatch.chdir(furnish(tmp_path / "machine-2"))
    other = study(*options, str(TRIALS), "--set", "problem.iterations=4")
    assert "problem.iterations = 3, not 4" in other.line


def test_a_server_that_does_not_come_back_ends_the_study_in_one_line(
    study, server: Server, monkeypatch
) -> None:
    real = trial_queue.SharedTrialQueue.tell

    def tell(self, number: int, record) -> bool:
        server.stop()
        return real(self, number, record)

    monkeypatch.setattr(storage, "OUTAGE", 1.0)
    monkeypatch.setattr(trial_queue.SharedTrialQueue, "tell", tell)
    options = ("--methods", "identity", "--trials", "2", "--name", "gone")
    try:
        done = study(*options, "--storage", server.url)
    finally:
        server.start()
    assert done.code == 2
    assert "Traceback" not in done.err
    (line,) = [line for line in done.err.splitlines() if line.startswith("dipa-bench: ")]
    assert "did not come back within 1 s: run the same command to continue" in line


def test_what_is_no_server_is_told_in_a_line(study, server: Server, monkeypatch) -> None:
    wrong = server.url.replace(PASSWORD, "hunter2")
    line = study("--storage", wrong).line
    assert "does not answer or let us in" in line
    assert "hunter2" not in line
    assert "for one process alone" in study("--storage", "sqlite:///optuna.db").line
    assert "give postgresql://" in study("--storage", "postgres.example").line
    monkeypatch.setenv("DIPA_BENCH_STORAGE", "postgresql://a:hunter2@127.0.0.1:9/none")
    assert "hunter2" not in study().line
