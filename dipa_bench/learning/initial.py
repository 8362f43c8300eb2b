"""Where the training of an operator starts."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import Tensor

from dipa_bench.errors import UserError
from dipa_bench.learning import greedy
from dipa_bench.learning.closed_form import best_numbers, choose_ridge, lesson, normalise
from dipa_bench.learning.cross_fitting import HeldOutNumbers, folds, without
from dipa_bench.learning.least_squares import LARGEST, Lesson
from dipa_bench.learning.rules import Maker
from dipa_bench.methods import FitContext, Iterative
from dipa_bench.preconditioners import Dense, LinearOperator, Scalar
from dipa_bench.solvers import SolveParameters
from dipa_bench.tasks.base import Task

Initial = Literal["identity", "scaled", "mismatch", "lmmse", "greedy"]
FOLDS = 5  # of closed forms: every training batch is of one, so that they must not be small
FREE: tuple[Initial, ...] = ("identity", "scaled")  # at any size and for any operator


def initialise(
    reconstructor: Iterative,
    make: Maker,
    initial: Initial,
    solve: SolveParameters,
    label: float,
    task: Task,
    context: FitContext,
) -> HeldOutNumbers | None:
    """Sets the operator of `reconstructor` before it is trained.

    - ``identity``: as it is made.
    - ``scaled``: s I with the s of least R(P).
    - ``mismatch``: the minimiser of R(P); ``lmmse``: the least-squares map to the truth (see
      `closed_form`). The ridge is the one with the best validation PSNR.
    - ``greedy``: what the rule ``greedy`` fits with the same solver: its first operator,
      or all of them where one is trained for each iteration.

    Families that least squares cannot fit get the member nearest to the dense solution.

    Args:
        reconstructor: with an operator that is still the identity.
        make: gives operators of its kind.
        initial: the choice.
        solve: the solver's parameters.
        label: of the teacher, for R.
        task: the task.
        context: of the fit.

    Returns:
        What ``mismatch`` and ``lmmse`` would have given without each fold of the training images,
        where the operator's numbers are what is solved for; None for the other choices, and for
        operators that only approximate the dense solution.

    Raises:
        UserError: the images are too large for the dense solution.
    """
    operator = reconstructor.preconditioner
    if initial == "identity":
        return None
    if initial == "scaled":
        given = lesson(task, "mismatch", label, solve.units, context)
        step = best_numbers(_on(task, Scalar(1)), given, 0.0, task).item()
        if step > 0:  # R has the student's step in it
            operator.scale(step / (reconstructor.solver.step_size * task.norm_squared()))
        return None
    if reason := obstacle(operator, task):
        raise UserError(f"train.initial={initial}: {reason}; use one of {', '.join(FREE)}")
    solvable = make if operator.affine is not None else partial(_dense, task)
    if initial == "greedy":
        fitted = greedy.fit(task, solvable, greedy.GreedyParameters(solve=solve), context)
        _adopt(operator, fitted.preconditioner.numbers, make)
        return None
    target = "truth" if initial == "lmmse" else "mismatch"
    images = task.images.train.first(context.budget.train_images)

    def least_squares(ridge: float, given: Lesson) -> None:
        _adopt(operator, best_numbers(solvable(1), given, ridge, task)[None], make)
        normalise(operator, task)

    given = lesson(task, target, label, solve.units, context, images)
    choose_ridge(reconstructor, partial(least_squares, given=given), task, context)
    if operator.affine is None or len(images) < 2:
        return None
    whole = operator.numbers.detach().clone()
    parts, differences = folds(images, FOLDS), []
    for held_out in parts:
        rest = without(images, held_out)
        part = lesson(task, target, label, solve.units, context, rest)
        least_squares(context.notes["ridge"], part)
        differences.append(operator.numbers.detach() - whole)
    with torch.no_grad():
        operator.numbers.copy_(whole)
    return HeldOutNumbers(tuple(map(tuple, parts)), tuple(differences))


def obstacle(operator: LinearOperator, task: Task) -> str | None:
    """Why only the choices in `FREE` can be had for an operator, or None."""
    if operator.affine is None and type(operator).approximate is LinearOperator.approximate:
        return f"{type(operator).__name__} can neither be solved for nor approximate a matrix"
    numbers = (task.shape[1] * task.shape[2]) ** 2
    if operator.affine is not None:
        numbers = operator.numbers[0].numel()
    if numbers <= LARGEST:
        return None
    return (
        f"least squares for {numbers:,} numbers ({task.shape[1]} x {task.shape[2]} pixels) are "
        "too large"
    )


def _on(task: Task, operator: LinearOperator) -> LinearOperator:
    return operator.to(task.device, task.dtype)


def _dense(task: Task, copies: int) -> LinearOperator:
    return _on(task, Dense(task.shape, copies=copies))


@torch.no_grad()
def _adopt(operator: LinearOperator, numbers: Tensor, make: Maker) -> None:
    """Takes entries over: an operator with one the first, one with many all, or that one for all.

    Args:
        operator: to be changed.
        numbers: entries x ..., of its kind, or dense matrices to be approximated.
        make: gives operators of its kind.
    """
    if operator.affine is not None:
        operator.numbers.copy_(numbers[: operator.copies].expand_as(operator.numbers))
        return
    for entry, matrix in enumerate(numbers[: operator.copies]):
        nearest = make(1)
        nearest.approximate(matrix)
        for own, found in zip(operator.parameters(), nearest.parameters(), strict=True):
            own[entry if len(numbers) > 1 else slice(None)] = found[0]
