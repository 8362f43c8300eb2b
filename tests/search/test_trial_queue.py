"""Trials that several processes share: each index is done once, whoever goes away."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.pruners import MedianPruner
from optuna.samplers import RandomSampler

from dipa_bench.search import storage
from dipa_bench.search.journal import Objectives
from dipa_bench.search.queues import SharedTrialQueues
from dipa_bench.search.storage import StorageGone
from dipa_bench.search.trial_queue import SharedTrialQueue, first_free
from dipa_bench.tracking.records import RunRecord

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
SPACE = {"solve.step": FloatDistribution(0.1, 1.0)}
FILE = {"task": "sr"}


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Callable[..., SharedTrialQueue]]:
    """Makes one more machine's queue of the same entry; a database file is enough of a server."""
    made = []

    def add(**objectives: object) -> SharedTrialQueue:
        address = f"sqlite:///{tmp_path / 'shared.db'}"
        there = optuna.storages.RDBStorage(
            address, heartbeat_interval=storage.HEARTBEAT, grace_period=storage.GRACE
        )
        queues = SharedTrialQueues(there, "study", FILE)
        made.append(queues)
        return queues.trials("ldipa", tmp_path, SPACE, RandomSampler(0), Objectives(**objectives))

    yield add
    for queues in made:
        queues.close()


def ended(trial: optuna.Trial, index: int, state: str = "finished") -> RunRecord:
    metrics = {"val/psnr": 20.0 + index} if state == "finished" else {}
    return RunRecord(
        kind="trial",
        study="study",
        task="sr",
        method="ldipa",
        number=trial.number,
        state=state,
        params=trial.params,
        metrics=metrics,
        notes={"index": index},
        study_file=FILE,
    )


def silence(folder: Path) -> None:
    """As if no running trial had given a sign of life for a long time."""
    with sqlite3.connect(folder / "shared.db") as found:
        found.execute("UPDATE trial_heartbeats SET heartbeat = '2000-01-01 00:00:00'")


def test_each_index_is_handed_out_once_and_records_travel(machine) -> None:
    here, there = machine(), machine()
    trials = [(queue, queue.next(4, ())) for queue in (here, there, here, there)]
    assert sorted(queue.index(trial.number) for queue, trial in trials) == [0, 1, 2, 3]
    assert here.next(4, ()) is there.next(4, ()) is None
    assert len(here.running()) == len(there.running()) == 4
    told = []
    for queue, trial in trials:
        told.append(ended(trial, queue.index(trial.number)))
        assert queue.tell(trial.number, told[-1])
    for queue in (here, there):
        assert sorted(queue.ended(), key=lambda one: one.number) == told
        assert queue.claimed == queue.running() == []
    assert here.next(5, ()) is not None  # a budget that grew


def test_given_parameters_are_kept(machine) -> None:
    given = {"solve.step": 0.25}
    assert machine().next(None, (), first=100, given=given).params == given


def test_a_trial_whose_machine_died_is_done_again_and_its_late_result_does_not_count(
    machine, tmp_path: Path
) -> None:
    dead, alive = machine(), machine()
    lost = dead.next(1, ())
    assert alive.next(1, ()) is None
    silence(tmp_path)
    again = alive.next(1, ())
    assert alive.index(again.number) == 0
    assert again.number != lost.number
    assert dead.report(lost.number, 1, 20.0)  # given up
    assert not dead.tell(lost.number, ended(lost, 0))
    assert alive.tell(again.number, ended(again, 0))
    assert [one.number for one in dead.ended()] == [again.number]


def test_nobody_is_taken_for_dead_right_after_an_outage(machine, tmp_path: Path) -> None:
    dead, alive = machine(), machine()
    dead.next(1, ())
    silence(tmp_path)
    alive._heartbeat._calm = 1
    assert alive.next(1, ()) is None


