"""`nystrom`: P from a randomised low-rank approximation of A^T A.

Frangella, Tropp, Udell, Randomized Nystrom preconditioning, SIAM J. Matrix Anal. Appl. 2023, arXiv
2110.02820; for plug-and-play reconstruction Hong, Xu, Hu, Fessler, IEEE TCI 2025, arXiv
2411.08178. With A^T A ~ U Lambda U^T of rank r, lambda_r its least eigenvalue,

P = U (Lambda + mu)^-1 U^T + (I - U U^T) / (lambda_r + mu),

the inverse of A^T A + mu I when r = n.

Fixed point: not that of the unpreconditioned algorithm, P weighs the data term anew. Cost of an
iteration: two products with the n x r matrix U, no application of A beyond the gradient's; a fit
makes r + 10 applications of A^T A and up to 100 more for its bound. U is kept with the operator.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from baselines.circulant import largest_of_product
from dipa_bench.errors import UserError
from dipa_bench.methods import FitContext, Iterative, Method, relative
from dipa_bench.parameters import Parameters, Search, Value
from dipa_bench.preconditioners import Preconditioner, State
from dipa_bench.solvers import SolveParameters
from dipa_bench.tasks.base import Task

BATCH = 32
OVERSAMPLING = 10  # columns of the sketch beyond the rank, which make the kept ones accurate


class NystromParameters(Parameters):
    """Rank and damping, beside the solver's own."""

    solve: SolveParameters = SolveParameters()
    rank: Annotated[
        int,
        Field(ge=1, le=1024, description="rank r of the approximation; at most the unknowns"),
        Search(8, 128, log=True),
    ] = 64
    mu: Annotated[
        float,
        Field(gt=0, description="damping mu, relative to lambda_max(A^T A)"),
        Search(1e-3, 100.0, log=True),  # P is within 1% of a multiple of I at the end
    ] = 0.1


class Nystrom(Preconditioner):
    """U (Lambda + mu)^-1 U^T + (I - U U^T) / (lambda_r + mu).

    Args:
        vectors: U, n x r with orthonormal columns, n = C H W.
        values: diagonal of Lambda >= 0, r, descending.
        mu: absolute damping.
        measured: lambda_max(P A^T A).
    """

    def __init__(
        self, vectors: Tensor, values: Tensor, mu: float, measured: float | None = None
    ) -> None:
        super().__init__()
        self.register_buffer("vectors", vectors)
        self.register_buffer("values", values)
        self.mu = mu
        self.measured = measured

    def forward(self, gradient: Tensor, state: State) -> Tensor:
        if gradient[0].numel() != len(self.vectors):
            raise UserError(
                f"this Nystrom P was made for {len(self.vectors)} unknowns, not "
                f"{gradient[0].numel()}: fit it again at that size"
            )
        return self._power(gradient, -1.0)

    def root(self, image: Tensor) -> Tensor:
        """P^(1/2) of a B x C x H x W batch."""
        return self._power(image, -0.5)

    def _power(self, image: Tensor, exponent: float) -> Tensor:
        weights = (self.values + self.mu) ** exponent
        rows = image.flatten(1)
        inside = (rows @ self.vectors) * (weights - weights[-1])
        return (weights[-1] * rows + inside @ self.vectors.T).view_as(image)

    def spectral_bound(self, largest: float) -> float | None:
        return self.measured


@torch.no_grad()
def approximate(task: Task, rank: int, seed: int) -> tuple[Tensor, Tensor]:
    """U and the diagonal of Lambda from a Gaussian sketch (algorithm 2.1 of the paper).

    The sketch is a little wider than the rank, and its least eigenvalues are left out (Halko,
    Martinsson, Tropp 2011, doi:10.1137/090771806).

    In float64 but for the operator. The shift, eps ||Y|| of the task's dtype, grows tenfold until
    the Cholesky factor exists, which rounding in A can keep it from.

    Args:
        task: whose student is A.
        rank: r; at most n.
        seed: of the sketch.

    Returns:
        n x r, and r values, descending and not negative.
    """
    physics = task.student
    size = task.shape[0] * task.shape[1] * task.shape[2]
    rank = min(rank, size)
    width = min(rank + OVERSAMPLING, size)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(size, width, generator=generator, dtype=torch.float64)
    sketch = torch.linalg.qr(drawn.to(task.device)).Q
    images = sketch.T.reshape(width, *task.shape).to(task.dtype)
    applied = [physics.A_adjoint(physics.A(batch)) for batch in images.split(BATCH)]
    sampled = torch.cat(applied).flatten(1).T.to(sketch)
    shift = torch.finfo(task.dtype).eps * float(torch.linalg.matrix_norm(sampled))
    while True:
        shifted = sampled + shift * sketch
        core = sketch.T @ shifted
        factor, failed = torch.linalg.cholesky_ex((core + core.T) / 2)
        if not failed:
            break
        shift = max(10 * shift, torch.finfo(task.dtype).tiny)
    tall = torch.linalg.solve_triangular(factor, shifted.T, upper=False).T
    vectors, singular, _ = torch.linalg.svd(tall, full_matrices=False)
    return vectors[:, :rank], (singular[:rank].square() - shift).clamp_min(0)


def build(task: Task, parameters: NystromParameters, seed: int = 0) -> Nystrom:
    """The operator for a task, its lambda_max(P A^T A) measured."""
    vectors, values = approximate(task, parameters.rank, seed)
    mu = parameters.mu * task.norm_squared()
    operator = Nystrom(vectors.to(task.dtype), values.to(task.dtype), mu)
    operator.measured = largest_of_product(operator.root, task)
    return operator


def fit(task: Task, parameters: NystromParameters, context: FitContext) -> Iterative:
    operator = build(task, parameters, context.seed)
    context.notes["rank"] = len(operator.values)
    return context.reconstructor(task, parameters.solve, operator)


def published(task: Task) -> dict[str, Value]:
    """The published solver settings; their absolute step in units of 1/lambda_max(P A^T A)."""
    operator = build(task, NystromParameters())
    return relative(task.published_solve(), operator.spectral_bound(task.norm_squared()))


METHOD = Method(
    name="nystrom",
    title="Nystrom",
    summary="P from a randomised rank-r approximation of A^T A, damped",
    operator="low rank",
    rule="sketched",
    paper="Frangella, Tropp, Udell 2023, arXiv 2110.02820; Hong et al. 2025, arXiv 2411.08178",
    fixed_point="another: the data term is re-weighted by P",
    cost=(
        "2 operator calls, 1 denoiser call, 2 products with an n x rank matrix; 2 (rank "
        "+ 10) operator calls and 200 more at most"
    ),
    contains=("identity",),
    parameters=NystromParameters,
    stochastic=True,
    solver_free=True,
    fit=fit,
    published=published,
)
