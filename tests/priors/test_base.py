"""The wrapper around denoisers."""

import pytest
import torch

from dipa_bench.priors.base import SCALE, SIGMA, THRESHOLD, Prior, Scaled, probe


def test_scaling_is_homogeneous():
    """s D(v / s) of a shrinkage is the shrinkage with s times the threshold."""

    def shrink(v, threshold=0.1):
        return v.sign() * (v.abs() - threshold).clamp_min(0)

    v = torch.randn(3, 1, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(Scaled(shrink)(v, 2.5), shrink(v, 0.25))
    per_image = torch.tensor([0.5, 1.0, 4.0], dtype=torch.float64).view(3, 1, 1, 1)
    torch.testing.assert_close(Scaled(shrink)(v, per_image), shrink(v, 0.1 * per_image))


def test_weights_are_frozen_but_the_input_is_not():
    """No parameter wants a gradient, the module is in evaluation mode, gradients pass through."""
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 3, padding=1), torch.nn.Dropout(0.9))
    prior = Prior("net", SCALE, Scaled(network))
    assert not any(part.requires_grad for part in prior.parameters())
    assert len(list(prior.parameters())) == 2
    v = torch.randn(2, 1, 8, 8, requires_grad=True)
    assert torch.equal(prior(v, 1.0), prior(v, 1.0))
    (gradient,) = torch.autograd.grad(prior(v, 1.0).sum(), v)
    assert gradient.abs().sum() > 0


def test_digest_follows_name_identity_and_weights():
    """Equal for equal priors; different for each difference."""
    torch.manual_seed(0)
    first, second = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    priors = [
        Prior("a", SIGMA, first),
        Prior("b", SIGMA, first),
        Prior("a", SIGMA, first, identity="file"),
        Prior("a", SIGMA, second),
    ]
    assert len({prior.digest() for prior in priors}) == 4
    assert priors[0].digest() == Prior("a", SIGMA, first).digest()


@pytest.mark.parametrize("strength", [SIGMA, SCALE, THRESHOLD])
def test_strength_as_a_hyper_parameter(strength):
    """Default and logarithmic range, the published value inside what is valid."""
    setting = strength.setting()
    assert setting.default == strength.default
    assert (setting.search.low, setting.search.high) == (strength.low, strength.high)
    assert setting.search.log
    assert strength.low <= strength.default <= strength.high
    assert strength.low <= strength.published <= strength.high


@pytest.mark.parametrize(
    ("denoise", "message"),
    [
        (lambda v, s: v[..., 1:], r"\(2, 1, 16, 16\) to \(2, 1, 16, 15\)"),
        (lambda v, s: v.expand(-1, 3, -1, -1), r"to \(2, 3, 16, 16\)"),
        (lambda v, s: 3.0, "float"),
        (lambda v, s: v / 0, "not finite"),
    ],
)
def test_probe_refuses_what_is_no_denoiser(denoise, message):
    """Another shape, another type, values that are not finite."""
    with pytest.raises(ValueError, match=message):
        probe(Prior("bad", SIGMA, denoise))
    probe(Prior("good", SIGMA, lambda v, s: v))
