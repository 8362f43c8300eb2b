"""Which hyper-parameters of a method its validation PSNR depends on, from the trials of a search.

The measure is fANOVA (Hutter, Hoos, Leyton-Brown, ICML 2014): a random forest is fitted to the
trials, and the importance of a parameter is the share of the forest's variance over the searched
ranges that the parameter explains by itself. It is a statement about these trials, and about the
ranges that they cover: a parameter that matters a lot outside of them may not matter inside.

From a few dozen trials a forest finds importance in anything. So each trial is given one more
parameter, a random number that no method has seen: what is no more important than `CHANCE` may well
be nothing.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

COLUMNS = ("study", "method", "parameter", "importance", "chance", "trials")
CHANCE = "(chance)"  # the random number's name; no parameter has brackets in its name
DEPTH = 6  # of the trees; deeper ones change shares by a hundredth and take five times as long
LEAST = 8  # trials with a value, below which a forest says nothing
_SEED = 0
_DECADE = 10.0  # positive values that spread over more than this are taken on a logarithmic scale


def parameter_importance(trials: pd.DataFrame) -> pd.DataFrame:
    """The importance of every hyper-parameter of every method, the most important first.

    Trials with a value count, or with the estimate of one that left a race; of them, only the
    parameters that all have (a conditional one, such as the width of one of several networks, is
    left out), and of those the ones of which at least two values were tried. Deterministic.

    Args:
        trials: study, method, state, value, estimate (dB) and params, as in `TaskResults.trials`.

    Returns:
        A frame with the columns `COLUMNS`: importance in [0, 1] and chance, that of the random
        number; the importances of a study's method and one chance add up to 1. Trials is the number
        that it was taken from. Methods with fewer than `LEAST` trials, without such a parameter, or
        whose trials are all alike, have no rows.
    """
    rows: list[dict[str, Any]] = []
    if not trials.empty:
        for (study, method), found in trials.groupby(["study", "method"], sort=True):
            rows += _of_method({"study": study, "method": method}, found)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _of_method(names: dict[str, Hashable], trials: pd.DataFrame) -> list[dict[str, Any]]:
    raced = trials["estimate"].where(trials["state"] == "pruned")
    values = trials["value"].where(trials["state"] == "finished").fillna(raced).astype(float)
    done = trials.assign(value=values)[values.map(math.isfinite)]
    given = [params if isinstance(params, dict) else {} for params in done["params"]]
    searched = _searched(given)
    if len(done) < LEAST or not searched or done["value"].nunique() < 2:
        return []
    shares = _shares(searched, given, done["value"].astype(float).tolist())
    chance = shares.pop(CHANCE)
    ranked = sorted(shares.items(), key=lambda item: (-item[1], item[0]))
    return [
        names | {"parameter": name, "importance": share, "chance": chance, "trials": len(done)}
        for name, share in ranked
    ]


def _searched(given: Sequence[dict[str, Any]]) -> dict[str, BaseDistribution]:
    """The range of every parameter that all trials have, with at least two values."""
    common = set.intersection(*map(set, given)) if given else set()
    columns = {name: [params[name] for params in given] for name in sorted(common)}
    return {name: _range(column) for name, column in columns.items() if len(_distinct(column)) > 1}


def _range(values: list[Any]) -> BaseDistribution:
    """The range that values were tried in: of numbers an interval, of anything else a choice."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not all(_is_number(value) for value in values):
        return CategoricalDistribution(_distinct([_choice(value) for value in values]))
    low, high = min(values), max(values)
    log = low > 0 and high > _DECADE * low
    if all(isinstance(value, numbers.Integral) for value in values):
        return IntDistribution(int(low), int(high), log=log)
    return FloatDistribution(float(low), float(high), log=log)


def _is_number(value: Any) -> bool:
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return real and math.isfinite(value)


def _choice(value: Any) -> str:
    """A value as a name; 1, 1.0, True and ``"1"`` are four."""
    return f"{type(value).__name__} {value}"


def _distinct(values: list[Any]) -> list[Any]:
    """The values without repetitions, in a fixed order."""
    return [value for _, value in sorted({_choice(value): value for value in values}.items())]


def _shares(
    searched: dict[str, BaseDistribution], given: list[dict[str, Any]], values: list[float]
) -> dict[str, float]:
    """Importance by parameter and of `CHANCE`, from an in-memory study of these trials."""
    import optuna
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    random = np.random.default_rng(_SEED).random(len(values)).tolist()
    ranges = searched | {CHANCE: FloatDistribution(0.0, 1.0)}
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        study = optuna.create_study(direction="maximize")
        for params, drawn, value in zip(given, random, values, strict=True):
            point = {CHANCE: drawn} | {
                name: _choice(params[name])
                if isinstance(kind, CategoricalDistribution)
                else params[name]
                for name, kind in searched.items()
            }
            study.add_trial(
                optuna.trial.create_trial(params=point, distributions=ranges, value=value)
            )
        evaluator = optuna.importance.FanovaImportanceEvaluator(max_depth=DEPTH, seed=_SEED)
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    finally:
        optuna.logging.set_verbosity(level)
    return {name: float(share) for name, share in found.items()}
