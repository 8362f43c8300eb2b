"""Quality figures against scikit-image."""

import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from dipa_bench.metrics import psnr, psnr_of_mse, psnr_pooled, ssim


@pytest.fixture(scope="module")
def pair():
    """Four images of three channels and noisy versions that leave [0, 1]."""
    rng = np.random.default_rng(0)
    truth = rng.random((4, 3, 16, 20))
    found = truth + rng.standard_normal(truth.shape) * np.array([0.01, 0.1, 0.5, 2]).reshape(
        4, 1, 1, 1
    )
    return torch.from_numpy(found), torch.from_numpy(truth)


def test_psnr_is_scikit_images(pair):
    """Range 1, per image over channels and pixels, nothing clipped."""
    found, truth = pair
    expected = [
        peak_signal_noise_ratio(t.numpy(), f.numpy(), data_range=1.0)
        for f, t in zip(found, truth, strict=True)
    ]
    np.testing.assert_allclose(psnr(found, truth), expected, rtol=1e-12)
    assert psnr(found, truth)[3] < -5


def test_complex_images_are_scored_by_their_magnitude(pair):
    """A phase of any kind costs nothing; the figures are those of the magnitudes as gray images."""
    found, truth = (part[:, :1] for part in pair)
    found = found.abs()
    angles = 2 * math.pi * torch.rand(2, *truth.shape, dtype=torch.float64)

    def polar(size, angle):
        return torch.cat((size * angle.cos(), size * angle.sin()), dim=1)

    turned = polar(found, angles[0]), polar(truth, angles[1])
    torch.testing.assert_close(psnr(*turned), psnr(found, truth))
    torch.testing.assert_close(ssim(*turned), ssim(found, truth))


def test_psnr_by_hand():
    """An error of 0.1 everywhere is 20 dB; no error is infinite."""
    x = torch.zeros(2, 1, 4, 4, dtype=torch.float64)
    y = x.clone()
    y[0] += 0.1
    assert psnr(y, x).tolist() == pytest.approx([20, math.inf])


def test_pooled_psnr_is_that_of_the_whole_split(pair):
    """The PSNR of all images laid side by side, lower than the mean of the images' own."""
    found, truth = pair
    mse = (found - truth).flatten(1).square().mean(1)
    expected = peak_signal_noise_ratio(truth.numpy(), found.numpy(), data_range=1.0)
    assert psnr_pooled(mse) == pytest.approx(expected)
    assert psnr_pooled(mse) < psnr_of_mse(mse).mean().item()


def test_ssim_is_scikit_images(pair):
    """Wang's settings: Gaussian window of sigma 1.5, biased covariance, range 1."""
    found, truth = pair
    expected = [
        np.mean(
            [
                structural_similarity(
                    t.numpy(),
                    f.numpy(),
                    data_range=1.0,
                    gaussian_weights=True,
                    sigma=1.5,
                    use_sample_covariance=False,
                )
                for f, t in zip(one, other, strict=True)
            ]
        )
        for one, other in zip(found, truth, strict=True)
    ]
    np.testing.assert_allclose(ssim(found, truth), expected, rtol=1e-6)
    assert ssim(truth, truth).tolist() == pytest.approx([1] * 4)


def test_ssim_of_what_is_not_finite(pair):
    """NaN for that image only."""
    found, truth = pair[0].clone(), pair[1]
    found[1, 0, 0, 0] = torch.nan
    found[2, 0, 0, 0] = torch.inf
    assert ssim(found, truth).isnan().tolist() == [False, True, True, False]
