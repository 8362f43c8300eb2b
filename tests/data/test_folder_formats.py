"""Arrays, NIfTI volumes and DICOM series in a folder of one's own."""

import sys

import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid
from skimage.transform import resize

from dipa_bench.data.load import load
from dipa_bench.data.resizing import square_complex
from dipa_bench.errors import UserError

RNG = np.random.default_rng(0)


def found(splits):
    """Pixels by name, over all splits."""
    return {
        name: pixels.numpy()
        for part in (splits.train, splits.validation, splits._test)
        for name, pixels in zip(part.names, part.pixels, strict=True)
    }


def subjects(splits):
    return {
        name: subject
        for part in (splits.train, splits.validation, splits._test)
        for name, subject in zip(part.names, part.subjects, strict=True)
    }


def test_arrays(tmp_path):
    """Floats as they are, integers over their type's maximum, colour by luminance."""
    values = {
        "a": RNG.random((12, 12)),
        "b": RNG.integers(0, 256, (12, 12), np.uint8),
        "c": RNG.integers(0, 2**16, (12, 12), np.uint16),
        "d": RNG.random((12, 12, 3)).astype(np.float32),
        "e": RNG.random((12, 12)) > 0.5,
    }
    for name, array in values.items():
        np.save(tmp_path / f"{name}.npy", array)
    scales = {"a": 1, "b": 255, "c": 65535, "e": 1}
    gray, color = load(f"folder:{tmp_path}", 12), load(f"folder:{tmp_path}", 12, color=True)
    for name, scale in scales.items():
        expected = values[name] / scale
        np.testing.assert_allclose(found(gray)[f"{name}.npy"][0], expected, atol=1e-6)
        for channel in found(color)[f"{name}.npy"]:
            np.testing.assert_allclose(channel, expected, atol=1e-6)
    luminance = values["d"] @ np.array([0.2125, 0.7154, 0.0721])
    np.testing.assert_allclose(found(gray)["d.npy"][0], luminance, atol=1e-5)
    np.testing.assert_allclose(np.moveaxis(found(color)["d.npy"], 0, -1), values["d"], atol=1e-6)


def waves(number):
    y, x = np.mgrid[0:1:16j, 0:1:20j]
    return (0.5 + 0.5 * x) * np.exp(1j * (number + 3 * y))


def test_complex_arrays(tmp_path):
    """Real and imaginary part are channels."""
    for number in range(3):
        np.save(tmp_path / f"{number}.npy", waves(number).astype(np.complex64))
    splits = load(f"folder:{tmp_path}", 16)
    assert splits.shape == (2, 16, 16)
    for number in range(3):
        expected = waves(number)[:, 2:18]
        pixels = found(splits)[f"{number}.npy"]
        np.testing.assert_allclose(pixels[0] + 1j * pixels[1], expected, atol=1e-6)


def test_complex_magnitudes_stay_in_range():
    """Where interpolation overshoots, the magnitude is cut and the phase kept."""
    picture = np.kron(np.exp(1j * RNG.uniform(0, 7, (5, 5))), np.ones((8, 8)))
    parts = [
        resize(part, (36, 36), order=3, mode="reflect", anti_aliasing=True)
        for part in (picture.real, picture.imag)
    ]
    plain = parts[0] + 1j * parts[1]
    over = np.abs(plain) > 1.001
    assert over.any()
    pixels = square_complex(picture, 36)
    batched = pixels[0] + 1j * pixels[1]
    assert pixels.dtype == np.float32
    assert np.abs(batched).max() <= 1 + 1e-6
    np.testing.assert_allclose(batched[over], (plain / np.abs(plain))[over], atol=1e-5)
    inside = np.abs(plain) < 0.999
    np.testing.assert_allclose(batched[inside], plain[inside], atol=1e-5)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (RNG.random((8, 8)), "mixes complex"),
        (np.full((8, 8), 1.1 + 0j), "magnitudes above 1"),
        (np.full((8, 8, 3), 0.1j), "complex arrays"),
    ],
)
def test_mistakes_with_complex_arrays(tmp_path, array, message):
    """Mixed with real ones, too large, or of several channels."""
    for number in range(3):
        np.save(tmp_path / f"{number}.npy", waves(number))
    np.save(tmp_path / "bad.npy", array)
    with pytest.raises(UserError, match=message) as caught:
        load(f"folder:{tmp_path}", 8)
    assert str(tmp_path) in str(caught.value)


