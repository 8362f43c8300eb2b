"""`sr1`: P_k = tau I + u u^T / rho, a symmetric rank-one secant update from nothing (P2nP).

Hong, Xu, Hu, Fessler, Provable preconditioned plug-and-play approach for compressed sensing MRI
reconstruction, IEEE TCI 10, 2024, arXiv 2405.03854. With the differences s of the last two points
and m of their data gradients, lambda_max(A^T A) = 1 as they have it,

- v = beta s + (1 - beta) m with the least beta in {0, 0.01, ...} for which <v, s> >= theta_1 <s, s>
  and <v, v> <= theta_2 <v, s>;
- q = <s, s> / <v, s>, tau = q - sqrt(q^2 - <s, s> / <v, v>), u = s - tau v, rho = <u, v>,

so that P v = s. The rank-one term is left out where rho <= 1e-8 ||u|| ||v||. The first step, and
that of an image that does not move, is I. Beyond theirs, tau is kept below `CAP`, before u is made,
and theta_1 is searched and by default larger: P stretches directions by up to 2 / theta_1, which
with the published 2e-6 may diverge where A^T A has a null space.

Fixed point: none in common with the unpreconditioned algorithm, P_k weighs the data term anew in
every iteration. Cost of an iteration: a few inner products and one more image, no application of A
beyond the gradient's. Their algorithm has no momentum, which the published settings follow.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from dipa_bench.linear_algebra import inner, moved, norm
from dipa_bench.methods import FitContext, Iterative, Method, relative
from dipa_bench.parameters import Parameters, Search, Value
from dipa_bench.preconditioners import Preconditioner, State
from dipa_bench.solvers import SolveParameters
from dipa_bench.tasks.base import Task

PUBLISHED = 2e-6  # theta_1 of the paper
GREATEST = 2e2  # theta_2
CAP = 10.0  # longest tau, in units of 1 / lambda_max
NEGLIGIBLE = 1e-8  # of rho, relative to ||u|| ||v||
BETAS = 101  # values of beta from 0 to 1


class SR1Parameters(Parameters):
    """The safeguard, beside the solver's own."""

    solve: SolveParameters = SolveParameters()
    least: Annotated[
        float,
        Field(gt=0, le=1, description="theta_1: least curvature, relative to lambda_max(A^T A)"),
        Search(PUBLISHED, 0.5, log=True),
    ] = 0.1


class SR1(Preconditioner):
    """lambda_max P_k, which has the scale of I: steps relative to lambda_max(A^T A) fit it.

    Args:
        least: theta_1.
        largest: lambda_max(A^T A).
    """

    linear = False  # made of the run's points

    def __init__(self, least: float, largest: float) -> None:
        super().__init__()
        self.least = least
        self.largest = largest

    def forward(self, gradient: Tensor, state: State) -> Tensor:
        if state.previous_gradient is None:
            return gradient
        s = state.point - state.previous_point
        m = (state.gradient - state.previous_gradient) / self.largest
        here = moved(s, state.point)
        s, m = s * here, m * here
        tau, u, inverse = self.update(s, m)
        return tau * gradient + inverse * inner(u, gradient) * u

    def update(self, s: Tensor, m: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """tau, u and 1 / rho of each image.

        Args:
            s: differences of points, B x C x H x W.
            m: those of gradients, divided by lambda_max(A^T A).

        Returns:
            tau, B x 1 x 1 x 1; u, B x C x H x W; 1 / rho, B x 1 x 1 x 1, 0 where u is left out.
        """
        tiny = torch.finfo(s.dtype).tiny
        size = norm(s)
        still = size <= tiny
        size = torch.where(still, torch.ones_like(size), size)
        s, m = s / size, m / size  # P is the same, no underflow
        v = m + self._beta(inner(s, m), inner(m, m)) * (s - m)
        along, energy = inner(v, s).clamp_min(tiny), inner(v, v).clamp_min(tiny)
        q, ratio = 1 / along, 1 / energy
        # the smaller root without its cancellation
        tau = (ratio / (q + (q * q - ratio).clamp_min(0).sqrt())).clamp_max(CAP)
        tau = torch.where(still, torch.ones_like(tau), tau)
        u = s - tau * v
        rho = inner(u, v)
        wanted = (rho > NEGLIGIBLE * (inner(u, u) * energy).sqrt()) & ~still
        return tau, u, torch.where(wanted, 1 / rho.clamp_min(tiny), torch.zeros_like(rho))

    def _beta(self, along: Tensor, energy: Tensor) -> Tensor:
        """The least beta that keeps both bounds, from <s, m> and <m, m> of unit s."""
        beta = torch.linspace(0, 1, BETAS, dtype=along.dtype, device=along.device)
        rest = 1 - beta
        vs = beta + rest * along
        vv = beta**2 + 2 * beta * rest * along + rest**2 * energy
        kept = (vs >= self.least) & (vv <= GREATEST * vs)
        return beta[kept.to(torch.uint8).argmax(-1, keepdim=True)]


def fit(task: Task, parameters: SR1Parameters, context: FitContext) -> Iterative:
    return context.reconstructor(task, parameters.solve, SR1(parameters.least, task.norm_squared()))


def published(task: Task) -> dict[str, Value]:
    """The paper's full step without momentum; strength and weight as for the other methods.

    Its theta_1 for PnP alone: the paper has no RED, which diverges with it.
    """
    chosen = {"solve.step": 1.0, "solve.momentum": "none"}
    if task.solver == "pnp-fista":
        chosen["least"] = PUBLISHED
    return relative(task.published_solve(), task.norm_squared()) | chosen


METHOD = Method(
    name="sr1",
    title="Zero-memory SR1",
    summary="P = tau I + u u^T / rho for each image, the rank-one secant update of P2nP",
    operator="diagonal plus rank one",
    rule="secant",
    paper="Hong, Xu, Hu, Fessler, IEEE TCI 10, 2024, arXiv 2405.03854",
    fixed_point="none in common: P weighs the data term anew in every iteration",
    cost="2 operator calls, 1 denoiser call",
    parameters=SR1Parameters,
    solver_free=True,
    fit=fit,
    published=published,
)
