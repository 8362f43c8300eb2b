"""`polynomial`: P = p(A^T A / L) / L, a polynomial in place of the inverse of A^T A.

Iyer, Ong, Setsompop, Doneva, Lustig, Polynomial preconditioners for regularized linear inverse
problems, SIAM J. Imaging Sci. 2024, arXiv 2204.10252, after Johnson, Micchelli, Paul 1983. With
L = lambda_max(A^T A), t in [0, 1] the spectrum in units of L, n = degree + 1, and r(t) = 1 - t p(t)
the part of an error that one unit step leaves, the families are

- ``l2``: the least integral of r^2 over [0, 1], r = P_n^(1,0)(1 - 2t) / (n + 1) (Jacobi's);
- ``chebyshev``: the least maximum of |r| over [lower, 1];
- ``neumann``: the truncated series p = sum_i (1 - t)^i, r = (1 - t)^n.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar

import numpy as np
from deepinv.physics import LinearPhysics
from pydantic import Field
from torch import Tensor

from dipa_bench.methods import FitContext, Iterative, Method, relative
from dipa_bench.parameters import Parameters, Search, Value
from dipa_bench.preconditioners import Preconditioner, State
from dipa_bench.solvers import SolveParameters
from dipa_bench.tasks.base import Task
from dipa_bench.tasks.spectrum import lanczos

FAMILIES = ("l2", "chebyshev", "neumann")
GRID = 4097  # points on which t p(t) is compared with its value at the end

Operand = TypeVar("Operand", np.ndarray, Tensor)


class PolynomialParameters(Parameters):
    """The polynomial, beside the solver's own."""

    solve: SolveParameters = SolveParameters()
    family: Annotated[
        Literal["l2", "chebyshev", "neumann"],
        Field(description="least-squares, min-max or truncated Neumann polynomial"),
        Search(choices=FAMILIES),
    ] = "l2"
    degree: Annotated[
        int,
        Field(ge=0, le=12, description="degree of p: applications of A^T A in one of P"),
        Search(0, 6),
    ] = 2
    lower: Annotated[
        float,
        Field(
            gt=0, lt=1, description="chebyshev: lower end, relative to lambda_max; others: unused"
        ),
        Search(1e-3, 0.5, log=True),
    ] = 1 / 30


@dataclass(frozen=True)
class Recurrence:
    """p by z_0 = c g, z_(j+1) = z_j + b_j (z_j - z_(j-1)) + a_j (g - H z_j), with z_(-1) = 0.

    Stable where monomials are not: in float32 those lose all digits at degree 12.

    Attributes:
        first: c.
        steps: (a_j, b_j), one for each degree.
    """

    first: float
    steps: tuple[tuple[float, float], ...]

    def __call__(self, normal: Callable[[Operand], Operand], g: Operand) -> Operand:
        """p(H) g.

        Args:
            normal: v -> H v with the spectrum of H in [0, 1].
            g: any shape.
        """
        before, z = 0 * g, self.first * g
        for a, b in self.steps:
            before, z = z, z + b * (z - before) + a * (g - normal(z))
        return z

    def gain(self, t: np.ndarray | float) -> np.ndarray:
        """t p(t), the eigenvalues of P A^T A.

        Args:
            t: eigenvalues of A^T A in units of lambda_max.
        """
        t = np.asarray(t, dtype=np.float64)
        return t * self(lambda v: t * v, np.ones_like(t))


