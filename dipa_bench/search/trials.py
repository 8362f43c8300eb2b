"""One entry's trials: which comes next, as jobs for whoever does them, and those that ended."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dipa_bench import parameters
from dipa_bench.config.entry import Entry
from dipa_bench.config.space import Block
from dipa_bench.parameters import Value, without_settings
from dipa_bench.search import journal, outcome
from dipa_bench.search.batches import batch_of, tuning_batch_of
from dipa_bench.search.evaluations import Proposal
from dipa_bench.search.jobs import Job
from dipa_bench.search.objectives import objectives_of, pruner_of
from dipa_bench.search.queues import TrialQueues
from dipa_bench.search.sampling import MODELS, STARTUP, NumberedSampler
from dipa_bench.search.stages import Stage, stages_of
from dipa_bench.search.tuning import (
    CLOSING,
    Base,
    Tuning,
    base_of,
    incumbent,
    psnr_of,
)
from dipa_bench.tracking import records
from dipa_bench.tracking.records import RunRecord

if TYPE_CHECKING:
    from dipa_bench.execution.context import StudyContext


class Trials:
    """The trials of an entry's search, stage by stage; those on disk are not run again.

    Args:
        context: the study's context.
        entry: the entry.
        folder: the entry's run folder.
        queues: the queues of trials.

    Attributes:
        ended: trials that ended by themselves, by index.
        running: trials that this process has given out.
        over: whether no stage has trials left, nor some that run elsewhere.

    Raises:
        UserError: a damaged record, or trials that were drawn from other ranges.
    """

    def __init__(
        self, context: StudyContext, entry: Entry, folder: Path, queues: TrialQueues
    ) -> None:
        self._context, self._entry, self._folder = context, entry, folder
        self.running, self.over = 0, False
        self._begun: dict[int, float] = {}  # jobs under way, by their first trial's number
        self._best: dict[int, float] = {}  # what they reported
        self._suspects: set[int] = set()  # indices of trials under which a worker died
        self._bases: dict[str, Base | None] = {}
        self._tunings: dict[str, Tuning] = {}
        study, task = context.study, context.task
        published = study.protocol == "published"
        space = {} if published else entry.distributions(task)
        self._fixed = entry.published(task) if published else entry.defaults(task)
        self._stages = stages_of(entry, task, study)
        self._queue = queues.trials(
            entry.name, folder, space, self._sampler(space), objectives_of(study)
        )
        self.ended = {} if queues.shared else _counted(folder)
        self.fetch()

    def _sampler(self, space: Block) -> NumberedSampler:
        """What draws the trials of the stage that does not tune, if there is one."""
        context, entry, task = self._context, self._entry, self._context.task
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
            kind=context.study.search.sampler,
            first=stage.first,
        )

    # ------------------------------------------------------------------------------ handing out

    def ask(self, workers: int) -> Job | None:
        """A job of the first stage that is not over; None where there is none, or not yet.

        Args:
            workers: workers that there are.
        """
        self.over = False
        for stage in self._stages:
            if self._late(stage.share) or (not stage.tunes and self.settled()):
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
        self.over = True
        return None

    def _base(self, stage: Stage) -> Base | None:
        """What the trials of a stage have in common; those before it have ended."""
        if stage.name not in self._bases:
            found = base_of(
                stage, self._context, self._entry, self._fixed, list(self.ended.values())
            )
            if stage.first and self.running:  # a lost trial of the stage before may come again
                return found
            self._bases[stage.name] = found
        return self._bases[stage.name]

    def _proposals(self, stage: Stage, base: Base) -> list[Proposal] | None:
        """What a tuning stage would run now; None once it is over."""
        if stage.name not in self._tunings:
            self._tunings[stage.name] = Tuning(stage, self._context, self._entry, base)
        closing = self._late(CLOSING * stage.share)
        return self._tunings[stage.name].proposals(
            self._of_stage(stage), self._queue.running(), closing
        )

    def late_gain(self) -> float | None:
        """What the last quarter of the last tuning brought, in dB; None where nothing is tuned."""
        for stage in reversed(self._stages):
            if stage.tunes and stage.name in self._tunings:
                return self._tunings[stage.name].late_gain(self._of_stage(stage))
        return None

    def _of_stage(self, stage: Stage) -> list[RunRecord]:
        """The ended trials of a stage, by index."""
        return [self.ended[index] for index in sorted(self.ended) if stage.has(index)]

    def _has_all(self, stage: Stage) -> bool:
        return set(range(stage.first, stage.first + stage.count)) <= self.ended.keys()

    def _tuning_job(
        self, stage: Stage, base: Base, proposals: list[Proposal], workers: int
    ) -> Job | None:
        """A job of as many proposals alike as run together; None where all of them run."""
        if not proposals:
            return None
        first, found = proposals[0], []
        alike = [one for one in proposals if (one.images, one.races) == (first.images, first.races)]
        size = 1 if self._alone() else tuning_batch_of(self._context, first.races, workers)
        whole = len(self._context.task.images.validation)
        for proposal in alike[:size]:
            trial = self._queue.next(None, self.ended, stage.first, proposal.params)
            record = self._blank(trial.number, self._queue.index(trial.number), base, trial.params)
            update = {
                "stage": stage.name,
                "fitted_at": dict(base.fitted_at),
                "seed": base.seed,
                "images": proposal.images if proposal.images < whole else None,
            }
            found.append(record.model_copy(update=update))
        best = incumbent(list(self.ended.values()), first.images)
        return self._trial_job(found, best, races=first.races)

    def _drawn_job(self, stage: Stage, base: Base, workers: int) -> Job | None:
        """A job of a trial that a sampler draws, or of several whose settings run as one batch."""
        found = []
        for _ in range(self._batch(workers)):
            trial = self._queue.next(stage.count, self.ended, stage.first)
            if trial is None:
                break
            record = self._blank(trial.number, self._queue.index(trial.number), base, trial.params)
            found.append(record.model_copy(update={"stage": stage.name}))
        if not found:
            return None
        return self._trial_job(found, outcome.best(list(self.ended.values())))

    def _trial_job(self, found: list[RunRecord], best: RunRecord | None, races: bool = True) -> Job:
        self.running += len(found)
        self._begun[found[0].number] = time.monotonic()
        found = [record.model_copy(update={"races": races}) for record in found]
        places = tuple(journal.trial_folder(self._folder, record.number) for record in found)
        ahead = (tuple(best.validation), psnr_of(best)) if best else ((), math.nan)
        return Job(self._entry.name, "trial", tuple(found), places, *ahead, races=races)

    def _batch(self, workers: int) -> int:
        """How many trials that a sampler draws the next job has."""
        if self._alone():
            return 1
        begun = len(self.ended) + self.running
        blind = self._context.study.search.sampler not in MODELS or begun < STARTUP
        most = batch_of(self._context, self._entry, blind, workers)
        return min(most, STARTUP - begun) if blind and begun < STARTUP else most

    def _alone(self) -> bool:
        """Whether trials run one by one, as a worker died under some that have not ended yet."""
        return bool(self._suspects - self.ended.keys())

    def _blank(self, number: int, index: int, base: Base, drawn: Mapping[str, Value]) -> RunRecord:
        seed = self._context.seed("trial", index)
        record = self._context.blank("trial", self._entry, number, seed)
        params = parameters.active(self._entry.method.parameters, {**base.params, **drawn})
        return record.model_copy(
            update={"params": params, "notes": record.notes | {"index": index}}
        )

    def settled(self) -> bool:
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

    # -------------------------------------------------------------------------------- taking back

    def report(self, job: Job, step: int, value: float) -> str | None:
        """Takes a trial's validation PSNR on the way; why the trial is given up, or None."""
        study = self._context.study
        if len(study.objectives) > 1:
            return None
        number = job.records[0].number
        value = self._best[number] = max(value, self._best.get(number, -math.inf))
        if not self._queue.report(number, step, value) or step >= study.budget.epochs:
            return None
        why = "below the median" if pruner_of(study) == "median" else "not in the best third"
        return f"validation PSNR {value:.2f} dB at step {step} was {why}"

    def tell(self, record: RunRecord) -> RunRecord:
        """Takes the record of a trial that was run; the record says if another process had it."""
        self.running -= 1
        self._begun.pop(record.number, None)
        if self._queue.tell(record.number, record):
            if record.state != "interrupted":
                self.ended[record.index] = record
            return record
        reason = "another process had taken it over"
        record = record.model_copy(update={"state": "interrupted", "reason": reason})
        records.write(journal.trial_folder(self._folder, record.number), record)
        return record

    def suspect(self, index: int) -> None:
        """A worker died under a trial: it is run again, by itself."""
        self._suspects.add(index)

    def fetch(self) -> None:
        """Takes over the records of trials that ended elsewhere."""
        for record in self._queue.ended():
            if record.index not in self.ended:
                self.ended[record.index] = record
                records.write(journal.trial_folder(self._folder, record.number), record)

    def close(self) -> None:
        """Lets go of what is not finished."""
        self._queue.close()

    def _in_order(self) -> list[RunRecord]:
        """The ended trials by index, of each stage as far as there is no gap."""
        found = []
        for stage in self._stages:
            for index in itertools.count(stage.first):
                if index not in self.ended:
                    break
                found.append(self.ended[index])
        return found

    def all(self) -> list[RunRecord]:
        """The trials that ended, stage by stage, as many as the budget gives each."""
        return [
            record
            for stage in self._stages
            for record in self._of_stage(stage)[: stage.count if not stage.tunes else None]
        ]


def _counted(folder: Path) -> dict[int, RunRecord]:
    """Records of the trials that count against the budget, by index: all that ended themselves."""
    return {
        record.index: record
        for record in journal.trial_records(folder)
        if record.state not in ("interrupted", "running")
    }
