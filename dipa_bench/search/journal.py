"""One Optuna journal for each entry of a study: opened, mended, continued."""

from __future__ import annotations

import json
import logging
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

import optuna
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner, NopPruner
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial

from dipa_bench.errors import UserError
from dipa_bench.search.optuna_internals import fail_waiting
from dipa_bench.search.samplers import INDEX
from dipa_bench.tracking import records
from dipa_bench.tracking.records import RunRecord

log = logging.getLogger(__name__)
JOURNAL = "journal.log"
ENDED = {
    "finished": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "diverged": TrialState.FAIL,
    "failed": TrialState.FAIL,
    "interrupted": TrialState.FAIL,
}
CURVE = "val/psnr_by_epoch"
PSNR = "val/psnr"
ESTIMATE = "val/psnr_estimate"  # of a trial that left a race
FIGURES = {
    "psnr": (PSNR, StudyDirection.MAXIMIZE),
    "parameters": ("parameters", StudyDirection.MINIMIZE),
    "seconds": ("cost/seconds", StudyDirection.MINIMIZE),
}


@dataclass(frozen=True)
class Objectives:
    """What a search is for, and when it gives a trial up.

    Attributes:
        names: keys of `FIGURES`; with more than one nothing is given up.
        pruner: Optuna's.
    """

    names: tuple[str, ...] = ("psnr",)
    pruner: BasePruner = field(default_factory=NopPruner)

    @property
    def directions(self) -> list[StudyDirection]:
        return [FIGURES[name][1] for name in self.names]

    def values(self, record: RunRecord) -> list[float]:
        """The figures of a trial that has some, one for each objective."""
        figures = {PSNR: record.metrics.get(ESTIMATE, math.nan)} | record.metrics
        return [figures[FIGURES[name][0]] for name in self.names]


def state_of(record: RunRecord) -> TrialState:
    """A trial's state in Optuna; one that left a race has a value, if an estimated one."""
    if record.state == "pruned" and ESTIMATE in record.metrics:
        return TrialState.COMPLETE
    return ENDED.get(record.state, TrialState.FAIL)


def trial_folder(folder: Path, number: int) -> Path:
    """Run folder of a trial below its method's."""
    return folder / f"trial-{number:04d}"


def trial_records(folder: Path) -> list[RunRecord]:
    """Records of all trials of an entry, by number.

    Raises:
        UserError: one of them is damaged.
    """
    found = [records.read(place) for place in records.children(folder)]
    trials = [record for record in found if record.kind == "trial"]
    return sorted(trials, key=lambda record: record.number)


def open_study(
    folder: Path,
    space: Mapping[str, BaseDistribution],
    sampler: optuna.samplers.BaseSampler,
    objectives: Objectives,
) -> optuna.Study:
    """The search of one entry, created or continued; the caller holds the study's lock.

    The trials' records are written before the journal hears of them. So a journal that is damaged,
    or knows less than they do, is set aside and made again from them. Trials that a dead process
    left running get the state of their record if they had ended, else they are marked interrupted;
    their draws come again.

    Args:
        folder: the method's run folder.
        space: the search space.
        sampler: for new trials.
        objectives: objectives and pruner.

    Raises:
        UserError: a record is damaged, or the journal's trials were drawn from other ranges.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / JOURNAL
    ended = trial_records(folder)
    study = _opened(path, sampler, objectives)
    if study is None or not _agrees(study, ended):
        _set_aside(path)
        study = _create(path, sampler, objectives)
        _restore(study, ended, space, objectives)
    same_ranges(study, space)
    _close_running(study, folder, objectives)
    return study


def is_sound(path: Path) -> bool:
    """Whether every line of a journal is whole; a crash or a full disk may cut the last one."""
    raw = path.read_bytes()
    if raw and not raw.endswith(b"\n"):
        return False
    try:
        return all("op_code" in json.loads(line) for line in raw.splitlines())
    except (ValueError, TypeError):
        return False


def _opened(
    path: Path, sampler: optuna.samplers.BaseSampler, objectives: Objectives
) -> optuna.Study | None:
    """The study in a journal, a new one where there is none yet, or None for a damaged one."""
    if path.exists() and not is_sound(path):
        return None
    try:
        return _create(path, sampler, objectives)
    except OSError:
        raise
    except Exception:  # whole lines that make no sense fail in many ways
        return None


class _NoLock:
    """No lock beside the study's, which the caller holds; Optuna's is made for each log entry."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


