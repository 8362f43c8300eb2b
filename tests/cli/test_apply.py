"""`dipa-bench reconstruct` and `evaluate`: a study's operator on a user's own data."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from mlflow import MlflowClient
from skimage import data
from skimage.io import imread, imsave
from skimage.metrics import peak_signal_noise_ratio
from skimage.transform import resize

import dipa_bench
from dipa_bench.data.images import ImageSet, square
from dipa_bench.data.picture import read_picture
from dipa_bench.errors import UserError
from dipa_bench.tracking import records
from dipa_bench.tracking.mlflow_format import experiment_name

STUDIES = {
    "one": ("sr", "identity,ldipa,convolution+supervised,lmmse", ("problem.test_noise=0.03",)),
    "colour": ("sr", "convolution+supervised", ("problem.color=true",)),
    "scan": ("mri", "identity,scalar", ("problem.options.acceleration=2",)),
    "coils": ("mri", "scalar", ("problem.options.coils=3",)),
}


ROWS = ["convolution+supervised", "identity"]


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory, furnish: Callable[[Path], Path], small: list[str], run_there
) -> Path:
    """A folder with small finished studies, made once."""
    folder = furnish(tmp_path_factory.mktemp("finished"))
    for name, (task, methods, sets) in STUDIES.items():
        more = [part for text in (*sets, "solve.start=adjoint") for part in ("--set", text)]
        command = ["study", *small, "--methods", methods, "--trials", "1", "--name", name]
        command[command.index("sr")] = task
        run_there(folder, [*command, *more], sent=name == "one")
    return folder


@pytest.fixture
def there(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished studies as the working folder, with a picture in it."""
    shutil.copytree(finished, tmp_path / "there")
    monkeypatch.chdir(tmp_path / "there")
    sys.modules.pop("den", None)
    imsave("cat.png", data.chelsea()[:90, :130], check_contrast=False)
    return tmp_path / "there"


def table(text: str) -> dict[str, tuple[float, float]]:
    """PSNR and SSIM by row."""
    rows = [line.rsplit(None, 2) for line in text.splitlines() if line[-1:].isdigit()]
    return {name.strip(): (float(first), float(second)) for name, first, second in rows}


def test_a_picture_is_measured_and_reconstructed_as_by_hand(there: Path, call) -> None:
    done = call("reconstruct", "one/ldipa", "cat.png", "--output", "cat.npy", "--device", "cpu")
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[-1] == "wrote cat.npy"
    run = dipa_bench.load("one/ldipa", device="cpu")
    gray = square(apply_gray(imread("cat.png")), 16)
    images = ImageSet(torch.from_numpy(gray)[None, None], ("cat.png",), ("me",))
    y = run.task.tested.measure(images)
    with torch.no_grad():
        expected = run.reconstructor.run(y, run.task.student).estimate[0, 0].numpy()
    found = np.load("cat.npy")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)
    rows = table(done.out)
    assert list(rows) == ["back-projection A^T y", "identity, tuned", "ldipa"]
    assert rows["ldipa"][0] == pytest.approx(
        peak_signal_noise_ratio(gray, expected, data_range=1.0), abs=5.1e-3
    )
    back = run.task.student.A_adjoint(y)[0, 0].numpy()
    assert rows["back-projection A^T y"][0] == pytest.approx(
        peak_signal_noise_ratio(gray, back, data_range=1.0), abs=5.1e-3
    )
    identity = dipa_bench.load("one/identity", device="cpu")
    with torch.no_grad():
        plain = identity.reconstructor.run(y, run.task.student).estimate[0, 0].numpy()
    assert rows["identity, tuned"][0] == pytest.approx(
        peak_signal_noise_ratio(gray, plain, data_range=1.0), abs=5.1e-3
    )


def apply_gray(picture: np.ndarray) -> np.ndarray:
    """Luma of an 8-bit picture, as ITU-R 709 has it."""
    return (picture / 255) @ np.array([0.2125, 0.7154, 0.0721])


def test_the_picture_that_is_written(there: Path, call) -> None:
    done = call("reconstruct", "one/ldipa", "cat.png")
    assert done.out.splitlines()[-1] == "wrote cat-ldipa.png"
    call("reconstruct", "one/ldipa", "cat.png", "--output", "cat.npy")
    shown = imread("cat-ldipa.png")
    assert (shown.dtype, shown.shape) == (np.uint8, (16, 16))
    np.testing.assert_array_equal(shown, np.round(255 * np.load("cat.npy").clip(0, 1)))


