"""Bicubic interpolation and the adjoint."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from baselines.controls import ADJOINT, BICUBIC, back_project, bicubic
from dipa_bench.data.load import load
from dipa_bench.metrics import psnr
from dipa_bench.parameters import build
from dipa_bench.testing.problems import small_task


def axis_matrix(size, factor, a=-0.75):
    """Circular cubic convolution with parameter a on samples at 0, factor, 2 factor, ..."""
    samples = size // factor
    matrix = np.zeros((size, samples))
    for pixel in range(size):
        base, rest = divmod(pixel, factor)
        for offset in (-1, 0, 1, 2):
            t = abs(rest / factor - offset)
            if t <= 1:
                weight = (a + 2) * t**3 - (a + 3) * t**2 + 1
            else:
                weight = a * (t**3 - 5 * t**2 + 8 * t - 4)
            matrix[pixel, (base + offset) % samples] += weight
    return matrix


@pytest.mark.parametrize("shape", [(1, 16, 16), (1, 24, 32), (1, 32, 16)])
@pytest.mark.parametrize("factor", [4, 2])
def test_bicubic_is_cubic_convolution(shape, factor):
    """Rows and columns interpolated with the kernel written out, wrapping around."""
    task = small_task(shape=shape, options={"factor": factor}, dtype=torch.float64)
    y = task.measure(task.images.train)
    rows, columns = axis_matrix(shape[1], factor), axis_matrix(shape[2], factor)
    expected = rows @ y.numpy() @ columns.T
    np.testing.assert_allclose(bicubic(y, task.student), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("factor", [4, 3, 2])
def test_samples_stay_where_they_were_taken(factor):
    """Pixel (factor i, factor j) of the result is sample (i, j), also where 32 % factor != 0."""
    task = small_task(shape=(1, 32, 32), options={"factor": factor}, dtype=torch.float64)
    y = task.measure(task.images.train)
    found = bicubic(y, task.student)
    assert found.shape == (6, 1, 32, 32)
    torch.testing.assert_close(found[..., ::factor, ::factor], y, rtol=0, atol=1e-12)


@pytest.mark.parametrize("factor", [4, 3, 2])
def test_a_ramp_is_reproduced(factor):
    """Away from the borders to 5% of a sample's distance; a shifted grid is 38% off at factor 4.

    The kernel with a = -0.75 (torch's, as OpenCV's) is not exact on ramps between the samples.
    """
    task = small_task(shape=(1, 48, 48), options={"factor": factor}, dtype=torch.float64)
    ramp = torch.arange(48, dtype=torch.float64).expand(1, 1, 48, 48)
    for picture in (ramp, ramp.mT):
        found = bicubic(picture[..., ::factor, ::factor], task.student)
        inner = (found - picture)[..., 12:-12, 12:-12].abs().max()
        assert inner < 0.05 * factor


@pytest.mark.parametrize("factor", [4, 3, 2])
def test_bicubic_beats_the_shifted_grid_on_faces(factor):
    """torch's interpolate takes samples for cell centres; on real faces that costs over 1 dB."""
    images = load("faces", 32).validation
    task = small_task(shape=(1, 32, 32), options={"factor": factor}, noise=0.0)
    y = task.measure(images)
    shifted = torch.nn.functional.interpolate(y, size=(32, 32), mode="bicubic")
    mine = psnr(bicubic(y, task.student), images.pixels).mean()
    assert mine > psnr(shifted, images.pixels).mean() + 1
    assert mine > 20


def test_adjoint_is_the_transposed_matrix(dense_sr):
    """A^T y, one operator call, nothing fitted."""
    task = small_task(shape=(1, 12, 16), dtype=torch.float64)
    y = task.measure(task.images.train)
    expected = y.flatten(1).numpy() @ dense_sr(12, 16, 4)
    np.testing.assert_allclose(back_project(y, task.student).flatten(1), expected, atol=1e-14)


@pytest.mark.parametrize("method", [ADJOINT, BICUBIC])
def test_controls_run_like_methods(method, context):
    """Through `fit`: the maps themselves and their costs; published values are none."""
    task = small_task()
    made = method.fit(task, build(method.parameters, {}), context())
    y = task.measure(task.images.train)
    run = made.run(y, task.student)
    direct = {"adjoint": back_project, "bicubic": bicubic}[method.name]
    assert torch.equal(run.estimate, direct(y, task.student))
    assert run.operator_calls == (1 if method is ADJOINT else 0)
    assert run.denoiser_calls == 0
    assert method.published(task) == {}
    assert method.skip(task) is None


def test_bicubic_skips_what_is_no_decimation(from_matrix):
    """The reason names the task."""
    task = small_task()
    other = replace(task, operators=replace(task.operators, student=from_matrix(np.eye(256))))
    assert "sr measures something else" in BICUBIC.skip(other)
