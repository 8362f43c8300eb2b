"""One entry's search, whatever happens to it: memory, clocks, lost workers, budgets, races."""

from __future__ import annotations

import itertools
import json
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dipa_bench import devices
from dipa_bench.config.entry import Entry
from dipa_bench.config.problem import build_task
from dipa_bench.config.study_file import StudyFile
from dipa_bench.errors import UserError
from dipa_bench.execution.jobs import perform
from dipa_bench.execution.pool import Pool
from dipa_bench.execution.scheduler import Scheduler
from dipa_bench.execution.study_folder import open_context, read_study, run_entry, study_folder
from dipa_bench.execution.trials import run_trial
from dipa_bench.methods import Direct
from dipa_bench.preconditioners import Identity
from dipa_bench.runs.rerun import repeat, tolerance
from dipa_bench.search import journal, method_search, outcome
from dipa_bench.search.jobs import Ended, Job, Lost, Outcome
from dipa_bench.search.journal import trial_records
from dipa_bench.search.queues import TrialQueues
from dipa_bench.search.sampling import KINDS
from dipa_bench.search.trial_queue import TrialQueue
from dipa_bench.solvers import Trajectory
from dipa_bench.testing import small_task
from dipa_bench.tracking import records
from dipa_bench.tracking.records import RunRecord

CPU = torch.device("cpu")
DRAWN = {"search": {"tuner": "sampler"}}  # a sampler draws solver settings too


def trials(root: Path, entry: str, study: str = "small") -> list[RunRecord]:
    return trial_records(study_folder(root, study) / entry)


def counted(found: list[RunRecord]) -> list[RunRecord]:
    """Those that ended by themselves, by index."""
    return sorted(
        (trial for trial in found if trial.state != "interrupted"), key=lambda trial: trial.index
    )


class FakeWorkers(Pool):
    """Workers in this process: jobs begin when they are given and are done one after the other.

    Args:
        context: the study's context.
        scheduler: whose job callback hears of epochs.
        count: of workers.
        dies: whether the worker dies of a job.
    """

    def __init__(
        self,
        context: Any,
        scheduler: Scheduler,
        count: int = 2,
        dies: Callable[[Job], bool] = lambda job: False,
    ) -> None:
        self._context, self._job_callback = context, scheduler.job_callback
        self._count, self._dies = count, dies
        self._under_way: deque[tuple[Entry, Job]] = deque()
        self.seen: list[Job] = []

    @property
    def free(self) -> int:
        return self._count - self.busy

    @property
    def busy(self) -> int:
        return len(self._under_way)

    def start(self, entry: Entry, job: Job) -> None:
        self._under_way.append((entry, job))
        self.seen.append(job)

    def wait(self, seconds: float) -> list[Outcome]:
        entry, job = self._under_way.popleft()
        if self._dies(job):
            return [Lost(job, "its process was ended by SIGSEGV")]
        return [Ended(job, perform(self._context, entry, job, self._job_callback))]


@pytest.fixture
def by_workers(lab: SimpleNamespace) -> Callable[..., SimpleNamespace]:
    """Runs a study's entries on `FakeWorkers`: their records, the pool, what the callback heard."""

    def run(study: StudyFile, root: Path, **options: Any) -> SimpleNamespace:
        heard = lab.Heard()
        heard.messages = []
        heard.message = heard.messages.append
        context = lab.context(study, root)
        scheduler = Scheduler(context, heard, TrialQueues())
        pool = FakeWorkers(context, scheduler, **options)
        done = scheduler.run([Entry.of(study, name) for name in study.methods], pool)
        return SimpleNamespace(done=done, pool=pool, heard=heard)

    return run


def test_a_search_that_can_neither_go_on_nor_end_is_an_error(
    tmp_path: Path, lab, by_workers, monkeypatch
) -> None:
    monkeypatch.setattr(TrialQueue, "next", lambda *given: None)
    with pytest.raises(RuntimeError, match="identity: not over, and nothing to do"):
        by_workers(lab.resolved(["identity"], trials=2), tmp_path)


# ---------------------------------------------------------------------------- memory

