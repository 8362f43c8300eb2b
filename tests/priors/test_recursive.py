"""The recursive filter against its formulas, pixel by pixel."""

import math

import numpy as np
import pytest
import torch

from dipa_bench.priors import recursive


def filter_line(values, lengths, rate):
    """There and back along one line: values N x C, lengths[i] between i - 1 and i."""
    result = values.copy()
    for i in range(1, len(result)):
        weight = rate ** lengths[i]
        result[i] = (1 - weight) * result[i] + weight * result[i - 1]
    for i in range(len(result) - 2, -1, -1):
        weight = rate ** lengths[i + 1]
        result[i] = (1 - weight) * result[i] + weight * result[i + 1]
    return result


def filter_image(image, sigma_s, sigma_r, iterations):
    """C x H x W float64, written from the paper."""
    _, height, width = image.shape

    def lengths(line):
        found = [math.nan]
        for i in range(1, len(line)):
            found.append(1 + sigma_s / sigma_r * sum(abs(line[i] - line[i - 1])))
        return found

    across = [lengths(image[:, row, :].T) for row in range(height)]
    down = [lengths(image[:, :, column].T) for column in range(width)]
    result = image.copy()
    for t in range(1, iterations + 1):
        sigma_h = sigma_s * math.sqrt(3) * 2 ** (iterations - t) / math.sqrt(4**iterations - 1)
        rate = math.exp(-math.sqrt(2) / sigma_h)
        for row in range(height):
            result[:, row, :] = filter_line(result[:, row, :].T, across[row], rate).T
        for column in range(width):
            result[:, :, column] = filter_line(result[:, :, column].T, down[column], rate).T
    return result


@pytest.mark.parametrize("size", [(9, 12), (1, 6), (5, 1)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("iterations", "space", "contrast"), [(3, 2.0, 5.0), (2, 7.0, 1.5)])
def test_agrees_with_the_formulas(channels, size, iterations, space, contrast):
    """To rounding, with a noise level for each image."""
    images = np.random.default_rng(0).random((2, channels, *size))
    sigmas = [0.05, 0.3]
    found = recursive.denoise(
        torch.from_numpy(images),
        torch.tensor(sigmas, dtype=torch.float64).view(2, 1, 1, 1),
        iterations=iterations,
        space=space,
        contrast=contrast,
    )
    for index, sigma in enumerate(sigmas):
        expected = filter_image(images[index], space, contrast * sigma, iterations)
        np.testing.assert_allclose(found[index].numpy(), expected, atol=1e-12)


def test_shipped_settings():
    """What the prior does is what the constants say."""
    image = torch.rand(1, 1, 8, 8, dtype=torch.float64)
    expected = filter_image(
        image[0].numpy(), recursive.SPACE, recursive.CONTRAST * 0.1, recursive.ITERATIONS
    )
    np.testing.assert_allclose(recursive.SPEC.build()(image, 0.1)[0].numpy(), expected, atol=1e-12)


def test_edges_stay_and_guide_all_channels():
    """A step is kept; a step in one channel keeps another channel's two sides apart."""
    step = torch.zeros(1, 1, 8, 16)
    step[..., 8:] = 1
    assert (recursive.denoise(step, 0.005) - step).abs().max() < 1e-3
    weak = 0.05 * step
    alone = recursive.denoise(weak, 0.02) - weak
    guided = recursive.denoise(torch.cat((weak, step), 1), 0.02)[:, :1] - weak
    assert guided.abs().max() < 0.1 * alone.abs().max()


def test_stays_within_the_range():
    """Every pixel is a mean of pixels with positive weights."""
    image = torch.rand(3, 1, 10, 11)
    found = recursive.denoise(image, 0.2)
    assert (found.amax((1, 2, 3)) <= image.amax((1, 2, 3))).all()
    assert (found.amin((1, 2, 3)) >= image.amin((1, 2, 3))).all()
