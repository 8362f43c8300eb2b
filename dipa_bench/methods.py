"""Methods: a named pair of operator and learning rule, and what fitting one gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from deepinv.physics import LinearPhysics
from torch import Tensor, nn

from dipa_bench import registry
from dipa_bench.data.images import ImageSet
from dipa_bench.errors import UserError
from dipa_bench.parameters import Parameters, Search, Value
from dipa_bench.preconditioners import Preconditioner, State
from dipa_bench.preconditioners.grouped import grouped
from dipa_bench.priors.base import Prior
from dipa_bench.solvers import SolveParameters, Solver, Trajectory, build_solver
from dipa_bench.solvers.batched import batchable, batched_solver
from dipa_bench.tasks.base import Task


class Reconstructor(Protocol):
    """What a method's fit gives: it turns measurements into images.

    Attributes:
        preconditioner: the operator inside, if there is one.
        module: what a fit made, whose state is stored; None where there is nothing to store.
    """

    preconditioner: Preconditioner | None
    module: nn.Module | None

    def run(
        self,
        measurement: Tensor,
        physics: LinearPhysics,
        *,
        record: bool = False,
        reference: Tensor | None = None,
    ) -> Trajectory: ...


def fitted_module(reconstructor: Reconstructor) -> nn.Module | None:
    """What a fit made; of a stranger's that does not say, its preconditioner."""
    return getattr(reconstructor, "module", getattr(reconstructor, "preconditioner", None))


@dataclass(frozen=True)
class Iterative:
    """A solver with a preconditioner."""

    solver: Solver
    preconditioner: Preconditioner

    @property
    def module(self) -> Preconditioner:
        return self.preconditioner

    def run(
        self,
        measurement: Tensor,
        physics: LinearPhysics,
        *,
        record: bool = False,
        reference: Tensor | None = None,
    ) -> Trajectory:
        return self.solver.run(
            measurement, physics, self.preconditioner, record=record, reference=reference
        )


@dataclass(frozen=True)
class Batched:
    """Reconstructors of one task that run as one batch.

    Attributes:
        members: G of them, with solvers that can be batched.
    """

    members: tuple[Iterative, ...]

    def run(
        self,
        measurement: Tensor,
        physics: LinearPhysics,
        *,
        record: bool = False,
        reference: Tensor | None = None,
    ) -> list[Trajectory]:
        """What each member makes of the same measurements, in one batch of G B images.

        Args:
            measurement: y, B x ...
            physics: A.
            record: whether to keep per-image curves.
            reference: true images for the curves' error, B x C x H x W.

        Returns:
            G trajectories, each with its own member's costs.
        """
        solvers = [each.solver for each in self.members]
        operators = [each.preconditioner for each in self.members]
        starts = zip(solvers, operators, strict=True)
        first = torch.cat([each.start(measurement, physics, p).iterate for each, p in starts])
        groups = len(solvers)
        repeated = measurement.repeat(groups, *[1] * (measurement.dim() - 1))
        if reference is not None:
            reference = reference.repeat(groups, 1, 1, 1)
        run = batched_solver(solvers, first).follow(
            State(0, first, first, repeated, physics),
            grouped(operators),
            record=record,
            reference=reference,
        )
        curves = [None] * groups if run.curves is None else run.curves.split(len(measurement))
        return [
            Trajectory(
                estimate,
                operator_calls=each.solver.operator_calls(each.preconditioner),
                denoiser_calls=run.denoiser_calls,
                curves=part,
            )
            for each, estimate, part in zip(
                self.members, run.estimate.split(len(measurement)), curves, strict=True
            )
        ]


def as_batch(reconstructors: Sequence[Reconstructor]) -> Batched | None:
    """Reconstructors fitted for one task as one batch; None where they cannot be batched.

    That is so for direct maps, solvers of other kinds than the common iteration or of different
    kinds, and priors that take no strength for each image (see `dipa_bench.solvers.batched`).

    Args:
        reconstructors: at least one.
    """
    if not all(type(each) is Iterative for each in reconstructors):
        return None
    if not batchable([each.solver for each in reconstructors]):
        return None
    return Batched(tuple(reconstructors))


@dataclass(frozen=True)
class Direct:
    """One map from measurements to images, without iterations.

    Attributes:
        map: (y, physics) -> B x C x H x W.
        operator_calls: applications of A or A^T it makes.
        module: the network that `map` is, where it is one that was trained.
    """

    map: Callable[[Tensor, LinearPhysics], Tensor]
    operator_calls: int = 0
    preconditioner: Preconditioner | None = None
    module: nn.Module | None = None

    def run(
        self,
        measurement: Tensor,
        physics: LinearPhysics,
        *,
        record: bool = False,
        reference: Tensor | None = None,
    ) -> Trajectory:
        return Trajectory(self.map(measurement, physics), operator_calls=self.operator_calls)