SHORT = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    MemoryError("no room"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
]


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was really allocated: there is nothing to collect."""
    monkeypatch.setattr(devices, "free_memory", lambda where: None)


class Greedy:
    """Reconstructs at most so many images at once.

    Args:
        made: does the work.
        most: images.
        error: raised for more.
    """

    preconditioner = None

    def __init__(self, made: Any, most: int, error: Exception) -> None:
        self._made, self._most, self._error = made, most, error

    def run(self, measurement: torch.Tensor, physics: Any, **options: Any) -> Trajectory:
        if len(measurement) > self._most:
            raise self._error
        return self._made.run(measurement, physics, **options)


@pytest.mark.parametrize("error", SHORT, ids=lambda error: type(error).__name__)
def test_a_fit_that_lacks_memory_halves_its_batch_and_the_next_begins_there(
    error: Exception, tmp_path: Path, lab, register, at_once
) -> None:
    sizes = []

    def fit(task, values, context):
        sizes.append(context.budget.batch_size)
        if sizes[-1] > 3:
            raise error
        context.notes["used"] = sizes[-1]
        return context.reconstructor(task, values.solve, Identity())

    register("hungry", fit, stochastic=True)
    root = lab.kept(tmp_path, {"hungry": {}, "identity": {}}, {"trials": 2, "batch_size": 8})
    assert sizes == [8, 4, 2, 2, 2]  # two trials, the winner
    first, second = trials(root, "hungry", "kept")
    assert {first.notes["batch_size"], first.notes["used"], second.notes["used"]} == {2}
    assert str(error) in first.notes["memory"]
    assert "memory" not in second.notes
    assert second.notes["batch_size"] == 2
    for trial in trials(root, "identity", "kept"):
        assert "batch_size" not in trial.notes
    sizes.clear()
    again = repeat(second, root, CPU)
    assert sizes == [2]
    assert again.agrees()


def test_a_row_for_which_there_is_never_enough_memory_fails_alone(
    tmp_path: Path, by_workers, lab, register, at_once
) -> None:
    error, sizes = SHORT[0], []

    def fit(task, values, context):
        sizes.append(context.budget.batch_size)
        raise error

    register("always", fit, stochastic=True)
    register("raced", fit)
    budget = {"trials": 2, "batch_size": 8}
    found = by_workers(lab.resolved(["always", "raced", "identity"], budget=budget), tmp_path)
    assert [record.state for record in found.done] == ["failed", "failed", "finished"]
    for record in found.done[:2]:
        assert str(error) in record.reason
        assert {trial.state for trial in trials(tmp_path, record.method)} == {"failed"}
    assert min(sizes) == 1
    assert len(sizes) < 16  # a batch of one that does not fit is not tried again


@pytest.mark.parametrize(("stochastic", "batch_size"), [(False, 1), (False, 16), (True, 1)])
def test_measuring_in_smaller_batches_gives_the_same(
    stochastic: bool, batch_size: int, tmp_path: Path, lab, register, at_once
) -> None:
    """Down to single images, whatever the batch of a fit is."""

    def fit(task, values, context):
        made = context.reconstructor(task, values.solve, Identity())
        return Greedy(made, 1, SHORT[2])

    register("wide", fit, stochastic=stochastic)
    register("plain", stochastic=stochastic)
    entries = ["wide", "plain"]
    study = lab.resolved(entries, budget={"trials": 2, "batch_size": batch_size})
    for name in entries:
        assert lab.search(study, tmp_path, name).state == "finished"
    ours, theirs = trials(tmp_path, "wide"), trials(tmp_path, "plain")
    assert len(ours) == len(theirs) == 2
    for one, other in zip(ours, theirs, strict=True):
        assert one.params == other.params
        assert one.metrics["val/psnr"] == pytest.approx(other.metrics["val/psnr"], abs=1e-4)
        assert one.notes["images_in_batch"] == 1
    assert "memory" in ours[0].notes
    assert "memory" not in ours[1].notes
    context = lab.context(study, tmp_path / "again")
    again = run_trial(context, Entry.of(study, "wide"), ours[1], tmp_path / "again" / "trial")
    assert again.metrics["val/psnr"] == ours[1].metrics["val/psnr"]
    assert "memory" not in again.notes


def test_one_setting_that_lacks_memory_costs_the_others_of_its_batch_nothing(
    tmp_path: Path, lab, register, at_once
) -> None:
    def fit(task, values, context):
        made = context.reconstructor(task, values.solve, Identity())
        bad = values.solve.momentum != "textbook"
        return Greedy(made, 0, MemoryError("no room")) if bad else made

    register("moody", fit)
    register("plain")
    batch = {"raw": {"search": {"batch": 4, "race": False}}}
    lab.search(lab.resolved(["moody"], trials=4, **batch), tmp_path, "moody")
    lab.search(lab.resolved(["plain"], trials=4, name="other", **batch), tmp_path, "plain")
    for one, other in zip(
        trials(tmp_path, "moody"), trials(tmp_path, "plain", "other"), strict=True
    ):
        assert one.params == other.params
        if one.params["solve.momentum"] == "textbook":
            assert one.state == "finished"
            assert one.metrics["val/psnr"] == pytest.approx(other.metrics["val/psnr"], abs=1e-3)
        else:
            assert (one.state, one.reason) == ("failed", "MemoryError: no room")


# ---------------------------------------------------------------------------- clocks


@pytest.fixture
def jumps(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A wall clock that is set back by a day and ahead by a year at every look."""
    real, offsets = time.time, itertools.cycle((0.0, -86400.0, 365 * 86400.0))
    monkeypatch.setattr(time, "time", lambda: real() + next(offsets))
    yield


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Clocks that only this thread's `time.sleep` moves: a busy machine changes no count."""
    passed, sleep, ours = [0.0], time.sleep, threading.get_ident()

    def pass_by(seconds: float) -> None:
        if threading.get_ident() == ours:
            passed[0] += seconds
        else:
            sleep(seconds)

    for name in ("monotonic", "perf_counter"):
        monkeypatch.setattr(time, name, lambda: passed[0])
    monkeypatch.setattr(time, "sleep", pass_by)
    yield


