"""The unpreconditioned rows."""

import numpy as np
import pytest
import torch

from baselines.identity import FROM_LMMSE, METHOD
from dipa_bench.errors import UserError
from dipa_bench.learning import lmmse
from dipa_bench.parameters import build, space
from dipa_bench.testing.problems import small_task


def test_is_the_plain_solver(context, dense_sr, smoother):
    """PnP-FISTA in numpy with alpha = step / lambda_max, from the LMMSE estimate."""
    task = small_task(shape=(1, 12, 16), dtype=torch.float64, iterations=3)
    values = {"solve.step": 0.8, "solve.strength": 0.1, "solve.start": "lmmse"}
    found = context()
    made = METHOD.fit(task, build(METHOD.parameters, values), found)
    measured = task.measure(task.images.validation)
    estimate = made.run(measured, task.student).estimate.flatten(1).numpy()
    a, w = dense_sr(12, 16, 4), smoother(12, 16, 0.1)
    alpha = 0.8 / np.linalg.norm(a, 2) ** 2
    y = measured.flatten(1).numpy()
    x = z = found.lmmse(task)(measured).flatten(1).numpy()
    for k in range(3):
        new = (z - alpha * (z @ a.T - y) @ a) @ w.T
        z, x = new + k / (k + 4) * (new - x), new
    np.testing.assert_allclose(estimate, x, rtol=0, atol=1e-7)


def test_lmmse_identity_is_identity_from_that_start(context):
    """The same reconstruction as `identity` with `solve.start=lmmse`."""
    task = small_task(dtype=torch.float64, iterations=3)
    values = {"solve.step": 0.8, "solve.strength": 0.1}
    measured = task.measure(task.images.validation)
    found = FROM_LMMSE.fit(task, build(FROM_LMMSE.parameters, values), context())
    values["solve.start"] = "lmmse"
    expected = METHOD.fit(task, build(METHOD.parameters, values), context())
    found, expected = (each.run(measured, task.student) for each in (found, expected))
    assert torch.equal(found.estimate, expected.estimate)
    assert found.operator_calls == expected.operator_calls == 2 * 3


def test_its_start_cannot_be_changed():
    """It searches all other settings of the solver, in the same order."""
    task = small_task()
    searched = space(FROM_LMMSE.parameters, task.solver, task)
    assert list(searched) == list(space(METHOD.parameters, task.solver, task))
    assert searched["solve.start"].choices == ("lmmse",)
    assert FROM_LMMSE.published(task)["solve.start"] == "lmmse"
    with pytest.raises(UserError, match=r"solve\.start = 'zero'"):
        build(FROM_LMMSE.parameters, {"solve.start": "zero"})


def test_needs_the_map(monkeypatch):
    """Skipped with how many measurements there are; identity itself is not."""
    task = small_task()
    assert FROM_LMMSE.unsuitable(task) is None
    monkeypatch.setattr(lmmse, "LARGEST", 15)
    assert "at most 15 per image (here 16): use identity" in FROM_LMMSE.unsuitable(task)
    assert METHOD.unsuitable(task) is None
