"""Barzilai-Borwein steps against their definition, image by image."""

from dataclasses import replace

import pytest
import torch

from baselines.barzilai_borwein import METHOD, RULES, BarzilaiBorwein
from dipa_bench.parameters import build, defaults
from dipa_bench.priors.base import SIGMA, Prior
from dipa_bench.solvers import PnPFISTA
from dipa_bench.tasks.spectrum import matrix
from dipa_bench.testing import small_task
from dipa_bench.testing.contracts import linearised


def nothing():
    return Prior("nothing", SIGMA, lambda noisy, sigma: noisy)


def factors(operator, state):
    return (operator(state.gradient, state) / state.gradient).flatten(1).mean(1)


@pytest.mark.parametrize("rule", RULES)
def test_definition(rule):
    """The quotients of dense differences, each image by itself."""
    task = small_task("deblur", dtype=torch.float64)
    state, a = linearised(task), matrix(task.student, task.shape, torch.zeros(1).double())
    found = factors(BarzilaiBorwein(rule, 1e9, task.norm_squared()), state) / task.norm_squared()
    s = (state.point - state.previous_point).flatten(1)
    for step, row in zip(found, s, strict=True):
        m = a.T @ (a @ row)
        expected = row @ row / (row @ m) if rule == "bb1" else row @ m / (m @ m)
        assert step.item() == pytest.approx(expected.item(), rel=1e-9)
        assert step.item() >= 1 / task.norm_squared()


def test_bb2_is_never_longer():
    """Cauchy-Schwarz."""
    task = small_task("deblur", dtype=torch.float64)
    state = linearised(task)
    long, short = (factors(BarzilaiBorwein(r, 1e9, task.norm_squared()), state) for r in RULES)
    assert (short <= long).all()


@pytest.mark.parametrize("rule", RULES)
def test_one_eigenvalue_takes_one_step(rule):
    """From errors along one eigenvector the first step finds its eigenvalue, the second ends."""
    task = small_task("deblur", dtype=torch.float64, options={"blur": 0.8})
    a = matrix(task.student, task.shape, torch.zeros(1).double())
    values, vectors = torch.linalg.eigh(a.T @ a)
    picked = [60, 200]  # another one for each image
    assert (values[picked] < 0.9 * task.norm_squared()).all()
    truth = task.pixels(task.images.validation)[:2]
    wrong = truth + vectors[:, picked].T.reshape(truth.shape)
    solver = PnPFISTA(
        nothing(),
        step=1 / task.norm_squared(),
        strength=1.0,
        iterations=2,
        momentum="none",
        start=lambda y: wrong,
    )
    operator = BarzilaiBorwein(rule, 1e4, task.norm_squared())
    run = solver.run(task.student.A(truth), task.student, operator)
    torch.testing.assert_close(run.estimate, truth, rtol=0, atol=1e-9)


@pytest.mark.parametrize("rule", RULES)
def test_safeguards(rule):
    """The cap, 1 for images that stand still, the cap where the gradient does."""
    task = small_task("deblur", dtype=torch.float64)
    state, operator = linearised(task), BarzilaiBorwein(rule, 1.5, task.norm_squared())
    assert (factors(operator, state) <= 1.5 * (1 + 1e-12)).all()
    still = replace(state, previous_point=state.point, previous_gradient=state.gradient)
    assert torch.equal(operator(state.gradient, still), state.gradient)
    flat = factors(operator, replace(state, previous_gradient=state.gradient))
    torch.testing.assert_close(flat, torch.full_like(flat, 1.5 if rule == "bb1" else 1.0))


def test_first_step_is_plain():
    """No difference yet."""
    state = replace(linearised(small_task()), previous_point=None, previous_gradient=None)
    assert torch.equal(BarzilaiBorwein("bb1", 10.0, 1.0)(state.gradient, state), state.gradient)


@pytest.mark.parametrize("solver", ["pnp-fista", "red-fista"])
def test_runs_share_nothing(solver, context):
    """A run repeated after one on other images gives the same; an image alone as in a batch."""
    task = small_task(dtype=torch.float64, iterations=8, solver=solver)
    values = defaults(METHOD.parameters, solver, task) | METHOD.published(task)
    made = METHOD.fit(task, build(METHOD.parameters, values), context())
    assert made.solver.step_size == pytest.approx(1 / task.norm_squared())
    measured = task.measure(task.images.validation)
    first = made.run(measured, task.student)
    made.run(measured.flip(0), task.student)
    assert torch.equal(made.run(measured, task.student).estimate, first.estimate)
    alone = made.run(measured[1:2], task.student).estimate
    torch.testing.assert_close(alone, first.estimate[1:2])
    assert first.operator_calls == 1 + 2 * 8
