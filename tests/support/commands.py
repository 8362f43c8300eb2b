"""`dipa-bench` in processes of their own, forked from one that imported everything once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from pathlib import Path
from unittest.mock import patch

import psutil

from dipa_bench.execution import processes

FORK_SERVER = "multiprocessing.forkserver"  # in the command line of one


class Command:
    """A command in a process of its own; what is asked of it is what `subprocess.Popen` has.

    Args:
        arguments: of `dipa-bench`.
        folder: where it works.
        environment: variables beside this process's.
        log: what takes what it writes; None drops it.
        own_group: it leads a process group, as a shell's jobs do.
        prepare: Python that runs first, to change what a command line cannot.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        folder: Path,
        environment: Mapping[str, str] | None = None,
        log: Path | None = None,
        own_group: bool = False,
        prepare: str = "",
    ) -> None:
        preload()
        context = multiprocessing.get_context("forkserver")
        variables = {**os.environ, **(environment or {})}
        output = os.devnull if log is None else str(log)
        self._process = context.Process(
            target=_run, args=(list(arguments), folder, variables, output, own_group, prepare)
        )
        self._process.start()
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """Its exit code, None while it lives."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("dipa-bench", timeout or 0)
        return self._process.exitcode

    def kill(self) -> None:
        """Ends it, whatever it does."""
        self.send_signal(signal.SIGKILL)

    def send_signal(self, number: int) -> None:
        """Sends a signal, if it lives."""
        if self.poll() is None:
            os.kill(self.pid, number)


def preload(*more: str) -> None:
    """What the fork server of the tests imports, if it does not run yet; `more` beside it."""
    names = [*processes.PRELOAD, "dipa_bench.cli.main", "mlflow", *more]
    multiprocessing.set_forkserver_preload(names)


def _run(
    arguments: list[str],
    folder: Path,
    environment: dict[str, str],
    output: str,
    own_group: bool,
    prepare: str,
) -> None:
    """In the process itself: a fresh one's surroundings, then the command."""
    if own_group:
        os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    _start_fork_server()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    with open(output, "w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    sys.argv = ["dipa-bench", *arguments]
    exec(prepare, {})
    from dipa_bench.cli.main import main

    main()


def _start_fork_server() -> None:
    """A fork server below this process, as a command has one, which need not import all again."""
    forkserver._forkserver.__init__()  # forget that of the tests
    forkserver.set_forkserver_preload([*processes.PRELOAD])
    with patch.object(forkserver.util, "spawnv_passfds", _fork):
        forkserver.ensure_running()


def _fork(executable: str, arguments: list[str], passed: list[int]) -> int:
    """What `multiprocessing.util.spawnv_passfds` does, by a fork of this process."""
    pid = os.fork()
    if pid:
        return pid
    try:
        first = 3  # beside standard input, output and errors
        for descriptor in [*sorted(passed), os.sysconf("SC_OPEN_MAX")]:
            os.closerange(first, descriptor)
            first = descriptor + 1
        exec(arguments[-1], {})  # python -c CODE
    finally:
        os._exit(0)


def workers(process: psutil.Process | None = None) -> list[psutil.Process]:
    """Worker processes that live below a study's, by default this one: a fork server's children."""
    study = process or psutil.Process()
    found = []
    for child in study.children(recursive=True):
        try:
            parent = child.parent()
            if parent and parent != study and FORK_SERVER in " ".join(parent.cmdline()):
                found.append(child)
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            pass
    return found
