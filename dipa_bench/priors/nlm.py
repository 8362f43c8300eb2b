"""`nlm`: non-local means of scikit-image."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from dipa_bench.priors.arrays import OneByOne
from dipa_bench.priors.base import SIGMA, PriorSpec

CUTOFF = 0.6
"""h in units of sigma: scikit-image's example for the fast algorithm that is given sigma.

On faces of 32 x 32 with sigma = 0.1 it is also the best of 0.4, 0.6, 0.8 and 1.
"""
PATCH = 5  # pixels
DISTANCE = 6  # pixels


def denoise(noisy: np.ndarray, sigma: float) -> np.ndarray:
    """Weighted means of pixels with similar surroundings; H x W, not clipped."""
    from skimage.restoration import denoise_nl_means

    return denoise_nl_means(
        noisy,
        patch_size=PATCH,
        patch_distance=DISTANCE,
        h=CUTOFF * sigma,
        sigma=sigma,
        fast_mode=True,
        preserve_range=True,
    )


def build() -> Callable[[Tensor, float | Tensor], Tensor]:
    """Non-local means, image by image on the CPU."""
    return OneByOne(denoise)


SPEC = PriorSpec(
    name="nlm",
    title="Non-local means",
    summary=f"scikit-image's fast variant, h = {CUTOFF:g} sigma; on the CPU, no gradients",
    strength=SIGMA,
    denoiser=build,
    differentiable=False,
)
