"""Train the weights of `DnCNNSmall` on the photographs that come inside Python packages.

    python tests/denoiser/train_dncnn_small.py --minutes 25 --output weights.safetensors

No image is downloaded: about thirty photographs lie inside foolbox, sporco, scikit-image,
scikit-learn and PyWavelets, which come with the project.  `HELD_OUT` is never trained on, and
neither is a near copy of one of its images.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
import torch.nn.functional as functional
from torch import Tensor

from dipa_bench.data.photographs import HELD_OUT, TRAINING
from dipa_bench.priors.dncnn_small import DnCNNSmall, save_dncnn_small

SCALES = (1.0, 0.85, 0.7, 0.6, 0.5, 0.42, 0.35)
"""Every photograph is also seen shrunk: small images have sharper detail than large ones."""

LARGEST_SIGMA = 100 / 255
SMALL_SIGMA = 15 / 255


class CropSampler:
    """Random square crops of photographs at several scales, flipped and turned.

    Args:
        images: `1 x 1 x H x W` float images in [0, 1].
        side: Side of a crop in pixels, an even number.
        generator: The source of randomness.

    Raises:
        ValueError: If an image is smaller than a crop at the smallest scale.
    """

    def __init__(self, images: Sequence[Tensor], side: int, generator: torch.Generator) -> None:
        self.side = side
        self.generator = generator
        self.pyramid = [[_shrink(image, scale) for scale in SCALES] for image in images]
        smallest = min(min(level.shape) for levels in self.pyramid for level in levels)
        if smallest < side:
            raise ValueError(f"an image is {smallest} pixels wide when shrunk: crop <= {smallest}")

    def batch(self, size: int) -> Tensor:
        """Return `size x 1 x side x side` crops in [0, 1]."""
        return torch.stack([self._crop() for _ in range(size)])

    def _crop(self) -> Tensor:
        levels = self.pyramid[self._below(len(self.pyramid))]
        level = levels[self._below(len(levels))]
        top, left = (self._below(length - self.side + 1) for length in level.shape)
        crop = level[top : top + self.side, left : left + self.side]
        turn = self._below(8)
        crop = torch.rot90(crop, turn % 4)
        return (crop.flip(0) if turn >= 4 else crop)[None]

    def _below(self, bound: int) -> int:
        return int(torch.randint(bound, (), generator=self.generator))


def _shrink(image: Tensor, scale: float) -> Tensor:
    """Shrink a `1 x 1 x H x W` image without aliasing; returns `H' x W'` in [0, 1]."""
    if scale == 1.0:
        return image[0, 0]
    size = [round(length * scale) for length in image.shape[-2:]]
    small = functional.interpolate(image, size=size, mode="bicubic", antialias=True)
    return small[0, 0].clamp(0, 1)


def draw_sigma(size: int, generator: torch.Generator) -> Tensor:
    """Draw noise levels: four fifths from [0, 100/255], one fifth from [0, 15/255].

    Returns:
        `size x 1 x 1 x 1`, in units of the range [0, 1].
    """
    uniform = torch.rand(size, 1, 1, 1, generator=generator)
    small = torch.rand(size, 1, 1, 1, generator=generator) < 0.2
    return uniform * torch.where(small, SMALL_SIGMA, LARGEST_SIGMA)


def balanced_loss(denoised: Tensor, clean: Tensor, sigma: Tensor) -> Tensor:
    """Squared error over sigma: a denoiser's error grows about so, and each level counts alike."""
    error = (denoised - clean).square().mean(dim=(1, 2, 3), keepdim=True)
    return (error / (sigma + 1 / 255)).mean()


def one_cycle(progress: float, peak: float, warm_up: float = 0.05) -> float:
    """Learning rate at a progress in [0, 1]: a linear rise to `peak`, then a cosine to zero."""
    if progress < warm_up:
        return peak * max(progress / warm_up, 0.01)
    return peak * 0.5 * (1 + math.cos(math.pi * (progress - warm_up) / (1 - warm_up)))