GROWTH = 3  # of the number of training images from rung to rung


@dataclass(frozen=True)
class Budget:
    """How much a learned method may spend on one fit.

    Attributes:
        epochs: passes over the training images; 0 leaves what training starts from.
        train_images, validation_images: how many of the split are used; None for all.
        batch_size: images in one gradient step.
        rungs: stages of training: each but the last has a third of the images of the next. A
            search gives up at their ends what is not in the best third.
    """

    epochs: int = 4
    train_images: int | None = None
    validation_images: int | None = None
    batch_size: int = 16
    rungs: int = 1


@dataclass(frozen=True)
class Progress:
    """One epoch of a fit, for progress bars and curves."""

    epoch: int
    epochs: int
    loss: float
    psnr: float


class Teachers(Protocol):
    """Teachers' reconstructions, computed once and shared (`dipa_bench.learning.teachers`).

    Attributes:
        folder: where they are kept.
        saved: seconds that those which were there have saved so far.
    """

    folder: Path
    saved: float

    def tuned(self, task: Task, label: float) -> SolveParameters:
        """A teacher's own settings, tuned once on training images."""

    def settings(self, task: Task, label: float, units: str) -> SolveParameters:
        """What it runs with for a student whose steps have these units."""

    def step(self, task: Task, label: float, settings: SolveParameters) -> float:
        """Its absolute step with some settings."""

    def targets(
        self,
        task: Task,
        label: float,
        images: ImageSet,
        settings: SolveParameters,
        *,
        path: bool = False,
    ) -> Any:
        """Its reconstructions and gradients of images (`dipa_bench.learning.teachers.Targets`)."""


AffineMap = Callable[[Tensor], Tensor]
"""Measurements, B x ..., to images, B x C x H x W."""


@dataclass
class FitContext:
    """What a method may use while it is fitted.

    Attributes:
        seed: all randomness comes from it.
        budget: of this fit.
        teachers: cached teacher reconstructions.
        lmmse: the affine LMMSE map of the training images, fitted once and shared; a start that
            gives training images out of fold (`dipa_bench.learning.cross_fitting`).
        report: call with (step, validation PSNR), step 0 being what a fit starts from; raises
            `Pruned` when the search gives up.
        progress: told of every epoch.
        folder: where a long fit keeps the checkpoint from which it goes on; None keeps none.
        earlier: seconds that this fit took before it was interrupted.
        notes: facts for the record, e.g. the gradient strategy.
        series: curves for the record, name to (step, value).
    """

    seed: int
    budget: Budget
    teachers: Teachers
    lmmse: Callable[[Task], AffineMap]
    report: Callable[[int, float], None] = lambda step, value: None
    progress: Callable[[Progress], None] = lambda progress: None
    folder: Path | None = None
    earlier: float = 0.0
    notes: dict[str, Value] = field(default_factory=dict)
    series: dict[str, list[tuple[int, float]]] = field(default_factory=dict)

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Within it torch's global generator draws as the seed says; afterwards it is as before."""
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(self.seed)
            yield

    def reconstructor(
        self, task: Task, solve: SolveParameters, preconditioner: Preconditioner
    ) -> Iterative:
        """The task's solver with `solve` settings around `preconditioner`."""
        largest = task.norm_squared()
        solver = build_solver(
            task.solver,
            task.prior,
            solve,
            iterations=task.iterations,
            largest=largest,
            bound=preconditioner.spectral_bound(largest),
            lmmse=lambda: self.lmmse(task),
        )
        return Iterative(solver, preconditioner.to(task.device, task.dtype))


def published_solve(task: Task) -> dict[str, Value]:
    """The published settings of a method that has none of its own but the solver's."""
    return task.published_solve()


def relative(values: dict[str, Value], bound: float) -> dict[str, Value]:
    """Absolute step and weight in the units of a search.

    Args:
        values: flat parameters; returned as they are where their units are relative.
        bound: lambda_max(P A^T A), or lambda_max(A^T A) where that is not known.
    """
    if values.get("solve.units") != "absolute":
        return values
    found = values | {"solve.units": "relative", "solve.step": values["solve.step"] * bound}
    if "solve.weight" in values:
        found["solve.weight"] = values["solve.weight"] / bound
    return found


def nothing_published(task: Task) -> dict[str, Value]:
    """For methods that have no solver settings."""
    return {}