def _create(
    path: Path, sampler: optuna.samplers.BaseSampler, objectives: Objectives
) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        backend = optuna.storages.journal.JournalFileBackend(str(path), lock_obj=_NoLock())
        return optuna.create_study(
            study_name=path.parent.name,
            storage=optuna.storages.JournalStorage(backend),
            directions=objectives.directions,
            sampler=sampler,
            pruner=objectives.pruner,
            load_if_exists=True,
        )


def _agrees(study: optuna.Study, ended: list[RunRecord]) -> bool:
    """Whether a journal knows every trial of which there is a record."""
    trials = study.get_trials(deepcopy=False)
    for record in ended:
        if record.number >= len(trials):
            return False
        state = trials[record.number].state
        if state not in (TrialState.RUNNING, state_of(record)):
            return False
    return True


def _set_aside(path: Path) -> None:
    count = len(list(path.parent.glob(f"{path.name}.damaged*")))
    aside = path.with_name(f"{path.name}.damaged-{count}")
    path.rename(aside)
    log.warning("damaged journal set aside as %s; made again from the trials' records", aside)


def _restore(
    study: optuna.Study,
    ended: list[RunRecord],
    space: Mapping[str, BaseDistribution],
    objectives: Objectives,
) -> None:
    prunes = len(objectives.names) == 1
    for record in ended:
        while len(study.get_trials(deepcopy=False)) < record.number:  # its record never was
            study.add_trial(create_trial(state=TrialState.FAIL))
        params = {name: record.params[name] for name in space if name in record.params}
        state = state_of(record)
        study.add_trial(
            create_trial(
                state=state,
                values=objectives.values(record) if state == TrialState.COMPLETE else None,
                params=params,
                distributions={name: space[name] for name in params},
                intermediate_values=_best_so_far(record) if prunes else {},
                user_attrs={INDEX: record.index},
            )
        )


def _best_so_far(record: RunRecord) -> dict[int, float]:
    """What a trial reported: the best validation PSNR up to each epoch, the untrained one's too."""
    curve = record.series.get(CURVE, [])
    best = accumulate((value for _, value in curve), max)
    return dict(zip((step for step, _ in curve), best, strict=True))


def same_ranges(study: optuna.Study, space: Mapping[str, BaseDistribution]) -> None:
    """A newer version of a method may search elsewhere; one search cannot mix the two."""
    for trial in study.get_trials(deepcopy=False):
        for name, found in trial.distributions.items():
            if name not in space or space[name] != found:
                raise UserError(
                    f"the trials of {study.study_name!r} searched {name} in {found}, which is now "
                    f"{space.get(name, 'not searched')}: give another --name"
                )


def _close_running(study: optuna.Study, folder: Path, objectives: Objectives) -> None:
    for trial in study.get_trials(deepcopy=False):
        if trial.state == TrialState.WAITING:  # the process ended before the trial began
            fail_waiting(study, trial)
            continue
        place = trial_folder(folder, trial.number)
        record = records.read(place) if (place / records.RECORD).exists() else None
        if record is not None and record.state == "running":
            reason = "the process ended before the trial did; it is run again"
            record = record.model_copy(update={"state": "interrupted", "reason": reason})
            records.write(place, record)
        if trial.state == TrialState.RUNNING and record is not None:
            tell(study, trial.number, record, objectives)
        elif trial.state == TrialState.RUNNING:
            study.tell(trial.number, state=TrialState.FAIL)


def tell(study: optuna.Study, number: int, record: RunRecord, objectives: Objectives) -> None:
    """Tells the journal how a trial ended, from its record."""
    state = state_of(record)
    values = objectives.values(record) if state == TrialState.COMPLETE else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study.tell(number, values, state=state)