def test_what_is_let_go_of_is_free_again(machine) -> None:
    here, there = machine(), machine()
    here.next(2, ())
    stopped = here.next(2, ())
    index = here.index(stopped.number)
    assert here.tell(stopped.number, ended(stopped, index, state="interrupted"))
    here.close()
    found = [there.next(2, ()) for _ in range(2)]
    assert sorted(there.index(trial.number) for trial in found) == [0, 1]


def test_of_two_that_take_the_same_index_one_lets_go(machine, monkeypatch) -> None:
    here, there = machine(), machine()
    first = here.next(2, ())
    look, before = there._look, [[]]  # what it saw before the other's claim
    monkeypatch.setattr(there, "_look", lambda: before.pop() if before else look())
    second = there.next(2, ())
    assert (here.index(first.number), there.index(second.number)) == (0, 1)
    assert not before


def test_a_trial_that_is_told_twice_counts_once(machine) -> None:
    """A retry after an answer that was lost."""
    queue = machine()
    trial = queue.next(1, ())
    record = ended(trial, 0)
    claim = queue._mine[trial.number]
    assert queue.tell(trial.number, record)
    queue._mine[trial.number] = claim
    assert queue.tell(trial.number, record)
    queue._mine[trial.number] = claim
    assert not queue.tell(trial.number, record.model_copy(update={"seed": 7}))
    assert queue.ended() == [record]


def test_a_trial_below_the_median_is_given_up_wherever_the_others_ran(machine) -> None:
    pruner = MedianPruner(n_startup_trials=2, n_warmup_steps=0)
    here, there = machine(pruner=pruner), machine(pruner=pruner)
    for value in (30.0, 31.0):
        trial = here.next(3, ())
        assert not here.report(trial.number, 1, value)
        here.tell(trial.number, ended(trial, here.index(trial.number)))
    trial = there.next(3, ())
    assert there.report(trial.number, 1, 20.0)


def test_machines_agree_on_what_was_said_first(machine, tmp_path: Path) -> None:
    machine()
    address = f"sqlite:///{tmp_path / 'shared.db'}"
    one, other = (
        SharedTrialQueues(optuna.storages.RDBStorage(address), "study", FILE) for _ in range(2)
    )
    try:
        assert one.agree("study", {"seed": 1}) == {"seed": 1}
        assert other.agree("study", {"seed": 2}) == {"seed": 1}
        other.note("study", {"seed": 3})
        assert one.agree("study", {"seed": 1}) == {"seed": 3}
        claims = [each.conclusion("ldipa", "4 settings").next(1, ()) for each in (one, other)]
        assert [claim is None for claim in claims] == [False, True]
        assert other.conclusion("ldipa", "5 settings").next(1, ()) is not None
    finally:
        one.close()
        other.close()


def test_signs_of_life_stop_and_return(monkeypatch) -> None:
    monkeypatch.setattr(storage, "HEARTBEAT", 0.01)
    monkeypatch.setattr(storage, "GRACE", 0.05)
    calls, away = [], [True]

    class Database:
        def record_heartbeat(self, trial: int) -> None:
            calls.append(trial)
            if away[0]:
                raise ConnectionError("server closed")

    monkeypatch.setattr(storage, "retry", lambda work: None)
    beat = storage.Heartbeat(Database())
    try:
        assert beat.steady
        beat.add(7)
        wait_until(lambda: not beat.steady)
        away[0] = False
        wait_until(lambda: beat.steady)
        assert set(calls) == {7}
    finally:
        beat.close()
        storage._gone.clear()


def wait_until(holds: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_database_that_is_gone_does_not_keep_a_study_from_ending(machine, monkeypatch) -> None:
    queue = machine()
    queue.next(1, ())

    def gone(work: object) -> None:
        raise StorageGone("away")

    monkeypatch.setattr("dipa_bench.search.trial_queue.retry", gone)
    queue.close()
    assert queue.claimed == []


def test_the_first_free_indices() -> None:
    assert first_free(10, 4, {10, 12}, count=9) == [11, 13]
    assert first_free(0, None, {0, 1}, count=2) == [2, 3]
    assert first_free(0, 2, {0, 1}) == []
