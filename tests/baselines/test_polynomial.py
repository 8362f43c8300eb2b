"""Polynomials of A^T A against their closed forms, dense matrices and quadrature."""

from dataclasses import replace
from fractions import Fraction
from math import comb

import numpy as np
import pytest
import torch
from scipy.special import eval_chebyt, eval_chebyu, eval_jacobi

from baselines import identity
from baselines.polynomial import FAMILIES, METHOD, PolynomialParameters, recurrence
from baselines.polynomial import build as operator_for
from dipa_bench.parameters import build
from dipa_bench.tasks.base import Operators
from dipa_bench.tasks.spectrum import matrix
from dipa_bench.testing import small_task
from dipa_bench.testing.contracts import linearised

LOWER = 1 / 30
T = np.linspace(0, 1, 2001)

L2 = {
    0: (Fraction(3, 2),),
    1: (4, Fraction(-10, 3)),
    2: (Fraction(15, 2), -15, Fraction(35, 4)),
    3: (12, -42, 56, Fraction(-126, 5)),
    4: (Fraction(35, 2), Fraction(-280, 3), 210, -210, 77),
}


def residual(family, degree, t, lower=LOWER):
    """r(t) = 1 - t p(t)."""
    return 1 - recurrence(family, degree, lower).gain(t)


def monomials(polynomial):
    """Coefficients of p in rational arithmetic, from the floats of its recurrence."""
    count = len(polynomial.steps) + 1

    def shifted(v):
        return np.array([Fraction(0), *v[:-1]], dtype=object)

    g = np.array([Fraction(1)] + [Fraction(0)] * (count - 1), dtype=object)
    exact = replace(
        polynomial,
        first=Fraction(polynomial.first).limit_denominator(10**6),
        steps=tuple(
            tuple(Fraction(value).limit_denominator(10**6) for value in pair)
            for pair in polynomial.steps
        ),
    )
    return exact(shifted, g)


@pytest.mark.parametrize("degree", L2)
def test_l2_coefficients(degree):
    """The rational ones of the literature, exactly, and their closed form."""
    found = monomials(recurrence("l2", degree, LOWER))
    n = degree + 1
    closed = [
        Fraction((-1) ** k * comb(n, k + 1) * comb(n + k + 2, k + 1), k + 2) for k in range(n)
    ]
    assert list(found) == list(L2[degree]) == closed


@pytest.mark.parametrize("degree", [*L2, 8])
def test_neumann_coefficients(degree):
    """(-1)^k C(d + 1, k + 1), exactly."""
    found = monomials(recurrence("neumann", degree, LOWER))
    assert list(found) == [(-1) ** k * comb(degree + 1, k + 1) for k in range(degree + 1)]


@pytest.mark.parametrize("degree", [0, 1, 4, 12])
def test_l2_is_optimal(degree):
    """Its residual is Jacobi's, its norm 1 / (n + 1), and no other polynomial has less."""
    n = degree + 1
    nodes, weights = np.polynomial.legendre.leggauss(40)
    t, w = (nodes + 1) / 2, weights / 2
    r = residual("l2", degree, t)
    np.testing.assert_allclose(r, eval_jacobi(n, 1, 0, 1 - 2 * t) / (n + 1), rtol=0, atol=1e-12)
    assert w @ r**2 == pytest.approx(1 / (n + 1) ** 2, rel=1e-12)
    basis = np.stack([t * eval_chebyt(k, 2 * t - 1) for k in range(n)], axis=1)
    root = np.sqrt(w)
    best = np.linalg.lstsq(root[:, None] * basis, root, rcond=None)[0]
    np.testing.assert_allclose(r, 1 - basis @ best, rtol=0, atol=1e-10)


