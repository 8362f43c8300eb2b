"""Settings of a solver: one number for a batch, or one for each image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Number = float | Tensor  # a number, or one per image as B x 1 x 1 x 1


def per_image(values: Sequence[float], count: int, like: Tensor) -> Number:
    """Numbers of consecutive parts of a batch as B x 1 x 1 x 1; one number if they are equal.

    Args:
        values: one for each part.
        count: images in a part.
        like: of the dtype and device at hand.
    """
    if all(value == values[0] for value in values):
        return values[0]
    found = torch.tensor(values, dtype=like.dtype, device=like.device)
    return found.repeat_interleave(count).view(-1, 1, 1, 1)
