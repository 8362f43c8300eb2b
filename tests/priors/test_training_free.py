"""What the priors without weights have in common."""

import pytest
import torch

from dipa_bench import registry
from dipa_bench.data.load import load
from dipa_bench.errors import UserError

# name: (strength for noise of 0.1, dB gained over the noisy faces at least)
EXPECTED = {
    "bm3d": (0.1, 5.5),
    "nlm": (0.1, 4.8),
    "recursive": (0.1, 4.6),
    "tv": (0.08, 4.6),
    "wavelet": (0.15, 5.0),
}
IDENTITY = {"bm3d": 2e-3, "nlm": 1e-6, "recursive": 2e-3, "tv": 1e-3, "wavelet": 1e-3}
FLAT = {"bm3d": 2e-3, "nlm": 1e-6, "recursive": 1e-6, "tv": 1e-6, "wavelet": 1e-6}


@pytest.fixture(params=EXPECTED)
def prior(request):
    try:
        return registry.get("priors", request.param).build()
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def faces():
    return load("faces", 32).train.first(12).pixels


def noisy(images, sigma=0.1):
    generator = torch.Generator().manual_seed(0)
    return images + sigma * torch.randn(images.shape, generator=generator)


def gain(estimate, images, seen):
    errors = [(x - images).square().mean((1, 2, 3)) for x in (seen, estimate)]
    return (10 * torch.log10(errors[0] / errors[1])).mean().item()


def test_denoises_faces(prior, faces):
    """The mean PSNR of twelve faces rises by what the table says."""
    strength, expected = EXPECTED[prior.name]
    seen = noisy(faces)
    found = gain(prior(seen, strength), faces, seen)
    print(f"{prior.name}: {found:.2f} dB")
    assert found > expected


def test_takes_a_strength_for_each_image(prior, faces):
    """A batch with different strengths is its images one by one, and a number is for all."""
    seen = noisy(faces[:3])
    levels = EXPECTED[prior.name][0] * torch.tensor([0.3, 1.0, 2.5]).view(3, 1, 1, 1)
    whole = prior(seen, levels)
    assert not torch.equal(whole[0], prior(seen[:1], levels[1].item())[0])
    for index in range(3):
        alone = prior(seen[index : index + 1], levels[index].item())
        torch.testing.assert_close(alone[0], whole[index])


@pytest.mark.parametrize("size", [(11, 11), (16, 16), (13, 30)])
def test_keeps_a_flat_image(prior, size):
    """Also outside of [0, 1], at any size."""
    for value in (0.3, -1.5):
        flat = torch.full((1, 1, *size), value)
        found = prior(flat, prior.strength.default)
        torch.testing.assert_close(found, flat, rtol=0, atol=FLAT[prior.name])


def test_little_strength_changes_little(prior, faces):
    """At a thousandth of the noise, next to nothing happens; more at its own level."""
    seen = noisy(faces[:2])
    found = prior(seen, 1e-4)
    assert (found - seen).abs().max() < IDENTITY[prior.name]
    assert (prior(seen, 0.1) - seen).abs().max() > 0.05


def test_range_of_values_is_free(prior, faces):
    """D(a v + c; a sigma) = a D(v; sigma) + c, also where all values leave [0, 1]: no clipping."""
    seen = noisy(faces[:2])
    strength = EXPECTED[prior.name][0]
    moved = prior(4 * (seen - 0.7), 4 * strength)
    expected = 4 * (prior(seen, strength) - 0.7)
    tolerance = 0.05 if prior.name == "bm3d" else 1e-5  # bm3d rounds to single precision inside
    torch.testing.assert_close(moved, expected, rtol=1e-5, atol=tolerance)
    assert moved.min() < 0


def test_gradients_match_finite_differences(prior):
    """In image and strength, or no graph at all where the prior says so."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 1, 5, 6, generator=generator, dtype=torch.float64)
    level = torch.tensor([0.05, 0.2], dtype=torch.float64).view(2, 1, 1, 1)
    image, level = image.requires_grad_(), level.requires_grad_()
    if prior.differentiable:
        assert torch.autograd.gradcheck(prior._denoise, (image, level), eps=1e-7, atol=1e-5)
    else:
        found = prior(image, level)
        assert not found.requires_grad
        assert found.dtype == torch.float64


def test_one_level_for_all_images_and_channels(prior):
    """A tensor of one element is as good as its number."""
    images = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    expected = prior(images, 0.1)
    for level in (torch.tensor(0.1), torch.full((1, 1, 1, 1), 0.1), torch.full((2, 1, 1, 1), 0.1)):
        torch.testing.assert_close(prior(images, level), expected)


def test_specification_says_what_is_built(prior):
    """Channels, strength and differentiability of the record are those of the prior."""
    spec = registry.get("priors", prior.name)
    assert prior.differentiable is spec.differentiable is (prior.name not in ("nlm", "bm3d"))
    assert prior.channels == spec.channels
    assert prior.strength == spec.strength
    assert not list(prior.parameters())
