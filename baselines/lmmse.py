"""`lmmse` and `lmmse-preconditioner`: what second moments of the training images alone can do.

Both are closed forms, fitted in seconds without unrolling: a trained P has to beat them.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from dipa_bench.data.signals import is_complex
from dipa_bench.errors import UserError
from dipa_bench.learning.lmmse import quarter_turns
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
from dipa_bench.tasks.base import Task
from dipa_bench.tasks.spectrum import matrix

LARGEST = 4096  # numbers in an image: P and two more matrices of that side in float64, 400 MB
FLOOR = 1e-6  # of the mean variance of a pixel, added to the covariance that images do not fill


class LMMSEPreconditionerParameters(Parameters):
    """The weight of the images' covariance, beside the solver's own."""

    solve: SolveParameters = SolveParameters(start="zero")
    damping: Annotated[
        float,
        Field(gt=0, description="epsilon, relative to lambda_max(A^T A) times a pixel's variance"),
        Search(1e-5, 1.0, log=True),
    ] = 1e-2


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
        self.matrix.data = (basis / (values.clamp_min(0) + epsilon)) @ basis.T
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
    found.diagonal().add_(FLOOR * found.diagonal().mean())
    return found


def fit_preconditioner(
    task: Task, parameters: LMMSEPreconditionerParameters, context: FitContext
) -> Iterative:
    """P from the training images' second moments, in one eigendecomposition.

    Raises:
        UserError: images too large for dense matrices.
    """
    if reason := too_large(task):
        raise UserError(reason)
    images = task.pixels(task.images.train.first(context.budget.train_images))
    moments = covariance(task, images)
    dense = matrix(task.student, task.shape, images).double()
    epsilon = parameters.damping * task.largest() * moments.diagonal().mean().item()
    operator = MomentPreconditioner(moments, dense.T @ dense, epsilon, task.shape)
    return context.reconstructor(task, parameters.solve, operator)


def too_large(task: Task) -> str | None:
    """Why dense second moments cannot be had, or None."""
    numbers = task.shape[0] * task.shape[1] * task.shape[2]
    if numbers <= LARGEST:
        return None
    return f"dense second moments of {numbers} numbers an image are too large (at most {LARGEST})"


def published_preconditioner(task: Task) -> dict[str, Value]:
    """The published solver settings with lambda_max(P A^T A) taken for 1, from zero.

    From x_0 = A^T y, where A A^T = I, the first gradient is zero and this P has nothing to act on.
    """
    return relative(task.published_solve(), 1.0) | {"solve.start": "zero"}


def fit_map(task: Task, parameters: NoParameters, context: FitContext) -> Direct:
    found = context.lmmse(task)
    return Direct(lambda measurement, physics: found(measurement))


METHOD = Method(
    name="lmmse-preconditioner",
    title="LMMSE preconditioner",
    summary="P = (A^T A + eps C^-1)^-1 with the training images' covariance C; no unrolling",
    operator="dense",
    rule="closed form",
    learned=True,
    parameters=LMMSEPreconditionerParameters,
    fit=fit_preconditioner,
    published=published_preconditioner,
    skip=too_large,
)

MAP = Method(
    name="lmmse",
    title="LMMSE map (control)",
    summary="one affine least-squares map from measurements to images; no iteration, no prior",
    operator="none",
    rule="closed form",
    learned=True,
    parameters=NoParameters,
    fit=fit_map,
    published=nothing_published,
)
