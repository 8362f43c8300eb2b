"""Time until a search is near the best solver settings of a fixed operator, against plain Optuna.

    python tests/benchmarks/search.py --problems sr/identity cs/identity --repeats 5 --cache FOLDER
    python tests/benchmarks/search.py --problems deblur/identity --settings 24 48 96 --repeats 3

Three contenders tune the same operator on the same validation images, with seeds of their own in
every repeat and in turns, so that other programs slow them alike; none is given any point but the
defaults:

- `tpe`: `optuna.Study.optimize` with a seeded `TPESampler`, every trial on all images;
- `gp`: the same with Optuna's `GPSampler`;
- `tuner`: the tuner of a study, `dipa_bench.search.settings_tuner`.

The operator and the LMMSE map are fitted before the clocks, of the wall and of this process, start.
They are read where settings that were run on all images come within 0.05 and 0.02 dB of the
reference: the best of --reference random settings, of COBYQA on all images from the ten best of
them, and of all that contenders ever found. A search that does not arrive within --seconds of CPU
time, or ends before, counts as infinite.

With --settings the question is another one: what each comes to with so many evaluations, given the
points that a study tries first.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import optuna
from optuna.samplers import BaseSampler, GPSampler, TPESampler
from scipy.optimize import minimize

from dipa_bench import devices, digests
from dipa_bench.config import study_file
from dipa_bench.config.entry import Entry
from dipa_bench.config.problem import build_task
from dipa_bench.config.space import uniform_point
from dipa_bench.evaluation.race import race
from dipa_bench.execution.attempt import budget_of
from dipa_bench.learning import lmmse
from dipa_bench.learning.teachers import TeacherCache
from dipa_bench.methods import FitContext
from dipa_bench.parameters import Value, build, settings_of
from dipa_bench.reuse import CachedPerTask
from dipa_bench.search.evaluations import Evaluation
from dipa_bench.search.settings_tuner import SettingsTuner
from dipa_bench.search.tuning import BRANCHES, SCHEDULES

BARS = (0.05, 0.02)  # dB below the reference
LOWEST = -10.0  # dB, of settings that diverge
STARTS = 10  # random settings from which the reference is refined
Params = Mapping[str, Value]


class Problem:
    """The solver settings of one operator on one task.

    Args:
        name: task/method; the method is fitted with its defaults.
    """

    def __init__(self, name: str) -> None:
        task, _, method = name.partition("/")
        study = study_file.resolve(study_file.read(task, None), methods=method)
        self.name, self.settings = name, study.budget.settings
        self.task = build_task(task, study.problem, seed=study.seed, device=devices.resolve("cpu"))
        self.images = self.task.images.validation
        self.entry = Entry.of(study, method)
        self.space = settings_of(self.entry.distributions(self.task))
        maps = CachedPerTask(lambda of: lmmse.cross_fitted(of, study.budget.train_images))
        self._context = FitContext(
            seed=0,
            budget=budget_of(study.budget, final=False),
            teachers=TeacherCache(Path(tempfile.mkdtemp())),
            lmmse=maps,
        )
        self._flat = self.entry.defaults(self.task)
        fitted = self.entry.method.fit(self.task, self._values({}), self._context)
        self._operator = fitted.preconditioner
        maps(self.task)

    @property
    def points(self) -> list[dict[str, Value]]:
        """What a study tries first: the defaults and the published settings."""
        found = self.entry.first_points(self.task)
        return [self.defaults | settings_of(point) for point in found]

    @property
    def defaults(self) -> dict[str, Value]:
        return {name: self._flat[name] for name in self.space}

    def _values(self, params: Params) -> object:
        return build(self.entry.method.parameters, self._flat | dict(params))

    def run(
        self, params: Params, images: int, best: list[float] | None, races: bool
    ) -> list[float]:
        """PSNRs of the first images in racing order; none of settings that diverge."""
        made = self._context.reconstructor(self.task, self._values(params).solve, self._operator)
        (found,) = race(
            [made], self.task, self.images, best, enabled=races, most=images, chunked=races
        )
        return [] if found.error is not None else found.psnr.tolist()

    def psnr(self, params: Params) -> float:
        """Mean over all images."""
        found = self.run(params, len(self.images), None, races=False)
        return statistics.fmean(found) if found else LOWEST


@dataclass
class Search:
    """A search under way: the best on all images, and when it got there.

    Attributes:
        best: wall seconds, CPU seconds, evaluations and PSNR whenever the best improved.
    """

    seconds: float
    best: list[tuple[float, float, int, float]] = field(default_factory=list)
    evaluations: int = 0

    def __post_init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        self._spent: list[float] = []

    def tell(self, value: float | None) -> None:
        """Takes an evaluation; None where it was not on all images."""
        self.evaluations += 1
        self._spent.append(self.cpu)
        if value is not None and (not self.best or value > self.best[-1][-1]):
            wall, cpu = time.perf_counter() - self._wall, self.cpu
            self.best.append((wall, cpu, self.evaluations, value))

    @property
    def cpu(self) -> float:
        return time.process_time() - self._cpu

    def cpu_after(self, evaluations: int) -> float:
        """CPU seconds of the first evaluations."""
        return self._spent[min(evaluations, len(self._spent)) - 1]

    def arrival(self, bar: float) -> tuple[float, float, float]:
        """Wall seconds, CPU seconds and evaluations until the bar; infinite where it never came."""
        for *spent, value in self.best:
            if value >= bar:
                return tuple(spent)
        return (math.inf,) * 3


def by_optuna(sampler: Callable[[int], BaseSampler]) -> Callable[..., Search]:
    """A plain Optuna loop, every trial on all images; arguments as those of `by_tuner`."""

    def run(
        problem: Problem,
        seed: int,
        seconds: float,
        points: Sequence[Params] = (),
        settings: float = math.inf,
    ) -> Search:
        search = Search(seconds)
        study = optuna.create_study(direction="maximize", sampler=sampler(seed))
        for point in points or [problem.defaults]:
            study.enqueue_trial(point)
        while search.cpu < seconds and search.evaluations < settings:
            trial = study.ask(problem.space)
            value = problem.psnr(trial.params)
            study.tell(trial, value)
            search.tell(value)
        return search

    return run


def by_tuner(
    problem: Problem,
    seed: int,
    seconds: float,
    points: Sequence[Params] = (),
    settings: int | None = None,
) -> Search:
    """The tuner of a study.

    Args:
        problem: what is tuned.
        seed: of the search.
        seconds: of CPU time.
        points: to try first; else the defaults.
        settings: evaluations; else those of a study.
    """
    search, known = Search(seconds), []
    tuner = SettingsTuner(
        problem.space,
        points or [problem.defaults],
        settings or problem.settings,
        len(problem.images),
        branches=BRANCHES,
        schedules=SCHEDULES,
        seed=seed,
        shared_seed=seed,
    )
    while (proposals := tuner.proposals(known)) and search.cpu < seconds:
        for one in proposals:
            whole = [found.psnr[: one.images] for found in known if len(found.psnr) >= one.images]
            best = max(whole, key=math.fsum, default=None)
            psnr = problem.run(one.params, one.images, best, one.races)
            known.append(Evaluation(one.params, psnr))
            every = len(psnr) == len(problem.images)
            search.tell(statistics.fmean(psnr) if every else None)
    return search


CONTENDERS = {
    "tpe": by_optuna(lambda seed: TPESampler(seed=seed)),
    "gp": by_optuna(lambda seed: GPSampler(seed=seed)),
    "tuner": by_tuner,
}


def reference(problem: Problem, count: int, cache: Path) -> float:
    """The best of random settings and of COBYQA from the ten best of them; kept in the cache."""
    ranges = {name: str(found) for name, found in problem.space.items()}
    key = digests.of(problem.task.digest, problem.name, ranges, count)
    path = cache / f"reference-{problem.name.replace('/', '-')}-{key}.json"
    if path.exists():
        return json.loads(path.read_text())["psnr"]
    seed = digests.seed("reference", problem.name)
    drawn = [uniform_point(problem.space, k, seed) for k in range(count)]
    found = sorted(((problem.psnr(one), k) for k, one in enumerate(drawn)), reverse=True)
    best = found[0][0]
    for _, place in found[:STARTS]:
        best = max(best, refined(problem, drawn[place]))
    cache.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"psnr": best, "random": found[0][0]}))
    return best


def refined(problem: Problem, start: Params) -> float:
    """The best PSNR that COBYQA finds on all images from some settings, their choices kept."""
    names = [name for name in problem.space if isinstance(start[name], float)]
    seen: list[float] = []

    def ends(name: str) -> tuple[float, float]:
        low, high = problem.space[name].low, problem.space[name].high
        return (math.log(low), math.log(high)) if problem.space[name].log else (low, high)

    def loss(units: np.ndarray) -> float:
        params = dict(start)
        for name, unit in zip(names, np.clip(units, 0, 1).tolist(), strict=True):
            low, high = ends(name)
            value = low + unit * (high - low)
            params[name] = math.exp(value) if problem.space[name].log else value
        seen.append(problem.psnr(params))
        return -seen[-1]

    begin = []
    for name in names:
        low, high = ends(name)
        value = math.log(start[name]) if problem.space[name].log else start[name]
        begin.append((value - low) / (high - low))
    options = {"maxfev": 40, "initial_tr_radius": 0.15, "final_tr_radius": 0.005}
    minimize(loss, begin, method="COBYQA", bounds=[(0, 1)] * len(names), options=options)
    return max(seen)


def with_settings(
    problem: Problem, budgets: Sequence[int], contenders: Sequence[str], repeats: int
) -> None:
    """Prints what each contender comes to with so many evaluations, for each seed.

    A sampler's first trials do not depend on how many follow, so one search has all budgets; the
    tuner's do.
    """
    for contender in contenders:
        ends: dict[int, list[float]] = {budget: [] for budget in budgets}
        cpu: dict[int, list[float]] = {budget: [] for budget in budgets}
        for seed in range(repeats):
            whole = None
            for budget in reversed(budgets):
                if whole is None or contender == "tuner":
                    search = CONTENDERS[contender]
                    whole = search(problem, seed, math.inf, problem.points, settings=budget)
                reached = [one for one in whole.best if one[2] <= budget]
                ends[budget].append(reached[-1][-1])
                cpu[budget].append(whole.cpu_after(budget))
        for budget in budgets:
            told = ", ".join(f"{end:.3f}" for end in ends[budget])
            seconds = statistics.median(cpu[budget])
            print(
                f"{problem.name}, {budget} settings, {contender}: {told} dB in CPU {seconds:.0f} s",
                flush=True,
            )


def table(name: str, best: float, found: Mapping[str, list[Search]]) -> None:
    """Prints medians of each contender, and how many times as long as the tuner it took."""
    print(f"{name}: reference {best:.3f} dB")
    for bar in BARS:
        medians = {}
        for contender, searches in found.items():
            arrivals = [one.arrival(best - bar) for one in searches]
            medians[contender] = [statistics.median(part) for part in zip(*arrivals, strict=True)]
        for contender, (wall, cpu, evaluations) in medians.items():
            reached = sum(one.arrival(best - bar)[0] < math.inf for one in found[contender])
            ratio = cpu / medians["tuner"][1] if "tuner" in medians else math.nan
            ends = [one.best[-1][-1] for one in found[contender]]
            print(
                f"  within {bar} dB  {contender:6s} {wall:8.1f} s, CPU {cpu:8.1f} s, "
                f"{evaluations:5.0f} evaluations, {reached} of {len(ends)} arrived, "
                f"{ratio:5.1f} times the tuner's; ends {min(ends):.3f} to {max(ends):.3f} dB",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", nargs="+", default=["sr/identity"])
    parser.add_argument("--reference", type=int, default=500, help="random settings")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=300, help="of CPU time, of one search")
    parser.add_argument("--cache", type=Path, default=Path(".benchmarks"))
    parser.add_argument("--settings", type=int, nargs="+", help="compare what these lead to")
    parser.add_argument("--only", nargs="+", default=list(CONTENDERS), choices=list(CONTENDERS))
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for name in given.problems:
        problem = Problem(name)
        if given.settings:
            with_settings(problem, sorted(given.settings), given.only, given.repeats)
            continue
        best = reference(problem, given.reference, given.cache) if given.reference else -math.inf
        found: dict[str, list[Search]] = {contender: [] for contender in given.only}
        for repeat in range(given.repeats):
            turn = repeat % len(given.only)
            for contender in given.only[turn:] + given.only[:turn]:
                search = CONTENDERS[contender](problem, repeat, given.seconds)
                found[contender].append(search)
                wall, cpu, evaluations, value = search.best[-1]
                print(
                    f"  {name} {repeat} {contender}: {value:.3f} dB after {wall:.1f} s, "
                    f"CPU {cpu:.1f} s, {evaluations} evaluations",
                    flush=True,
                )
        ends = [search.best[-1][-1] for searches in found.values() for search in searches]
        table(name, max(best, *ends), found)


if __name__ == "__main__":
    main()
