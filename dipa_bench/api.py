"""The Python interface: what the command line and notebooks call.

`dipa_bench` re-exports it, so that ``import dipa_bench`` loads nothing heavy before it is used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from deepinv.physics import LinearPhysics

    from dipa_bench.execution.study import Outcome, Study
    from dipa_bench.methods import Method
    from dipa_bench.preconditioners import Preconditioner
    from dipa_bench.runs.restore import LearnedRun
    from dipa_bench.search.callbacks import StudyCallback
    from dipa_bench.tracking.results import TaskResults

ROOT = Path("mlruns")


@dataclass(frozen=True)
class Results:
    """What came of a study. In a notebook it shows as its leaderboard.

    Attributes:
        name: of the study.
        task: its name.
        folder: of its first replicate's records.
        leaderboard: a row for each method, best mean test PSNR first (`dipa_bench.leaderboard`).
        runs: a row for each method, trial and seed of each replicate: study, kind, method, number,
            state, reason, one column for each metric, and its folder.
        tables: per-image scores, curves and pictures behind the leaderboard.
        measured: whether any method finished, or none was meant to.
        sent: whether the tracking store has all of it.
    """

    name: str
    task: str
    folder: Path
    leaderboard: pd.DataFrame
    runs: pd.DataFrame
    tables: TaskResults
    measured: bool
    sent: bool

    def verdict(self) -> str:
        """What training bought, in a sentence."""
        from dipa_bench.reports.conclusions import verdict

        return verdict(self.leaderboard, self.tables)

    def load(self, method: str, device: str = "auto") -> LearnedRun:
        """A method's operator with its task and solver, as `dipa_bench.load` gives it."""
        return load(f"{self.name}/{method}", self.folder.parents[1], device)

    def __str__(self) -> str:
        from dipa_bench.reports.rendering import render

        return f"{render(self.leaderboard)}\n{self.verdict()}"

    def _repr_html_(self) -> str:
        return self.leaderboard.to_html()


