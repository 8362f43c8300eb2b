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

from dipa_bench import devices, digests
from dipa_bench.data.images import Splits
from dipa_bench.errors import UserError, brief, unknown
from dipa_bench.methods import FitContext, Method, Reconstructor, SolverOnly
from dipa_bench.parameters import Value, build
from dipa_bench.preconditioners import Identity, Preconditioner
from dipa_bench.search import rerun
from dipa_bench.search.attempt import budget_of
from dipa_bench.search.bench import TEACHERS, Workbench, study_task
from dipa_bench.search.row import Row
from dipa_bench.search.study import STUDY
from dipa_bench.search.study_file import MethodSpec, StudyFile
from dipa_bench.tasks.base import Task
from dipa_bench.tracking import records
from dipa_bench.tracking.records import RunRecord

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
OPERATOR = "operator.safetensors"


@dataclass(frozen=True)
class LearnedRun:
    """A method or a seed of a study, with its operator.

    Attributes:
        record: of the run.
        place: its folder.
        bench: the study's task, and what its runs share.
        row: the method under its name in the study.
        state: the operator's stored numbers; empty where P is made again from the record.
        reconstructor: as the study tested it.
        same_images: whether the images are those that the study saw.
    """

    record: RunRecord
    place: Path
    bench: Workbench
    row: Row
    state: Mapping[str, Tensor]
    reconstructor: Reconstructor
    same_images: bool = True

    @property
    def study(self) -> StudyFile:
        return self.bench.study

    @property
    def task(self) -> Task:
        return self.bench.task

    @property
    def method(self) -> Method:
        return self.row.method

    @property
    def parameters(self) -> Mapping[str, Value]:
        """The recorded flat hyper-parameters."""
        return self.record.params

    @property
    def operator(self) -> Preconditioner | None:
        """P; None for methods that have none, e.g. a direct map."""
        return self.reconstructor.preconditioner

    def at(self, bench: Workbench, values: Mapping[str, Value] | None = None) -> Reconstructor:
        """The run's operator at a task or with settings of another kind; nothing is learned.

        Analytic operators are made anew for the task; learned ones keep their numbers.

        Args:
            bench: holds the task.
            values: flat parameters; the recorded ones if None.

        Raises:
            UserError: the operator cannot be moved there.
        """
        moved = bench is not self.bench
        try:
            return _made(bench, self.row, self.record, self.state, values or self.parameters, moved)
        except UserError as error:
            if bench.task.shape == self.task.shape:
                raise
            raise UserError(
                f"{self.row.name} works on images of shape {self.task.shape}: {error}"
            ) from None


def load(
    run: str | Path,
    root: str | Path = "mlruns",
    device: str = "auto",
    tracking_uri: str | None = None,
) -> LearnedRun:
    """A run's operator and everything to reconstruct with it.

    Of a learned method the stored numbers are read (of a method's folder those of its first seed);
    what has none is fitted again as recorded: analytic operators, and closed forms that keep no
    numbers, such as LMMSE maps.

    Args:
        run: a run folder, ``study/method[/seed-0]`` below `root`, or an MLflow run id.
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
    bench = Workbench.of(study, folder, devices.resolve(device), teachers=teachers)
    return _opened(place, bench)


def locate(run: str, root: Path, tracking_uri: str | None = None) -> Path:
    """The folder of a run.

    A tracking store only names it: what is read, and what code is imported, comes from here.

    Args:
        run: a run folder, ``study/method[/seed-0]`` below `root`, or an MLflow run id.
        root: the results folder.
        tracking_uri: store that knows the id.

    Raises:
        UserError: there is none on this machine.
    """
    if (place := rerun.find(run, root)) is not None:
        return place
    if "/" in run:
        known = sorted(
            f"{place.parent.name}/{records.read(place).method}"
            for place in records.method_folders(root)
        )
        raise unknown(f"run (below {records.studies_root(root)})", run, known)
    from dipa_bench.tracking.connection import StoreUnavailable
    from dipa_bench.tracking.load import find_run
    from dipa_bench.tracking.location import resolve_uri

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


def seeds(run: LearnedRun) -> list[LearnedRun]:
    """The refits that a method's record stands for; of any other run itself."""
    if run.record.kind != "method":
        return [run]
    count = int(run.record.metrics.get("search/seeds", 1))
    return [_opened(run.place / f"seed-{number}", run.bench) for number in range(count)]


