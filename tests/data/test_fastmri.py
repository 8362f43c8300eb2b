"""`fastmri-knee` and `fastmri-raw`, from small files of their kind."""

import h5py
import numpy as np
import pytest
import torch

from dipa_bench.data import fastmri_raw
from dipa_bench.data.load import load
from dipa_bench.errors import UserError


def parts(splits):
    return (splits.train, splits.validation, splits._test)


@pytest.fixture
def slices(tmp_path):
    """Ten slices as deepinv saves them, and their folder."""
    pixels = torch.rand(10, 24, 20, generator=torch.Generator().manual_seed(0))
    torch.save(pixels, tmp_path / "fastmri_knee_singlecoil.pt")
    return pixels, tmp_path


def test_knees(slices):
    """Seven, one and two slices in the file's order, from the folder or the file."""
    pixels, place = slices
    splits = load(f"fastmri-knee:{place}", 20)
    assert [len(part) for part in parts(splits)] == [7, 1, 2]
    found = torch.cat([part.pixels for part in parts(splits)])
    torch.testing.assert_close(found[:, 0], pixels[:, 2:22])
    assert len({subject for part in parts(splits) for subject in part.subjects}) == 10
    file = load(f"fastmri-knee:{place / 'fastmri_knee_singlecoil.pt'}", 20)
    assert file.digest == splits.digest


def test_the_published_split(tmp_path):
    """973 slices: 900 train with their validation, 73 test."""
    torch.save(
        torch.linspace(0, 1, 973)[:, None, None].expand(973, 4, 4).clone(), tmp_path / "x.pt"
    )
    splits = load(f"fastmri-knee:{tmp_path}", 4)
    assert [len(part) for part in parts(splits)] == [850, 50, 73]
    assert splits._test.names[0] == "slice 0900"
    assert splits._test.pixels[0, 0, 0, 0] == pytest.approx(900 / 972)


def test_knees_saved_as_complex(slices):
    """N x 2 x H x W becomes its magnitude."""
    pixels, place = slices
    plain = load(f"fastmri-knee:{place}", 20)
    torch.save(torch.stack((0.6 * pixels, -0.8 * pixels), 1), place / "fastmri_knee_singlecoil.pt")
    found = load(f"fastmri-knee:{place}", 20)
    torch.testing.assert_close(found.train.pixels, plain.train.pixels)


def test_knees_of_deepinv_itself(tmp_path):
    """What deepinv's own classes make of a raw volume can be read."""
    from deepinv.datasets import FastMRISliceDataset

    raw, place = tmp_path / "raw", tmp_path / "made"
    place.mkdir()
    for number in range(3):
        volume(raw / f"file{number}.h5", number, shape=(7, 340, 330))
    made = FastMRISliceDataset(raw, slice_index="middle", use_dict_output=True)
    made.save_simple_dataset(str(place / "knees.pt"))
    splits = load(f"fastmri-knee:{place}", 32)
    assert [len(part) for part in parts(splits)] == [1, 1, 1]
    assert splits.train.pixels.max() > 0.5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "expected one"),
        (torch.full((4, 8, 8), 2.0), "outside"),
        (torch.full((4, 8, 8), torch.nan), "outside"),
        (torch.zeros(4, 8), "cannot be read"),
        ({"x": torch.zeros(4, 8, 8)}, "cannot be read"),
        (torch.zeros(2, 8, 8), "at least 3"),
        (object, "cannot be read"),
    ],
)
def test_mistakes_with_knees(tmp_path, content, message):
    """No file, wrong range or shape, too few, or a pickle: one line with the path."""
    if content is not None:
        torch.save(content, tmp_path / "x.pt")
    with pytest.raises(UserError, match=message) as caught:
        load(f"fastmri-knee:{tmp_path}", 8)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_several_knee_files(slices):
    """The user says which."""
    torch.save(torch.zeros(3, 8, 8), slices[1] / "other.pt")
    with pytest.raises(UserError, match=r"fastmri_knee_singlecoil\.pt, other\.pt"):
        load(f"fastmri-knee:{slices[1]}", 8)


def pictures(seed, shape):
    """Smooth complex pictures, slices x H x W."""
    rng = np.random.default_rng(seed)
    count, height, width = shape
    y, x = np.mgrid[-1 : 1 : 1j * height, -1 : 1 : 1j * width]
    shift = rng.uniform(-0.2, 0.2, (count, 1, 1))
    bump = (1 + np.arange(count))[:, None, None] * np.exp(-4 * ((x - shift) ** 2 + y**2))
    return 1e-5 * bump * np.exp(1j * (2 * x + y + rng.uniform(0, 6)))


def volume(path, seed, shape=(9, 40, 32), patient=None):
    """Writes a volume whose image is `pictures` by a centred, orthonormal FFT; returns those."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = pictures(seed, shape)
    height, width = shape[1:]
    kspace = np.zeros_like(images)
    # the definition: row k of the transform is exp(-2 pi i (k - n // 2) (j - n // 2) / n) / sqrt(n)
    rows, columns = (
        np.exp(-2j * np.pi * np.outer(np.arange(n) - n // 2, np.arange(n) - n // 2) / n)
        / np.sqrt(n)
        for n in (height, width)
    )
    kspace = rows @ images @ columns.T
    with h5py.File(path, "w") as file:
        file["kspace"] = kspace.astype(np.complex64)
        file["reconstruction_esc"] = np.abs(images).astype(np.float32)
        if patient is not None:
            file.attrs["patient_id"] = patient
    return images


def test_images_come_back(tmp_path):
    """Five central slices, cropped, in their phase; the volume's largest magnitude is 1."""
    images = volume(tmp_path / "a.h5", 0)
    found = fastmri_raw.images(tmp_path / "a.h5")
    assert list(found) == [2, 3, 4, 5, 6]
    expected = images[2:7, 4:36]
    expected = expected / np.abs(expected).max()
    np.testing.assert_allclose(np.stack(list(found.values())), expected, atol=1e-5)


