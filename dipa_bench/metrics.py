"""Image quality, per image."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dipa_bench.data.signals import magnitude


def psnr_of_mse(mse: Tensor) -> Tensor:
    """-10 log10(mse): PSNR in dB for images of range 1; infinite where the error is 0."""
    return -10 * torch.log10(mse)


def squared_error(estimate: Tensor, reference: Tensor) -> Tensor:
    """Mean squared error of each image; of complex ones that of the magnitudes.

    Args:
        estimate, reference: B x C x H x W.

    Returns:
        B values.
    """
    return (magnitude(estimate) - magnitude(reference)).flatten(1).square().mean(1)


def nmse(estimate: Tensor, reference: Tensor) -> Tensor:
    """||x - x*||^2 / ||x*||^2 of each image; of complex ones of the magnitudes.

    Args:
        estimate, reference: B x C x H x W.

    Returns:
        B values; infinite for a reference of zeros that was missed.
    """
    return squared_error(estimate, reference) / squared_error(0 * reference, reference)


def error_by_range(
    estimate: Tensor, reference: Tensor, onto_range: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Energies of the error in the range of A^T and in the null space of A, relative to the image.

    Args:
        estimate, reference: B x C x H x W.
        onto_range: the orthogonal projection onto the range of A^T.

    Returns:
        Twice B values; of real images their sum is `nmse`.
    """
    error = estimate - reference
    seen = onto_range(error)
    energy = reference.flatten(1).square().sum(1)
    parts = (part.flatten(1).square().sum(1) / energy for part in (seen, error - seen))
    return tuple(parts)


def psnr(estimate: Tensor, reference: Tensor) -> Tensor:
    """PSNR of each image in dB, range 1, nothing clipped; of complex ones on the magnitude.

    Args:
        estimate, reference: B x C x H x W.

    Returns:
        B values.
    """
    return psnr_of_mse(squared_error(estimate, reference))


def psnr_pooled(mse: Tensor) -> float:
    """PSNR of the mean squared error over all images, as the paper reports it."""
    return psnr_of_mse(mse.mean()).item()


def ssim(estimate: Tensor, reference: Tensor) -> Tensor:
    """SSIM of each image (Wang et al. 2004: Gaussian window, sigma 1.5, biased covariance).

    scikit-image's own; channels are averaged, of complex images the magnitude counts. NaN for an
    estimate that is not finite.

    Args:
        estimate, reference: B x C x H x W in [0, 1], at least 11 x 11 pixels.
    """
    from skimage.metrics import structural_similarity

    def one(found: np.ndarray, true: np.ndarray) -> float:
        if not np.isfinite(found).all():
            return float("nan")
        return structural_similarity(
            found,
            true,
            channel_axis=0,
            data_range=1.0,
            gaussian_weights=True,
            use_sample_covariance=False,
        )

    pairs = zip(
        magnitude(estimate.detach()).double().cpu().numpy(),
        magnitude(reference.detach()).double().cpu().numpy(),
        strict=True,
    )
    return torch.tensor([one(found, true) for found, true in pairs])


LPIPS_SIZE = 32  # pixels on a side that AlexNet needs


def lpips_weights() -> Path:
    """Where torchvision's AlexNet lies once it was fetched, below ``TORCH_HOME``."""
    from torchvision.models import AlexNet_Weights

    name = AlexNet_Weights.DEFAULT.url.rpartition("/")[2]
    return Path(torch.hub.get_dir()) / "checkpoints" / name


def lpips(estimate: Tensor, reference: Tensor) -> Tensor | None:
    """LPIPS of each image (Zhang et al. 2018, AlexNet): distance of deep features, less is better.

    torchmetrics' own, of images clipped to [0, 1]; gray ones as three equal channels, of complex
    images the magnitude. NaN for an estimate that is not finite.

    Args:
        estimate, reference: B x C x H x W.

    Returns:
        B values; None below `LPIPS_SIZE` pixels, or where `lpips_weights` is not on this disk: a
        study fetches nothing.
    """
    if min(estimate.shape[-2:]) < LPIPS_SIZE or not lpips_weights().is_file():
        return None
    from torchmetrics.functional.image import learned_perceptual_image_patch_similarity

    def shown(images: Tensor) -> Tensor:
        visible = magnitude(images.detach()).nan_to_num().clamp(0, 1)
        return visible.expand(-1, 3, -1, -1)

    found = learned_perceptual_image_patch_similarity(
        shown(estimate), shown(reference), net_type="alex", reduction="none", normalize=True
    ).detach()
    finite = estimate.flatten(1).isfinite().all(1)
    return torch.where(finite, found.reshape(-1), torch.nan)
