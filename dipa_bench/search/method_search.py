"""One entry's way from its first trial to its tested winner, as jobs for whoever does them."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from dipa_bench import parameters
from dipa_bench.config.entry import Entry
from dipa_bench.search import outcome
from dipa_bench.search.callbacks import StudyCallback
from dipa_bench.search.jobs import Job, Lost
from dipa_bench.search.queues import TrialQueues
from dipa_bench.search.stages import FITS, planned_trials
from dipa_bench.search.trial_queue import TrialQueue
from dipa_bench.search.trials import Trials
from dipa_bench.search.winner_test import WinnerTest
from dipa_bench.tracking import records
from dipa_bench.tracking.records import RunRecord
from dipa_bench.tracking.setting import command

if TYPE_CHECKING:
    from dipa_bench.execution.context import StudyContext

LOSSES = 5  # times that a run's worker may die before the run counts as failed


class MethodSearch:
    """Searches one entry, refits its winner and tests it; what is on disk is not done again.

    Args:
        context: the study's context.
        entry: the entry.
        callback: hears of what ends.
        queues: the queues of trials.

    Attributes:
        done: the method's record once it is written: finished, skipped, or diverged or failed
            where no trial finished.
        ours: whether this process concluded the entry (on a shared queue another one may).

    Raises:
        UserError: a damaged record, or trials that were drawn from other ranges.
    """

    def __init__(
        self, context: StudyContext, entry: Entry, callback: StudyCallback, queues: TrialQueues
    ) -> None:
        self._context, self.entry, self._callback, self._queues = context, entry, callback, queues
        self.folder = records.method_folder(context.folder, entry.name)
        self.done: RunRecord | None = None
        self.ours = True
        self._record = context.blank("method", entry)
        free = not entry.spec.set and not entry.spec.search  # it has its method's whole range
        if entry.method.contains and free and context.study.protocol == "tuned":
            self._record.notes["contains"] = ", ".join(entry.method.contains)
        if told := command():
            self._record.notes["command"] = told
        self._losses: Counter[tuple[str, int]] = Counter()
        self._trials: Trials | None = None
        self._test: WinnerTest | None = None  # None while the search goes on
        self._verdict: TrialQueue | None = None
        obstacle = entry.obstacle(context.task)
        if obstacle:
            self._conclude(self._record, *obstacle)
            return
        if not queues.shared:
            records.write(self.folder, self._record)
        self._trials = Trials(context, entry, self.folder, queues)
        wanted = planned_trials(entry, context.task, context.study)
        callback.method(entry.name, wanted, len(self._trials.ended))

    def ask(self, workers: int = 1) -> Job | None:
        """The next thing that a worker could do now; None where there is nothing, or not yet.

        Args:
            workers: workers that there are.
        """
        job = None
        if self.done is None and self._test is None:
            self._trials.fetch()
            job = self._trials.ask(workers)
            if job is None and self._trials.over and not self._trials.running:
                self._end_search()
        if job is None and self.done is None and self._test is not None:
            job = self._test.ask()
        if job is not None:
            self._callback.run(job.kind, self.entry.name, job.records[0].number)
        return job

    def report(self, job: Job, step: int, value: float) -> str | None:
        """Takes a trial's validation PSNR on the way; why the trial is given up, or None."""
        return self._trials.report(job, step, value) if job.kind == "trial" else None

    def tell(self, job: Job, ended: tuple[RunRecord, ...]) -> None:
        """Takes the records of a job that was done."""
        for record in ended:
            if job.kind == "trial":
                record = self._trials.tell(record)
            else:
                self._test.tell(record)
            self._callback.ended(record)
        if job.kind != "trial" and self._test.over:
            self._conclude(*self._test.conclusion())

    def tell_lost(self, lost: Lost) -> None:
        """A job's worker died: its runs are done again, or count as failed after some times."""
        job = lost.job
        for record, place in zip(job.records, job.places, strict=True):
            key = job.kind, record.index
            self._losses[key] += 1
            if self._losses[key] >= LOSSES:
                reason = f"its worker died {LOSSES} times, the last time {lost.why}"
                self._failed(job, record, place, reason)
                continue
            self._callback.message(f"{job.entry}, {record.name}: {lost.why}; it is run again")
            if job.kind != "trial":
                self._test.again(record)
                continue
            self._trials.suspect(record.index)
            stopped = {"state": "interrupted", "reason": f"{lost.why}; it is run again"}
            record = record.model_copy(update=stopped)
            records.write(place, record)
            self._trials.tell(record)

    def _failed(self, job: Job, record: RunRecord, place: Path, reason: str) -> None:
        update = {"state": "failed", "reason": reason, "finished": records.end_time(record)}
        record = record.model_copy(update=update)
        records.write(place, record)
        self.tell(Job(job.entry, job.kind, (record,), (place,)), (record,))

    def close(self) -> None:
        """Lets go of what is not finished."""
        for queue in (self._trials, self._verdict):
            if queue is not None:
                queue.close()

    def _end_search(self) -> None:
        """Takes the winner, and the right to test it."""
        budget, ended = self._context.study.budget, self._trials.all()
        trials = outcome.within(ended, budget.minutes)
        if self._verdict is None:
            spent = f"{budget.settings} settings, {budget.fits} fits"
            if budget.minutes is not None:
                spent = f"{budget.minutes:g} minutes"
            self._verdict = self._queues.conclusion(self.entry.name, spent)
        if self._verdict is not None and not self._may_conclude():
            return
        winner = outcome.best(trials)
        if winner is None:
            self._conclude(self._record, *outcome.why_none(trials))
            return
        self._record = outcome.with_winner(
            self._record, winner, trials, ended, self._trials.late_gain()
        )
        values = parameters.build(self.entry.method.parameters, winner.params)
        self._record.notes["learns_from"] = self.entry.method.learns_from(values)
        if self._trials.settled():
            patience = self._context.study.search.plateau
            self._record.notes["stopped"] = f"no gain in {patience} trials"
        self._test = WinnerTest(self._context, self.entry, self.folder, self._record)
        if self._test.over:
            self._conclude(*self._test.conclusion())

    def _may_conclude(self) -> bool:
        """Whether the winner is ours to test; takes over the record if another process did."""
        if self._verdict.next(1, ()) is not None:
            return True
        if found := self._verdict.ended():
            self.ours, self.done = False, found[0]
            self._callback.ended(self.done)
        return False

    def _conclude(self, record: RunRecord, state: str, reason: str | None) -> None:
        update = {"state": state, "reason": reason, "finished": records.end_time(record)}
        done = record.model_copy(update=update)
        records.write(self.folder, done)
        shutil.rmtree(self.folder / FITS, ignore_errors=True)
        self._callback.ended(done)
        self.done = done

    def publish(self) -> None:
        """Tells other processes that the entry is concluded, and how."""
        if self._verdict is not None and self.ours:
            (number,) = self._verdict.claimed
            self._verdict.tell(number, self.done)