def test_the_readout_is_cropped(tmp_path):
    """A 640 x 368 volume gives fastMRI's 320 x 320."""
    images = volume(tmp_path / "a.h5", 0, shape=(2, 640, 368))
    found = fastmri_raw.images(tmp_path / "a.h5")
    assert list(found) == [0, 1]
    assert found[1].shape == (320, 320)
    expected = images[:, 160:480, 24:344]
    np.testing.assert_allclose(found[1], (expected / np.abs(expected).max())[1], atol=1e-5)


def test_raw_volumes(tmp_path):
    """Complex, by patient: the training folder trains, the other validates and tests."""
    for number in range(4):
        volume(tmp_path / "singlecoil_train" / f"f{number}.h5", number, patient=f"p{number // 2}")
    for number in range(4, 11):
        patient = "p0" if number == 10 else f"p{number}"
        volume(tmp_path / "singlecoil_val" / f"f{number}.h5", number, patient=patient)
    before = sorted(tmp_path.rglob("*"))
    splits = load(f"fastmri-raw:{tmp_path}", 16)
    people = [set(part.subjects) for part in parts(splits)]
    assert people[0] == {"p0", "p1"}
    assert [len(part) for part in parts(splits)] == [20, 10, 20]
    assert people[1] | people[2] == {f"p{number}" for number in range(4, 10)}
    assert not people[1] & people[2]
    assert splits.shape == (2, 16, 16)
    assert sorted(tmp_path.rglob("*")) == before  # no caches


def test_raw_pixels(tmp_path):
    """Halved, each part is close to the mean of 2 x 2 pixels; without an ID the file is one."""
    images = {f"f{number}": volume(tmp_path / f"f{number}.h5", number) for number in range(4)}
    splits = load(f"fastmri-raw:{tmp_path}", 16)
    assert [len(part) for part in parts(splits)] == [10, 5, 5]
    for part in parts(splits):
        for name, subject, pixels in zip(part.names, part.subjects, part.pixels, strict=True):
            file, number = name.split("#")
            assert subject == file
            kept = images[file][2:7, 4:36]
            whole = images[file][int(number), 4:36] / np.abs(kept).max()
            means = whole.reshape(16, 2, 16, 2).mean((1, 3))
            found = pixels[0].numpy() + 1j * pixels[1].numpy()
            assert np.abs(found - means).max() < 0.05
            assert np.abs(np.vdot(found, means)) > 0.99 * np.linalg.norm(found) ** 2


@pytest.mark.parametrize("patient", [b"p7", np.bytes_("p7"), "p7"])
def test_patients_as_bytes_or_text(tmp_path, patient):
    """HDF5 attributes come as either."""
    for number in range(3):
        volume(tmp_path / f"f{number}.h5", number, shape=(1, 8, 8))
    with h5py.File(tmp_path / "f0.h5", "a") as file:
        file.attrs["patient_id"] = patient
    splits = load(f"fastmri-raw:{tmp_path}", 8)
    assert {who for part in parts(splits) for who in part.subjects} == {"p7", "f1", "f2"}


def broken(path, kind):
    if kind == "text":
        path.write_bytes(b"no volume")
        return
    with h5py.File(path, "w") as file:
        if kind == "multi-coil":
            file["kspace"] = np.ones((3, 4, 8, 8), np.complex64)
        elif kind == "empty":
            file["kspace"] = np.zeros((3, 8, 8), np.complex64)
        elif kind == "other":
            file["image"] = np.zeros((3, 8, 8))


@pytest.mark.parametrize("kind", ["text", "multi-coil", "empty", "other"])
def test_broken_volumes_are_named(tmp_path, kind):
    """One line with the file and a cure."""
    for number in range(2):
        volume(tmp_path / f"f{number}.h5", number)
    broken(tmp_path / "bad.h5", kind)
    with pytest.raises(UserError, match=r"bad\.h5") as caught:
        load(f"fastmri-raw:{tmp_path}", 8)
    message = str(caught.value)
    assert "\n" not in message
    assert "give single-coil" in message if kind == "multi-coil" else "remove it" in message


def test_no_volumes(tmp_path):
    """Path, layout and cure."""
    with pytest.raises(UserError, match=r"singlecoil_train/\*\.h5") as caught:
        load(f"fastmri-raw:{tmp_path}", 8)
    assert str(tmp_path) in str(caught.value)
    volume(tmp_path / "one.h5", 0)
    with pytest.raises(UserError, match="too few patients"):
        load(f"fastmri-raw:{tmp_path}", 8)


@pytest.mark.parametrize("name", ["fastmri-knee", "fastmri-raw"])
def test_knees_refuse_colour(name, tmp_path):
    """Magnitudes and complex images have none."""
    with pytest.raises(UserError, match=r"leave out problem\.color"):
        load(f"{name}:{tmp_path}", 8, color=True)
