"""Complex images from gray ones, and back."""

import math

import pytest
import torch

from dipa_bench.data.complex import SWING, complex_images, real_images, smooth_phase
from dipa_bench.data.signals import is_complex, magnitude
from dipa_bench.errors import UserError
from dipa_bench.testing.problems import synthetic_splits


def test_a_phase_leaves_the_magnitude():
    """There and back; names, subjects and order stay."""
    gray = synthetic_splits((1, 24, 20))
    made = complex_images(gray, "smooth")
    assert made.shape == (2, 24, 20)
    back = real_images(made)
    for before, after in ((gray.train, back.train), (gray.validation, back.validation)):
        torch.testing.assert_close(after.pixels, before.pixels, rtol=0, atol=1e-6)
        assert (after.names, after.subjects) == (before.names, before.subjects)
    assert complex_images(made, "smooth") is made
    assert real_images(gray) is gray


def test_no_phase_is_a_real_image():
    made = complex_images(synthetic_splits((1, 8, 8)), "none")
    assert not made.train.pixels[:, 1].any()


def test_a_smooth_phase_is_smooth_and_an_images_own():
    """The wanted swing, small steps between neighbours, decided by the name alone."""
    phase = smooth_phase("a", (64, 48))
    assert (phase - phase.mean()).square().mean().sqrt().item() == pytest.approx(SWING, rel=1e-5)
    steps = torch.cat([phase.diff(dim=axis).abs().flatten() for axis in (0, 1)])
    assert steps.max() < math.pi / 4
    assert torch.equal(phase, smooth_phase("a", (64, 48)))
    assert not torch.equal(phase, smooth_phase("b", (64, 48)))


def test_colour_has_no_phase():
    with pytest.raises(UserError, match=r"leave out problem\.color"):
        complex_images(synthetic_splits((3, 8, 8)), "smooth")


def test_magnitude():
    """sqrt(re^2 + im^2) of two channels, others as they are; a derivative everywhere."""
    x = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1).requires_grad_()
    assert magnitude(x).item() == 5
    (slope,) = torch.autograd.grad(magnitude(x).sum(), x)
    torch.testing.assert_close(slope.flatten(), torch.tensor([0.6, 0.8]))
    zero = torch.zeros(1, 2, 3, 3, requires_grad=True)
    (slope,) = torch.autograd.grad(magnitude(zero).sum(), zero)
    assert not slope.any()
    for channels in (1, 3):
        y = torch.randn(2, channels, 3, 3)
        assert magnitude(y) is y
        assert not is_complex(y)
