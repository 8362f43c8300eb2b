"""Rates and minimisers on quadratics with known answers."""

import numpy as np
import pytest
import torch

from dipa_bench.preconditioners import Identity
from dipa_bench.priors.base import SIGMA, Prior
from dipa_bench.solvers import REDFISTA, PnPFISTA
from dipa_bench.solvers.momentum import RULES
from dipa_bench.testing.problems import smoothing_prior

SIDE = 8


def bare():
    """The prior that does nothing."""
    return Prior("none", SIGMA, lambda noisy, sigma: noisy)


def quadratic(condition, seed=0):
    """M with eigenvalues of M^T M log-spaced from 1 down to 1/condition; y = M x; x."""
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.standard_normal((SIDE**2, SIDE**2)))[0] for _ in range(2))
    values = np.logspace(0, -np.log10(condition) / 2, SIDE**2)
    matrix = left @ np.diag(values) @ right
    x = rng.standard_normal(SIDE**2)
    return matrix, matrix @ x, x


def run(matrix, y, physics, momentum, iterations, step=1.0, prior=None, **options):
    kind = REDFISTA if "weight" in options else PnPFISTA
    solver = kind(
        prior or bare(),
        step=step,
        strength=0.1,
        iterations=iterations,
        momentum=momentum,
        start="zero",
        **options,
    )
    return solver.run(torch.from_numpy(y)[None], physics, Identity(), record=True)


def test_textbook_momentum_keeps_its_bound(from_matrix):
    """f(x_k) - f* <= a^2 L ||x_0 - x*||^2 / (2 (k + a - 1)^2), a = 3, at every k up to 1500."""
    matrix, y, x = quadratic(1e6)
    found = run(matrix, y, from_matrix(matrix), "textbook", 1500)
    values = found.curves.residual[:, 0].numpy() ** 2 / 2
    k = np.arange(1, 1501)
    bound = 9 * (x @ x) / (2 * (k + 2) ** 2)
    assert (values[1:] <= bound).all()
    # the bound means something here: without momentum it is broken
    slow = run(matrix, y, from_matrix(matrix), "none", 1500)
    assert (slow.curves.residual[1:, 0].numpy() ** 2 / 2 > bound)[-1]


def test_published_momentum_is_far_slower(from_matrix):
    """Condition 1e4, 1,000 iterations: a hundred times the data term of the textbook rule."""
    matrix, y, _ = quadratic(1e4)
    values = {}
    for rule in ("textbook", "published", "none"):
        curves = run(matrix, y, from_matrix(matrix), rule, 1000).curves
        values[rule] = curves.residual[-1, 0].item() ** 2 / 2
    assert values["published"] > 100 * values["textbook"]
    assert values["none"] > 10 * values["published"]


@pytest.mark.parametrize("momentum", ["textbook", "none"])
def test_pnp_without_a_prior_finds_the_minimiser(from_matrix, momentum):
    """x_K equals pinv(M) y on a well conditioned quadratic."""
    matrix, y, _ = quadratic(10)
    found = run(matrix, y, from_matrix(matrix), momentum, 400).estimate
    expected = np.linalg.pinv(matrix) @ y
    np.testing.assert_allclose(found.ravel().numpy(), expected, atol=1e-8)


@pytest.mark.parametrize("momentum", ["textbook", "none"])
def test_red_finds_its_stationary_point(from_matrix, smoother, momentum):
    """x_K solves (M^T M + lambda (I - W)) x = M^T y."""
    matrix, y, _ = quadratic(10)
    weight = 0.4
    w = smoother(SIDE, SIDE, 0.1)
    found = run(
        matrix, y, from_matrix(matrix), momentum, 600, 0.8, smoothing_prior(), weight=weight
    ).estimate
    system = matrix.T @ matrix + weight * (np.eye(SIDE**2) - w)
    expected = np.linalg.solve(system, matrix.T @ y)
    np.testing.assert_allclose(found.ravel().numpy(), expected, atol=1e-7)


def test_pnp_finds_its_fixed_point(from_matrix, smoother):
    """x_K solves x = W (x - alpha M^T (M x - y))."""
    matrix, y, _ = quadratic(10)
    w = smoother(SIDE, SIDE, 0.1)
    found = run(matrix, y, from_matrix(matrix), "none", 600, 0.9, smoothing_prior()).estimate
    step = w @ (np.eye(SIDE**2) - 0.9 * matrix.T @ matrix)
    expected = np.linalg.solve(np.eye(SIDE**2) - step, 0.9 * w @ matrix.T @ y)
    np.testing.assert_allclose(found.ravel().numpy(), expected, atol=1e-8)


@pytest.mark.covering
@pytest.mark.parametrize("momentum", sorted(RULES))
@pytest.mark.parametrize(("part", "stable"), [(0.975, True), (1.028, False)])
def test_steps_are_stable_to_their_limit(from_matrix, momentum, part, stable):
    """Below it the data term vanishes, above it explodes.

    With a constant momentum m the eigenvalue h of the Hessian gives x -> (1 + m) (1 - a h) x - m (1
    - a h) x_before, stable below a h = 2 (1 + m) / (1 + 2 m): 2 for m = 0, 4/3 as m goes to 1.
    """
    matrix, y, _ = quadratic(10)
    step = part * (2.0 if momentum == "none" else 4 / 3)
    last = run(matrix, y, from_matrix(matrix), momentum, 2000, step).curves.residual[-1, 0]
    assert (last < 1e-6) if stable else not (last < 1e6)
