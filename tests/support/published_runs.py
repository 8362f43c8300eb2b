"""The paper's runs of our operators, solvers and the published weights: Tables 2, 3 and 6.

The paper's settings: K = 20, deepinv's momentum, x_0 = A^T y, steps 0.4 (student) and 0.7
(teachers), no noise, PSNR of all images pooled. On digits reconstructions are clipped to [0, 1]
first, as the published ones must have been: all eight then come closer, the RED teacher of ratio
0.9 by 1.1 dB.
"""

from __future__ import annotations

import torch

from dipa_bench.config.problem import build_task
from dipa_bench.config.schema import Problem
from dipa_bench.metrics import psnr_pooled, squared_error
from dipa_bench.preconditioners import Identity
from dipa_bench.solvers import SolveParameters, build_solver
from dipa_bench.tasks.base import Task

BATCH = 10

CS = [  # solver, teacher ratio, published, tolerance in dB
    ("pnp-fista", None, 22.88, 0.8),
    ("pnp-fista", 0.5, 34.65, 1.5),
    ("pnp-fista", 0.7, 39.89, 1.5),
    ("pnp-fista", 0.9, 50.06, 1.5),
    ("red-fista", None, 22.93, 1.0),
    ("red-fista", 0.5, 32.99, 1.5),
    ("red-fista", 0.7, 37.51, 1.5),
    ("red-fista", 0.9, 50.64, 1.5),
]
SR = [("pnp-fista", None, 11.02, 1.5), ("pnp-fista", 3.0, 17.89, 1.5)]


def digits(solver: str) -> Task:
    """Digits at 32 x 32, the published rectangle at a ratio of 0.2, Tables 2 and 3."""
    return published_problem("cs", solver, dataset="digits", size=32)


def faces(solver: str) -> Task:
    """Faces at 64 x 64, factor 4, Table 6."""
    return published_problem("sr", solver, dataset="faces", size=64)


def published_problem(task: str, solver: str, **settings: object) -> Task:
    """The task with the paper's weights and K, without noise."""
    problem = Problem(prior="dncnn", solver=solver, iterations=20, noise=0.0, **settings)
    return build_task(task, problem)


@torch.no_grad()
def pooled(task: Task, label: float | None, count: int) -> tuple[float, float]:
    """PSNR over `count` test images of the student (None) or a teacher, plain and clipped."""
    values = task.published_solve()
    if label is not None:
        values["solve.step"] = task.spec.published.teacher
    solve = SolveParameters(**{name.removeprefix("solve."): v for name, v in values.items()})
    solver = build_solver(
        task.solver, task.prior, solve, iterations=task.iterations, largest=task.norm_squared(label)
    )
    images = task.images.test("calibration").first(count)
    measured, truth = task.measure(images, label), task.pixels(images)
    plain, clipped = [], []
    for y, x in zip(measured.split(BATCH), truth.split(BATCH), strict=True):
        estimate = solver.run(y, task.physics(label), Identity()).estimate
        plain.append(squared_error(estimate, x))
        clipped.append(squared_error(estimate.clamp(0, 1), x))
    return psnr_pooled(torch.cat(plain)), psnr_pooled(torch.cat(clipped))
