"""One run: fit a method with given parameters, measure it, write it down."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file

from dipa_bench import devices, parameters, registry
from dipa_bench.data.images import ImageSet
from dipa_bench.errors import Diverged, Pruned, UserError
from dipa_bench.evaluation.evaluate import Evaluation, evaluate
from dipa_bench.learning import lmmse
from dipa_bench.learning.teachers import TeacherCache
from dipa_bench.methods import Budget, FitContext, Method, Progress, Reconstructor
from dipa_bench.parameters import Value
from dipa_bench.search.study_file import BudgetSpec, MethodSpec, StudyFile
from dipa_bench.tasks.base import Task
from dipa_bench.tracking import records
from dipa_bench.tracking.records import RunRecord

LARGEST_MATRIX = 4096  # pixels: 64 MiB of float32 as a dense picture of P


@dataclass(frozen=True)
class Row:
    """One row of a study: a method under a name, with what is frozen and what is searched."""

    name: str
    method: Method
    spec: MethodSpec

    @staticmethod
    def of(study: StudyFile, name: str) -> Row:
        """The row `name` of a study."""
        spec = study.methods[name]
        return Row(name, registry.get("methods", spec.method or name), spec)

    def defaults(self, task: Task) -> dict[str, Value]:
        """Flat parameters of an untuned run, with the row's frozen ones."""
        return parameters.defaults(self.method.parameters, task.solver, task) | self.spec.set

    def published(self, task: Task) -> dict[str, Value]:
        """Flat parameters of the published run, with the row's frozen ones."""
        return self.defaults(task) | self.method.published(task) | self.spec.set

    def space(self, task: Task) -> dict[str, parameters.Search]:
        """What is searched: the declared ranges, less frozen ones, with the row's own."""
        found = parameters.space(self.method.parameters, task.solver, task)
        for name, spec in self.spec.search.items():
            found[name] = parameters.Search(spec.low, spec.high, spec.log, tuple(spec.choices))
        return {name: search for name, search in found.items() if name not in self.spec.set}


@dataclass(frozen=True)
class Workbench:
    """What all runs of one study share.

    Attributes:
        study: the resolved study.
        task: made from its problem.
        folder: of the study, on disk.
        environment: versions and device, for the records.
        lmmse: the LMMSE map of the task, fitted on first use.
    """

    study: StudyFile
    task: Task
    folder: Path
    teachers: TeacherCache
    environment: Mapping[str, Value]
    lmmse: Callable[[Task], lmmse.LMMSE] = field(default_factory=lambda: _once(lmmse.fit))

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
        )


def _once(function: Callable) -> Callable:
    """`function` of a task, computed once (tasks are compared by identity)."""
    results: dict[int, object] = {}

    def call(task: Task) -> object:
        if id(task) not in results:
            results[id(task)] = function(task)
        return results[id(task)]

    return call


@dataclass(frozen=True)
class Outcome:
    """A run's record, and what it made if it finished."""

    record: RunRecord
    reconstructor: Reconstructor | None = None
    evaluation: Evaluation | None = None


