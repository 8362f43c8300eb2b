"""Which parameters a trial tries: known-good points, then QMC, then TPE; reproducible by number."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial

from dipa_bench import digests
from dipa_bench.parameters import Search, Value, When

TPE_FROM = 16  # trials; with fewer TPE is only random search
ATTEMPTS = 200  # draws of one trial before one that the task refuses is tried after all


def distribution(search: Search, integer: bool = False) -> BaseDistribution:
    """Optuna's counterpart of a search range."""
    if search.choices:
        return CategoricalDistribution(search.choices)
    if integer:
        return IntDistribution(int(search.low), int(search.high), log=search.log)
    return FloatDistribution(search.low, search.high, log=search.log)


class NumberedSampler(BaseSampler):
    """Draws that depend on (study seed, row, index of the trial, finished trials) and nothing else.

    The first draws are the known points. Below `TPE_FROM` the draw is the index-th point of a
    scrambled Sobol sequence, from there on TPE's with a seed of its own for each trial. So a
    resumed search goes on as if it had never stopped, and a trial that a dead process left behind
    is drawn again as it was.

    Below `TPE_FROM` all rows of a study try the same solver settings in the same trials, so that
    two operators that do the same come out the same, and not as the luckier of two draws.

    A parameter with a condition is drawn where it holds alone: TPE draws those without one
    together, and then those of the branch that they chose from the trials in that branch. What the
    task refuses (a network over its cap) is drawn again.

    Args:
        space: parameter to distribution.
        seed: of this row's search.
        known: points to try first; what one leaves open comes from the Sobol sequence.
        shared: parameters that rows have in common, frozen ones included, always in one order.
        shared_seed: of their own Sobol sequence; the same for all rows of a study.
        conditions: parameter to the condition under which it counts.
        admits: whether the task has nothing against a draw.
    """

    def __init__(
        self,
        space: Mapping[str, BaseDistribution],
        seed: int,
        known: Sequence[Mapping[str, Value]] = (),
        shared: Sequence[str] = (),
        shared_seed: int = 0,
        conditions: Mapping[str, When] | None = None,
        admits: Callable[[dict[str, Value]], bool] = lambda draw: True,
    ) -> None:
        self._space = dict(space)
        self._seed = seed
        self._known = tuple(known)
        self._shared = tuple(shared)
        self._shared_seed = shared_seed
        self._conditions = dict(conditions or {})
        self._admits = admits
        self.index = 0

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self._space

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        for attempt in range(ATTEMPTS):
            if self.index < max(TPE_FROM, len(self._known)):
                draw = self._sobol(attempt)
            else:
                draw = self._informed(study, trial, attempt)
            if self._admits(draw):
                break
        return draw

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: Any
    ) -> Any:
        return self._tpe(0).sample_independent(study, trial, param_name, param_distribution)

    def _sobol(self, attempt: int) -> dict[str, Value]:
        """A known point or none, completed from the Sobol sequences."""
        own = [name for name in self._space if name not in self._shared]
        seed = digests.seed(self._seed, "attempt", attempt) if attempt else self._seed
        draw = sobol_point(self._space, self.index, self._shared_seed, self._shared)
        draw |= sobol_point(self._space, self.index, seed, own)
        if self.index < len(self._known):
            known = self._known[self.index]
            shared = {name: value for name, value in known.items() if name in self._shared}
            draw |= shared if attempt else known
        return {name: value for name, value in draw.items() if self._counts(name, draw)}

    def _informed(self, study: Study, trial: FrozenTrial, attempt: int) -> dict[str, Value]:
        """TPE's draw: what has no condition, then what the branch has."""
        tpe, draw = self._tpe(attempt), {}
        for branch in dict.fromkeys((None, *self._conditions.values())):
            if branch is not None and not branch.holds(draw):
                continue
            names = [name for name in self._space if self._conditions.get(name) == branch]
            block = {name: self._space[name] for name in names}
            several = {name: found for name, found in block.items() if not found.single()}
            found = tpe.sample_relative(study, trial, several)
            for name, options in block.items():
                if options.single():
                    found[name] = _at(options, 0.0)
                elif name not in found:
                    found[name] = tpe.sample_independent(study, trial, name, options)
            draw |= found
        return draw

    def _counts(self, name: str, draw: Mapping[str, Value]) -> bool:
        return name not in self._conditions or self._conditions[name].holds(draw)

    def _tpe(self, attempt: int) -> TPESampler:
        parts = (self._seed, self.index, attempt) if attempt else (self._seed, self.index)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return TPESampler(
                seed=digests.seed(*parts) % 2**32, n_startup_trials=0, multivariate=True
            )


def ask(study: Study, space: Mapping[str, BaseDistribution]) -> Trial:
    """A new trial with the values that a `NumberedSampler` drew, and no others."""
    trial = study.ask()
    for name in trial.relative_params:
        found = space[name]
        if isinstance(found, CategoricalDistribution):
            trial.suggest_categorical(name, found.choices)
        elif isinstance(found, IntDistribution):
            trial.suggest_int(name, found.low, found.high, log=found.log)
        else:
            trial.suggest_float(name, found.low, found.high, log=found.log)
    return trial


def sobol_point(
    space: Mapping[str, BaseDistribution],
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
    return {name: _at(space[name], u) for name, u in unit.items() if name in space}


def _at(found: BaseDistribution, u: float) -> Value:
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
