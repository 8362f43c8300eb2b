"""What settings without an operator scored, for all entries that start from the identity."""

from __future__ import annotations

from collections.abc import Hashable

from dipa_bench.errors import Diverged
from dipa_bench.evaluation.race import Raced


class ScoreCache:
    """Scores of races that were run by this process.

    Searches that start from the identity ask the same of it, as what a search asks for depends on
    nothing but what it was told. Scores are kept for exactly what was asked, so that reusing them
    changes no number.
    """

    def __init__(self) -> None:
        self._kept: dict[Hashable, tuple[list[Raced], float]] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def take(self, key: Hashable) -> tuple[list[Raced], float] | None:
        """Scores of the settings of a race, and the seconds that it took."""
        return self._kept.get(key)

    def put(self, key: Hashable, found: list[Raced], seconds: float) -> None:
        """Keeps scores, but for those of a race that something broke: it may not break again."""
        if all(one.error is None or isinstance(one.error, Diverged) for one in found):
            self._kept[key] = found, seconds
