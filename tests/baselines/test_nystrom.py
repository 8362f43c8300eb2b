"""The Nystrom preconditioner against dense eigenvalue decompositions."""

import numpy as np
import pytest
import torch

from baselines import nystrom
from baselines.nystrom import METHOD, NystromParameters, approximate
from dipa_bench.tasks.spectrum import matrix
from dipa_bench.testing import small_task
from dipa_bench.testing.contracts import linearised


def normal_matrix(task):
    a = matrix(task.student, task.shape, torch.zeros(1, dtype=torch.float64)).numpy()
    return a.T @ a


def product_of(operator, task):
    return operator.dense(task.shape, linearised(task)).numpy() @ normal_matrix(task)


def test_formula():
    """P v against the published formula with dense matrices."""
    task = small_task("deblur", shape=(1, 10, 12), dtype=torch.float64)
    operator = nystrom.build(task, NystromParameters(rank=10, mu=0.03))
    u, values = operator.vectors.numpy(), operator.values.numpy()
    np.testing.assert_allclose(u.T @ u, np.eye(10), atol=1e-12)
    assert (np.diff(values) <= 0).all()
    least = values[-1] + operator.mu
    expected = ((u * (least / (values + operator.mu))) @ u.T + np.eye(120) - u @ u.T) / least
    found = operator.dense(task.shape, linearised(task)).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-12 / operator.mu)


def test_approximation_is_below():
    """0 <= U Lambda U^T <= A^T A, Nystrom's property, and near it in the leading directions."""
    task = small_task("deblur", shape=(1, 10, 12), dtype=torch.float64)
    vectors, values = approximate(task, 30, seed=0)
    normal = normal_matrix(task)
    gap = np.linalg.eigvalsh(normal - (vectors * values).numpy() @ vectors.numpy().T)
    assert gap[0] > -1e-10
    true = np.linalg.eigvalsh(normal)[::-1]
    assert gap[-1] < 3 * true[20]
    assert float(values[0]) == pytest.approx(true[0], rel=1e-3)


@pytest.mark.parametrize("rank", [120, 1000])
def test_full_rank_is_the_inverse(rank):
    """r = n (and more, which is cut to n): (A^T A + mu I)^-1."""
    task = small_task("deblur", shape=(1, 10, 12), dtype=torch.float64)
    operator = nystrom.build(task, NystromParameters(rank=rank, mu=0.01))
    expected = np.linalg.inv(normal_matrix(task) + operator.mu * np.eye(120))
    found = operator.dense(task.shape, linearised(task)).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6 * expected.max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rank_beyond_that_of_the_operator(dtype):
    """64 columns for the 16 measurements of an operator: finite, and the inverse again."""
    task = small_task("sr", dtype=dtype)
    operator = nystrom.build(task, NystromParameters(rank=64, mu=0.1))
    a = matrix(task.student, task.shape, torch.zeros(1, dtype=dtype)).double().numpy()
    expected = np.linalg.inv(a.T @ a + operator.mu * np.eye(256))
    found = operator.dense(task.shape, linearised(task)).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4 * expected.max())


@pytest.mark.parametrize("name", ["sr", "deblur", "mri"])
def test_measured_bound(name):
    """lambda_max of the dense P A^T A, which is not symmetric."""
    task = small_task(name, dtype=torch.float64)
    operator = nystrom.build(task, NystromParameters(rank=12, mu=0.01))
    true = np.linalg.eigvals(product_of(operator, task)).real.max()
    assert operator.spectral_bound(task.norm_squared()) == pytest.approx(true, rel=1e-3)


def test_much_damping_is_no_preconditioner():
    """mu P -> I as mu grows."""
    task = small_task(dtype=torch.float64)
    state, operator = linearised(task), nystrom.build(task, NystromParameters(mu=1e9))
    found = operator.mu * operator(state.gradient, state)
    torch.testing.assert_close(found, state.gradient)


def test_fit_is_of_its_seed(context):
    """The sketch is the context's; the step is relative to the measured bound."""
    task = small_task("deblur", dtype=torch.float64)
    parameters = NystromParameters(rank=8)
    made = [METHOD.fit(task, parameters, context(seed)) for seed in (0, 0, 1)]
    values = [each.preconditioner.values for each in made]
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])
    assert made[0].solver.step_size == pytest.approx(1 / made[0].preconditioner.measured)
