"""Gives a study's jobs to workers, entry by entry, and takes what they bring."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable

from dipa_bench.config.entry import Entry
from dipa_bench.execution.context import StudyContext
from dipa_bench.execution.jobs import JobCallback
from dipa_bench.execution.pool import Pool
from dipa_bench.search.callbacks import StudyCallback
from dipa_bench.search.jobs import Job, Lost, Outcome
from dipa_bench.search.method_search import MethodSearch
from dipa_bench.search.queues import POLL, TrialQueues
from dipa_bench.tracking.records import RunRecord


class Scheduler:
    """Runs the entries of a study on a pool of workers.

    Entries begin in order; the next one begins while there are workers without work.

    Args:
        context: the study's context.
        callback: hears of everything.
        queues: the queues of trials.
        concluded: called with every entry that ended here; it sees to it that other processes hear
            of it.
    """

    def __init__(
        self,
        context: StudyContext,
        callback: StudyCallback,
        queues: TrialQueues,
        concluded: Callable[[MethodSearch], None] = MethodSearch.publish,
    ) -> None:
        self._context, self._callback, self._queues = context, callback, queues
        self._concluded = concluded
        self._open: dict[str, MethodSearch] = {}

    @property
    def job_callback(self) -> JobCallback:
        """What the pool tells of epochs."""
        return JobCallback(
            report=lambda job, step, value: self._open[job.entry].report(job, step, value),
            epoch=lambda job, progress: self._callback.epoch(job.name, progress),
        )

    def run(self, entries: Iterable[Entry], pool: Pool) -> list[RunRecord]:
        """Runs all entries to their end: asks their searches for jobs, runs those, tells the ends.

        Returns:
            The entries' records, in order.

        Raises:
            OSError: a disk that is full or read-only.
            UserError: a damaged record, or trials that were drawn from other ranges.
        """
        entries = list(entries)
        waiting, done = deque(entries), {}
        try:
            while waiting or self._open:
                moved = False
                while pool.free and (job := self._ask(waiting, pool.free + pool.busy)):
                    pool.start(self._open[job.entry].entry, job)
                    moved = True
                for name in [name for name, one in self._open.items() if one.done]:
                    done[name] = self._close(self._open.pop(name))
                    moved = True
                if pool.busy:
                    for outcome in pool.wait(POLL):
                        self._tell(outcome)
                elif self._open and not moved:
                    if pool.free and not self._queues.shared:
                        raise RuntimeError(f"{', '.join(self._open)}: not over, and nothing to do")
                    time.sleep(POLL)  # others are at work on what is left
        finally:
            for method_search in self._open.values():
                method_search.close()
        return [done[entry.name] for entry in entries]

    def _ask(self, waiting: deque[Entry], workers: int) -> Job | None:
        """The next job of the entries that have begun, else of the first that waits."""
        for method_search in self._open.values():
            if job := method_search.ask(workers):
                return job
        while waiting:
            entry = waiting.popleft()
            method_search = MethodSearch(self._context, entry, self._callback, self._queues)
            self._open[entry.name] = method_search
            if job := method_search.ask(workers):
                return job
        return None

    def _tell(self, outcome: Outcome) -> None:
        """Tells an entry's search what came of a job."""
        method_search = self._open[outcome.job.entry]
        if isinstance(outcome, Lost):
            method_search.tell_lost(outcome)
        else:
            method_search.tell(outcome.job, outcome.records)

    def _close(self, method_search: MethodSearch) -> RunRecord:
        if method_search.ours:
            self._concluded(method_search)
        return method_search.done
