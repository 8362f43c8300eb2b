"""What a run makes of its task: complex curves, noise of the test images, shared channels."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from safetensors.torch import load_file

from dipa_bench.config.entry import Entry
from dipa_bench.execution.study_folder import open_context, run_entry, study_folder
from dipa_bench.testing import small_task
from dipa_bench.tracking import records


def run(lab, root: Path, name: str, entries: dict, **task) -> Path:
    """The folder of a study whose entries were all run."""
    study = lab.resolved(entries, trials=1)
    context = open_context(study, root, small_task(name, **task))
    for entry in entries:
        assert run_entry(context, Entry.of(study, entry), lab.Heard()).state == "finished"
    return study_folder(root, study.name)


@pytest.mark.parametrize("name", ["sr", "mri"])
def test_curves_end_at_the_images_psnr(name: str, tmp_path: Path, lab) -> None:
    """Of complex images both are of the magnitude."""
    folder = run(lab, tmp_path, name, {"identity": {}}) / "identity"
    images = pd.read_parquet(folder / "images.parquet").set_index("image")["psnr"]
    curves = pd.read_parquet(folder / "curves.parquet")
    last = curves[curves["iteration"] == curves["iteration"].max()].set_index("image")["psnr"]
    assert last.to_dict() == pytest.approx(images.to_dict(), abs=1e-3)


def test_the_noise_of_the_test_images_reaches_the_test_alone(tmp_path: Path, lab) -> None:
    """Trials come out as before, the winner's test worse."""
    found = []
    for place, level in (("same", None), ("other", 0.3)):
        folder = run(lab, tmp_path / place, "sr", {"adjoint": {}}, noise=0.01, test_noise=level)
        found.append(records.read(folder / "adjoint").metrics)
    same, other = found
    assert other["val/psnr"] == same["val/psnr"]
    assert other["test/psnr"] < same["test/psnr"]


@pytest.mark.exhaustive(after=1)
@pytest.mark.parametrize(("channels", "side"), [("shared", 256), ("joint", 512)])
def test_a_dense_operator_shares_its_channels_on_request(
    channels: str, side: int, tmp_path: Path, lab
) -> None:
    """One matrix for real and imaginary part, or one over both."""
    entries = {"ldipa": {"set": {"operator.channels": channels}}}
    folder = run(lab, tmp_path, "mri", entries) / "ldipa"
    assert load_file(folder / "operator.safetensors")["matrix"].shape == (1, side, side)
