"""What draws beside TPE once the start-up points are tried: a GP.

It is made anew for each draw from the trials that ended before it. So a draw is a function of
seed, index and history, a search that was interrupted goes on as if it never had been, and a search
keeps nothing but its trials: no state of a sampler, least of all one that is read by unpickling.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, GPSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from dipa_bench.config.space import Block
from dipa_bench.parameters import Value

INDEX = "index"  # attribute of a trial: its place in the search
FEWEST = 4  # trials of a block, below which it is drawn at random


def index_of(trial: FrozenTrial) -> int:
    """A trial's place in its search: its user attribute `INDEX`, else its number."""
    return int(trial.user_attrs.get(INDEX, trial.number))


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
