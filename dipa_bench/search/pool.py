"""Where jobs are done: the interface of a pool of workers, and this process as one of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque

from dipa_bench.search.bench import Workbench
from dipa_bench.search.jobs import Ended, Job, Listener, Outcome, perform
from dipa_bench.search.row import Row


class Pool(ABC):
    """Workers that do one job each at a time.

    A context manager; leaving it ends the workers and whatever they were doing.
    """

    @property
    @abstractmethod
    def free(self) -> int:
        """How many jobs could be started at once."""

    @property
    @abstractmethod
    def busy(self) -> int:
        """How many jobs are under way."""

    @abstractmethod
    def start(self, row: Row, job: Job) -> None:
        """Gives a job to a free worker."""

    @abstractmethod
    def wait(self, seconds: float) -> list[Outcome]:
        """What came of jobs, as soon as there is something, after `seconds` at the latest.

        Raises:
            OSError: a worker's disk is full or read-only.
        """

    def close(self) -> None:  # noqa: B027  not every pool has something to end
        """Ends the workers."""

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Inline(Pool):
    """This process does the jobs itself, one after the other.

    Args:
        bench: the workbench.
        listener: hears of epochs.
    """

    def __init__(self, bench: Workbench, listener: Listener) -> None:
        self._bench, self._listener = bench, listener
        self._waiting: deque[tuple[Row, Job]] = deque()

    @property
    def free(self) -> int:
        return 1 - len(self._waiting)

    @property
    def busy(self) -> int:
        return len(self._waiting)

    def start(self, row: Row, job: Job) -> None:
        self._waiting.append((row, job))

    def wait(self, seconds: float) -> list[Outcome]:
        row, job = self._waiting.popleft()
        return [Ended(job, perform(self._bench, row, job, self._listener))]