def test_complex_arrays_have_no_colour(tmp_path):
    """The cure is named."""
    for number in range(3):
        np.save(tmp_path / f"{number}.npy", waves(number))
    with pytest.raises(UserError, match=r"leave out problem\.color"):
        load(f"folder:{tmp_path}", 8, color=True)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((8, 8), 1.5), "outside"),
        (np.full((8, 8), -1, np.int16), "it holds int16; save uint8, uint16 or floats"),
        (np.full((8, 8), 200), "it holds int64; save uint8"),
        (np.full((8, 8), np.nan), "not finite"),
        (np.zeros((0, 5)), "is empty"),
        (np.zeros((8, 8, 5)), "shape"),
        (np.zeros(8), "shape"),
        (np.full((8, 8), "text"), "cannot be read"),
        (np.full((8, 8), None), "cannot be read"),
    ],
)
def test_mistakes_with_arrays(tmp_path, array, message):
    """Range, shape, kind, and pickled objects; the file is named in one line."""
    for number in range(3):
        np.save(tmp_path / f"{number}.npy", RNG.random((8, 8)))
    np.save(tmp_path / "bad.npy", array)
    with pytest.raises(UserError, match=message) as caught:
        load(f"folder:{tmp_path}", 8)
    assert "bad.npy" in str(caught.value)
    assert "\n" not in str(caught.value)


def head():
    """16 x 16 x 6, x to the right, y forward, z up; two empty slices."""
    volume = RNG.integers(1, 1000, (16, 16, 6), dtype=np.int16)
    volume[:, :, 0] = 0
    volume[:, :, 5] = 0
    volume[:2, :3, 5] = 7  # less than 5%
    return volume


