"""Which trial of a search wins."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from dipa_bench.search import outcome


def trial(index: int, psnr: float, state: str = "finished", **more: Any) -> SimpleNamespace:
    """What `outcome.best` reads of a record."""
    given = {"stage": "", "fitted_at": {}} | more
    return SimpleNamespace(index=index, state=state, metrics={"val/psnr": psnr}, **given)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_the_earliest_of_equals_wins_whenever_it_ended(order: tuple[int, ...]) -> None:
    trials = [trial(0, 20.0), trial(1, 21.0), trial(2, 21.0)]
    assert outcome.best([trials[place] for place in order]) is trials[1]


def test_only_what_is_finished_and_fitted_counts() -> None:
    fitted = trial(1, 20.0, stage="tuned", fitted_at={"solve.step": 1.0})
    others = [
        trial(0, 25.0, state="pruned"),
        trial(2, 24.0, stage="settings", fitted_at={"solve.step": 1.0}),  # of the initial operator
        trial(3, 23.0, state="diverged"),
    ]
    assert outcome.best([*others, fitted]) is fitted
    assert outcome.best(others) is None
    assert outcome.best([]) is None
