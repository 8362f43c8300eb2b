"""Anderson acceleration against dense fixed points and least squares."""

import numpy as np
import pytest
import torch

from baselines.anderson import METHOD, Anderson, AndersonParameters, weights
from dipa_bench.parameters import build, defaults, space
from dipa_bench.preconditioners import Identity
from dipa_bench.solvers import REDFISTA, PnPFISTA
from dipa_bench.tasks.spectrum import matrix
from dipa_bench.testing import small_task
from dipa_bench.testing.problems import smoothing_prior

STRENGTH = 0.08


def solver_of(kind, largest, iterations, **options):
    settings = {"strength": STRENGTH, "step": 1 / largest, "iterations": iterations}
    settings |= {"momentum": "none"} | options
    if kind == "red-fista":
        return REDFISTA(smoothing_prior(), weight=0.3 * largest, **settings)
    return PnPFISTA(smoothing_prior(), **settings)


def fixed_point(kind, normal, back, w, largest):
    """x = T(x) solved as a dense linear system, rows of images."""
    eye = np.eye(len(normal))
    if kind == "red-fista":
        return np.linalg.solve(normal + 0.3 * largest * (eye - w), back.T).T
    return np.linalg.solve(eye - w @ (eye - normal / largest), (w @ back.T) / largest).T


@pytest.mark.parametrize("kind", ["pnp-fista", "red-fista"])
def test_small_linear_problem_is_solved(kind, from_matrix, smoother):
    """Four unknowns and five points: the fixed point, each image's own, to rounding."""
    a = np.random.default_rng(0).standard_normal((5, 4))
    w, normal = smoother(2, 2, STRENGTH), a.T @ a
    largest = np.linalg.eigvalsh(normal)[-1]
    y = np.random.default_rng(1).standard_normal((3, 5))
    accelerated = Anderson(solver_of(kind, largest, 6), 5, 1e-13)
    found = accelerated.run(torch.from_numpy(y), from_matrix(a)).estimate
    expected = fixed_point(kind, normal, y @ a, w, largest)
    np.testing.assert_allclose(found.flatten(1), expected, atol=1e-5)
    plain = solver_of(kind, largest, 6).run(torch.from_numpy(y), from_matrix(a), Identity())
    gap = np.abs(plain.estimate.flatten(1).numpy() - expected).max()
    assert gap > 1e-2  # what six plain iterations leave


@pytest.mark.parametrize("kind", ["pnp-fista", "red-fista"])
def test_keeps_the_fixed_point(kind, smoother):
    """Started there it stays; started elsewhere it arrives."""
    task = small_task("deblur", shape=(1, 12, 16), dtype=torch.float64)
    a = matrix(task.student, task.shape, torch.zeros(1).double()).numpy()
    measured = task.measure(task.images.validation)
    back = measured.flatten(1).numpy() @ a
    w, largest = smoother(12, 16, STRENGTH), task.norm_squared()
    expected = torch.from_numpy(fixed_point(kind, a.T @ a, back, w, largest))
    expected = expected.view(-1, *task.shape)
    there = solver_of(kind, largest, 10, start=lambda y: expected)
    found = Anderson(there, 5, 1e-4).run(measured, task.student).estimate
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    far = Anderson(solver_of(kind, largest, 60), 5, 1e-6).run(measured, task.student)
    plain = solver_of(kind, largest, 60).run(measured, task.student, Identity())
    gap = (far.estimate - expected).norm()
    assert gap < 0.1 * (plain.estimate - expected).norm()


def test_weights():
    """Against Lagrange's dense equations; they sum to 1 whatever the size of the residuals."""
    g = torch.randn(4, 3, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = weights(g, 1e-2)
    for row, each in zip(found.numpy(), g.numpy(), strict=True):
        gram = each @ each.T
        gram += 1e-2 * np.trace(gram) / 3 * np.eye(3)
        system = np.block([[gram, np.ones((3, 1))], [np.ones((1, 3)), np.zeros((1, 1))]])
        np.testing.assert_allclose(row, np.linalg.solve(system, [0, 0, 0, 1])[:3], atol=1e-12)
    torch.testing.assert_close(weights(1e-8 * g, 1e-2), found)
    zero = torch.full((4, 3), 1 / 3, dtype=torch.float64)
    torch.testing.assert_close(weights(0 * g, 1e-2), zero)


@pytest.mark.parametrize("kind", ["pnp-fista", "red-fista"])
def test_one_point_is_the_plain_algorithm(kind):
    """Curves and counts included."""
    task = small_task(dtype=torch.float64)
    measured, pixels = task.measure(task.images.validation), task.pixels(task.images.validation)
    solver = solver_of(kind, task.norm_squared(), 5)
    expected = solver.run(measured, task.student, Identity(), record=True, reference=pixels)
    found = Anderson(solver, 1, 1e-4).run(measured, task.student, record=True, reference=pixels)
    torch.testing.assert_close(found.estimate, expected.estimate)
    for name in ("mse", "residual", "step_norm"):
        torch.testing.assert_close(getattr(found.curves, name), getattr(expected.curves, name))
    assert found.operator_calls == expected.operator_calls
    assert found.denoiser_calls == expected.denoiser_calls


@pytest.mark.parametrize("start", ["adjoint", "zero", "preconditioned", "lmmse"])
def test_counts(start, context):
    """Those that `Solver.run` reports from the same start."""
    task = small_task(dtype=torch.float64)
    values = {"solve.start": start, "solve.strength": STRENGTH}
    made = METHOD.fit(task, build(METHOD.parameters, values), context())
    measured = task.measure(task.images.validation)
    expected = made.solver.run(measured, task.student, Identity())
    found = made.run(measured, task.student)
    assert found.operator_calls == expected.operator_calls
    assert found.denoiser_calls == expected.denoiser_calls


def test_counts_are_what_is_applied(from_matrix):
    """Counted by the operator itself; the curves' last residual is not part of the method."""
    physics = from_matrix(np.random.default_rng(0).standard_normal((5, 9)))
    measured = torch.ones(2, 5, dtype=torch.float64)
    found = Anderson(solver_of("pnp-fista", 30.0, 7), 3, 1e-4).run(measured, physics)
    assert found.operator_calls == physics.calls == 15


def test_runs_share_nothing(context):
    """A run repeated after one on other images gives the same; an image alone as in a batch."""
    task = small_task(dtype=torch.float64, iterations=8)
    values = defaults(METHOD.parameters, task.solver, task)
    made = METHOD.fit(task, build(METHOD.parameters, values), context())
    measured = task.measure(task.images.validation)
    first = made.run(measured, task.student).estimate
    made.run(measured.flip(0), task.student)
    assert torch.equal(made.run(measured, task.student).estimate, first)
    torch.testing.assert_close(made.run(measured[1:2], task.student).estimate, first[1:2])


def test_has_no_momentum_to_search():
    """Its place is the acceleration's."""
    assert "solve.momentum" not in space(AndersonParameters, "pnp-fista", small_task())
