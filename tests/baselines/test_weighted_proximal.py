"""The weighted proximal method against dense solves of its steps and of RED's equation."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from baselines.weighted_proximal import (
    LEAST,
    METHOD,
    ProximalStep,
    WeightedProximalParameters,
    WholeGradientRED,
)
from dipa_bench.parameters import build, defaults, space
from dipa_bench.preconditioners import Identity, State
from dipa_bench.solvers import REDFISTA
from dipa_bench.tasks.spectrum import matrix
from dipa_bench.testing import MethodContract, contracts, small_task
from dipa_bench.testing.problems import smoothing_prior

STRENGTH = 0.08


class TestContract(MethodContract):
    """With either metric as the default."""

    name = "weighted-proximal"

    @pytest.fixture(autouse=True, params=["scalar", "sr1"])
    def _of_metric(self, request, monkeypatch):
        field = WeightedProximalParameters.model_fields["metric"]
        monkeypatch.setattr(field, "default", request.param)
        monkeypatch.setattr(contracts, "fitted", contracts.fit)  # which knows one default


def solver_of(weight, iterations, **options):
    settings = {"strength": STRENGTH, "step": 1.0, "momentum": "none"} | options
    return WholeGradientRED(smoothing_prior(), weight=weight, iterations=iterations, **settings)


@pytest.fixture
def problem(from_matrix, smoother):
    """Strongly convex: A is 40 x 36 with condition number 100. A, W, y, the solution's equation."""
    random = np.random.default_rng(0)
    left, _ = np.linalg.qr(random.standard_normal((40, 36)))
    right, _ = np.linalg.qr(random.standard_normal((36, 36)))
    a = (left * np.logspace(0, -2, 36)) @ right
    w, y = smoother(6, 6, STRENGTH), random.standard_normal((3, 40))
    return a, w, y, from_matrix(a)


def fixed_point(a, w, y, weight):
    """A^T (A x - y) + lambda (x - W x) = 0 as a dense linear system, rows of images."""
    return np.linalg.solve(a.T @ a + weight * (np.eye(len(w)) - w), a.T @ y.T).T


def test_one_step_is_the_dense_proximal_point(problem):
    """prox^B_(a h)(z - a B^-1 lambda (z - D z)) with B = lambda I, from its definition."""
    a, w, y, physics = problem
    weight, step = 0.3, 0.7
    z = np.random.default_rng(1).standard_normal((3, 36))
    start = torch.from_numpy(z).view(-1, 1, 6, 6)
    operator = ProximalStep("scalar", weight, step, 200)
    solver = solver_of(weight, 1, start=lambda y: start)
    found = solver.run(torch.from_numpy(y), physics, operator).estimate.flatten(1)
    b = weight * np.eye(36)
    moved = z - step * np.linalg.solve(b, weight * (z - z @ w.T).T).T
    right = (y @ a) + (b / step @ moved.T).T
    expected = np.linalg.solve(a.T @ a + b / step, right.T).T
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_unit_step_is_the_fixed_point_method(problem):
    """(A^T A + lambda I) x+ = A^T y + lambda D(z)."""
    a, w, y, physics = problem
    z = y @ a
    operator = ProximalStep("scalar", 0.3, 1.0, 200)
    found = solver_of(0.3, 1).run(torch.from_numpy(y), physics, operator).estimate
    expected = np.linalg.solve(a.T @ a + 0.3 * np.eye(36), (y @ a + 0.3 * z @ w.T).T).T
    np.testing.assert_allclose(found.flatten(1), expected, atol=1e-9)


