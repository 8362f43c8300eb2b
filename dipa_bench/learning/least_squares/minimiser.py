"""Which algorithm finds the numbers of an operator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor

from dipa_bench.learning.least_squares import dense
from dipa_bench.learning.least_squares.convolution import best_kernel
from dipa_bench.learning.least_squares.general import best_numbers
from dipa_bench.learning.least_squares.pointwise import best_factors
from dipa_bench.learning.least_squares.problem import Criterion, Lesson, Objective
from dipa_bench.learning.least_squares.scalar import best_step
from dipa_bench.preconditioners import Convolution, Dense, LinearOperator, Pointwise, Scalar
from dipa_bench.tasks.base import Task

Minimiser = Callable[[Sequence[Lesson], Criterion], Tensor | float]


def minimiser(
    operator: LinearOperator, ridge: float, objective: Objective, task: Task
) -> Minimiser:
    """The minimiser of the criterion plus a ridge for one operator of a kind.

    Args:
        operator: of the kind, `affine`, still the identity.
        ridge: weight of |P - I|^2, relative to the problem's own scale; a scalar needs none.
        objective: ``value`` or ``distance``.
        task: whose student is measured, once, where the closed form needs its spectrum.

    Returns:
        (lessons, criterion) -> one entry of `operator.numbers`, as it is kept (`Criterion.unit`).
    """
    match operator:
        case Scalar():
            return best_step
        case Pointwise():
            return partial(best_factors, ridge=ridge)
        case Convolution():
            return partial(best_kernel, size=operator.kernels.shape[-1], ridge=ridge)
        case Dense():
            found = None
            if objective == "value" and not operator.joint:
                like = task.pixels(task.images.train.first(1))
                found = dense.spectrum(task.student, task.norm_squared(), like)
            return dense.Best(ridge, found, operator.joint)
    return partial(best_numbers, operator=operator, ridge=ridge)
