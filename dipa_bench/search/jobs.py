"""What a worker is given and what it gives back; the same for this process, others, and clusters.

The parent alone talks to Optuna and MLflow. A worker gets whole records of runs that are about to
start, does them, and returns the records as they ended.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from dipa_bench import devices
from dipa_bench.methods import Progress
from dipa_bench.search.bench import TEACHERS, Workbench
from dipa_bench.search.row import Row
from dipa_bench.search.runs import run_seed, run_trials
from dipa_bench.search.study_file import StudyFile
from dipa_bench.tracking.records import RunRecord


@dataclass(frozen=True)
class Job:
    """One piece of work: a seed, a trial, or trials whose settings run as one batch.

    Attributes:
        row: name of the row.
        kind: of all its runs.
        records: of the runs, blank but for what they are to do.
        places: their run folders.
        bar: validation PSNRs of the row's best setting so far, in racing order; empty for none.
        reason: why the test images are read, for a seed.
    """

    row: str
    kind: Literal["trial", "seed"]
    records: tuple[RunRecord, ...]
    places: tuple[Path, ...]
    bar: tuple[float, ...] = ()
    reason: str = ""

    @property
    def name(self) -> str:
        numbers = ", ".join(str(record.number) for record in self.records)
        return f"{self.row}, {self.kind} {numbers}"


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

    def bench(self, scratch: Path) -> Workbench:
        """The workbench on the worker's side.

        Args:
            scratch: a folder of the worker's own, for what it shares with nobody.
        """
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        study, device = StudyFile.model_validate(self.study), devices.resolve(self.device)
        teachers = self.teachers or scratch / TEACHERS
        return Workbench.of(study, self.folder or scratch, device, teachers=teachers)


@dataclass(frozen=True)
class Listener:
    """Who hears of a job's epochs while it runs.

    Attributes:
        report: (job, step, validation PSNR) -> why the trial is given up, or None.
        epoch: told of every epoch.
    """

    report: Callable[[Job, int, float], str | None] = lambda job, step, value: None
    epoch: Callable[[Job, Progress], None] = lambda job, progress: None


@dataclass(frozen=True)
class Ended:
    """A job that was done.

    Attributes:
        records: of its runs, in order, as they ended.
    """

    job: Job
    records: tuple[RunRecord, ...]


@dataclass(frozen=True)
class Lost:
    """A job whose worker died.

    Attributes:
        why: in words.
    """

    job: Job
    why: str = field(default="its process ended")


Outcome = Ended | Lost


def perform(bench: Workbench, row: Row, job: Job, listener: Listener) -> tuple[RunRecord, ...]:
    """Does a job; the records say how its runs ended.

    Raises:
        OSError: a disk that is full or read-only.
    """

    def progress(found: Progress) -> None:
        listener.epoch(job, found)

    if job.kind == "seed":
        images = bench.task.images.test(job.reason)
        (record,), (place,) = job.records, job.places
        return (run_seed(bench, row, record, place, images, progress),)

    def report(step: int, value: float) -> str | None:
        return listener.report(job, step, value)

    return run_trials(bench, row, job.records, job.places, job.bar, report, progress)
