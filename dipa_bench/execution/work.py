"""How much a study has to do, counted in reconstructions of one image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dipa_bench.config.entry import Entry
from dipa_bench.config.study_file import StudyFile
from dipa_bench.evaluation.evaluate import BATCH
from dipa_bench.search.stages import runs_published, shares_settings, stages_of
from dipa_bench.tasks.base import Task
from dipa_bench.tracking.records import RunRecord

TUNING_IMAGES = 20  # that one evaluation of solver settings takes, in the mean
SMALL_BATCHES = 1.4  # these are run in batches of 5 to 10 images, which take longer an image
TRAINING = 3.0  # a training step on an image takes about as long as so many reconstructions of it


@dataclass(frozen=True)
class Work:
    """What an entry takes at most, in reconstructions; with a budget in minutes, in seconds.

    Attributes:
        setting: one evaluation of solver settings.
        fit: one trial that fits.
        final: one fit of the winner, or of the published settings, with its test.
        settings, fits, finals: how many of these there are.
        shared: settings that another entry's search has scored.
        seconds: of the search, where that is the budget.
    """

    setting: float = 0.0
    fit: float = 0.0
    final: float = 0.0
    settings: int = 0
    fits: int = 0
    finals: int = 0
    shared: int = 0
    seconds: float | None = None

    @property
    def search(self) -> float:
        """All trials."""
        if self.seconds is not None:
            return self.seconds
        return self.settings * self.setting + self.fits * self.fit

    @property
    def total(self) -> float:
        """Search and test."""
        return self.search + (self.finals * self.final if self.seconds is None else 0.0)

    def done_by(self, record: RunRecord) -> float:
        """How much of it a run was that has ended."""
        if record.kind == "trial":
            if self.seconds is not None:
                return record.metrics.get("trial/seconds", 0.0)
            if self.shared and record.stage == "settings":
                return 0.0
            fitted = record.stage == "fit" or (not record.stage and self.fits)
            return self.fit if fitted else self.setting
        return self.final if record.kind != "method" and self.seconds is None else 0.0


def work_of(
    entry: Entry,
    task: Task,
    study: StudyFile,
    training: Mapping[str, float] | None = None,
) -> Work:
    """What an entry takes, if nothing is given up early.

    Args:
        entry: one line of the study.
        task: its task.
        study: resolved.
        training: entry to what a training step takes, in reconstructions; else `TRAINING`.
    """
    if entry.obstacle(task):
        return Work()
    budget, method = study.budget, entry.method
    validation, tested = len(task.images.validation), task.images.test_count
    images = min(budget.train_images or len(task.images.train), len(task.images.train))
    epoch = images * (training or {}).get(entry.name, TRAINING)
    epoch += budget.validation_images or validation
    one_pass = float(images) if method.learned else 0.0  # fitted otherwise than in epochs
    in_search, at_the_end = (
        epochs * epoch if method.stochastic else one_pass
        for epochs in (budget.epochs, budget.final_epochs)
    )
    stages = stages_of(entry, task, study)
    tuned = sum(stage.count or 0 for stage in stages if stage.tunes)
    shared = stages[0].count or 0 if shares_settings(entry, task, study) else 0
    other = sum(stage.count or 0 for stage in stages if not stage.tunes)
    timed = budget.minutes is not None and bool(entry.space(task))
    return Work(
        setting=SMALL_BATCHES * min(TUNING_IMAGES, validation),
        fit=in_search + validation,
        final=at_the_end + tested + 2 * min(tested, BATCH),  # once more to warm up, once to time
        settings=tuned - shared,
        fits=other,
        finals=1 + runs_published(entry, task, study),
        shared=shared,
        seconds=60 * budget.minutes if timed else None,
    )
