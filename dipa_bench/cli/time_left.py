"""How long a study still takes, from what it has done so far."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dipa_bench.execution.work import Work
    from dipa_bench.tracking.records import RunRecord

SOONEST = 10.0  # seconds of work from which there is something to say


class TimeLeft:
    """Counts the work of runs as they end.

    Args:
        work: entry to what it takes in one replicate, at most.
        replicates: how often all entries are run.
        clock: seconds.
    """

    def __init__(
        self,
        work: Mapping[str, Work],
        replicates: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._work, self._clock, self._began = work, clock, clock()
        self._left = replicates * sum(one.total for one in work.values())
        self._done_here = 0.0
        self._done: dict[str, float] = {}  # of entries under way

    def begins(self, entry: str, trials: int) -> None:
        """An entry begins of which so many trials were there already."""
        work = self._work[entry]
        count = work.settings + work.shared + work.fits
        if count and work.seconds is None:
            self._take(entry, work.search * min(1.0, trials / count))

    def ended(self, record: RunRecord) -> None:
        """A run ended; what its entry left out, once it has ended, needs no doing."""
        work = self._work.get(record.method)
        if work is None:
            return
        if record.kind == "method":
            self._left -= work.total - self._done.pop(record.method, 0.0)
            return
        done = work.done_by(record)
        self._done_here += done
        self._take(record.method, done)

    def _take(self, entry: str, done: float) -> None:
        self._done[entry] = self._done.get(entry, 0.0) + done
        self._left -= done

    @property
    def seconds(self) -> float | None:
        """Seconds that are left, at the pace so far; None until there is one."""
        elapsed = self._clock() - self._began
        if elapsed < SOONEST or self._done_here <= 0:
            return None
        return max(0.0, self._left) * elapsed / self._done_here

    def __str__(self) -> str:
        seconds = self.seconds
        if seconds is None:
            return ""
        if seconds < 90:
            return f"about {seconds:.0f} s left"
        minutes = seconds / 60
        return (
            f"about {minutes:.0f} min left" if minutes < 90 else f"about {minutes / 60:.1f} h left"
        )
