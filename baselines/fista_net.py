"""`fista-net`: FISTA unrolled into layers, with a learned proximal map.

Layer k = 0, 1, ... of K, after Xiang, Dong and Yang (FISTA-Net, IEEE TMI 2021, arXiv 2008.02683)::

    r_k = z_k - mu_k A^T (A z_k - y) / lambda_max(A^T A)
    x_k = [r_k + G(F~(soft(F(D(r_k)), theta_k)))]_+
    z_k+1 = x_k + rho_k (x_k - x_k-1)

from z_0 = x_-1 = A^T y / lambda_max. D, F, F~ and G are convolutions, the same in all layers; the
positive part is taken of real images alone. mu_k and theta_k fall with k and rho_k rises from 0,
each through a softplus of a line in k whose slope has the right sign.

Loss: mean squared error + 0.01 sum_k ||F~(F(D r_k)) - D r_k||^2 + 0.001 sum_k ||F(D r_k)||_1, both
as means over pixels and features (the latter after thresholding, as the authors' code has it).

Another than in the paper: the data gradient is relative to lambda_max of the operator at hand, so
that one network serves operators of any scale. lambda_max is no part of the trained numbers.
"""

from __future__ import annotations

from typing import Annotated

import torch
from deepinv.physics import LinearPhysics
from pydantic import Field
from torch import Tensor, nn

from baselines.end_to_end import EndToEndParameters, Network, end_to_end
from dipa_bench.data.signals import COMPLEX
from dipa_bench.parameters import Search
from dipa_bench.tasks.base import Task

DEPTH = 4  # convolutions in each of F and F~


class FISTANetParameters(EndToEndParameters):
    """Sizes of the network and weights of its loss."""

    layers: Annotated[
        int, Field(ge=1, le=50, description="unrolled iterations"), Search(choices=(3, 5, 7))
    ] = 5
    features: Annotated[
        int, Field(ge=1, le=256, description="of a convolution"), Search(choices=(8, 16, 32))
    ] = 16
    symmetry: Annotated[
        float, Field(ge=0, description="weight of ||F~(F(x)) - x||^2 in the loss")
    ] = 0.01
    sparsity: Annotated[
        float, Field(ge=0, description="weight of the thresholded features' 1-norm in the loss")
    ] = 0.001


def _convolutions(features: int) -> nn.Sequential:
    parts: list[nn.Module] = []
    for _ in range(DEPTH):
        parts += [nn.Conv2d(features, features, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*parts[:-1])


def soft(values: Tensor, threshold: Tensor) -> Tensor:
    """sign(v) max(|v| - threshold, 0)."""
    return values.sign() * (values.abs() - threshold).relu()


class Proximal(nn.Module):
    """r + G(F~(soft(F(D(r)), theta))).

    Args:
        channels: of the images.
        features: of the learned space.
    """

    def __init__(self, channels: int, features: int) -> None:
        super().__init__()
        self.lift = nn.Conv2d(channels, features, 3, padding=1)
        self.analysis = _convolutions(features)
        self.synthesis = _convolutions(features)
        self.drop = nn.Conv2d(features, channels, 3, padding=1)
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.xavier_normal_(part.weight)
                nn.init.zeros_(part.bias)

    def forward(self, image: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The image, B x C x H x W; D r, F(D r) and what soft thresholding leaves of it."""
        lifted = self.lift(image)
        coded = self.analysis(lifted)
        kept = soft(coded, threshold)
        return image + self.drop(self.synthesis(kept)), lifted, coded, kept


class Line(nn.Module):
    """softplus(offset + sign |slope| k), which rises (sign 1) or falls (-1) with k."""

    def __init__(self, offset: float, slope: float, sign: int) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.tensor(offset))
        self.slope = nn.Parameter(torch.tensor(slope))
        self.sign = sign

    def forward(self, layer: int) -> Tensor:
        return nn.functional.softplus(self.offset + self.sign * layer * self.slope.abs())


class FISTANet(Network):
    """The network.

    Args:
        channels: of the images; two are complex.
        largest: lambda_max(A^T A) of the operator that it is used with.
        parameters: sizes and weights.
    """

    def __init__(self, channels: int, largest: float, parameters: FISTANetParameters) -> None:
        super().__init__()
        self.layers, self.largest = parameters.layers, largest
        self.symmetry, self.sparsity = parameters.symmetry, parameters.sparsity
        self.positive = channels != COMPLEX
        self.operator_calls = 2 * self.layers + 1
        self.proximal = Proximal(channels, parameters.features)
        self.step = Line(0.1, 0.2, -1)  # starts as in the authors' code
        self.threshold = Line(-2.0, 0.5, -1)
        self.momentum = Line(0.0, 0.5, 1)

    def coefficients(self, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        """Relative step, threshold, and momentum in [0, 1) of a layer, counted from 0."""
        rising = self.momentum(layer)
        return self.step(layer), self.threshold(layer), 1 - self.momentum(0) / rising

    def forward(self, measurement: Tensor, physics: LinearPhysics) -> Tensor:
        return self.unroll(measurement, physics)[0]

    def loss(self, measurement: Tensor, physics: LinearPhysics, truth: Tensor) -> Tensor:
        estimate, symmetry, sparsity = self.unroll(measurement, physics, penalised=True)
        fidelity = nn.functional.mse_loss(estimate, truth)
        return fidelity + self.symmetry * symmetry + self.sparsity * sparsity

    def unroll(
        self, measurement: Tensor, physics: LinearPhysics, *, penalised: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The estimate, and the two penalties summed over layers (zero unless `penalised`)."""
        start = physics.A_adjoint(measurement) / self.largest
        symmetry = sparsity = start.new_zeros(())
        point = previous = start
        for layer in range(self.layers):
            step, threshold, momentum = self.coefficients(layer)
            gradient = physics.A_adjoint(physics.A(point)) / self.largest - start
            found, lifted, coded, kept = self.proximal(point - step * gradient, threshold)
            if penalised and self.symmetry:
                symmetry = symmetry + (self.proximal.synthesis(coded) - lifted).square().mean()
            if penalised and self.sparsity:
                sparsity = sparsity + kept.abs().mean()
            estimate = found.relu() if self.positive else found
            point = estimate + momentum * (estimate - previous)
            previous = estimate
        return previous, symmetry, sparsity


def build(task: Task, parameters: FISTANetParameters) -> FISTANet:
    return FISTANet(task.shape[0], task.norm_squared(), parameters)


METHOD = end_to_end(
    name="fista-net",
    title="FISTA-Net (end to end)",
    summary="FISTA unrolled into layers with learned steps, thresholds and proximal map",
    paper="FISTA-Net, Xiang, Dong, Yang 2021, arXiv 2008.02683",
    cost="none: 2 operator calls and 10 convolutions for each layer in all; all layers forwards "
    "and back for each image and epoch",
    parameters=FISTANetParameters,
    build=build,
    published={"layers": 7, "features": 32, "train.learning_rate": 1e-4},
)