def run_trial(
    bench: Workbench,
    row: Row,
    record: RunRecord,
    place: Path,
    report: Callable[[int, float], None] = lambda step, value: None,
    progress: Callable[[Progress], None] = lambda progress: None,
) -> Outcome:
    """Fits and validates; the record at `place` says how it ended.

    Never raises for what a method does wrong: divergence and exceptions become the record's state.
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
) -> Outcome:
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
) -> Outcome:
    records.write(place, record)
    final = split == "test"
    context = FitContext(
        seed=record.seed,
        budget=_budget(bench.study.budget, final),
        teachers=bench.teachers,
        lmmse=bench.lmmse,
        report=report,
        progress=progress,
        folder=place,
    )
    started = time.perf_counter()
    reconstructor = evaluation = None
    update: dict = {"state": "finished"}
    metrics: dict[str, float] = {}
    try:
        values = parameters.build(row.method.parameters, record.params)
        reconstructor = row.method.fit(bench.task, values, context)
        devices.synchronise(bench.task.device)
        metrics["fit/seconds"] = time.perf_counter() - started
        evaluation = evaluate(
            reconstructor, bench.task, images, record=final, with_ssim=final
        ).check()
        metrics |= evaluation.metrics(split)
        metrics["parameters"] = float(count_parameters(reconstructor))
        if final:
            _keep(place, record, reconstructor, evaluation)
    except Pruned as stop:
        update = {"state": "pruned", "reason": str(stop) or "others were ahead at this epoch"}
    except Diverged as stop:
        update = {"state": "diverged", "reason": str(stop)}
    except (UserError, OSError):
        raise
    except KeyboardInterrupt:
        stopped = {"state": "interrupted", "reason": "stopped by the user", "finished": time.time()}
        records.write(place, record.model_copy(update=stopped))
        raise
    except Exception as error:  # a method may fail in any way; the study goes on
        first = (str(error).splitlines() or [""])[0]
        update = {"state": "failed", "reason": f"{type(error).__name__}: {first}"}
        (place / "traceback.txt").write_text(traceback.format_exc(), encoding="utf-8")
    metrics["fit/peak_memory"] = float(devices.peak_memory(bench.task.device))
    metrics["trial/seconds"] = time.perf_counter() - started
    series = dict(context.series)
    if evaluation is not None and evaluation.curves is not None:
        series |= curve_means(evaluation)
    done = record.model_copy(
        update=update
        | {
            "metrics": {name: value for name, value in metrics.items() if math.isfinite(value)},
            "series": {name: thinned(points) for name, points in series.items()},
            "notes": record.notes | context.notes,
            "finished": time.time(),
        }
    )
    records.write(place, done)
    return Outcome(done, reconstructor, evaluation)


def _budget(spec: BudgetSpec, final: bool) -> Budget:
    return Budget(
        epochs=spec.final_epochs if final else spec.epochs,
        train_images=spec.train_images,
        validation_images=spec.validation_images,
        batch_size=spec.batch_size,
    )


def _keep(
    place: Path, record: RunRecord, reconstructor: Reconstructor, evaluation: Evaluation
) -> None:
    evaluation.image_table(record.number).to_parquet(place / "images.parquet", index=False)
    evaluation.curve_table(record.number).to_parquet(place / "curves.parquet", index=False)
    operator = reconstructor.preconditioner
    state = {} if operator is None else operator.state_dict()
    if state:
        plain = {name: value.detach().cpu().contiguous() for name, value in state.items()}
        save_file(plain, place / "operator.safetensors")


def count_parameters(reconstructor: Reconstructor) -> int:
    """Numbers in the operator's state: its parameters and fitted buffers."""
    operator = reconstructor.preconditioner
    return 0 if operator is None else sum(part.numel() for part in operator.state_dict().values())


def curve_means(evaluation: Evaluation) -> dict[str, list[tuple[int, float]]]:
    """Mean PSNR and residual over the images at each iteration."""
    from dipa_bench.evaluation.metrics import psnr_of_mse

    curves = evaluation.curves
    quality = psnr_of_mse(curves.mse).mean(1)
    residual = curves.residual.mean(1)
    return {
        "psnr_by_iteration": list(enumerate(quality.tolist())),
        "residual_by_iteration": list(enumerate(residual.tolist())),
    }


def thinned(points: list[tuple[int, float]], most: int = 100) -> list[tuple[int, float]]:
    """At most `most` finite points, the first and the last among them."""
    finite = [(int(step), float(value)) for step, value in points if math.isfinite(value)]
    if len(finite) <= most:
        return finite
    index = torch.linspace(0, len(finite) - 1, most).round().long().tolist()
    return [finite[i] for i in index]


def keep_matrix(place: Path, row: Row, outcome: Outcome, task: Task) -> None:
    """Writes a learned linear operator with at least n numbers as its dense matrix."""
    operator = outcome.reconstructor.preconditioner
    size = math.prod(task.shape)
    wanted = row.method.learned and operator is not None and operator.linear
    if not wanted or not size <= count_parameters(outcome.reconstructor) or size > LARGEST_MATRIX:
        return
    solver = getattr(outcome.reconstructor, "solver", None)
    measured = task.measure(task.images.validation.first(1))
    state = solver.start(measured, task.student, operator)
    matrix = operator.dense(task.shape, state).cpu().float().contiguous()
    save_file({"P": matrix}, place / "matrix.safetensors")
