"""Which parameters a trial tries: known points, then QMC, then a model; reproducible by index."""

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
from dipa_bench.search import samplers
from dipa_bench.search.samplers import Block, index_of, value_at

KINDS = ("tpe", "gp", "random", "qmc", "cmaes", "nsga2")
MODELS = ("tpe", "gp", "cmaes", "nsga2")  # learn from what was tried
SINGLE = ("cmaes",)  # seek one objective alone
STARTUP = 16  # trials before a model draws; from fewer it learns nothing
ATTEMPTS = 200  # draws of one trial before one that the task refuses is tried after all
PATIENCE = {"tpe": 200, "gp": 4, "cmaes": 20, "nsga2": 20}  # a model's draws, before those


def refuses(kind: str, objectives: Sequence[str]) -> str | None:
    """Why a sampler cannot do a search, in one line that names the cure; None where it can.

    All kinds can do conditional spaces: models draw a branch's parameters from the trials in that
    branch, CMA-ES leaves those to TPE.

    Args:
        kind: of `KINDS`.
        objectives: names of what the search is for.
    """
    if kind not in KINDS:
        return f"search.sampler = {kind!r} does not exist: give one of {', '.join(KINDS)}"
    if kind in SINGLE and len(objectives) > 1:
        able = ", ".join(name for name in KINDS if name not in SINGLE)
        return (
            f"search.sampler = {kind!r} seeks one objective, not {len(objectives)} "
            f"({', '.join(objectives)}): give one of {able}, or one objective"
        )
    return None


def distribution(search: Search, integer: bool = False) -> BaseDistribution:
    """Optuna's counterpart of a search range."""
    if search.choices:
        return CategoricalDistribution(search.choices)
    if integer:
        return IntDistribution(int(search.low), int(search.high), log=search.log)
    return FloatDistribution(search.low, search.high, log=search.log)


class NumberedSampler(BaseSampler):
    """Draws that depend on (study seed, row, index of the trial, trials that ended) and no more.

    A trial's index is its user attribute ``index`` (as of ``study.enqueue_trial({}, {"index": 3})``
    before ``study.ask()``), else its number. The first draws are the known points. Below `STARTUP`
    the draw is the index-th point of a scrambled Sobol sequence, from there on a model's with a
    seed of its own for each trial. So a resumed search goes on as if it had never stopped, and a
    trial that a dead process left behind is drawn again as it was.

    Below `STARTUP` all rows of a study try the same solver settings in the same trials, so that
    two operators that do the same come out the same, and not as the luckier of two draws.

    A parameter with a condition is drawn where it holds alone: a model draws those without one
    together, and then those of the branch that they chose from the trials in that branch. What the
    task refuses (a network over its cap) is drawn again; a model that insists on it (a GP does on
    its optimum) makes way for random draws after `PATIENCE`.

    The kinds: ``tpe``, Optuna's tree of Parzen estimators; ``gp``, ``nsga2`` and ``cmaes`` as
    `samplers` has them, the last with TPE for what has a condition; ``qmc`` stays on the Sobol
    sequences; ``random`` draws all but the known points independently. In the last two, rows
    share solver settings for good.

    Args:
        space: parameter to distribution.
        seed: of this row's search.
        known: points to try first; what one leaves open comes from the Sobol sequence.
        shared: parameters that rows have in common, frozen ones included, always in one order.
        shared_seed: of their own Sobol sequence; the same for all rows of a study.
        conditions: parameter to the condition under which it counts.
        admits: whether the task has nothing against a draw.
        kind: of `KINDS`; see `refuses` for what each can do.

    Raises:
        ValueError: there is no such kind.
    """

    def __init__(
        self,
        space: Block,
        seed: int,
        known: Sequence[Mapping[str, Value]] = (),
        shared: Sequence[str] = (),
        shared_seed: int = 0,
        conditions: Mapping[str, When] | None = None,
        admits: Callable[[dict[str, Value]], bool] = lambda draw: True,
        kind: str = "tpe",
    ) -> None:
        if kind not in KINDS:
            raise ValueError(f"no sampler {kind!r}: give one of {', '.join(KINDS)}")
        self._space = dict(space)
        self._seed = seed
        self._known = tuple(known)
        self._shared = tuple(shared)
        self._shared_seed = shared_seed
        self._conditions = dict(conditions or {})
        self._admits = admits
        self._kind = kind
        self._first = max(STARTUP, len(self._known))  # that a model draws

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self._space

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        index = index_of(trial)
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
        """A known point or none, completed from the sequences."""
        point = uniform_point if self._kind == "random" else sobol_point
        own = [name for name in self._space if name not in self._shared]
        seed = digests.seed(self._seed, "attempt", attempt) if attempt else self._seed
        draw = point(self._space, index, self._shared_seed, self._shared)
        draw |= point(self._space, index, seed, own)
        if index < len(self._known):
            known = self._known[index]
            shared = {name: value for name, value in known.items() if name in self._shared}
            draw |= shared if attempt else known
        return self._counted(draw)

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
            left = self._kind == "cmaes" and branch is not None
            if self._kind == "tpe" or left or not several:
                found = tpe.sample_relative(study, trial, several)
            else:
                found = self._modelled(several, study, trial, attempt)
            for name, options in block.items():
                if options.single():
                    found[name] = value_at(options, 0.0)
                elif name not in found:
                    found[name] = tpe.sample_independent(study, trial, name, options)
            draw |= found
        return draw

    def _modelled(
        self, block: Block, study: Study, trial: FrozenTrial, attempt: int
    ) -> dict[str, Value]:
        """A draw of the block by another model than TPE."""
        index, history = index_of(trial), samplers.tried(study)
        if self._kind == "cmaes":
            return samplers.cmaes(
                block, history, study.direction, self._seed, index, self._first, attempt
            )
        seed = self._seed_of(index, attempt)
        if self._kind == "nsga2":
            return samplers.nsga2(block, history, study.directions, seed)
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


def ask(study: Study, space: Block) -> Trial:
    """The next trial that waits, or a new one, with what a `NumberedSampler` drew and no more."""
    return fill(study.ask(), space)


def fill(trial: Trial, space: Block) -> Trial:
    """A trial with what a `NumberedSampler` drew for it and no more."""
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
