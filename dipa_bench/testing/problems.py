"""Seconds-long problems for tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dipa_bench import registry
from dipa_bench.data.images import ImageSet, Splits
from dipa_bench.data.signals import COMPLEX
from dipa_bench.errors import UserError
from dipa_bench.parameters import build
from dipa_bench.priors.base import SIGMA, Prior
from dipa_bench.priors.complex import on_complex
from dipa_bench.tasks.base import Geometry, Task

WIDE = ((1, 12, 20), (1, 16, 32))


def smoothing_prior() -> Prior:
    """A linear low-pass denoiser: (1 - w) v + w (3 x 3 binomial average), w = s / (s + 0.1)."""

    def denoise(noisy: Tensor, sigma: float | Tensor) -> Tensor:
        profile = torch.tensor([0.25, 0.5, 0.25], dtype=noisy.dtype, device=noisy.device)
        kernel = (profile[:, None] * profile).expand(noisy.shape[1], 1, 3, 3)
        wrapped = torch.nn.functional.pad(noisy, [1] * 4, mode="circular")
        smooth = torch.nn.functional.conv2d(wrapped, kernel, groups=noisy.shape[1])
        weight = sigma / (sigma + 0.1)
        return (1 - weight) * noisy + weight * smooth

    return Prior("smoothing", SIGMA, denoise)


def synthetic_splits(shape: tuple[int, int, int], count: int = 6, seed: int = 0) -> Splits:
    """Smooth random images, `count` to a split, each its own subject."""
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for name in ("train", "validation", "test"):
        coarse = torch.rand(count, shape[0], 5, 5, generator=generator)
        pixels = torch.nn.functional.interpolate(
            coarse, size=shape[1:], mode="bicubic", align_corners=True
        ).clamp(0, 1)
        names = tuple(f"{name}{index}" for index in range(count))
        parts.append(ImageSet(pixels, names, names))
    return Splits(*parts)


def small_task(
    name: str = "sr",
    shape: tuple[int, int, int] = (1, 16, 16),
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    count: int = 6,
    options: dict[str, Any] | None = None,
    **settings: Any,
) -> Task:
    """A registered task on synthetic images with a linear prior: runs in milliseconds.

    Args:
        name: of the task.
        shape: (C, H, W) of the images before the task prepares them.
        count: images in each split.
        options: the task's own.
        settings: further attributes of `Task`, e.g. ``iterations`` or ``noise``.
    """
    spec = registry.get("tasks", name)
    made = build(spec.options, options or {})
    where = torch.device(device)
    settings = {"iterations": 4, "noise": 0.01} | settings
    images = spec.prepare(synthetic_splits(shape, count), made)
    prior = smoothing_prior()
    return Task(
        spec=spec,
        options=made,
        operators=spec.operators(made, Geometry(images.shape, where, dtype)),
        images=images,
        prior=on_complex(prior) if images.shape[0] == COMPLEX else prior,
        device=where,
        dtype=dtype,
        **settings,
    )


def wide_task(name: str = "sr", **settings: Any) -> Task:
    """`small_task` with images wider than high, their sides no powers of two where it takes them.

    Args:
        name: of the task.
        settings: of `small_task`, without its shape.

    Raises:
        UserError: the task refuses all of `WIDE`.
    """
    *others, last = WIDE
    for shape in others:
        try:
            return small_task(name, shape, **settings)
        except UserError:
            continue
    return small_task(name, last, **settings)