@pytest.mark.parametrize("lower", [1e-3, LOWER, 0.5])
@pytest.mark.parametrize("degree", [0, 1, 3, 4, 12])
def test_chebyshev_equioscillates(degree, lower):
    """|r| = 1 / T_n((1 + l) / (1 - l)) with alternating signs at n + 1 points of [l, 1]."""
    n = degree + 1
    level = 1 / eval_chebyt(n, (1 + lower) / (1 - lower))
    extrema = (1 + lower) / 2 + (1 - lower) / 2 * np.cos(np.pi * np.arange(n + 1) / n)
    r = residual("chebyshev", degree, extrema, lower)
    np.testing.assert_allclose(r, level * (-1.0) ** (np.arange(n + 1) + n), rtol=0, atol=1e-11)
    inside = np.linspace(lower, 1, 2001)
    assert np.abs(residual("chebyshev", degree, inside, lower)).max() <= level + 1e-11


def test_neumann_converges_to_the_inverse():
    """r = (1 - t)^(d + 1), and P H -> I for an H without a null space."""
    np.testing.assert_allclose(residual("neumann", 5, T), (1 - T) ** 6, rtol=0, atol=1e-14)
    generator = np.random.default_rng(0)
    rotation = np.linalg.qr(generator.standard_normal((8, 8)))[0]
    h = rotation @ np.diag(np.linspace(0.2, 1, 8)) @ rotation.T
    found = recurrence("neumann", 150, LOWER)(lambda v: h @ v, np.eye(8))
    np.testing.assert_allclose(found, np.linalg.inv(h), rtol=0, atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("degree", range(13))
def test_is_positive(family, degree):
    """p > 0 on the whole spectrum: P is a preconditioner, at every degree that is allowed."""
    assert (recurrence(family, degree, LOWER).gain(T[1:]) > 0).all()


def test_unknown_family():
    with pytest.raises(ValueError, match="unknown family 'jacobi'"):
        recurrence("jacobi", 1, LOWER)


@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-10), (torch.float32, 2e-4)])
@pytest.mark.parametrize("degree", [0, 1, 4, 12])
@pytest.mark.parametrize("family", FAMILIES)
def test_dense_polynomial(family, degree, dtype, close):
    """p(A^T A / L) / L by eigenvalues of the dense matrix; degree 12 is stable in float32 too."""
    task = small_task(shape=(1, 12, 20), dtype=dtype, options={"factor": 2}, count=1)
    state = linearised(task)
    g = np.random.default_rng(0).standard_normal((3, *task.shape))  # with a part in the null space
    operator = operator_for(task, PolynomialParameters(family=family, degree=degree))
    found = operator(torch.from_numpy(g).to(dtype), state).flatten(1).double().numpy()
    a = matrix(task.student, task.shape, state.point).double().numpy()
    values, vectors = np.linalg.eigh(a.T @ a)
    t = (values / values[-1]).clip(0)
    seen = t > 1e-6
    p = np.full_like(t, at_zero(family, degree))
    p[seen] = (1 - closed_residual(family, degree, t[seen])) / t[seen]
    expected = g.reshape(3, -1) @ (vectors * p) @ vectors.T / values[-1]
    assert np.linalg.norm(found - expected) < close * np.linalg.norm(expected)


def closed_residual(family, degree, t):
    """r by scipy's orthogonal polynomials."""
    n = degree + 1
    if family == "l2":
        return eval_jacobi(n, 1, 0, 1 - 2 * t) / (n + 1)
    if family == "neumann":
        return (1 - t) ** n
    s = (1 + LOWER) / (1 - LOWER)
    return eval_chebyt(n, s - 2 * t / (1 - LOWER)) / eval_chebyt(n, s)


def at_zero(family, degree):
    """p(0) = -r'(0)."""
    n, s = degree + 1, (1 + LOWER) / (1 - LOWER)
    if family == "chebyshev":
        return 2 / (1 - LOWER) * n * eval_chebyu(n - 1, s) / eval_chebyt(n, s)
    return n if family == "neumann" else n * (n + 2) / 2


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("degree", [1, 2, 3, 4])
@pytest.mark.parametrize("factor", [4, 2])
def test_spectral_bound(dense_sr, family, degree, factor):
    """lambda_max of the dense P A^T A, in closed form or as measured."""
    task = small_task(dtype=torch.float64, options={"factor": factor}, count=1)
    operator = operator_for(task, PolynomialParameters(family=family, degree=degree))
    a = dense_sr(16, 16, factor)
    values = np.linalg.eigvalsh(a.T @ a).clip(0)
    true = (1 - closed_residual(family, degree, values / values[-1])).max()
    assert (operator.measured is None) == (family == "neumann" or degree % 2 == 0)
    assert operator.spectral_bound(task.norm_squared()) == pytest.approx(true, rel=2e-4)


