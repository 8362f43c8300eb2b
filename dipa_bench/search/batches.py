"""How many trials are one job."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dipa_bench.config.entry import Entry

if TYPE_CHECKING:
    from dipa_bench.execution.context import StudyContext

GROUP = 8  # settings in one job; on a GPU one batch, as a few images do not fill the device


def untrained(entry: Entry) -> bool:
    """Whether an entry's settings need no training, so that trying one is running it."""
    return not entry.method.stochastic or entry.method.solver_free


def runs_as_batch(context: StudyContext) -> bool:
    """Whether several settings run as one batch; a CPU gains nothing, and rounds differently."""
    return context.study.search.batch is not None or context.task.device.type == "cuda"


def batch_of(context: StudyContext, entry: Entry, blind: bool, workers: int) -> int:
    """How many trials of an entry are one job, whose settings race against each other.

    Args:
        context, entry: the study's context and the entry.
        blind: whether the next draws would be the same whatever the trials before them brought.
        workers: workers that share the trials out.
    """
    study = context.study
    if not untrained(entry) or "seconds" in study.objectives:
        return 1  # a batch's seconds are shared alike, whoever took them
    if study.search.batch is not None or runs_as_batch(context):
        return study.search.batch or GROUP
    if not blind or study.budget.minutes is not None or study.search.plateau is not None:
        return 1  # whether there is a next trial depends on this one
    return max(1, GROUP // workers)


def tuning_batch_of(context: StudyContext, races: bool, workers: int) -> int:
    """How many proposals of a tuner are one job.

    Args:
        context: the study's context.
        races: whether they race against each other.
        workers: workers that share them out.
    """
    if runs_as_batch(context):
        return context.study.search.batch or GROUP
    return max(1, GROUP // workers) if races else 1
