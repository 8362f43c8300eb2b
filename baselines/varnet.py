"""`e2e-varnet`: gradient steps in k-space with a learned refinement in the image.

Cascade t of T, after Sriram et al. (End-to-End Variational Networks for Accelerated MRI
Reconstruction, MICCAI 2020, arXiv 2004.06688)::

    k_t+1 = k_t - eta_t M (k_t - y) - E(G_t(R(k_t)))

from k_0 = y, with the mask M, the transform R from k-space to one image, E back, and a U-Net G_t;
the result is R(k_T).

`deepinv.models.VarNet` is not used: it hands one and the same denoiser to all cascades, and its
blocks change the operator's mask while they run. The update is that of its `VarNetBlock`. Coil maps
are the task's, so there is none to estimate; the U-Net has no normalisation layers, so that every
image of a batch is reconstructed by itself, and starts with a last layer of zeros, so that an
untrained network returns A^T y.
"""

from __future__ import annotations

from typing import Annotated

import torch
from deepinv.models import UNet
from deepinv.physics import MRI, LinearPhysics, MultiCoilMRI
from pydantic import Field
from torch import Tensor, nn

from baselines.end_to_end import EndToEndParameters, EndToEndTrainParameters, Network, end_to_end
from dipa_bench.data.signals import COMPLEX
from dipa_bench.parameters import Search
from dipa_bench.tasks.base import Task, where_measured


class VarNetParameters(EndToEndParameters):
    """Sizes of the network."""

    train: EndToEndTrainParameters = EndToEndTrainParameters(learning_rate=5e-3)
    cascades: Annotated[
        int, Field(ge=1, le=50, description="unrolled iterations"), Search(choices=(2, 4, 6))
    ] = 4
    features: Annotated[
        int,
        Field(ge=1, le=256, description="of the U-Nets' first scale, doubled at each"),
        Search(choices=(8, 16, 24)),
    ] = 16
    scales: Annotated[
        int, Field(ge=2, le=6, description="of the U-Nets"), Search(choices=(2, 3))
    ] = 2


class Cascade(nn.Module):
    """k - eta M (k - y) - E(G(R(k)))."""

    def __init__(self, parameters: VarNetParameters) -> None:
        super().__init__()
        sizes = [parameters.features * 2**scale for scale in range(parameters.scales)]
        self.refine = UNet(
            COMPLEX, COMPLEX, residual=False, batch_norm=False, channels_per_scale=sizes
        )
        for part in self.refine.Conv_1x1.parameters():
            nn.init.zeros_(part)
        self.weight = nn.Parameter(torch.ones(()))

    def forward(
        self, spectrum: Tensor, measurement: Tensor, physics: LinearPhysics, whole: LinearPhysics
    ) -> Tensor:
        """The next k-space.

        Args:
            spectrum: k, of the measurement's shape.
            measurement: y, B x 2 (x coils) x H x W.
            physics: with the mask.
            whole: the same without one, R and E.
        """
        misfit = where_measured(physics, spectrum - measurement)
        return spectrum - self.weight * misfit - whole.A(self.refine(whole.A_adjoint(spectrum)))


class VarNet(Network):
    """The network.

    Args:
        parameters: sizes.
    """

    def __init__(self, parameters: VarNetParameters) -> None:
        super().__init__()
        self.cascades = nn.ModuleList(Cascade(parameters) for _ in range(parameters.cascades))
        self.operator_calls = 2 * parameters.cascades + 1

    def forward(self, measurement: Tensor, physics: MRI | MultiCoilMRI) -> Tensor:
        """y to complex images, B x 2 x H x W."""
        whole, spectrum = unmasked(physics), measurement
        for cascade in self.cascades:
            spectrum = cascade(spectrum, measurement, physics, whole)
        return whole.A_adjoint(spectrum)


def unmasked(physics: MRI | MultiCoilMRI) -> MRI | MultiCoilMRI:
    """The operator as if all of k-space were measured."""
    mask = torch.ones_like(physics.mask)
    if isinstance(physics, MRI):
        return MRI(mask=mask, device=mask.device)
    return MultiCoilMRI(mask=mask, coil_maps=physics.coil_maps, device=mask.device)


def without_mask(task: Task) -> str | None:
    """Why the network does not apply to a task, or None."""
    if isinstance(task.student, MRI | MultiCoilMRI):
        return None
    return f"E2E-VarNet refines the k-space of MRI; {task.name} measures something else"


METHOD = end_to_end(
    name="e2e-varnet",
    title="E2E-VarNet (end to end)",
    summary="gradient steps in k-space, each with a U-Net of its own in the image (MRI alone)",
    paper="E2E-VarNet, Sriram et al. 2020, arXiv 2004.06688",
    cost="none: 2 transforms and a U-Net for each cascade in all; all cascades forwards and back "
    "for each image and epoch",
    parameters=VarNetParameters,
    build=lambda task, parameters: VarNet(parameters),
    published={"cascades": 12, "features": 18, "scales": 5, "train.learning_rate": 3e-4},
    skip=without_mask,
)
