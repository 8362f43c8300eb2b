"""Image sets, split by subject, with digests."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dipa_bench import digests
from dipa_bench.data.signals import magnitude
from dipa_bench.errors import UserError

log = logging.getLogger(__name__)
ROUNDING = 1e-6  # a magnitude of 1 after rounding of its parts


SMALLEST = 11  # pixels on a side of an image: the window of SSIM


@dataclass(frozen=True)
class ImageSet:
    """Images of one split.

    Attributes:
        pixels: N x C x H x W, float32, on the CPU: gray (C = 1) or colour (3) in [0, 1], or complex
            (2: real and imaginary part) of magnitude at most 1.
        names: one per image, unique.
        subjects: whom each image shows; equal for images that are not independent.
    """

    pixels: Tensor
    names: tuple[str, ...]
    subjects: tuple[str, ...]

    def __post_init__(self) -> None:
        if not len(self.pixels) == len(self.names) == len(self.subjects):
            raise ValueError("pixels, names and subjects differ in length")
        if self.pixels.dim() != 4 or self.pixels.shape[1] not in (1, 2, 3):
            raise ValueError(f"pixels are {tuple(self.pixels.shape)}, not N x 1, 2 or 3 x H x W")
        shown = magnitude(self.pixels)
        if len(shown) and not (shown.min() >= 0 and shown.max() <= 1 + ROUNDING):
            raise ValueError("pixels are outside [0, 1]")

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def digest(self) -> str:
        """Digest of pixels, names and subjects."""
        return digests.of(self.pixels, list(self.names), list(self.subjects))

    def first(self, count: int | None) -> ImageSet:
        """`count` images spread evenly over the set (so over its subjects); all for None."""
        if count is None or count >= len(self):
            return self
        return self.at(np.unique(np.linspace(0, len(self) - 1, count).round().astype(int)))

    def at(self, index: Sequence[int]) -> ImageSet:
        """The images at some positions."""
        return ImageSet(
            self.pixels[torch.as_tensor(index)],
            tuple(self.names[i] for i in index),
            tuple(self.subjects[i] for i in index),
        )


@dataclass(frozen=True)
class Splits:
    """Training, validation and test images, disjoint by subject; reads of the test are logged."""

    train: ImageSet
    validation: ImageSet
    _test: ImageSet
    reads: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        parts = {"train": self.train, "validation": self.validation, "test": self._test}
        for name, part in parts.items():
            if not len(part):
                raise UserError(f"the {name} split is empty: give at least 3 images (or subjects)")
        sets = [set(part.subjects) for part in parts.values()]
        if sum(map(len, sets)) != len(set().union(*sets)):
            raise ValueError("a subject is in two splits")

    def test(self, reason: str) -> ImageSet:
        """The test images; `reason` goes to the log and to `reads`."""
        log.info("test images read: %s", reason)
        self.reads.append(reason)
        return self._test

    @property
    def test_count(self) -> int:
        """How many test images there are; knowing that is no read."""
        return len(self._test)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images."""
        return tuple(self.train.pixels.shape[1:])

    def map(self, change: Callable[[ImageSet], Tensor]) -> Splits:
        """The same splits with other pixels: `change` gives those of one split."""
        parts = (self.train, self.validation, self._test)
        return Splits(*(replace(part, pixels=change(part)) for part in parts))

    @cached_property
    def digest(self) -> str:
        """Digest over all three splits."""
        return digests.of(self.train.digest, self.validation.digest, self._test.digest)


@dataclass(frozen=True)
class ImageRequest:
    """What a study wants of a dataset.

    Attributes:
        size: pixels on a side of the square images.
        color: three channels instead of gray.
        root: where the data lies, for datasets that are read from disk; None for a place of their
            own, into which they may download.
    """

    size: int
    color: bool = False
    root: Path | None = None


@dataclass(frozen=True)
class DatasetSpec:
    """A registered dataset.

    Attributes:
        name, title, summary: for `dipa-bench list`.
        load: the splits; a `UserError` where the data is missing or does not fit the request.
        caveat: what a reader of results on it has to know, shown beside the leaderboard.
        embedded: whether it comes with the installation (no disk folder, no download).
    """

    name: str
    title: str
    summary: str
    load: Callable[[ImageRequest], Splits]
    caveat: str = ""
    embedded: bool = True


def square(picture: np.ndarray, size: int) -> np.ndarray:
    """Crops the central square and resizes it.

    Reduced with cubic splines and antialiasing; enlarged linearly, which does not overshoot (and is
    what the published runs did to digits).

    Args:
        picture: H x W or H x W x 3, in [0, 1].
        size: pixels on a side of the result.

    Returns:
        size x size (x 3), float32, clipped to [0, 1].
    """
    from skimage.transform import resize

    height, width = picture.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    crop = picture[top : top + side, left : left + side]
    if side != size:
        shape = (size, size, *picture.shape[2:])
        smaller = size < side
        order = 3 if smaller else 1
        crop = resize(crop, shape, order=order, mode="reflect", anti_aliasing=smaller)
    return np.clip(crop, 0, 1).astype(np.float32)


def stack(pictures: Sequence[np.ndarray]) -> Tensor:
    """N x 1 x H x W from gray pictures of one size, N x 3 x H x W from H x W x 3 ones."""
    pixels = torch.from_numpy(np.stack(pictures))
    return pixels[:, None] if pixels.dim() == 3 else pixels.movedim(-1, 1).contiguous()


def select(
    pixels: Tensor, names: Sequence[str], subjects: Sequence[str], wanted: set[str]
) -> ImageSet:
    """The images whose subject is in `wanted`."""
    index = [i for i, subject in enumerate(subjects) if subject in wanted]
    return ImageSet(
        pixels[index], tuple(names[i] for i in index), tuple(subjects[i] for i in index)
    )
