"""The published settings as a search tries them are the published settings."""

from dataclasses import replace

import pytest
import torch

from dipa_bench import registry
from dipa_bench.methods import relative
from dipa_bench.parameters import build, defaults
from dipa_bench.testing import small_task
from dipa_bench.testing.contracts import linearised


@pytest.mark.parametrize(
    ("name", "absolute"), [("identity", 0.4), ("hessian", 0.4), ("polynomial", 0.4)]
)
def test_the_absolute_step_survives(name, absolute, context):
    """alpha is 0.4 in absolute units, whatever unit the method searches its step in."""
    task, method = small_task(dtype=torch.float64), registry.get("methods", name)
    known = relative(method.published(task), task.norm_squared())
    values = defaults(method.parameters, task.solver, task) | known
    assert values["solve.units"] == "relative"
    made = method.fit(task, build(method.parameters, values), context())
    assert made.solver.step_size == pytest.approx(absolute, rel=1e-6)


def test_red_keeps_the_published_balance(context):
    """RED's absolute lambda of 1 comes back for an operator that shrinks the gradient."""
    task, method = small_task(solver="red-fista"), registry.get("methods", "hessian")
    values = defaults(method.parameters, task.solver, task) | method.published(task)
    made = method.fit(task, build(method.parameters, values), context())
    assert made.solver.weight == pytest.approx(1.0, rel=1e-6)
    assert made.solver.step_size == pytest.approx(0.4, rel=1e-6)


def test_scalar_takes_its_learned_steps(context):
    """Its published step is the learned one: alpha P g is the minimiser along the gradient."""
    task, method = small_task(dtype=torch.float64, noise=0.0), registry.get("methods", "scalar")
    values = defaults(method.parameters, task.solver, task) | method.published(task)
    made = method.fit(task, build(method.parameters, values), context())
    measured, physics = task.measure(task.images.train), task.student
    state = made.solver.with_gradient(made.solver.start(measured, physics, made.preconditioner))
    g, found = state.gradient, linearised(task)
    taken = made.solver.step_size * made.preconditioner(g, replace(found, iteration=0))
    best = g.square().sum() / physics.A(g).square().sum()
    torch.testing.assert_close(taken, best * g, rtol=1e-6, atol=1e-12)
