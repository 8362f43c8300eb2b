"""Denoisers of numpy arrays as functions of batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class OneByOne:
    """Lets a function of one gray image denoise batches, without gradients.

    Attributes:
        denoise: (H x W float64, sigma) -> H x W. It never sees values that are not finite: such
            images, which a diverging solver makes, become all NaN.
    """

    denoise: Callable[[np.ndarray, float], np.ndarray]

    def __call__(self, noisy: Tensor, sigma: float | Tensor) -> Tensor:
        """Denoised B x 1 x H x W, of `noisy`'s type and device, outside of any graph."""
        levels = torch.as_tensor(sigma, dtype=torch.float64).detach().cpu().reshape(-1)
        images = noisy.detach().to("cpu", torch.float64).numpy()
        found = np.full_like(images, np.nan)
        for index, level in enumerate(levels.expand(len(images)).tolist()):
            if np.isfinite(images[index]).all():
                found[index, 0] = self.denoise(images[index, 0], level)
        return torch.from_numpy(found).to(noisy)
