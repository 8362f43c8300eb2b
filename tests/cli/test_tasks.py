"""Every task through the command line, on embedded images and on folders laid out as the real."""

from __future__ import annotations

import functools
import json
import shutil
import struct
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from dipa_bench.tracking import records
from dipa_bench.tracking.connection import connect
from dipa_bench.tracking.location import sqlite_uri

RNG = np.random.default_rng(0)
ROWS = "identity,hessian,polynomial,ldipa,adjoint"
SMALL = {
    "problem.prior": "den:smooth",
    "problem.size": 16,
    "problem.iterations": 3,
    "budget.trials": 1,  # the defaults, the same for all
    "budget.replicates": 1,
    "budget.train_images": 8,
    "budget.epochs": 1,
    "budget.final_epochs": 1,
}


def smooth(height: int, width: int, *channels: int) -> np.ndarray:
    """A random 8-bit picture of few blocks."""
    blocks = RNG.integers(0, 256, (4, 4, *channels), dtype=np.uint8)
    return blocks.repeat(height // 4, 0).repeat(width // 4, 1)


def mnist(root: Path) -> str:
    """IDX files of 24 training and 5 test digits."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 24), ("t10k", 5)):
        pictures = np.stack([smooth(28, 28) for _ in range(count)])
        labels = np.arange(count, dtype=np.uint8) % 10
        for kind, values in (("images-idx3", pictures), ("labels-idx1", labels)):
            header = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
            (raw / f"{part}-{kind}-ubyte").write_bytes(header + values.tobytes())
    return "mnist"


def celeba(root: Path) -> str:
    """Sixteen JPEG files and the five tables, everyone another person."""
    folder = root / "celeba"
    (folder / "img_align_celeba").mkdir(parents=True)
    names = [f"{number:06d}.jpg" for number in range(1, 17)]
    for name in names:
        Image.fromarray(smooth(220, 180, 3)).save(folder / "img_align_celeba" / name)

    def table(file: str, header: str, row: str) -> None:
        lines = [f"{name} {row.format(i=i)}" for i, name in enumerate(names)]
        (folder / file).write_text(header + "\n".join(lines) + "\n")

    split = "\n".join(
        f"{name} {0 if i < 10 else 1 if i < 13 else 2}" for i, name in enumerate(names)
    )
    (folder / "list_eval_partition.txt").write_text(split + "\n")
    table("identity_CelebA.txt", "", "{i}")
    table("list_attr_celeba.txt", "16\nSmiling\n", "1")
    table("list_bbox_celeba.txt", "16\nimage_id x_1 y_1 width height\n", "0 0 9 9")
    table("list_landmarks_align_celeba.txt", "16\nlefteye_x lefteye_y\n", "1 1")
    return "celeba"


def fastmri(root: Path) -> str:
    """Raw single-coil volumes of six and four patients, two slices each."""
    for folder, count in (("singlecoil_train", 6), ("singlecoil_val", 4)):
        (root / folder).mkdir(parents=True)
        for number in range(count):
            size = np.stack([smooth(40, 32) for _ in range(2)]) / 255
            image = size * np.exp(1j * RNG.uniform(0, 6))
            axes = (-2, -1)
            kspace = np.fft.fft2(np.fft.ifftshift(image, axes=axes), axes=axes, norm="ortho")
            with h5py.File(root / folder / f"file{number}.h5", "w") as file:
                file["kspace"] = np.fft.fftshift(kspace, axes=axes).astype(np.complex64)
                file.attrs["patient_id"] = f"{folder}-{number}"
    return "fastmri-raw"


def command(task: str, *more: str, rows: str = ROWS, **settings: object) -> list[str]:
    """A study of a second; more settings as keywords of ``--set``."""
    sets = SMALL | {name.replace("__", "."): value for name, value in settings.items()}
    flat = [part for key, value in sets.items() for part in ("--set", f"{key}={value}")]
    return ["study", "--task", task, "--methods", rows, "--name", "it", *flat, *more]


@pytest.fixture
def run(call, work, unsent):
    """Runs a study of a second in a folder of its own."""

    def study(task: str, *more: str, **options: object):
        return call(*command(task, *more, **options))

    return study


@pytest.fixture(scope="module")
def embedded(tmp_path_factory, furnish, run_there):
    """Folders with a study of all rows on what comes with the package, one for each task."""

    @functools.cache
    def folder(task: str) -> Path:
        made = furnish(tmp_path_factory.mktemp(task))
        run_there(made, command(task, "--seed", "3"), sent=False)
        return made

    return folder


def board(call, task: str) -> dict[str, dict]:
    """The leaderboard's rows by method."""
    done = call("leaderboard", "--task", task, "--format", "json")
    return {row["method"]: row for row in json.loads(done.out)}


def check(call, task: str) -> dict[str, dict]:
    """Every row finished with a PSNR."""
    rows = board(call, task)
    assert set(rows) == set(ROWS.split(","))
    assert {row["state"] for row in rows.values()} == {"finished"}
    assert all(-20 < row["psnr"] < 60 for row in rows.values())
    return rows


@pytest.mark.exhaustive(after=2)
@pytest.mark.parametrize("task", ["mri", "cs", "sr", "deblur"])
def test_embedded_images(call, embedded, monkeypatch, task):
    """Identity, Hessian, polynomial and a learned P are ranked on what comes with the package."""
    monkeypatch.chdir(embedded(task))
    rows = check(call, task)
    if task in ("mri", "cs"):  # on projections the classical ones do what the identity does
        for name in ("hessian", "polynomial"):
            assert rows[name]["psnr"] == pytest.approx(rows["identity"]["psnr"], abs=1e-3)


@pytest.mark.parametrize("task", ["mri", "cs"])
def test_runs_repeat_exactly(call, embedded, monkeypatch, task):
    """Masks, phases and noise come back from the record alone."""
    monkeypatch.chdir(embedded(task))
    done = call("rerun", "it/ldipa", "--device", "cpu")
    assert done.code == 0 and "agrees exactly" in done.out


def test_the_board_says_what_to_know_of_the_images(call, embedded, monkeypatch):
    """The caveat of the brain and of its simulated phase, under table and on the page."""
    monkeypatch.chdir(embedded("mri"))
    text = (
        "one averaged head, not subject-independent, no raw k-space; complex images made from gray"
    )
    assert text in " ".join(call("leaderboard", "--task", "mri").out.split())
    assert call("dashboard", "--task", "mri").code == 0
    page = Path("dashboard-mri.html").read_text()
    assert text in page and len(page) > 1e6


def test_the_record_holds_the_mask(embedded):
    """Which columns were measured, in every record."""
    study = embedded("mri") / "mlruns" / "studies" / "it"
    for place in ("identity", "identity/seed-0", "identity/trial-0000"):
        notes = records.read(study / place).notes
        columns = [int(column) for column in notes["mask columns"].split()]
        assert len(columns) == 4 and notes["measured share"] == 0.25


@pytest.mark.exhaustive(after=1)
@pytest.mark.parametrize(
    ("task", "make", "way"),
    [("cs", mnist, "root"), ("mri", fastmri, "path"), ("sr", celeba, "path")],
)
def test_folders_laid_out_as_the_real_datasets(call, run, work, tmp_path, task, make, way):
    """``--dataset NAME:PATH``, and ``--dataset NAME`` with ``--data-root``."""
    root = tmp_path / "data"
    name = make(root)
    where = ["--dataset", f"{name}:{root}"]
    if way == "root":
        where = ["--dataset", name, "--data-root", str(root)]
    assert run(task, *where, rows="identity,ldipa").code == 0
    assert {row["state"] for row in board(call, task).values()} == {"finished"}


@pytest.mark.exhaustive
def test_another_seed_draws_another_mask(run, work):
    """16 columns leave room for that."""
    run("mri", rows="identity", problem__size=32)
    run("mri", "--seed", "1", "--name", "other", rows="identity", problem__size=32)
    place = work / "mlruns" / "studies"
    found = [records.read(place / name / "identity").notes for name in ("it", "other")]
    assert found[0]["mask columns"] != found[1]["mask columns"]


@pytest.mark.exhaustive
def test_colour(call, run):
    """A gray prior works channel by channel; P is shared by the channels."""
    done = run(
        "sr",
        rows="identity,ldipa",
        problem__color="true",
        problem__dataset="natural",
        problem__size=16,
    )
    assert done.code == 0
    rows = board(call, "sr")
    assert rows["ldipa"]["parameters"] == 256 * 256
    assert rows["ldipa"]["state"] == "finished"


OPTICS = """
import torch
from deepinv.physics import Inpainting


def holes(geometry, share):
    generator = torch.Generator().manual_seed(geometry.seed)
    mask = (torch.rand(geometry.shape[1:], generator=generator) < share).to(geometry.dtype)
    return Inpainting(geometry.shape, mask=mask, device=geometry.device)


def pair(geometry):
    return holes(geometry, 0.3), holes(geometry, 0.9)
"""


@pytest.fixture
def optics(work, monkeypatch):
    """A module of the user's with a student and a teacher."""
    (work / "optics.py").write_text(OPTICS)
    monkeypatch.delitem(sys.modules, "optics", raising=False)
    yield {"problem__options__operators": "optics:pair"}
    sys.modules.pop("optics", None)


def test_operators_of_ones_own(call, run, work, optics):
    """Inpainting from a module in the working directory, ranked, shown and repeated exactly."""
    assert run("custom", **optics).code == 0
    check(call, "custom")
    done = call("rerun", "it/ldipa", "--device", "cpu")
    assert done.code == 0 and "agrees exactly" in done.out


def test_a_store_may_not_choose_what_is_imported(call, work, optics, monkeypatch):
    """From elsewhere, a run's id alone does not import its operators."""
    call(*command("custom", rows="identity", **optics))
    client = connect(sqlite_uri(work / "mlflow.db"))
    experiment = client.get_experiment_by_name("dipa-bench/custom")
    [found] = client.search_runs([experiment.experiment_id], "tags.`dipa.kind` = 'method'")
    assert call("rerun", found.info.run_id, "--device", "cpu").code == 0
    shutil.rmtree(work / "mlruns" / "studies" / "it")
    line = call("rerun", found.info.run_id, "--device", "cpu").line
    assert "names code to import" in line and "optics:pair" in line


@pytest.mark.exhaustive
def test_the_example_of_operators_of_ones_own(call, work, unsent):
    """Sparse-view CT, `--config ct`: the classical preconditioners finish beside L-DIPA."""
    sets = SMALL | {"problem.dataset": "faces"}
    flat = [part for key, value in sets.items() for part in ("--set", f"{key}={value}")]
    assert call("study", "--config", "ct", "--methods", "identity,hessian,ldipa", *flat).code == 0
    assert {row["state"] for row in board(call, "custom").values()} == {"finished"}


@pytest.mark.parametrize(
    ("task", "more", "message"),
    [
        ("mri", ["--set", "problem.color=true"], "problem.color"),
        ("sr", ["--set", "problem.color=true"], "faces are gray"),
        ("cs", ["--set", "problem.size=20"], "powers of two"),
        ("mri", ["--set", "problem.options.acceleration=0.5"], "acceleration"),
        ("mri", ["--dataset", "mri:x"], "unknown dataset 'mri'"),
        ("sr", ["--dataset", "faces:/nowhere"], "leave out the path '/nowhere'"),
        ("sr", ["--set", "problem.options.blur=1e-170"], "blur = 1e-170"),
        ("mri", ["--dataset", "fastmri-raw:nowhere"], "no fastmri-raw in nowhere"),
        ("custom", [], "problem.options.operators=module:function"),
        ("sr", ["--set", "ldipa.distill.teacher=2.5"], "teacher factor '2.5'"),
        ("cs", ["--set", "ldipa.distill.teacher=0.1"], "teacher ratio 0.1"),
    ],
)
def test_what_cannot_be_studied_is_refused(run, task, more, message):
    """One line, exit code 2."""
    assert message in run(task, *more).line


@pytest.mark.exhaustive(after=1)
@pytest.mark.parametrize("prior", ["nlm", "tv"])
def test_dry_runs_train_only_where_a_row_does(run, prior, monkeypatch):
    """Without gradients through the prior, or with a P too large for the machine, it is skipped."""
    done = run("sr", "--dry-run", problem__prior=prior, rows="identity,ldip?")
    assert done.code == 0
    assert ("skipped: training needs gradients" in done.out) == (prior == "nlm")
    monkeypatch.setattr("dipa_bench.devices.available_memory", lambda device: 1000)
    done = run("sr", "--dry-run", problem__prior="tv", rows="identity,ldip?")
    assert "skipped: fitting 1 x 65,536 numbers takes" in " ".join(done.out.split())


def test_learning_through_a_prior_without_gradients(call, run, work):
    """Asked for by name it is refused with the priors that work; in a whole study it is skipped."""
    line = run("sr", problem__prior="nlm", rows="identity,ldipa").line
    assert "method ldipa: training needs gradients" in line and "'nlm' lets none pass" in line
    assert "dncnn-small" in line and "bm3d" not in line.split("choose one of")[1]
    assert run("sr", problem__prior="nlm", rows="identity,ldip?").code == 0
    rows = board(call, "sr")
    assert rows["ldipa"]["state"] == "skipped"
    assert "dncnn-small" in rows["ldipa"]["reason"]
