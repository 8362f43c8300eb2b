"""Repeating any run from its record alone."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from dipa_bench import devices
from dipa_bench.config.entry import Entry
from dipa_bench.config.study_file import StudyFile
from dipa_bench.errors import UserError, brief
from dipa_bench.execution.context import TEACHERS, StudyContext, study_task
from dipa_bench.execution.trials import SETTINGS_NOTE, run_seed, run_trial
from dipa_bench.search.journal import trial_folder
from dipa_bench.tracking import records
from dipa_bench.tracking.records import RunRecord

COMPARED = ("val/psnr", "test/psnr", "test/ssim")


@dataclass(frozen=True)
class Repeat:
    """A run beside its repetition.

    Attributes:
        figures: name, then recorded and repeated value (None where one lacks it).
        state: recorded and repeated.
        differences: facts of the environment that differ: name, then recorded and present.
    """

    figures: dict[str, tuple[float | None, float | None]]
    state: tuple[str, str]
    differences: dict[str, tuple[object, object]]

    def agrees(self, tolerance: float = 0.0) -> bool:
        """Whether every recorded figure came out again, to `tolerance` dB."""
        return self.state[0] == self.state[1] and all(
            None not in pair and abs(pair[0] - pair[1]) <= tolerance
            for pair in self.figures.values()
        )


def repeat(record: RunRecord, root: Path, device: torch.device) -> Repeat:
    """Runs what `record` describes once more, in a temporary folder.

    It has as many threads of the CPU as the run had. A trial that was pruned is run without pruning
    and compared epoch by epoch, or image by image, as far as it got. A method's record stands for
    its winner.

    Args:
        record: of a trial, a seed or a method.
        root: the results folder, whose cached teachers are used where they fit.
        device: where to run.

    Raises:
        UserError: the images are not those of the record, or the run was never fitted.
    """
    if record.state in ("running", "interrupted", "skipped"):
        raise UserError(f"{record.name} is {record.state}: there is nothing to compare with")
    if record.kind == "method" and record.state != "finished":
        raise UserError(f"{record.name} is {record.state}: give one of its trials")
    study = study_of(record)
    task = study_task(study, device)
    if task.images.digest != record.data_digest:
        raise UserError(
            f"the images of {study.problem.dataset or task.spec.dataset!r} are not those of the "
            f"record (digest {task.images.digest}, recorded {record.data_digest})"
        )
    entry = Entry.of(study, record.method)
    teachers = records.studies_root(root) / TEACHERS
    with tempfile.TemporaryDirectory(prefix="dipa-rerun-") as scratch:
        context = StudyContext.of(study, Path(scratch), device, task=task, teachers=teachers)
        with devices.threads(record.environment.get("threads")):
            again = _again(context, entry, record)
    now = dict(context.environment)
    return Repeat(
        figures=_paired(record, again),
        state=(record.state, "pruned" if record.state == "pruned" else again.state),
        differences={
            name: (value, now.get(name))
            for name, value in record.environment.items()
            if now.get(name) != value and not name.startswith("git_")
        },
    )


def study_of(record: RunRecord) -> StudyFile:
    """The study that a record describes."""
    try:
        study = StudyFile.model_validate(record.study_file)
    except ValueError as error:
        raise UserError(
            f"the record of {record.name} holds no study that this version reads ({brief(error)})"
        ) from None
    if record.method not in study.methods:
        raise UserError(f"the record of {record.name} lacks its own row {record.method!r}")
    return study


def _again(context: StudyContext, entry: Entry, record: RunRecord) -> RunRecord:
    if record.kind == "trial":
        blank = record.model_copy(update={"state": "running", "metrics": {}, "series": {}})
        return run_trial(context, entry, blank, context.folder / "trial")
    blank = context.blank("seed", entry, 0, context.seed("seed", 0)).model_copy(
        update={"params": record.params, "fitted_at": record.fitted_at}
    )
    images = context.task.images.test(f"rerun of {record.study} / {record.method}")
    return run_seed(context, entry, blank, context.folder / "seed-0", images)


def _paired(record: RunRecord, again: RunRecord) -> dict[str, tuple[float | None, float | None]]:
    pairs = {
        name: (record.metrics[name], again.metrics.get(name))
        for name in COMPARED
        if name in record.metrics
    }
    if record.kind == "method":
        pairs.pop("val/psnr", None)  # of the winning trial
    if record.state == "pruned":
        later = dict(again.series.get("val/psnr_by_epoch", []))
        for epoch, value in record.series.get("val/psnr_by_epoch", []):
            pairs[f"val/psnr at epoch {epoch}"] = (value, later.get(epoch))
        whole = again.validation + [None] * len(record.validation)
        for place, value in enumerate(record.validation):
            pairs[f"val/psnr of image {place} of the race"] = (value, whole[place])
    return pairs


def name_of(record: RunRecord) -> str:
    """What `find` takes for the folder of a record: ``study/method[/trial-0003]``."""
    inside = {
        "method": "",
        "trial": f"/{trial_folder(Path(), record.number).name}",
        "seed": f"/seed-{record.number}",
        "published": "/published",
    }
    return f"{record.study}/{record.method}{inside[record.kind]}"


def find(run: str, root: Path) -> Path | None:
    """The run folder that `run` names: a path, or ``study/method[/trial-0003]`` below `root`."""
    study, _, method = run.partition("/")
    name, _, leaf = method.rpartition("/")
    below = records.studies_root(root) / study
    for place in (
        Path(run),
        below / method,
        records.method_folder(below, method),
        records.method_folder(below, name) / leaf,
    ):
        if (place / records.RECORD).is_file():
            return place
        if place.is_file() and place.name == records.RECORD:
            return place.parent
    return None


def tolerance(device: torch.device, record: RunRecord) -> float:
    """Largest difference in dB that still counts as agreement.

    None on a CPU, 0.01 on a GPU; 0.001 for a trial that ran in one batch with others, as sums are
    rounded in another order in batches of another size.
    """
    if device.type != "cpu":
        return 0.01
    return 1e-3 if SETTINGS_NOTE in record.notes else 0.0
