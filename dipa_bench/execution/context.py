"""The study's context: what all runs of one study share."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from dipa_bench import digests
from dipa_bench.config.entry import Entry
from dipa_bench.config.problem import build_task
from dipa_bench.config.study_file import StudyFile
from dipa_bench.data.images import ImageSet
from dipa_bench.execution import shifts
from dipa_bench.execution.score_cache import ScoreCache
from dipa_bench.learning import lmmse
from dipa_bench.learning.teachers import TeacherCache
from dipa_bench.parameters import Value
from dipa_bench.reuse import CachedPerTask, OperatorCache
from dipa_bench.tasks.base import Task
from dipa_bench.tracking.environment import describe
from dipa_bench.tracking.records import RunRecord
from dipa_bench.tracking.test_reads import log_read

TEACHERS = ".teachers"  # beside the studies' folders


@dataclass(frozen=True)
class StudyContext:
    """What all runs of one study share.

    Attributes:
        study: the resolved study.
        task: made from its problem.
        folder: of the study, on disk.
        environment: versions and device, for the records.
        lmmse: the LMMSE map of the task and the budget's images, fitted on first use.
        operator_cache: fitted operators, for trials that change solver settings alone.
        scores: of solver settings without an operator, which entries share.
        batches: entry to the largest batch that fits into memory, where that is not the budget's.
    """

    study: StudyFile
    task: Task
    folder: Path
    teachers: TeacherCache
    environment: Mapping[str, Value]
    lmmse: CachedPerTask = field(init=False)
    operator_cache: OperatorCache = field(default_factory=OperatorCache)
    scores: ScoreCache = field(default_factory=ScoreCache)
    batches: dict[str, int] = field(default_factory=dict)

    @staticmethod
    def of(
        study: StudyFile,
        folder: Path,
        device: torch.device,
        *,
        task: Task | None = None,
        teachers: Path | None = None,
    ) -> StudyContext:
        """Everything that runs of a study need: task, folder, teachers, seeds and environment.

        Args:
            study: resolved.
            folder: of its runs.
            device: where they take place.
            task: the study's, where it was made already.
            teachers: folder of the cached teachers; by default beside the study's own.
        """
        if task is None:
            task = study_task(study, device)
        cache = TeacherCache(teachers or folder.parent / TEACHERS)
        return StudyContext(study, task, folder, cache, describe(task.device))

    def __post_init__(self) -> None:
        count = self.study.budget.train_images
        object.__setattr__(self, "lmmse", CachedPerTask(partial(lmmse.cross_fitted, count=count)))

    @cached_property
    def shifted(self) -> dict[str, Task]:
        """The task at the study's further settings."""
        return {name: shifts.shifted(self.task, it) for name, it in self.study.shifts.items()}

    def seed(self, *parts: Any) -> int:
        """A seed of this study and of this one of its replicates."""
        replicate = ("replicate", self.study.replicate) if self.study.replicate else ()
        return digests.seed(self.study.seed, *parts, *replicate)

    @property
    def saved(self) -> float:
        """Seconds that results which were there already have saved the fits so far."""
        return self.shared_seconds + self.operator_cache.saved

    @property
    def shared_seconds(self) -> float:
        """Those of them that entries share, and another may have paid for."""
        return self.teachers.saved + self.lmmse.saved

    def blank(self, kind: str, entry: Entry, number: int = 0, seed: int = 0) -> RunRecord:
        """A record of a run that is about to start."""
        return RunRecord(
            kind=kind,
            study=self.study.name,
            task=self.study.task,
            method=entry.name,
            number=number,
            seed=seed,
            protocol=self.study.protocol,
            preset=self.study.preset,
            title=entry.method.title,
            operator=entry.method.operator,
            rule=entry.method.rule,
            learned=entry.method.learned,
            started=time.time(),
            study_file=self.study.model_dump(mode="json"),
            environment=dict(self.environment),
            data_digest=self.task.images.digest,
            notes=self.task.notes,
        )


def study_task(study: StudyFile, device: torch.device) -> Task:
    """The task of a study's problem.

    Raises:
        UserError: as `build_task`.
    """
    return build_task(study.task, study.problem, seed=study.seed, device=device)


def read_test(context: StudyContext, reason: str) -> ImageSet:
    """The test images; that they were read goes to the study's log before anything else."""
    log_read(context.folder, reason)
    return context.task.images.test(reason)
