"""Gray, colour and complex images: what their channels mean.

A batch is B x C x H x W throughout: C = 1 gray, C = 3 colour, C = 2 complex (real and imaginary
part, as deepinv has them). PSNR, pictures and most priors look at a complex image's magnitude.
"""

from __future__ import annotations

import torch
from torch import Tensor

COMPLEX = 2  # channels


def is_complex(images: Tensor) -> bool:
    """Whether a batch B x C x H x W holds complex images."""
    return images.shape[1] == COMPLEX


def magnitude(images: Tensor) -> Tensor:
    """|x| of complex images as B x 1 x H x W; gray and colour ones as they are.

    Differentiable; the derivative at 0 is taken as 0.
    """
    if not is_complex(images):
        return images
    return torch.linalg.vector_norm(images, dim=1, keepdim=True)
