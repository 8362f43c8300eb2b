"""When a search gives a trial up."""

from __future__ import annotations

from collections.abc import Sequence

from optuna.pruners import BasePruner
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from dipa_bench.search.samplers import index_of

COUNTED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)


def rung_ends(epochs: int, rungs: int) -> tuple[int, ...]:
    """Steps at which a trial may be given up: 0, untrained, and the ends of all rungs but the last.

    Rungs have equal lengths, of ``epochs // rungs``; what they cost differs where their images do.

    Args:
        epochs: of a whole trial, at least `rungs`.
        rungs: at least 1.

    Returns:
        `rungs` steps, rising from 0.
    """
    if not 1 <= rungs <= epochs:
        raise ValueError(f"{rungs} rungs of {epochs} epochs: give 1 to {epochs} rungs")
    return tuple(epochs // rungs * rung for rung in range(rungs))


class RungPruner(BasePruner):
    """Asynchronous successive halving at given steps, in one bracket or several (Hyperband).

    Li, Jamieson, Rostamizadeh et al. 2020, "A system for massively parallel hyperparameter tuning"
    (arXiv 1810.05934). At the end of a rung the best part of all that reached it goes on, those
    given up there and those that other workers still run included. No trial waits for others: it
    is given up, or the same fit goes on at once from where it is, and nothing is trained again.

    With several brackets (Li, Jamieson, DeSalvo et al. 2018, "Hyperband", JMLR 18(185)) a trial
    belongs to that of its index modulo their number. Bracket b competes from the end b on, and
    with trials of its own alone: the first gives up the earliest, each further one trusts early
    values less, and one more than there are ends trains every trial to its end.

    Optuna's own pruners have rungs of geometric lengths alone, and keep what they compare in
    attributes that are lost with a journal; this one reads the reported values.

    Args:
        ends: rising steps at which rungs end, the last rung's aside; step 0 is the untrained
            operator's.
        part: one of so many goes on, the best one always; at least 2.
        brackets: 1 to ``len(ends) + 1``.

    Raises:
        ValueError: steps that do not rise from 0 or more, a part or number out of its range.
    """

    def __init__(self, ends: Sequence[int], part: int, brackets: int = 1) -> None:
        if list(ends) != sorted(set(ends)) or min(ends, default=0) < 0:
            raise ValueError(f"ends of rungs {tuple(ends)}: give rising steps from 0 on")
        if part < 2:
            raise ValueError(f"part = {part}: give 2 or more, of which one goes on")
        if not 1 <= brackets <= len(ends) + 1:
            raise ValueError(f"{brackets} brackets of {len(ends)} rungs: give 1 to {len(ends) + 1}")
        self._ends = tuple(ends)
        self._part = part
        self._brackets = brackets

    def bracket(self, trial: FrozenTrial) -> int:
        """In which a trial competes: 0 to ``brackets - 1``, by its index."""
        return index_of(trial) % self._brackets

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        step, bracket = trial.last_step, self.bracket(trial)
        if step not in self._ends[bracket:]:
            return False
        values = [
            other.intermediate_values[step]
            for other in study.get_trials(deepcopy=False, states=COUNTED)
            if other.number != trial.number
            and self.bracket(other) == bracket
            and step in other.intermediate_values
        ]
        better = sum(value > trial.intermediate_values[step] for value in values)
        return better >= max(1, (len(values) + 1) // self._part)
