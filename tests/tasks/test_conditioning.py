"""Where a classical preconditioner can help, and where it cannot."""

from dataclasses import replace

import pytest
import torch

from dipa_bench import registry
from dipa_bench.learning import lmmse
from dipa_bench.learning.teachers import TeacherCache
from dipa_bench.methods import Budget, FitContext
from dipa_bench.parameters import build, defaults
from dipa_bench.priors.base import SIGMA, Prior
from dipa_bench.testing import small_task

CLASSICAL = [
    ("hessian", {"mu": 0.01}),
    ("hessian", {"mu": 1.0}),
    ("polynomial", {"family": "l2", "degree": 3}),
    ("polynomial", {"family": "chebyshev", "degree": 4}),
    ("polynomial", {"family": "neumann", "degree": 2}),
]


def run(task, method, folder, **values):
    """The estimates of a method at those parameters, the rest at their defaults."""
    record = registry.get("methods", method)
    flat = defaults(record.parameters, task.solver, task) | values
    context = FitContext(0, Budget(), TeacherCache(folder), lmmse.fit)
    fitted = record.fit(task, build(record.parameters, flat), context)
    with torch.no_grad():
        return fitted.run(task.measure(task.images.validation), task.student).estimate


@pytest.mark.covering
@pytest.mark.parametrize("name", ["cs", "mri"])
@pytest.mark.parametrize("solver", ["pnp-fista", "red-fista"])
@pytest.mark.parametrize("start", ["adjoint", "lmmse"])
@pytest.mark.parametrize(("method", "values"), CLASSICAL)
def test_on_a_projection_every_classical_preconditioner_is_the_identity(
    name, solver, start, method, values, tmp_path
):
    """A^T A = (A^T A)^2: at equal relative settings the reconstructions are the same."""
    task = small_task(name, dtype=torch.float64, solver=solver, iterations=6)
    settings = {"solve.step": 0.9, "solve.strength": 0.07, "solve.start": start}
    expected = run(task, "identity", tmp_path, **settings)
    found = run(task, method, tmp_path, **settings, **values)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


def range_error(task, method, folder, **values):
    """Mean squared residual after the last iteration, without a prior, momentum or noise."""
    estimate = run(task, method, folder, **{"solve.momentum": "none"}, **values)
    y = task.measure(task.images.validation)
    return (task.student.A(estimate) - y).square().mean().item()


@pytest.mark.parametrize(("method", "values"), [CLASSICAL[0], CLASSICAL[2], CLASSICAL[3]])
def test_on_a_blur_they_win(method, values, tmp_path):
    """Without prior and noise the residual after ten iterations is at least ten times smaller."""
    free = Prior("none", SIGMA, lambda noisy, sigma: noisy)
    task = small_task("deblur", (1, 32, 32), dtype=torch.float64, noise=0.0, iterations=10)
    task = replace(task, prior=free)
    plain = range_error(task, "identity", tmp_path)
    assert range_error(task, method, tmp_path, **values) < plain / 10