@pytest.mark.covering
@pytest.mark.parametrize("metric", ["scalar", "sr1"])
@pytest.mark.parametrize("inner", [2, pytest.param(12, marks=pytest.mark.exhaustive)])
def test_keeps_the_fixed_point(metric, inner, problem):
    """Started there it stays, however inexact the inner solve; started elsewhere it arrives."""
    a, w, y, physics = problem
    expected = torch.from_numpy(fixed_point(a, w, y, 0.05)).view(-1, 1, 6, 6)
    operator = ProximalStep(metric, 0.05, 1.0, inner)
    there = solver_of(0.05, 10, start=lambda y: expected)
    found = there.run(torch.from_numpy(y), physics, operator).estimate
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    far = solver_of(0.05, 1000).run(torch.from_numpy(y), physics, operator).estimate
    torch.testing.assert_close(far, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("metric", ["scalar", "sr1"])
def test_fewer_iterations_than_the_gradient_method(metric, problem):
    """What the proximal step is for: less than a tenth of RED's error after as many denoisers."""
    a, w, y, physics = problem
    expected = torch.from_numpy(fixed_point(a, w, y, 0.05)).view(-1, 1, 6, 6)
    measured = torch.from_numpy(y)
    found = solver_of(0.05, 30).run(measured, physics, ProximalStep(metric, 0.05, 1.0, 12))
    plain = REDFISTA(
        smoothing_prior(), weight=0.05, step=1.0, strength=STRENGTH, iterations=30, momentum="none"
    ).run(measured, physics, Identity())
    gap = (found.estimate - expected).norm()
    assert gap < 0.1 * (plain.estimate - expected).norm()


def secant_state(task, weight, seed=0):
    """A state with a memory, and RED's whole gradient there."""
    generator = torch.Generator().manual_seed(seed)
    point, before = (
        torch.rand(3, *task.shape, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    physics, measured = task.student, task.measure(task.images.validation.first(3))
    pulls = [weight * (each - task.prior(each, STRENGTH)) for each in (point, before)]
    residual = physics.A(point) - measured
    gradient = physics.A_adjoint(residual)
    state = State(1, point, point, measured, physics, before, residual, gradient, gradient)
    return State(**{**vars(state), "memory": pulls[1]}), gradient + pulls[0], pulls


def test_secant_metric():
    """B s = m for the change m of lambda (x - D x), where no safeguard acts; B > 0."""
    task = small_task("deblur", dtype=torch.float64)
    state, whole, pulls = secant_state(task, 0.4)
    operator = ProximalStep("sr1", 0.4, 1.0, 5)
    metric = operator.metric_at(whole, state)
    s = state.point - state.previous_point
    torch.testing.assert_close(0.4 * metric(s), pulls[0] - pulls[1], rtol=1e-8, atol=1e-10)
    eye = torch.eye(256, dtype=torch.float64).view(256, 1, 1, 16, 16)
    columns = [metric(each.expand(3, -1, -1, -1)).flatten(1) for each in eye]
    for image in torch.stack(columns, dim=2):
        torch.testing.assert_close(image, image.T)
        assert torch.linalg.eigvalsh(image)[0] > LEAST / 10


def test_metric_is_the_images_own():
    """The same alone as in a batch; an image that does not move has lambda I."""
    task = small_task("deblur", dtype=torch.float64)
    state, whole, _ = secant_state(task, 0.4)
    operator = ProximalStep("sr1", 0.4, 1.0, 5)
    before = state.previous_point.clone()
    before[2] = state.point[2]
    still = State(**{**vars(state), "previous_point": before})
    images = torch.rand(3, *task.shape, dtype=torch.float64)
    found = operator.metric_at(whole, still)(images)
    torch.testing.assert_close(found[2], images[2])
    torch.testing.assert_close(found[:2], operator.metric_at(whole, state)(images)[:2])
    fields = ("iterate", "point", "measurement", "previous_point", "residual", "gradient", "memory")
    alone = State(**{**vars(state), **{name: getattr(state, name)[1:2] for name in fields}})
    torch.testing.assert_close(operator.metric_at(whole[1:2], alone)(images[1:2]), found[1:2])
    torch.testing.assert_close(operator(whole[1:2], alone), operator(whole, state)[1:2])


@pytest.mark.parametrize("metric", ["scalar", "sr1"])
def test_counts_are_what_is_applied(metric, problem):
    """1 for the start, 2 for the gradient, 2 for each inner iteration, as the operator counts."""
    *_, y, physics = problem
    calls = physics.calls
    found = solver_of(0.1, 7).run(torch.from_numpy(y), physics, ProximalStep(metric, 0.1, 1.0, 4))
    assert found.operator_calls == physics.calls - calls == 1 + 7 * (2 + 2 * 4)
    assert found.denoiser_calls == 7


def test_fit_has_the_units_it_says(context):
    """B / a = lambda / step with lambda relative to lambda_max(A^T A)."""
    task = small_task("deblur", solver="red-fista", dtype=torch.float64)
    values = {"solve.weight": 0.2, "solve.step": 0.5, "solve.strength": STRENGTH}
    values |= {"solve.momentum": "none", "inner": 200}
    made = METHOD.fit(task, build(METHOD.parameters, values), context())
    measured = task.measure(task.images.validation)
    a = matrix(task.student, task.shape, torch.zeros(1).double()).numpy()
    weight = 0.2 * task.norm_squared()
    z = torch.from_numpy(measured.flatten(1).numpy() @ a).view(-1, *task.shape)
    pull = weight * (z - task.prior(z, STRENGTH)).flatten(1).numpy()
    x = z.flatten(1).numpy()
    whole = (x @ a.T - measured.flatten(1).numpy()) @ a + pull
    step = np.linalg.solve(a.T @ a + weight / 0.5 * np.eye(len(a.T)), whole.T).T
    state = made.solver.with_gradient(
        made.solver.start(measured, task.student, made.preconditioner)
    )
    found = made.solver.advance(state, made.preconditioner).iterate
    np.testing.assert_allclose(found.flatten(1), x - step, atol=1e-8)


@pytest.mark.parametrize("metric", ["scalar", "sr1"])
def test_stays_bounded_with_a_null_space(metric, context):
    """Super-resolution in single precision, over more iterations than a study's."""
    task = small_task(shape=(1, 24, 24), iterations=60, solver="red-fista")
    for known in ({}, METHOD.published(task)):
        values = defaults(METHOD.parameters, "red-fista", task) | known | {"metric": metric}
        made = METHOD.fit(task, build(METHOD.parameters, values), context())
        found = made.run(task.measure(task.images.validation), task.student).estimate
        assert (found - task.pixels(task.images.validation)).square().mean() < 0.1


def test_needs_red():
    """A reason that names the cure; published settings and ranges are there all the same."""
    task = small_task()
    assert "--set problem.solver=red-fista" in METHOD.unsuitable(task)
    assert METHOD.unsuitable(small_task(solver="red-fista")) is None
    METHOD.published(task)
    assert set(space(METHOD.parameters, "red-fista", task)) >= {"metric", "inner", "solve.step"}


def test_an_image_that_moved_by_rounding_has_the_scalar_metric():
    """B of another image of the batch stays; one made of rounding would be anything."""
    task = small_task("deblur", dtype=torch.float64)
    state, gradient, _ = secant_state(task, 0.3)
    v = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(9)).double()
    step = ProximalStep("sr1", 0.3, 1.0, 5)
    before = step.metric_at(gradient, state)(v)
    assert not torch.allclose(before[0], v[0])
    point = state.previous_point.clone()
    point[0] = state.point[0] * (1 + 4 * torch.finfo(torch.float64).eps)
    found = step.metric_at(gradient, replace(state, previous_point=point))(v)
    torch.testing.assert_close(found[0], v[0])
    torch.testing.assert_close(found[1:], before[1:])
