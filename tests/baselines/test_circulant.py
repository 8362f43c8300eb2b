"""F* (d + mu)^-1 F against dense Fourier matrices."""

import numpy as np
import pytest
import torch

from baselines import circulant
from baselines.circulant import METHOD, Circulant, fourier_diagonal
from baselines.hessian import HessianParameters, InverseHessian
from dipa_bench.parameters import build, defaults
from dipa_bench.tasks.spectrum import matrix
from dipa_bench.testing import small_task
from dipa_bench.testing.contracts import linearised


def normal_matrix(task):
    a = matrix(task.student, task.shape, torch.zeros(1, dtype=torch.float64)).numpy()
    return a.T @ a


def fourier(height, width):
    """The unitary two-dimensional Fourier matrix."""
    rows, columns = (np.fft.fft(np.eye(n), norm="ortho") for n in (height, width))
    return np.kron(rows, columns)


@pytest.mark.parametrize("shape", [(1, 16, 16), (1, 12, 20)])
def test_is_the_hessian_where_exact(shape):
    """On circular blurs, to rounding, the bound included."""
    task = small_task("deblur", shape=shape, dtype=torch.float64)
    operator = circulant.build(task, HessianParameters(mu=0.02))
    assert operator.measured is None
    state, other = linearised(task), InverseHessian(0.02 * task.norm_squared())
    torch.testing.assert_close(operator(state.gradient, state), other(state.gradient, state))
    assert operator.spectral_bound(task.norm_squared()) == other.spectral_bound(task.norm_squared())


def test_probes_estimate_the_diagonal(monkeypatch):
    """Unbiased: many probes come near diag(F A^T A F*), few only roughly."""
    monkeypatch.setattr(circulant, "PROBES", 4096)
    task = small_task(shape=(1, 12, 16), dtype=torch.float64)
    f = fourier(12, 16)
    expected = np.diag(f @ normal_matrix(task) @ f.conj().T).real
    found, exact = fourier_diagonal(task, seed=0)
    assert not exact
    np.testing.assert_allclose(found.ravel(), expected, atol=0.06 * expected.max())


def test_application():
    """Against the dense matrices, on an oblong image."""
    task = small_task(shape=(1, 12, 20), dtype=torch.float64)
    operator = circulant.build(task, HessianParameters(mu=0.1))
    f = fourier(12, 20)
    expected = (f.conj().T / (operator.spectrum.numpy().ravel() + operator.mu)) @ f
    found = operator.dense(task.shape, linearised(task)).numpy()
    np.testing.assert_allclose(found, expected.real, atol=1e-12 * np.abs(found).max())
    assert np.abs(expected.imag).max() < 1e-12 * np.abs(found).max()


def test_root():
    """Twice P^(1/2) is P."""
    task = small_task(dtype=torch.float64)
    operator, state = circulant.build(task, HessianParameters()), linearised(task)
    twice = operator.root(operator.root(state.gradient))
    torch.testing.assert_close(twice, operator(state.gradient, state))


def test_measured_bound():
    """lambda_max of the dense P A^T A, which is not symmetric."""
    task = small_task(dtype=torch.float64)
    operator = circulant.build(task, HessianParameters(mu=0.01))
    product = operator.dense(task.shape, linearised(task)).numpy() @ normal_matrix(task)
    true = np.linalg.eigvals(product).real.max()
    assert operator.measured == pytest.approx(true, rel=1e-3)


def test_complex_images():
    """Single-coil MRI measures Fourier coefficients: d is its mask, and P is exact."""
    task = small_task("mri", shape=(1, 16, 16), dtype=torch.float64)
    operator = circulant.build(task, HessianParameters())
    assert operator.measured is None
    state, other = linearised(task), InverseHessian(operator.mu)
    torch.testing.assert_close(operator(state.gradient, state), other(state.gradient, state))


def test_much_damping_is_no_preconditioner():
    """mu P -> I as mu grows."""
    task = small_task(dtype=torch.float64)
    state, operator = linearised(task), Circulant(fourier_diagonal(task, 0)[0], 1e9)
    torch.testing.assert_close(1e9 * operator(state.gradient, state), state.gradient)


def test_fit_is_of_its_seed(context):
    """The probes are the context's; the step is relative to the measured bound."""
    task = small_task(dtype=torch.float64)
    made = [METHOD.fit(task, HessianParameters(), context(seed)) for seed in (0, 0, 1)]
    spectra = [each.preconditioner.spectrum for each in made]
    assert torch.equal(spectra[0], spectra[1])
    assert not torch.equal(spectra[0], spectra[2])
    assert made[0].solver.step_size == pytest.approx(1 / made[0].preconditioner.measured)


@pytest.mark.parametrize("solver", ["pnp-fista", "red-fista"])
def test_published_point_is_stable(solver, context):
    """Far from circulant, with the published momentum: the error stays that of an image."""
    task = small_task(shape=(1, 24, 24), iterations=40, solver=solver)
    values = defaults(METHOD.parameters, solver, task) | METHOD.published(task)
    made = METHOD.fit(task, build(METHOD.parameters, values), context())
    found = made.run(task.measure(task.images.validation), task.student).estimate
    error = (found - task.pixels(task.images.validation)).square().mean()
    assert error < 0.05