def run_study(
    study: str | Path | Mapping[str, Any] | None = None,
    *,
    task: str | None = None,
    physics: LinearPhysics | None = None,
    teacher: LinearPhysics | None = None,
    images: Any = None,
    prior: Any = None,
    methods: str | Sequence[str | Preconditioner | Method] | None = None,
    trials: int | None = None,
    minutes: float | None = None,
    replicates: int | None = None,
    preset: str | None = None,
    protocol: str | None = None,
    dataset: str | None = None,
    data_root: str | Path | None = None,
    device: str = "auto",
    seed: int | None = None,
    name: str | None = None,
    set: Mapping[str, Any] | Sequence[str] = (),
    workers: int | str | None = None,
    cluster: str | None = None,
    storage: str | None = None,
    tracking_uri: str | None = None,
    root: str | Path = ROOT,
    callback: StudyCallback | None = None,
) -> Results:
    """Searches every method with the same budget, refits the winners, tests each once.

    The same call continues a study that was interrupted. Results go below `root` and to MLflow.

    Args:
        study: path of a study file, name of an embedded one, or a table as of a study file.
        task: task whose embedded study to run, e.g. ``sr``; not needed where `study` names one.
        physics: an operator of your own, a deepinv `LinearPhysics`, instead of a task.
        teacher: a simulated, better-conditioned one, for methods that learn from it.
        images: of your own: N x C x H x W in [0, 1] (C = 1 gray, 3 colour, 2 real and imaginary
            part), N x H x W, a dataset of such, a dictionary of the splits ``train``,
            ``validation`` and ``test``, or a folder.
        prior: a denoiser (v, sigma) or (v) for B x C x H x W, or the name of one.
        methods: entries to run, e.g. ``["identity", "ldipa"]``; patterns and ``all`` work, and
            `Preconditioner` and `Method` objects beside names.
        trials: solver settings of each method, and fits, at most; else ``budget.settings`` and
            ``budget.fits`` of the study and preset.
        minutes: of each method's search instead of these.
        replicates: independent searches, each with its own draws and fit seeds; else
            ``budget.replicates`` of the study and preset.
        preset: ``quick`` (default on a CPU), ``standard`` (on a GPU) or ``paper``.
        protocol: ``tuned`` (default) or ``published``.
        dataset: registered images, NAME or NAME:PATH.
        data_root: where datasets without a path of their own lie.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:<i>``.
        seed: of the whole study.
        name: of the study.
        set: further settings, ``{"problem.size": 64, "ldipa.train.clip": 0.5}``, or as the command
            line has them, ``["problem.size=64"]``.
        workers: processes: a number or ``auto``; None for this one.
        cluster: a Dask cluster, ``dask://host:port`` or ``file.py:NAME``.
        storage: database that machines share; None for files.
        tracking_uri: MLflow store; else ``MLFLOW_TRACKING_URI``, else ``mlflow.db`` in this folder.
        root: the results folder.
        callback: told of everything while the study runs (`dipa_bench.StudyCallback`).

    Objects stay in this process: they go with neither `workers`, `cluster` nor `storage`, and the
    study is repeated or continued by handing over the same again.

    Raises:
        UserError: a setting that does not exist or cannot be had; the message names the cure.
        StudyStopped: a KeyboardInterrupt; the same call continues the study.
        OSError: a disk that is full or read-only; what is finished is kept.
    """
    from dipa_bench.config.live_study import LiveParts, LiveStudy
    from dipa_bench.errors import UserError
    from dipa_bench.execution.study import Request, Study
    from dipa_bench.search.callbacks import StudyCallback

    asked = LiveStudy(
        study,
        task,
        methods,
        assignments(dataset, data_root, set),
        LiveParts(physics, teacher, images, prior),
    )
    if asked.live and (workers, cluster, storage) != (None,) * 3:
        raise UserError(
            f"{', '.join(asked.live)}: objects stay in this process: leave out workers, cluster "
            "and storage"
        )
    prepared = Study(
        Request(
            config=asked.config,
            task=asked.task,
            methods=asked.methods,
            trials=trials,
            minutes=minutes,
            preset=preset,
            protocol=protocol,
            device=device,
            seed=seed,
            name=name,
            sets=asked.sets,
            replicates=replicates,
            workers=workers,
            cluster=cluster,
            storage=storage,
            tracking_uri=tracking_uri,
            root=Path(root),
        )
    )
    asked.check(prepared.task)
    return run_prepared(prepared, callback or StudyCallback())


def run_prepared(study: Study, callback: StudyCallback) -> Results:
    """Runs a study that is ready, and gathers its results.

    Args:
        study: the study.
        callback: told of everything.

    Raises:
        As `run_study`.
    """
    import pandas as pd

    from dipa_bench import devices
    from dipa_bench.reports.leaderboard import leaderboard as ranked
    from dipa_bench.tracking.folders import runs_table

    outcomes: list[Outcome] = []
    with devices.threads(_threads(study, callback)):
        for outcome in study.replicates(callback):
            outcomes.append(outcome)
            if outcome.measured and len(outcomes) < study.resolved.budget.replicates:
                callback.replicate(len(outcomes), ranked(_tables(study, outcomes)))
    first, tables = outcomes[0], _tables(study, outcomes)
    return Results(
        name=first.study.name,
        task=first.study.task,
        folder=first.folder,
        leaderboard=ranked(tables),
        runs=pd.concat([runs_table(one.folder) for one in outcomes], ignore_index=True),
        tables=tables,
        measured=all(one.measured for one in outcomes),
        sent=all(one.sent for one in outcomes),
    )


def _threads(study: Study, callback: StudyCallback) -> int | None:
    """Threads of a study on a CPU of which other programs use a part."""
    from dipa_bench import devices

    count = devices.free_threads() if study.where.type == "cpu" else None
    if count is not None:
        callback.message(
            f"{count} of {devices.cores()} cores free: as many threads (OMP_NUM_THREADS chooses)"
        )
    return count