def psnr(estimate: Tensor, clean: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB for a range of 1, unclipped: `B x 1 x H x W` to `B`."""
    return -10 * torch.log10((estimate - clean).square().mean(dim=(1, 2, 3)))


def center_crop(images: Tensor, side: int) -> Tensor:
    """Cut the middle `side x side` pixels, or all there are, out of `... x H x W` images."""
    for dim in (-2, -1):
        length = min(side, images.shape[dim])
        images = images.narrow(dim, (images.shape[dim] - length) // 2, length)
    return images


@torch.no_grad()
def held_out_psnr(network: DnCNNSmall, images: Sequence[Tensor], sigma: float) -> float:
    """Mean PSNR in dB over images, each with the same white Gaussian noise every time."""
    scores = []
    for index, clean in enumerate(images):
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(index))
        scores.append(float(psnr(network(clean + sigma * noise, sigma), clean)))
    return sum(scores) / len(scores)


@dataclass(frozen=True)
class TrainingPlan:
    """What a training run does; the schedule follows `steps`, or the clock if steps is None.

    Attributes:
        minutes: Wall-clock length of the run if `steps` is None.
        steps: Number of optimiser steps; repeats exactly on the same machine and versions.
        seed: Seed of the weights, the crops and the noise.
        batch: Crops in a step.
        side: Side of a crop in pixels.
        learning_rate: Highest learning rate of Adam.
        bfloat16: Convolve in bfloat16 (several times faster on recent CPUs); weights, losses
            and updates stay in float32.
        features: Channels of the network.
        depth: Convolutions of the network.
    """

    minutes: float = 25.0
    steps: int | None = None
    seed: int = 0
    batch: int = 32
    side: int = 64
    learning_rate: float = 2e-3
    bfloat16: bool = True
    features: int = 64
    depth: int = 6


def train(
    plan: TrainingPlan, images: Sequence[Tensor], watched: Sequence[Tensor]
) -> tuple[DnCNNSmall, int]:
    """Train a network.

    Args:
        plan: Length, seed and sizes of the run.
        images: `1 x 1 x H x W` clean training images in [0, 1].
        watched: Clean held-out images, only to print a score now and then.

    Returns:
        The trained network and the number of steps taken.
    """
    torch.manual_seed(plan.seed)
    generator = torch.Generator().manual_seed(plan.seed)
    network = DnCNNSmall(plan.features, plan.depth).to(memory_format=torch.channels_last)
    optimiser = torch.optim.Adam(network.parameters(), lr=plan.learning_rate)
    sampler = CropSampler(images, plan.side, generator)
    started, step, printed, running = time.perf_counter(), 0, 0.0, math.nan
    while (progress := _progress(plan, step, time.perf_counter() - started)) < 1:
        for group in optimiser.param_groups:
            group["lr"] = one_cycle(progress, plan.learning_rate)
        clean = sampler.batch(plan.batch)
        sigma = draw_sigma(plan.batch, generator)
        noisy = clean + sigma * torch.randn(clean.shape, generator=generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=plan.bfloat16):
            denoised = network(noisy, sigma)
        loss = balanced_loss(denoised.float(), clean, sigma)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        step += 1
        running = loss.item() if math.isnan(running) else 0.99 * running + 0.01 * loss.item()
        if progress >= printed:
            printed = progress + 0.05
            _report(network, watched, step, progress, running)
    _report(network, watched, step, 1.0, running)
    return network, step


def _progress(plan: TrainingPlan, step: int, seconds: float) -> float:
    if plan.steps is not None:
        return step / plan.steps
    return seconds / (60 * plan.minutes)


def _report(
    network: DnCNNSmall, watched: Sequence[Tensor], step: int, progress: float, loss: float
) -> None:
    scores = ", ".join(
        f"{level}: {held_out_psnr(network, watched, level / 255):.2f}" for level in (5, 15, 25, 50)
    )
    print(f"{progress:4.0%} step {step:6d} loss {loss:.5f} held-out PSNR {scores} dB", flush=True)


def describe(plan: TrainingPlan, steps: int) -> dict[str, str]:
    """What a weights file says of its making; no date, so that equal runs give equal files."""
    distributions = ("torch", "foolbox", "sporco", "scikit-image", "scikit-learn", "PyWavelets")
    return {
        "steps": str(steps),
        "seed": str(plan.seed),
        "batch": f"{plan.batch} x 1 x {plan.side} x {plan.side}",
        "learning_rate": str(plan.learning_rate),
        "bfloat16": str(plan.bfloat16),
        "versions": " ".join(f"{name}=={version(name)}" for name in distributions),
        "images": " ".join(image.name for image in TRAINING),
        "held_out": " ".join(image.name for image in HELD_OUT),
    }


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    defaults = TrainingPlan()
    parser.add_argument("--output", type=Path, required=True, help="safetensors file to write")
    parser.add_argument("--minutes", type=float, default=defaults.minutes, help="wall clock")
    parser.add_argument("--steps", type=int, help="train so many steps instead of minutes")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--batch", type=int, default=defaults.batch, help="crops in a step")
    parser.add_argument("--side", type=int, default=defaults.side, help="pixels of a crop")
    parser.add_argument("--learning-rate", type=float, default=defaults.learning_rate)
    parser.add_argument("--features", type=int, default=defaults.features)
    parser.add_argument("--depth", type=int, default=defaults.depth)
    parser.add_argument("--float32", action="store_true", help="no bfloat16 in convolutions")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    plan = TrainingPlan(
        minutes=options.minutes,
        steps=options.steps,
        seed=options.seed,
        batch=options.batch,
        side=options.side,
        learning_rate=options.learning_rate,
        bfloat16=not options.float32,
        features=options.features,
        depth=options.depth,
    )
    images = [image.load() for image in TRAINING]
    watched = [center_crop(image.load(), 128) for image in HELD_OUT]
    started = time.perf_counter()
    network, steps = train(plan, images, watched)
    save_dncnn_small(network, options.output, describe(plan, steps))
    seconds = time.perf_counter() - started
    print(f"{steps} steps in {seconds:.0f} s: {options.output}")


if __name__ == "__main__":
    main()
