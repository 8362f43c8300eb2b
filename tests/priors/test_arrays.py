"""Non-local means, BM3D, and how functions of arrays denoise batches."""

import sys

import numpy as np
import pytest
import torch

from dipa_bench.errors import UserError
from dipa_bench.priors import bm3d, nlm
from dipa_bench.priors.arrays import OneByOne


def record(calls):
    def denoise(image, sigma):
        calls.append((image.copy(), sigma))
        return image + sigma

    return OneByOne(denoise)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_each_image_with_its_level(dtype):
    """Functions see H x W float64 and a float; results have the batch's type."""
    calls = []
    batch = torch.rand(2, 1, 3, 4).to(dtype)
    found = record(calls)(batch, torch.tensor([0.25, 0.5]).view(2, 1, 1, 1))
    assert [level for _, level in calls] == [0.25, 0.5]
    assert all(image.shape == (3, 4) and image.dtype == np.float64 for image, _ in calls)
    torch.testing.assert_close(found, batch + torch.tensor([0.25, 0.5]).to(dtype).view(2, 1, 1, 1))
    calls.clear()
    record(calls)(batch, 0.125)
    record(calls)(batch, torch.tensor(0.125))
    assert [level for _, level in calls] == [0.125] * 4


def test_values_that_are_not_finite():
    """The function never sees them; the other images are denoised all the same."""
    calls = []
    batch = torch.zeros(3, 1, 4, 4)
    batch[0, 0, 1, 1] = torch.inf
    batch[1, 0, 2, 2] = torch.nan
    found = record(calls)(batch, 0.5)
    assert len(calls) == 1
    assert found[:2].isnan().all()
    assert torch.equal(found[2], torch.full((1, 4, 4), 0.5))


def test_nlm_is_scikit_image():
    """With patches of 5, searched within 6, and h = 0.6 sigma."""
    from skimage.restoration import denoise_nl_means

    image = np.random.default_rng(0).normal(size=(20, 17))
    expected = denoise_nl_means(
        image, patch_size=5, patch_distance=6, h=0.06, sigma=0.1, fast_mode=True
    )
    found = nlm.SPEC.build()(torch.from_numpy(image)[None, None], 0.1)
    np.testing.assert_array_equal(found[0, 0].numpy(), expected)


def test_without_the_package(monkeypatch):
    """The line says what to install."""
    monkeypatch.setitem(sys.modules, "bm3d", None)
    with pytest.raises(UserError, match=r"pip install 'dipa-bench\[bm3d\]'") as caught:
        bm3d.SPEC.build()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (5, 40), (16, 9)])
def test_bm3d_of_small_images(size):
    """The package alone refuses the smallest, and crashes on 8 x 8."""
    pytest.importorskip("bm3d", reason="pip install 'dipa-bench[bm3d]'")
    image = np.random.default_rng(0).random(size)
    found = bm3d.denoise(image, 0.1)
    assert found.shape == size
    assert np.isfinite(found).all()


def test_bm3d_is_silent_and_like_its_default(capfd):
    """Nothing is printed; the default profile gives nearly the same."""
    package = pytest.importorskip("bm3d", reason="pip install 'dipa-bench[bm3d]'")
    rows = np.linspace(0, 3, 32)
    clean = 0.5 + 0.4 * np.sin(rows)[:, None] * np.cos(rows)
    image = clean + 0.1 * np.random.default_rng(0).normal(size=clean.shape)
    found = bm3d.denoise(image, 0.1)
    assert capfd.readouterr() == ("", "")
    np.testing.assert_array_equal(found, bm3d.denoise(image, 0.1))

    def distance(first, second):
        return np.sqrt(np.mean((first - second) ** 2))

    expected = package.bm3d(image, 0.1)
    assert distance(found, expected) < 0.5 * distance(expected, clean)
