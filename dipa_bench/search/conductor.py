"""Gives a study's jobs to workers, row by row, and takes what they bring."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable

from dipa_bench.search.bench import Workbench
from dipa_bench.search.contest import Contest
from dipa_bench.search.desk import POLL, Desk
from dipa_bench.search.jobs import Job, Listener, Lost
from dipa_bench.search.observer import Observer
from dipa_bench.search.pool import Pool
from dipa_bench.search.row import Row
from dipa_bench.tracking.records import RunRecord


class Conductor:
    """Runs the rows of a study on a pool of workers.

    Rows begin in order; the next one begins while there are workers without work.

    Args:
        bench: the workbench.
        observer: hears of everything.
        desk: where trials are claimed.
        concluded: called with every row that ended here; it sees to it that other processes hear
            of it.
    """

    def __init__(
        self,
        bench: Workbench,
        observer: Observer,
        desk: Desk,
        concluded: Callable[[Contest], None] = Contest.publish,
    ) -> None:
        self._bench, self._observer, self._desk = bench, observer, desk
        self._concluded = concluded
        self._open: dict[str, Contest] = {}

    @property
    def listener(self) -> Listener:
        """What the pool tells of epochs."""
        return Listener(
            report=lambda job, step, value: self._open[job.row].report(job, step, value),
            epoch=lambda job, progress: self._observer.epoch(job.name, progress),
        )

    def run(self, rows: Iterable[Row], pool: Pool) -> list[RunRecord]:
        """Runs all rows to their end; their records, in order.

        Raises:
            OSError: a disk that is full or read-only.
            UserError: a damaged record, or trials that were drawn from other ranges.
        """
        rows = list(rows)
        waiting, done = deque(rows), {}
        try:
            while waiting or self._open:
                idle = not self._start(waiting, pool)
                for name in [name for name, one in self._open.items() if one.done]:
                    done[name] = self._finish(self._open.pop(name))
                if pool.busy:
                    self._listen(pool)
                elif idle and self._open:
                    time.sleep(POLL)  # others are at work on what is left
        finally:
            for contest in self._open.values():
                contest.close()
        return [done[row.name] for row in rows]

    def _start(self, waiting: deque[Row], pool: Pool) -> bool:
        """Starts as many jobs as there are workers without; whether anything happened."""
        moved = False
        while pool.free:
            job = self._next(waiting, pool.free + pool.busy)
            if job is None:
                break
            pool.start(self._open[job.row].row, job)
            moved = True
        return moved or any(contest.done for contest in self._open.values())

    def _next(self, waiting: deque[Row], hands: int) -> Job | None:
        """The first job of the rows that have begun, else of the next row."""
        for contest in self._open.values():
            if job := contest.job(hands):
                return job
        while waiting:
            row = waiting.popleft()
            contest = self._open[row.name] = Contest(self._bench, row, self._observer, self._desk)
            if job := contest.job(hands):
                return job
        return None

    def _listen(self, pool: Pool) -> None:
        for outcome in pool.wait(POLL):
            contest = self._open[outcome.job.row]
            if isinstance(outcome, Lost):
                contest.lose(outcome)
            else:
                contest.take(outcome.job, outcome.records)

    def _finish(self, contest: Contest) -> RunRecord:
        if contest.ours:
            self._concluded(contest)
        return contest.done
