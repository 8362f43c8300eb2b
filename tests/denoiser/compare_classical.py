"""Compare `DnCNNSmall` with the classical denoisers of scikit-image on the same noisy images.

    python tests/denoiser/compare_classical.py --sigmas 15 25 50 --side 192

Each classical method gets a grid of settings, and the one with the best mean PSNR over the very
images that are scored: a choice in its favour.  The network has nothing to choose.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
from skimage import restoration
from train_dncnn_small import center_crop

from dipa_bench.data.photographs import HELD_OUT
from dipa_bench.priors.dncnn_small import DnCNNSmall, load_dncnn_small

Denoise = Callable[[np.ndarray, float], np.ndarray]
"""Takes an `H x W` noisy image and sigma in the units of the range [0, 1]; returns `H x W`."""


@dataclass(frozen=True)
class NonLocalMeans:
    """Patches of 5 x 5, searched within 6 pixels, or as given; `h` is in units of sigma."""

    h: float
    fast: bool
    patch: int = 5
    distance: int = 6

    def __call__(self, noisy: np.ndarray, sigma: float) -> np.ndarray:
        return restoration.denoise_nl_means(
            noisy,
            patch_size=self.patch,
            patch_distance=self.distance,
            h=self.h * sigma,
            sigma=sigma,
            fast_mode=self.fast,
        )


@dataclass(frozen=True)
class Wavelet:
    """Wavelet thresholding, averaged over the shifts up to `shifts` in each direction.

    VisuShrink's threshold belongs to `scale` times sigma; 1 is the textbook's.
    """

    method: str
    wavelet: str
    mode: str = "soft"
    scale: float = 1.0
    shifts: int = 4

    def __call__(self, noisy: np.ndarray, sigma: float) -> np.ndarray:
        total = np.zeros_like(noisy)
        shifts = list(product(range(self.shifts + 1), repeat=2))
        for shift in shifts:
            moved = restoration.denoise_wavelet(
                np.roll(noisy, shift, axis=(0, 1)),
                sigma=self.scale * sigma,
                wavelet=self.wavelet,
                mode=self.mode,
                method=self.method,
            )
            total += np.roll(moved, (-shift[0], -shift[1]), axis=(0, 1))
        return total / len(shifts)


@dataclass(frozen=True)
class TotalVariation:
    """Chambolle's total variation; the weight is in units of sigma."""

    weight: float

    def __call__(self, noisy: np.ndarray, sigma: float) -> np.ndarray:
        return restoration.denoise_tv_chambolle(noisy, weight=self.weight * sigma)


@dataclass(frozen=True)
class SplitBregman:
    """Split-Bregman total variation; the weight (of the data) is in units of 1 / sigma."""

    weight: float
    isotropic: bool = True

    def __call__(self, noisy: np.ndarray, sigma: float) -> np.ndarray:
        return restoration.denoise_tv_bregman(
            noisy, weight=self.weight / sigma, isotropic=self.isotropic
        )


@dataclass(frozen=True)
class Bilateral:
    """Bilateral filter; `color` is in units of sigma, `spatial` in pixels."""

    color: float
    spatial: float

    def __call__(self, noisy: np.ndarray, sigma: float) -> np.ndarray:
        lowest = noisy.min()  # the filter refuses negative images and ignores a shift
        filtered = restoration.denoise_bilateral(
            noisy - lowest,
            sigma_color=self.color * sigma,
            sigma_spatial=self.spatial,
            mode="symmetric",
        )
        return filtered + lowest


def classical_grid() -> Iterator[Denoise]:
    """Every classical setting of the wide search."""
    for h, fast in product((0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.4), (False, True)):
        yield NonLocalMeans(h, fast)
    for h in (0.4, 0.5, 0.6, 0.7, 0.8):  # a wider search with larger patches
        yield NonLocalMeans(h, fast=True, patch=7, distance=11)
    for wavelet, mode in product(("db1", "db2", "sym4"), ("soft", "hard")):
        yield Wavelet("BayesShrink", wavelet, mode)
        for scale in (0.25, 0.5, 0.75, 1.0):
            yield Wavelet("VisuShrink", wavelet, mode, scale)
    for weight in (0.3, 0.45, 0.6, 0.75, 0.9, 1.1, 1.3):
        yield TotalVariation(weight)
    for weight, isotropic in product((0.5, 0.7, 0.9, 1.2, 1.6, 2.2, 3.0), (True, False)):
        yield SplitBregman(weight, isotropic)
    for color, spatial in product((1.0, 1.5, 2.0, 2.5, 3.0, 4.0), (0.7, 1.0, 1.5, 2.0, 3.0)):
        yield Bilateral(color, spatial)


