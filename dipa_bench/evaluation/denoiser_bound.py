"""How bounded and how expansive a task's prior is, as far as samples show."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dipa_bench import digests
from dipa_bench.priors.base import Prior
from dipa_bench.tasks.base import Task

IMAGES = 8  # training images
FEWER = 2  # of them for priors without gradients, which work image by image and take their time
LEVELS = 5  # strengths, the ends of the prior's range included
STEPS = 20  # of the search for an expansive direction
NOISE = 2 / 255  # the noise level that a prior's published strength stands for


@dataclass(frozen=True)
class DenoiserBound:
    """The constants of a bounded denoiser D, all of them lower bounds: samples cannot give more.

    Assumption 1 of DIPA (arXiv 2605.15456) is that of Chan, Wang, Elgendy, Plug-and-play ADMM for
    image restoration, IEEE TCI 3, 2017, arXiv 1605.01710, definition 1: for every v of n entries
    ||D(v; s) - v||^2 <= n s^2 C, C free of n and s. Entries are in units of the image range; a
    complex pixel counts as two.

    Attributes:
        unit: of s, as in `dipa_bench.priors.base.Strength`.
        strengths: s, ascending.
        constants: the largest ||D(v; s) - v||^2 / (n s^2) found at each s.
        strength: the prior's default, at which `lipschitz` was measured.
        lipschitz: the largest ||R(u) - R(v)|| / ||u - v|| found, R = I - D; above 1 the residual
            map is not nonexpansive.
        images: how many training images the samples were made from.
    """

    unit: str
    strengths: tuple[float, ...]
    constants: tuple[float, ...]
    strength: float
    lipschitz: float
    images: int

    @property
    def constant(self) -> float:
        """The least C that holds for every sample."""
        return max(self.constants)

    def sentence(self) -> str:
        """What the samples say of Assumption 1 and of nonexpansiveness, in two sentences."""
        span = f"{self.strengths[0]:g} to {self.strengths[-1]:g}"
        verdict = "is not nonexpansive" if self.lipschitz > 1 else "looks nonexpansive"
        return (
            f"The prior needs a C of at least {self.constant:.3g} to be bounded by n s^2 C "
            f"(Assumption 1) for s ({self.unit}) from {span}. Its residual map I - D {verdict} at "
            f"s = {self.strength:g}: the largest Lipschitz ratio found is {self.lipschitz:.3g}."
        )


@torch.no_grad()
def denoiser_bound(task: Task) -> DenoiserBound:
    """The constants of the task's prior, estimated on training images.

    D is tried on clean images, on the same with Gaussian noise, on A^T y and on uniform noise. The
    standard deviation of the Gaussian noise is s itself where s is a noise level; in other units it
    is what s stands for, counted from the prior's published strength (see `noise_level`).

    Args:
        task: whose prior, operator and training images are used.
    """
    prior = task.prior
    images = task.images.train.first(IMAGES if prior.differentiable else FEWER)
    clean = task.pixels(images)
    adjoint = task.student.A_adjoint(task.measure(images))
    uniform = _draw(torch.rand, clean, "uniform")
    unit = _draw(torch.randn, clean, "normal")

    def samples(strength: float) -> Tensor:
        noisy = clean + noise_level(prior, strength) * unit
        return torch.cat([clean, noisy, adjoint, uniform])

    default = prior.strength.default
    strengths = _strengths(prior)
    steps = noise_level(prior, default) * _draw(torch.randn, samples(default), "steps")
    return DenoiserBound(
        unit=prior.strength.name,
        strengths=strengths,
        constants=tuple(constant(prior, s, samples(s)) for s in strengths),
        strength=default,
        lipschitz=lipschitz(prior, default, samples(default), steps),
        images=len(images),
    )


def noise_level(prior: Prior, strength: float) -> float:
    """The standard deviation of the noise that a strength is meant for, range 1."""
    return strength * NOISE / prior.strength.published


def constant(prior: Prior, strength: float, images: Tensor) -> float:
    """The largest ||D(v; s) - v||^2 / (n s^2) of a batch.

    Args:
        prior: D.
        strength: s.
        images: the v, B x C x H x W.
    """
    moved = (prior(images, strength) - images).flatten(1)
    return (moved.square().mean(1).max() / strength**2).item()


def lipschitz(
    prior: Prior, strength: float, points: Tensor, steps: Tensor, rounds: int = STEPS
) -> float:
    """The largest ||R(v + d) - R(v)|| / ||d|| found, R = I - D.

    Each d is turned `rounds` times to R(v + d) - R(v), its length kept: power iteration where R is
    linear and symmetric, and everywhere a ratio that R really has.

    Args:
        prior: D.
        strength: s.
        points: the v, B x C x H x W.
        steps: the first d, likewise, none of them zero.
        rounds: how often the d are turned.
    """

    def residual(v: Tensor) -> Tensor:
        return v - prior(v, strength)

    fixed, length = residual(points), _norm(steps)
    largest = torch.zeros_like(length)
    for _ in range(rounds + 1):
        change = residual(points + steps) - fixed
        size = _norm(change)
        largest = torch.maximum(largest, size / length)
        steps = torch.where(size > 0, change * (length / size.clamp_min(_tiny(size))), steps)
    return largest.max().item()


def _strengths(prior: Prior) -> tuple[float, ...]:
    """The prior's range, evenly in the logarithm, and its default."""
    found = prior.strength
    ratio = found.high / found.low
    inside = [found.low * ratio ** (k / (LEVELS - 1)) for k in range(LEVELS - 1)]
    return tuple(sorted({*inside, found.high, found.default}))


def _draw(kind: Callable[..., Tensor], like: Tensor, name: str) -> Tensor:
    """Random images, the same on every device."""
    generator = torch.Generator().manual_seed(digests.seed("denoiser bound", name))
    return kind(like.shape, generator=generator, dtype=torch.float64).to(like)


def _norm(images: Tensor) -> Tensor:
    """Of each image, B x 1 x 1 x 1."""
    return torch.linalg.vector_norm(images.flatten(1), dim=1).view(-1, 1, 1, 1)


def _tiny(like: Tensor) -> float:
    return torch.finfo(like.dtype).tiny