@pytest.mark.parametrize("codes", ["RAS", "LPS", "SAR"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti(tmp_path, codes, suffix):
    """However it is stored: anterior up, right on the right, over the volume's maximum."""
    volume = head()
    wanted = nibabel.orientations.axcodes2ornt(codes)
    image = nibabel.Nifti1Image(volume, np.diag([1, 1, 2, 1])).as_reoriented(
        nibabel.orientations.ornt_transform(nibabel.orientations.axcodes2ornt("RAS"), wanted)
    )
    for name in ("one", "two", "three"):
        nibabel.save(image, tmp_path / (name + suffix))
    splits = load(f"folder:{tmp_path}", 16)
    pixels, owners = found(splits), subjects(splits)
    assert set(pixels) == {
        f"{name}{suffix}#z00{z}" for name in ("one", "two", "three") for z in range(1, 5)
    }
    for z in range(1, 5):
        name = f"two{suffix}#z00{z}"
        assert owners[name] == "two" + suffix
        expected = np.rot90(volume[:, :, z]) / volume.max()
        np.testing.assert_allclose(pixels[name][0], expected, atol=1e-6)


def test_nifti_in_subfolders(tmp_path):
    """The subfolder is the subject; a single-volume fourth axis is dropped."""
    for number in range(6):
        (tmp_path / f"s{number // 2}").mkdir(exist_ok=True)
        image = nibabel.Nifti1Image(head()[..., None], np.eye(4))
        nibabel.save(image, tmp_path / f"s{number // 2}" / f"{number}.nii")
    splits = load(f"folder:{tmp_path}", 8)
    assert set(subjects(splits).values()) == {"s0", "s1", "s2"}
    assert [len(splits.train), len(splits.validation), splits.test_count] == [8, 8, 8]


@pytest.mark.parametrize("content", ["text", "4-D", "2-D"])
def test_mistakes_with_nifti(tmp_path, content):
    """Damaged, or not one volume."""
    for number in range(3):
        nibabel.save(nibabel.Nifti1Image(head(), np.eye(4)), tmp_path / f"{number}.nii")
    if content == "text":
        (tmp_path / "bad.nii").write_bytes(b"no volume")
    else:
        shape = (8, 8, 4, 2) if content == "4-D" else (8, 8)
        image = nibabel.Nifti1Image(np.ones(shape, np.int16), np.eye(4))
        nibabel.save(image, tmp_path / "bad.nii")
    with pytest.raises(UserError, match=r"bad\.nii") as caught:
        load(f"folder:{tmp_path}", 8)
    assert "\n" not in str(caught.value)


def dicom(path, pixels, series="1.2.3", **attributes):
    """Writes 16-bit pixels as an MR image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = MRImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
    dataset.SeriesInstanceUID = series
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    if pixels.ndim == 3:
        dataset.NumberOfFrames = len(pixels)
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 0
    dataset.PixelData = pixels.astype(np.uint16).tobytes()
    for name, value in attributes.items():
        setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)


def test_dicom(tmp_path):
    """After slope and intercept, over the range of the series; the patient is the subject."""
    values = RNG.integers(100, 60000, (4, 12, 12))
    rescaled = 2.0 * values + np.array([5, -100000, 0, 0])[:, None, None]
    for number, (patient, intercept) in enumerate([("A", 5), ("A", -100000), ("B", 0), ("C", 0)]):
        dicom(
            tmp_path / "all" / f"{number}.dcm",
            values[number],
            series=f"1.2.{max(number, 1)}",
            PatientID=patient,
            RescaleSlope=2,
            RescaleIntercept=intercept,
        )
    splits = load(f"folder:{tmp_path}", 12)
    pixels = found(splits)
    assert set(subjects(splits).values()) == {"A", "B", "C"}
    for group in ([0, 1], [2], [3]):
        low, high = rescaled[group].min(), rescaled[group].max()
        for number in group:
            expected = (rescaled[number] - low) / (high - low)
            np.testing.assert_allclose(pixels[f"all/{number}.dcm"][0], expected, atol=1e-6)


def test_dicom_without_patients(tmp_path):
    """The subfolder counts; frames are images; MONOCHROME1 is turned round."""
    values = RNG.integers(0, 60000, (2, 12, 12))
    for number in range(3):
        dicom(
            tmp_path / f"s{number}" / "x.dcm",
            values,
            series=f"1.2.{number}",
            PhotometricInterpretation="MONOCHROME1" if number == 1 else "MONOCHROME2",
        )
    splits = load(f"folder:{tmp_path}", 12)
    assert set(subjects(splits).values()) == {"s0", "s1", "s2"}
    expected = (values - values.min()) / np.ptp(values)
    for frame in range(2):
        pixels = found(splits)
        np.testing.assert_allclose(pixels[f"s0/x.dcm#00{frame}"][0], expected[frame], atol=1e-6)
        np.testing.assert_allclose(pixels[f"s1/x.dcm#00{frame}"][0], 1 - expected[frame], atol=1e-6)


def test_a_real_scanner_file(tmp_path):
    """A CT slice that comes with pydicom: bright bone, dark air."""
    from pydicom.data import get_testdata_file

    source = get_testdata_file("CT_small.dcm", download=False)
    for number in range(3):
        dataset = pydicom.dcmread(source)
        dataset.PatientID = f"p{number}"
        dataset.SeriesInstanceUID = f"1.2.{number}"
        dataset.save_as(tmp_path / f"{number}.dcm")
    expected = pydicom.dcmread(source).pixel_array.astype(float)
    expected = (expected - expected.min()) / np.ptp(expected)
    pixels = found(load(f"folder:{tmp_path}", 128))["0.dcm"][0]
    np.testing.assert_allclose(pixels, expected, atol=1e-6)


def test_without_pydicom_the_extra_is_named(tmp_path, monkeypatch):
    dicom(tmp_path / "0.dcm", RNG.integers(0, 9, (8, 8)), series="1.0")
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(UserError, match=r"pip install 'dipa-bench\[dicom\]'"):
        load(f"folder:{tmp_path}", 8)


@pytest.mark.parametrize("kind", ["text", "colour", "headless"])
def test_mistakes_with_dicom(tmp_path, kind):
    """Damaged, coloured, or without pixels."""
    for number in range(3):
        dicom(tmp_path / f"{number}.dcm", RNG.integers(0, 9, (8, 8)), series=f"1.{number}")
    if kind == "text":
        (tmp_path / "bad.dcm").write_bytes(b"no image")
    elif kind == "colour":
        triple = {"SamplesPerPixel": 3, "PlanarConfiguration": 0, "Columns": 2, "Rows": 4}
        dicom(tmp_path / "bad.dcm", np.zeros((8, 3)), PhotometricInterpretation="RGB", **triple)
    else:
        dicom(tmp_path / "bad.dcm", np.zeros((8, 8)))
        dataset = pydicom.dcmread(tmp_path / "bad.dcm")
        del dataset.PixelData
        dataset.save_as(tmp_path / "bad.dcm")
    with pytest.raises(UserError, match=r"bad\.dcm") as caught:
        load(f"folder:{tmp_path}", 8)
    assert "\n" not in str(caught.value)


def test_kinds_together(tmp_path):
    """A picture, an array, a volume and a series in one folder."""
    Image.fromarray(RNG.integers(0, 256, (8, 8), np.uint8)).save(tmp_path / "a.png")
    np.save(tmp_path / "b.npy", RNG.random((8, 8)))
    nibabel.save(nibabel.Nifti1Image(head(), np.eye(4)), tmp_path / "c.nii.gz")
    dicom(tmp_path / "d.dcm", RNG.integers(0, 9, (8, 8)))
    splits = load(f"folder:{tmp_path}", 8)
    assert set(subjects(splits).values()) == {"a.png", "b.npy", "c.nii.gz", "d.dcm"}
    assert len(found(splits)) == 7


@pytest.mark.parametrize("shape", [(3, 20, 20), (5, 20, 20), (20, 20, 5)])
def test_colour_means_three_channels_at_the_end(tmp_path, shape):
    """Stacks and channels in front are refused; one channel is gray."""
    for number in range(3):
        np.save(tmp_path / f"{number}.npy", RNG.random((20, 20, 1)))
    assert load(f"folder:{tmp_path}", 16, color=True).shape == (3, 16, 16)
    assert load(f"folder:{tmp_path}", 16).shape == (1, 16, 16)
    np.save(tmp_path / "bad.npy", RNG.random(shape))
    for color in (True, False):
        with pytest.raises(UserError, match=rf"shape \({shape[0]}, {shape[1]}.*gray or colour"):
            load(f"folder:{tmp_path}", 16, color=color)


def test_printers_colours_are_no_transparency(tmp_path):
    """A CMYK JPEG of a gray ramp comes back as that ramp, not white."""
    from PIL import Image

    ramp = np.tile(np.linspace(20, 230, 32).astype(np.uint8), (32, 1))
    for number in range(3):
        Image.fromarray(np.stack([ramp] * 3, -1)).convert("CMYK").save(
            tmp_path / f"{number}.jpg", quality=100
        )
    pixels = load(f"folder:{tmp_path}", 32).train.pixels[0, 0].numpy()
    np.testing.assert_allclose(pixels, ramp / 255, atol=0.03)


def test_what_is_no_image_file_is_passed_over(tmp_path):
    """Directories named like pictures, and hidden files beside them."""
    for number in range(3):
        np.save(tmp_path / f"{number}.npy", RNG.random((8, 8)))
    (tmp_path / "0.png").mkdir()
    (tmp_path / "._1.npy").write_bytes(b"no array")
    assert len(load(f"folder:{tmp_path}", 8).train) == 1
