"""One Optuna journal for each row of a study: opened, mended, continued."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import TrialState, create_trial

from dipa_bench.tracking import records

log = logging.getLogger(__name__)
JOURNAL = "journal.log"
ENDED = {
    "finished": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "diverged": TrialState.FAIL,
    "failed": TrialState.FAIL,
    "interrupted": TrialState.FAIL,
}


def trial_folder(folder: Path, number: int) -> Path:
    """Run folder of a trial below its method's."""
    return folder / f"trial-{number:04d}"


def is_sound(path: Path) -> bool:
    """Whether every line of a journal is whole; a crash or a full disk may cut the last one."""
    raw = path.read_bytes()
    if raw and not raw.endswith(b"\n"):
        return False
    try:
        return all(isinstance(json.loads(line), dict) for line in raw.splitlines())
    except ValueError:
        return False


def open_study(
    folder: Path, space: Mapping[str, BaseDistribution], sampler: optuna.samplers.BaseSampler
) -> optuna.Study:
    """The search of one row, created or continued.

    A damaged journal is set aside and made again from the trials' records, which are written
    before the journal hears of them. Trials that a dead process left running get the state of
    their record if they had ended, else they are marked interrupted and their parameters queued.

    Args:
        folder: the method's run folder.
        space: the search space.
        sampler: for new trials.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / JOURNAL
    damaged = path.exists() and not is_sound(path)
    if damaged:
        aside = path.with_name(f"{JOURNAL}.damaged-{len(list(folder.glob(f'{JOURNAL}.damaged*')))}")
        path.rename(aside)
        log.warning("damaged journal set aside as %s; made again from the trials' records", aside)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        backend = optuna.storages.journal.JournalFileBackend(str(path))
        study = optuna.create_study(
            study_name=folder.name,
            storage=optuna.storages.JournalStorage(backend),
            direction="maximize",
            sampler=sampler,
            pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=1),
            load_if_exists=True,
        )
    if damaged:
        _restore(study, folder, space)
    _close_running(study, folder, space)
    return study


def _restore(study: optuna.Study, folder: Path, space: Mapping[str, BaseDistribution]) -> None:
    for place in records.children(folder):
        record = records.read(place)
        if record.kind != "trial":
            continue
        while len(study.get_trials(deepcopy=False)) < record.number:  # its record never was
            study.add_trial(create_trial(state=TrialState.FAIL))
        params = {name: record.params[name] for name in space if name in record.params}
        state = ENDED.get(record.state, TrialState.FAIL)
        study.add_trial(
            create_trial(
                state=state,
                value=record.metrics.get("val/psnr") if state == TrialState.COMPLETE else None,
                params=params,
                distributions={name: space[name] for name in params},
                intermediate_values=dict(record.series.get("val/psnr_by_epoch", [])),
            )
        )
        if record.state == "running":
            _interrupt(study, place, record, params)


def _close_running(
    study: optuna.Study, folder: Path, space: Mapping[str, BaseDistribution]
) -> None:
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        place = trial_folder(folder, trial.number)
        record = records.read(place) if (place / records.RECORD).exists() else None
        if record is not None and record.state in ENDED and record.state != "interrupted":
            tell(study, trial.number, record)
            continue
        study.tell(trial.number, state=TrialState.FAIL)
        params = {name: value for name, value in trial.params.items() if name in space}
        params = params or dict(trial.system_attrs.get("fixed_params", {}))
        _interrupt(study, place, record, params)


def _interrupt(
    study: optuna.Study, place: Path, record: records.RunRecord | None, params: dict
) -> None:
    """Queues the parameters of an interrupted trial again and marks its record."""
    if params:
        study.enqueue_trial(params)
    if record is not None:
        reason = "the process ended; its parameters were queued again"
        ended = record.model_copy(update={"state": "interrupted", "reason": reason})
        records.write(place, ended)


def tell(study: optuna.Study, number: int, record: records.RunRecord) -> None:
    """Tells the journal how a trial ended, from its record."""
    state = ENDED[record.state]
    value = record.metrics["val/psnr"] if state == TrialState.COMPLETE else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study.tell(number, value, state=state)
