"""What a study would cost, from a few timed steps, before it starts."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from dipa_bench import devices, registry
from dipa_bench.errors import UserError
from dipa_bench.learning import lmmse
from dipa_bench.learning.teachers import TeacherCache
from dipa_bench.methods import Budget, FitContext
from dipa_bench.parameters import build
from dipa_bench.preconditioners import Identity, Pointwise, Preconditioner
from dipa_bench.search.row import Row
from dipa_bench.search.study_file import StudyFile
from dipa_bench.solvers import SolveParameters, build_solver
from dipa_bench.tasks.base import Task


@dataclass(frozen=True)
class RowPlan:
    """One row's share of a study."""

    row: str
    trials: int
    seeds: int
    fitted: bool
    minutes: float
    skip: str | None


@dataclass(frozen=True)
class Plan:
    """What a study is expected to do.

    Attributes:
        rows: in order.
        memory: expected peak in bytes, on the device that does the work.
    """

    rows: list[RowPlan]
    memory: int

    @property
    def minutes(self) -> float:
        return sum(row.minutes for row in self.rows)

    @property
    def trials(self) -> int:
        return sum(row.trials for row in self.rows)


def plan(study: StudyFile, task: Task) -> Plan:
    """Times one reconstruction and one training step, and multiplies.

    A trained row is timed with an operator of its own kind, untuned. Pruning is not counted on, so
    learned rows are usually faster; a fit that does not train by epochs is counted as one pass over
    the training images.
    """
    batch = min(study.budget.batch_size, len(task.images.train))
    chosen = {name: Row.of(study, name) for name in study.methods}
    obstacles = {name: row.obstacle(task) for name, row in chosen.items()}
    forward = _seconds(task, batch, Identity())
    trained = {
        name: _seconds(task, batch, _operator(row, task), training=True)
        if row.method.unrolled
        else _fit_seconds(row, task, batch)
        for name, row in chosen.items()
        if row.method.stochastic and not obstacles[name]
    }
    validation, test = len(task.images.validation), task.images.test_count
    images = min(study.budget.train_images or len(task.images.train), len(task.images.train))
    rows = []
    for name, row in chosen.items():
        skip = obstacles[name][1] if obstacles[name] else None
        searched = not skip and bool(row.space(task)) and study.rules == "tuned"
        trials = 0 if skip else study.budget.trials if searched else 1
        seeds = 0 if skip else study.budget.seeds if row.method.stochastic else 1
        checks = (study.budget.validation_images or validation) * forward
        epoch = images * trained.get(name, 0.0) + checks
        one_pass = images * forward if row.method.learned else 0.0
        trial_fit, seed_fit = (
            epochs * epoch if row.method.stochastic else one_pass
            for epochs in (study.budget.epochs, study.budget.final_epochs)
        )
        one_trial = trial_fit + validation * forward
        if searched and study.budget.minutes is not None:
            trials = max(1, round(60 * study.budget.minutes / max(one_trial, 1e-9)))
        seconds = trials * one_trial + seeds * (seed_fit + test * forward)
        minutes = seconds / 60
        rows.append(RowPlan(name, trials, seeds, row.method.learned, minutes, skip))
    return Plan(rows, int(1.2 * devices.peak_memory(task.device)))


def _fit_seconds(row: Row, task: Task, batch: int) -> float:
    """Seconds per image of one epoch that does not unroll the solver: a fit on a single batch."""
    with TemporaryDirectory(prefix="dipa-plan-") as folder:
        context = FitContext(
            seed=0,
            budget=Budget(1, train_images=batch, validation_images=1, batch_size=batch),
            teachers=TeacherCache(Path(folder)),
            lmmse=lmmse.fit,
        )
        values = build(row.method.parameters, row.defaults(task))
        _, elapsed = devices.timed(lambda: row.method.fit(task, values, context), task.device)
        return elapsed / batch


def _operator(row: Row, task: Task) -> Preconditioner:
    """An operator such as the row trains, with its untuned structure; a simple one if unknown."""
    method = row.method
    if method.operator in registry.names("operators"):
        spec = registry.get("operators", method.operator)
        values = build(method.parameters, row.defaults(task))
        with suppress(UserError):  # an untuned structure that does not fit
            return spec.build(task.shape, getattr(values, "operator", spec.parameters()), 1)
    return Pointwise(1, task.shape)


def _seconds(task: Task, batch: int, operator: Preconditioner, *, training: bool = False) -> float:
    """Seconds per image of one run, forwards or forwards and back."""
    images = task.images.train.first(batch)
    measured = task.measure(images)
    strength = task.prior.strength.default
    solver = build_solver(
        task.solver,
        task.prior,
        SolveParameters(strength=strength),
        iterations=task.iterations,
        largest=task.largest(),
    )
    operator = operator.to(task.device, task.dtype)

    def once() -> None:
        with torch.set_grad_enabled(training):
            estimate = solver.run(measured, task.student, operator).estimate
            if training:
                estimate.square().mean().backward()

    once()  # warms up
    _, elapsed = devices.timed(once, task.device)
    return elapsed / len(images)