def test_the_seed_and_the_noise(there: Path, call) -> None:
    def estimate(*more: str) -> np.ndarray:
        assert not call("reconstruct", "one/ldipa", "cat.png", "--output", "x.npy", *more).code
        return np.load("x.npy")

    plain, clean = estimate("--noise", "0.1"), estimate("--noise", "0")
    assert np.array_equal(plain, estimate("--noise", "0.1"))
    assert not np.array_equal(plain, estimate("--noise", "0.1", "--seed", "1"))
    assert np.array_equal(clean, estimate("--noise", "0", "--seed", "1"))
    assert not np.array_equal(plain, clean)


@pytest.mark.parametrize("size", ["native", "0"])
def test_the_whole_picture(size: str, there: Path, call) -> None:
    done = call(
        "reconstruct", "one/convolution+supervised", "cat.png", "--size", size, "--output", "x.npy"
    )
    assert (done.code, done.err) == (0, "")
    assert np.load("x.npy").shape == (90, 130)
    truth = apply_gray(imread("cat.png"))
    best = peak_signal_noise_ratio(truth, np.load("x.npy").astype(float), data_range=1.0)
    assert table(done.out)["convolution+supervised"][0] == pytest.approx(best, abs=6e-3)


def test_another_square(there: Path, call) -> None:
    call("reconstruct", "one/convolution+supervised", "cat.png", "--size", "32")
    assert imread("cat-convolution+supervised.png").shape == (32, 32)


def test_colour(there: Path, call) -> None:
    for size, shape in (("native", (90, 130, 3)), ("24", (24, 24, 3))):
        done = call("reconstruct", "colour/convolution+supervised", "cat.png", "--size", size)
        assert (done.code, done.err) == (0, "")
        assert imread("cat-convolution+supervised.png").shape == shape
    picture = read_picture(Path("cat.png"), None, True)
    expected = torch.from_numpy(imread("cat.png") / 255).movedim(-1, 0).float()
    assert torch.equal(picture, expected)
    assert "identity" not in done.out  # that study has none


def test_every_kind_of_file(there: Path) -> None:
    import nibabel

    gray = resize(apply_gray(imread("cat.png")), (20, 14), anti_aliasing=True)
    np.save("cat.npy", gray)
    expected = torch.from_numpy(gray.astype(np.float32))[None]
    assert torch.equal(read_picture(Path("cat.npy"), None, False), expected)
    np.save("phase.npy", gray * np.exp(1j * gray))
    found = read_picture(Path("phase.npy"), None, False)
    wanted = np.stack((gray * np.cos(gray), gray * np.sin(gray)))
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    volume = np.stack([gray.T, 0.5 * gray.T, gray.T], axis=2)  # x, y, z
    nibabel.save(nibabel.Nifti1Image(volume[:, ::-1], np.eye(4)), "volume.nii.gz")
    middle = read_picture(Path("volume.nii.gz"), None, False)
    np.testing.assert_allclose(middle[0], 0.5 * gray / gray.max(), atol=1e-5)
    found = pydicom.Dataset()
    found.file_meta = pydicom.dataset.FileMetaDataset()
    found.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    found.Rows, found.Columns, found.BitsAllocated, found.BitsStored = 20, 14, 16, 16
    found.HighBit, found.PixelRepresentation, found.SamplesPerPixel = 15, 0, 1
    found.PhotometricInterpretation = "MONOCHROME2"
    found.PixelData = (65535 * gray).astype("<u2").tobytes()
    found.file_meta.MediaStorageSOPClassUID = pydicom.uid.MRImageStorage
    found.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    found.save_as("cat.dcm", enforce_file_format=True)
    read = read_picture(Path("cat.dcm"), None, False)[0].numpy()
    np.testing.assert_allclose(read, (gray - gray.min()) / np.ptp(gray), atol=1e-4)


def test_complex_images(there: Path, call) -> None:
    """Gray pictures get the task's phase; complex ones stay; .npy output is complex."""
    done = call("reconstruct", "scan/scalar", "cat.png", "--output", "x.npy")
    assert (done.code, done.err) == (0, "")
    found = np.load("x.npy")
    assert (found.shape, found.dtype) == ((16, 16), np.complex64)
    assert list(table(done.out)) == ["back-projection A^T y", "identity, tuned", "scalar"]
    np.save("phase.npy", 0.5 * np.exp(1j * np.linspace(0, 3, 400).reshape(20, 20)))
    assert not call("reconstruct", "scan/scalar", "phase.npy", "--size", "native").code
    assert imread("phase-scalar.png").shape == (20, 20)
    assert not call("reconstruct", "one/ldipa", "phase.npy").code  # its magnitude


