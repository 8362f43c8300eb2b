"""The least-squares problem of one operator on training images.

G = (I + D) / L with L = lambda_max(A^T A) and D linear in its numbers d, D g_j = B_j d, is to
minimise over the training images j either the data term after its own gradient step,
sum_j f_j(z_j - G g_j) with f_j(x) = |A x - y_j|^2 / 2 (objective ``value``), or the distance to the
truth, sum_j |z_j - G g_j - x*_j|^2 (``distance``). Both are least squares in d with the normal
equations

    sum_j B_j^T N B_j d = sum_j B_j^T t_j,    t_j = A^T (r_j - A g_j / L),    N = A^T A / L  (value)
                                              t_j = L (z_j - x*_j) - g_j,     N = I       (distance)

for the residual r_j = A z_j - y_j, and of all solutions the one of least norm is taken: what the
training gradients do not span gets the plain step of size 1 / L. A ridge rho |d|^2 is added.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from deepinv.physics import LinearPhysics
from torch import Tensor

MOST = 300  # iterations of conjugate gradients
LARGEST = 4096**2  # numbers of one operator: eigendecompositions in float64 of that side
NEGLIGIBLE = 1e-12  # gradients this small, relative to A^T y, teach nothing (squared norms)
SOLVED = 1e-10  # |t|^2 this small, relative to |g|^2, is what rounding leaves of the plain step

Objective = Literal["value", "distance"]


@dataclass(frozen=True)
class Lesson:
    """One batch of training images where an operator is to be fitted, each B x C x H x W.

    Attributes:
        point: z, where the gradient was taken.
        gradient: A^T (A z - y).
        residual: A z - y, in the measurement's shape.
        truth: the true images x*; read by the objective ``distance`` only.
    """

    point: Tensor
    gradient: Tensor
    residual: Tensor
    truth: Tensor


@dataclass(frozen=True)
class Criterion:
    """The least-squares problem of one operator.

    Attributes:
        physics: A.
        largest: L = lambda_max(A^T A).
        objective: ``value`` or ``distance``.
        size: sum of |A^T y_j|^2, by which gradients are called negligible.
        unit: what absolute steps are multiplied by where they are kept: L, or 1 for a solver with
            absolute steps.
    """

    physics: LinearPhysics
    largest: float
    objective: Objective
    size: float
    unit: float

    @property
    def plain(self) -> float:
        """The step 1 / L as it is kept: 1, or 1 / L for a solver with absolute steps."""
        return self.unit / self.largest

    def normal(self, images: Tensor) -> Tensor:
        """N v, in the dtype of v (the operator works in that of the task)."""
        if self.objective == "distance":
            return images
        return self.physics.A_adjoint(self.physics.A(images)) / self.largest

    def target(self, lesson: Lesson) -> Tensor:
        """t = what the plain step leaves to do, B x C x H x W, in the units of a gradient."""
        if self.objective == "distance":
            return self.largest * (lesson.point - lesson.truth) - lesson.gradient
        left = lesson.residual - self.physics.A(lesson.gradient) / self.largest
        return self.physics.A_adjoint(left)

    def negligible(self, lessons: Sequence[Lesson]) -> bool:
        """Whether the gradients are no more than rounding."""
        return energy([lesson.gradient for lesson in lessons]) <= NEGLIGIBLE * self.size

    def targets(self, lessons: Sequence[Lesson]) -> list[Tensor] | None:
        """t of each batch; None where there is nothing to learn and the plain step is kept."""
        if self.negligible(lessons):
            return None
        found = [self.target(lesson) for lesson in lessons]
        slopes = energy([lesson.gradient for lesson in lessons])
        return found if energy(found) > SOLVED * slopes else None


def energy(batches: Sequence[Tensor]) -> float:
    """Sum of squares over all batches."""
    return sum(batch.square().sum().item() for batch in batches)


def tolerance(dtype: torch.dtype) -> float:
    """What conjugate gradients can reach when the operator works in `dtype`."""
    return max(1e-10, 100 * torch.finfo(dtype).eps)
