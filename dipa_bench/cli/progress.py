"""A study's progress on the terminal: bars where there is one, lines everywhere."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.progress import (
    Progress as Bars,
)
from rich.text import Text

from dipa_bench.cli.time_left import TimeLeft
from dipa_bench.methods import Progress
from dipa_bench.search.callbacks import StudyCallback
from dipa_bench.tracking.records import RunRecord

if TYPE_CHECKING:
    import pandas as pd

    from dipa_bench.execution.work import Work


class Terminal(StudyCallback):
    """Draws a bar for the study's rows, with the time left, one for the trials of each row under
    way, and one for each running fit's epochs.

    A context manager. Where standard error is no terminal only finished runs are printed.

    Args:
        quiet: print neither bars nor runs, only what a user has to know.
    """

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._bars = Bars(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=self._console,
            disable=quiet or not sys.stderr.isatty(),
            transient=True,
        )
        self._time_left: TimeLeft | None = None
        self._study: TaskID | None = None
        self._rows: dict[str, TaskID] = {}
        self._jobs: dict[str, TaskID] = {}

    def __enter__(self) -> Terminal:
        self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bars.stop()

    def planned(self, work: Mapping[str, Work], replicates: int) -> None:
        self._time_left = TimeLeft(work, replicates)
        count = len(work) * replicates
        self._study = self._bars.add_task("rows of the study", total=count, left="")

    def method(self, row: str, trials: int | None, done: int) -> None:
        if self._time_left is not None:
            self._time_left.begins(row, done)
        self._rows[row] = self._bars.add_task(row, total=trials, completed=done, left="")

    def run(self, kind: str, row: str, number: int) -> None:
        if row in self._rows:
            self._bars.update(self._rows[row], description=f"{row}, {kind} {number}")

    def epoch(self, job: str, progress: Progress) -> None:
        if job not in self._jobs:
            self._jobs[job] = self._bars.add_task(job, total=progress.epochs, left="")
        self._bars.update(
            self._jobs[job],
            completed=progress.epoch,
            description=f"  {job}: loss {progress.loss:.3g}, validation {progress.psnr:.2f} dB",
        )

    def ended(self, record: RunRecord) -> None:
        row = self._rows.get(record.method)
        if row is not None and record.kind == "trial":
            self._bars.advance(row)
        job = f"{record.method}, {record.name}"
        if job in self._jobs:
            self._bars.remove_task(self._jobs.pop(job))
        if row is not None and record.kind == "method":
            self._bars.remove_task(self._rows.pop(record.method))
        if self._study is not None:
            self._time_left.ended(record)
            self._bars.update(
                self._study, advance=record.kind == "method", left=str(self._time_left)
            )
        if not self._quiet:
            self.message(_line(record))

    def replicate(self, number: int, board: pd.DataFrame) -> None:
        from dipa_bench.reports.rendering import render

        if self._quiet:
            return
        for line in f"\nafter replicate {number}, others follow:\n{render(board)}".splitlines():
            self.message(line)

    def message(self, text: str) -> None:
        self._console.print(Text("".join(c if c.isprintable() else " " for c in text)))


def _line(record: RunRecord) -> str:
    """One line about a run that ended."""
    what = record.method if record.kind == "method" else f"{record.method}, {record.name}"
    if record.state != "finished":
        return f"{what}: {record.state} ({record.reason})"
    if record.kind == "method":
        return f"{what}: test {record.metrics['test/psnr']:.2f} dB, {_settings(record)}"
    split, shown = ("validation", "val/psnr") if record.kind == "trial" else ("test", "test/psnr")
    seconds = record.metrics["trial/seconds"]
    return f"{what}: {split} {record.metrics[shown]:.2f} dB in {seconds:.1f} s{_epoch(record)}"


def _epoch(record: RunRecord) -> str:
    """Which epoch's operator was kept; epoch 0 is the untrained one."""
    if "best_epoch" not in record.notes:
        return ""
    return f", best epoch {record.notes['best_epoch']} of {record.notes['epochs']}"


def _settings(record: RunRecord) -> str:
    """A winner's parameters, in short."""

    def text(value: object) -> str:
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    chosen = ", ".join(f"{name}={text(value)}" for name, value in record.params.items())
    return chosen or "nothing to tune"
