"""Eigenvalues of A^T A for operators of every form."""

import numpy as np
import pytest
import torch

from dipa_bench.errors import UserError
from dipa_bench.tasks import spectrum
from dipa_bench.tasks.spectrum import largest_eigenvalue, matrix, onto_range
from dipa_bench.testing.problems import small_task


@pytest.mark.parametrize(("rows", "side"), [(40, 4), (16, 4), (10, 8), (5, 8), (3, 2), (1, 3)])
def test_tall_wide_and_tiny(from_matrix, rows, side):
    """Lanczos on the smaller Gram matrix, and the dense way below nine rows."""
    a = np.random.default_rng(rows).standard_normal((rows, side**2))
    found = largest_eigenvalue(from_matrix(a), (1, side, side), "cpu", torch.float64)
    assert found == pytest.approx(np.linalg.norm(a, 2) ** 2, rel=1e-6)


def test_complex_measurements(from_matrix):
    """On real images the operator is Re(M^H M)."""
    rng = np.random.default_rng(0)
    m = rng.standard_normal((6, 16)) + 1j * rng.standard_normal((6, 16))
    found = largest_eigenvalue(from_matrix(m), (1, 4, 4), "cpu", torch.float64)
    assert found == pytest.approx(np.linalg.eigvalsh((m.conj().T @ m).real)[-1], rel=1e-6)


def test_zero_operator(from_matrix):
    """An operator that measures nothing has no positive eigenvalue."""
    assert largest_eigenvalue(from_matrix(np.zeros((3, 16))), (1, 4, 4), "cpu") == 0


def test_matrix_is_the_operator(from_matrix):
    """Column j is A e_j, in the wanted dtype, also beyond one block of columns."""
    a = np.random.default_rng(0).standard_normal((7, 400))
    found = matrix(from_matrix(a), (1, 20, 20), torch.zeros(1, dtype=torch.float64))
    np.testing.assert_array_equal(found, a)


def test_deepinvs_power_iteration_is_not_good_enough():
    """The trap this module avoids: at its defaults deepinv is 1% or more too low on sr x4."""
    task = small_task(shape=(1, 32, 32))
    true = np.linalg.norm(matrix(task.student, task.shape, torch.zeros(1)).double(), 2) ** 2
    torch.manual_seed(0)
    theirs = task.student.compute_sqnorm(torch.zeros(1, 1, 32, 32), verbose=False).item()
    assert theirs < 0.99 * true
    assert abs(task.norm_squared() / true - 1) < 1e-6


@pytest.mark.parametrize("name", ["sr", "cs", "deblur"])
@pytest.mark.parametrize("shape", [(1, 16, 16), (1, 16, 32)])
def test_values_known_in_closed_form(name, shape):
    """What a physics says of itself is what its matrix has."""
    task = small_task(name, shape, dtype=torch.float64)
    for physics in (task.student, task.teacher(task.labels[-1])):
        dense = matrix(physics, shape, torch.zeros(1, dtype=torch.float64)).numpy()
        largest = np.linalg.svd(dense)[1][0] ** 2
        assert physics.largest_eigenvalue == pytest.approx(largest, rel=1e-9)
        assert largest_eigenvalue(physics, shape) == physics.largest_eigenvalue


def test_operators_that_break_down(from_matrix):
    """Zero has the eigenvalue 0; values that are not finite are the user's to mend."""
    assert largest_eigenvalue(from_matrix(np.zeros((16, 16))), (1, 4, 4), "cpu") == 0
    with pytest.raises(UserError, match="not finite: mend it"):
        largest_eigenvalue(from_matrix(np.full((16, 16), np.nan)), (1, 4, 4), "cpu")


@pytest.mark.parametrize("name", ["sr", "cs", "deblur", "mri"])
def test_the_projection_is_that_of_the_pseudo_inverse(name):
    """A^+ A from numpy's pseudo-inverse, with and without a dense A."""
    task = small_task(name, (1, 16, 16), dtype=torch.float64)
    dense = matrix(task.student, task.shape, torch.zeros(1, dtype=torch.float64)).numpy()
    images = torch.randn(3, *task.shape, dtype=torch.float64)
    expected = images.flatten(1).numpy() @ (np.linalg.pinv(dense, rcond=1e-3) @ dense).T
    np.testing.assert_allclose(task.onto_range(images).flatten(1), expected, atol=1e-9)


@pytest.mark.parametrize("rows", [6, 30])
def test_what_a_matrix_sees(from_matrix, rows, monkeypatch):
    """Of low rank, wide and tall; above the limit it is not known."""
    rng = np.random.default_rng(0)
    a = rng.standard_normal((rows, 4)) @ rng.standard_normal((4, 16))
    like = torch.zeros(1, dtype=torch.float64)
    largest = np.linalg.norm(a, 2) ** 2
    found = onto_range(from_matrix(a), (1, 4, 4), like, largest)
    images = torch.from_numpy(rng.standard_normal((2, 1, 4, 4)))
    expected = images.flatten(1).numpy() @ np.linalg.pinv(a) @ a
    np.testing.assert_allclose(found(images).flatten(1), expected, atol=1e-9)
    for name, limit in (("LARGEST", 5), ("PIXELS", 15)):
        with monkeypatch.context() as smaller:
            smaller.setattr(spectrum, name, limit)
            assert onto_range(from_matrix(a), (1, 4, 4), like, largest) is None
