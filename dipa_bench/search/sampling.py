"""Which parameters a trial tries: given points, then QMC, then a model; reproducible by index."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    IntDistribution,
)
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial

from dipa_bench import digests
from dipa_bench.config.space import Block, sobol_point, uniform_point, value_at
from dipa_bench.parameters import Value, When
from dipa_bench.search import samplers
from dipa_bench.search.optuna_internals import given_of
from dipa_bench.search.samplers import index_of

KINDS = ("tpe", "gp", "random", "qmc")
MODELS = ("tpe", "gp")  # learn from what was tried
STARTUP = 16  # trials before a model draws; from fewer it learns nothing
ATTEMPTS = 200  # draws of one trial before one that the task refuses is tried after all
PATIENCE = {"tpe": 200, "gp": 4}  # a model's draws, before those


class NumberedSampler(BaseSampler):
    """Draws that depend on (study seed, entry, index of the trial, trials that ended) and no more.

    A trial's index is its user attribute ``index`` (as of ``study.enqueue_trial({}, {"index": 3})``
    before ``study.ask()``), else its number. The first draws are the points to evaluate. Below
    `STARTUP` the draw is the index-th point of a scrambled Sobol sequence, from there on a model's
    with a seed of its own for each trial. So a resumed search goes on as if never stopped, and a
    trial that a dead process left behind is drawn again as it was.

    Below `STARTUP` all entries of a study try the same solver settings in the same trials, so that
    two operators that do the same come out the same, and not as the luckier of two draws.

    A parameter with a condition is drawn where it holds alone: a model draws those without one
    together, and then those of the branch that they chose from the trials in that branch. What the
    task refuses (a network over its cap) is drawn again; a model that insists on it (a GP does on
    its optimum) makes way for random draws after `PATIENCE`.

    The kinds: ``tpe``, Optuna's tree of Parzen estimators; ``gp``, its Gaussian process; ``qmc``
    stays on the Sobol sequences; ``random`` draws all but the points to evaluate independently. In
    the last two, entries share solver settings for good.

    Args:
        space: parameter to distribution.
        seed: of this entry's search.
        points: to try first; what one leaves open comes from the Sobol sequence.
        shared: parameters that entries have in common, frozen ones included, always in one order.
        shared_seed: of their own Sobol sequence; the same for all entries of a study.
        conditions: parameter to the condition under which it counts.
        admits: whether the task has nothing against a draw.
        kind: of `KINDS`.
        first: index of the first trial that it draws.

    Raises:
        ValueError: there is no such kind.
    """

    def __init__(
        self,
        space: Block,
        seed: int,
        points: Sequence[Mapping[str, Value]] = (),
        shared: Sequence[str] = (),
        shared_seed: int = 0,
        conditions: Mapping[str, When] | None = None,
        admits: Callable[[dict[str, Value]], bool] = lambda draw: True,
        kind: str = "tpe",
        first: int = 0,
    ) -> None:
        if kind not in KINDS:
            raise ValueError(f"no sampler {kind!r}: give one of {', '.join(KINDS)}")
        self._space = dict(space)
        self._seed = seed
        self._points = tuple(points)
        self._shared = tuple(shared)
        self._shared_seed = shared_seed
        self._conditions = dict(conditions or {})
        self._admits = admits
        self._kind = kind
        self._begin = first
        self._first = max(STARTUP, len(self._points))  # that a model draws

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self._space

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if given_of(trial):
            return {}
        index = index_of(trial) - self._begin
        patience = PATIENCE[self._kind] if self._kind in MODELS and index >= self._first else 0
        for attempt in range(patience + ATTEMPTS):
            if attempt < patience:
                draw = self._informed(study, trial, attempt)
            elif patience:
                draw = self._anywhere(index, attempt)
            else:
                draw = self._point(index, attempt)
            if self._admits(draw):
                break
        return draw

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: Any
    ) -> Any:
        tpe = _tpe(self._seed_of(index_of(trial), 0))
        return tpe.sample_independent(study, trial, param_name, param_distribution)

    def _point(self, index: int, attempt: int) -> dict[str, Value]:
        """A point to evaluate or none, completed from the sequences."""
        drawn = uniform_point if self._kind == "random" else sobol_point
        own = [name for name in self._space if name not in self._shared]
        seed = digests.seed(self._seed, "attempt", attempt) if attempt else self._seed
        draw = drawn(self._space, index, self._shared_seed, self._shared)
        draw |= drawn(self._space, index, seed, own)
        given: Mapping[str, Value] = {}
        if index < len(self._points):
            given = self._points[index]
            if attempt:
                given = {name: value for name, value in given.items() if name in self._shared}
        return self._counted(draw | given)

    def _anywhere(self, index: int, attempt: int) -> dict[str, Value]:
        """A draw from all of the space, where a model's were refused."""
        seed = digests.seed(self._seed, "anywhere", attempt)
        return self._counted(uniform_point(self._space, index, seed))

    def _informed(self, study: Study, trial: FrozenTrial, attempt: int) -> dict[str, Value]:
        """A model's draw: what has no condition, then what the branch has."""
        tpe, draw = _tpe(self._seed_of(index_of(trial), attempt)), {}
        for branch in dict.fromkeys((None, *self._conditions.values())):
            if branch is not None and not branch.holds(draw):
                continue
            names = [name for name in self._space if self._conditions.get(name) == branch]
            block = {name: self._space[name] for name in names}
            several = {name: found for name, found in block.items() if not found.single()}
            if self._kind == "tpe" or not several:
                found = tpe.sample_relative(study, trial, several)
            else:
                found = self._by_gp(several, study, trial, attempt)
            for name, options in block.items():
                if options.single():
                    found[name] = value_at(options, 0.0)
                elif name not in found:
                    found[name] = tpe.sample_independent(study, trial, name, options)
            draw |= found
        return draw

    def _by_gp(
        self, block: Block, study: Study, trial: FrozenTrial, attempt: int
    ) -> dict[str, Value]:
        """A draw of the block by a Gaussian process."""
        seed, history = self._seed_of(index_of(trial), attempt), samplers.tried(study)
        others = samplers.running(study, trial.number)
        return samplers.gp(block, history, study.directions, seed, others)

    def _counted(self, draw: Mapping[str, Value]) -> dict[str, Value]:
        """Of a draw, what has no condition or one that holds."""
        found = self._conditions
        return {
            name: value
            for name, value in draw.items()
            if name not in found or found[name].holds(draw)
        }

    def _seed_of(self, index: int, attempt: int) -> int:
        """Of one draw; 32 bits."""
        parts = (self._seed, index, attempt) if attempt else (self._seed, index)
        return digests.seed(*parts) % 2**32


def _tpe(seed: int) -> TPESampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return TPESampler(seed=seed, n_startup_trials=0, multivariate=True)


def ask(study: Study, space: Block, given: Iterable[str] = ()) -> Trial:
    """The next trial that waits, or a new one, as `fill` leaves it."""
    return fill(study.ask(), space, given)


def fill(trial: Trial, space: Block, given: Iterable[str] = ()) -> Trial:
    """A trial with the parameters it was given, or what a `NumberedSampler` drew, and no more."""
    for name in [*given] or trial.relative_params:
        found = space[name]
        if isinstance(found, CategoricalDistribution):
            trial.suggest_categorical(name, found.choices)
        elif isinstance(found, IntDistribution):
            trial.suggest_int(name, found.low, found.high, log=found.log)
        else:
            trial.suggest_float(name, found.low, found.high, log=found.log)
    return trial
