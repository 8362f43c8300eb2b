"""The surrogate against SciPy's interpolator, and what it chooses where that can be said."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.interpolate import RBFInterpolator

from dipa_bench.search.surrogate import CLOSEST, DEPTH, RIDGE, Request, Surrogate


def points(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((count, 3))


@pytest.mark.filterwarnings("ignore:`degree` should not be below 1")
def test_it_is_the_cubic_interpolator() -> None:
    """Of points none of which is raised."""
    at, new = points(30), points(50, seed=1)
    values = 25 + np.append(np.ones(16), 0.9 - 0.1 * at[16:, 0])
    values[:16] -= 0.5 * at[:16, 1] ** 2
    raised = np.maximum(values, np.median(values))
    expected = RBFInterpolator(at, raised, kernel="cubic", degree=0, smoothing=RIDGE)(new)
    assert Surrogate(at, values)(new) == pytest.approx(expected, abs=1e-6)


def test_what_is_hopeless_counts_as_the_median() -> None:
    at, values = points(21), np.linspace(20.0, 22.0, 21)
    worse = np.where(values < np.median(values), values - 15, values)
    assert Surrogate(at, worse)(at) == pytest.approx(Surrogate(at, values)(at))
    low = np.append(np.full(16, 5.0), [20.0, 21.0, 22.0, 23.0, 24.0])
    assert Surrogate(at, low)(at).min() == pytest.approx(24.0 - DEPTH, abs=0.01)


def test_a_prediction_of_equal_values_is_that_value() -> None:
    assert Surrogate(points(9), np.full(9, 25.0))(points(5, 1)) == pytest.approx(np.full(5, 25.0))


def test_by_prediction_the_best_is_chosen_and_by_distance_the_farthest() -> None:
    at = np.linspace(0, 0.5, 6)[:, None]
    surrogate = Surrogate(at, 20 + at[:, 0])
    candidates = np.linspace(0.05, 1.0, 20)[:, None]
    everywhere = np.ones(20, dtype=bool)
    best = int(np.argmax(surrogate(candidates)))
    assert surrogate.choose(candidates, [Request(1.0, everywhere)]) == [best]
    assert surrogate.choose(candidates, [Request(0.0, everywhere)]) == [19]
    assert surrogate.choose(candidates, [Request(0.0, candidates[:, 0] < 0.7)]) == [12]


def test_what_is_chosen_together_is_not_close() -> None:
    at = points(10)
    surrogate = Surrogate(at, 20 + at[:, 0])
    candidates = np.concatenate([points(300, 2), at])
    found = surrogate.choose(candidates, [Request(1.0, np.ones(310, dtype=bool))] * 20)
    assert len(found) == 20
    chosen = np.concatenate([at, candidates[found]])
    apart = np.linalg.norm(chosen[:, None] - chosen[None], axis=2) + np.eye(30)
    assert apart.min() >= CLOSEST


def test_where_nothing_is_new_nothing_is_chosen() -> None:
    at = points(10)
    requests = [Request(0.5, np.ones(10, dtype=bool)), Request(0.5, np.zeros(10, dtype=bool))]
    assert Surrogate(at, 20 + at[:, 0]).choose(at, requests) == []