def test_a_clock_that_jumps_changes_nothing(tmp_path: Path, lab, jumps) -> None:
    began = time.monotonic()
    found = lab.search(lab.resolved(["ldipa"], trials=3), tmp_path, "ldipa")
    elapsed = time.monotonic() - began
    assert found.state == "finished"
    ended = trials(tmp_path, "ldipa")
    for record in (found, *ended):
        assert record.finished >= record.started > 0
        for name, value in record.metrics.items():
            if name.endswith("seconds"):
                assert 0 <= value < elapsed, name
    assert found.metrics["search/seconds"] == sum(one.metrics["trial/seconds"] for one in ended)


def test_a_budget_in_minutes_does_not_look_at_the_wall_clock(
    tmp_path: Path, lab, register, jumps, slept
) -> None:
    register("slow", sleeping(0.02))
    study = lab.resolved(["slow"], raw={"budget": {"minutes": 0.2 / 60}})
    lab.search(study, tmp_path, "slow")
    assert len(trials(tmp_path, "slow")) == 9  # at 0.18 s there is no time but to close


# ---------------------------------------------------------------------------- lost workers


def test_a_trial_that_kills_its_worker_again_and_again_is_a_failure(
    tmp_path: Path, lab, by_workers
) -> None:
    study = lab.resolved(["identity", "hessian"], trials=5)

    def dies(job: Job) -> bool:
        return job.entry == "identity" and job.kind == "trial" and job.records[0].index == 2

    found = by_workers(study, tmp_path, dies=dies)
    assert [record.state for record in found.done] == ["finished", "finished"]
    ours = trials(tmp_path, "identity")
    assert sum(trial.state == "interrupted" for trial in ours) == method_search.LOSSES - 1
    assert [trial.index for trial in counted(ours)] == [0, 1, 2, 3, 4]
    states = [trial.state for trial in counted(ours)]
    assert states == ["finished", "finished", "failed", "finished", "finished"]
    (bad,) = (trial for trial in ours if trial.state == "failed")
    assert f"its worker died {method_search.LOSSES} times" in bad.reason
    assert "SIGSEGV" in bad.reason
    assert len({json.dumps(trial.params) for trial in ours if trial.index == 2}) == 1
    assert len(found.heard.messages) == method_search.LOSSES - 1
    whole = lab.resolved(["identity"], trials=5, name="whole")
    lab.search(whole, tmp_path, "identity")
    for one, other in zip(counted(ours), trials(tmp_path, "identity", "whole"), strict=True):
        assert one.params == other.params


def test_of_a_batch_only_the_setting_that_kills_fails(tmp_path: Path, lab, by_workers) -> None:
    study = lab.resolved(["identity"], trials=6, raw={"search": {"batch": 4, "race": False}})
    found = by_workers(
        study, tmp_path, count=1, dies=lambda job: any(one.index == 1 for one in job.records)
    )
    states = [trial.state for trial in counted(trials(tmp_path, "identity"))]
    assert states == ["finished", "failed", *["finished"] * 4]
    assert len(found.pool.seen[0].records) == 4
    lost = [job for job in found.pool.seen if any(one.index == 1 for one in job.records)]
    assert {len(job.records) for job in lost[1:]} == {1}