def tuned_identity(run: LearnedRun) -> LearnedRun | None:
    """The unpreconditioned algorithm as the run's study tuned it, if it did.

    The study's reference row if that is one, else the first other by name.
    """
    found = []
    for path in sorted(run.bench.folder.glob(f"*/{records.RECORD}")):
        with suppress(UserError):  # another row's record may be damaged
            record = records.read(path.parent)
            if record.operator == "identity" and record.state == "finished":
                found.append((record.method != run.study.reference, path.parent))
    for _, place in sorted(found):
        made = run if place == run.place else _opened(place, run.bench)
        if isinstance(made.operator, Identity):
            return made
    return None


def untuned_identity(run: LearnedRun) -> LearnedRun:
    """The unpreconditioned algorithm with the solver settings of a run, for studies without it."""
    row = Row("identity", UNPRECONDITIONED, MethodSpec())
    plain = row.defaults(run.task)
    solve = {name: value for name, value in run.parameters.items() if name in plain}
    record = run.bench.blank("seed", row).model_copy(
        update={"state": "finished", "params": plain | solve}
    )
    made = _made(run.bench, row, record, {}, record.params)
    return LearnedRun(record, run.place, run.bench, row, {}, made)


def at_shape(run: LearnedRun, images: Splits) -> Workbench:
    """The run's task for images of another shape: the same options, noise, prior and settings.

    Args:
        run: whose task it is.
        images: stand for those of the task; of the wanted shape (C, H, W).

    Raises:
        UserError: the task refuses the shape, or a start from training images cannot follow it.
    """
    task = run.task
    if images.shape == task.shape:
        return run.bench
    channels, height, width = images.shape
    run.task.prior.check(channels)
    moved = task.remade(images=images)
    if run.record.params.get("solve.start") == "lmmse":
        if height != width:
            raise UserError(
                f"{run.row.name} starts from the LMMSE map of its training images, which are "
                f"square, not {height} x {width}: give a --size"
            )
        problem = run.study.problem.model_copy(update={"size": height})
        moved_study = run.study.model_copy(update={"problem": problem})
        images = study_task(moved_study, torch.device("cpu")).images
        moved = replace(moved, images=images)
    return replace(run.bench, task=moved)


def _opened(place: Path, bench: Workbench) -> LearnedRun:
    """The run in a folder, at its own task."""
    record = records.read(place)
    row = Row.of(rerun.study_of(record), record.method)  # a study may have grown since
    _check_state(record, row.method)
    state = _state(place) if row.method.restore is not None else {}
    same = record.data_digest in ("", bench.task.images.digest)
    if not same:
        _other_images(record, row.method, bench.task)
    reconstructor = _made(bench, row, record, state, record.params)
    return LearnedRun(record, place, bench, row, state, reconstructor, same)


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
    path = place / OPERATOR
    if not path.is_file():
        raise UserError(
            f"{place} holds no {OPERATOR}: move the folder away and run the study again"
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
    bench: Workbench,
    row: Row,
    record: RunRecord,
    state: Mapping[str, Tensor],
    values: Mapping[str, Value],
    moved: bool = False,
) -> Reconstructor:
    """An operator with a solver around it, from its numbers or made again from its record."""
    method, task = row.method, bench.task
    parameters = build(method.parameters, values)
    seed = record.seed
    if record.kind == "method":
        seed = digests.seed(bench.study.seed, row.name, "seed", 0)
    context = _context(bench, seed, record.kind != "trial")
    if method.learned and method.restore is None:
        log.warning("%s keeps no numbers to read back: it is fitted again", row.name)
    return method.rebuild(task, parameters, state, context, moved=moved)


def _context(bench: Workbench, seed: int, final: bool = True) -> FitContext:
    budget = budget_of(bench.study.budget, final)
    return FitContext(seed=seed, budget=budget, teachers=bench.teachers, lmmse=bench.lmmse)