@dataclass(frozen=True)
class NoisySet:
    """Clean images and the same with white Gaussian noise, each `H x W` float64.

    Attributes:
        clean: Images in [0, 1].
        noisy: The same images plus noise, not clipped.
        sigma: The noise's standard deviation, in units of the range.
    """

    clean: tuple[np.ndarray, ...]
    noisy: tuple[np.ndarray, ...]
    sigma: float

    @classmethod
    def draw(cls, clean: Sequence[np.ndarray], sigma: float, seed: int = 0) -> NoisySet:
        """Add noise; the same seed gives the same noise."""
        random = np.random.default_rng(seed)
        noisy = tuple(image + sigma * random.standard_normal(image.shape) for image in clean)
        return cls(tuple(clean), noisy, sigma)

    def scores(self, denoise: Denoise) -> list[float]:
        """PSNR in dB of each image (range 1, unclipped)."""
        pairs = zip(self.clean, self.noisy, strict=True)
        errors = (np.square(denoise(noisy, self.sigma) - clean).mean() for clean, noisy in pairs)
        return [float(-10 * np.log10(error)) for error in errors]

    def mean(self, denoise: Denoise) -> float:
        """Mean PSNR in dB over the images."""
        return float(np.mean(self.scores(denoise)))


def as_denoise(network: DnCNNSmall) -> Denoise:
    """Let a network denoise `H x W` arrays, in float32."""

    @torch.no_grad()
    def denoise(noisy: np.ndarray, sigma: float) -> np.ndarray:
        image = torch.as_tensor(noisy, dtype=torch.float32)[None, None]
        return network(image, sigma)[0, 0].double().numpy()

    return denoise


def search_classical(noisy_set: NoisySet) -> dict[str, tuple[float, Denoise]]:
    """Find the best setting of every classical method on a set.

    Returns:
        For each method's name, its best mean PSNR in dB and the setting that reached it.
    """
    best: dict[str, tuple[float, Denoise]] = {}
    for denoise in classical_grid():
        name = getattr(denoise, "method", type(denoise).__name__)
        mean = noisy_set.mean(denoise)
        if name not in best or mean > best[name][0]:
            best[name] = (mean, denoise)
    return best


def held_out_crops(side: int, package: str | None = None) -> list[np.ndarray]:
    """Middles of the held-out images, `side x side` (or smaller) float64 in [0, 1].

    Args:
        side: Side of the crops in pixels.
        package: Take only this package's images, e.g. `"skimage"`.
    """
    return [
        center_crop(image.load(), side)[0, 0].double().numpy()
        for image in HELD_OUT
        if package in (None, image.package)
    ]


def print_comparison(network: DnCNNSmall, noisy_set: NoisySet) -> None:
    """Print the network's and each classical method's best mean PSNR, best first."""
    rows = [("DnCNNSmall", noisy_set.scores(as_denoise(network)), "")]
    for name, (_, denoise) in search_classical(noisy_set).items():
        rows.append((name, noisy_set.scores(denoise), str(denoise)))
    print(f"\nsigma {noisy_set.sigma * 255:g}/255, {len(noisy_set.clean)} images: PSNR in dB")
    for name, scores, setting in sorted(rows, key=lambda row: -np.mean(row[1])):
        each = " ".join(f"{score:5.2f}" for score in scores)
        print(f"{np.mean(scores):6.2f}  {name:<15} [{each}]  {setting}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sigmas", type=float, nargs="+", default=[15, 25, 50], help="of 255")
    parser.add_argument("--side", type=int, default=192, help="pixels of the middle crops")
    parser.add_argument("--package", help="only this package's held-out images")
    parser.add_argument("--weights", type=Path, help="safetensors file (default: the shipped one)")
    options = parser.parse_args(arguments)
    network = load_dncnn_small(options.weights)
    images = held_out_crops(options.side, options.package)
    for sigma in options.sigmas:
        print_comparison(network, NoisySet.draw(images, sigma / 255))


if __name__ == "__main__":
    main()
