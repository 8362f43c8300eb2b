"""The published runs' DnCNN: what happens without its weights, and what it does with them."""

import urllib.error
from pathlib import Path

import pytest
import torch

from dipa_bench.data.load import load
from dipa_bench.errors import UserError
from dipa_bench.metrics import psnr
from dipa_bench.priors import downloads, published


@pytest.mark.parametrize(
    "problem", [urllib.error.URLError("no network"), TimeoutError(), RuntimeError("two\nlines")]
)
def test_without_weights_and_network(tmp_path, monkeypatch, problem):
    """One line that names TORCH_HOME, the file and the shipped alternative."""

    def refuse(*arguments, **options):
        raise problem

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(UserError, match="TORCH_HOME") as caught:
        published.SPEC.build()
    message = str(caught.value)
    assert str(tmp_path / "hub" / "checkpoints" / published.WEIGHTS) in message
    assert "dncnn-small" in message
    assert "\n" not in message


def test_with_damaged_weights(tmp_path, monkeypatch):
    """A truncated download is the same one line."""
    path = tmp_path / "hub" / "checkpoints" / published.WEIGHTS
    path.parent.mkdir(parents=True)
    path.write_bytes(b"PK\x03\x04 half a file")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UserError, match="TORCH_HOME"):
        published.SPEC.build()


@pytest.fixture
def prior(published_weights):
    return published.SPEC.build()


def test_strength_scales_the_network(prior):
    """s D(v / s) with D the bare network of 20 layers x 64."""
    network = prior._denoise.denoiser
    assert len(network.conv_list) == 18
    assert network.in_conv.weight.shape == (64, 1, 3, 3)
    v = load("faces", 24).validation.first(2).pixels
    with torch.no_grad():
        torch.testing.assert_close(prior(v, 1.0), network(v))
        torch.testing.assert_close(prior(v, 5.0), 5 * network(v / 5))


@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_removes_the_noise_it_was_trained_for(prior, scale):
    """Noise of s * 2/255 on faces: at least 1 dB better with strength s, less without."""
    truth = load("faces", 32).validation.first(8).pixels
    generator = torch.Generator().manual_seed(0)
    noisy = truth + scale * 2 / 255 * torch.randn(truth.shape, generator=generator)
    with torch.no_grad():
        gain = (psnr(prior(noisy, scale), truth) - psnr(noisy, truth)).mean()
        other = (psnr(prior(noisy, scale * 30), truth) - psnr(noisy, truth)).mean()
    assert gain > 1
    assert other < gain


class Payload:
    """Unpickling one of these would run code."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self):
        return (Path.touch, (self.witness,))


def test_weights_cannot_run_code(tmp_path, monkeypatch):
    """A crafted file below TORCH_HOME is refused, and what it holds is not executed."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = downloads.location(published.WEIGHTS)
    path.parent.mkdir(parents=True)
    torch.save({"in_conv.weight": Payload(tmp_path / "ran")}, path)
    with pytest.raises(UserError, match="has no weights"):
        published.SPEC.build()
    assert not (tmp_path / "ran").exists()
