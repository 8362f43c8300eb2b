"""Where jobs are done: the interface of a pool of workers, and this process as one of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque

from dipa_bench.config.entry import Entry
from dipa_bench.execution.context import StudyContext
from dipa_bench.execution.jobs import JobCallback, perform
from dipa_bench.search.jobs import Ended, Job, Outcome


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
    def start(self, entry: Entry, job: Job) -> None:
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
        context: the study's context.
        job_callback: hears of epochs.
    """

    def __init__(self, context: StudyContext, job_callback: JobCallback) -> None:
        self._context, self._job_callback = context, job_callback
        self._waiting: deque[tuple[Entry, Job]] = deque()

    @property
    def free(self) -> int:
        return 1 - len(self._waiting)

    @property
    def busy(self) -> int:
        return len(self._waiting)

    def start(self, entry: Entry, job: Job) -> None:
        self._waiting.append((entry, job))

    def wait(self, seconds: float) -> list[Outcome]:
        entry, job = self._waiting.popleft()
        return [Ended(job, perform(self._context, entry, job, self._job_callback))]
