"""The estimated constants of a linear prior against those of its matrix."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dipa_bench.evaluation.denoiser_bound import (
    constant,
    denoiser_bound,
    lipschitz,
    noise_level,
)
from dipa_bench.priors.base import SCALE, SIGMA, THRESHOLD, Prior
from dipa_bench.testing.problems import small_task, smoothing_prior

SHAPE = (1, 8, 12)


def drawn(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *SHAPE, generator=generator, dtype=torch.float64)


@pytest.fixture(scope="module")
def removed(smoother):
    """I - W as a matrix: sigma -> n x n."""
    return lambda sigma: np.eye(8 * 12) - smoother(8, 12, sigma)


@pytest.mark.parametrize("sigma", [0.02, 0.1, 0.3])
def test_constant_is_that_of_the_matrix(removed, sigma):
    """max v^T (I - W)^2 v / (n s^2), below ||I - W||^2 max ||v||^2 / (n s^2), which one v has."""
    images = drawn(40)
    rows = images.flatten(1).numpy()
    expected = ((rows @ removed(sigma)) ** 2).mean(1).max() / sigma**2
    found = constant(smoothing_prior(), sigma, images)
    assert found == pytest.approx(expected, rel=1e-12)
    values, vectors = np.linalg.eigh(removed(sigma))
    assert found <= values[-1] ** 2 * (rows**2).mean(1).max() / sigma**2
    worst = torch.from_numpy(vectors[:, -1].copy()).view(1, *SHAPE)
    attained = values[-1] ** 2 / (8 * 12) / sigma**2
    assert constant(smoothing_prior(), sigma, worst) == pytest.approx(attained, rel=1e-12)


def test_constant_of_noise_comes_near_its_mean(removed):
    """On noise of level s it is tr (I - W)^2 / n on average, which the largest of many exceeds."""
    noise = 0.1 * drawn(400)
    expected = np.trace(removed(0.1) @ removed(0.1)) / (8 * 12)
    found = constant(smoothing_prior(), 0.1, noise)
    assert expected < found < 2 * expected


@pytest.mark.parametrize("sigma", [0.02, 0.1, 0.3])
def test_lipschitz_constant_comes_near_and_stays_below(removed, sigma):
    """||I - W||; the first directions alone are far from it, the turned ones reach it."""
    largest = np.linalg.norm(removed(sigma), 2)
    prior, points, steps = smoothing_prior(), drawn(8), 0.1 * drawn(8, seed=1)
    first = lipschitz(prior, sigma, points, steps, rounds=0)
    found = lipschitz(prior, sigma, points, steps, rounds=60)
    assert first < found <= largest * (1 + 1e-12)
    assert found == pytest.approx(largest, rel=1e-2)
    assert first < 0.9 * largest


def test_an_expansive_residual_is_found():
    """D = -v / 2 has R = 1.5 v."""
    prior = Prior("odd", SIGMA, lambda noisy, sigma: -noisy / 2)
    assert lipschitz(prior, 0.1, drawn(2), drawn(2, 1)) == pytest.approx(1.5)
    found = denoiser_bound(replace(small_task(dtype=torch.float64), prior=prior))
    assert "is not nonexpansive" in found.sentence()


def test_a_prior_that_does_nothing():
    """Zeros, not NaN."""
    prior = Prior("none", SIGMA, lambda noisy, sigma: noisy)
    found = denoiser_bound(replace(small_task(), prior=prior))
    assert (found.constant, found.lipschitz) == (0, 0)


@pytest.mark.parametrize("name", ["sr", "mri"])
def test_of_a_task(name):
    """Its prior's range and unit; no test image is read; the same twice."""
    task = small_task(name)
    found = denoiser_bound(task)
    assert found.unit == "sigma"
    assert (found.strengths[0], found.strengths[-1]) == (SIGMA.low, SIGMA.high)
    assert found.strength in found.strengths
    assert list(found.strengths) == sorted(found.strengths)
    assert found.lipschitz > 0
    if name == "sr":  # on complex images the prior is not linear
        assert found.lipschitz <= 0.5 * (1 + 1e-4)
    assert found.constant == max(found.constants) > 0
    assert found.images == 6
    assert found == denoiser_bound(task)
    assert task.images.reads == []
    for figure in (f"{found.constant:.3g}", f"{found.lipschitz:.3g}", "s (sigma)"):
        assert figure in found.sentence()


@pytest.mark.parametrize(
    ("strength", "level"), [(SIGMA, 0.1), (SCALE, 0.2 / 255), (THRESHOLD, 0.1)]
)
def test_noise_level(strength, level):
    """The published strength stands for 2/255."""
    prior = Prior("none", strength, lambda noisy, s: noisy)
    assert noise_level(prior, 0.1) == pytest.approx(level)
