"""A study on disk: its folder, which settings it holds, who may run it, and one entry run here."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path

from dipa_bench.config.entry import Entry
from dipa_bench.config.study_file import StudyFile
from dipa_bench.errors import UserError, brief
from dipa_bench.execution.context import StudyContext
from dipa_bench.execution.pool import Inline
from dipa_bench.execution.scheduler import Scheduler
from dipa_bench.files import write_json
from dipa_bench.parameters import Value
from dipa_bench.search.callbacks import StudyCallback
from dipa_bench.search.queues import SharedTrialQueues, TrialQueues
from dipa_bench.tasks.base import Task
from dipa_bench.tracking import records
from dipa_bench.tracking.records import RunRecord

STUDY = "study.json"
TASK = "task.json"


def study_folder(root: Path, name: str) -> Path:
    """Where the study `name` lives below the results folder."""
    return records.studies_root(root) / name


@contextmanager
def locked_context(
    study: StudyFile, root: Path, task: Task, queues: TrialQueues | None = None
) -> Iterator[StudyContext]:
    """As `open_context`, with the study's lock held; in queues that others share there is none.

    Raises:
        UserError: another process runs the study, or it was begun with other settings.
    """
    shared = queues is not None and queues.shared
    with nullcontext() if shared else claimed(study_folder(root, study.name)):
        yield open_context(study, root, task, queues)


def open_context(
    study: StudyFile, root: Path, task: Task, queues: TrialQueues | None = None
) -> StudyContext:
    """What all runs of a study share; claims its name for these settings.

    Args:
        study: resolved.
        root: the results folder.
        task: of the study.
        queues: the queues of trials, which others may share.

    Raises:
        UserError: there is a study of that name with other settings.
    """
    folder = study_folder(root, study.name)
    folder.mkdir(parents=True, exist_ok=True)
    path, kept = folder / STUDY, study
    if path.exists():
        kept = _joined(read_study(folder), study)
    ours = {"images": task.images.digest, "prior": task.prior.digest()}
    if isinstance(queues, SharedTrialQueues):
        there = StudyFile.model_validate(queues.agree("study", study.model_dump(mode="json")))
        both = _joined(there, study)
        if both.methods.keys() != there.methods.keys():
            queues.note("study", both.model_dump(mode="json"))
        _same(queues.agree("task", ours), ours, study.name)
        (folder / records.SHARED).touch()
    _same(_read_digests(folder / TASK) or ours, ours, study.name)
    write_json(folder / TASK, ours)
    write_json(path, kept.model_dump(mode="json"))
    return StudyContext.of(study, folder, task.device, task=task)


def _joined(old: StudyFile, new: StudyFile) -> StudyFile:
    """The study with the entries of before and now, after a check that all else agrees."""
    _agree(old, new)
    return new.model_copy(update={"methods": old.methods | new.methods})


def _read_digests(path: Path) -> dict[str, str] | None:
    """Digests of the images and the prior that a study was begun with; None for damaged ones."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def _same(before: Mapping[str, str], now: Mapping[str, str], name: str) -> None:
    """Raises `UserError` unless a study goes on with the images and the prior it began with."""
    for what, digest in now.items():
        if before.get(what) != digest:
            raise UserError(
                f"study {name!r} was begun with other {what} (digest {before.get(what)}, now "
                f"{digest}): give another --name"
            )


def read_study(folder: Path) -> StudyFile:
    """The resolved study kept in a study's folder, with every entry it ever had.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / STUDY
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        records.refuse_older(values, path)
        return StudyFile.model_validate(values)
    except ValueError as error:
        raise UserError(
            f"damaged study file {path} ({brief(error)}): move it away to continue with the "
            "settings you give"
        ) from None


def _agree(old: StudyFile, new: StudyFile) -> None:
    """Raises `UserError` unless `new` continues `old`."""
    before, after = _flat(old.identity()), _flat(new.identity())
    for name in sorted(set(old.methods) & set(new.methods)):
        before |= _flat(old.methods[name].model_dump(mode="json"), f"methods.{name}.")
        after |= _flat(new.methods[name].model_dump(mode="json"), f"methods.{name}.")
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) != after.get(key):
            raise UserError(
                f"study {new.name!r} exists with {key} = {before.get(key)!r}, not "
                f"{after.get(key)!r}: give another --name, or the old settings to continue it"
            )


def _flat(values: dict, prefix: str = "") -> dict[str, Value]:
    flat: dict[str, Value] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Holds a study's lock; the kernel drops it when the process ends, however it ends.

    Raises:
        UserError: another process runs this study.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"study {folder.name!r} is being run by another process: wait for it, or give "
                "another --name"
            ) from None
        yield


def run_entry(context: StudyContext, entry: Entry, callback: StudyCallback) -> RunRecord:
    """Searches one entry here, refits and tests its winner, and writes the method's record.

    What is on disk already is not done again.

    Returns:
        The method's record: finished, skipped, or diverged/failed where no trial finished.
    """
    scheduler = Scheduler(context, callback, TrialQueues())
    return scheduler.run([entry], Inline(context, scheduler.job_callback))[0]
