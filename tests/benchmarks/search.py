"""Time until a search is within 0.1 dB of the best known setting, against a plain Optuna loop.

    python tests/benchmarks/search.py --method identity --repeats 9 --cache FOLDER
    python tests/benchmarks/search.py --method ldipa --reference 40 --set budget.rungs=2

Three contenders, with seeds of their own in every repeat and in turns, so that other programs slow
them alike:

- `plain`: `optuna.Study.optimize` with a seeded `TPESampler`; a trial fits and runs on all images
  for validation, with teachers and LMMSE map of its own; nothing is enqueued, given up or kept;
- `tips`: a study's search as `dipa-bench study` does it, without MLflow;
- `blank`: the same without any point to begin with: no defaults, published settings or
  `points_to_evaluate`.

The clocks, of the wall and of this process, run from before the search is opened until a trial that
was validated on all images reaches the bar, Optuna, journals and records included. A search that
has not reached it after --most trials or --seconds of CPU time counts with the time that it took.
The bar is the best of these points, --reference random ones and a quarter as many that TPE adds
to them; they are kept below --cache.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, create_trial

from dipa_bench import devices, digests, parameters
from dipa_bench.config import study_file
from dipa_bench.config.entry import Entry
from dipa_bench.config.problem import build_task
from dipa_bench.config.study_file import BudgetSpec, StudyFile
from dipa_bench.errors import Diverged
from dipa_bench.evaluation.evaluate import LOWEST, evaluate
from dipa_bench.execution.attempt import budget_of
from dipa_bench.execution.pool import Inline
from dipa_bench.execution.scheduler import Scheduler
from dipa_bench.execution.study_folder import open_context
from dipa_bench.learning import lmmse
from dipa_bench.learning.teachers import TeacherCache
from dipa_bench.methods import FitContext
from dipa_bench.parameters import Search, Value
from dipa_bench.search.callbacks import StudyCallback
from dipa_bench.search.queues import TrialQueues
from dipa_bench.tasks.base import Task
from dipa_bench.tracking.records import RunRecord

NEAR = 0.1  # dB below the best known


@dataclass(frozen=True)
class Goal:
    """What a search is run for.

    Attributes:
        bar: validation PSNR that ends it.
        most: trials, after which it ends in any case.
        seconds: of CPU time, likewise.
    """

    bar: float
    most: int
    seconds: float


@dataclass(frozen=True)
class Arrival:
    """When a search reached the bar, or gave up.

    Attributes:
        wall, cpu: seconds.
        trials: ended until then.
        reached: whether it did.
    """

    wall: float
    cpu: float
    trials: int
    reached: bool


class Clock:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    @property
    def cpu(self) -> float:
        return time.process_time() - self._cpu

    def arrival(self, trials: int, reached: bool) -> Arrival:
        return Arrival(time.perf_counter() - self._wall, self.cpu, trials, reached)


# -------------------------------------------------------------------------------------- the plain


def suggested(trial: optuna.Trial, name: str, search: Search, whole: bool) -> Value:
    """A parameter's value, as an objective asks for it."""
    if search.choices:
        return trial.suggest_categorical(name, search.choices)
    if whole:
        return trial.suggest_int(name, int(search.low), int(search.high), log=search.log)
    return trial.suggest_float(name, search.low, search.high, log=search.log)


def objective(task: Task, entry: Entry, budget: BudgetSpec) -> Callable[[optuna.Trial], float]:
    """A trial's validation PSNR, everything computed anew; `LOWEST` of one that diverges."""
    space, whole = entry.space(task), parameters.integers(entry.method.parameters)

    def run(trial: optuna.Trial) -> float:
        drawn: dict[str, Value] = {}
        for name, search in space.items():
            if search.when is None or search.when.holds(drawn):
                drawn[name] = suggested(trial, name, search, name in whole)
        flat = parameters.active(entry.method.parameters, entry.defaults(task) | drawn)
        values = parameters.build(entry.method.parameters, flat)
        with tempfile.TemporaryDirectory() as folder:
            teachers = TeacherCache(Path(folder))
            context = FitContext(
                seed=digests.seed("plain", trial.number),
                budget=budget_of(budget, final=False),
                teachers=teachers,
                lmmse=lambda of: lmmse.cross_fitted(of, budget.train_images),
            )
            try:
                made = entry.method.fit(task, values, context)
                found = evaluate(made, task, task.images.validation).check()
            except Diverged:
                return LOWEST
        quality = found.metrics("val")["val/psnr"]
        return quality if math.isfinite(quality) else LOWEST

    return run


