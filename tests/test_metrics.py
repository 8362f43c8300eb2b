"""Quality figures against scikit-image."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from dipa_bench.metrics import lpips, lpips_weights, psnr, psnr_of_mse, psnr_pooled, ssim


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


@pytest.fixture
def alexnet(tmp_path, monkeypatch):
    """Random weights where torchvision keeps the fetched ones; the network with them."""
    import torchvision

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = torchvision.models.alexnet(weights=None).double().eval()
    lpips_weights().parent.mkdir(parents=True)
    torch.save(network.state_dict(), lpips_weights())
    return network


def defined(network, found, true):
    """LPIPS as Zhang et al. (2018) define it, from the features after each rectifier."""
    import torchmetrics.functional.image.lpips as theirs

    linear = torch.load(Path(theirs.__file__).parent / "lpips_models" / "alex.pth", "cpu")
    shift = torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1)
    features = [(2 * picture - 1 - shift) / scale for picture in (found, true)]
    total, level = 0.0, 0
    for layer in network.features[:12]:  # to the last rectifier
        features = [layer(one.clone()) for one in features]
        if isinstance(layer, torch.nn.ReLU):
            unit = [one / one.norm(dim=1, keepdim=True).clamp_min(1e-8) for one in features]
            weight = linear[f"lin{level}.model.1.weight"].double()
            total += ((unit[0] - unit[1]).square() * weight).sum(1).mean((1, 2))
            level += 1
    assert level == 5
    return total


@pytest.mark.exhaustive
@torch.no_grad()
def test_lpips_is_what_it_is_defined_to_be(alexnet):
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(3, 1, 40, 36, generator=generator, dtype=torch.float64)
    found = truth + torch.tensor([0.0, 0.1, 2.0]).view(3, 1, 1, 1) * torch.randn(
        truth.shape, generator=generator, dtype=torch.float64
    )
    shown = found.clamp(0, 1).expand(-1, 3, -1, -1)
    expected = defined(alexnet, shown, truth.expand(-1, 3, -1, -1))
    assert expected[0] == 0 < expected[1] < expected[2]
    torch.testing.assert_close(lpips(found, truth), expected)
    assert lpips(found[1:2], truth[1:2]).shape == (1,)
    found[1, 0, 0, 0] = torch.nan
    assert lpips(found, truth).isnan().tolist() == [False, True, False]


@pytest.mark.exhaustive
def test_lpips_is_left_out_where_it_is_not_known(alexnet):
    """Of small images, and without weights, which no study fetches."""
    images = torch.zeros(1, 1, 32, 32)
    assert lpips(images, images) is not None
    assert lpips(images[..., :-1], images[..., :-1]) is None
    lpips_weights().unlink()
    assert lpips(images, images) is None
