"""What is used of Optuna's internals is there and does what the search needs."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from dipa_bench.search.optuna_internals import (
    add_waiting,
    fail_waiting,
    identifier_of,
    number_of,
    rouse,
    running_trial,
)

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


@pytest.fixture
def study(tmp_path: Path) -> optuna.Study:
    """In a database that records heartbeats."""
    storage = RDBStorage(f"sqlite:///{tmp_path / 'optuna.db'}", heartbeat_interval=60)
    return optuna.create_study(storage=storage)


def test_a_trial_is_added_roused_and_told(study: optuna.Study) -> None:
    study.add_trial(optuna.create_trial(value=1.0))
    identifier = add_waiting(study, {"index": 7})
    (waiting,) = study.get_trials(states=[TrialState.WAITING])
    assert identifier_of(waiting) == identifier
    assert waiting.user_attrs == {"index": 7}
    assert number_of(study, identifier) == waiting.number == 1
    rouse(study, identifier)
    assert study.trials[1].state == TrialState.RUNNING
    assert study.trials[1].datetime_start is not None
    trial = running_trial(study, identifier)
    assert identifier_of(trial) == identifier
    study.tell(trial, trial.suggest_float("x", 0, 1))
    assert study.trials[1].state == TrialState.COMPLETE
    rouse(study, identifier)  # whose trial has ended meanwhile
    assert study.trials[1].state == TrialState.COMPLETE


def test_a_waiting_trial_can_be_failed(study: optuna.Study) -> None:
    add_waiting(study, {})
    fail_waiting(study, study.trials[0])
    assert study.trials[0].state == TrialState.FAIL
