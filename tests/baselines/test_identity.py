"""The unpreconditioned row."""

import numpy as np
import torch

from baselines.identity import METHOD
from dipa_bench.parameters import build
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
