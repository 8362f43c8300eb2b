"""The grid of operators and rules against a two-way analysis by hand."""

import numpy as np
import pandas as pd
import pytest

from dipa_bench.reports.grid import grid
from dipa_bench.reports.rendering import render_grid
from dipa_bench.tracking.results import TaskResults

OPERATORS, RULES = ["dense", "scalar", "odd"], ["greedy", "closed-form"]


def made(gains, trials=()):
    """A board with a row for each (operator, rule) and results with the given trials."""
    rows = [
        {"study": "s", "method": f"{o}+{r}", "operator": o, "rule": r, "difference": value}
        for (o, r), value in gains.items()
    ]
    rows.append({"study": "t", "method": "x", "operator": "dense", "rule": "x", "difference": 9.0})
    trials = pd.DataFrame(trials, columns=["study", "method", "number", "state", "value"])
    empty = pd.DataFrame()
    return pd.DataFrame(rows), TaskResults("sr", empty, empty, empty, trials)


def of(effects, rules, pairing):
    """Gains that are a sum of an operator's, a rule's and a pair's own part."""
    return {
        (o, r): effects[i] + rules[j] + pairing * (-1) ** (i + j)
        for i, o in enumerate(OPERATORS[: len(effects)])
        for j, r in enumerate(RULES)
    }


def test_shares_are_those_of_the_effects():
    """Sums of squares of 2 x 2 cells: 4 a^2, 4 b^2 and 4 c^2 for effects of +-a, +-b, +-c."""
    board, results = made(of([1.0, -1.0], [0.5, -0.5], 0.25))
    shares = grid(board, results, "s").shares
    total = 1.0**2 + 0.5**2 + 0.25**2
    assert shares.operator == pytest.approx(1 / total)
    assert shares.rule == pytest.approx(0.25 / total)
    assert shares.pairing == pytest.approx(0.0625 / total)
    assert shares.spread == pytest.approx(total**0.5)


def test_gaps_leave_the_complete_part():
    """An operator without all rules is shown, but does not count; one alone is not shown."""
    gains = of([1.0, -1.0], [0.0, 0.0], 0.0) | {
        ("odd", "greedy"): 5.0,
        ("odd", "third"): 1.0,
        ("dense", "third"): 2.0,
        ("alone", "greedy"): 7.0,
    }
    board, results = made(gains)
    found = grid(board, results, "s")
    assert list(found.gains.index) == ["dense", "odd", "scalar"]
    assert np.isnan(found.gains.loc["odd", "closed-form"])
    assert not np.isnan(found.gains.loc["odd", "third"])
    assert len(found.shares.operators) * len(found.shares.rules) == 4


@pytest.mark.parametrize(("validation", "gain"), [(24.0, 3.0), (22.0, 1.0)])
def test_of_two_rows_of_a_cell_the_validation_images_choose(validation, gain):
    """`full-linear` and `dense+greedy` are one cell; what the test images say chooses nothing."""
    trials = [("s", "full-linear", 0, "finished", validation)]
    trials += [("s", "dense+greedy", number, "finished", 20.0 + number) for number in range(4)]
    board, results = made(of([1.0, -1.0], [0.0, 0.0], 0.0), trials)
    twin = {"study": "s", "method": "full-linear", "operator": "dense", "rule": "greedy"}
    for order in (1, -1):
        rows = [board, pd.DataFrame([twin | {"difference": 3.0}])][::order]
        assert grid(pd.concat(rows), results, "s").gains.loc["dense", "greedy"] == gain


def test_no_grid_without_two_of_each():
    """One operator, one rule, or rows that share none."""
    for gains in (
        {("dense", "greedy"): 1.0, ("dense", "closed-form"): 2.0},
        {("dense", "greedy"): 1.0, ("scalar", "greedy"): 2.0},
        {("dense", "greedy"): 1.0, ("scalar", "closed-form"): 2.0},
    ):
        assert grid(*made(gains), "s") is None
    assert grid(*made(of([1.0, -1.0], [0.0, 0.0], 0.0)), "t") is None


def test_equal_cells_have_no_shares():
    """No spread, nothing to explain: no 0 / 0."""
    found = grid(*made(of([1.0, 1.0], [0.0, 0.0], 0.0)), "s")
    assert found.shares is None
    assert (found.gains == 1.0).all(axis=None)


def test_tuning_is_the_best_trial_minus_the_first():
    """Rows whose first trial failed, or that had one trial, do not count."""
    trials = [
        ("s", "dense+greedy", 0, "finished", 20.0),
        ("s", "dense+greedy", 1, "finished", 23.0),
        ("s", "dense+greedy", 2, "pruned", np.nan),
        ("s", "scalar+greedy", 0, "finished", 21.0),
        ("s", "scalar+greedy", 1, "finished", 20.0),
        ("s", "dense+closed-form", 0, "diverged", np.nan),
        ("s", "dense+closed-form", 1, "finished", 30.0),
        ("s", "scalar+closed-form", 0, "finished", 10.0),
        ("t", "dense+greedy", 1, "finished", 99.0),
    ]
    board, results = made(of([1.0, -1.0], [0.5, -0.5], 0.25), trials)
    found = grid(board, results, "s")
    assert found.tuning.to_dict() == {"dense+greedy": 3.0, "scalar+greedy": 0.0}
    text = " ".join(render_grid(found, "s").split())
    assert "+1.50 dB above" in text and "from +0.00 to +3.00" in text
    assert "the operator explains 76%, the rule 19%, their pairing 5%" in text
