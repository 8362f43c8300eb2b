"""The test of an entry's winner: refitted with each of the study's seeds, then measured once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dipa_bench import names
from dipa_bench.config.entry import Entry
from dipa_bench.search import outcome
from dipa_bench.search.jobs import Job
from dipa_bench.tracking import records
from dipa_bench.tracking.records import RunRecord
from dipa_bench.tracking.test_reads import log_read

if TYPE_CHECKING:
    from dipa_bench.execution.context import StudyContext


class WinnerTest:
    """The seeds of an entry's winner; those on disk, of the same parameters, are not run again.

    Args:
        context: the study's context.
        entry: the entry.
        folder: the entry's run folder.
        record: the entry's, with its winner.
    """

    def __init__(
        self, context: StudyContext, entry: Entry, folder: Path, record: RunRecord
    ) -> None:
        self._context, self._entry, self._folder = context, entry, folder
        self._record, self._running = record, 0
        self._seeds: dict[int, RunRecord] = {}
        count = context.study.budget.seeds if entry.method.stochastic else 1
        for number in range(count):
            self._take(number)
        self._todo = [number for number in range(count) if number not in self._seeds]

    @property
    def over(self) -> bool:
        """Whether all seeds have ended."""
        return not self._todo and not self._running

    def ask(self) -> Job | None:
        """The next seed; None where all of them run or have ended."""
        if not self._todo:
            return None
        number, context = self._todo.pop(0), self._context
        blank = context.blank("seed", self._entry, number, context.seed("seed", number))
        winner = {"params": self._record.params, "fitted_at": self._record.fitted_at}
        if number == 0:
            for shown in names.SHOWN:  # of an earlier winner
                (self._folder / shown).unlink(missing_ok=True)
        reason = f"{context.study.name} / {self._entry.name}: seed {number} of the winner"
        log_read(context.folder, reason)
        self._running += 1
        place = self._folder / f"seed-{number}"
        blank = blank.model_copy(update=winner)
        return Job(self._entry.name, "seed", (blank,), (place,), reason=reason)

    def tell(self, record: RunRecord) -> None:
        """Takes the record of a seed that ended."""
        self._running -= 1
        self._seeds[record.number] = record

    def again(self, number: int) -> None:
        """A seed's worker died: it is run again."""
        self._running -= 1
        self._todo.append(number)

    def conclusion(self) -> tuple[RunRecord, str, str | None]:
        """The entry's record with the figures of all seeds, its state, and the reason for that."""
        seeds = [self._seeds[number] for number in sorted(self._seeds)]
        bad = [seed for seed in seeds if seed.state != "finished"]
        if bad:
            reason = f"seed {bad[0].number} of the winner {bad[0].state}: {bad[0].reason}"
            return self._record, bad[0].state, reason
        shifted = bool(self._context.study.shifts)
        return outcome.summary(self._folder, self._record, seeds, shifted), "finished", None

    def _take(self, number: int) -> None:
        """Takes over a finished record of a seed of the same parameters."""
        place, winner = self._folder / f"seed-{number}", self._record
        if not (place / records.RECORD).exists():
            return
        found = records.read(place)
        same = (found.params, found.fitted_at) == (winner.params, winner.fitted_at)
        if found.state == "finished" and same:
            self._seeds[number] = found
