"""The prior: a denoiser with a strength that a search can turn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dipa_bench import digests
from dipa_bench.errors import UserError
from dipa_bench.parameters import Search, Setting


@dataclass(frozen=True)
class Strength:
    """The unit and range of a prior's strength.

    Attributes:
        name: ``sigma`` (noise level, in units of the image range), ``scale`` (s of s D(v/s)) or
            ``threshold`` (weight of a variational prior).
        default: used by untuned runs.
        low, high: the range worth searching, in the logarithm.
        published: the value that stands for the paper's prior (DnCNN trained at sigma = 2/255).
    """

    name: str
    default: float
    low: float
    high: float
    published: float

    def setting(self) -> Setting:
        """The same as a hyper-parameter's default and range."""
        return Setting(self.default, Search(self.low, self.high, log=True))


class Prior(nn.Module):
    """A denoiser D(v; strength); each image of a batch by itself, parameters frozen.

    A gray denoiser works on every channel by itself; a colour one refuses anything but three.

    Args:
        name: how records call it.
        strength: its unit and range.
        denoise: the function (v, strength) -> denoised, B x C x H x W; strength is a number or
            B x 1 x 1 x 1. A module's weights are frozen.
        channels: of the images it takes: 1, 3, or None for any.
        identity: what tells two priors of one name apart, e.g. a digest of a file.
        differentiable: whether gradients pass through it.
    """

    def __init__(
        self,
        name: str,
        strength: Strength,
        denoise: Callable[[Tensor, float | Tensor], Tensor],
        *,
        channels: int | None = 1,
        identity: str = "",
        differentiable: bool = True,
    ) -> None:
        super().__init__()
        self.name = name
        self.strength = strength
        self.channels = channels
        self.differentiable = differentiable
        self._identity = identity
        self._denoise = denoise
        self.eval().requires_grad_(False)

    def check(self, channels: int) -> None:
        """Raises `UserError` where a colour denoiser is given images without three channels."""
        if self.channels not in (None, 1, channels):
            raise UserError(
                f"prior {self.name!r} denoises images of {self.channels} channels, these have "
                f"{channels}: choose a gray prior, or --set problem.color=true"
            )

    def forward(self, noisy: Tensor, strength: float | Tensor) -> Tensor:
        """The denoised batch.

        Raises:
            UserError: a colour denoiser was given images without three channels.
        """
        count = noisy.shape[1]
        if self.channels in (None, count):
            return self._denoise(noisy, strength)
        self.check(count)
        if isinstance(strength, Tensor) and strength.numel() > 1:
            strength = strength.repeat_interleave(count, 0)
        return self._denoise(noisy.flatten(0, 1)[:, None], strength).view_as(noisy)

    def digest(self) -> str:
        """Digest of name, identity and weights; part of the key of every cached teacher."""
        return digests.of(self.name, self._identity, *self.state_dict().values())


@dataclass(frozen=True)
class PriorSpec:
    """A registered prior.

    Attributes:
        name, title, summary: for `dipa-bench list`.
        strength: unit and range of its strength.
        denoiser: makes the function (v, strength) -> denoised on the CPU in float32; a `UserError`
            where weights or a package are missing.
        channels: of the images it takes: 1 (gray, so every channel by itself), 3, or None for any.
        differentiable: whether gradients pass through it, as training by unrolling needs.
        download: file of weights that its first use downloads (see `priors.downloads`), or None.
    """

    name: str
    title: str
    summary: str
    strength: Strength
    denoiser: Callable[[], Callable[[Tensor, float | Tensor], Tensor]]
    channels: int | None = 1
    differentiable: bool = True
    download: str | None = None

    @property
    def traits(self) -> str:
        """What it takes and lets pass, in words."""
        images = {1: "gray", 3: "colour", None: "gray or colour"}[self.channels]
        gradients = "differentiable" if self.differentiable else "no gradients"
        return f"{images}, strength {self.strength.name}, {gradients}"

    def build(self) -> Prior:
        """The prior, on the CPU.

        Raises:
            UserError: weights or a package are missing.
        """
        return Prior(
            self.name,
            self.strength,
            self.denoiser(),
            channels=self.channels,
            differentiable=self.differentiable,
        )


class Scaled(nn.Module):
    """s D(v / s) for a denoiser D that takes no noise level: s times its strength."""

    def __init__(self, denoiser: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, noisy: Tensor, scale: float | Tensor) -> Tensor:
        return scale * self.denoiser(noisy / scale)


SIGMA = Strength("sigma", default=0.1, low=0.005, high=0.3, published=2 / 255)
SCALE = Strength("scale", default=1.0, low=0.5, high=40.0, published=1.0)
THRESHOLD = Strength("threshold", default=0.02, low=1e-3, high=1.0, published=2 / 255)


def probe(prior: Prior) -> None:
    """Raises ValueError unless `prior` maps a small batch to finite values of the same shape."""
    channels = prior.channels or 1
    batch = torch.linspace(0, 1, 2 * channels * 256).reshape(2, channels, 16, 16)
    with torch.no_grad():
        result = prior(batch, prior.strength.default)
    if not isinstance(result, Tensor) or result.shape != batch.shape:
        shape = tuple(getattr(result, "shape", ()))
        raise ValueError(f"it maps {tuple(batch.shape)} to {shape or type(result).__name__}")
    if not torch.isfinite(result).all():
        raise ValueError("it returns values that are not finite")
