"""The schedule from back-projection to least squares against dense matrices."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from baselines import backprojection
from baselines.backprojection import METHOD, BackProjectionParameters, schedule
from baselines.hessian import InverseHessian
from dipa_bench.tasks.spectrum import matrix
from dipa_bench.testing import small_task
from dipa_bench.testing.contracts import linearised


def normal_matrix(task):
    a = matrix(task.student, task.shape, torch.zeros(1, dtype=torch.float64)).numpy()
    return a.T @ a


def test_schedule():
    """The source's products of 1 - beta_t at its times, newest first, then 1."""
    found = schedule(10, 3.0).numpy()
    betas = np.linspace(1e-4, 0.02, 1000)
    expected = [np.prod(1 - betas[: 100 * (8 - k) + 1]) ** 3 for k in range(9)] + [1.0]
    np.testing.assert_allclose(found, expected)


@pytest.mark.parametrize("iterations", [1, 2, 7, 10, 100, 1000])
def test_schedule_rises_to_one(iterations):
    """Least squares alone at the end, for any number of iterations."""
    found = schedule(iterations, 1.0)
    assert len(found) == iterations
    assert (found.diff() > 0).all()
    assert found[-1] == 1
    assert (found > 0).all()


@pytest.mark.parametrize("factor", [4, 3])
@pytest.mark.parametrize("iteration", [0, 2, 3, 9])
def test_application(iteration, factor):
    """The convex combination with dense matrices, repeated beyond the last iteration."""
    task = small_task(dtype=torch.float64, options={"factor": factor}, iterations=4)
    operator = backprojection.build(task, BackProjectionParameters(mu=0.02, gamma=0.5))
    state = replace(linearised(task), iteration=iteration)
    weight, largest = schedule(4, 0.5)[min(iteration, 3)].item(), task.norm_squared()
    inverse = np.linalg.inv(normal_matrix(task) + 0.02 * largest * np.eye(256))
    p = (1 - weight) * inverse + weight / largest * np.eye(256)
    expected = state.gradient.flatten(1).numpy() @ p
    found = operator(state.gradient, state).flatten(1).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_ends():
    """First nearly the regularised inverse, last the scaled gradient."""
    task = small_task(dtype=torch.float64)
    operator = backprojection.build(task, BackProjectionParameters(gamma=100.0))
    state = linearised(task)
    first, last = (replace(state, iteration=k) for k in (0, 3))
    other = InverseHessian(operator.inverse.mu)
    torch.testing.assert_close(operator(state.gradient, first), other(state.gradient, state))
    torch.testing.assert_close(operator(state.gradient, last), state.gradient / task.norm_squared())


@pytest.mark.parametrize("mu", [1e-3, 1.0])
def test_bound_holds_in_every_iteration(mu):
    """lambda_max of the dense P_k A^T A never exceeds it, and reaches it in the last."""
    task = small_task(dtype=torch.float64)
    operator = backprojection.build(task, BackProjectionParameters(mu=mu, gamma=1.0))
    bound, normal = operator.spectral_bound(task.norm_squared()), normal_matrix(task)
    for k in range(4):
        state = replace(linearised(task), iteration=k)
        product = operator.dense(task.shape, state).numpy() @ normal
        found = np.linalg.eigvals(product).real.max()
        assert found <= bound * (1 + 1e-6)
    assert found == pytest.approx(bound, rel=1e-6)


def test_fit(context):
    """A schedule of the task's iterations; counts are those of the inner solves."""
    task = small_task(iterations=5)
    made = METHOD.fit(task, BackProjectionParameters.model_validate(settings()), context())
    assert len(made.preconditioner.weights) == 5
    assert made.preconditioner.operator_calls == 1
    run = made.run(task.measure(task.images.validation), task.student)
    assert run.operator_calls == 1 + 3 * 5
    iterative = small_task(options={"factor": 3})
    made = METHOD.fit(iterative, BackProjectionParameters.model_validate(settings()), context())
    assert made.preconditioner.operator_calls > 1


def settings():
    return {"solve": {"strength": 0.05}}
