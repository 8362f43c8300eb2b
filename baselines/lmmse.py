"""`lmmse` and `lmmse-preconditioner`: what second moments of the training images alone can do.

Both are closed forms, fitted in seconds without unrolling: a trained P has to beat them.

The preconditioner's covariance is dense, for small images, or structured, for all
(`baselines.lmmse_structured`).

Fixed point: not that of the unpreconditioned algorithm, P weighs the data term anew. Cost of an
iteration: two applications of A or A^T and one of D; dense a product with an n x n matrix, a
structured covariance 2 N applications of A or A^T for N conjugate gradients. The map has no
iterations.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from baselines import lmmse_structured
from dipa_bench.data.signals import is_complex
from dipa_bench.errors import UserError
from dipa_bench.learning.lmmse import quarter_turns, unavailable
from dipa_bench.methods import (
    Direct,
    FitContext,
    Iterative,
    Method,
    NoParameters,
    nothing_published,
    relative,
)
from dipa_bench.parameters import Parameters, Search, Value
from dipa_bench.preconditioners import Dense
from dipa_bench.solvers import SolveParameters
from dipa_bench.tasks.base import DENSE_UP_TO, Task
from dipa_bench.tasks.spectrum import matrix


class LMMSEPreconditionerParameters(Parameters):
    """The images' covariance and its weight, beside the solver's own."""

    solve: SolveParameters = SolveParameters(start="zero")
    damping: Annotated[
        float,
        Field(gt=0, description="epsilon, relative to lambda_max(A^T A) times a pixel's variance"),
        Search(1e-5, 1.0, log=True),
    ] = 1e-2
    covariance: Annotated[
        Literal["dense", "stationary", "kronecker"] | None,
        Field(description="C: any (small images alone), diagonal in Fourier space, or separable"),
        Search(ask="covariance"),
    ] = None


class MomentPreconditioner(Dense):
    """P = (A^T A + epsilon C^-1)^-1 for the covariance C of the training images.

    P A^T = C A^T (A C A^T + epsilon I)^-1: one step of size 1 from the mean image is the LMMSE
    estimate, for noise of variance epsilon.

    Args:
        covariance: C, n x n, float64, positive definite.
        normal: A^T A, n x n, float64.
        epsilon: in the units of A^T A times C, > 0.
        shape: (C, H, W) of the images.
    """

    def __init__(
        self, covariance: Tensor, normal: Tensor, epsilon: float, shape: tuple[int, int, int]
    ) -> None:
        super().__init__(shape, joint=True)
        root = torch.linalg.cholesky(covariance)
        inner = root.T @ normal @ root  # its eigenvalues t give those of P A^T A, t / (t + epsilon)
        values, vectors = torch.linalg.eigh(inner)
        basis = root @ vectors
        self.largest = (values[-1] / (values[-1] + epsilon)).item()
        self.matrix.data = ((basis / (values.clamp_min(0) + epsilon)) @ basis.T)[None]
        self.requires_grad_(False)

    def spectral_bound(self, largest: float) -> float:
        return self.largest


@torch.no_grad()
def covariance(task: Task, images: Tensor) -> Tensor:
    """C of N x C x H x W images as n x n, float64, with a floor on its diagonal."""
    if is_complex(images):
        images = quarter_turns(images)
    flat = images.double().flatten(1)
    flat = flat - flat.mean(0)
    found = flat.T @ flat / len(flat)
    found.diagonal().add_(lmmse_structured.FLOOR * found.diagonal().mean())
    return found


def fit_preconditioner(
    task: Task, parameters: LMMSEPreconditionerParameters, context: FitContext
) -> Iterative:
    """P from the training images' second moments, without iterations over them.

    Raises:
        UserError: a dense covariance of images that are too large for it.
    """
    kind = parameters.covariance or task.setting("covariance").default
    if kind == "dense" and (reason := too_large(task)):
        raise UserError(f"{reason}: set covariance=stationary, or lower problem.size")
    images = task.pixels(task.images.train.first(context.budget.train_images))
    if not (images - images[:1]).any():
        raise UserError("a covariance needs at least two different training images: give more")
    if kind == "dense":
        operator = dense(task, images, parameters.damping)
    else:
        operator = lmmse_structured.build(task, images, kind, parameters.damping)
        context.notes["inner_iterations"] = operator.iterations
        context.notes["inner_converged"] = operator.linear
    return context.reconstructor(task, parameters.solve, operator)


@torch.no_grad()
def dense(task: Task, images: Tensor, damping: float) -> MomentPreconditioner:
    """P from the dense covariance of N x C x H x W images, in one eigendecomposition."""
    moments = covariance(task, images)
    operator = matrix(task.student, task.shape, images).double()
    epsilon = damping * task.norm_squared() * moments.diagonal().mean().item()
    return MomentPreconditioner(moments, operator.T @ operator, epsilon, task.shape)


def too_large(task: Task) -> str | None:
    """Why dense second moments cannot be had, or None."""
    numbers = math.prod(task.shape)
    if numbers <= DENSE_UP_TO:
        return None
    return (
        f"dense second moments of {numbers} numbers an image are too large (at most {DENSE_UP_TO})"
    )


def published_preconditioner(task: Task) -> dict[str, Value]:
    """The published solver settings with lambda_max(P A^T A) taken for 1, from zero.

    From x_0 = A^T y, where A A^T = I, the first gradient is zero and this P has nothing to act on.
    """
    return relative(task.published_solve(), 1.0) | {"solve.start": "zero"}


def fit_map(task: Task, parameters: NoParameters, context: FitContext) -> Direct:
    found = context.lmmse(task)
    return Direct(lambda measurement, physics: found(measurement))


def without_map(task: Task) -> str | None:
    """Why there is no LMMSE map, or None."""
    reason = unavailable(task)
    return reason and f"{reason}: lower problem.size, or leave this row out"


METHOD = Method(
    name="lmmse-preconditioner",
    title="LMMSE preconditioner",
    summary="P = (A^T A + eps C^-1)^-1, C the training images' covariance: any or structured",
    operator="covariance",
    rule="closed-form",
    learned=True,
    supervision="ground truth",
    fixed_point="another: P re-weights the data term",
    cost=(
        "2 operator calls, 1 denoiser call, one n x n product (structured covariances: 2 calls "
        "more for each of at most 100 conjugate gradients)"
    ),
    parameters=LMMSEPreconditionerParameters,
    solver_free=True,
    fit=fit_preconditioner,
    published=published_preconditioner,
)

MAP = Method(
    name="lmmse",
    title="LMMSE map (control)",
    summary="one affine least-squares map from measurements to images; no iteration, no prior",
    operator="none",
    rule="closed-form",
    learned=True,
    supervision="ground truth",
    fixed_point="none: no iterations",
    cost="one matrix product with the measurement, without operator or denoiser calls",
    parameters=NoParameters,
    fit=fit_map,
    published=nothing_published,
    skip=without_map,
)
