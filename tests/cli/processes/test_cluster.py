"""Workers of a Dask cluster do a study's jobs, and another takes over where one dies."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import preload

dask = pytest.importorskip("dask", reason="Dask is an extra: dipa-bench[cluster]")
distributed = pytest.importorskip("distributed", reason="Dask is an extra: dipa-bench[cluster]")

pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
OPTIONS = ("--methods", "identity,ldipa", "--trials", "3", "--name", "far")
MAKER = """
from distributed import LocalCluster

def small():
    return LocalCluster(1, threads_per_worker=1, processes=False, dashboard_address=None)

def number():
    return 3

three = 3
"""


@pytest.fixture
def cluster(work: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator:
    """Two workers that start in the working folder, with a slow prior."""
    monkeypatch.setenv("DEN_SLEEP", "0.02")
    with dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}):
        distributed.utils.get_mp_context()  # at first it has another list of what to import
        preload("distributed")
        with distributed.LocalCluster(
            n_workers=2, threads_per_worker=2, dashboard_address=None, silence_logs=50
        ) as running:
            yield running


def ended(place: Path) -> dict[str, list[dict]]:
    """Trials' records of each row."""
    return {
        row.name: [json.loads(path.read_text()) for path in sorted(row.glob("trial-*/record.json"))]
        for row in place.iterdir()
        if row.is_dir() and not row.name.startswith(".")
    }


def test_a_cluster_does_it_and_a_killed_workers_trial_is_taken_over(
    cluster, work: Path, study
) -> None:
    place, killed = work / "mlruns" / "studies" / "far", []

    def kill() -> None:
        while not list(place.glob("ldipa/trial-*")) and not list(place.glob("identity/seed-*")):
            time.sleep(0.05)
        with distributed.Client(cluster.scheduler_address, set_as_default=False) as client:
            busy = {
                worker: keys for worker, keys in client.processing().items() if keys
            } or client.processing()
            pids = client.run(os.getpid, workers=[next(iter(busy))])
            killed.extend(pids.values())
            os.kill(killed[0], signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    address = cluster.scheduler_address.replace("tcp://", "dask://")
    done = study(*OPTIONS, "--cluster", address)
    thread.join()
    assert done.code == 0, done.err
    assert killed
    for trials in ended(place).values():
        assert sorted(trial["notes"]["index"] for trial in trials) == list(range(3))
        assert {trial["state"] for trial in trials} <= {"finished", "pruned"}
    record = json.loads((place / "ldipa" / "record.json").read_text())
    assert record["state"] == "finished"
    assert (place / "ldipa" / "operator.safetensors").exists()
    assert (place / "ldipa" / "pictures.safetensors").exists()
    assert "ldipa" in done.out


@pytest.mark.exhaustive
def test_a_cluster_from_a_file_and_what_is_none(work: Path, study, monkeypatch) -> None:
    monkeypatch.setattr("dipa_bench.execution.cluster.PATIENCE", 2.0)
    (work / "mine.py").write_text(MAKER)
    few = ("--methods", "identity", "--trials", "1", "--cluster", "mine.py:small")
    assert study(*few).code == 0
    assert "cannot be read" in study(*OPTIONS, "--cluster", "mine.py:nothing").line
    assert "int, not a Dask cluster" in study(*OPTIONS, "--cluster", "mine.py:number").line
    assert "cannot be made" in study(*OPTIONS, "--cluster", "mine.py:three").line
    assert "no Dask scheduler answers" in study(*OPTIONS, "--cluster", "dask://127.0.0.1:9").line
    assert "give dask://" in study(*OPTIONS, "--cluster", "http://somewhere").line
    assert "drop --workers" in study("--cluster", "dask://x:1", "--workers", "2").line
