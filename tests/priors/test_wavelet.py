"""Haar thresholding against PyWavelets and against what makes it a prox."""

import numpy as np
import pytest
import torch

from dipa_bench.priors import wavelet


def threshold_with_pywt(image, threshold, levels):
    """Mean over all shifts of the mirrored image's orthonormal transform, one shift at a time."""
    pywt = pytest.importorskip("pywt")
    height, width = image.shape
    whole = np.block([[image, image[:, ::-1]], [image[::-1], image[::-1, ::-1]]])
    total = np.zeros_like(whole)
    for down in range(2**levels):
        for right in range(2**levels):
            moved = np.roll(whole, (down, right), axis=(0, 1))
            average, *details = pywt.wavedec2(moved, "haar", "periodization", levels)
            kept = [tuple(pywt.threshold(part, threshold, "soft") for part in d) for d in details]
            back = pywt.waverec2([average, *kept], "haar", "periodization")
            total += np.roll(back, (-down, -right), axis=(0, 1))
    return (total / 4**levels)[:height, :width]


@pytest.mark.parametrize("threshold", [0.01, 0.1, 0.5])
@pytest.mark.parametrize(("size", "levels"), [((8, 12), 3), ((12, 10), 2), ((7, 9), 1)])
def test_agrees_with_pywavelets(size, levels, threshold):
    """To rounding, at sizes whose mirrored period PyWavelets can split without padding."""
    image = np.random.default_rng(0).random(size)
    found = wavelet.denoise(torch.from_numpy(image)[None, None], threshold, levels)
    expected = threshold_with_pywt(image, threshold, levels)
    np.testing.assert_allclose(found[0, 0].numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (3, 2), (11, 11), (13, 30)])
def test_nothing_is_lost(size):
    """Without a threshold the image comes back, whatever its size."""
    image = torch.randn(2, 3, *size, dtype=torch.float64)
    torch.testing.assert_close(wavelet.denoise(image, 0.0, levels=3), image)


@pytest.mark.parametrize("size", [(6, 8), (5, 7)])
def test_is_a_prox(size):
    """Its Jacobian is symmetric with eigenvalues in [0, 1], so that Moreau's theorem applies."""
    image = torch.rand(size, dtype=torch.float64)

    def denoise(x):
        return wavelet.denoise(x.view(1, 1, *size), 0.3).flatten()

    jacobian = torch.autograd.functional.jacobian(denoise, image.flatten())
    torch.testing.assert_close(jacobian, jacobian.T)
    eigenvalues = torch.linalg.eigvalsh(jacobian)
    assert -1e-10 < eigenvalues.min() < 0.5
    assert eigenvalues.max() < 1 + 1e-10


def test_channels_are_apart():
    """Every channel is denoised as if it were alone."""
    image = torch.rand(2, 3, 9, 12)
    levels = torch.tensor([0.1, 0.3]).view(2, 1, 1, 1)
    found = wavelet.denoise(image, levels)
    for channel in range(3):
        part = slice(channel, channel + 1)
        torch.testing.assert_close(wavelet.denoise(image[:, part], levels), found[:, part])
