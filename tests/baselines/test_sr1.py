"""The zero-memory SR1 update against a scalar-by-scalar float64 computation."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from baselines.sr1 import CAP, METHOD, SR1
from dipa_bench.parameters import build, defaults
from dipa_bench.tasks.spectrum import matrix
from dipa_bench.testing import small_task
from dipa_bench.testing.contracts import linearised


def published_matrix(s, m, least):
    """P of one image as the source has it, its search over beta a loop."""
    for beta in np.linspace(0, 1, 101):
        v = beta * s + (1 - beta) * m
        if v @ s >= least * (s @ s) and v @ v <= 2e2 * (v @ s):
            break
    q = s @ s / (v @ s)
    tau = q - np.sqrt(q * q - s @ s / (v @ v))
    u = s - tau * v
    return tau * np.eye(len(s)) + np.outer(u, u) / (u @ v), v


@pytest.mark.parametrize("least", [2e-6, 0.3])
def test_formula(least):
    """Against the published one with dense matrices; 0.3 makes beta > 0."""
    task = small_task("deblur", dtype=torch.float64)
    state, largest = linearised(task), task.norm_squared()
    a = matrix(task.student, task.shape, torch.zeros(1).double()).numpy()
    found = SR1(least, largest)(state.gradient, state).flatten(1).numpy()
    moved = (state.point - state.previous_point).flatten(1).numpy()
    for row, s, g in zip(found, moved, state.gradient.flatten(1).numpy(), strict=True):
        p, v = published_matrix(s, a.T @ (a @ s) / largest, least)
        np.testing.assert_allclose(p @ v, s, atol=1e-9)
        np.testing.assert_allclose(row, p @ g, atol=1e-9 * np.abs(row).max())


@pytest.mark.parametrize("name", ["deblur", "sr"])
def test_secant_equation_and_positivity(name):
    """P m = s where no safeguard acts, with the cap on tau too; rho > 0, so P > 0."""
    task = small_task(name, dtype=torch.float64)
    state, operator = linearised(task), SR1(1e-9, task.norm_squared())
    s = state.point - state.previous_point
    change = state.gradient - state.previous_gradient
    found = operator(change, state) / task.norm_squared()
    torch.testing.assert_close(found, s, rtol=1e-6, atol=1e-8)
    size = s.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    tau, _, inverse = operator.update(s, change / task.norm_squared())
    assert (tau > 0).all()
    assert (inverse > 0).all()
    assert (size > 0).all()


def test_cap():
    """A change of gradient that nearly vanishes: tau stays at the cap, the direction finite."""
    s = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tau, u, inverse = SR1(1e-12, 1.0).update(s, 1e-4 * s)
    torch.testing.assert_close(tau, torch.full_like(tau, CAP))
    assert torch.isfinite(u).all()
    assert torch.isfinite(inverse).all()


@pytest.mark.parametrize("least", [1e-2, 0.2])
def test_longest_direction(least):
    """The eigenvalues of P stay below twice 1 / theta_1."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.logspace(-6, 0, 16, dtype=torch.float64).view(1, 1, 4, 4)
    s = torch.randn(50, 1, 4, 4, generator=generator, dtype=torch.float64) * weights**0.5
    s = s.flip(-1, -2)
    tau, u, inverse = SR1(least, 1.0).update(s, weights * s)
    greatest = tau.ravel() + inverse.ravel() * u.flatten(1).square().sum(1)
    assert (greatest <= 2 / least).all()


def test_still_images_take_the_plain_step():
    """As does the first iteration; others in the batch keep theirs."""
    task = small_task("deblur", dtype=torch.float64)
    state, operator = linearised(task), SR1(2e-6, task.norm_squared())
    first = replace(state, previous_point=None, previous_gradient=None)
    assert torch.equal(operator(state.gradient, first), state.gradient)
    points, gradients = state.previous_point.clone(), state.previous_gradient.clone()
    points[1], gradients[1] = state.point[1], state.gradient[1]
    mixed = replace(state, previous_point=points, previous_gradient=gradients)
    found, usual = operator(state.gradient, mixed), operator(state.gradient, state)
    torch.testing.assert_close(found[1], state.gradient[1])
    torch.testing.assert_close(found[0], usual[0])


@pytest.mark.parametrize("scale", [1e-12, 1e6])
def test_scale_of_the_images(scale):
    """P depends on the directions of s and m alone."""
    task = small_task("deblur", dtype=torch.float32)
    state, operator = linearised(task), SR1(2e-6, task.norm_squared())
    s = state.point - state.previous_point
    m = (state.gradient - state.previous_gradient) / task.norm_squared()
    usual, scaled = operator.update(s, m), operator.update(scale * s, scale * m)
    for one, other in zip(usual, scaled, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("solver", ["pnp-fista", "red-fista"])
def test_runs_share_nothing(solver, context):
    """A run repeated after one on other images gives the same; an image alone as in a batch."""
    task = small_task(dtype=torch.float64, iterations=8, solver=solver)
    values = defaults(METHOD.parameters, solver, task) | METHOD.published(task)
    made = METHOD.fit(task, build(METHOD.parameters, values), context())
    measured = task.measure(task.images.validation)
    first = made.run(measured, task.student)
    made.run(measured.flip(0), task.student)
    assert torch.equal(made.run(measured, task.student).estimate, first.estimate)
    alone = made.run(measured[1:2], task.student).estimate
    torch.testing.assert_close(alone, first.estimate[1:2], rtol=1e-5, atol=1e-7)
    assert first.operator_calls == 1 + 2 * 8


@pytest.mark.parametrize("solver", ["pnp-fista", "red-fista"])
def test_default_and_published_points_stay_bounded(solver, context):
    """With a null space, over more iterations than a study's."""
    task = small_task(shape=(1, 24, 24), iterations=40, solver=solver)
    for known in ({}, METHOD.published(task)):
        values = defaults(METHOD.parameters, solver, task) | known
        made = METHOD.fit(task, build(METHOD.parameters, values), context())
        found = made.run(task.measure(task.images.validation), task.student).estimate
        error = (found - task.pixels(task.images.validation)).square().mean()
        assert error < 0.1
