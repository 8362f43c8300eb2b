"""`bm3d`: block matching and collaborative filtering, by the package of its authors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from dipa_bench.errors import UserError, brief
from dipa_bench.priors.arrays import OneByOne
from dipa_bench.priors.base import SIGMA, PriorSpec

SMALLEST = 16  # pixels: the package refuses sides below 8, and 8 x 8 ends the process


def denoise(noisy: np.ndarray, sigma: float) -> np.ndarray:
    """BM3D for white noise; H x W, not clipped.

    One thread, as several add up in an order that changes from call to call. No spectral estimate
    of the variances (``nf``), which is for coloured noise and takes 0.3 s an image. Images smaller
    than 16 pixels are continued by mirrors.
    """
    import bm3d

    profile = bm3d.BM3DProfile()
    profile.num_threads = 1
    profile.nf = 0
    height, width = noisy.shape
    room = [(0, max(0, SMALLEST - side)) for side in noisy.shape]
    return bm3d.bm3d(np.pad(noisy, room, mode="symmetric"), sigma, profile)[:height, :width]


def build() -> Callable[[Tensor, float | Tensor], Tensor]:
    """BM3D, image by image on the CPU.

    Raises:
        UserError: the package is missing or cannot be loaded.
    """
    try:
        import bm3d  # noqa: F401
    except Exception as error:  # it loads a library of its own, which may not suit the machine
        raise UserError(
            f"the prior 'bm3d' needs a package ({brief(error)}): pip install 'dipa-bench[bm3d]' "
            "(its licence is for non-commercial use)"
        ) from None
    return OneByOne(denoise)


SPEC = PriorSpec(
    name="bm3d",
    title="BM3D",
    summary="the authors' package, dipa-bench[bm3d]; on the CPU, no gradients",
    strength=SIGMA,
    denoiser=build,
    differentiable=False,
)
