"""What draws beside TPE once the start-up points are tried: a GP, NSGA-II and CMA-ES.

Each is made anew for each draw from the trials that ended before it. So a draw is a function of
seed, index and history, a search that was interrupted goes on as if it never had been, and a search
keeps nothing but its trials: no state of a sampler, least of all one that is read by unpickling.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import optuna
from cmaes import CatCMAwM
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from dipa_bench import digests
from dipa_bench.parameters import Value

Block = Mapping[str, BaseDistribution]

INDEX = "index"  # attribute of a trial: its place in the search
FEWEST = 4  # trials of a block, below which it is drawn at random
GENERATION = 16  # trials of one of NSGA-II's; the start-up points are its first
SPREAD = 1 / 6  # of CMA-ES at first: the standard deviation, in widths of a range


def index_of(trial: FrozenTrial) -> int:
    """A trial's place in its search: its user attribute `INDEX`, else its number."""
    return int(trial.user_attrs.get(INDEX, trial.number))


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


# ---------------------------------------------------------------------------- what was tried


@dataclass(frozen=True)
class Tried:
    """A trial that counts: it finished, or it was given up after it had reported.

    Attributes:
        index: its place in the search.
        params: its values.
        values: one for each objective; of one that was given up, what it reported last, which is
            no more than it would have reached.
        last: the step at which it was given up; infinite for one that finished.
    """

    index: int
    params: Mapping[str, Value]
    values: tuple[float, ...]
    last: float = math.inf

    def has(self, block: Block) -> bool:
        """Whether all of `block` was drawn."""
        return block.keys() <= self.params.keys()


def tried(study: Study) -> list[Tried]:
    """The trials that count, by index. Those that wait, run or failed do not."""
    states = (TrialState.COMPLETE, TrialState.PRUNED)
    found = map(_tried, study.get_trials(deepcopy=False, states=states))
    return sorted((one for one in found if one is not None), key=lambda one: one.index)


def _tried(trial: FrozenTrial) -> Tried | None:
    index = index_of(trial)
    if trial.state == TrialState.COMPLETE:
        return Tried(index, trial.params, tuple(trial.values))
    step = trial.last_step
    if step is None or not math.isfinite(trial.intermediate_values[step]):
        return None
    return Tried(index, trial.params, (trial.intermediate_values[step],), step)


def running(study: Study, own: int) -> list[Mapping[str, Value]]:
    """Parameters of the trials that other workers run, by index; `own` is this trial's number."""
    found = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    others = [trial for trial in found if trial.number != own]
    return [trial.params for trial in sorted(others, key=index_of)]


def ranked(history: Sequence[Tried], direction: StudyDirection) -> list[Tried]:
    """The best first: what finished by value, then what was given up, later before earlier.

    TPE's order; ties by index.
    """
    sign = -1 if direction == StudyDirection.MAXIMIZE else 1
    return sorted(history, key=lambda one: (-one.last, sign * one.values[0], one.index))


# ---------------------------------------------------------------------------- Optuna's own


