"""The closed forms from second moments: against the textbook formula and dense eigenvalues."""

import numpy as np
import pytest
import torch

from baselines.lmmse import MAP, METHOD, LMMSEPreconditionerParameters, covariance, too_large
from dipa_bench.learning import lmmse
from dipa_bench.methods import NoParameters
from dipa_bench.solvers import SolveParameters
from dipa_bench.tasks.spectrum import matrix
from dipa_bench.testing import small_task

TASKS = ["sr", "cs", "mri", "deblur"]


def fitted(task, context, damping=0.01, **solve):
    parameters = LMMSEPreconditionerParameters(
        solve=SolveParameters(strength=0.1, start="zero", **solve), damping=damping
    )
    return METHOD.fit(task, parameters, context())


def moments(task):
    """C, A and epsilon of damping 0.01 as numpy arrays."""
    images = task.pixels(task.images.train)
    c = covariance(task, images).numpy()
    a = matrix(task.student, task.shape, images).double().numpy()
    return c, a, 0.01 * task.largest() * np.diag(c).mean()


@pytest.mark.parametrize("name", TASKS)
def test_is_the_lmmse_gain_on_gradients(name, context):
    """P A^T = C A^T (A C A^T + eps I)^-1, and P itself is (A^T A + eps C^-1)^-1."""
    task = small_task(name, dtype=torch.float64)
    operator = fitted(task, context).preconditioner
    c, a, epsilon = moments(task)
    p = operator.matrix.numpy()
    gain = c @ a.T @ np.linalg.inv(a @ c @ a.T + epsilon * np.eye(len(a)))
    np.testing.assert_allclose(p @ a.T, gain, atol=1e-6 * np.abs(gain).max())
    np.testing.assert_allclose(
        p @ (a.T @ a + epsilon * np.linalg.inv(c)), np.eye(len(p)), atol=1e-6
    )


@pytest.mark.parametrize("name", TASKS)
def test_bound_is_the_largest_eigenvalue(name, context):
    """lambda_max(P A^T A) of the dense product."""
    task = small_task(name, dtype=torch.float64)
    operator = fitted(task, context).preconditioner
    _, a, _ = moments(task)
    true = np.linalg.eigvals(operator.matrix.numpy() @ a.T @ a).real.max()
    assert operator.spectral_bound(task.largest()) == pytest.approx(true, rel=1e-6)


def test_one_step_from_the_mean_is_the_lmmse_estimate(context):
    """Without prior and at an absolute step of 1, x_1 = mean + C A^T (...)^-1 (y - A mean)."""
    task = small_task("sr", dtype=torch.float64, iterations=1)
    made = fitted(task, context, step=1.0, momentum="none", units="absolute")
    mean = task.pixels(task.images.train).mean(0, keepdim=True)
    y = task.measure(task.images.validation)
    direction = made.preconditioner(task.student.A_adjoint(task.student.A(mean) - y), None)
    c, a, epsilon = moments(task)
    gain = c @ a.T @ np.linalg.inv(a @ c @ a.T + epsilon * np.eye(len(a)))
    residual = (y - task.student.A(mean)).flatten(1).numpy()
    expected = mean.flatten(1).numpy() + residual @ gain.T
    np.testing.assert_allclose((mean - direction).flatten(1).numpy(), expected, atol=1e-6)


def test_the_map_is_the_start_of_the_same_name(context):
    """The control is the LMMSE map that `solve.start=lmmse` begins with."""
    task = small_task("cs")
    y = task.measure(task.images.validation)
    found = MAP.fit(task, NoParameters(), context()).run(y, task.student)
    torch.testing.assert_close(found.estimate, lmmse.fit(task)(y))
    assert (found.operator_calls, found.denoiser_calls) == (0, 0)


def test_large_images_are_skipped():
    """Above 4096 numbers an image the reason says how many there are."""
    task = small_task("mri", (1, 64, 64), count=1)
    assert "8192 numbers" in too_large(task)
    assert too_large(small_task("mri")) is None
