"""What a study would cost, from a few timed steps, before it starts."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from dipa_bench import devices, registry
from dipa_bench.config.entry import Entry
from dipa_bench.config.study_file import StudyFile
from dipa_bench.errors import UserError
from dipa_bench.execution.work import work_of
from dipa_bench.learning import lmmse
from dipa_bench.learning.teachers import TeacherCache
from dipa_bench.methods import Budget, FitContext
from dipa_bench.parameters import build
from dipa_bench.preconditioners import Identity, Pointwise, Preconditioner
from dipa_bench.search.stages import planned_trials
from dipa_bench.solvers import SolveParameters, build_solver
from dipa_bench.tasks.base import Task

BESIDE = 0.07  # seconds of a trial that are not fitting or running: choosing, records


@dataclass(frozen=True)
class EntryPlan:
    """One entry's share of a study."""

    entry: str
    trials: int
    fitted: bool
    minutes: float
    skip: str | None


@dataclass(frozen=True)
class Plan:
    """What a study is expected to do.

    Attributes:
        entries: in order.
        memory: expected peak in bytes, on the device that does the work.
    """

    entries: list[EntryPlan]
    memory: int

    @property
    def minutes(self) -> float:
        return sum(entry.minutes for entry in self.entries)

    @property
    def trials(self) -> int:
        return sum(entry.trials for entry in self.entries)


def plan(study: StudyFile, task: Task) -> Plan:
    """Times one reconstruction and one training step, and multiplies.

    A trained entry is timed with an operator of its own kind, untuned. Pruning is not counted on,
    so learned entries are usually faster; a fit that does not train by epochs is counted as one
    pass over the training images.
    """
    batch = min(study.budget.batch_size, len(task.images.train))
    chosen = {name: Entry.of(study, name) for name in study.methods}
    obstacles = {name: entry.obstacle(task) for name, entry in chosen.items()}
    forward = _seconds(task, batch, Identity())
    trained = {
        name: _seconds(task, batch, _operator(entry, task), training=True)
        if entry.method.unrolled
        else _fit_seconds(entry, task, batch)
        for name, entry in chosen.items()
        if entry.method.stochastic and not obstacles[name]
    }
    training = {name: seconds / forward for name, seconds in trained.items()}
    entries = []
    for name, entry in chosen.items():
        work, skip = work_of(entry, task, study, training), obstacles[name]
        trials = 0 if skip else planned_trials(entry, task, study)
        seconds = forward * work.total + BESIDE * (work.settings + work.shared + work.fits)
        if work.seconds is not None:
            seconds = work.seconds + forward * work.finals * work.final
            trials = trials or max(1, round(work.seconds / max(forward * work.fit, 1e-9)))
        fitted, why = entry.method.learned, skip[1] if skip else None
        entries.append(EntryPlan(name, trials, fitted, seconds / 60, why))
    return Plan(entries, int(1.2 * devices.peak_memory(task.device)))


def _fit_seconds(entry: Entry, task: Task, batch: int) -> float:
    """Seconds per image of one epoch that does not unroll the solver: a fit on a single batch."""
    with TemporaryDirectory(prefix="dipa-plan-") as folder:
        context = FitContext(
            seed=0,
            budget=Budget(1, train_images=batch, validation_images=1, batch_size=batch),
            teachers=TeacherCache(Path(folder)),
            lmmse=lmmse.cross_fitted,
        )
        values = build(entry.method.parameters, entry.defaults(task))
        _, elapsed = devices.timed(lambda: entry.method.fit(task, values, context), task.device)
        return elapsed / batch


def _operator(entry: Entry, task: Task) -> Preconditioner:
    """An operator such as the entry trains, with its untuned structure; a simple one if unknown."""
    method = entry.method
    if method.operator in registry.names("operators"):
        spec = registry.get("operators", method.operator)
        values = build(method.parameters, entry.defaults(task))
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
        largest=task.norm_squared(),
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