@pytest.mark.parametrize("times", [1, method_search.LOSSES])
def test_a_winner_that_kills_its_worker(times: int, tmp_path: Path, lab, by_workers) -> None:
    losses = []

    def dies(job: Job) -> bool:
        if job.kind == "seed" and len(losses) < times:
            losses.append(job)
            return True
        return False

    (done,) = by_workers(lab.resolved(["ldipa"], trials=1), tmp_path, dies=dies).done
    if times == 1:
        assert done.state == "finished"
    else:
        assert done.state == "failed"
        assert f"the winner failed: its worker died {times} times" in done.reason


# ---------------------------------------------------------------------------- minutes


def sleeping(seconds: float) -> Callable[..., Any]:
    """A fit that takes a while."""

    def fit(task, values, context):
        time.sleep(seconds)
        return context.reconstructor(task, values.solve, Identity())

    return fit


def seconds_of(found: list[RunRecord]) -> list[float]:
    return [trial.metrics["trial/seconds"] for trial in counted(found)]


def charged_after(found: list[RunRecord]) -> list[float]:
    """Seconds after each trial, with the most that shared results saved any of them so far."""
    saved = (trial.metrics.get("trial/shared_seconds", 0.0) for trial in counted(found))
    ends = itertools.accumulate(seconds_of(found))
    return [own + most for own, most in zip(ends, itertools.accumulate(saved, max), strict=True)]


@pytest.mark.parametrize("workers", [1, 2])
def test_rows_get_the_same_time_not_the_same_trials(
    workers: int, tmp_path: Path, lab, by_workers, register, slept
) -> None:
    register("quick", sleeping(0.02))
    register("slow", sleeping(0.1))
    budget = 0.65
    study = lab.resolved(["quick", "slow"], raw={"budget": {"minutes": budget / 60}} | DRAWN)
    done = by_workers(study, tmp_path, count=workers).done
    counts = {}
    for record in done:
        found = trials(tmp_path, record.method)
        spent = seconds_of(found)
        counts[record.method] = len(spent)
        charged = charged_after(found)
        assert charged[-1] >= 0.9 * budget  # what runs elsewhere counts from when it began
        assert sum(spent[:-workers]) < budget
        late = record.notes.get("late_trials", 0)
        # the first trial always counts
        assert late == sum(one > budget for one in charged[1:]) <= workers
        assert record.metrics["search/trials"] == len(spent) - late
        assert record.metrics["search/seconds"] == pytest.approx(sum(spent))
    assert counts["quick"] > 1.5 * counts["slow"] >= 6


def bright(level: float) -> Direct:
    """All pixels alike; the darker, the worse."""
    return Direct(lambda y, physics: torch.full_like(physics.A_adjoint(y), level))


def test_what_ends_after_the_budget_does_not_win_unless_it_is_the_first(
    tmp_path: Path, lab, register, slept
) -> None:
    calls = []

    def fit(task, values, context):
        calls.append(1)
        time.sleep(0.02 if len(calls) < 3 else 0.5)
        return bright(0.3 + 0.05 * len(calls))

    register("late", fit)
    study = lab.resolved(["late"], raw={"budget": {"minutes": 0.3 / 60}})
    found = lab.search(study, tmp_path, "late")
    ended = trials(tmp_path, "late")
    assert len(ended) == 3
    assert max(ended, key=lambda one: one.metrics["val/psnr"]).number == 2
    assert found.notes["winner"] == 1
    assert found.notes["late_trials"] == 1
    assert found.metrics["search/trials"] == 2
    one = lab.resolved(["late"], name="first", raw={"budget": {"minutes": 1e-6}})
    first = lab.search(one, tmp_path, "late")
    assert (first.state, first.notes["winner"]) == ("finished", 0)
    assert len(trials(tmp_path, "late", "first")) == 1
    more = lab.resolved(["late"], raw={"budget": {"minutes": 2 / 60}})
    assert lab.search(more, tmp_path, "late").notes["winner"] >= 2
    assert len(trials(tmp_path, "late")) > 3


