"""How a job is done, in this process or in a worker's, and what a worker needs for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dipa_bench import devices
from dipa_bench.config.entry import Entry
from dipa_bench.config.study_file import StudyFile
from dipa_bench.execution.context import TEACHERS, StudyContext
from dipa_bench.execution.trials import run_seed, run_trials
from dipa_bench.methods import Progress
from dipa_bench.search.jobs import Job
from dipa_bench.tracking.records import RunRecord


@dataclass(frozen=True)
class Setup:
    """What a worker in another process needs, beside its jobs; all of it can be sent.

    Attributes:
        study: the resolved study, as JSON.
        folder: of the study; None where the worker shares no disk with the parent.
        teachers: folder of the cached teachers; None likewise.
        device: for `devices.resolve`.
        threads: of the CPU; None leaves torch's own choice.
    """

    study: dict[str, Any]
    folder: Path | None
    teachers: Path | None
    device: str
    threads: int | None = None

    def context(self, scratch: Path) -> StudyContext:
        """The study's context on the worker's side.

        Args:
            scratch: a folder of the worker's own, for what it shares with nobody.
        """
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        study, device = StudyFile.model_validate(self.study), devices.resolve(self.device)
        teachers = self.teachers or scratch / TEACHERS
        return StudyContext.of(study, self.folder or scratch, device, teachers=teachers)


@dataclass(frozen=True)
class JobCallback:
    """Who hears of a job's epochs while it runs.

    Attributes:
        report: (job, step, validation PSNR) -> why the trial is given up, or None.
        epoch: told of every epoch.
    """

    report: Callable[[Job, int, float], str | None] = lambda job, step, value: None
    epoch: Callable[[Job, Progress], None] = lambda job, progress: None


def perform(
    context: StudyContext, entry: Entry, job: Job, job_callback: JobCallback
) -> tuple[RunRecord, ...]:
    """Does a job; the records say how its runs ended.

    Raises:
        OSError: a disk that is full or read-only.
    """

    def progress(found: Progress) -> None:
        job_callback.epoch(job, found)

    if job.kind != "trial":
        images = context.task.images.test(job.reason)
        (record,), (place,) = job.records, job.places
        return (run_seed(context, entry, record, place, images, progress),)

    def report(step: int, value: float) -> str | None:
        return job_callback.report(job, step, value)

    return run_trials(context, entry, job, report, progress)
