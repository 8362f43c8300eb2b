"""Workers as processes of this machine: one job at a time, one GPU or some cores each."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing import connection, resource_tracker
from typing import Any, NoReturn

import threadpoolctl
import torch

from dipa_bench import devices
from dipa_bench.config.entry import Entry
from dipa_bench.errors import UserError, brief
from dipa_bench.execution.jobs import JobCallback, Setup, perform
from dipa_bench.execution.pool import Pool
from dipa_bench.search.jobs import Ended, Job, Lost, Outcome

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
START = "forkserver" if sys.platform == "linux" else "spawn"
"""How workers start: elsewhere than on Linux, system libraries do not bear a fork."""
PRELOAD = ("dipa_bench.execution.processes", "deepinv")
"""What the fork server imports, once for all workers: about ten seconds for each otherwise."""
GOODBYE = 5.0  # seconds for workers that were asked to end


@dataclass(frozen=True)
class WorkerResources:
    """What one worker may use.

    Attributes:
        setup: of the worker.
        environment: variables that its process starts with.
    """

    setup: Setup
    environment: dict[str, str]


class _Worker:
    """One process and the line to it."""

    def __init__(self, resources: WorkerResources) -> None:
        context = multiprocessing.get_context(START)
        context.set_forkserver_preload(list(PRELOAD))
        self.line, theirs = context.Pipe()
        environment = {**os.environ, **resources.environment}
        self.process = context.Process(
            target=_serve, args=(theirs, resources.setup, environment), daemon=True
        )
        with _variables(resources.environment), _uninterrupted():
            self.process.start()
        theirs.close()
        self.job: Job | None = None

    def ask_to_end(self) -> None:
        """Tells it to end; a running trial is marked as interrupted where there is time."""
        self.line.close()
        if self.job is not None:
            self.process.terminate()

    def end(self, seconds: float) -> None:
        """Waits for its end, and makes it end after `seconds`."""
        self.process.join(max(0.0, seconds))
        if self.process.is_alive():
            self.process.kill()
            self.process.join()

    def fate(self) -> str:
        """How a dead process ended, in words."""
        self.process.join(GOODBYE)
        code = self.process.exitcode
        if code is None or code >= 0:
            return f"its process ended with code {code}"
        hint = " (was memory short?)" if -code == signal.SIGKILL else ""
        return f"its process was ended by {signal.Signals(-code).name}{hint}"


class Processes(Pool):
    """Worker processes, each with resources of its own; one that dies is replaced.

    Args:
        resources: of each worker.
        job_callback: hears of epochs.
    """

    def __init__(self, resources: Sequence[WorkerResources], job_callback: JobCallback) -> None:
        self._job_callback = job_callback
        self._resources = list(resources)
        self._workers: list[_Worker | None] = [None] * len(resources)

    @property
    def free(self) -> int:
        return len(self._resources) - self.busy

    @property
    def busy(self) -> int:
        return sum(worker is not None and worker.job is not None for worker in self._workers)

    def start(self, entry: Entry, job: Job) -> None:
        place = next(i for i, one in enumerate(self._workers) if one is None or one.job is None)
        worker = self._workers[place]
        if worker is None or not worker.process.is_alive():
            worker = self._workers[place] = _Worker(self._resources[place])
        worker.job = job
        with suppress(BrokenPipeError, ConnectionResetError):  # `wait` finds that it died
            worker.line.send(job)

    def wait(self, seconds: float) -> list[Outcome]:
        working = {one.line: one for one in self._workers if one is not None and one.job}
        outcomes: list[Outcome] = []
        for line in connection.wait(list(working), timeout=seconds):
            found = self._hear(working[line])
            if found is not None:
                outcomes.append(found)
        return outcomes

    def close(self) -> None:
        workers = [worker for worker in self._workers if worker is not None]
        for worker in workers:
            worker.ask_to_end()
        end = time.monotonic() + GOODBYE
        for worker in workers:
            worker.end(end - time.monotonic())
        self._workers = [None] * len(self._resources)

    def _hear(self, worker: _Worker) -> Outcome | None:
        """Takes one message of a worker; the outcome of its job, if that was it."""
        job = worker.job
        try:
            kind, *content = worker.line.recv()
        except (EOFError, OSError):
            why = worker.fate()
            self._workers[self._workers.index(worker)] = None
            worker.line.close()
            return Lost(job, why)
        if kind == "report":
            answer = self._job_callback.report(job, *content)
            with suppress(BrokenPipeError, ConnectionResetError):
                worker.line.send(answer)
            return None
        if kind == "epoch":
            self._job_callback.epoch(job, *content)
            return None
        worker.job = None
        if kind == "disk":
            raise OSError(*content)
        if kind == "refused":
            raise UserError(content[0])
        return Ended(job, content[0])


@contextmanager
def _variables(wanted: dict[str, str]) -> Iterator[None]:
    """Environment variables that a process which is started meanwhile inherits."""
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """A process that is started meanwhile hears of no Ctrl-C until it asks for it."""
    resource_tracker.ensure_running()  # to start it later would undo the mask
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# ------------------------------------------------------------------------- in the worker's process


def _serve(line: connection.Connection, setup: Setup, environment: dict[str, str]) -> None:
    """Does the jobs that come along the line, until it is closed or the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    os.environ.clear()  # a fork server has those of the process's first study
    os.environ.update(environment)
    threadpoolctl.threadpool_limits(int(environment[THREADS[0]]))
    try:
        try:
            signal.signal(signal.SIGTERM, _stop)
            threading.Thread(target=_follow_parent, daemon=True).start()
            _work(line, setup)
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # which a last SIGTERM may interrupt
    except (EOFError, BrokenPipeError, ConnectionResetError, KeyboardInterrupt):
        pass  # the parent has no more use for this process


def _work(line: connection.Connection, setup: Setup) -> None:
    context = None
    job_callback = JobCallback(
        report=lambda job, step, value: _ask(line, step, value),
        epoch=lambda job, progress: line.send(("epoch", progress)),
    )
    while True:
        job = line.recv()
        try:
            context = context or setup.context(setup.folder)
            message: tuple[Any, ...] = (
                "ended",
                perform(context, Entry.of(context.study, job.entry), job, job_callback),
            )
        except UserError as error:
            message = ("refused", str(error))
        except (BrokenPipeError, ConnectionResetError):
            raise
        except OSError as error:
            why = error.strerror or brief(error)
            message = ("disk", error.errno or errno.EIO, why, error.filename)
        line.send(message)


def _ask(line: connection.Connection, step: int, value: float) -> str | None:
    line.send(("report", step, value))
    return line.recv()


def _follow_parent() -> None:
    """Ends this process as soon as the parent does, so that no orphan writes into a study."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _stop(signum: int, frame: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough
    raise KeyboardInterrupt


# ----------------------------------------------------------------------------------- who gets what


def share_resources(setup: Setup, count: int, gpus: Sequence[str] = ()) -> list[WorkerResources]:
    """What each of `count` workers may use: a GPU of its own, in turn, or its share of the cores.

    None has more threads than this process, of which the user's OMP_NUM_THREADS decides.

    Args:
        setup: of all of them.
        count: of workers.
        gpus: names of the GPUs as CUDA_VISIBLE_DEVICES takes them; none works on the CPU.
    """
    share = max(1, min(torch.get_num_threads(), devices.cores() // count))
    found = []
    for number in range(count):
        values = {name: str(share) for name in THREADS}
        own = replace(setup, threads=share)
        if gpus:
            values["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
            own = replace(own, device="cuda")
        found.append(WorkerResources(own, values))
    return found
