"""The affine LMMSE map against the textbook and against ridge regression."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from gaussian_images import gaussian_task

from dipa_bench.errors import UserError
from dipa_bench.learning import lmmse
from dipa_bench.metrics import psnr
from dipa_bench.testing.problems import small_task


@pytest.fixture(scope="module")
def task():
    """Gaussian images with a known covariance, many more of them than pixels."""
    return gaussian_task(0.01, (1000, 50, 200))


def training(task, a):
    x = task.images.train.pixels.double().flatten(1).numpy()
    return x, x @ a.T


def test_is_the_textbook_formula(task, dense_sr):
    """W = C_xy (C_yy + (noise^2 + ridge v) I)^-1 and the two means, in numpy."""
    a = dense_sr(12, 12, 4)
    x, y = training(task, a)
    found = lmmse.fit(task)
    joint = np.cov(np.c_[x, y].T, bias=True)
    cross, covariance = joint[:144, 144:], joint[144:, 144:]
    damping = 0.05**2 + found.ridge * np.diag(covariance).mean()
    expected = cross @ np.linalg.inv(covariance + damping * np.eye(len(covariance)))
    np.testing.assert_allclose(found.matrix, expected, rtol=0, atol=1e-9)
    np.testing.assert_allclose(found.mean.ravel(), x.mean(0), atol=1e-12)
    np.testing.assert_allclose(found.measured_mean.ravel(), y.mean(0), atol=1e-12)


def test_is_ridge_regression(task, dense_sr):
    """The same map as regressing images on measurements with an augmented least squares."""
    a = dense_sr(12, 12, 4)
    x, y = training(task, a)
    found = lmmse.fit(task)
    variance = y.var(0).mean()
    damping = len(x) * (0.05**2 + found.ridge * variance)
    design = np.r_[y - y.mean(0), np.sqrt(damping) * np.eye(y.shape[1])]
    wanted = np.r_[x - x.mean(0), np.zeros((y.shape[1], 144))]
    coefficients = np.linalg.lstsq(design, wanted, rcond=None)[0]
    measured = task.measure(task.images.validation)
    expected = x.mean(0) + (measured.flatten(1).numpy() - y.mean(0)) @ coefficients
    np.testing.assert_allclose(found(measured).flatten(1), expected, atol=1e-8)


def test_is_close_to_the_bayes_estimate(task, dense_sr):
    """With the true covariance nothing linear does better; the fitted map loses under 0.2 dB."""
    a = dense_sr(12, 12, 4)
    y, x = np.divmod(np.arange(144), 12)
    covariance = 0.01 * np.exp(-np.hypot(y[:, None] - y, x[:, None] - x) / 3)
    gain = covariance @ a.T @ np.linalg.inv(a @ covariance @ a.T + 0.05**2 * np.eye(len(a)))
    images = task.images.test("lmmse test")
    measured = task.measure(images)
    bayes = 0.5 + (measured.flatten(1).numpy() - 0.5 * a.sum(1)) @ gain.T
    truth = images.pixels.double()
    best = psnr(torch.from_numpy(bayes).view_as(truth), truth).mean()
    found = psnr(lmmse.fit(task)(measured), truth).mean()
    assert best - 0.2 < found < best + 0.05


def test_beats_the_adjoint(task):
    """By more than 5 dB on images it has not seen."""
    images = task.images.test("lmmse test")
    measured, truth = task.measure(images), images.pixels.double()
    back = psnr(task.student.A_adjoint(measured), truth).mean()
    assert psnr(lmmse.fit(task)(measured), truth).mean() > back + 5


def test_the_ridge_is_the_best_on_validation(task, monkeypatch):
    """Each ridge alone scores at most as much as the one chosen among all."""
    validation = task.images.validation
    measured, truth = task.measure(validation), task.pixels(validation)

    def quality(ridges):
        monkeypatch.setattr(lmmse, "RIDGES", ridges)
        found = lmmse.fit(task)
        return psnr(found(measured), truth).mean().item(), found.ridge

    ridges = lmmse.RIDGES
    alone = {ridge: quality((ridge,))[0] for ridge in ridges}
    best, chosen = quality(ridges)
    assert best == pytest.approx(max(alone.values()))
    assert alone[chosen] == pytest.approx(best)


def test_few_images_and_no_noise():
    """Fewer images than measurements: the ridge keeps the covariance invertible."""
    task = small_task(noise=0.0, count=3)
    found = lmmse.fit(task)
    estimate = found(task.measure(task.images.validation))
    assert estimate.shape == (3, 1, 16, 16)
    assert estimate.dtype == torch.float32
    assert estimate.isfinite().all()


def test_complex_or_too_many_measurements(from_matrix, monkeypatch):
    """A line that says so and what to do."""
    task = small_task()
    matrix = np.eye(256).astype(complex)
    other = replace(task, operators=replace(task.operators, student=from_matrix(matrix)), noise=0.0)
    with pytest.raises(UserError, match="another start"):
        lmmse.fit(other)
    monkeypatch.setattr(lmmse, "LARGEST", 15)
    with pytest.raises(UserError, match="at most 15 per image"):
        lmmse.fit(task)


def test_never_reads_the_test_images(task):
    """The map is made from training and validation images alone."""
    fresh = replace(task.images, reads=[])
    lmmse.fit(replace(task, images=fresh))
    assert fresh.reads == []


def test_complex_images_may_turn_their_phase():
    """With arbitrary phases the map is complex-linear: turning the measurement turns the image."""
    task = small_task("mri", dtype=torch.float64, count=4, noise=0.05)
    found = lmmse.fit(task)
    assert not found.mean.any()  # four images are too few for a map without that symmetry
    y = task.measure(task.images.validation)
    turned = torch.stack((-y[:, 1], y[:, 0]), dim=1)
    expected = lmmse.quarter_turns(found(y))[len(y) : 2 * len(y)]
    torch.testing.assert_close(found(turned), expected)


def test_quarter_turns():
    """x, ix, -x, -ix as complex numbers."""
    x = torch.randn(3, 2, 4, 4)
    whole = torch.complex(x[:, 0], x[:, 1])
    found = lmmse.quarter_turns(x)
    expected = torch.cat([whole * 1j**k for k in range(4)])
    torch.testing.assert_close(torch.complex(found[:, 0], found[:, 1]), expected)


def test_turns_help_where_phases_are_arbitrary():
    """Few training images of random phase: half a decibel and more over a map without turns."""
    task = small_task("mri", (1, 16, 16), dtype=torch.float64, count=5, noise=0.02)
    truth, observed = task.pixels(task.images.validation), task.measure(task.images.validation)
    plain = max(
        psnr(found(observed), truth).mean().item()
        for found in lmmse._candidates(task, task.pixels(task.images.train))
    )
    assert psnr(lmmse.fit(task)(observed), truth).mean().item() > plain + 0.5


@pytest.mark.parametrize("count", [1, 2])
def test_images_that_are_all_alike_have_no_covariance(count):
    """One image, or twice the same: one line instead of a singular matrix."""
    task = small_task(noise=0.0)
    if count > 1:
        task.images.train.pixels[:] = task.images.train.pixels[0].clone()
    with pytest.raises(UserError, match="at least two different training images"):
        lmmse.fit(task, count)