def recurrence(family: str, degree: int, lower: float) -> Recurrence:
    """The polynomial of a family.

    Args:
        family: one of `FAMILIES`.
        degree: of p, at least 0.
        lower: end of Chebyshev's interval [lower, 1]; the other families do not use it.

    Raises:
        ValueError: the family is not known.
    """
    if family == "neumann":
        return Recurrence(1.0, ((1.0, 0.0),) * degree)
    if family == "l2":
        steps = [
            (
                2 * (j + 1) * (2 * j + 3) / (j + 2) ** 2,
                j * j * (2 * j + 3) / ((j + 2) ** 2 * (2 * j + 1)),
            )
            for j in range(1, degree + 1)
        ]
        return Recurrence(1.5, tuple(steps))
    if family == "chebyshev":
        centre, radius = (1 + lower) / 2, (1 - lower) / 2
        ratio, steps = radius / centre, []
        for _ in range(degree):
            following = 1 / (2 * centre / radius - ratio)
            steps.append((2 * following / radius, following * ratio))
            ratio = following
        return Recurrence(1 / centre, tuple(steps))
    raise ValueError(f"unknown family {family!r}; one of {', '.join(FAMILIES)}")


class Polynomial(Preconditioner):
    """p(A^T A / L) / L for the run's own A.

    Args:
        polynomial: p on [0, 1].
        largest: L = lambda_max(A^T A).
        measured: lambda_max(P A^T A) where `spectral_bound` has no closed form for it. P has the
            scale of an inverse, so steps relative to lambda_max(A^T A) alone would not fit it.
    """

    def __init__(
        self, polynomial: Recurrence, largest: float, measured: float | None = None
    ) -> None:
        super().__init__()
        self.polynomial = polynomial
        self.largest = largest
        self.measured = measured
        self.operator_calls = 2 * len(polynomial.steps)

    def forward(self, gradient: Tensor, state: State) -> Tensor:
        return self.apply_to(gradient, state.physics)

    def apply_to(self, gradient: Tensor, physics: LinearPhysics) -> Tensor:
        """P of a B x C x H x W gradient; all that it needs of a state is the physics."""

        def normal(v: Tensor) -> Tensor:
            return physics.A_adjoint(physics.A(v)) / self.largest

        return self.polynomial(normal, gradient) / self.largest

    def spectral_bound(self, largest: float) -> float | None:
        """t p(t) at lambda_max where no t below has more, whatever the spectrum; else as measured.

        So for all of ``neumann`` and the even degrees of the others; the odd ones have their
        maximum inside, where the spectrum may have a gap.
        """
        gains = self.polynomial.gain(np.linspace(0, largest / self.largest, GRID))
        return float(gains[-1]) if gains[-1] >= gains.max() * (1 - 1e-9) else self.measured


def build(task: Task, parameters: PolynomialParameters) -> Polynomial:
    """The operator for a task, its lambda_max(P A^T A) measured where there is no closed form."""
    largest = task.norm_squared()
    polynomial = recurrence(parameters.family, parameters.degree, parameters.lower)
    operator = Polynomial(polynomial, largest)
    if operator.spectral_bound(largest) is None:
        physics = task.student
        operator.measured = lanczos(
            lambda image: operator.apply_to(physics.A_adjoint(physics.A(image)), physics),
            task.shape,
            task.device,
            task.dtype,
        )
    return operator


def fit(task: Task, parameters: PolynomialParameters, context: FitContext) -> Iterative:
    operator = build(task, parameters)
    context.notes["measured_bound"] = operator.measured is not None
    return context.reconstructor(task, parameters.solve, operator)


def published(task: Task) -> dict[str, Value]:
    """The published solver settings; their absolute step in units of 1/lambda_max(P A^T A)."""
    operator = build(task, PolynomialParameters())
    return relative(task.published_solve(), operator.spectral_bound(task.norm_squared()))


METHOD = Method(
    name="polynomial",
    title="Polynomial",
    summary="P = p(A^T A): least-squares, Chebyshev or Neumann polynomial of a small degree",
    operator="polynomial",
    rule="analytic",
    paper="Iyer, Ong, Setsompop, Doneva, Lustig, SIAM J. Imaging Sci. 2024, arXiv 2204.10252",
    fixed_point="another: the data term is re-weighted by P",
    cost=(
        "2 + 2 degree operator calls, 1 denoiser call; 100 (2 + 2 degree) at most where the "
        "bound on P A^T A has no closed form"
    ),
    contains=("identity",),
    parameters=PolynomialParameters,
    solver_free=True,
    fit=fit,
    published=published,
)
