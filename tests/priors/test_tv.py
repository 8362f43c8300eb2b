"""Total variation against other implementations and against its optimality conditions."""

import numpy as np
import pytest
import torch

from dipa_bench.data.load import load
from dipa_bench.priors import tv

# root mean square distance from the exact solution that the shipped iterations may have
TOLERANCE = {0.001: 1e-6, 0.02: 1e-5, 0.1: 1e-3, 0.3: 5e-3}


@pytest.fixture(scope="module")
def noisy():
    images = load("faces", 16).train.first(6).pixels.double()
    generator = torch.Generator().manual_seed(0)
    return images + 0.1 * torch.randn(images.shape, generator=generator, dtype=torch.float64)


def rms(values):
    return values.flatten(1).square().mean(1).sqrt().max().item()


def objective(x, v, threshold):
    """1/2 ||x - v||^2 + threshold sum sqrt(dx^2 + dy^2), written out in numpy."""
    x, v = x.numpy(), v.numpy()
    down, right = np.zeros_like(x), np.zeros_like(x)
    down[..., :-1, :] = np.diff(x, axis=-2)
    right[..., :-1] = np.diff(x, axis=-1)
    total = np.hypot(down, right).sum((1, 2, 3))
    return 0.5 * ((x - v) ** 2).sum((1, 2, 3)) + threshold * total


@pytest.mark.exhaustive(after=1)
@pytest.mark.parametrize("threshold", TOLERANCE)
def test_agrees_with_deepinv_run_to_the_end(noisy, threshold):
    """4,000 iterations of deepinv's Chambolle-Pock."""
    from deepinv.models import TVDenoiser

    reference = TVDenoiser(tau=0.05, n_it_max=4000, crit=0.0)(noisy, threshold)
    assert rms(tv.denoise(noisy, threshold) - reference) < TOLERANCE[threshold]


def test_agrees_with_scikit_image(noisy):
    """Chambolle's projections of 2004 with the same weight."""
    from skimage.restoration import denoise_tv_chambolle

    found = tv.denoise(noisy, 0.1, iterations=400)
    for image, expected in zip(found, noisy, strict=True):
        reference = denoise_tv_chambolle(
            expected[0].numpy(), weight=0.1, eps=1e-12, max_num_iter=4000
        )
        assert np.sqrt(np.mean((image[0].numpy() - reference) ** 2)) < 2e-4


@pytest.mark.exhaustive
@pytest.mark.parametrize("threshold", TOLERANCE)
def test_no_nearby_image_is_better(noisy, threshold):
    """The objective at 2,000 iterations is a minimum along random directions, and below v's."""
    found = tv.denoise(noisy, threshold, iterations=2000)
    best = objective(found, noisy, threshold)
    assert (best < objective(noisy, noisy, threshold)).all()
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        direction = torch.randn(noisy.shape, generator=generator, dtype=torch.float64)
        for size in (1e-2, 1e-3):
            assert (objective(found + size * direction, noisy, threshold) >= best).all()
    assert (objective(tv.denoise(noisy, threshold), noisy, threshold) <= 1.02 * best).all()


def test_adjoint_of_the_differences():
    """<Dx, p> = <x, D^T p>, and ||D||^2 <= 8 as the step assumes."""
    x = torch.randn(2, 1, 5, 7, dtype=torch.float64)
    p = torch.randn(2, 2, 1, 5, 7, dtype=torch.float64)
    left, right = (tv._differences(x) * p).sum(), (x * tv._adjoint(p)).sum()
    torch.testing.assert_close(left, right)
    eye = torch.eye(64, dtype=torch.float64).view(64, 1, 8, 8)
    matrix = tv._differences(eye).movedim(1, 0).flatten(1).numpy()
    assert 7 < np.linalg.norm(matrix, 2) ** 2 <= tv.LIPSCHITZ


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_each_image_by_itself(noisy, dtype):
    """A batch is its images one by one, with a threshold each, and calls leave no trace."""
    prior = tv.SPEC.build()
    v = noisy.to(dtype)
    thresholds = torch.tensor([0.001, 0.01, 0.05, 0.1, 0.3, 1.0], dtype=dtype).view(6, 1, 1, 1)
    whole = prior(v, thresholds)
    assert whole.dtype == dtype
    for index in range(6):
        alone = prior(v[index : index + 1], thresholds[index].item())
        torch.testing.assert_close(whole[index], alone[0])
    assert torch.equal(prior(v, thresholds), whole)


def test_constants_and_means_are_kept(noisy):
    """A flat image is a fixed point, the mean of any image stays, a large weight flattens."""
    flat = torch.full((1, 1, 16, 16), 0.3)
    assert torch.equal(tv.denoise(flat, 0.1), flat)
    found = tv.denoise(noisy, 0.1)
    torch.testing.assert_close(found.mean((1, 2, 3)), noisy.mean((1, 2, 3)))
    strong = tv.denoise(noisy, 10.0, iterations=3000)
    assert strong.flatten(1).std(1).max() < 1e-3


def test_denoises_faces(noisy):
    """At sigma 0.1 it gains at least 2 dB."""
    truth = load("faces", 16).train.first(6).pixels.double()
    gain = 10 * torch.log10(
        (noisy - truth).square().mean() / (tv.denoise(noisy, 0.05) - truth).square().mean()
    )
    assert gain > 2


def test_gradients(noisy):
    """Through the iterations: against central differences, and finite on a flat image."""
    v = noisy[:1].clone().requires_grad_()
    weights = torch.randn(v.shape, generator=torch.Generator().manual_seed(2)).double()

    def loss(image):
        return (weights * tv.denoise(image, 0.05, iterations=20)).sum()

    (gradient,) = torch.autograd.grad(loss(v), v)
    direction = torch.randn(v.shape, generator=torch.Generator().manual_seed(3)).double()
    h = 1e-6
    numeric = (loss(noisy[:1] + h * direction) - loss(noisy[:1] - h * direction)) / (2 * h)
    torch.testing.assert_close((gradient * direction).sum(), numeric, rtol=1e-5, atol=1e-8)
    flat = torch.full((1, 1, 8, 8), 0.5, requires_grad=True)
    (gradient,) = torch.autograd.grad(tv.denoise(flat, 0.05).sum(), flat)
    assert gradient.isfinite().all()