def _tables(study: Study, outcomes: Sequence[Outcome]) -> TaskResults:
    """What is known of the replicates that have ended."""
    from dipa_bench.tracking.folders import study_results
    from dipa_bench.tracking.results import joined

    first = outcomes[0]
    if study.address is not None and first.sent:  # other machines concluded some of the entries
        return stored_results(study.resolved.task, study=first.study.name, tracking_uri=study.uri)
    return joined([study_results(one.folder, one.study.task) for one in outcomes])


def leaderboard(
    task: str,
    *,
    study: str | None = None,
    protocol: str | None = None,
    reference: str | None = None,
    margin: float = 0.1,
    tracking_uri: str | None = None,
    root: str | Path = ROOT,
) -> pd.DataFrame:
    """One row for each study and method of a task, best mean test PSNR first.

    Args:
        task: its name.
        study: only this study, with its replicates.
        protocol: only ``tuned`` or ``published`` rows.
        reference: row that differences are taken to; by default the study's.
        margin: dB; rows closer than this to the reference are equivalent.
        tracking_uri: MLflow store to read, or MLFLOW_TRACKING_URI; without either the runs below
            `root` are read, and ``mlflow.db`` where they are not all there.
        root: the results folder.

    Raises:
        UserError: no runs of that task, an unknown name, or a store that does not answer.
    """
    from dipa_bench.reports.leaderboard import leaderboard as ranked

    results = stored_results(
        task, study=study, protocol=protocol, tracking_uri=tracking_uri, root=root, scores_only=True
    )
    return ranked(results, reference=reference, margin=margin)


def stored_results(
    task: str,
    *,
    study: str | None = None,
    protocol: str | None = None,
    tracking_uri: str | None = None,
    root: str | Path = ROOT,
    scores_only: bool = False,
) -> TaskResults:
    """Tables of everything that is stored of a task; as `leaderboard` reads them.

    Args:
        task, study, protocol, tracking_uri, root: as for `leaderboard`.
        scores_only: test scores are enough; the other tables may be empty.

    Raises:
        UserError: as `leaderboard`.
    """
    from dipa_bench import registry
    from dipa_bench.errors import UserError, unknown
    from dipa_bench.tracking.connection import StoreUnavailable
    from dipa_bench.tracking.folders import folder_results
    from dipa_bench.tracking.load import load_results
    from dipa_bench.tracking.location import named, resolve_uri

    if task not in registry.names("tasks"):  # without importing it
        raise unknown("task", task, registry.names("tasks"))
    if named(tracking_uri) is None:
        own = folder_results(
            Path(root), task, study=study, protocol=protocol, scores_only=scores_only
        )
        if own is not None:
            return own
    uri = resolve_uri(tracking_uri, Path.cwd())
    try:
        return load_results(uri, task, study=study, protocol=protocol)
    except StoreUnavailable as error:
        raise UserError(str(error)) from None


def load(
    run: str | Path,
    root: str | Path = ROOT,
    device: str = "auto",
    tracking_uri: str | None = None,
) -> LearnedRun:
    """A run's operator, task and solver, ready to reconstruct with.

    Args:
        run: a run folder, ``study/method[/seed-0]`` below `root`, an MLflow run id, or a registered
            model, ``models:/STUDY.METHOD[/VERSION]``.
        root: the results folder.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:<i>``.
        tracking_uri: store that knows the run id; else as for `run_study`.

    Raises:
        UserError: no such run, or none that left an operator.
    """
    from dipa_bench.runs import restore

    return restore.load(run, root, device, tracking_uri)


def assignments(
    dataset: str | None, root: str | Path | None, given: Mapping[str, Any] | Sequence[str] | None
) -> list[str]:
    """Further settings as ``key=value``, after those that have an argument of their own."""
    own = {"problem.dataset": dataset, "problem.data_root": root and str(root)}
    found = [f"{key}={json.dumps(value)}" for key, value in own.items() if value is not None]
    if isinstance(given, Mapping):
        return found + [f"{key}={json.dumps(value)}" for key, value in given.items()]
    return found + list(given or [])
