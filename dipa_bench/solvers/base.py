"""The preconditioned iteration that PnP-FISTA and RED-FISTA share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import ClassVar

import torch
from deepinv.physics import LinearPhysics
from torch import Tensor

from dipa_bench.errors import unknown
from dipa_bench.preconditioners import Preconditioner, State
from dipa_bench.priors.base import Prior
from dipa_bench.solvers import momentum as momentum_rules
from dipa_bench.solvers.number import Number
from dipa_bench.solvers.schedule import Schedule
from dipa_bench.solvers.trajectory import CURVES, Recorder, Trajectory

STARTS = ("adjoint", "zero", "preconditioned")  # or a function of the measurement


def descend(point: Tensor, direction: Tensor, step: Number) -> Tensor:
    """point - step * direction, in one pass over memory."""
    if isinstance(step, Tensor):
        return torch.addcmul(point, direction, step, value=-1)
    return torch.sub(point, direction, alpha=step)


def extrapolate(before: Tensor, latest: Tensor, momentum: Number) -> Tensor:
    """latest + momentum * (latest - before), in one pass over memory; none for the number 0."""
    if isinstance(momentum, Tensor) or momentum:
        return torch.lerp(before, latest, 1 + momentum)
    return latest


class Solver(ABC):
    """K iterations of x_(k+1) = update(z_k, P(A^T (A z_k - y))), with momentum between them.

    Differentiable in everything; treats each image of a batch by itself. Greedy fitting and
    truncation use the parts (`start`, `with_gradient`, `step`), everyone else `run`.

    Args:
        prior: the denoiser with its strength.
        step: alpha > 0, absolute.
        strength: the prior's, in its own unit: the geometric mean over the iterations.
        iterations: K >= 1; the result is x_K.
        momentum: ``textbook``, ``published`` or ``none``.
        decay: the prior's strength in the last iteration relative to the first's; between them it
            changes geometrically. 1 for a constant one.
        start: x_0 as ``adjoint`` (A^T y, as published), ``zero``, ``preconditioned``
            (alpha P A^T y: one preconditioned step from zero), or a function y -> x_0.

    Attributes:
        settings: names of the attributes that may be tensors with one value per image; a subclass
            names its own beside these, so that solvers that differ in them alone can run as one
            batch (`dipa_bench.solvers.batched`).
        schedule: learned factors on the step and the strength of each iteration; None has none.

    Raises:
        UserError: a momentum or start that is not known.
    """

    denoiser_calls = 1  # per iteration
    settings: ClassVar[tuple[str, ...]] = ("step_size", "strength", "decay")

    def __init__(
        self,
        prior: Prior,
        *,
        step: Number,
        strength: Number,
        iterations: int,
        momentum: str = "textbook",
        decay: Number = 1.0,
        start: str | Callable[[Tensor], Tensor] = "adjoint",
    ) -> None:
        if momentum not in momentum_rules.RULES:
            raise unknown("momentum", momentum, momentum_rules.RULES)
        if not callable(start) and start not in STARTS:
            raise unknown("start", start, STARTS)
        self.prior = prior
        self.step_size = step
        self.strength = strength
        self.decay = decay
        self.iterations = iterations
        self.momentum: momentum_rules.Rule = momentum_rules.RULES[momentum]
        self.schedule: Schedule | None = None
        self._start = start

    @abstractmethod
    def update(self, point: Tensor, direction: Tensor, iteration: int) -> Tensor:
        """x_(k+1) from z_k and the preconditioned gradient, both B x C x H x W."""

    def step_at(self, iteration: int) -> Number:
        """The absolute step of iteration k."""
        if self.schedule is None:
            return self.step_size
        return self.step_size * self.schedule.step(iteration)

    def strength_at(self, iteration: int) -> Number:
        """The prior's strength in iteration k, geometric from the first to the last."""
        found = self.strength
        if self.iterations > 1 and (isinstance(self.decay, Tensor) or self.decay != 1):
            found = found * self.decay ** (iteration / (self.iterations - 1) - 0.5)
        return found if self.schedule is None else found * self.schedule.strength(iteration)

    @property
    def start_map(self) -> Callable[[Tensor], Tensor] | None:
        """The function y -> x_0, where the start is one."""
        return self._start if callable(self._start) else None

    def start(
        self,
        measurement: Tensor,
        physics: LinearPhysics,
        preconditioner: Preconditioner,
        first: Tensor | None = None,
    ) -> State:
        """The state at x_0 = z_0.

        Args:
            measurement: y, B x ...
            physics: A.
            preconditioner: P.
            first: x_0 itself, B x C x H x W, for training images with a start that was fitted on
                them (`dipa_bench.learning.cross_fitting`); None for the solver's own start.
        """
        if first is not None:
            return State(0, first, first, measurement, physics)
        if callable(self._start):
            first = self._start(measurement)
        else:
            first = physics.A_adjoint(measurement)
            if self._start == "zero":
                first = first.new_zeros(first.shape)
            elif self._start == "preconditioned":
                zero = first.new_zeros(first.shape)
                state = State(0, zero, zero, measurement, physics, None, -measurement, -first)
                first = -self.step_size * preconditioner(-first, state)
        return State(0, first, first, measurement, physics)

    def with_gradient(self, state: State) -> State:
        """The state with the residual and data gradient at its point: two operator calls."""
        residual = state.physics.A(state.point) - state.measurement
        return replace(state, residual=residual, gradient=state.physics.A_adjoint(residual))

    def step(self, state: State, direction: Tensor) -> State:
        """The next iteration's state, its gradient not yet taken; the memory stays as it is."""
        iterate = self.update(state.point, direction, state.iteration)
        return replace(
            state,
            iteration=state.iteration + 1,
            iterate=iterate,
            point=extrapolate(state.iterate, iterate, self.momentum(state.iteration)),
            previous_point=state.point,
            residual=None,
            gradient=None,
            previous_gradient=state.gradient,
        )

    def advance(self, state: State, preconditioner: Preconditioner) -> State:
        """One whole iteration on a linearised state, the preconditioner's memory included."""
        return self.proceed(state, preconditioner)[0]

    def proceed(self, state: State, preconditioner: Preconditioner) -> tuple[State, Tensor]:
        """As `advance`, with the direction that was taken; what a solver variant overrides."""
        direction = preconditioner(state.gradient, state)
        memory = preconditioner.remember(state.gradient, state)
        return replace(self.step(state, direction), memory=memory), direction

    def run(
        self,
        measurement: Tensor,
        physics: LinearPhysics,
        preconditioner: Preconditioner,
        *,
        record: bool | Collection[str] = False,
        reference: Tensor | None = None,
    ) -> Trajectory:
        """Reconstructs a batch.

        Args:
            measurement: y, B x ...
            physics: A.
            preconditioner: P.
            record: whether to keep per-image curves: all, none, or some of `CURVES`.
            reference: true images for the curves' error, B x C x H x W.
        """
        state = self.start(measurement, physics, preconditioner)
        return self.follow(state, preconditioner, record=record, reference=reference)

    def follow(
        self,
        state: State,
        preconditioner: Preconditioner,
        *,
        record: bool | Collection[str] = False,
        reference: Tensor | None = None,
    ) -> Trajectory:
        """The K iterations of `run` from the state at x_0; the start's operator calls count too."""
        wanted = CURVES if record is True else record
        recorder = Recorder(self.iterations, reference, wanted) if record else None
        for iteration in range(self.iterations):
            state = self.with_gradient(state)
            if recorder:
                recorder.observe(state, self.momentum(iteration - 1) if iteration else 0.0)
            state = self.advance(state, preconditioner)
        return Trajectory(
            state.iterate,
            operator_calls=self.operator_calls(preconditioner),
            denoiser_calls=self.iterations * self.denoiser_calls,
            curves=recorder.finish(state) if recorder else None,
        )

    def operator_calls(self, preconditioner: Preconditioner) -> int:
        """Applications of A or A^T that `run` makes, each image counted as one run."""
        each = 2 + preconditioner.operator_calls
        return self.start_calls(preconditioner) + self.iterations * each

    def start_calls(self, preconditioner: Preconditioner) -> int:
        """Applications of A or A^T that `start` makes."""
        if callable(self._start):
            return 0
        # A^T y, from which `zero` takes no more than the shape
        return 1 + (preconditioner.operator_calls if self._start == "preconditioned" else 0)
