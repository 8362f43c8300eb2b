"""From a study file's problem to a task that can run."""

from __future__ import annotations

import torch

from dipa_bench import registry
from dipa_bench.config.study_file import Problem
from dipa_bench.data.images import DatasetSpec, ImageRequest, Splits
from dipa_bench.data.load import find, splits
from dipa_bench.data.signals import COMPLEX
from dipa_bench.parameters import build
from dipa_bench.priors import user
from dipa_bench.priors.complex import on_complex
from dipa_bench.tasks.base import Geometry, Task


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
        seed: of the measurement noise and of sampling masks.
        device: where runs take place; the CPU by default.

    Raises:
        UserError: an unknown dataset, prior or option, missing data or weights, or a colour prior
            for images without colour.
    """
    device = device or torch.device("cpu")
    spec = registry.get("tasks", name)
    options = build(spec.options, problem.options)
    prior = user.build(problem.prior)
    dataset, place = find(problem.dataset or spec.dataset, problem.data_root)
    loaded = splits(dataset, ImageRequest(problem.size, problem.color, place))
    images = spec.prepare(loaded, options)
    channels = images.shape[0]
    if channels == COMPLEX:
        prior = on_complex(prior, problem.complex_prior)
    prior.check(channels)
    return Task(
        spec=spec,
        options=options,
        operators=spec.operators(options, Geometry(images.shape, device, dtype, seed)),
        images=images,
        prior=prior.to(device, dtype),
        solver=problem.solver,
        iterations=problem.iterations,
        noise=problem.noise,
        test_noise=problem.test_noise,
        seed=seed,
        device=device,
        dtype=dtype,
        caveat=_caveat(dataset, loaded, images),
    )


def _caveat(dataset: DatasetSpec, loaded: Splits, images: Splits) -> str:
    """The dataset's caveat, and that complex images were made of gray ones."""
    made = images.shape[0] == COMPLEX != loaded.shape[0]
    parts = [dataset.caveat, "complex images made from gray ones" if made else ""]
    return "; ".join(part for part in parts if part)
