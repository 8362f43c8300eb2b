"""Which parameters a trial tries: known-good points, then QMC, then TPE; reproducible by number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from dipa_bench import digests
from dipa_bench.parameters import Search, Value

TPE_FROM = 16  # trials; with fewer TPE is only random search


def distribution(search: Search, integer: bool = False) -> BaseDistribution:
    """Optuna's counterpart of a search range."""
    if search.choices:
        return CategoricalDistribution(search.choices)
    if integer:
        return IntDistribution(int(search.low), int(search.high), log=search.log)
    return FloatDistribution(search.low, search.high, log=search.log)


class NumberedSampler(BaseSampler):
    """Draws that depend on (study seed, row, index of the trial, finished trials) and nothing else.

    Below `TPE_FROM` the draw is the index-th point of a scrambled Sobol sequence, from there on
    TPE's with a seed of its own for each trial, so that a resumed search goes on as if it had never
    stopped.

    Args:
        space: parameter to distribution.
        seed: of this row's search.
    """

    def __init__(self, space: Mapping[str, BaseDistribution], seed: int) -> None:
        self._space = dict(space)
        self._seed = seed
        self.index = 0

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self._space

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if self.index < TPE_FROM:
            return sobol_point(search_space, self.index, self._seed)
        tpe = self._tpe()
        names = tpe.infer_relative_search_space(study, trial)
        return tpe.sample_relative(study, trial, {**search_space, **names})

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: Any
    ) -> Any:
        return self._tpe().sample_independent(study, trial, param_name, param_distribution)

    def _tpe(self) -> TPESampler:
        seed = digests.seed(self._seed, self.index) % 2**32
        return TPESampler(seed=seed, n_startup_trials=0, multivariate=True)


def sobol_point(space: Mapping[str, BaseDistribution], index: int, seed: int) -> dict[str, Value]:
    """The `index`-th point of a scrambled Sobol sequence over `space`."""
    from scipy.stats.qmc import Sobol

    if not space:
        return {}
    engine = Sobol(len(space), scramble=True, rng=np.random.default_rng(seed))
    if index:
        engine.fast_forward(index)
    unit = engine.random(1)[0]
    return {name: _at(space[name], u) for name, u in zip(space, unit.tolist(), strict=True)}


def _at(found: BaseDistribution, u: float) -> Value:
    """The value of a distribution at quantile `u` in [0, 1)."""
    if isinstance(found, CategoricalDistribution):
        return found.choices[int(u * len(found.choices))]
    low, high = found.low, found.high
    value = low * (high / low) ** u if found.log else low + (high - low) * u
    if isinstance(found, IntDistribution):
        return min(int(low + (high + 1 - low) * u) if not found.log else round(value), high)
    return min(max(value, low), high)
