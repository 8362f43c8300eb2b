"""Jobs: what the search of an entry asks workers to do, and what came of it.

The parent alone talks to Optuna and MLflow. A worker gets whole records of runs that are about to
start, does them, and returns the records as they ended.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dipa_bench.tracking.records import RunRecord


@dataclass(frozen=True)
class Job:
    """One piece of work: a test, a trial, or trials whose settings run as one batch.

    Attributes:
        entry: name of the entry.
        kind: of all its runs.
        records: of the runs, blank but for what they are to do.
        places: their run folders.
        incumbent: validation PSNRs of the entry's best setting so far, in racing order, or empty.
        estimate: mean PSNR of the incumbent over all validation images, in dB; measured, or
            estimated like that of the others.
        races: whether trials may leave off once they are significantly worse than the best.
        reason: why the test images are read; empty for trials.
    """

    entry: str
    kind: Literal["trial", "seed", "published"]
    records: tuple[RunRecord, ...]
    places: tuple[Path, ...]
    incumbent: tuple[float, ...] = ()
    estimate: float = math.nan
    races: bool = True
    reason: str = ""

    @property
    def name(self) -> str:
        numbers = ", ".join(str(record.number) for record in self.records)
        return f"{self.entry}, {self.kind} {numbers}"


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
