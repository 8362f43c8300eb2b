"""`anderson`: Anderson acceleration of T(x) = D(x - alpha grad f(x)), or of RED's step.

Walker, Ni, Anderson acceleration for fixed-point iterations, SIAM J. Numer. Anal. 49, 2011; of
plug-and-play iterations as in Gilton, Ongie, Willett, Deep equilibrium architectures for inverse
problems in imaging, IEEE TCI 7, 2021. From the last points x_i, at most m of them, with their
T_i = T(x_i) and G_i = T_i - x_i,

x+ = sum_i a_i (beta T_i + (1 - beta) x_i), a = argmin ||sum_i a_i G_i||^2 + lambda s ||a||^2 with
sum_i a_i = 1,

for each image by itself. s is the mean of ||G_i||^2, so that the weights do not become those of an
average as the iteration converges.

Fixed point: that of the unpreconditioned algorithm with the same alpha, strength and weight. Cost
of an iteration: one T, that is two applications of A or A^T and one of D; m + 1 inner products;
2 m images of memory. It takes the place of the solver's momentum.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from deepinv.physics import LinearPhysics
from pydantic import Field
from torch import Tensor

from dipa_bench.methods import FitContext, Method, relative
from dipa_bench.parameters import Parameters, Search, Value
from dipa_bench.preconditioners import Identity, Preconditioner
from dipa_bench.solvers import SolveParameters, Solver, Trajectory
from dipa_bench.solvers.trajectory import Recorder
from dipa_bench.tasks.base import Task


class Unaccelerated(SolveParameters):
    """The solver's own without its momentum."""

    momentum: Annotated[
        Literal["none"], Field(description="none: the acceleration takes its place")
    ] = "none"


class AndersonParameters(Parameters):
    """Memory and regularisation, beside the solver's own."""

    solve: Unaccelerated = Unaccelerated()
    memory: Annotated[
        int, Field(ge=1, le=20, description="points m that are combined"), Search(2, 6)
    ] = 5
    regularisation: Annotated[
        float,
        Field(gt=0, description="lambda, relative to the mean squared residual of the points"),
        Search(1e-6, 1e-1, log=True),
    ] = 1e-4
    mixing: Annotated[
        float, Field(gt=0, le=1, description="beta: share of T(x_i) against x_i"), Search(0.5, 1.0)
    ] = 1.0


def weights(residuals: Tensor, regularisation: float) -> Tensor:
    """The a of each image, B x j, in float64.

    Args:
        residuals: G_i, B x j x n.
        regularisation: lambda > 0.
    """
    gram = (residuals @ residuals.mT).double()
    scale = gram.diagonal(dim1=1, dim2=2).mean(1).view(-1, 1, 1)
    gram = gram / scale.clamp_min(torch.finfo(residuals.dtype).tiny)
    count = gram.shape[-1]
    eye = torch.eye(count, dtype=gram.dtype, device=gram.device)
    found = torch.linalg.solve(gram + regularisation * eye, gram.new_ones(len(gram), count, 1))
    return (found / found.sum(1, keepdim=True))[..., 0]


@dataclass(frozen=True)
class Anderson:
    """The accelerated solver.

    Attributes:
        solver: gives T, the start and the number of iterations; its momentum is not used.
        memory: m >= 1; 1 and a mixing of 1 give the solver without momentum.
        regularisation: lambda > 0.
        mixing: beta in (0, 1].
        preconditioner: none.
    """

    solver: Solver
    memory: int
    regularisation: float
    mixing: float = 1.0
    preconditioner: Preconditioner | None = None

    def run(
        self,
        measurement: Tensor,
        physics: LinearPhysics,
        *,
        record: bool = False,
        reference: Tensor | None = None,
    ) -> Trajectory:
        """Reconstructs a batch; see `Solver.run`."""
        solver = self.solver
        recorder = Recorder(solver.iterations, reference) if record else None
        state = solver.start(measurement, physics, Identity())
        points: list[Tensor] = []
        residuals: list[Tensor] = []
        for _ in range(solver.iterations):
            state = solver.with_gradient(state)
            if recorder:
                recorder.observe(state, 0.0)
            image = solver.update(state.point, state.gradient, state.iteration)
            points = [*points, state.point][-self.memory :]
            residuals = [*residuals, image - state.point][-self.memory :]
            following = self._combine(points, residuals)
            state = replace(
                state,
                iteration=state.iteration + 1,
                iterate=following,
                point=following,
                residual=None,
                gradient=None,
            )
        return Trajectory(
            state.iterate,
            operator_calls=solver.start_calls(Identity()) + 2 * solver.iterations,
            denoiser_calls=solver.iterations * solver.denoiser_calls,
            curves=recorder.finish(state) if recorder else None,
        )

    def _combine(self, points: list[Tensor], residuals: list[Tensor]) -> Tensor:
        stacked = torch.stack([each.flatten(1) for each in residuals], dim=1)
        share = weights(stacked, self.regularisation).to(stacked.dtype)
        total = torch.zeros_like(points[0])
        for a, x, g in zip(share.unbind(1), points, residuals, strict=True):
            total = total + a.view(-1, 1, 1, 1) * (x + self.mixing * g)
        return total


def fit(task: Task, parameters: AndersonParameters, context: FitContext) -> Anderson:
    """The accelerated solver of a task; nothing is learned."""
    return Anderson(
        context.reconstructor(task, parameters.solve, Identity()).solver,
        memory=parameters.memory,
        regularisation=parameters.regularisation,
        mixing=parameters.mixing,
    )


def published(task: Task) -> dict[str, Value]:
    """The published solver settings in units of 1/lambda_max(A^T A), without their momentum."""
    return relative(task.published_solve(), task.norm_squared()) | {"solve.momentum": "none"}


METHOD = Method(
    name="anderson",
    title="Anderson acceleration",
    summary="combines the last points of the unpreconditioned algorithm; keeps its fixed point",
    operator="none",
    rule="secant",
    paper="Walker, Ni 2011; Gilton, Ongie, Willett, IEEE TCI 7, 2021, arXiv 2102.07944",
    fixed_point="as without the acceleration",
    cost="2 operator calls, 1 denoiser call, a memory x memory system for each image",
    parameters=AndersonParameters,
    fit=fit,
    published=published,
)
