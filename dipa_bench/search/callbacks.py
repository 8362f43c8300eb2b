"""What a study tells while it runs; the command line draws it, tests listen or stay silent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from dipa_bench.methods import Progress
from dipa_bench.tracking.records import RunRecord

if TYPE_CHECKING:
    import pandas as pd

    from dipa_bench.execution.work import Work


class StudyCallback:
    """Hears of everything and does nothing; override what is wanted."""

    def planned(self, work: Mapping[str, Work], replicates: int) -> None:
        """A study begins: what each entry takes at most, in each of so many replicates."""

    def method(self, entry: str, trials: int | None, done: int) -> None:
        """An entry's search begins; `done` of its `trials` (None: any number) are there already."""

    def run(self, kind: str, entry: str, number: int) -> None:
        """A trial or a seed begins."""

    def epoch(self, job: str, progress: Progress) -> None:
        """A fit of a job finished an epoch."""

    def ended(self, record: RunRecord) -> None:
        """A trial, seed or method ended, its record says how."""

    def replicate(self, number: int, board: pd.DataFrame) -> None:
        """So many replicates of a study have ended, and others follow; the leaderboard so far."""

    def message(self, text: str) -> None:
        """Something worth a line."""
