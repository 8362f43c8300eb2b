"""Importance of hyper-parameters on trials whose values are known functions of them."""

from __future__ import annotations

import math

import numpy as np
import optuna
import pandas as pd
import pytest

from dipa_bench.reports.importance import COLUMNS, LEAST, parameter_importance


def table(values, params, states=None, method="m", study="s", estimates=math.nan):
    count = len(values)
    return pd.DataFrame(
        {
            "study": study,
            "method": method,
            "number": range(count),
            "state": states or ["finished"] * count,
            "value": values,
            "estimate": estimates,
            "params": params,
        }
    )


def points(count=24, seed=0):
    rng = np.random.default_rng(seed)
    return [
        {
            "solve.step": float(10 ** rng.uniform(-2, 1)),
            "solve.start": str(rng.choice(["zero", "adjoint", "lmmse"])),
            "solve.restart": bool(rng.integers(2)),
            "fit.width": int(rng.integers(1, 9)),
            "fit.limit": None if rng.integers(2) else 3,
            "fit.fixed": 7,
        }
        for _ in range(count)
    ]


EFFECTS = {
    "solve.step": lambda p: 20 + math.log10(p["solve.step"]),
    "solve.start": lambda p: 25.0 if p["solve.start"] == "lmmse" else 20.0,
    "solve.restart": lambda p: 20.0 + p["solve.restart"],
    "fit.width": lambda p: 20.0 + p["fit.width"],
    "fit.limit": lambda p: 20.0 if p["fit.limit"] is None else 22.0,
}


@pytest.mark.parametrize("name", EFFECTS)
def test_what_alone_matters_ranks_first(name):
    """Of numbers, words, yes and no, and values that may be absent."""
    params = points()
    found = parameter_importance(table([EFFECTS[name](p) for p in params], params))
    assert list(found.columns) == list(COLUMNS)
    assert found.iloc[0]["parameter"] == name
    assert found.iloc[0]["importance"] > 0.8
    assert found["importance"].is_monotonic_decreasing
    assert found["importance"].sum() + found["chance"].iloc[0] == pytest.approx(1)
    assert found["chance"].nunique() == 1 and found["chance"].iloc[0] < 0.1
    assert set(found["parameter"]) == set(EFFECTS), "what never changes is left out"
    assert set(found["trials"]) == {24}


def test_conditional_parameters_are_left_out():
    """Also where they alone matter: they are not in all trials."""
    params = points()
    for index, given in enumerate(params):
        given["operator.architecture"] = "convnext" if index % 2 else "mlp"
        given[f"operator.{given['operator.architecture']}.width"] = index
    found = parameter_importance(table([20.0 + p["fit.width"] for p in params], params))
    names = set(found["parameter"])
    assert "operator.architecture" in names
    assert not names & {"operator.convnext.width", "operator.mlp.width"}


def test_only_finished_trials_with_a_value_count():
    """A pruned trial's half-way value and a NaN say nothing, not even about common parameters."""
    params = points(LEAST + 3)
    values = [EFFECTS["fit.width"](p) for p in params]
    values[0], params[1], values[2] = math.nan, {}, math.inf
    states = ["finished", "pruned", *["finished"] * (LEAST + 1)]
    found = parameter_importance(table(values, params, states))
    assert set(found["trials"]) == {LEAST}
    assert found.iloc[0]["parameter"] == "fit.width"


def test_those_that_left_a_race_count_with_their_estimate():
    """As if they had stayed, where the estimate is right; a finished trial's own value counts."""
    params = points()
    values = [EFFECTS["fit.width"](p) for p in params]
    whole = parameter_importance(table(values, params))
    left = [number % 3 == 0 for number in range(len(values))]
    found = parameter_importance(
        table(
            [math.nan if gone else value for value, gone in zip(values, left, strict=True)],
            params,
            ["pruned" if gone else "finished" for gone in left],
            estimates=[value if gone else 99.0 for value, gone in zip(values, left, strict=True)],
        )
    )
    pd.testing.assert_frame_equal(found, whole)


def test_too_few_or_equal_trials_say_nothing():
    """Fewer than `LEAST`, all of one value, one value of each parameter, or no trial at all."""
    params = points(LEAST)
    values = [EFFECTS["fit.width"](p) for p in params]
    assert len(parameter_importance(table(values, params)))
    for few in (
        table(values[1:], params[1:]),
        table([20.0] * LEAST, params),
        table(values, [{"a": 1}] * LEAST),
        table(values, [{}] * LEAST),
        table(values, [None] * LEAST),
        pd.DataFrame(),
    ):
        found = parameter_importance(few)
        assert found.empty and list(found.columns) == list(COLUMNS)


@pytest.mark.exhaustive
def test_methods_are_taken_by_themselves_and_again_the_same():
    """Each study and method has its own trials; the forest is seeded."""
    params = points()
    both = pd.concat(
        [
            table([EFFECTS["fit.width"](p) for p in params], params, method="<b>"),
            table([EFFECTS["solve.restart"](p) for p in params], params, study="t"),
        ]
    )
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        found = parameter_importance(both)
        assert optuna.logging.get_verbosity() == optuna.logging.WARNING
    finally:
        optuna.logging.set_verbosity(level)
    first = found.groupby(["study", "method"])["parameter"].first().to_dict()
    assert first == {("s", "<b>"): "fit.width", ("t", "m"): "solve.restart"}
    pd.testing.assert_frame_equal(found, parameter_importance(both))


def test_values_of_several_kinds_are_choices():
    """Numbers beside words, numbers beyond the finite, and 1 beside True."""
    params = [{"a": value} for value in (1, "1", True, math.nan, 1.0, math.inf, None, "x")]
    found = parameter_importance(table([20.0 + k for k in range(8)], params))
    assert found["parameter"].tolist() == ["a"]
    assert found["importance"].iloc[0] + found["chance"].iloc[0] == pytest.approx(1)


@pytest.mark.exhaustive
def test_of_noise_nothing_stands_out_from_chance():
    """Where values depend on nothing, a random number is as important as the parameters."""
    found = []
    for seed in range(5):
        noise = np.random.default_rng(100 + seed).normal(25, 1, 24)
        found.append(parameter_importance(table(list(noise), points(seed=seed))).iloc[0])
    best = np.mean([row["importance"] for row in found])
    assert best < 4 * np.mean([row["chance"] for row in found])
    assert all(row["chance"] > 0.05 for row in found)