def test_a_search_that_was_stopped_counts_what_it_spent(
    tmp_path: Path, lab, register, slept
) -> None:
    calls = []

    def fit(task, values, context):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        time.sleep(0.08)
        return context.reconstructor(task, values.solve, Identity())

    register("stopped", fit)

    def limit(seconds: float) -> StudyFile:
        return lab.resolved(["stopped"], raw={"budget": {"minutes": seconds / 60}} | DRAWN)

    with pytest.raises(KeyboardInterrupt):
        lab.search(limit(0.6), tmp_path, "stopped")
    spent = sum(seconds_of([one for one in trials(tmp_path, "stopped") if one.metrics]))
    assert spent == pytest.approx(0.24)
    lab.search(limit(0.6), tmp_path, "stopped")
    whole = charged_after(trials(tmp_path, "stopped"))
    assert whole[-2] < 0.6 <= whole[-1]
    assert len(whole) <= 8
    kept = {one.number: one for one in trials(tmp_path, "stopped")}
    lab.search(limit(0.6), tmp_path, "stopped")
    assert {one.number: one for one in trials(tmp_path, "stopped")} == kept
    lab.search(limit(1.2), tmp_path, "stopped")
    grown = trials(tmp_path, "stopped")
    assert len(grown) > len(kept)
    assert grown[: len(kept)] == list(kept.values())


def test_what_others_paid_for_is_charged_once() -> None:
    def trial(own: float, lent: float) -> RunRecord:
        metrics = {"trial/seconds": own, "trial/shared_seconds": lent}
        return RunRecord(kind="trial", study="s", task="t", method="m", metrics=metrics)

    found = [trial(10, 0), trial(10, 30), trial(10, 20), trial(10, 40)]
    assert outcome.spent(found) == [10, 50, 60, 80]
    assert outcome.within(found, 1.0) == found[:3]
    assert outcome.within(found, 0.01) == found[:1]
    assert outcome.within(found, None) == found


# ---------------------------------------------------------------------------- no gain


def levels(values: list[float]) -> Callable[..., Any]:
    """Fits whose reconstructions are as bright as the values say, the last of them for ever."""
    left = iter(values)

    def fit(task, values, context):
        return bright(next(left, 0.0))

    return fit


@pytest.mark.parametrize("workers", [1, 2])
def test_a_row_without_gain_stops(workers: int, tmp_path: Path, lab, by_workers, register) -> None:
    register("flat", levels([0.2, 0.4] + [0.3] * 40))

    def study(patience: int) -> StudyFile:
        return lab.resolved(
            ["flat"], trials=30, raw={"search": {"plateau": patience, "tuner": "sampler"}}
        )

    (done,) = by_workers(study(3), tmp_path, count=workers).done
    ended = trials(tmp_path, "flat")
    assert 5 <= len(ended) <= 5 + (workers - 1)  # the second is best; what ran on is kept
    assert done.notes["stopped"] == "no gain in 3 trials"
    assert done.notes["winner"] == 1
    (again,) = by_workers(study(3), tmp_path, count=workers).done
    assert trials(tmp_path, "flat") == ended
    assert (again.notes["stopped"], again.params) == (done.notes["stopped"], done.params)
    (more,) = by_workers(study(9), tmp_path, count=workers).done
    assert len(trials(tmp_path, "flat")) >= 11
    assert more.notes["stopped"] == "no gain in 9 trials"


def test_small_gains_and_failures_do_not_count() -> None:
    def trial(value: float | None) -> RunRecord:
        state = "failed" if value is None else "finished"
        metrics = {} if value is None else {"val/psnr": value}
        return RunRecord(
            kind="trial", study="s", task="t", method="m", state=state, metrics=metrics
        )

    def settled(*values: float | None, patience: int | None = 2) -> bool:
        return outcome.settled([trial(value) for value in values], patience, 0.1)

    assert settled(20.0, 20.05, 20.1)
    assert not settled(20.0, 20.05, 20.2)
    assert settled(20.0, None, None)
    assert not settled(None, None, None)  # nothing to be better than
    assert not settled(20.0, 20.0)
    assert not settled(*[20.0] * 9, patience=None)


# ---------------------------------------------------------------------------- batches