@dataclass(frozen=True)
class Method:
    """A registered method.

    Attributes:
        name, title, summary: for `dipa-bench list`.
        operator: kind of operator (identity, scalar, dense, ...; "none" for controls).
        rule: learning rule (analytic, closed form, greedy, distilled, ...).
        parameters: the hyper-parameters' model; a field `solve: SolveParameters` for a solver's.
        fit: (task, parameters, context) -> Reconstructor. Deterministic given the context's seed.
        learned: whether fitting reads training images.
        supervision: what it learns from, or (parameters) -> what: measurements, ground truth,
            teacher, or several with " and " between.
        stochastic: whether a fit depends on its seed.
        solver_free: whether the fit is `context.reconstructor(task, parameters.solve, P)` with a P
            that depends on no parameter below `solve`; trials that change solver settings alone
            then share one P (see `dipa_bench.reuse`).
        unrolled: whether fitting sends gradients through the prior, which must let them pass, for
            as many epochs as the budget says: with 0 it gives what it starts from.
        paper: where it comes from.
        fixed_point: which fixed point its iterations keep, e.g. "as without P".
        cost: of one iteration, in applications of A or A^T ("operator calls") and of the prior;
            that of a fit after a semicolon.
        published: the published values as flat parameters (steps may be absolute).
        skip: the reason why the method does not apply to a task, or None.
        contains: methods whose every setting is within this one's range too; where tuning leaves it
            below one of them, its search has not converged, and the board says so.
        refuses: (task, parameters) -> the reason why these parameters cannot be had, or None.
        narrow: (task, search space) -> the part of the space that the task admits.
        restore: (task, parameters, stored state, context) -> what `fit` gave, for the task at hand,
            which may be another than it was fitted for; None for methods that cannot.
    """

    name: str
    title: str
    summary: str
    operator: str
    rule: str
    parameters: type[Parameters]
    fit: Callable[[Task, Any, FitContext], Reconstructor]
    learned: bool = False
    supervision: str | Callable[[Any], str] = ""
    stochastic: bool = False
    solver_free: bool = False
    unrolled: bool = False
    paper: str = ""
    fixed_point: str = ""
    cost: str = ""
    published: Callable[[Task], dict[str, Value]] = published_solve
    skip: Callable[[Task], str | None] = lambda task: None
    contains: tuple[str, ...] = ()
    refuses: Callable[[Task, Any], str | None] = lambda task, parameters: None
    narrow: Callable[[Task, dict[str, Search]], dict[str, Search]] = lambda task, found: found
    restore: Callable[[Task, Any, Mapping[str, Tensor], FitContext], Reconstructor] | None = None

    def rebuild(
        self,
        task: Task,
        parameters: Any,
        state: Mapping[str, Tensor],
        context: FitContext,
        *,
        moved: bool,
    ) -> Reconstructor:
        """What was fitted before: learned operators from their numbers, analytic ones made anew.

        Solver settings stay as they are, relative ones being relative to the task's operator.

        Args:
            task: where it is to work.
            parameters: of the method.
            state: the stored numbers; empty where there are none.
            context: of the fit.
            moved: whether the task is another than it was fitted for.

        Raises:
            UserError: it cannot be had there.
        """
        if self.restore is not None:
            if reason := self.skip(task):
                raise UserError(f"{self.name} does not apply there: {reason}")
            return self.restore(task, parameters, state, context)
        if moved and self.learned:
            raise UserError(
                f"{self.name} is made from the training images of its task and keeps no numbers "
                "that could be moved: run a study there"
            )
        if moved and (reason := self.unsuitable(task, parameters)):
            raise UserError(f"{self.name} does not apply there: {reason}")
        return self.fit(task, parameters, context)

    def learns_from(self, parameters: Any) -> str:
        """What of the training images a fit learns from; "nothing" where it reads none.

        Args:
            parameters: of the method.
        """
        if not self.learned:
            return "nothing"
        told = self.supervision
        return (told(parameters) if callable(told) else told) or "training images"

    def untrainable(self, task: Task) -> str | None:
        """Why the method cannot be fitted through the task's prior; None where it can."""
        blocked = self.unrolled and not task.prior.differentiable
        return untrainable(task.prior) if blocked else None

    def unsuitable(self, task: Task, parameters: Parameters | None = None) -> str | None:
        """Why the method does not apply to a task, its prior included; None where it does.

        Args:
            task: the task.
            parameters: of the method; its defaults otherwise.
        """
        given = self.parameters() if parameters is None else parameters
        return self.untrainable(task) or self.skip(task) or self.refuses(task, given)


def untrainable(prior: Prior) -> str:
    """What to tell of a prior that lets no gradients pass, with the names of those that do."""
    found = registry.describe("priors")
    able = sorted(spec.name for spec in found if getattr(spec, "differentiable", False))
    return (
        f"training needs gradients through the prior, and {prior.name!r} lets none pass: choose "
        f"one of {', '.join(able)}"
    )


class SolverOnly(Parameters):
    """Parameters of a method that has none but the solver's."""

    solve: SolveParameters = SolveParameters()


class NoParameters(Parameters):
    """Parameters of a control that has nothing to tune."""