def plain(task: Task, entry: Entry, budget: BudgetSpec, seed: int, goal: Goal) -> Arrival:
    """The time that a plain Optuna loop takes."""
    clock = Clock()

    def stop(study: optuna.Study, trial: FrozenTrial) -> None:
        if trial.value >= goal.bar or clock.cpu >= goal.seconds:
            study.stop()

    study = optuna.create_study(direction="maximize", sampler=TPESampler(seed=seed))
    study.optimize(objective(task, entry, budget), n_trials=goal.most, callbacks=[stop])
    return clock.arrival(len(study.trials), study.best_value >= goal.bar)


# ------------------------------------------------------------------------------------------- ours


class Reached(Exception):
    """The search is over."""


class Watch(StudyCallback):
    """Ends a search at its first finished trial that reaches the bar, or where it has no more."""

    def __init__(self, goal: Goal) -> None:
        self._goal, self._clock = goal, Clock()
        self._trials = 0
        self.arrival: Arrival | None = None

    def run(self, kind: str, entry: str, number: int) -> None:
        if kind == "seed":
            self._stop(reached=False)

    def ended(self, record: RunRecord) -> None:
        self._trials += record.kind == "trial"
        finished = record.kind == "trial" and record.state == "finished"
        if finished and record.metrics["val/psnr"] >= self._goal.bar:
            self._stop(reached=True)
        if self._clock.cpu >= self._goal.seconds:
            self._stop(reached=False)

    def _stop(self, reached: bool) -> None:
        self.arrival = self._clock.arrival(self._trials, reached)
        raise Reached


class Blank(Entry):
    """An entry without points to evaluate."""

    def first_points(self, task: Task) -> list[dict[str, Value]]:
        return []


def ours(task: Task, entry: Entry, study: StudyFile, seed: int, goal: Goal) -> Arrival:
    """The time that a study's search takes."""
    budget = study.budget.model_copy(update={"trials": goal.most})
    study = study.model_copy(update={"seed": seed, "name": "benchmark", "budget": budget})
    with tempfile.TemporaryDirectory() as folder:
        watch = Watch(goal)
        context = open_context(study, Path(folder), task)
        scheduler = Scheduler(context, watch, TrialQueues())
        try:
            scheduler.run([entry], Inline(context, scheduler.job_callback))
        except Reached:
            return watch.arrival
    raise RuntimeError(f"no trial of {entry.name} finished: see the row in a study")


# --------------------------------------------------------------------------------------- the rest


