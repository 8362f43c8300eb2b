"""DRUNet: its weights' file, sizes, noise levels; narrow and random, as no weights are here."""

import inspect

import pytest
import torch

from dipa_bench import registry
from dipa_bench.errors import UserError
from dipa_bench.priors import downloads, drunet
from dipa_bench.testing import PriorContract

FILES = {"drunet": drunet.GRAY, "drunet-color": drunet.COLOR}


def network(channels, widths):
    from deepinv.models import DRUNet

    torch.manual_seed(0)
    made = DRUNet(channels, channels, nc=widths, pretrained=None).eval()
    with torch.no_grad():
        for part in made.parameters():
            part.mul_(2.0)  # deepinv starts near zero
    return made


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty TORCH_HOME, a narrow network, no downloads."""

    def refuse(*arguments, **options):
        raise OSError("no network\nat all")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr(drunet, "WIDTHS", (4, 4, 8, 8))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    return tmp_path


@pytest.fixture(params=FILES)
def name(request):
    return request.param


@pytest.fixture
def reference(name, home):
    """deepinv's network, whose weights lie where the prior looks for them."""
    made = network(3 if name == "drunet-color" else 1, drunet.WIDTHS)
    torch.save(made.state_dict(), home / "hub" / "checkpoints" / FILES[name])
    return made


@pytest.fixture
def prior(name, reference):
    return registry.get("priors", name).build()


@pytest.mark.covering
@pytest.mark.parametrize("size", [(32, 32), (40, 56), (17, 20), (33, 47), (11, 11), (8, 16)])
def test_is_deepinvs_network(prior, reference, size):
    """The same values as deepinv's own forward pass, for numbers and one level for each image."""
    images = torch.rand(2, prior.channels, *size)
    levels = torch.tensor([0.05, 0.3]).view(2, 1, 1, 1)
    with torch.no_grad():
        assert (reference(images, 0.05) - reference(images, 0.3)).abs().max() > 1e-4
        torch.testing.assert_close(prior(images, levels), reference(images, levels))
        torch.testing.assert_close(prior(images, 0.1), reference(images, 0.1))


def test_large_odd_images_are_in_one_piece(prior):
    """Beyond 64 pixels too, a pixel sees its neighbours across the middle."""
    images = torch.rand(1, prior.channels, 70, 131)
    with torch.no_grad():
        found = prior(images, 0.1)
        padded = torch.nn.functional.pad(images, (0, 13, 0, 10), mode="replicate")
        torch.testing.assert_close(found, prior(padded, 0.1)[..., :70, :131])


@pytest.mark.parametrize("size", [(32, 32), (9, 11)])
def test_each_image_by_itself(prior, size):
    """A batch with different levels is its images one by one."""
    images = torch.rand(3, prior.channels, *size)
    levels = torch.tensor([0.01, 0.1, 0.3]).view(3, 1, 1, 1)
    whole = prior(images, levels)
    for index in range(3):
        alone = prior(images[index : index + 1], levels[index].item())
        torch.testing.assert_close(alone[0], whole[index])


@pytest.mark.parametrize("size", [(32, 32), (9, 11)])
def test_gradients_in_image_and_level(prior, size):
    """Against central differences in float64."""
    prior = prior.double()
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, prior.channels, *size, generator=generator, dtype=torch.float64)
    level = torch.full((1, 1, 1, 1), 0.1, dtype=torch.float64)
    toward = torch.randn(image.shape, generator=generator, dtype=torch.float64)

    def loss(move):
        return (toward * prior(image + move * toward, level + move)).sum()

    image, level = image.requires_grad_(), level.requires_grad_()
    by_image, by_level = torch.autograd.grad(loss(0.0), (image, level))
    assert by_level.abs() > 0
    with torch.no_grad():
        expected = (loss(1e-6) - loss(-1e-6)) / 2e-6
    torch.testing.assert_close(
        (by_image * toward).sum() + by_level.sum(), expected, rtol=1e-4, atol=1e-6
    )


def test_refuses_gray_or_takes_channels_one_by_one(prior):
    """The colour network wants three channels; the gray one takes any number."""
    if prior.channels == 3:
        with pytest.raises(UserError, match="choose a gray prior") as caught:
            prior(torch.rand(1, 1, 16, 16), 0.1)
        assert "\n" not in str(caught.value)
    else:
        images = torch.rand(1, 3, 16, 16)
        torch.testing.assert_close(prior(images, 0.1)[:, 1:2], prior(images[:, 1:2], 0.1))


def test_says_what_it_is(prior, name):
    """Sigma, gradients, channels; frozen weights that tell two priors apart."""
    assert registry.get("priors", name).download == FILES[name]
    assert prior.strength.name == "sigma"
    assert prior.differentiable
    assert prior.channels == (3 if name == "drunet-color" else 1)
    assert not any(part.requires_grad or part.is_meta for part in prior.parameters())
    before = prior.digest()
    next(prior.parameters()).add_(1)
    assert prior.digest() != before


def test_building_leaves_the_random_numbers_alone(name, reference):
    """A seed means the same with and without this prior."""
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    registry.get("priors", name).build()
    assert torch.equal(torch.rand(3), expected)


def test_has_the_published_width():
    """deepinv's default, which its files belong to."""
    from deepinv.models import DRUNet

    assert inspect.signature(DRUNet).parameters["nc"].default == drunet.WIDTHS


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 half a file", "other"])
def test_missing_or_damaged_weights(home, name, content):
    """One line with the path and the cures."""
    path = downloads.location(FILES[name])
    if content == "other":
        torch.save({"m_head.weight": torch.zeros(3)}, path)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match="TORCH_HOME") as caught:
        registry.get("priors", name).build()
    message = str(caught.value)
    assert str(path) in message
    assert repr(name) in message
    assert "dncnn-small" in message
    assert "\n" not in message


def test_downloads_where_torch_keeps_its_files(home, name, monkeypatch):
    """The published file of deepinv's, once."""
    asked = []

    def download(url, path, progress):
        asked.append(url)
        torch.save(network(3 if name == "drunet-color" else 1, drunet.WIDTHS).state_dict(), path)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    for _ in range(2):
        registry.get("priors", name).build()
    assert len(asked) == 1
    assert f"deepinv/drunet/resolve/main/{FILES[name]}" in asked[0]


@pytest.mark.covering
class TestContract(PriorContract):
    """The contract, for the narrow network."""

    @pytest.fixture(autouse=True)
    def _named(self, name, reference):
        type(self).name = name
