"""Priors of real images on complex ones."""

import pytest
import torch

from dipa_bench.errors import UserError
from dipa_bench.priors.base import SIGMA, Prior
from dipa_bench.priors.complex import PARTS, on_complex
from dipa_bench.testing.problems import smoothing_prior


def batch(count=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 2, 12, 16, generator=generator, dtype=torch.float64)


def as_complex(x):
    return torch.complex(x[:, 0], x[:, 1])


def test_magnitude_is_denoised_and_the_phase_kept():
    """D(|v|) at the angles of v; the floor costs less than 1e-6 of magnitudes above 0.05."""
    v, prior = batch(), smoothing_prior()
    v = v * (1 + 0.1 / torch.linalg.vector_norm(v, dim=1, keepdim=True))
    found, given = (as_complex(x) for x in (on_complex(prior)(v, 0.2), v))
    torch.testing.assert_close(found.angle(), given.angle())
    expected = prior(given.abs()[:, None], 0.2)[:, 0]
    torch.testing.assert_close(found.abs(), expected, rtol=1e-3, atol=0)


def test_a_turn_of_all_phases_turns_the_result():
    """The prior on the magnitude commutes with a global phase; the other two do not."""
    v, turn = batch(), torch.polar(torch.ones(()).double(), torch.tensor(0.7).double())
    turned = torch.view_as_real(as_complex(v) * turn).movedim(-1, 1)
    for part, same in (("magnitude", True), ("channels", True), ("real", False)):
        prior = on_complex(smoothing_prior(), part)  # it is linear, so channels commute as well
        found = as_complex(prior(turned, 0.2))
        expected = as_complex(prior(v, 0.2)) * turn
        assert torch.allclose(found, expected) == same


def test_channels_are_denoised_by_themselves():
    v, prior = batch(), smoothing_prior()
    found = on_complex(prior, "channels")(v, 0.2)
    for index in range(2):
        one = slice(index, index + 1)
        torch.testing.assert_close(found[:, one], prior(v[:, one], 0.2))


def test_real_images_have_no_imaginary_part():
    v, prior = batch(), smoothing_prior()
    found = on_complex(prior, "real")(v, 0.2)
    torch.testing.assert_close(found[:, :1], prior(v[:, :1], 0.2))
    assert not found[:, 1].any()


@pytest.mark.parametrize("part", PARTS)
def test_gradients_are_those_of_finite_differences(part):
    prior = on_complex(smoothing_prior(), part)
    v = batch(1)[..., :6, :6].requires_grad_()
    assert torch.autograd.gradcheck(lambda x: prior(x, 0.2), (v,))


def test_an_empty_background_has_finite_gradients():
    """|v| = 0 has no angle: the result is 0 and gradients stay bounded."""
    prior = on_complex(Prior("plus", SIGMA, lambda v, sigma: v + sigma))
    v = torch.zeros(1, 2, 4, 4, requires_grad=True)
    found = prior(v, 0.1)
    assert not found.any()
    (slope,) = torch.autograd.grad(found.sum(), v)
    assert torch.isfinite(slope).all()
    assert slope.abs().max() <= 0.1 / 1e-3 * 1.01


def test_strengths_of_single_images():
    v, prior = batch(), on_complex(smoothing_prior())
    levels = torch.tensor([0.05, 0.1, 0.3], dtype=torch.float64).view(-1, 1, 1, 1)
    whole = prior(v, levels)
    for index in range(3):
        alone = prior(v[index : index + 1], levels[index].item())
        torch.testing.assert_close(alone, whole[index : index + 1])


def test_digests_tell_parts_and_priors_apart():
    base = smoothing_prior()
    digests = {on_complex(base, part).digest() for part in PARTS} | {base.digest()}
    assert len(digests) == 4
    assert not on_complex(Prior("n", SIGMA, base, differentiable=False)).differentiable


def test_colour_priors_are_refused():
    with pytest.raises(UserError, match=r"'rgb' denoises colour.*complex"):
        on_complex(Prior("rgb", SIGMA, lambda v, sigma: v, channels=3))