@pytest.mark.parametrize("name", ["scan/scalar", "coils/scalar"])
def test_a_measurement_gives_what_run_gives(name: str, there: Path, call) -> None:
    run = dipa_bench.load(name, device="cpu")
    y = run.task.measure(run.task.images.validation.first(1))
    with torch.no_grad():
        expected = run.reconstructor.run(y, run.task.student).estimate[0]
    both = y[0].numpy()
    kspace = both[0] + 1j * both[1]
    for values in (both, kspace):
        np.save("y.npy", values)
        done = call("reconstruct", name, "y.npy", "--measurement", "--output", "x.npy")
        assert (done.code, done.err) == (0, "")
        assert done.out == "wrote x.npy\n"
        found = np.load("x.npy")
        np.testing.assert_allclose(found.real, expected[0], atol=1e-6)
        np.testing.assert_allclose(found.imag, expected[1], atol=1e-6)


def test_a_real_measurement_of_another_size(there: Path, call) -> None:
    np.save("y.npy", np.full((6, 6), 0.5))
    run = ("reconstruct", "one/convolution+supervised", "y.npy", "--measurement")
    assert not call(*run, "--size", "24", "--output", "x.npy").code
    assert np.load("x.npy").shape == (24, 24)
    assert np.load("x.npy").mean() == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (("one/ldipa", "cat.png", "--size", "24"), "works on images of shape (1, 16, 16)"),
        (("one/ldipa", "cat.png", "--size", "native"), "works on images of shape (1, 16, 16)"),
        (("one/lmmse", "cat.png", "--size", "24"), "keeps no numbers"),
        (("one/ldipa", "cat.png", "--size", "big"), "--size big: give at least 11"),
        (("one/ldipa", "cat.png", "--size", "10"), "--size 10: give at least 11"),
        (("one/ldipa", "no.png"), "no file no.png"),
        (("one/ldipa", "den.py"), "is of no kind that is read"),
        (("one/ldipa", "broken.png"), "broken.png cannot be read"),
        (("one/ldipa", "flat.npy"), "has shape (7,)"),
        (("one/ldipa", "loud.npy"), "values outside [0, 1]"),
        (("one/convolution+supervised", "tiny.npy", "--size", "0"), "4 x 20 pixels"),
        (("one/ldipa", "cat.png", "--output", "cat.png"), "is the input itself"),
        (("one/ldipa", "cat.png", "--output", "./sub/../cat.png"), "is the input itself"),
        (("one/ldipa", "cat.png", "--output", "cat.jpg"), "give a name in .png"),
        (("one/ldipa", "cat.png", "--output", "no/cat.png"), "no folder no"),
        (("one/ldipa", "cat.png", "--output", "sub.png"), "is a folder"),
        (("one/ldipa", "cat.png", "--noise", "-1"), "noise"),
        (("one/ldipa/trial-0000", "cat.png"), "kept no operator"),
        (("one/nothing", "cat.png"), "'one/nothing'"),
        (("one/ldipa", "cat.png", "--measurement"), "cannot be read as .npy"),
        (("one/ldipa", "flat.npy", "--measurement"), "measures (1, 4, 4); another image size"),
        (("one/ldipa", "flat.npy", "--measurement", "--noise", "0"), "leave out --noise"),
        (("one/ldipa", "flat.npy", "--measurement", "--size", "native"), "does not say the size"),
        (("one/ldipa", "spin.npy", "--measurement"), "is complex, those of sr are real"),
        (("one/ldipa", "nan.npy", "--measurement"), "not finite"),
        (("one/ldipa", "text.npy", "--measurement"), "is <U1 of shape (4, 4)"),
        (("scan/scalar", "spin.npy", "--measurement"), "or complex (16, 16)"),
    ],
)
def test_what_cannot_be_done(command: tuple[str, ...], reason: str, there: Path, call) -> None:
    Path("sub").mkdir()
    Path("sub.png").mkdir()
    Path("broken.png").write_bytes(Path("cat.png").read_bytes()[:99])
    np.save("flat.npy", np.zeros(7))
    np.save("loud.npy", np.full((20, 20), 2.0))
    np.save("tiny.npy", np.full((4, 20), 0.5))
    np.save("spin.npy", np.full((4, 4), 1j))
    np.save("nan.npy", np.full((4, 4), np.nan))
    np.save("text.npy", np.full((4, 4), "x"))
    before = Path("cat.png").read_bytes()
    line = call("reconstruct", *command).line
    assert reason in line
    assert Path("cat.png").read_bytes() == before
    assert not Path("cat-ldipa.png").exists()


def test_evaluate_repeats_the_leaderboard(there: Path, call) -> None:
    done = call("evaluate", "one/ldipa", "--format", "json")
    assert (done.code, done.err) == (0, "")
    rows = {row["row"]: row for row in json.loads(done.out)}
    board = call("leaderboard", "--task", "sr", "--study", "one", "--format", "json")
    for row in json.loads(board.out):
        if row["method"] in rows:
            ours = rows[row["method"]]
            for name in ("psnr", "psnr_low", "psnr_high", "ssim", "ssim_low", "ssim_high"):
                assert ours[name] == pytest.approx(row[name], abs=1e-6)
    (ldipa,) = [row for row in json.loads(board.out) if row["method"] == "ldipa"]
    assert rows["ldipa"]["difference"] == pytest.approx(ldipa["difference"], abs=1e-6)
    assert rows["ldipa"]["difference_low"] == pytest.approx(ldipa["difference_low"], abs=1e-6)


