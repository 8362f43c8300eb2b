"""Observed linear rates of preconditioned iterations against spectral radii."""

import numpy as np
import pytest
import torch
from deepinv.physics import DecomposablePhysics
from scipy.special import eval_chebyt

from baselines.hessian import InverseHessian
from baselines.polynomial import Polynomial, recurrence
from dipa_bench.preconditioners import Identity, Preconditioner
from dipa_bench.priors.base import SIGMA, Prior
from dipa_bench.solvers import REDFISTA, PnPFISTA

SIDE = 6
SIZE = SIDE**2
MU, LOWER, WEIGHT = 0.1, 1 / 30, 0.3
EIGENVALUES = np.array([0.02, *np.linspace(0.2, 1, SIZE - 1)])  # of A^T A; one is far below
KEPT = np.array([0.95, *np.linspace(0.9, 0.5, SIZE - 1)])  # of D, in the same basis
ROTATION = np.linalg.qr(np.random.default_rng(0).standard_normal((SIZE, SIZE)))[0]
STEP = 0.9
TRUTH = np.random.default_rng(2).standard_normal((1, SIZE))
ITERATIONS = 53  # the slowest mode alone is left, and far above rounding


class Matrix(Preconditioner):
    """A dense P."""

    def __init__(self, matrix):
        super().__init__()
        self.matrix = torch.from_numpy(matrix)

    def forward(self, gradient, state):
        return (gradient.flatten(1) @ self.matrix.T).view_as(gradient)


class Diagonal(DecomposablePhysics):
    """y = sqrt(eigenvalues) x: deepinv's closed forms apply."""

    def __init__(self):
        mask = torch.from_numpy(np.sqrt(EIGENVALUES)).view(1, 1, SIDE, SIDE)
        super().__init__(mask=mask)


def positive():
    """A symmetric positive definite matrix that commutes with nothing here."""
    noise = np.random.default_rng(1).standard_normal((SIZE, SIZE))
    return np.eye(SIZE) + 0.02 * (noise + noise.T)


def of_normal(h, function):
    """function(A^T A) of a symmetric matrix."""
    values, vectors = np.linalg.eigh(h)
    return (vectors * function(values)) @ vectors.T


def chebyshev(t):
    """The p of degree 3 with the least maximum of |1 - t p(t)| on [LOWER, 1]."""

    def shifted(u):
        return eval_chebyt(4, (1 + LOWER - 2 * u) / (1 - LOWER))

    return (1 - shifted(t) / shifted(0)) / t


OPERATORS = {
    "identity": (Identity, lambda h: np.eye(SIZE)),
    "hessian": (lambda: InverseHessian(MU), lambda h: np.linalg.inv(h + MU * np.eye(SIZE))),
    "l2": (
        lambda: Polynomial(recurrence("l2", 2, LOWER), 1.0),
        lambda h: 7.5 * np.eye(SIZE) - 15 * h + 8.75 * h @ h,
    ),
    "chebyshev": (
        lambda: Polynomial(recurrence("chebyshev", 3, LOWER), 1.0),
        lambda h: of_normal(h, chebyshev),
    ),
    "dense": (lambda: Matrix(positive()), lambda h: positive()),
}


def linear_prior(matrix):
    """v -> D v."""
    weights = torch.from_numpy(matrix)
    return Prior("linear", SIGMA, lambda v, sigma: (v.flatten(1) @ weights.T).view_as(v))


def observed(solver, physics, preconditioner, truth):
    """||x_K - x_(K-1)|| / ||x_(K-1) - x_(K-2)|| of each image."""
    measurement = physics.A(torch.from_numpy(truth).view(-1, 1, SIDE, SIDE))
    found = solver.run(measurement, physics, preconditioner, record=["step_norm"])
    last = found.curves.step_norm
    return (last[-1] / last[-2]).numpy()


def pnp(d, iterations):
    """PnP-FISTA without momentum."""
    options = {"strength": 0.1, "momentum": "none", "start": "zero"}
    return PnPFISTA(linear_prior(d), step=STEP, iterations=iterations, **options)


def red(d, iterations):
    """RED-FISTA without momentum."""
    options = {"strength": 0.1, "momentum": "none", "start": "zero"}
    return REDFISTA(linear_prior(d), weight=WEIGHT, step=STEP, iterations=iterations, **options)


def radius(matrix):
    """The spectral radius, far enough from the rest of the spectrum to be seen."""
    values = np.sort(np.abs(np.linalg.eigvals(matrix)))
    assert values[-2] < 0.95 * values[-1]
    return values[-1]


@pytest.fixture(params=["rotated", "diagonal"])
def problem(request, from_matrix):
    """A, A^T A and the basis in which both it and D are diagonal."""
    if request.param == "diagonal":
        return Diagonal(), np.diag(EIGENVALUES), np.eye(SIZE)
    matrix = ROTATION * np.sqrt(EIGENVALUES) @ ROTATION.T
    return from_matrix(matrix), matrix.T @ matrix, ROTATION


def prior_matrix(basis, shrinks):
    """D."""
    return (basis * KEPT) @ basis.T if shrinks else np.eye(SIZE)


@pytest.mark.parametrize("shrinks", [False, True], ids=["no prior", "shrinkage"])
@pytest.mark.parametrize("name", OPERATORS)
def test_pnp_converges_at_the_spectral_radius(problem, name, shrinks):
    """That of D (I - alpha P A^T A)."""
    physics, h, basis = problem
    make, dense = OPERATORS[name]
    d = prior_matrix(basis, shrinks)
    expected = radius(d @ (np.eye(SIZE) - STEP * dense(h) @ h))
    found = observed(pnp(d, ITERATIONS), physics, make(), TRUTH)
    assert found[0] == pytest.approx(expected, rel=2e-4)


@pytest.mark.parametrize("name", OPERATORS)
def test_red_converges_at_the_spectral_radius(problem, name):
    """That of I - alpha (P A^T A + lambda (I - D))."""
    physics, h, basis = problem
    make, dense = OPERATORS[name]
    d = prior_matrix(basis, True)
    expected = radius(np.eye(SIZE) - STEP * (dense(h) @ h + WEIGHT * (np.eye(SIZE) - d)))
    found = observed(red(d, ITERATIONS), physics, make(), TRUTH)
    assert found[0] == pytest.approx(expected, rel=2e-4)


@pytest.mark.parametrize("shrinks", [False, True], ids=["no prior", "shrinkage"])
@pytest.mark.parametrize("name", OPERATORS)
def test_every_mode_has_its_eigenvalue(problem, name, shrinks):
    """Images whose first step D P A^T A x is an eigenvector of D (I - alpha P A^T A)."""
    physics, h, basis = problem
    make, dense = OPERATORS[name]
    d = prior_matrix(basis, shrinks)
    values, vectors = np.linalg.eig(d @ (np.eye(SIZE) - STEP * dense(h) @ h))
    assert not np.iscomplexobj(values)
    truth = np.linalg.solve(d @ dense(h) @ h, vectors).T
    found = observed(pnp(d, 2), physics, make(), truth.copy())
    np.testing.assert_allclose(found, np.abs(values), rtol=1e-4, atol=1e-5)
