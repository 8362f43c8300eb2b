"""Workers of this machine: what each may use, and whether all end."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from commands import workers

from dipa_bench import devices
from dipa_bench.config.entry import Entry
from dipa_bench.errors import UserError
from dipa_bench.execution import processes
from dipa_bench.execution import workers as module
from dipa_bench.execution.jobs import JobCallback, Setup
from dipa_bench.execution.processes import Processes, WorkerResources, share_resources
from dipa_bench.execution.workers import WorkerConfig, worker_config
from dipa_bench.search.jobs import Job, Lost

CPU = torch.device("cpu")
SETUP = Setup({}, Path("study"), Path("teachers"), "cpu")


@pytest.mark.parametrize(
    ("cores", "own", "count", "share"),
    [(8, 8, 2, 4), (8, 8, 3, 2), (2, 2, 4, 1), (8, 1, 2, 1), (64, 16, 2, 16)],
)
def test_workers_share_the_cores_and_heed_the_users_own_number(
    cores: int, own: int, count: int, share: int, monkeypatch
) -> None:
    monkeypatch.setattr(devices, "cores", lambda: cores)
    with devices.threads(own):
        found = share_resources(SETUP, count)
    assert len(found) == count
    for seat in found:
        assert seat.setup.threads == share
        assert seat.environment["OMP_NUM_THREADS"] == str(share)
        assert "CUDA_VISIBLE_DEVICES" not in seat.environment


def test_workers_share_out_the_gpus_in_turn() -> None:
    found = share_resources(SETUP, 3, ["4", "GPU-7"])
    assert [seat.environment["CUDA_VISIBLE_DEVICES"] for seat in found] == ["4", "GPU-7", "4"]
    assert {seat.setup.device for seat in found} == {"cuda"}


def test_only_visible_gpus_are_shared_out(monkeypatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert module._gpus(torch.device("cuda")) == ["3", "5"]
    assert module._gpus(torch.device("cuda:1")) == ["5"]
    assert module._gpus(CPU) == []


def test_how_many_workers_there_are(monkeypatch) -> None:
    assert worker_config(None, CPU, None) == WorkerConfig(1)
    assert worker_config("3", CPU, None) == WorkerConfig(3)
    monkeypatch.setattr(devices, "cores", lambda: 8)
    monkeypatch.setattr(module.devices, "available_memory", lambda where: 5 * module.MEMORY + 1)
    assert worker_config("auto", CPU, None) == WorkerConfig(5)
    monkeypatch.setattr(module.devices, "available_memory", lambda where: 100)
    assert worker_config("auto", CPU, None) == WorkerConfig(1)
    for wrong in ("0", "-1", "x", "1.5", "", "²"):
        with pytest.raises(UserError, match="give a number from 1, or auto"):
            worker_config(wrong, CPU, None)


# ---------------------------------------------------------------------------- real ones


@pytest.fixture
def busy(lab: SimpleNamespace, tmp_path: Path) -> SimpleNamespace:
    """A pool of two whose workers know no data: what they do is to start, for some seconds."""
    study = lab.resolved(["identity"], raw={"problem": {"dataset": f"folder:{tmp_path}/none"}})
    setup = Setup(study.model_dump(mode="json"), tmp_path, tmp_path / "teachers", "cpu", 1)
    pool = Processes([WorkerResources(setup, {"OMP_NUM_THREADS": "1"})] * 2, JobCallback())
    return SimpleNamespace(pool=pool, entry=Entry.of(study, "identity"))


def started(count: int) -> list[psutil.Process]:
    """So many of them, as soon as they have begun."""
    end = time.monotonic() + 20
    while len(found := workers()) < count:
        assert time.monotonic() < end, "no worker began"
        time.sleep(0.01)
    return found


def test_workers_end_while_they_start_and_hear_no_ctrl_c(busy, capfd, monkeypatch) -> None:
    """The terminal sends it to them as well; its traceback would bury the one line that counts."""
    monkeypatch.setattr(processes, "GOODBYE", 20.0)
    with busy.pool as pool:
        for _ in range(2):
            pool.start(busy.entry, Job("identity", "trial", (), ()))
        found = started(2)
        assert (len(found), pool.free, pool.busy) == (2, 0, 2)
        time.sleep(0.3)
        for worker in found:
            os.kill(worker.pid, signal.SIGINT)
        time.sleep(0.3)
        assert len(workers()) == 2
    assert not workers()
    assert capfd.readouterr().err == ""
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_a_killed_worker_is_told_and_replaced_and_one_without_data_says_so(busy) -> None:
    """Images that a worker alone does not find end the study in a line, as in one process."""
    job = Job("identity", "trial", (), ())
    with busy.pool as pool:
        pool.start(busy.entry, job)
        started(1)[0].kill()
        (lost,) = pool.wait(30)
        assert isinstance(lost, Lost)
        assert lost.job == job
        assert "SIGKILL" in lost.why
        assert "memory" in lost.why
        assert (pool.free, pool.busy) == (2, 0)
        pool.start(busy.entry, job)
        with pytest.raises(UserError, match="none"):
            while True:
                pool.wait(30)
    assert not workers()


@pytest.mark.parametrize("after", [EOFError, KeyboardInterrupt])
def test_a_worker_that_is_asked_to_end_while_it_ends_says_nothing(
    after: type[BaseException], monkeypatch
) -> None:
    """The line closes, the worker is on its way out, and then its SIGTERM arrives."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    set_handler = signal.signal
    late = [True]

    def disturbed(number: int, handler: object) -> object:
        if handler is signal.SIG_IGN and number == signal.SIGTERM and late:
            late.clear()
            signal.raise_signal(signal.SIGTERM)
        return set_handler(number, handler)

    def work(line: object, setup: object) -> None:
        raise after

    monkeypatch.setattr(processes, "_work", work)
    monkeypatch.setattr(signal, "signal", disturbed)
    try:
        processes._serve(None, SETUP, dict(os.environ))
    finally:
        monkeypatch.undo()
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert not late
