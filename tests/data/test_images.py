"""Image sets, splits and resizing."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

from dipa_bench.data.images import ImageSet, Splits, select, square
from dipa_bench.errors import UserError


def images(*names, subjects=None):
    pixels = torch.linspace(0, 1, max(1, len(names)))[: len(names), None, None, None]
    return ImageSet(pixels.expand(len(names), 1, 4, 4), names, subjects or names)


def test_resizing_is_antialiased():
    """Stripes of one pixel, halved and quartered, become gray instead of aliasing to black."""
    stripes = np.tile([0.0, 1.0], (64, 32))
    for size in (32, 16):
        found = square(stripes, size)[2:-2, 2:-2]
        assert np.abs(found - 0.5).max() < 0.1
    assert np.ptp(stripes[::2, ::2]) == 0  # what decimation alone would give: black


def test_resizing_keeps_slow_waves():
    """One period over the picture survives a fourfold reduction to 0.02."""

    def wave(size):
        return 0.5 + 0.4 * np.sin(2 * np.pi * (np.arange(size) + 0.5) / size)

    found = square(np.tile(wave(64), (64, 1)), 16)
    np.testing.assert_allclose(found[8], wave(16), atol=0.03)


def test_the_central_square_is_kept():
    """A bright square in the middle of an oblong picture fills the result."""
    picture = np.zeros((20, 40))
    picture[:, 10:30] = 1
    assert (square(picture, 20) == 1).all()
    assert (square(picture.T, 20) == 1).all()
    assert square(picture, 20).dtype == np.float32


def test_values_stay_in_range():
    """Cubic interpolation overshoots at edges; the result is clipped."""
    step = np.zeros((10, 10))
    step[:, 5:] = 1
    found = square(step, 25)
    assert found.min() == 0
    assert found.max() == 1


def test_every_read_of_the_test_images_is_logged(caplog):
    """The reason goes to `reads` and to the log; counting them is no read."""
    splits = Splits(images("a"), images("b"), images("c", "d"))
    with caplog.at_level(logging.INFO):
        assert splits.test_count == 2
        assert splits.shape == (1, 4, 4)
        assert splits.digest
        assert splits.reads == []
        assert splits.test("seed 0 of identity").names == ("c", "d")
        splits.test("again")
    assert splits.reads == ["seed 0 of identity", "again"]
    assert "seed 0 of identity" in caplog.text


def test_a_subject_in_two_splits_is_refused():
    """Also when the images differ."""
    with pytest.raises(ValueError, match="two splits"):
        Splits(images("a", subjects=("s",)), images("b"), images("c", subjects=("s",)))


def test_an_empty_split_is_refused():
    """The message names the split."""
    with pytest.raises(UserError, match="validation split is empty"):
        Splits(images("a"), images(), images("c"))


def test_sets_check_themselves():
    """Lengths must agree and pixels lie in [0, 1]."""
    with pytest.raises(ValueError, match="length"):
        ImageSet(torch.zeros(2, 1, 4, 4), ("a",), ("a",))
    with pytest.raises(ValueError, match="outside"):
        ImageSet(torch.full((1, 1, 4, 4), 1.1), ("a",), ("a",))
    with pytest.raises(ValueError, match="outside"):
        ImageSet(torch.full((1, 1, 4, 4), -0.1), ("a",), ("a",))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_pixels_must_be_numbers(bad):
    """NaN is outside [0, 1] too."""
    with pytest.raises(ValueError, match="outside"):
        ImageSet(torch.full((1, 1, 4, 4), bad), ("a",), ("a",))


@pytest.mark.parametrize("count", [1, 3, 7, 28, 100])
def test_first_spreads_over_the_subjects(count):
    """As many as asked for, evenly: no subject twice more often than another."""
    names = tuple(f"s{i // 10}/{i % 10}" for i in range(280))
    everything = images(*names, subjects=tuple(name.split("/")[0] for name in names))
    found = everything.first(count)
    assert len(found) == count
    per = [found.subjects.count(who) for who in {f"s{i}" for i in range(28)}]
    assert max(per) - min(per) <= 1
    for name, pixels in zip(found.names, found.pixels, strict=True):
        assert torch.equal(pixels, everything.pixels[names.index(name)])


def test_first_of_more_than_there_are():
    """All of them, and for None too."""
    everything = images("a", "b")
    assert everything.first(None) is everything
    assert everything.first(5) is everything


def test_select_by_subject():
    """Pixels, names and subjects stay together."""
    pixels = torch.arange(4.0).view(4, 1, 1, 1) / 4
    found = select(pixels, list("abcd"), ["x", "y", "x", "z"], {"x", "z"})
    assert found.names == ("a", "c", "d")
    assert found.subjects == ("x", "x", "z")
    assert found.pixels.flatten().tolist() == [0, 0.5, 0.75]


def test_digests_follow_pixels_names_and_subjects():
    """Each alone changes the digest."""
    base = images("a", "b")
    others = [
        replace(base, pixels=base.pixels.flip(0)),
        replace(base, names=("a", "c")),
        replace(base, subjects=("a", "c")),
    ]
    assert len({base.digest, *(other.digest for other in others)}) == 4


@pytest.mark.parametrize("shape", [(2, 4, 8, 8), (2, 0, 8, 8), (2, 8, 8)])
def test_only_gray_complex_and_colour_channels(shape):
    with pytest.raises(ValueError, match="not N x 1, 2 or 3"):
        ImageSet(torch.zeros(shape), ("a", "b"), ("a", "b"))
