"""Where runs start, and what they are charged for."""

import pytest
import torch

from dipa_bench.errors import UserError
from dipa_bench.preconditioners import Dense, Identity, Preconditioner
from dipa_bench.solvers import REDFISTA, PnPFISTA
from dipa_bench.testing.problems import small_task, smoothing_prior


def solver(start, iterations=3, step=2.5, **options):
    return PnPFISTA(
        smoothing_prior(), step=step, strength=0.05, iterations=iterations, start=start, **options
    )


@pytest.fixture(scope="module")
def task():
    return small_task(shape=(1, 12, 12), dtype=torch.float64)


@pytest.fixture(scope="module")
def operator():
    found = Dense((1, 12, 12)).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        found.matrix.add_(0.1 * torch.randn(144, 144, generator=generator, dtype=torch.float64))
    return found


def test_starting_points(task, operator, dense_sr):
    """A^T y, 0, alpha P A^T y and a function of y, against the dense matrices."""
    a = torch.from_numpy(dense_sr(12, 12, 4))
    measured = task.measure(task.images.train)
    back = measured.flatten(1) @ a
    expected = {
        "adjoint": back,
        "zero": torch.zeros_like(back),
        "preconditioned": 2.5 * back @ operator.matrix.detach()[0].T,
    }
    for name, first in expected.items():
        state = solver(name).start(measured, task.student, operator)
        torch.testing.assert_close(state.iterate.flatten(1), first, rtol=0, atol=1e-13)
        assert torch.equal(state.point, state.iterate)
        assert state.iteration == 0
    made = solver(lambda y: 7 * torch.ones(len(y), 1, 12, 12)).start(
        measured, task.student, operator
    )
    assert (made.iterate == 7).all()


def test_preconditioned_start_is_a_step_from_zero(task, operator):
    """K steps from `preconditioned` with D = I are K + 1 momentum-free steps from `zero`."""
    prior = smoothing_prior()
    prior._denoise = lambda noisy, sigma: noisy
    measured = task.measure(task.images.train)
    runs = [
        PnPFISTA(prior, step=2.5, strength=1.0, iterations=count, start=start, momentum="none").run(
            measured, task.student, operator
        )
        for count, start in ((3, "preconditioned"), (4, "zero"))
    ]
    torch.testing.assert_close(runs[0].estimate, runs[1].estimate)


class Normal(Preconditioner):
    """g - 0.1 A^T A g: an operator that itself applies A and A^T."""

    operator_calls = 2

    def forward(self, gradient, state):
        return gradient - 0.1 * state.physics.A_adjoint(state.physics.A(gradient))


@pytest.mark.parametrize("start", ["adjoint", "zero", "preconditioned", "function"])
@pytest.mark.parametrize("make", [Identity, Normal])
def test_operator_calls_are_those_made(from_matrix, dense_sr, start, make):
    """The reported number equals the calls that a counting physics saw."""
    physics = from_matrix(dense_sr(12, 12, 4))
    y = torch.rand(2, 9, dtype=torch.float64)
    first = (lambda y: torch.zeros(2, 1, 12, 12)) if start == "function" else start
    for iterations in (1, 5):
        physics.calls = 0
        run = solver(first, iterations).run(y, physics, make())
        assert run.operator_calls == physics.calls
        assert run.denoiser_calls == iterations


@pytest.mark.parametrize(
    ("options", "near"),
    [
        ({"momentum": "textbok"}, "textbook"),
        ({"momentum": "nesterov"}, "none"),
        ({"start": "adjont"}, "adjoint"),
        ({"start": "lmmse"}, "preconditioned"),
    ],
)
def test_unknown_names_are_user_errors(options, near):
    """One line with the wrong value and a valid one."""
    value = next(iter(options.values()))
    with pytest.raises(UserError, match=f"{value}.*{near}") as caught:
        PnPFISTA(smoothing_prior(), step=1.0, strength=0.1, iterations=1, **options)
    assert "\n" not in str(caught.value)


def test_red_checks_its_names_too():
    """The shared constructor is used by both solvers."""
    with pytest.raises(UserError, match="momentum"):
        REDFISTA(smoothing_prior(), weight=1.0, step=1.0, strength=0.1, iterations=1, momentum="no")