def test_evaluate_elsewhere(there: Path, call) -> None:
    command = ("evaluate", "one/convolution+supervised", "--solver", "red-fista")
    done = call(*command, "--iterations", "4", "--trials", "3")
    assert done.code == 0
    assert done.err.count("3 solver settings on the validation images") == 2
    lines = [line.strip() for line in done.out.splitlines()]
    here, away = lines.index("at the study's own setting"), len(lines) - 6
    assert lines[away] == "at solver=red-fista, iterations=4"
    for place, source in ((here, "recorded"), (away, "best of 3 on validation images")):
        assert [line.split()[0] for line in lines[place + 2 : place + 4]] == ROWS
        assert all(line.endswith(source) for line in lines[place + 2 : place + 4])
    for line, name in zip(lines[-2:], ROWS, strict=True):
        assert line.startswith(f"{name}: solve.step=")
        assert "solve.weight=" in line
        assert "solve.start=adjoint" in line
    log = (there / "mlruns/studies/one/test-reads.log").read_text()
    assert "evaluate one / convolution+supervised: solver=red-fista, iterations=4" in log
    csv = call(*command, "--trials", "0", "--format", "csv").out.splitlines()
    assert csv[0].startswith("row,setting,psnr,psnr_low")
    assert len(csv) == 5


def test_a_direct_map_has_nothing_to_tune(there: Path, call) -> None:
    done = call("evaluate", "one/lmmse", "--trials", "2")
    assert done.code == 0
    assert done.out.count("lmmse ") >= 2


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (("one/ldipa", "--format", "yaml"), "unknown format 'yaml'"),
        (("one/ldipa", "--solver", "admm"), "problem.solver = 'admm'"),
        (("one/ldipa", "--prior", "nothing"), "unknown prior 'nothing'"),
        (("one/ldipa", "--iterations", "0"), "iterations"),
        (("one/ldipa", "--set", "problem.size=24"), "works on images of shape (1, 16, 16)"),
        (("one/ldipa", "--set", "solve.step=1"), "changes the problem alone"),
        (("one/lmmse", "--iterations", "5"), "keeps no numbers"),
        (("one/ldipa/trial-0000",), "kept no operator"),
        (("one/nothing",), "'one/nothing'"),
    ],
)
def test_what_cannot_be_evaluated(command: tuple[str, ...], reason: str, there, call) -> None:
    assert reason in call("evaluate", *command).line


def test_by_mlflow_run_id(there: Path, call) -> None:
    """The store names the run; operator and code come from the folder, and must be that run's."""
    client = MlflowClient(tracking_uri=f"sqlite:///{there / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(experiment_name("sr"))
    wanted = "tags.`dipa.method` = 'ldipa' and tags.`dipa.study` = 'one'"
    runs = client.search_runs([experiment.experiment_id], wanted)
    ids = {run.data.tags["dipa.kind"]: run.info.run_id for run in runs}
    assert not call("reconstruct", ids["method"], "cat.png", "--output", "a.npy").code
    assert not call("reconstruct", "one/ldipa", "cat.png", "--output", "b.npy").code
    np.testing.assert_array_equal(np.load("a.npy"), np.load("b.npy"))
    assert not call("reconstruct", ids["seed"], "cat.png").code
    assert "kept no operator" in call("reconstruct", ids["trial"], "cat.png").line
    place = there / "mlruns" / "studies" / "one" / "ldipa"
    record = records.read(place)
    records.write(place, record.model_copy(update={"params": record.params | {"solve.step": 0.5}}))
    assert "is not below mlruns" in call("reconstruct", ids["method"], "cat.png").line
    shutil.rmtree(place)
    assert "is not below mlruns" in call("reconstruct", ids["method"], "cat.png").line


def test_an_operator_that_fails_is_one_line(there: Path, call, monkeypatch) -> None:
    from dipa_bench.preconditioners import Dense

    def fail(*arguments):
        raise RuntimeError("no such shape")

    monkeypatch.setattr(Dense, "act", fail)
    assert "ldipa cannot run on it" in call("reconstruct", "one/ldipa", "cat.png").line
    assert "ldipa cannot run at the study's" in call("evaluate", "one/ldipa").line


def test_an_empty_volume() -> None:
    with pytest.raises(UserError, match="no kind that is read"):
        read_picture(Path("notes.txt"), None, False)
