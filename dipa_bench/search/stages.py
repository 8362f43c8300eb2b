"""The stages of an entry's search: tune the settings, fit, tune what was fitted."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

from dipa_bench.config.entry import Entry
from dipa_bench.config.study_file import StudyFile
from dipa_bench.parameters import Search, settings_of, without_settings
from dipa_bench.search.settings_tuner import FEWEST
from dipa_bench.tasks.base import Task

ENOUGH = 60  # settings, with fewer of which a sampler leads further than the tuner
APART = 1_000_000  # indices between the first trials of two stages: budgets may grow
FITS = ".fits"  # below an entry's folder: what its trials fitted, for those that tune it
Name = Literal["", "settings", "fit", "tuned"]


@dataclass(frozen=True)
class Stage:
    """Trials of one kind.

    Attributes:
        name: ``settings`` (of a fixed or initial operator), ``fit``, ``tuned`` (settings of what
            was fitted), or empty where a sampler draws everything at once.
        first: index of its first trial.
        count: its trials at most; None for as many as the time allows.
        share: of a budget in minutes, by whose end it is over.
    """

    name: Name
    first: int
    count: int | None
    share: float = 1.0

    def has(self, index: int) -> bool:
        """Whether a trial of an index is of this stage."""
        return self.first <= index < self.first + APART

    @property
    def tunes(self) -> bool:
        """Whether its trials are solver settings, which need no fit of their own."""
        return self.name in ("settings", "tuned")


def stages_of(entry: Entry, task: Task, study: StudyFile) -> tuple[Stage, ...]:
    """The stages of an entry's search, at least one.

    An entry that trains tunes the settings of what it starts from, fits at the best of them, and
    tunes the best fit; each of the two operators has as many settings as one that does not train,
    which tunes its own parameters among them. Where there are too few settings for that, or it has
    to find the front of several objectives, a sampler draws all parameters.
    """
    budget, space = study.budget, entry.space(task)
    if study.protocol == "published" or not space:
        return (Stage("", 0, 1),)
    timed = budget.minutes is not None
    staged = study.search.tuner == "trust-region" and bool(settings_of(space))
    if staged and entry.fits and entry.method.restore is not None and budget.settings >= FEWEST:
        rest = without_settings(space)
        fits = None if timed and rest else budget.fits if rest else 1
        return (
            Stage("settings", 0, budget.settings, 0.2),
            Stage("fit", APART, fits, 0.7),
            Stage("tuned", 2 * APART, budget.settings),
        )
    single = len(study.objectives) == 1
    if staged and single and not entry.fits and budget.settings >= ENOUGH:
        return (Stage("settings", 0, budget.settings),)
    trials = budget.fits if entry.fits else budget.settings
    return (Stage("", 0, None if timed else trials),)


def shares_settings(entry: Entry, task: Task, study: StudyFile) -> bool:
    """Whether an earlier entry of a study scores all settings that its first stage asks for.

    They are those of the solver without an operator, with the same ranges.
    """
    own = _plain_settings(entry, task)
    if not entry.fits or not own or stages_of(entry, task, study)[0].name != "settings":
        return False
    earlier = itertools.takewhile(lambda name: name != entry.name, study.methods)
    return any(own == _plain_settings(Entry.of(study, name), task) for name in earlier)


def _plain_settings(entry: Entry, task: Task) -> dict[str, Search] | None:
    """The solver settings that it begins with; None where it begins with an operator."""
    initial = entry.defaults(task).get("train.initial", "identity")
    unfitted = initial == "identity" if entry.fits else entry.method.operator == "identity"
    return settings_of(entry.space(task)) if unfitted else None


def runs_published(entry: Entry, task: Task, study: StudyFile) -> bool:
    """Whether its published settings are run as well: once, in the first replicate."""
    first = study.protocol != "published" and not study.replicate
    return first and bool(entry.method.published(task))


def planned_trials(entry: Entry, task: Task, study: StudyFile) -> int | None:
    """How many trials an entry gets at most; None where the budget is a time."""
    counts = [stage.count for stage in stages_of(entry, task, study)]
    timed = study.budget.minutes is not None and None in counts
    return None if timed else sum(counts)