def test_settings_in_one_batch_give_what_each_gives_alone(tmp_path: Path, lab) -> None:
    budget = {"trials": 8}
    root = lab.kept(tmp_path, {"identity": {}}, budget)
    problem = read_study(study_folder(root, "kept")).problem
    raw = {"problem": problem.model_dump(), "search": {"batch": 4}}
    study = lab.resolved(["identity"], name="joined", budget=budget, raw=raw)
    context = open_context(study, root, build_task(study.task, study.problem, seed=study.seed))
    found = run_entry(context, Entry.of(study, "identity"), lab.Heard())
    ours, theirs = (trials(root, "identity", name) for name in ("joined", "kept"))
    for one, other in zip(ours, theirs, strict=True):
        assert one.params == other.params
        assert one.notes["settings_in_batch"] == 4
        assert "settings_in_batch" not in other.notes
        assert one.metrics["val/psnr"] == pytest.approx(other.metrics["val/psnr"], abs=1e-3)
    assert found.state == "finished"
    again = repeat(ours[5], root, CPU)
    assert again.agrees(tolerance(CPU, ours[5]))


def test_a_batch_is_charged_once(tmp_path: Path, lab, monkeypatch) -> None:
    write = records.write

    def slowly(*arguments: Any) -> None:
        time.sleep(0.05)
        write(*arguments)

    monkeypatch.setattr(records, "write", slowly)
    study = lab.resolved(["identity"], trials=8, raw={"search": {"batch": 8}})
    began = time.monotonic()
    lab.search(study, tmp_path, "identity")
    assert sum(seconds_of(trials(tmp_path, "identity"))) < time.monotonic() - began


# ---------------------------------------------------------------------------- races


IMAGES = 40


def raced(study: StudyFile, root: Path, entry: str, callback: Any) -> RunRecord:
    """Runs an entry on enough images for a race."""
    context = open_context(study, root, small_task(seed=study.seed, count=IMAGES))
    return run_entry(context, Entry.of(study, entry), callback)


@pytest.mark.exhaustive(after=1)
@pytest.mark.parametrize("batch", [1, 4])
def test_bad_settings_leave_a_race_and_never_win(batch: int, tmp_path: Path, lab) -> None:
    ours = lab.resolved(["identity"], trials=16, raw={"search": {"batch": batch}})
    found = raced(ours, tmp_path, "identity", lab.Heard())
    theirs = lab.resolved(["identity"], trials=16, name="whole", raw={"search": {"race": False}})
    whole = raced(theirs, tmp_path, "identity", lab.Heard())
    left = [trial for trial in trials(tmp_path, "identity") if trial.state == "pruned"]
    assert left
    assert found.notes["winner"] not in {trial.number for trial in left}
    best = max(one.metrics.get("val/psnr", -math.inf) for one in trials(tmp_path, "identity"))
    others = {one.index: one for one in trials(tmp_path, "identity", "whole")}
    assert {one.state for one in others.values()} <= {"finished", "diverged"}
    for trial in left:
        assert "significantly worse than the best on the first" in trial.reason
        assert f"of {IMAGES} validation images" in trial.reason
        assert "val/psnr" not in trial.metrics
        assert trial.metrics["val/psnr_estimate"] < best
        assert len(trial.validation) < IMAGES
        assert trial.params == others[trial.index].params
    assert found.params == whole.params
    assert found.metrics["val/psnr"] == pytest.approx(whole.metrics["val/psnr"], abs=1e-3)


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_start_up_trials_race_side_by_side_with_the_numbers_they_have_alone(
    tmp_path: Path, lab
) -> None:
    """On a CPU: given up sooner, but what is run is bit for bit what it is by itself."""
    ours = lab.resolved(["identity"], trials=16, raw={"search": {"batch": None}})
    found = raced(ours, tmp_path, "identity", lab.Heard())
    alone = lab.resolved(["identity"], trials=16, name="alone", raw={"search": {"race": False}})
    whole = raced(alone, tmp_path, "identity", lab.Heard())
    others = {one.index: one for one in trials(tmp_path, "identity", "alone")}
    batched = trials(tmp_path, "identity")
    assert any(one.state == "pruned" for one in batched[:8])
    for one in batched:
        assert one.params == others[one.index].params
        assert one.validation == others[one.index].validation[: len(one.validation)]
        assert "settings_in_batch" not in one.notes
    assert found.params == whole.params
    assert found.metrics["val/psnr"] == whole.metrics["val/psnr"]


