"""`scalar`: one greedily learned step per iteration (Fahy, Golbabaee, Ehrhardt).

The step of iteration k minimises the data term at the next iterate over the training images,
alpha_k = sum_j ||g_j||^2 / sum_j ||A g_j||^2, and the images are rolled forward with it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dipa_bench.methods import FitContext, Iterative, Method, SolverOnly
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
    images = task.images.train.first(context.budget.train_images)
    states = [solver.start(y, physics, operator) for y in task.measure(images).split(BATCH)]
    size = sum(physics.A_adjoint(state.measurement).square().sum().item() for state in states)
    for iteration in range(task.iterations):
        states = [solver.linearise(state) for state in states]
        energy = sum(state.gradient.square().sum().item() for state in states)
        curvature = sum(physics.A(state.gradient).abs().square().sum().item() for state in states)
        operator.steps[iteration] = unit * greedy_step(energy, curvature, size, 1 / largest)
        states = [solver.advance(state, operator) for state in states]
    return reconstructor


def published(task: Task) -> dict[str, Value]:
    """The learned steps as they are, absolute; all else as published for the solver."""
    return task.published_solve() | {"solve.step": 1.0}


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