def gp(
    block: Block,
    history: Sequence[Tried],
    directions: Sequence[StudyDirection],
    seed: int,
    others: Sequence[Mapping[str, Value]] = (),
) -> dict[str, Value]:
    """A draw of Optuna's `GPSampler`: Matérn kernel, log expected (hypervolume) improvement.

    Args:
        block: parameters that are drawn together; none with a single value.
        history: what was tried; what lacks some of `block` (another branch) is left out.
        directions: one for each objective.
        seed: of this draw.
        others: parameters of the trials that run now; the draw keeps away from them.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        sampler = GPSampler(seed=seed, n_startup_trials=FEWEST, warn_independent_sampling=False)
    return _asked(sampler, block, history, directions, others)


def nsga2(
    block: Block, history: Sequence[Tried], directions: Sequence[StudyDirection], seed: int
) -> dict[str, Value]:
    """A child that Optuna's NSGA-II breeds; generations are consecutive groups of the history.

    A generation has `GENERATION` trials of all branches, of which those that have the whole block
    are bred from. Deb, Pratap, Agarwal and Meyarivan 2002, doi:10.1109/4235.996017.

    Args:
        block, history, directions, seed: as of `gp`.
    """
    generations = {one.index: place // GENERATION for place, one in enumerate(history)}
    now = len(history) // GENERATION
    parents = [one for one in history if one.has(block) and generations[one.index] < now]
    sampler: BaseSampler = RandomSampler(seed=seed)
    if len(parents) >= FEWEST:
        sampler = _Breeder(seed, [generations[one.index] for one in parents], now)
    return _asked(sampler, block, parents, directions)


class _Breeder(NSGAIISampler):
    """NSGA-II that is told the generations, where Optuna's notes them in the storage.

    Args:
        seed: of the draw.
        generations: of the trials, by number.
        now: the generation that is being bred.
    """

    def __init__(self, seed: int, generations: Sequence[int], now: int) -> None:
        super().__init__(population_size=GENERATION, seed=seed)
        self._generations = generations
        self._now = now

    def get_trial_generation(self, study: Study, trial: FrozenTrial) -> int:
        return self._now

    def get_population(self, study: Study, generation: int) -> list[FrozenTrial]:
        trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return [trial for trial in trials if self._generations[trial.number] == generation]


def _asked(
    sampler: BaseSampler,
    block: Block,
    history: Sequence[Tried],
    directions: Sequence[StudyDirection],
    others: Sequence[Mapping[str, Value]] = (),
) -> dict[str, Value]:
    """What a sampler draws in a search in memory that has the block's parameters and no others."""
    memory = optuna.create_study(directions=list(directions), sampler=sampler)
    for one in history:
        if one.has(block):
            memory.add_trial(_within(block, one.params, values=one.values))
    for params in others:
        if block.keys() <= params.keys():
            memory.add_trial(_within(block, params, state=TrialState.RUNNING))
    return memory.ask(dict(block)).params


def _within(block: Block, params: Mapping[str, Value], **more: object) -> FrozenTrial:
    own = {name: params[name] for name in block}
    return create_trial(params=own, distributions=dict(block), **more)


# ---------------------------------------------------------------------------- CMA-ES


def cmaes(
    block: Block,
    history: Sequence[Tried],
    direction: StudyDirection,
    seed: int,
    index: int,
    first: int,
    attempt: int = 0,
) -> dict[str, Value]:
    """A draw of CMA-ES, replayed from the history: CatCMA with margin, of the package `cmaes`.

    Hamano, Saito, Nomura et al. 2025 (arXiv 2504.07884): a Gaussian for numbers, in which whole
    ones keep a least probability to change, and a categorical distribution for choices. It begins
    at the best start-up trial with a standard deviation of `SPREAD`. Generations are consecutive
    groups of its population size in order of index, among the trials drawn from the start-up on;
    what came before was not drawn from its distribution and would widen it. Within a generation
    trials are told by rank, which is all that CMA-ES looks at, so that those given up count too.

    A trial that is what the distribution of its turn gives is told as that, with all that a bound
    or rounding hides; another (drawn again, or while its predecessors still ran) by its values.

    Args:
        block: parameters that are drawn together; none with a single value.
        history: what was tried, by index; of it, what has an index below `index`.
        direction: of the objective.
        seed: of the row's search.
        index: of the trial that is drawn.
        first: index of the first trial after the start-up.
        attempt: how often this trial was drawn already.
    """
    axes, before = _Axes(block), [one for one in history if one.index < index and one.has(block)]
    startup = ranked([one for one in before if one.index < first], direction)
    states = [axes.optimizer(startup[0].params if startup else None)]
    group: list[tuple[Tried, CatCMAwM.Solution]] = []
    for one in before:
        if one.index < first:
            continue
        group.append((one, _drawn_as(one, axes, states, seed)))
        if len(group) == states[-1].population_size:
            states = [states[-1], copy.deepcopy(states[-1])]
            _tell(states[-1], group, direction)
            group = []
    return axes.params(_draw(states[-1], seed, index, attempt))


def _draw(optimizer: CatCMAwM, seed: int, index: int, attempt: int) -> CatCMAwM.Solution:
    optimizer.reseed_rng(digests.seed(seed, index, attempt) % 2**32)
    return optimizer.ask()


