"""From a study file's problem to a task that can run."""

from __future__ import annotations

import torch

from dipa_bench import registry
from dipa_bench.data.load import load
from dipa_bench.parameters import build
from dipa_bench.priors import user
from dipa_bench.search.study_file import Problem
from dipa_bench.tasks.base import Task


def build_task(
    name: str,
    problem: Problem,
    *,
    seed: int = 0,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> Task:
    """The task `name` with the images, prior and algorithm that `problem` asks for.

    Args:
        name: a registered task.
        problem: the shared settings.
        seed: of the measurement noise.
        device: where runs take place; the CPU by default.

    Raises:
        UserError: an unknown dataset, prior or option, or missing data or weights.
    """
    device = device or torch.device("cpu")
    spec = registry.get("tasks", name)
    options = build(spec.options, problem.options)
    images = load(
        problem.dataset or spec.dataset,
        problem.size,
        color=problem.color,
        root=problem.data_root,
    )
    prior = user.build(problem.prior).to(device, dtype)
    return Task(
        spec=spec,
        options=options,
        operators=spec.operators(options, images.shape, device, dtype),
        images=images,
        prior=prior,
        solver=problem.solver,
        iterations=problem.iterations,
        noise=problem.noise,
        seed=seed,
        device=device,
        dtype=dtype,
    )
