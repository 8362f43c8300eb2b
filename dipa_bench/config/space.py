"""Search ranges in Optuna's terms, and points of a space that follow from an index alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from dipa_bench import digests
from dipa_bench.parameters import Search, Value

Block = Mapping[str, BaseDistribution]


def distribution(search: Search, integer: bool = False) -> BaseDistribution:
    """Optuna's counterpart of a search range."""
    if search.choices:
        return CategoricalDistribution(search.choices)
    if integer:
        return IntDistribution(int(search.low), int(search.high), log=search.log)
    return FloatDistribution(search.low, search.high, log=search.log)


def sobol_point(
    space: Block,
    index: int,
    seed: int,
    names: Sequence[str] | None = None,
) -> dict[str, Value]:
    """The `index`-th point of a scrambled Sobol sequence, one axis for each of `names`.

    Args:
        space: parameter to distribution.
        index: of the point.
        seed: of the scrambling.
        names: the axes; those of `space` unless given.

    Returns:
        Values for those of `names` that `space` has; the others' axes are left unused.
    """
    from scipy.stats.qmc import Sobol

    names = list(space) if names is None else names
    if not names:
        return {}
    engine = Sobol(len(names), scramble=True, rng=np.random.default_rng(seed))
    if index:
        engine.fast_forward(index)
    unit = dict(zip(names, engine.random(1)[0].tolist(), strict=True))
    return {name: value_at(space[name], u) for name, u in unit.items() if name in space}


def uniform_point(
    space: Block, index: int, seed: int, names: Sequence[str] | None = None
) -> dict[str, Value]:
    """The `index`-th of independent points, uniform in each range or in its logarithm.

    Args:
        space, index, seed, names: as of `sobol_point`.
    """
    names = list(space) if names is None else names
    unit = np.random.default_rng(digests.seed(seed, index)).random(len(names))
    found = zip(names, unit.tolist(), strict=True)
    return {name: value_at(space[name], u) for name, u in found if name in space}


def value_at(found: BaseDistribution, u: float) -> Value:
    """The value of a distribution at quantile `u` in [0, 1)."""
    if isinstance(found, CategoricalDistribution):
        return found.choices[int(u * len(found.choices))]
    low, high = found.low, found.high
    if isinstance(found, IntDistribution):
        edges = (low - 0.5, high + 0.5) if found.log else (low, high + 1)
        value = _between(*edges, u, found.log)
        return min(max(round(value) if found.log else int(value // 1), low), high)
    return min(max(_between(low, high, u, found.log), low), high)


def _between(low: float, high: float, u: float, log: bool) -> float:
    return low * (high / low) ** u if log else low + (high - low) * u