def _drawn_as(one: Tried, axes: _Axes, states: Sequence[CatCMAwM], seed: int) -> CatCMAwM.Solution:
    """What CMA-ES drew that trial as, in its last state or the one before; else its values."""
    told = axes.solution(one.params)
    for optimizer in reversed(states):
        found = _draw(optimizer, seed, one.index, 0)
        if _same(found, told):
            return found
    return told


def _same(one: CatCMAwM.Solution, other: CatCMAwM.Solution) -> bool:
    """Whether two solutions stand for the same values, but for rounding in the last places."""
    pairs = ((one.x, other.x), (one.z, other.z), (one.c, other.c))
    return all(a is None or np.allclose(a, b, rtol=0, atol=1e-9) for a, b in pairs)


def _tell(
    optimizer: CatCMAwM,
    group: Sequence[tuple[Tried, CatCMAwM.Solution]],
    direction: StudyDirection,
) -> None:
    order = ranked([one for one, _ in group], direction)
    rank = {one.index: float(place) for place, one in enumerate(order)}
    optimizer.tell([(solution, rank[one.index]) for one, solution in group])


class _Axes:
    """The coordinates in which CMA-ES sees a block: [0, 1] from end to end, or one of N.

    A whole number that has two values is a choice, as `cmaes` advises.

    Args:
        block: parameter to distribution.
    """

    def __init__(self, block: Block) -> None:
        self._choices: dict[str, tuple[Value, ...]] = {}
        self._whole: dict[str, tuple[Value, ...]] = {}
        self._smooth: dict[str, FloatDistribution] = {}
        self._ends = {}
        for name, found in block.items():
            if isinstance(found, CategoricalDistribution):
                self._choices[name] = found.choices
                continue
            self._ends[name] = (found.low, found.high, found.log)
            if isinstance(found, FloatDistribution):
                self._smooth[name] = found
            else:
                levels = tuple(range(found.low, found.high + 1))
                (self._choices if len(levels) == 2 else self._whole)[name] = levels
        self._places = {
            name: np.array([self._place(name, level) for level in levels])
            for name, levels in self._whole.items()
        }

    def optimizer(self, start: Mapping[str, Value] | None) -> CatCMAwM:
        """CMA-ES before its first generation, around `start` or the middle."""
        count = len(self._smooth) + len(self._whole)
        mean = np.full(count, 0.5)
        if start is not None:
            names = [*self._smooth, *self._whole]
            mean = np.array([self._place(name, start[name]) for name in names])
        return CatCMAwM(
            x_space=[[0.0, 1.0]] * len(self._smooth) or None,
            z_space=[*self._places.values()] or None,
            c_space=[len(options) for options in self._choices.values()] or None,
            mean=mean,
            sigma=SPREAD,
            cov=np.eye(count),
        )

    def params(self, found: CatCMAwM.Solution) -> dict[str, Value]:
        """The values that a solution stands for."""
        values: dict[str, Value] = {}
        for place, (name, ends) in enumerate(self._smooth.items()):
            values[name] = value_at(ends, float(found.x[place]))
        for place, (name, levels) in enumerate(self._whole.items()):
            nearest = int(np.argmin(np.abs(self._places[name] - found.z[place])))
            values[name] = levels[nearest]
        for place, (name, options) in enumerate(self._choices.items()):
            values[name] = options[int(np.argmax(found.c[place, : len(options)]))]
        return values

    def solution(self, params: Mapping[str, Value]) -> CatCMAwM.Solution:
        """A solution that stands for these values, at the middle of their cells."""
        x = np.array([self._place(name, params[name]) for name in self._smooth])
        z = np.array([self._place(name, params[name]) for name in self._whole])
        most = max(map(len, self._choices.values()), default=0)
        c = np.zeros((len(self._choices), most), dtype=bool)
        for row, (name, options) in zip(c, self._choices.items(), strict=True):
            row[options.index(params[name])] = True
        parts = [part if len(part) else None for part in (x, z, c)]
        numbers = np.concatenate([x, z])
        return CatCMAwM.Solution(*parts, numbers if len(numbers) else None)

    def _place(self, name: str, value: Value) -> float:
        low, high, log = self._ends[name]
        if log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return (value - low) / (high - low)
