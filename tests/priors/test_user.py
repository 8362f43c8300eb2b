"""Denoisers that users bring: functions, classes and files of weights."""

import sys
import textwrap

import pytest
import torch

from dipa_bench.errors import UserError
from dipa_bench.priors import user

MODULE = """
    import torch

    def gain(noisy):
        return noisy.clamp_min(0.2)

    def with_sigma(noisy, sigma):
        return noisy / (1 + sigma)

    def keyword_only(noisy, *, verbose=False):
        return noisy

    class Module(torch.nn.Module):
        differentiable = False

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor(0.5))

        def forward(self, noisy, sigma):
            return self.weight * noisy

    def cropped(noisy):
        return noisy[..., 1:, 1:]

    def crashes(noisy):
        raise RuntimeError("first line\\nsecond line")

    def explodes(noisy):
        return noisy / 0

    number = 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory, with a module that no one imported before."""
    name = f"denoisers_{abs(hash(str(tmp_path)))}"
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(MODULE))
    monkeypatch.chdir(tmp_path)
    yield name
    sys.modules.pop(name, None)


V = torch.rand(2, 1, 8, 8)


def test_function_without_sigma_is_scaled(folder):
    """Strength s of s D(v / s): a floor at 0.2 becomes a floor at 0.2 s."""
    prior = user.build(f"{folder}:gain")
    assert prior.strength.name == "scale"
    torch.testing.assert_close(prior(V, 3.0), V.clamp_min(0.6))
    assert user.build(f"{folder}:keyword_only").strength.name == "scale"


def test_function_with_sigma_gets_it(folder):
    """The second argument is the strength."""
    prior = user.build(f"{folder}:with_sigma")
    assert prior.strength.name == "sigma"
    torch.testing.assert_close(prior(V, 0.25), V / 1.25)


def test_class_is_made_and_frozen(folder):
    """A module's class is instantiated; its weights are frozen, its flag is kept."""
    prior = user.build(f"{folder}:Module")
    assert prior.strength.name == "sigma"
    assert not prior.differentiable
    assert [part.requires_grad for part in prior.parameters()] == [False]
    torch.testing.assert_close(prior(V, 0.1), V / 2)


def test_the_working_directory_leaves_the_path(folder):
    """Importing from here does not change sys.path for good."""
    before = list(sys.path)
    user.build(f"{folder}:gain")
    assert sys.path == before


def test_digest_follows_the_source(folder, tmp_path):
    """A changed file is another prior, so that no cached teacher of the old one is read."""
    first = user.build(f"{folder}:gain").digest()
    assert user.build(f"{folder}:with_sigma").digest() != first
    sys.modules.pop(folder)
    path = tmp_path / f"{folder}.py"
    path.write_text(textwrap.dedent(MODULE).replace("0.2", "0.25"))
    assert user.build(f"{folder}:gain").digest() != first


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        ("cropped", r"maps \(2, 1, 16, 16\) to \(2, 1, 15, 15\)"),
        ("crashes", "RuntimeError: first line"),
        ("explodes", "not finite"),
        ("number", "is a int, not a function"),
        ("missing", "cannot be imported"),
    ],
)
def test_what_is_no_denoiser_is_refused(folder, attribute, message):
    """One line that names it: another shape, an exception, NaN, no function, nothing there."""
    with pytest.raises(UserError, match=message) as caught:
        user.build(f"{folder}:{attribute}")
    assert attribute in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["no_such_module_at_all:f", ":", "os:"])
def test_what_cannot_be_imported(name):
    """A module that does not exist, or half a name."""
    with pytest.raises(UserError, match="module:function"):
        user.build(name)


def test_registered_names():
    """An unknown one is refused with the nearest."""
    assert user.build("tv").name == "tv"
    with pytest.raises(UserError, match="dncnn"):
        user.build("dncn")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("depth", "width"), [(4, 8), (2, 4), (7, 5)])
