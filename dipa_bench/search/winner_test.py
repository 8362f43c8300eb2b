"""The runs that measure an entry on test images: its winner's and its published settings'."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dipa_bench import names, parameters
from dipa_bench.config.entry import Entry
from dipa_bench.search import outcome
from dipa_bench.search.jobs import Job
from dipa_bench.search.stages import runs_published
from dipa_bench.tracking import records
from dipa_bench.tracking.records import RunRecord
from dipa_bench.tracking.test_reads import log_read

if TYPE_CHECKING:
    from dipa_bench.execution.context import StudyContext

PUBLISHED = "published"  # the run folder of the published settings
WINNER = "seed-0"  # and of the winner


class WinnerTest:
    """An entry's winner, fitted again, and its published settings; what is on disk is kept.

    The published settings were fixed before the search, so they are run once, in a study's first
    replicate, where the method has some.

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
        self._ended: dict[str, RunRecord] = {}  # by the name of their run folders
        self._todo: list[RunRecord] = []
        winner = {"params": record.params, "fitted_at": record.fitted_at}
        blank = context.blank("seed", entry, 0, context.seed("seed", 0))
        blanks = [blank.model_copy(update=winner)]
        if (published := self._published()) is not None:
            blanks.append(published)
        for blank in blanks:
            found = self._kept(blank)
            if found is None:
                self._todo.append(blank)
            else:
                self._ended[_folder(blank)] = found

    @property
    def over(self) -> bool:
        """Whether both have ended."""
        return not self._todo and not self._running

    def ask(self) -> Job | None:
        """The next run; None where there is none left to begin."""
        if not self._todo:
            return None
        blank, folder = self._todo.pop(0), self._context.folder
        if blank.kind == "seed":
            for shown in names.SHOWN:  # of an earlier winner
                (self._folder / shown).unlink(missing_ok=True)
        what = "the winner" if blank.kind == "seed" else blank.name
        reason = f"{self._context.study.name} / {self._entry.name}: {what}"
        log_read(folder, reason)
        self._running += 1
        place = self._folder / _folder(blank)
        return Job(self._entry.name, blank.kind, (blank,), (place,), reason=reason)

    def tell(self, record: RunRecord) -> None:
        """Takes the record of a run that ended."""
        self._running -= 1
        self._ended[_folder(record)] = record

    def again(self, record: RunRecord) -> None:
        """A run's worker died: it is run again."""
        self._running -= 1
        self._todo.append(record)

    def conclusion(self) -> tuple[RunRecord, str, str | None]:
        """The entry's record with the figures of both, its state, and the reason for it."""
        tested = self._ended[WINNER]
        if tested.state != "finished":
            return self._record, tested.state, f"the winner {tested.state}: {tested.reason}"
        shifted = bool(self._context.study.shifts)
        found = outcome.summary(self._folder, self._record, tested, shifted)
        return outcome.with_published(found, self._ended.get(PUBLISHED)), "finished", None

    def _published(self) -> RunRecord | None:
        """A blank record of the published settings, where they are to be run."""
        context, entry = self._context, self._entry
        if not runs_published(entry, context.task, context.study):
            return None
        params = parameters.active(entry.method.parameters, entry.published(context.task))
        blank = context.blank(PUBLISHED, entry, 0, context.seed("seed", 0))
        return blank.model_copy(update={"params": params})

    def _kept(self, blank: RunRecord) -> RunRecord | None:
        """The finished record of a run with the same parameters."""
        place = self._folder / _folder(blank)
        if not (place / records.RECORD).exists():
            return None
        found = records.read(place)
        same = (found.params, found.fitted_at) == (blank.params, blank.fitted_at)
        return found if found.state == "finished" and same else None


def _folder(record: RunRecord) -> str:
    """The name of a run's folder."""
    return PUBLISHED if record.kind == PUBLISHED else WINNER