@pytest.mark.exhaustive
def test_a_race_whose_journal_was_lost_goes_on_as_one_that_was_not(tmp_path: Path, lab) -> None:
    whole = lab.resolved(["identity"], trials=24, raw=DRAWN)
    raced(whole, tmp_path / "whole", "identity", lab.Heard())
    raced(
        lab.resolved(["identity"], trials=19, raw=DRAWN),
        tmp_path / "lost",
        "identity",
        lab.Heard(),
    )
    folder = study_folder(tmp_path / "lost", "small") / "identity"
    (folder / journal.JOURNAL).unlink()
    raced(whole, tmp_path / "lost", "identity", lab.Heard())
    ours, theirs = (trials(tmp_path / place, "identity") for place in ("lost", "whole"))
    assert [(one.state, one.params, one.validation) for one in ours] == [
        (one.state, one.params, one.validation) for one in theirs
    ]
    assert any(one.state == "pruned" for one in ours)


# ---------------------------------------------------------------------------- pruners, samplers


@pytest.mark.exhaustive(after=2)
@pytest.mark.parametrize("pruner", ["median", "halving", "hyperband", "none"])
def test_pruners_give_fits_up_between_epochs(pruner: str, tmp_path: Path, lab) -> None:
    budget = {"epochs": 3, "rungs": 3, "train_images": 3}
    study = lab.resolved(
        ["ldipa"], trials=9, budget=budget, raw={"search": {"pruner": pruner, "sampler": "random"}}
    )
    found = lab.search(study, tmp_path, "ldipa")
    ended = trials(tmp_path, "ldipa")
    left = [trial for trial in ended if trial.state == "pruned"]
    assert len(ended) == 9
    assert found.state == "finished"
    assert found.notes["winner"] not in {trial.number for trial in left}
    assert bool(left) == (pruner != "none")
    for trial in left:
        word = "below the median" if pruner == "median" else "not in the best third"
        assert word in trial.reason
        assert trial.series["val/psnr_by_epoch"][-1][0] < 3


@pytest.mark.exhaustive(after=1)
@pytest.mark.parametrize("kind", KINDS)
def test_a_search_stopped_twice_ends_as_one_that_never_was(
    kind: str, tmp_path: Path, lab, register
) -> None:
    stops = []

    def fit(task, values, context):
        if stops and context.seed == stops[0]:
            del stops[0]
            raise KeyboardInterrupt
        return context.reconstructor(task, values.solve, Identity())

    register("plain", fit)
    search = {"raw": {"search": {"sampler": kind, "race": False}}}
    study = lab.resolved(["plain"], trials=19, **search)
    lab.search(study, tmp_path / "whole", "plain")
    context = lab.context(study, tmp_path / "twice")
    stops += [context.seed("trial", index) for index in (5, 17)]
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            lab.search(study, tmp_path / "twice", "plain")
    lab.search(study, tmp_path / "twice", "plain")
    ours, theirs = trials(tmp_path / "twice", "plain"), trials(tmp_path / "whole", "plain")
    assert sum(one.state == "interrupted" for one in ours) == 2
    assert [(one.index, one.params, one.metrics["val/psnr"]) for one in counted(ours)] == [
        (one.index, one.params, one.metrics["val/psnr"]) for one in theirs
    ]


def test_what_is_no_kind_of_sampler_or_pruner_is_refused(lab) -> None:
    for key in ("sampler", "pruner"):
        with pytest.raises(UserError, match=f"search.{key}"):
            lab.resolved(["identity"], sets=[f"search.{key}=best"])


# ---------------------------------------------------------------------------- A/A


@pytest.mark.exhaustive(after=1)
@pytest.mark.parametrize("method", ["hessian", "ldipa", "unrolled-identity"])
def test_one_method_under_two_names_ties_exactly(method: str, tmp_path: Path, lab) -> None:
    """Draws, seeds and results depend on what is searched, not on what it is called."""
    study = lab.resolved(
        {"one": {"method": method}, "two": {"method": method}},
        trials=4,
        raw={"search": {"race": True}, "reference": "one"},
    )
    first, second = (lab.search(study, tmp_path, name) for name in ("one", "two"))
    assert first.params == second.params
    assert first.metrics["test/psnr"] == second.metrics["test/psnr"]
    for ours, theirs in zip(trials(tmp_path, "one"), trials(tmp_path, "two"), strict=True):
        assert (ours.params, ours.seed, ours.state) == (theirs.params, theirs.seed, theirs.state)
        assert ours.metrics.get("val/psnr") == theirs.metrics.get("val/psnr")
