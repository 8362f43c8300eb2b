"""What the search of each entry is for, and when it gives a trial up, in Optuna's terms."""

from __future__ import annotations

from typing import Literal

from optuna.pruners import BasePruner, MedianPruner, NopPruner

from dipa_bench.config.study_file import StudyFile
from dipa_bench.methods import GROWTH
from dipa_bench.search.journal import Objectives
from dipa_bench.search.pruning import RungPruner, rung_ends

FIRST = 4  # trials before the median of the others counts


def pruner_of(study: StudyFile) -> Literal["none", "median", "halving", "hyperband"]:
    """What gives fits up between epochs; nothing where there are several objectives."""
    if len(study.objectives) > 1:
        return "none"
    if study.search.pruner == "auto":
        return "halving" if study.budget.rungs > 1 else "median"
    return study.search.pruner


def objectives_of(study: StudyFile) -> Objectives:
    """Objectives and pruner.

    By halving a trial goes on at the end of a rung if it is in the best third there, Hyperband
    lets some begin to compete at later rungs; by the median if it is no worse than the median of
    its epoch.
    """
    return Objectives(tuple(study.objectives), _pruner(study))


def _pruner(study: StudyFile) -> BasePruner:
    kind, budget = pruner_of(study), study.budget
    if kind == "none":
        return NopPruner()
    if kind == "median":
        # trials that tune settings report no epochs: so as many fits have to have come as far
        return MedianPruner(n_startup_trials=FIRST, n_warmup_steps=1, n_min_trials=FIRST)
    ends = rung_ends(budget.epochs, budget.rungs)
    return RungPruner(ends, GROWTH, brackets=len(ends) if kind == "hyperband" else 1)