def test_weights_of_a_dncnn(tmp_path, depth, width, bias):
    """Depth, width and bias are read off the tensors; s D(v / s) of the same network."""
    from deepinv.models import DnCNN

    network = DnCNN(1, 1, depth=depth, nf=width, bias=bias, pretrained=None).eval()
    path = tmp_path / "net.pth"
    torch.save(network.state_dict(), path)
    prior = user.build(str(path))
    with torch.no_grad():
        torch.testing.assert_close(prior(V, 1.0), network(V))
        torch.testing.assert_close(prior(V, 2.0), 2 * network(V / 2))
    assert prior.name == "net.pth"


def test_digest_of_a_file_is_its_content(tmp_path):
    """Another network under the same name is another prior."""
    from deepinv.models import DnCNN

    digests = set()
    for seed in range(2):
        torch.manual_seed(seed)
        network = DnCNN(1, 1, depth=3, nf=4, pretrained=None)
        torch.save(network.state_dict(), tmp_path / "net.pt")
        digests.add(user.build(str(tmp_path / "net.pt")).digest())
    assert len(digests) == 2


@pytest.mark.parametrize("name", ["net.pth", "net.pt", "net.safetensors"])
@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04" + bytes(100)])
def test_damaged_weights(tmp_path, name, content):
    """One line with the path and the cure."""
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match="cannot be read") as caught:
        user.build(str(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_weights(tmp_path):
    """The path is named."""
    with pytest.raises(UserError, match=r"no prior weights at .*absent\.pth"):
        user.build(str(tmp_path / "absent.pth"))


@pytest.mark.parametrize(
    "state",
    [
        {"other.weight": torch.zeros(3)},
        {"in_conv.weight": torch.zeros(4, 3, 3, 3)},
        [1, 2],
    ],
)
def test_weights_of_another_network(tmp_path, state):
    """Other names, three channels, no state_dict at all."""
    torch.save(state, tmp_path / "net.pth")
    with pytest.raises(UserError, match="cannot be read") as caught:
        user.build(str(tmp_path / "net.pth"))
    assert "\n" not in str(caught.value)


class Malicious:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_with_code_does_not_run(tmp_path):
    """`weights_only`: the file is refused and its payload never executed."""
    torch.save({"in_conv.weight": Malicious(tmp_path / "pwned")}, tmp_path / "net.pth")
    with pytest.raises(UserError, match="cannot be read"):
        user.build(str(tmp_path / "net.pth"))
    assert not (tmp_path / "pwned").exists()


FLAGGED = """
    def any_channels(noisy, sigma):
        return noisy.flip(1)

    any_channels.channels = None
    any_channels.differentiable = False

    def color(noisy):
        assert noisy.shape[1] == 3
        return noisy

    color.channels = 3

    def wide(noisy):
        return noisy

    wide.channels = 64

    def doubtful(noisy):
        return noisy

    doubtful.differentiable = "no"

    def cropped(noisy):
        return noisy[..., 1:]

    cropped.channels = 3
"""


@pytest.fixture
def flagged(folder, tmp_path):
    (tmp_path / f"{folder}.py").write_text(textwrap.dedent(FLAGGED))
    return folder


def test_a_function_says_which_images_it_takes(flagged):
    """`channels` and `differentiable` of the function are those of the prior."""
    prior = user.build(f"{flagged}:any_channels")
    assert prior.channels is None
    assert prior.differentiable is False
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(prior(images, 0.1), images.flip(1))
    prior = user.build(f"{flagged}:color")
    assert prior.channels == 3
    assert prior.differentiable is True
    with pytest.raises(UserError, match="gray prior"):
        prior(V, 1.0)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("wide", "channels = 64: set it to 1 or 3 or None"),
        ("doubtful", "differentiable = 'no': set it to True or False"),
        ("cropped", "no colour denoiser: on a 2 x 3 x 16 x 16 batch"),
    ],
)
def test_a_function_that_says_what_cannot_be(flagged, function, message):
    """Named in one line."""
    with pytest.raises(UserError, match=message) as caught:
        user.build(f"{flagged}:{function}")
    assert "\n" not in str(caught.value)
