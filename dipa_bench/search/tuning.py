"""The trials of a stage: what they have in common, and which settings come next."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from dipa_bench.config.entry import Entry
from dipa_bench.parameters import Value, settings_of
from dipa_bench.search import outcome
from dipa_bench.search.evaluations import Evaluation, Proposal
from dipa_bench.search.settings_tuner import SettingsTuner
from dipa_bench.search.stages import Stage
from dipa_bench.tracking.records import RunRecord

if TYPE_CHECKING:
    from dipa_bench.execution.context import StudyContext

BRANCHES = ("solve.start", "solve.momentum")
SCHEDULES = {"solve.strength": "solve.decay"}
CLOSING = 0.85  # of a stage's time, after which nothing but the best is run, on all images


@dataclass(frozen=True)
class Base:
    """What the trials of a stage have in common.

    Attributes:
        params: flat parameters, where a trial has none of its own.
        fitted_at: solver settings that the operator was fitted at; empty where it is made anew.
        seed: of the fit.
        known: what was evaluated before the stage.
    """

    params: Mapping[str, Value]
    fitted_at: Mapping[str, Value] = field(default_factory=dict)
    seed: int = 0
    known: tuple[Evaluation, ...] = ()


def base_of(
    stage: Stage,
    context: StudyContext,
    entry: Entry,
    fixed: Mapping[str, Value],
    records: Sequence[RunRecord],
) -> Base | None:
    """What the trials of a stage have in common; None where the stages before led to nothing.

    Args:
        stage: the stage.
        context, entry: the study's context and the entry.
        fixed: the entry's untuned parameters.
        records: trials that ended.
    """
    seed = context.seed("trial", stage.first)
    if stage.name == "settings":
        return Base(fixed, settings_of(fixed) if entry.fits else {}, seed)
    if stage.name == "fit":
        best = best_settings(records)
        return Base(dict(fixed) | (settings_of(best.params) if best else {}))
    if stage.name == "tuned":
        fit = outcome.best([record for record in records if record.stage == "fit"])
        if fit is None:
            return None
        own = settings_of(fit.params)
        known = (Evaluation(own, fit.validation),) if fit.validation else ()
        return Base(fit.params, own, fit.seed, known)
    return Base(fixed)


def best_settings(records: Sequence[RunRecord]) -> RunRecord | None:
    """The trial of a ``settings`` stage with the best PSNR, of those on the most images."""
    found = [record for record in records if record.stage == "settings" and record.validation]
    whole = max((len(record.validation) for record in found), default=0)
    longest = [record for record in found if len(record.validation) == whole]
    return max(longest, key=lambda record: (psnr_of(record), -record.index), default=None)


def psnr_of(record: RunRecord) -> float:
    """A trial's validation PSNR [dB], measured or estimated; -inf where there is neither."""
    figures = record.metrics
    return figures.get("val/psnr", figures.get("val/psnr_estimate", -math.inf))


def incumbent(records: Sequence[RunRecord], images: int) -> RunRecord | None:
    """The trial with the best mean PSNR over the first images; None where none ran on as many."""
    found = [record for record in records if len(record.validation) >= images]
    return max(found, key=lambda record: math.fsum(record.validation[:images]), default=None)


class Tuning:
    """The trials of a tuning stage.

    Args:
        stage: the stage.
        context, entry: the study's context and the entry.
        base: what its trials have in common.
    """

    def __init__(self, stage: Stage, context: StudyContext, entry: Entry, base: Base) -> None:
        task = context.task
        space = entry.distributions(task)
        if entry.fits:
            space = settings_of(space)
        if stage.name == "settings" and entry.fits:
            points = entry.first_settings(task)
        else:
            points = [dict(base.fitted_at)] if stage.name == "tuned" else []
            points += entry.first_points(task)
        self.base, self._space = base, space
        self._tuner = SettingsTuner(
            space,
            [{name: point[name] for name in space if name in point} for point in points],
            stage.count,
            len(task.images.validation),
            branches=BRANCHES,
            schedules=SCHEDULES,
            seed=context.seed("search"),
            shared_seed=context.seed("solver settings"),
            conditions=entry.conditions(task),
            admits=partial(entry.admits, task),
        )

    def proposals(
        self,
        records: Sequence[RunRecord],
        running: Sequence[Mapping[str, Value]],
        closing: bool = False,
    ) -> list[Proposal] | None:
        """What could be run now; empty where all of it runs already, None once the stage is over.

        Args:
            records: of the stage's trials that ended, in their order.
            running: parameters of those that run.
            closing: whether the time is all but spent.
        """
        known = [self._evaluation(record) for record in records]
        if closing:
            return self._tuner.closing(known) or None
        return self._tuner.proposals([*map(self._within, self.base.known), *known], running)

    def late_gain(self, records: Sequence[RunRecord]) -> float:
        """What the last quarter of the stage's trials brought, in dB of validation PSNR."""
        return self._tuner.late_gain([self._evaluation(record) for record in records])

    def _evaluation(self, record: RunRecord) -> Evaluation:
        return self._within(Evaluation(record.params, record.validation))

    def _within(self, found: Evaluation) -> Evaluation:
        own = {name: found.params[name] for name in self._space if name in found.params}
        return Evaluation(own, found.psnr)
