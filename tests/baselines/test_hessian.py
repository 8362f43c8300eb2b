"""(A^T A + mu I)^-1 against dense solves."""

import numpy as np
import pytest
import torch

from baselines.hessian import METHOD, InverseHessian, has_closed_form
from dipa_bench.parameters import build
from dipa_bench.preconditioners import State
from dipa_bench.solvers import PnPFISTA
from dipa_bench.testing.problems import small_task, smoothing_prior


def applied(task, mu, gradient):
    measured = task.student.A(torch.zeros_like(gradient))
    state = State(0, gradient, gradient, measured, task.student)
    return InverseHessian(mu)(gradient, state)


def problem(dense_sr, factor, shape=(1, 16, 16), dtype=torch.float64):
    """The task, A^T A and three random gradients."""
    task = small_task(shape=shape, dtype=dtype, options={"factor": factor}, count=1)
    a = dense_sr(*shape[1:], factor)
    g = np.random.default_rng(factor).standard_normal((3, *shape))
    return task, a.T @ a, g


def relative(found, expected):
    found = found.flatten(1).double().numpy()
    gap = np.linalg.norm(found - expected, axis=1)
    return (gap / np.linalg.norm(expected, axis=1)).max()


def solved(normal, mu, g):
    return np.linalg.solve(normal + mu * np.eye(len(normal)), g.reshape(len(g), -1).T).T


@pytest.mark.parametrize("mu", [1e-4, 1e-2, 3.0])
@pytest.mark.parametrize("shape", [(1, 16, 16), (1, 12, 24)])
@pytest.mark.parametrize("factor", [4, 2])
def test_closed_form(dense_sr, factor, shape, mu):
    """Dividing factors: to 1e-8 of the dense solve in float64, oblong images included."""
    task, normal, g = problem(dense_sr, factor, shape)
    assert has_closed_form(task.student, shape)
    found = applied(task, mu, torch.from_numpy(g))
    assert relative(found, solved(normal, mu, g)) < 1e-8


def test_closed_form_in_single_precision(dense_sr):
    """Looser in float32, and the result stays float32."""
    task, normal, g = problem(dense_sr, 4, dtype=torch.float32)
    found = applied(task, 1e-2, torch.from_numpy(g).float())
    assert found.dtype == torch.float32
    assert relative(found, solved(normal, 1e-2, g)) < 1e-5


@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-4), (torch.float32, 3e-4)])
@pytest.mark.parametrize("mu", [1e-3, 1e-1])
def test_conjugate_gradients(dense_sr, mu, dtype, close):
    """A factor that does not divide the size has no closed form; CG is as good."""
    task, normal, g = problem(dense_sr, 3, dtype=dtype)
    assert not has_closed_form(task.student, task.shape)
    found = applied(task, mu, torch.from_numpy(g).to(dtype))
    assert relative(found, solved(normal, mu, g)) < close


@pytest.mark.parametrize("scale", [1e-6, 1e-10, 1e6])
@pytest.mark.parametrize("factor", [3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_homogeneous(dense_sr, dtype, factor, scale):
    """P(c g) = c P(g) for gradients of any size: no absolute epsilon shrinks the small ones."""
    task, normal, g = problem(dense_sr, factor, dtype=dtype)
    found = applied(task, 1e-3, scale * torch.from_numpy(g).to(dtype)) / scale
    assert relative(found, solved(normal, 1e-3, g)) < 3e-4


def test_one_tiny_gradient_in_a_batch(dense_sr):
    """Each image has its own scale; a zero gradient stays zero instead of NaN."""
    task, normal, g = problem(dense_sr, 3)
    scales = np.array([1.0, 1e-9, 0.0]).reshape(3, 1, 1, 1)
    found = applied(task, 1e-3, torch.from_numpy(scales * g))
    assert relative(found[:2], solved(normal, 1e-3, (scales * g)[:2])) < 1e-4
    assert (found[2] == 0).all()


@pytest.mark.parametrize("factor", [4, 3, 2])
@pytest.mark.parametrize("mu", [1e-3, 1.0])
def test_spectral_bound(dense_sr, factor, mu):
    """lambda_max of the dense (A^T A + mu I)^-1 A^T A."""
    task, normal, _ = problem(dense_sr, factor)
    product = np.linalg.solve(normal + mu * np.eye(len(normal)), normal)
    true = np.linalg.eigvalsh((product + product.T) / 2)[-1]  # symmetric: functions of A^T A
    assert InverseHessian(mu).spectral_bound(task.norm_squared()) == pytest.approx(true, rel=1e-6)


@pytest.mark.parametrize("factor", [4, 3])
def test_much_damping_is_no_preconditioner(dense_sr, factor):
    """mu P -> I as mu grows."""
    task, _, g = problem(dense_sr, factor)
    found = 1e6 * applied(task, 1e6, torch.from_numpy(g))
    assert relative(found, g.reshape(3, -1)) < 1e-6


@pytest.mark.parametrize(("factor", "close"), [(4, 1e-10), (3, 1e-4)])
def test_is_half_quadratic_splitting(dense_sr, smoother, factor, close):
    """Step 1 without momentum: x+ = D(argmin 1/2||A x - y||^2 + mu/2 ||x - z||^2), DPIR's step."""
    mu, count = 0.02, 4
    task = small_task(shape=(1, 12, 16), dtype=torch.float64, options={"factor": factor}, count=2)
    a, w = dense_sr(12, 16, factor), smoother(12, 16, 0.08)
    measured = task.measure(task.images.train)
    solver = PnPFISTA(smoothing_prior(), step=1.0, strength=0.08, iterations=count, momentum="none")
    found = solver.run(measured, task.student, InverseHessian(mu)).estimate
    system = a.T @ a + mu * np.eye(a.shape[1])
    for y, image in zip(measured.flatten(1).numpy(), found, strict=True):
        x = a.T @ y
        for _ in range(count):
            x = w @ np.linalg.solve(system, a.T @ y + mu * x)
        np.testing.assert_allclose(image.ravel(), x, rtol=0, atol=close)


def test_fit_scales_damping_and_step(context):
    """mu is relative to lambda_max(A^T A); the step to lambda_max(P A^T A) = L / (L + mu)."""
    task = small_task(dtype=torch.float64)
    values = {"mu": 0.25, "solve.step": 0.5, "solve.strength": 0.1}
    made = METHOD.fit(task, build(METHOD.parameters, values), context())
    largest = task.norm_squared()
    assert made.preconditioner.mu == pytest.approx(0.25 * largest)
    assert made.solver.step_size == pytest.approx(0.5 * 1.25)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_conjugate_gradients_stop_by_themselves(from_matrix, dense_sr, dtype):
    """At most a hundred of the 500 iterations: no epsilon keeps the residual from vanishing."""
    physics = from_matrix(dense_sr(16, 16, 3).astype(str(dtype).removeprefix("torch.")))
    gradient = torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(0), dtype=dtype)
    measured = physics.A(gradient)
    physics.calls = 0
    InverseHessian(1e-3)(gradient, State(0, gradient, gradient, measured, physics))
    assert 4 < physics.calls <= 2 * 100
