"""`scalar`: one greedily learned step per iteration (Fahy, Golbabaee, Ehrhardt).

The step of iteration k minimises the data term at the next iterate over the training images,
alpha_k = sum_j ||g_j||^2 / sum_j ||A g_j||^2, and the images are rolled forward with it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dipa_bench.methods import FitContext, Iterative, Method, SolverOnly, relative
from dipa_bench.parameters import Value
from dipa_bench.preconditioners import Preconditioner, State
from dipa_bench.tasks.base import Task

BATCH = 64
NEGLIGIBLE = 1e-12  # gradients this small, relative to the first iterate, have no best step


class ScalarSteps(Preconditioner):
    """P_k = s_k I; the last step repeats beyond the fitted iterations.

    Args:
        iterations: how many steps there are.
    """

    def __init__(self, iterations: int) -> None:
        super().__init__()
        self.register_buffer("steps", torch.ones(iterations))

    def forward(self, gradient: Tensor, state: State) -> Tensor:
        return self.steps[min(state.iteration, len(self.steps) - 1)] * gradient


def greedy_step(energy: float, curvature: float, size: float, otherwise: float) -> float:
    """Energy / curvature, and `otherwise` for gradients that vanish.

    Args:
        energy: sum of ||g_j||^2.
        curvature: sum of g_j^T A^T A g_j.
        size: what counts as large, in the unit of `energy`.
        otherwise: an absolute step.
    """
    return energy / curvature if energy > NEGLIGIBLE * size and curvature > 0 else otherwise


@torch.no_grad()
def fit(task: Task, parameters: SolverOnly, context: FitContext) -> Iterative:
    """Learns the steps one by one, each on the iterates that the ones before led to.

    They are kept in units of 1 / lambda_max(A^T A), in which the solver's own step multiplies them.
    """
    operator = ScalarSteps(task.iterations)
    reconstructor = context.reconstructor(task, parameters.solve, operator)
    solver, physics, largest = reconstructor.solver, task.student, task.largest()
    unit = largest if parameters.solve.units == "relative" else 1.0
    measured = task.measure(task.images.train.first(context.budget.train_images)).split(BATCH)
    at_zero = [physics.A_adjoint(y) for y in measured]
    size = _energy(at_zero)

    def best(gradients: list[Tensor]) -> float:
        curvature = sum(physics.A(gradient).abs().square().sum().item() for gradient in gradients)
        return unit * greedy_step(_energy(gradients), curvature, size, 1 / largest)

    shared = parameters.solve.start == "preconditioned"
    if shared:  # x_0 is a step from zero with P_0 itself, so that step is the one to fit
        operator.steps[0] = best(at_zero)
    states = [solver.start(y, physics, operator) for y in measured]
    for iteration in range(task.iterations):
        states = [solver.linearise(state) for state in states]
        if iteration or not shared:
            operator.steps[iteration] = best([state.gradient for state in states])
        states = [solver.advance(state, operator) for state in states]
    return reconstructor


def _energy(gradients: list[Tensor]) -> float:
    return sum(gradient.square().sum().item() for gradient in gradients)


def published(task: Task) -> dict[str, Value]:
    """The learned steps as they are; all else as published for the solver."""
    return relative(task.published_solve(), task.largest()) | {"solve.step": 1.0}


METHOD = Method(
    name="scalar",
    title="Scalar steps (greedy)",
    summary="one step per iteration, each minimising the next data term on training images",
    operator="scalar",
    rule="greedy",
    learned=True,
    paper="Fahy, Golbabaee, Ehrhardt, Greedy Learning to Optimize, arXiv 2406.00260v9",
    parameters=SolverOnly,
    fit=fit,
    published=published,
)
