"""Any directory of images as a dataset."""

import gc
import warnings

import numpy as np
import pytest
from PIL import Image

from dipa_bench.data.load import load
from dipa_bench.errors import UserError


def picture(path, seed=0, shape=(20, 20), dtype=np.uint8):
    """Writes a random picture and returns it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    values = rng.integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)
    Image.fromarray(values).save(path)
    return values


def people(place, count, shots=3):
    for person in range(count):
        for shot in range(shots):
            picture(place / f"p{person}" / f"{shot}.png", 100 * person + shot)


def subjects(splits):
    parts = (splits.train, splits.validation, splits._test)
    return [set(part.subjects) for part in parts]


def test_a_subfolder_is_a_subject(tmp_path):
    """Ten subfolders of three pictures: 7, 1 and 2 subjects, disjoint, with all their pictures."""
    people(tmp_path, 10)
    splits = load(f"folder:{tmp_path}", 16)
    found = subjects(splits)
    assert [len(part) for part in found] == [7, 1, 2]
    assert set.union(*found) == {f"p{i}" for i in range(10)}
    assert [len(splits.train), len(splits.validation), splits.test_count] == [21, 3, 6]
    assert splits.shape == (1, 16, 16)


def test_loose_images_are_subjects_of_their_own(tmp_path):
    """Five files in the folder itself: 3, 1, 1."""
    for index in range(5):
        picture(tmp_path / f"{index}.png", index)
    assert [len(part) for part in subjects(load(f"folder:{tmp_path}", 16))] == [3, 1, 1]


def test_the_split_depends_on_names_alone(tmp_path):
    """The same again elsewhere, written in another order; a new subject moves few of the others."""
    for place, order in ((tmp_path / "a", range(10)), (tmp_path / "b", range(9, -1, -1))):
        for person in order:
            picture(place / f"p{person}" / "0.png", person)
    first, second = (load(f"folder:{tmp_path / name}", 16) for name in "ab")
    assert subjects(first) == subjects(second)
    assert first.digest == second.digest


def test_deep_files_belong_to_the_first_subfolder(tmp_path):
    """p0/x/0.png and p0/y/0.png are one subject."""
    for person in range(3):
        for where in "xy":
            picture(tmp_path / f"p{person}" / where / "0.png", person)
    assert [len(part) for part in subjects(load(f"folder:{tmp_path}", 16))] == [1, 1, 1]


def only(tmp_path, name="p0"):
    """The loaded pixels of subject `name`, whichever split it is in."""
    splits = load(f"folder:{tmp_path}", 20)
    for part in (splits.train, splits.validation, splits._test):
        if name in part.subjects:
            return part.pixels[part.subjects.index(name), 0].numpy()
    raise AssertionError(name)


def filled(tmp_path):
    people(tmp_path, 4, shots=1)
    (tmp_path / "p0" / "0.png").unlink()
    return tmp_path / "p0" / "0.png"


def test_gray(tmp_path):
    """8-bit gray pictures of the wanted size are read as value / 255."""
    values = picture(filled(tmp_path))
    np.testing.assert_allclose(only(tmp_path), values / 255, atol=1e-6)


def test_sixteen_bit(tmp_path):
    """16-bit gray pictures are read as value / 65535."""
    values = picture(filled(tmp_path), dtype=np.uint16)
    np.testing.assert_allclose(only(tmp_path), values / 65535, atol=1e-6)


def test_colour(tmp_path):
    """RGB becomes its luminance (ITU-R 709)."""
    values = picture(filled(tmp_path), shape=(20, 20, 3))
    expected = values / 255 @ np.array([0.2125, 0.7154, 0.0721])
    np.testing.assert_allclose(only(tmp_path), expected, atol=1e-5)


def test_transparency(tmp_path):
    """RGBA is laid on white first."""
    values = picture(filled(tmp_path), shape=(20, 20, 4)) / 255
    laid = values[..., 3:] * values[..., :3] + 1 - values[..., 3:]
    expected = laid @ np.array([0.2125, 0.7154, 0.0721])
    np.testing.assert_allclose(only(tmp_path), expected, atol=1e-5)


@pytest.mark.parametrize("mode", ["LA", "P", "1"])
def test_other_modes_of_png(tmp_path, mode):
    """Gray with transparency, palettes and bits are gray pictures too."""
    path = filled(tmp_path)
    values = np.random.default_rng(0).integers(0, 256, (20, 20), dtype=np.uint8)
    image = Image.fromarray(values)
    image.convert(mode).save(path)
    if mode == "1":
        values = np.array(image.convert("1")) * 255
    if mode == "LA":  # half transparent, on white
        image = image.convert("LA")
        image.putalpha(51)
        image.save(path)
        values = 0.2 * values + 0.8 * 255
    np.testing.assert_allclose(only(tmp_path), values / 255, atol=0.01)


def test_oblong_pictures_lose_their_ends(tmp_path):
    """The central 20 x 20 of 20 x 50 pixels."""
    values = picture(filled(tmp_path), shape=(20, 50))
    np.testing.assert_allclose(only(tmp_path), values[:, 15:35] / 255, atol=1e-6)


def test_one_pixel_pictures(tmp_path):
    """Enlarged to a flat square."""
    values = picture(filled(tmp_path), shape=(1, 1))
    np.testing.assert_allclose(only(tmp_path), np.full((20, 20), values[0, 0] / 255), atol=1e-6)


def test_other_files_are_left_alone(tmp_path):
    """A text file beside the pictures is not one."""
    people(tmp_path, 3, shots=1)
    (tmp_path / "p0" / "notes.txt").write_text("no picture")
    assert len(load(f"folder:{tmp_path}", 16).train) == 1


def test_mistakes_are_user_errors(tmp_path):
    """Each in one line with the path: no folder, no images, too few subjects, damaged file."""
    cases = {"missing": "no image folder", "empty": "holds no images", "two": "at least 3"}
    (tmp_path / "empty").mkdir()
    people(tmp_path / "two", 2)
    for name, message in cases.items():
        with pytest.raises(UserError, match=message) as caught:
            load(f"folder:{tmp_path / name}", 16)
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_a_damaged_image_is_named(tmp_path, content):
    """Empty, text, or a PNG that ends after its signature."""
    path = filled(tmp_path)
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # imageio leaves the file open
        with pytest.raises(UserError, match=r"0\.png cannot be read") as caught:
            load(f"folder:{tmp_path}", 16)
        message = str(caught.value)
        del caught
        gc.collect(0)
    assert "\n" not in message


def test_a_file_is_no_folder(tmp_path):
    """`folder:` of a picture."""
    picture(tmp_path / "one.png")
    with pytest.raises(UserError, match="directory"):
        load(f"folder:{tmp_path / 'one.png'}", 16)


def test_names_without_prefix_are_registered_ones():
    """An unknown name is refused with the nearest."""
    with pytest.raises(UserError, match="did you mean 'faces'"):
        load("face", 16)
