"""From hyper-parameters to a solver: units, starts, ranges."""

import pytest
import torch

from dipa_bench import parameters
from dipa_bench.errors import UserError
from dipa_bench.solvers import REDFISTA, PnPFISTA, SolveParameters, build_solver
from dipa_bench.testing.problems import small_task, smoothing_prior


def made(name="pnp-fista", **values):
    extra = {key: values.pop(key) for key in ("bound", "lmmse") if key in values}
    settings = SolveParameters(**({"strength": 0.1} | values))
    return build_solver(name, smoothing_prior(), settings, iterations=7, largest=0.08, **extra)


def test_relative_steps_are_in_units_of_the_largest_eigenvalue():
    """step / lambda_max(A^T A), or / lambda_max(P A^T A) where that is known."""
    assert made(step=0.5).step_size == pytest.approx(0.5 / 0.08)
    assert made(step=0.5, bound=0.02).step_size == pytest.approx(0.5 / 0.02)


def test_absolute_steps_are_left_alone():
    """`published` rules give absolute values; a bound changes nothing."""
    solver = made("red-fista", step=0.4, weight=1.0, units="absolute", bound=0.5)
    assert (solver.step_size, solver.weight) == (0.4, 1.0)


def test_weight_is_in_units_of_the_largest_eigenvalue_of_the_operator():
    """RED's lambda is relative to lambda_max(P A^T A) like its step, or to lambda_max(A^T A)."""
    assert made("red-fista", weight=2.0, bound=0.5).weight == pytest.approx(2.0 * 0.5)
    assert made("red-fista", weight=2.0).weight == pytest.approx(2.0 * 0.08)


def test_kind_and_iterations():
    """The name picks the algorithm; K is handed on."""
    assert type(made()) is PnPFISTA
    assert type(made("red-fista")) is REDFISTA
    assert made().iterations == 7


def test_lmmse_is_asked_for_only_when_it_is_the_start():
    """The map is fitted lazily, and its values become x_0."""

    def refuse():
        raise AssertionError("fitted without need")

    made(start="adjoint", lmmse=refuse)
    solver = made(start="lmmse", lmmse=lambda: lambda y: torch.full((1, 1, 16, 16), 0.25))
    task = small_task()
    state = solver.start(task.measure(task.images.train.first(1)), task.student, None)
    assert (state.iterate == 0.25).all()


@pytest.mark.parametrize(
    "values", [{"step": 0.0}, {"step": float("nan")}, {"strength": -1.0}, {"weight": float("inf")}]
)
def test_values_out_of_bounds_are_refused(values):
    """One line that names the parameter."""
    name = next(iter(values))
    with pytest.raises(UserError, match=name):
        parameters.build(SolveParameters, values)
