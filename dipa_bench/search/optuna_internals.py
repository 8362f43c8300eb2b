"""What the search uses of Optuna beyond its public interface, all of it.

Optuna's `Study.ask` numbers trials but gives no way to say, in one step that other processes see
whole, which index a new trial has. `tests/search/test_optuna_internals.py` fails where a version of
Optuna has none of this any more.
"""

from __future__ import annotations

from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState, create_trial

GIVEN = "fixed_params"  # system attribute of what `Study.enqueue_trial` is given


def identifier_of(trial: optuna.Trial | FrozenTrial) -> int:
    """A trial's identifier in its storage, which heartbeats are recorded under."""
    return trial._trial_id


def given_of(trial: FrozenTrial) -> dict[str, Any]:
    """The parameters that a trial was given beforehand, as by `Study.enqueue_trial`."""
    return trial.system_attrs.get(GIVEN, {})


def add_waiting(
    study: optuna.Study, attributes: dict[str, Any], given: dict[str, Any] | None = None
) -> int:
    """Adds a trial that waits, with its user attributes and given parameters, in one step.

    Returns:
        Its identifier.
    """
    entry = create_trial(
        state=TrialState.WAITING, user_attrs=attributes, system_attrs={GIVEN: given or {}}
    )
    return study._storage.create_new_trial(study._study_id, entry)


def rouse(study: optuna.Study, identifier: int) -> None:
    """Makes a waiting trial a running one with a first heartbeat, whoever has put it there.

    So one whose process died right then is given up like any other.
    """
    study._storage.record_heartbeat(identifier)
    try:
        study._storage.set_trial_state_values(identifier, TrialState.RUNNING)
    except UpdateFinishedTrialError:
        pass


def number_of(study: optuna.Study, identifier: int) -> int:
    """A trial's number in its study."""
    return study._storage.get_trial(identifier).number


def running_trial(study: optuna.Study, identifier: int) -> optuna.Trial:
    """A running trial as `Study.ask` gives it; the sampler reads all trials anew."""
    study._thread_local.cached_all_trials = None
    return optuna.Trial(study, identifier)


def fail_waiting(study: optuna.Study, trial: FrozenTrial) -> None:
    """Ends a trial that has never begun, which `Study.tell` refuses."""
    study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
