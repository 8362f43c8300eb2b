"""One run: fit a method with given parameters, measure it, write it down."""

from __future__ import annotations

import errno
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from traceback import format_exception
from typing import Any

from optuna.distributions import BaseDistribution
from safetensors import SafetensorError

from dipa_bench import devices, digests, parameters, registry
from dipa_bench.data.images import ImageSet
from dipa_bench.errors import Diverged, Pruned, UserError, brief
from dipa_bench.evaluation.evaluate import Evaluation, evaluate
from dipa_bench.learning import lmmse
from dipa_bench.learning.teachers import TeacherCache
from dipa_bench.methods import Budget, FitContext, Method, Progress, relative
from dipa_bench.parameters import Value
from dipa_bench.search import shifts
from dipa_bench.search.kept import count_parameters, curves_of, keep_run, notes_of, state_of
from dipa_bench.search.sampling import distribution, sobol_point
from dipa_bench.search.study_file import BudgetSpec, MethodSpec, StudyFile
from dipa_bench.tasks.base import Task
from dipa_bench.tracking import records
from dipa_bench.tracking.records import RunRecord

LOOKS = 64  # points of a search space before it counts as out of reach
CHECKPOINTS = ".checkpoints"  # below a row's folder: a trial that is run again has a new number
SHIFTS = "shifts.parquet"
STORAGE = {getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EROFS", "EIO", "EACCES", "EPERM")}
OS_ERROR = re.compile(r"\(os error (\d+)\)")  # in the words of safetensors, which is Rust


@dataclass(frozen=True)
class Row:
    """One row of a study: a method under a name, with what is frozen and what is searched.

    Attributes:
        tips: the study's known-good points, the same for all rows.
    """

    name: str
    method: Method
    spec: MethodSpec
    tips: tuple[dict[str, Value], ...] = ()

    @staticmethod
    def of(study: StudyFile, name: str) -> Row:
        """The row `name` of a study."""
        spec = study.methods[name]
        method = registry.get("methods", spec.method or name)
        return Row(name, method, spec, tuple(study.known))

    def check(self, task: Task) -> None:
        """Raises `UserError` where the row names a teacher that the task does not have."""
        for item in parameters.declared(self.method.parameters, task.solver):
            if item.search is None or item.search.ask != "teacher":
                continue
            labels = [self.spec.set[item.path]] if item.path in self.spec.set else []
            if item.path in self.spec.search:
                found = self.spec.search[item.path]
                labels += found.choices or [found.low, found.high]
            for label in labels:
                if label is not None:
                    task.teacher_spec(label)

    def defaults(self, task: Task) -> dict[str, Value]:
        """Flat parameters of an untuned run, with the row's frozen ones."""
        return parameters.defaults(self.method.parameters, task.solver, task) | self.spec.set

    def published(self, task: Task) -> dict[str, Value]:
        """Flat parameters of the published run, with the row's frozen ones."""
        return self.defaults(task) | self.method.published(task) | self.spec.set

    def space(self, task: Task) -> dict[str, parameters.Search]:
        """What is searched: the declared ranges, less frozen ones, with the row's own."""
        found = parameters.space(self.method.parameters, task.solver, task)
        found = self.method.narrow(task, found)
        conditions = parameters.conditions(self.method.parameters)
        for name, spec in self.spec.search.items():
            own = parameters.Search(spec.low, spec.high, spec.log, tuple(spec.choices))
            found[name] = replace(own, when=conditions.get(name))
        return {
            name: search
            for name, search in found.items()
            if name not in self.spec.set
            and (search.when is None or search.when.holds(self.spec.set))
        }

    def conditions(self, task: Task) -> dict[str, parameters.When]:
        """When a searched parameter counts, of those that do not always."""
        return {
            name: search.when
            for name, search in self.space(task).items()
            if search.when is not None
        }

    def admits(self, task: Task, values: Mapping[str, Value]) -> bool:
        """Whether the method has nothing against some of its parameters, others at defaults."""
        try:
            given = parameters.build(self.method.parameters, self.defaults(task) | values)
            return not self.method.refuses(task, given)
        except Exception:  # a stranger's function may fail in any way: the trial will say so
            return True

    def solver_names(self, task: Task) -> list[str]:
        """The searched solver settings, frozen ones included: every row of a study has the same."""
        found = parameters.space(self.method.parameters, task.solver, task)
        return [name for name in found if name.startswith("solve.")]

    def distributions(self, task: Task) -> dict[str, BaseDistribution]:
        """The same for Optuna."""
        whole = parameters.integers(self.method.parameters)
        return {
            name: distribution(search, name in whole) for name, search in self.space(task).items()
        }

    def known(self, task: Task) -> list[dict[str, Value]]:
        """Points that a search tries first: the defaults, the published settings, the study's tips.

        Of each, what the search's ranges admit; a point that adds nothing is left out. What a tip
        does not say stays at its default. The published sizes of a structure are for the published
        rules: with them one trial of a network can take longer than all the others.
        """
        space, points = self.space(task), []
        defaults = self.defaults(task)
        sizes = {name: value for name, value in defaults.items() if name.startswith("operator.")}
        published = relative(self.published(task) | sizes, task.largest())
        for values in (defaults, published, *(defaults | tip for tip in self.tips)):
            point = {
                name: values[name]
                for name, search in space.items()
                if name in values and search.admits(values[name])
            }
            if point and point not in points:
                points.append(point)
        return points

    def obstacle(self, task: Task) -> tuple[str, str] | None:
        """Why there is nothing to search: the state and reason of the method's record, or None.

        Untuned parameters that the task refuses are no obstacle where others can be searched.
        """
        try:
            untuned = parameters.build(self.method.parameters, self.defaults(task))
            reason = self.method.unsuitable(task, untuned)
            if reason and self.method.refuses(task, untuned) == reason and self._searchable(task):
                reason = None
            self.published(task)
            self.space(task)
        except Exception as error:  # a stranger's functions may fail in any way
            return "failed", brief(error, kind=not isinstance(error, UserError))
        return ("skipped", brief(Exception(reason), kind=False)) if reason else None

    def _searchable(self, task: Task) -> bool:
        """Whether the task admits some point of the search space."""
        space = self.distributions(task)
        points = (sobol_point(space, index, 0) for index in range(LOOKS if space else 0))
        return any(self.admits(task, point) for point in points)


class Once:
    """A function of a task, computed once and then remembered (tasks compared by identity).

    Attributes:
        saved: seconds that remembering has saved so far.
    """

    def __init__(self, function: Callable[[Task], Any]) -> None:
        self._function = function
        self._results: dict[int, tuple[Any, float]] = {}
        self.saved = 0.0

    def __call__(self, task: Task) -> Any:
        if id(task) in self._results:
            result, seconds = self._results[id(task)]
            self.saved += seconds
            return result
        started = time.perf_counter()
        result = self._function(task)
        self._results[id(task)] = result, time.perf_counter() - started
        return result


@dataclass(frozen=True)
class Workbench:
    """What all runs of one study share.

    Attributes:
        study: the resolved study.
        task: made from its problem.
        folder: of the study, on disk.
        environment: versions and device, for the records.
        lmmse: the LMMSE map of the task and the budget's images, fitted on first use.
    """

    study: StudyFile
    task: Task
    folder: Path
    teachers: TeacherCache
    environment: Mapping[str, Value]
    lmmse: Once = field(init=False)

    def __post_init__(self) -> None:
        count = self.study.budget.train_images
        object.__setattr__(self, "lmmse", Once(partial(lmmse.fit, count=count)))

    @cached_property
    def shifted(self) -> dict[str, Task]:
        """The task at the study's further settings."""
        return {name: shifts.shifted(self.task, it) for name, it in self.study.shifts.items()}

    @property
    def saved(self) -> float:
        """Seconds that shared results have saved the fits so far."""
        return self.teachers.saved + self.lmmse.saved

    def blank(self, kind: str, row: Row, number: int = 0, seed: int = 0) -> RunRecord:
        """A record of a run that is about to start."""
        return RunRecord(
            kind=kind,
            study=self.study.name,
            task=self.study.task,
            method=row.name,
            number=number,
            seed=seed,
            rules=self.study.rules,
            preset=self.study.preset,
            title=row.method.title,
            operator=row.method.operator,
            rule=row.method.rule,
            learned=row.method.learned,
            started=time.time(),
            study_file=self.study.model_dump(mode="json"),
            environment=dict(self.environment),
            data_digest=self.task.images.digest,
            notes=self.task.notes,
        )


def run_trial(
    bench: Workbench,
    row: Row,
    record: RunRecord,
    place: Path,
    report: Callable[[int, float], None] = lambda step, value: None,
    progress: Callable[[Progress], None] = lambda progress: None,
) -> RunRecord:
    """Fits and validates; the record, also written at `place`, says how it ended.

    Never raises for what a method does wrong: divergence and exceptions become the record's state.

    Raises:
        OSError: a disk that is full or read-only; the record stays that of a running trial.
    """
    images = bench.task.images.validation
    return _run(bench, row, record, place, images, "val", report, progress)


def run_seed(
    bench: Workbench,
    row: Row,
    record: RunRecord,
    place: Path,
    images: ImageSet,
    progress: Callable[[Progress], None] = lambda progress: None,
) -> RunRecord:
    """Fits with the final budget and tests on `images`, keeping curves and the operator."""
    return _run(bench, row, record, place, images, "test", lambda step, value: None, progress)


def _run(
    bench: Workbench,
    row: Row,
    record: RunRecord,
    place: Path,
    images: ImageSet,
    split: str,
    report: Callable[[int, float], None],
    progress: Callable[[Progress], None],
) -> RunRecord:
    records.write(place, record)
    checkpoints = place.parent / CHECKPOINTS / digests.of(split, record.params, record.seed)
    context = FitContext(
        seed=record.seed,
        budget=budget_of(bench.study.budget, split == "test"),
        folder=checkpoints,
        teachers=bench.teachers,
        lmmse=bench.lmmse,
        report=report,
        progress=progress,
    )
    devices.reset_peak_memory(bench.task.device)
    started = time.perf_counter()
    metrics: dict[str, float] = {}
    series: dict = {}
    update: dict = {"state": "finished"}
    try:
        evaluation = _fit_and_measure(bench, row, record, place, images, split, context, metrics)
        series = curves_of(context, evaluation)
    except KeyboardInterrupt:
        stopped = {"state": "interrupted", "reason": "stopped by the user", "finished": time.time()}
        records.write(place, record.model_copy(update=stopped))
        raise
    except (Exception, SystemExit) as error:  # a method may fail in any way; the study goes on
        update = _ending(error, place)
        with suppress(Exception):  # what a broken fit noted may be broken as well
            series = curves_of(context, None)
    shutil.rmtree(checkpoints, ignore_errors=True)
    metrics["fit/peak_memory"] = float(devices.peak_memory(bench.task.device))
    metrics["trial/seconds"] = time.perf_counter() - started
    done = record.model_copy(
        update=update
        | {
            "metrics": {name: value for name, value in metrics.items() if math.isfinite(value)},
            "series": series,
            "notes": notes_of(context) | record.notes,
            "finished": time.time(),
        }
    )
    records.write(place, done)
    return done


def _fit_and_measure(
    bench: Workbench,
    row: Row,
    record: RunRecord,
    place: Path,
    images: ImageSet,
    split: str,
    context: FitContext,
    metrics: dict[str, float],
) -> Evaluation:
    """Fits, measures, fills `metrics`, and keeps the files of a tested seed."""
    final = split == "test"
    started, saved = time.perf_counter(), bench.saved
    values = parameters.build(row.method.parameters, record.params)
    reconstructor = row.method.fit(bench.task, values, context)
    devices.synchronise(bench.task.device)
    elapsed = time.perf_counter() - started
    metrics["fit/seconds"] = elapsed + bench.saved - saved + context.earlier
    task = bench.task.tested if final else bench.task
    found = evaluate(reconstructor, task, images, record=final, with_ssim=final).check()
    metrics |= found.metrics(split)
    if not math.isfinite(metrics[f"{split}/psnr"]):
        raise Diverged(
            f"the mean PSNR is {metrics[f'{split}/psnr']}: a reconstruction is the truth"
        )
    metrics["parameters"] = float(count_parameters(reconstructor))
    if final:
        context.notes |= keep_run(place, record.number, row.method, reconstructor, found, task)
        if bench.study.shifts:
            state = state_of(reconstructor)
            scores = shifts.score(
                row.method, bench.shifted, values, state, images, found, record.number, context
            )
            scores.to_parquet(place / SHIFTS, index=False)
            means = scores.groupby("setting", sort=False)["psnr"].mean()
            metrics |= {f"shift/{name}/psnr": value for name, value in means.items()}
    return found


def _ending(error: BaseException, place: Path) -> dict[str, str]:
    """State and reason of a run that `error` ended.

    Raises:
        OSError: a disk that is full or read-only is no fault of the method: the study stops.
    """
    if isinstance(error, Pruned):
        return {"state": "pruned", "reason": brief(error, kind=False)}
    if isinstance(error, Diverged):
        return {"state": "diverged", "reason": brief(error, kind=False)}
    if isinstance(error, OSError) and error.errno in STORAGE:
        raise error
    if isinstance(error, SafetensorError) and (found := OS_ERROR.search(str(error))):
        code = int(found.group(1))
        raise OSError(code, os.strerror(code), str(place)) from error
    (place / "traceback.txt").write_text("".join(format_exception(error)), encoding="utf-8")
    return {"state": "failed", "reason": brief(error, kind=not isinstance(error, UserError))}


def budget_of(spec: BudgetSpec, final: bool) -> Budget:
    return Budget(
        epochs=spec.final_epochs if final else spec.epochs,
        train_images=spec.train_images,
        validation_images=spec.validation_images,
        batch_size=spec.batch_size,
        rungs=1 if final else spec.rungs,
    )
