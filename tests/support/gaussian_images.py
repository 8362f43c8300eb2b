"""A task on Gaussian images, so that the best affine map follows from their covariance."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from dipa_bench.data.images import ImageSet, Splits
from dipa_bench.tasks.base import Task
from dipa_bench.testing.problems import small_task

SHAPE = (1, 12, 12)


def gaussian_task(variance: float, counts: tuple[int, int, int], per_subject: int = 1) -> Task:
    """`sr` in float64 with noise 0.05; all splits are drawn from one law and cut to [0, 1].

    Args:
        variance: of each pixel; correlations fall by e in three pixels.
        counts: training, validation and test images.
        per_subject: images of each subject.
    """
    base = small_task(shape=SHAPE, dtype=torch.float64, noise=0.05)
    rng = np.random.default_rng(0)
    y, x = np.divmod(np.arange(144), 12)
    distance = np.hypot(y[:, None] - y, x[:, None] - x)
    root = np.linalg.cholesky(variance * np.exp(-distance / 3) + 1e-9 * np.eye(144))

    def images(count: int, prefix: str) -> ImageSet:
        draws = 0.5 + rng.standard_normal((count, 144)) @ root.T
        pixels = torch.from_numpy(draws.clip(0, 1)).float().view(count, *SHAPE)
        names = tuple(f"{prefix}{i}" for i in range(count))
        subjects = tuple(f"{prefix}{i // per_subject}" for i in range(count))
        return ImageSet(pixels, names, subjects)

    return replace(base, images=Splits(*map(images, counts, "abc")))
