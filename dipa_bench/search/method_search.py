"""One entry's way from its first trial to its tested winner, as jobs for whoever does them."""

from __future__ import annotations

import itertools
import math
import shutil
import time
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dipa_bench import names, parameters
from dipa_bench.config.entry import Entry
from dipa_bench.config.space import Block
from dipa_bench.parameters import Value
from dipa_bench.search import journal, outcome
from dipa_bench.search.batches import batch_of, tuning_batch_of
from dipa_bench.search.callbacks import StudyCallback
from dipa_bench.search.jobs import Job, Lost
from dipa_bench.search.objectives import objectives_of, pruner_of
from dipa_bench.search.queues import TrialQueues
from dipa_bench.search.sampling import MODELS, STARTUP, NumberedSampler
from dipa_bench.search.settings_tuner import Proposal
from dipa_bench.search.stages import FITS, Stage, planned_trials, stages_of
from dipa_bench.search.trial_queue import TrialQueue
from dipa_bench.search.tuning import (
    CLOSING,
    Base,
    Tuning,
    base_of,
    incumbent,
    psnr_of,
    without_settings,
)
from dipa_bench.tracking import records
from dipa_bench.tracking.records import RunRecord
from dipa_bench.tracking.test_reads import log_read

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
        self._losses: Counter[tuple[str, int]] = Counter()
        self._running = 0
        self._begun: dict[int, float] = {}  # jobs under way, by their first trial's number
        self._best: dict[int, float] = {}  # what they reported
        self._seeds: dict[int, RunRecord] = {}
        self._todo: list[int] | None = None  # seeds; None while the search goes on
        self._searching = True  # whether a stage has trials left, or some that run elsewhere
        self._stages: tuple[Stage, ...] = ()
        self._bases: dict[str, Base | None] = {}
        self._tunings: dict[str, Tuning] = {}
        self._queue: TrialQueue | None = None
        self._verdict: TrialQueue | None = None
        obstacle = entry.obstacle(context.task)
        if obstacle:
            self._conclude(self._record, *obstacle)
            return
        if not queues.shared:
            records.write(self.folder, self._record)
        self._open()

    def _open(self) -> None:
        """Opens the search where it stands."""
        context, entry, task = self._context, self.entry, self._context.task
        published = context.study.protocol == "published"
        space = {} if published else entry.distributions(task)
        self._fixed = entry.published(task) if published else entry.defaults(task)
        self._stages = stages_of(entry, task, context.study)
        self._queue = self._queues.trials(
            entry.name, self.folder, space, self._sampler(space), objectives_of(context.study)
        )
        self._ended = {} if self._queues.shared else _counted(self.folder)
        wanted = planned_trials(entry, task, context.study)
        self._callback.method(entry.name, wanted, len(self._ended))
        self._fetch()

    def _sampler(self, space: Block) -> NumberedSampler:
        """What draws the trials of the stage that does not tune, if there is one."""
        context, entry, task = self._context, self.entry, self._context.task
        stage = next((one for one in self._stages if not one.tunes), self._stages[0])
        own = without_settings(space) if stage.name == "fit" else dict(space)
        points: list[dict[str, Value]] = []
        for point in entry.first_points(task) if space else ():
            point = {name: value for name, value in point.items() if name in own}
            if point and point not in points:
                points.append(point)
        return NumberedSampler(
            own,
            context.seed("search"),
            points,
            entry.solver_names(task),
            context.seed("solver settings"),
            conditions=entry.conditions(task),
            admits=partial(entry.admits, task),
            limits=entry.limits(task),
            kind=context.study.search.sampler,
            first=stage.first,
        )

    # ------------------------------------------------------------------------------ handing out

    def ask(self, workers: int = 1) -> Job | None:
        """The next thing that a worker could do now; None where there is nothing, or not yet.

        Args:
            workers: workers that there are.
        """
        if self.done is None and self._todo is None:
            self._fetch()
            if job := self._trials(workers):
                return job
            if not self._running and not self._searching:
                self._end_search()
        if self.done is None and self._todo:
            return self._seed(self._todo.pop(0))
        return None

    def _trials(self, workers: int) -> Job | None:
        """A job of the first stage that is not over; None where there is none, or not yet."""
        self._searching = True
        for stage in self._stages:
            if self._late(stage.share) or (not stage.tunes and self._settled()):
                continue
            base = self._base(stage)
            if base is None:
                continue
            if stage.tunes:
                proposals = self._proposals(stage, base)
                if proposals is None:
                    continue
                return self._tuning_job(stage, base, proposals, workers)
            if job := self._drawn_job(stage, base, workers):
                return job
            if stage.count is None or not self._has_all(stage):
                return None
        self._searching = False
        return None

    def _base(self, stage: Stage) -> Base | None:
        """What the trials of a stage have in common; those before it have ended."""
        if stage.name not in self._bases:
            found = base_of(
                stage, self._context, self.entry, self._fixed, list(self._ended.values())
            )
            if stage.first and self._running:  # a lost trial of the stage before may come again
                return found
            self._bases[stage.name] = found
        return self._bases[stage.name]

    def _proposals(self, stage: Stage, base: Base) -> list[Proposal] | None:
        """What a tuning stage would run now; None once it is over."""
        if stage.name not in self._tunings:
            self._tunings[stage.name] = Tuning(stage, self._context, self.entry, base)
        closing = self._late(CLOSING * stage.share)
        return self._tunings[stage.name].proposals(
            self._of_stage(stage), self._queue.running(), closing
        )

    def _of_stage(self, stage: Stage) -> list[RunRecord]:
        """The ended trials of a stage, by index."""
        return [self._ended[index] for index in sorted(self._ended) if stage.has(index)]

    def _has_all(self, stage: Stage) -> bool:
        return set(range(stage.first, stage.first + stage.count)) <= self._ended.keys()

    def _tuning_job(
        self, stage: Stage, base: Base, proposals: list[Proposal], workers: int
    ) -> Job | None:
        """A job of as many proposals alike as run together; None where all of them run."""
        if not proposals:
            return None
        first, found = proposals[0], []
        alike = [one for one in proposals if (one.images, one.races) == (first.images, first.races)]
        size = 1 if self._suspects() else tuning_batch_of(self._context, first.races, workers)
        whole = len(self._context.task.images.validation)
        for proposal in alike[:size]:
            trial = self._queue.next(None, self._ended, stage.first, proposal.params)
            record = self._blank(trial.number, self._queue.index(trial.number), base, trial.params)
            update = {
                "stage": stage.name,
                "fitted_at": dict(base.fitted_at),
                "seed": base.seed,
                "images": proposal.images if proposal.images < whole else None,
            }
            found.append(record.model_copy(update=update))
        best = incumbent(list(self._ended.values()), first.images)
        return self._trial_job(found, best, races=first.races)

    def _drawn_job(self, stage: Stage, base: Base, workers: int) -> Job | None:
        """A job of a trial that a sampler draws, or of several whose settings run as one batch."""
        found = []
        for _ in range(self._batch(workers)):
            trial = self._queue.next(stage.count, self._ended, stage.first)
            if trial is None:
                break
            record = self._blank(trial.number, self._queue.index(trial.number), base, trial.params)
            found.append(record.model_copy(update={"stage": stage.name}))
        if not found:
            return None
        return self._trial_job(found, outcome.best(list(self._ended.values())))

    def _trial_job(self, found: list[RunRecord], best: RunRecord | None, races: bool = True) -> Job:
        self._running += len(found)
        self._begun[found[0].number] = time.monotonic()
        places = tuple(journal.trial_folder(self.folder, record.number) for record in found)
        ahead = (tuple(best.validation), psnr_of(best)) if best else ((), math.nan)
        job = Job(self.entry.name, "trial", tuple(found), places, *ahead, races=races)
        self._callback.run("trial", self.entry.name, found[0].number)
        return job

    def _batch(self, workers: int) -> int:
        """How many trials that a sampler draws the next job has."""
        if self._suspects():
            return 1
        begun = len(self._ended) + self._running
        blind = self._context.study.search.sampler not in MODELS or begun < STARTUP
        most = batch_of(self._context, self.entry, blind, workers)
        return min(most, STARTUP - begun) if blind and begun < STARTUP else most

    def _suspects(self) -> set[int]:
        """Indices of trials under which a worker died; each is run again by itself."""
        return {index for kind, index in self._losses if kind == "trial"} - self._ended.keys()

    def _blank(self, number: int, index: int, base: Base, drawn: Mapping[str, Value]) -> RunRecord:
        seed = self._context.seed("trial", index)
        record = self._context.blank("trial", self.entry, number, seed)
        params = parameters.active(self.entry.method.parameters, {**base.params, **drawn})
        return record.model_copy(
            update={"params": params, "notes": record.notes | {"index": index}}
        )

    def _settled(self) -> bool:
        """Whether a sampler that draws everything has had no gain for as long as the study says."""
        search = self._context.study.search
        return self._stages[0].name == "" and outcome.settled(
            self._in_order(), search.plateau, search.gain
        )

    def _late(self, share: float) -> bool:
        """Whether a share of a budget in minutes is spent; there is time for a first trial."""
        minutes, trials = self._context.study.budget.minutes, self._in_order()
        if minutes is None or not trials:
            return False
        begun = [time.monotonic() - started for started in self._begun.values()]
        return outcome.spent(trials)[-1] + sum(begun) >= 60 * minutes * share

    def _seed(self, number: int) -> Job:
        name = self.entry.name
        blank = self._context.blank("seed", self.entry, number, self._context.seed("seed", number))
        winner = {"params": self._record.params, "fitted_at": self._record.fitted_at}
        blank = blank.model_copy(update=winner)
        if number == 0:
            for shown in names.SHOWN:  # of an earlier winner
                (self.folder / shown).unlink(missing_ok=True)
        self._callback.run("seed", name, number)
        reason = f"{self._context.study.name} / {name}: seed {number} of the winner"
        log_read(self._context.folder, reason)
        self._running += 1
        return Job(name, "seed", (blank,), (self.folder / f"seed-{number}",), reason=reason)

    # -------------------------------------------------------------------------------- taking back

    def report(self, job: Job, step: int, value: float) -> str | None:
        """Takes a trial's validation PSNR on the way; why the trial is given up, or None."""
        study = self._context.study
        if job.kind != "trial" or len(study.objectives) > 1:
            return None
        number = job.records[0].number
        value = self._best[number] = max(value, self._best.get(number, -math.inf))
        if not self._queue.report(number, step, value) or step >= study.budget.epochs:
            return None
        why = "below the median" if pruner_of(study) == "median" else "not in the best third"
        return f"validation PSNR {value:.2f} dB at step {step} was {why}"

    def tell(self, job: Job, ended: tuple[RunRecord, ...]) -> None:
        """Takes the records of a job that was done."""
        for record in ended:
            self._running -= 1
            if job.kind == "seed":
                self._seeds[record.number] = record
            else:
                record = self._tell_queue(record)
            self._callback.ended(record)
        if job.kind == "seed" and not self._todo and not self._running:
            self._end_seeds()

    def _tell_queue(self, record: RunRecord) -> RunRecord:
        """Tells the queue how a trial ended; its record, which says if another process had it."""
        self._begun.pop(record.number, None)
        if self._queue.tell(record.number, record):
            if record.state != "interrupted":
                self._ended[record.index] = record
            return record
        reason = "another process had taken it over"
        record = record.model_copy(update={"state": "interrupted", "reason": reason})
        records.write(journal.trial_folder(self.folder, record.number), record)
        return record

    def tell_lost(self, lost: Lost) -> None:
        """A job's worker died: its runs are done again, or count as failed after some times."""
        job = lost.job
        self._running -= len(job.records)
        for record, place in zip(job.records, job.places, strict=True):
            key = job.kind, record.index
            self._losses[key] += 1
            if self._losses[key] >= LOSSES:
                reason = f"its worker died {LOSSES} times, the last time {lost.why}"
                self._failed(job, record, place, reason)
                continue
            self._callback.message(f"{job.entry}, {record.name}: {lost.why}; it is run again")
            stopped = {"state": "interrupted", "reason": f"{lost.why}; it is run again"}
            record = record.model_copy(update=stopped)
            if job.kind == "seed":
                self._todo.append(record.number)
            else:
                records.write(place, record)
                self._tell_queue(record)

    def _failed(self, job: Job, record: RunRecord, place: Path, reason: str) -> None:
        update = {"state": "failed", "reason": reason, "finished": records.end_time(record)}
        record = record.model_copy(update=update)
        records.write(place, record)
        self._running += 1
        self.tell(Job(job.entry, job.kind, (record,), (place,)), (record,))

    def close(self) -> None:
        """Lets go of what is not finished."""
        for queue in (self._queue, self._verdict):
            if queue is not None:
                queue.close()

    # ------------------------------------------------------------------------------------- ending

    def _in_order(self) -> list[RunRecord]:
        """The ended trials by index, of each stage as far as there is no gap."""
        found = []
        for stage in self._stages:
            for index in itertools.count(stage.first):
                if index not in self._ended:
                    break
                found.append(self._ended[index])
        return found

    def _fetch(self) -> None:
        """Takes over the records of trials that ended elsewhere."""
        for record in self._queue.ended():
            if record.index not in self._ended:
                self._ended[record.index] = record
                records.write(journal.trial_folder(self.folder, record.number), record)

    def _end_search(self) -> None:
        """Takes the winner, and the right to test it."""
        budget = self._context.study.budget
        ended = [
            record
            for stage in self._stages
            for record in self._of_stage(stage)[: stage.count if not stage.tunes else None]
        ]
        trials = outcome.within(ended, budget.minutes)
        if self._verdict is None:
            spent = f"{budget.settings} settings, {budget.fits} fits"
            if budget.minutes is not None:
                spent = f"{budget.minutes:g} minutes"
            label = f"{spent}, {budget.seeds} seeds"
            self._verdict = self._queues.conclusion(self.entry.name, label)
        if self._verdict is not None and not self._may_conclude():
            return
        winner = outcome.best(trials)
        if winner is None:
            self._conclude(self._record, *outcome.why_none(trials))
            return
        self._record = outcome.with_winner(self._record, winner, trials, ended)
        if self._settled():
            patience = self._context.study.search.plateau
            self._record.notes["stopped"] = f"no gain in {patience} trials"
        self._todo = self._seeds_to_do()
        if not self._todo:
            self._end_seeds()

    def _may_conclude(self) -> bool:
        """Whether the winner is ours to test; takes over the record if another process did."""
        if self._verdict.next(1, ()) is not None:
            return True
        if found := self._verdict.ended():
            self.ours, self.done = False, found[0]
            self._callback.ended(self.done)
        return False

    def _seeds_to_do(self) -> list[int]:
        """Numbers of the seeds of which there is no finished record of these parameters."""
        count = self._context.study.budget.seeds if self.entry.method.stochastic else 1
        for number in range(count):
            place = self.folder / f"seed-{number}"
            if (place / records.RECORD).exists():
                found = records.read(place)
                same = (found.params, found.fitted_at) == (
                    self._record.params,
                    self._record.fitted_at,
                )
                if found.state == "finished" and same:
                    self._seeds[number] = found
        return [number for number in range(count) if number not in self._seeds]

    def _end_seeds(self) -> None:
        seeds = [self._seeds[number] for number in sorted(self._seeds)]
        bad = [seed for seed in seeds if seed.state != "finished"]
        if bad:
            reason = f"seed {bad[0].number} of the winner {bad[0].state}: {bad[0].reason}"
            self._conclude(self._record, bad[0].state, reason)
            return
        shifted = bool(self._context.study.shifts)
        found = outcome.summary(self.folder, self._record, seeds, shifted)
        self._conclude(found, "finished")

    def _conclude(self, record: RunRecord, state: str, reason: str | None = None) -> None:
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


def _counted(folder: Path) -> dict[int, RunRecord]:
    """Records of the trials that count against the budget, by index: all that ended themselves."""
    return {
        record.index: record
        for record in journal.trial_records(folder)
        if record.state not in ("interrupted", "running")
    }