@pytest.mark.parametrize(("degree", "peak"), list(enumerate([1.5, 1.2, 1.25, 1.152, 1.167, 1.142])))
def test_published_peaks(degree, peak):
    """The largest t p(t) on [0, 1] of the least-squares polynomials."""
    assert recurrence("l2", degree, LOWER).gain(T).max() == pytest.approx(peak, abs=6e-4)


def projecting(task, from_matrix, scale=0.3):
    """The task with an A whose A^T A is `scale` times a projection onto a third of the space."""
    size = task.shape[1] * task.shape[2]
    rows = np.linalg.qr(np.random.default_rng(0).standard_normal((size, size // 3)))[0].T
    physics = from_matrix(np.sqrt(scale) * rows)
    return replace(task, operators=Operators(physics, (), "none"))


@pytest.mark.covering
@pytest.mark.parametrize("start", ["zero", "adjoint", "preconditioned"])
@pytest.mark.parametrize("degree", [1, 2, 5])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("solver", ["pnp-fista", "red-fista"])
def test_ties_with_the_identity_on_projections(from_matrix, context, family, degree, start, solver):
    """There P g is a multiple of g, which steps relative to lambda_max(P A^T A) take out again."""
    task = projecting(small_task(dtype=torch.float64, count=2, solver=solver), from_matrix)
    values = {"solve.step": 0.7, "solve.strength": 0.1, "solve.start": start}
    plain = identity.METHOD.fit(task, build(identity.METHOD.parameters, values), context())
    values |= {"family": family, "degree": degree}
    made = METHOD.fit(task, build(METHOD.parameters, values), context())
    measured = task.measure(task.images.validation)
    expected = plain.run(measured, task.student).estimate
    torch.testing.assert_close(made.run(measured, task.student).estimate, expected)
    state = linearised(task)
    found = made.preconditioner(state.gradient, state)
    multiple = recurrence(family, degree, LOWER).gain(1.0) / task.norm_squared()
    torch.testing.assert_close(found, multiple.item() * state.gradient)


@pytest.mark.parametrize("degree", [0, 1, 4])
def test_operator_calls(from_matrix, degree):
    """Two for each degree."""
    task = projecting(small_task(dtype=torch.float64, count=1), from_matrix)
    operator = operator_for(task, PolynomialParameters(degree=degree))
    state = linearised(task)
    task.student.calls = 0
    operator(state.gradient, state)
    assert task.student.calls == operator.operator_calls == 2 * degree


@pytest.mark.parametrize("degree", [1, 2])
def test_step_is_relative(context, degree):
    """A step is in units of 1 / lambda_max(P A^T A)."""
    task = small_task(dtype=torch.float64)
    values = {"degree": degree, "solve.step": 0.5, "solve.strength": 0.1}
    kept = context()
    made = METHOD.fit(task, build(METHOD.parameters, values), kept)
    bound = made.preconditioner.spectral_bound(task.norm_squared())
    assert made.solver.step_size == pytest.approx(0.5 / bound)
    assert kept.notes == {"measured_bound": degree == 1}


@pytest.mark.parametrize("solver", ["pnp-fista", "red-fista"])
def test_published(context, solver):
    """The absolute step of 0.4 comes back, and RED's lambda of 1."""
    task = small_task(dtype=torch.float64, solver=solver)
    values = METHOD.published(task)
    assert values["solve.units"] == "relative"
    made = METHOD.fit(task, build(METHOD.parameters, values), context())
    assert made.solver.step_size == pytest.approx(0.4)
    if solver == "red-fista":
        assert made.solver.weight == pytest.approx(1.0)
