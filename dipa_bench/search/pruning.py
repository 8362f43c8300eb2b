"""When a search gives a trial up."""

from __future__ import annotations

from optuna.pruners import BasePruner
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

COUNTED = (TrialState.COMPLETE, TrialState.PRUNED)


class RungPruner(BasePruner):
    """Asynchronous successive halving at given steps: the best part of a rung goes on.

    Li, Jamieson, Rostamizadeh et al. 2020, "A system for massively parallel hyperparameter tuning"
    (arXiv 1810.05934). All that reached the end of the rung compete, those given up there included.
    Optuna's own pruner has rungs of geometric lengths alone, and keeps what it compares in
    attributes that are lost with a journal; this one reads the reported values.

    Args:
        ends: steps at which rungs end; the last one is not among them.
        part: one of so many goes on, the best one always.
    """

    def __init__(self, ends: tuple[int, ...], part: int) -> None:
        self._ends = frozenset(ends)
        self._part = part

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        step = trial.last_step
        if step not in self._ends:
            return False
        values = [
            other.intermediate_values[step]
            for other in study.get_trials(deepcopy=False, states=COUNTED)
            if step in other.intermediate_values
        ]
        better = sum(value > trial.intermediate_values[step] for value in values)
        return better >= max(1, (len(values) + 1) // self._part)
