"""A study's operators, ready to reconstruct with: read back from their run folders."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dipa_bench import devices, names
from dipa_bench.config.entry import Entry
from dipa_bench.config.study_file import MethodSpec, StudyFile
from dipa_bench.data.images import Splits
from dipa_bench.errors import UserError, brief, unknown
from dipa_bench.execution.attempt import budget_of
from dipa_bench.execution.context import TEACHERS, StudyContext, study_task
from dipa_bench.execution.study_folder import STUDY
from dipa_bench.methods import FitContext, Method, Reconstructor, SolverOnly
from dipa_bench.parameters import Value, build
from dipa_bench.preconditioners import Identity, Preconditioner
from dipa_bench.runs import rerun
from dipa_bench.tasks.base import Task
from dipa_bench.tracking import records
from dipa_bench.tracking.connection import StoreUnavailable
from dipa_bench.tracking.load import find_run
from dipa_bench.tracking.location import resolve_uri
from dipa_bench.tracking.records import RunRecord
from dipa_bench.tracking.registry import SCHEME

UNPRECONDITIONED = Method(
    name="identity",
    title="Identity",
    summary="the solver without P",
    operator="identity",
    rule="none",
    parameters=SolverOnly,
    fit=lambda task, parameters, context: context.reconstructor(task, parameters.solve, Identity()),
)
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LearnedRun:
    """A method or a seed of a study, with its operator.

    Attributes:
        record: of the run.
        place: its folder.
        context: the study's task, and what its runs share.
        entry: the method under its name in the study.
        state: the operator's stored numbers; empty where P is made again from the record.
        reconstructor: as the study tested it.
        same_images: whether the images are those that the study saw.
    """

    record: RunRecord
    place: Path
    context: StudyContext
    entry: Entry
    state: Mapping[str, Tensor]
    reconstructor: Reconstructor
    same_images: bool = True

    @property
    def study(self) -> StudyFile:
        return self.context.study

    @property
    def task(self) -> Task:
        return self.context.task

    @property
    def method(self) -> Method:
        return self.entry.method

    @property
    def parameters(self) -> Mapping[str, Value]:
        """The recorded flat hyper-parameters."""
        return self.record.params

    @property
    def operator(self) -> Preconditioner | None:
        """P; None for methods that have none, e.g. a direct map."""
        return self.reconstructor.preconditioner

    def at(self, context: StudyContext, values: Mapping[str, Value] | None = None) -> Reconstructor:
        """The run's operator at a task or with settings of another kind; nothing is learned.

        Analytic operators are made anew for the task; learned ones keep their numbers.

        Args:
            context: holds the task.
            values: flat parameters; the recorded ones if None.

        Raises:
            UserError: the operator cannot be moved there.
        """
        moved = context is not self.context
        try:
            return _made(
                context, self.entry, self.record, self.state, values or self.parameters, moved
            )
        except UserError as error:
            if context.task.shape == self.task.shape:
                raise
            raise UserError(
                f"{self.entry.name} works on images of shape {self.task.shape}: {error}"
            ) from None


def load(
    run: str | Path,
    root: str | Path = "mlruns",
    device: str = "auto",
    tracking_uri: str | None = None,
) -> LearnedRun:
    """A run's operator and everything to reconstruct with it.

    Of a learned method the stored numbers are read; what has none is fitted again as recorded:
    analytic operators, and closed forms that keep no numbers, such as LMMSE maps.

    Args:
        run: a run folder, ``study/method[/seed-0]`` below `root`, an MLflow run id, or a registered
            model, ``models:/STUDY.METHOD[/VERSION]``.
        root: the results folder.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:<i>``.
        tracking_uri: store that knows the run id; else as for all commands.

    Raises:
        UserError: no such run, one that did not finish or kept no operator, or images that are
            not the study's where the reconstruction depends on them.
    """
    root = Path(root)
    place = locate(str(run), root, tracking_uri)
    record = records.read(place)
    study = rerun.study_of(record)
    folder = place.parent if record.kind == "method" else place.parent.parent
    if not (folder / STUDY).is_file():  # a run folder that was copied by itself
        folder = place
    teachers = records.studies_root(root) / TEACHERS
    context = StudyContext.of(study, folder, devices.resolve(device), teachers=teachers)
    return _opened(place, context)


def locate(run: str, root: Path, tracking_uri: str | None = None) -> Path:
    """The folder of a run.

    A tracking store only names it: what is read, and what code is imported, comes from here.

    Args:
        run: as for `load`.
        root: the results folder.
        tracking_uri: store that knows the id or model.

    Raises:
        UserError: there is none on this machine.
    """
    if (place := rerun.find(run, root)) is not None:
        return place
    if "/" in run and not run.startswith(SCHEME):
        known = sorted(
            f"{place.parent.name}/{records.read(place).method}"
            for place in records.method_folders(root)
        )
        raise unknown(f"run (below {records.studies_root(root)})", run, known)
    try:
        record = find_run(resolve_uri(tracking_uri, Path.cwd()), run)
    except StoreUnavailable as error:
        raise UserError(str(error)) from None
    name = rerun.name_of(record)
    place = rerun.find(name, root)
    if place is None or records.read(place).model_dump(
        include={"study_file", "params", "kind"}
    ) != record.model_dump(include={"study_file", "params", "kind"}):
        raise UserError(
            f"run {run} is {name}, whose folder is not below {root}: go where the study ran, or "
            "give the run's folder"
        )
    return place


def tuned_identity(run: LearnedRun) -> LearnedRun | None:
    """The unpreconditioned algorithm as the run's study tuned it, if it did.

    The study's reference entry if that is one, else the first other by name.
    """
    found = []
    for path in sorted(run.context.folder.glob(f"*/{records.RECORD}")):
        with suppress(UserError):  # another entry's record may be damaged
            record = records.read(path.parent)
            if record.operator == "identity" and record.state == "finished":
                found.append((record.method != run.study.reference, path.parent))
    for _, place in sorted(found):
        made = run if place == run.place else _opened(place, run.context)
        if isinstance(made.operator, Identity):
            return made
    return None


def untuned_identity(run: LearnedRun) -> LearnedRun:
    """The unpreconditioned algorithm with the solver settings of a run, for studies without it."""
    entry = Entry("identity", UNPRECONDITIONED, MethodSpec())
    plain = entry.defaults(run.task)
    solve = {name: value for name, value in run.parameters.items() if name in plain}
    record = run.context.blank("seed", entry).model_copy(
        update={"state": "finished", "params": plain | solve}
    )
    made = _made(run.context, entry, record, {}, record.params)
    return LearnedRun(record, run.place, run.context, entry, {}, made)


def at_shape(run: LearnedRun, images: Splits) -> StudyContext:
    """The run's task for images of another shape: the same options, noise, prior and settings.

    Args:
        run: whose task it is.
        images: stand for those of the task; of the wanted shape (C, H, W).

    Raises:
        UserError: the task refuses the shape, or a start from training images cannot follow it.
    """
    task = run.task
    if images.shape == task.shape:
        return run.context
    channels, height, width = images.shape
    run.task.prior.check(channels)
    moved = task.remade(images=images)
    if run.record.params.get("solve.start") == "lmmse":
        if height != width:
            raise UserError(
                f"{run.entry.name} starts from the LMMSE map of its training images, which are "
                f"square, not {height} x {width}: give a --size"
            )
        problem = run.study.problem.model_copy(update={"size": height})
        moved_study = run.study.model_copy(update={"problem": problem})
        images = study_task(moved_study, torch.device("cpu")).images
        moved = replace(moved, images=images)
    return replace(run.context, task=moved)


def _opened(place: Path, context: StudyContext) -> LearnedRun:
    """The run in a folder, at its own task."""
    record = records.read(place)
    entry = Entry.of(rerun.study_of(record), record.method)  # a study may have grown since
    _check_state(record, entry.method)
    state = _state(place) if entry.method.restore is not None else {}
    same = record.data_digest in ("", context.task.images.digest)
    if not same:
        _other_images(record, entry.method, context.task)
    reconstructor = _made(context, entry, record, state, record.params)
    return LearnedRun(record, place, context, entry, state, reconstructor, same)


def _check_state(record: RunRecord, method: Method) -> None:
    """Raises `UserError` where there is no operator to load."""
    if record.state != "finished":
        why = f" ({record.reason})" if record.reason else ""
        raise UserError(
            f"{record.name} is {record.state}{why}: give a method or a seed that finished"
        )
    if record.kind == "trial" and method.learned:
        raise UserError(
            f"{record.name} of {record.method} kept no operator: give the method or one of its "
            f"seeds ({record.study}/{record.method}), or repeat the trial with `dipa-bench rerun`"
        )


def _state(place: Path) -> dict[str, Tensor]:
    """The stored numbers of a run folder."""
    path = place / names.OPERATOR
    if not path.is_file():
        raise UserError(
            f"{place} holds no {names.OPERATOR}: move the folder away and run the study again"
        )
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"damaged operator {path} ({brief(error)}): move its run folder away and run the "
            "study again"
        ) from None


def _other_images(record: RunRecord, method: Method, task: Task) -> None:
    """Warns of images that are not the study's; refuses them where the result depends on them."""
    what = (
        f"the images are not those of {record.study} (digest {task.images.digest}, recorded "
        f"{record.data_digest})"
    )
    needed = ""
    if method.learned and method.restore is None:
        needed = f"{record.method} is made from the training images"
    elif record.params.get("solve.start") == "lmmse":
        needed = f"{record.method} starts from the LMMSE map of the training images"
    if needed:
        raise UserError(f"{what}, and {needed}: bring the study's images back")
    log.warning("%s; the operator does not depend on them", what)


def _made(
    context: StudyContext,
    entry: Entry,
    record: RunRecord,
    state: Mapping[str, Tensor],
    values: Mapping[str, Value],
    moved: bool = False,
) -> Reconstructor:
    """An operator with a solver around it, from its numbers or made again from its record."""
    method, task = entry.method, context.task
    parameters = build(method.parameters, values)
    seed = record.seed
    if record.kind == "method":
        seed = context.seed("seed", 0)
    fit_context = _fit_context(context, seed, record.kind != "trial")
    if method.learned and method.restore is None:
        log.warning("%s keeps no numbers to read back: it is fitted again", entry.name)
    return method.rebuild(task, parameters, state, fit_context, moved=moved)


def _fit_context(context: StudyContext, seed: int, final: bool = True) -> FitContext:
    budget = budget_of(context.study.budget, final)
    return FitContext(seed=seed, budget=budget, teachers=context.teachers, lmmse=context.lmmse)