def reference(task: Task, entry: Entry, budget: BudgetSpec, count: int, cache: Path) -> float:
    """The best validation PSNR of a long search; what was tried before is read from the cache."""
    distributions = entry.distributions(task)
    ranges = {name: str(found) for name, found in distributions.items()}
    spent = [budget.epochs, budget.train_images, budget.batch_size]
    key = digests.of(task.digest, [task.solver, task.iterations], entry.name, ranges, spent)
    path = cache / f"reference-{entry.name.replace('/', '-')}-{key}.json"
    tried = json.loads(path.read_text()) if path.exists() else []
    cache.mkdir(parents=True, exist_ok=True)
    points, run = entry.first_points(task), objective(task, entry, budget)
    for index in range(len(tried), len(points) + count + count // 4):
        seed = digests.seed("reference", index) % 2**32
        far = index < len(points) + count
        sampler: BaseSampler = RandomSampler(seed) if far else TPESampler(seed=seed)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        for params, value in [] if far else tried:
            own = {name: distributions[name] for name in params}
            study.add_trial(create_trial(params=params, distributions=own, value=value))
        if index < len(points):
            study.enqueue_trial(points[index])
        study.optimize(run, n_trials=1)
        tried.append([study.trials[-1].params, study.trials[-1].value])
        path.write_text(json.dumps(tried))
    best, value = max(tried, key=lambda pair: pair[1])
    near = sum(value - NEAR <= other for _, other in tried[len(points) : len(points) + count])
    print(
        f"{entry.name}: best of {len(tried)} points {value:.3f} dB with {best}; "
        f"{near} of {count} random ones within {NEAR} dB",
        flush=True,
    )
    return value


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):8.2f} ({min(values):.2f} to {max(values):.2f})"


def table(found: dict[str, list[Arrival]]) -> None:
    """Prints medians, ranges and the first contender's medians over each one's."""
    print(f"{'search':8s} {'wall s':>28s} {'CPU s':>28s} {'trials':>24s}  reached  ratio wall, CPU")
    for name, arrivals in found.items():
        columns = [[getattr(one, what) for one in arrivals] for what in ("wall", "cpu", "trials")]
        pairs = [
            statistics.median(getattr(one, what) for one in next(iter(found.values())))
            / statistics.median(getattr(one, what) for one in arrivals)
            for what in ("wall", "cpu")
        ]
        wall, cpu, trials = map(spread, columns)
        reached = f"{sum(one.reached for one in arrivals)}/{len(arrivals)}"
        ratios = ", ".join(f"{ratio:.1f}" for ratio in pairs)
        print(
            f"{name:8s} {wall:>28s} {cpu:>28s} {trials:>24s}  {reached:>7s}  {ratios}", flush=True
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="sr")
    parser.add_argument("--method", default="identity")
    parser.add_argument("--reference", type=int, default=400, help="random points")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="the first repeat's seed")
    parser.add_argument("--most", type=int, default=200, help="trials of one search")
    parser.add_argument("--seconds", type=float, default=3600, help="of CPU time, of one search")
    parser.add_argument("--cache", type=Path, default=Path(".benchmarks"))
    parser.add_argument("--only", default="plain,tips,blank", help="contenders")
    parser.add_argument("--set", action="append", default=[], help="key=value of our study alone")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    raw = study_file.read(given.task, None)
    options = {"task": given.task, "preset": "quick", "methods": given.method}
    base = study_file.resolve(raw, **options)
    study = study_file.resolve(raw, **options, sets=given.set)
    task = build_task(base.task, base.problem, seed=base.seed, device=devices.resolve("auto"))
    entry, own = Entry.of(base, given.method), Entry.of(study, given.method)
    empty = Blank(own.name, own.method, own.spec)
    best = reference(task, entry, base.budget, given.reference, given.cache)
    goal = Goal(best - NEAR, given.most, given.seconds)
    runs: dict[str, Callable[[int], Arrival]] = {
        "plain": lambda seed: plain(task, entry, base.budget, seed, goal),
        "tips": lambda seed: ours(task, own, study, seed, goal),
        "blank": lambda seed: ours(task, empty, study, seed, goal),
    }
    chosen = given.only.split(",")
    found: dict[str, list[Arrival]] = {name: [] for name in chosen}
    for repeat in range(given.repeats):
        turn = repeat % len(chosen)
        for name in chosen[turn:] + chosen[:turn]:
            one = runs[name](given.first + repeat)
            found[name].append(one)
            times = f"{one.wall:.2f} s, CPU {one.cpu:.2f} s, {one.trials} trials"
            end = "" if one.reached else ", not reached"
            print(f"  {repeat} {name}: {times}{end}", flush=True)
    if given.repeats:
        table(found)


if __name__ == "__main__":
    main()
