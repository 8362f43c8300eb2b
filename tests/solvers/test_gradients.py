"""Gradients through the unrolled iteration against central differences."""

import pytest
import torch

from dipa_bench.preconditioners import Dense
from dipa_bench.solvers import REDFISTA, PnPFISTA
from dipa_bench.testing.problems import small_task

H = 1e-5


@pytest.mark.parametrize("start", ["adjoint", "preconditioned"])
@pytest.mark.parametrize("kind", [PnPFISTA, REDFISTA])
def test_gradient_of_a_dense_operator(kind, start):
    """d loss / dP through five steps: along random directions and for single entries."""
    task = small_task(shape=(1, 12, 12), dtype=torch.float64, count=2)
    measured = task.measure(task.images.train)
    truth = task.pixels(task.images.train)
    extra = {"weight": 0.2} if kind is REDFISTA else {}
    solver = kind(task.prior, step=5.0, strength=0.1, iterations=5, start=start, **extra)
    generator = torch.Generator().manual_seed(0)

    def noise():
        return torch.randn(144, 144, generator=generator, dtype=torch.float64)

    base = torch.eye(144, dtype=torch.float64) + 0.05 * noise()
    operator = Dense((1, 12, 12)).double()

    def loss(matrix):
        estimate = torch.func.functional_call(
            _Run(solver, operator, task), {"operator.matrix": matrix[None]}, (measured,)
        )
        return (estimate - truth).square().mean() + estimate.sin().mean()

    matrix = base.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(matrix), matrix)
    directions = [noise() for _ in range(3)]
    for row, column in ((0, 0), (17, 90), (143, 5)):
        single = torch.zeros(144, 144, dtype=torch.float64)
        single[row, column] = 1
        directions.append(single)
    with torch.no_grad():
        for direction in directions:
            numeric = (loss(base + H * direction) - loss(base - H * direction)) / (2 * H)
            exact = (gradient * direction).sum()
            torch.testing.assert_close(exact, numeric, rtol=1e-5, atol=1e-10)
    assert gradient.abs().max() > 1e-6


class _Run(torch.nn.Module):
    def __init__(self, solver, operator, task):
        super().__init__()
        self.operator = operator
        self.solver, self.task = solver, task

    def forward(self, measured):
        return self.solver.run(measured, self.task.student, self.operator).estimate


def test_step_and_strength_are_differentiable():
    """d loss / d step against a central difference."""
    task = small_task(shape=(1, 12, 12), dtype=torch.float64)
    measured, operator = task.measure(task.images.train), Dense((1, 12, 12)).double()

    def loss(step):
        solver = PnPFISTA(task.prior, step=step, strength=step / 40, iterations=4)
        return solver.run(measured, task.student, operator).estimate.square().sum()

    step = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    (exact,) = torch.autograd.grad(loss(step), step)
    numeric = (loss(2.0 + H) - loss(2.0 - H)) / (2 * H)
    torch.testing.assert_close(exact, numeric.detach(), rtol=1e-6, atol=0)
