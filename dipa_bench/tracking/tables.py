"""The results tables: their columns, and how they are put together method by method."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd

from dipa_bench import names
from dipa_bench.errors import UserError, unknown
from dipa_bench.tracking.records import RunRecord
from dipa_bench.tracking.results import Linearised, TaskResults

Run = TypeVar("Run")
KEYS = ["study", "method"]
# columns and their types; object columns hold text or dicts
METHODS = {
    "study": object,
    "method": object,
    "title": object,
    "operator": object,
    "rule": object,
    "learned": bool,
    "protocol": object,
    "preset": object,
    "state": object,
    "reason": object,
    "parameters": float,
    "trials": int,
    "seconds_per_image": float,
    "operator_calls": float,
    "denoiser_calls": float,
    "fit_seconds": float,
    "search_seconds": float,
    "late_gain": float,
    "validation": float,
    "published": float,
    "start": object,
    "learns_from": object,
    "reference": object,
    "caveat": object,
    "contains": object,
    "params": object,
    "run_id": object,
    "started": float,
    "replicate": int,
    "replicate_of": object,
    "setting": object,
}
IMAGES = {
    "study": object,
    "method": object,
    "seed": int,
    "image": object,
    "subject": object,
    "psnr": float,
    **dict.fromkeys(names.QUALITY, float),
}
CURVES = {
    "study": object,
    "method": object,
    "seed": int,
    "image": object,
    "iteration": int,
    "psnr": float,
    "residual": float,
    "step_norm": float,
}
SHIFTS = {"setting": object} | IMAGES
TRIALS = {
    "study": object,
    "method": object,
    "number": int,
    "index": int,
    "state": object,
    "value": float,
    "estimate": float,
    "seconds": float,
    "shared_seconds": float,
    "parameters": float,
    "seconds_per_image": float,
    "params": object,
    "reason": object,
}
OF_METHOD = {  # column to metric
    "parameters": "parameters",
    "seconds_per_image": "cost/seconds",
    "operator_calls": "cost/operator_calls",
    "denoiser_calls": "cost/denoiser_calls",
    "fit_seconds": "fit/seconds",
    "search_seconds": "search/seconds",
    "late_gain": "search/late_gain",
    "validation": "val/psnr",
    "published": "published/psnr",
}
OF_TRIAL = {
    "value": "val/psnr",
    "estimate": "val/psnr_estimate",
    "seconds": "trial/seconds",
    "shared_seconds": "trial/shared_seconds",
    "parameters": "parameters",
    "seconds_per_image": "cost/seconds",
}
ARTIFACTS = (
    *(names.IMAGES, names.CURVES, names.SHIFTS, names.SETTINGS),
    *(names.PICTURES, names.MATRIX, names.LINEARISATION),
)


class Tables:
    """Gathers the tables of `TaskResults`, method by method."""

    def __init__(self) -> None:
        self.methods: list[dict[str, Any]] = []
        self.trials: list[dict[str, Any]] = []
        self.images: list[pd.DataFrame] = []
        self.curves: list[pd.DataFrame] = []
        self.shifts: list[pd.DataFrame] = []
        self.pictures: dict[tuple[str, str], dict[str, np.ndarray]] = {}
        self.operators: dict[tuple[str, str], np.ndarray] = {}
        self.linearisations: dict[tuple[str, str], Linearised] = {}

    def add(
        self,
        method: dict[str, Any],
        trials: Iterable[dict[str, Any]],
        files: Mapping[str, Path],
        damaged: Callable[[str], UserError],
    ) -> None:
        """Adds a method, its trials and its files.

        Args:
            method: a row of ``methods``.
            trials: rows of ``trials``, without study and method.
            files: those of `ARTIFACTS` that there are.
            damaged: what to raise where one cannot be read, from the reason in words.
        """
        key = method["study"], method["method"]
        labels = dict(zip(KEYS, key, strict=True))
        with _readable(damaged):
            if path := files.get(names.IMAGES):
                self.images.append(_table(path, IMAGES, labels))
            if path := files.get(names.CURVES):
                self.curves.append(_table(path, CURVES, labels))
            if path := files.get(names.SHIFTS):
                self.shifts.append(_table(path, SHIFTS, labels))
            if path := files.get(names.PICTURES):
                self.pictures[key] = _tensors(path)
            if path := files.get(names.MATRIX):
                self.operators[key] = _tensors(path)["P"]
            if path := files.get(names.LINEARISATION):
                self.linearisations[key] = _linearised(path)
        self.methods.append(method)
        self.trials += [{**labels, **row} for row in sorted(trials, key=lambda row: row["number"])]

    def results(self, task: str) -> TaskResults:
        """The tables, with all their columns even where they are empty."""
        methods = _frame(self.methods, METHODS)
        if methods["parameters"].notna().all():
            methods["parameters"] = methods["parameters"].astype(int)
        return TaskResults(
            task=task,
            methods=methods,
            images=_joined(self.images, IMAGES),
            curves=_joined(self.curves, CURVES),
            trials=_frame(self.trials, TRIALS),
            shifts=_joined(self.shifts, SHIFTS),
            pictures=self.pictures,
            operators=self.operators,
            linearisations=self.linearisations,
        )


class Facts(NamedTuple):
    """By which a method's run is chosen."""

    study: str
    replicate_of: str
    protocol: str


def selected(
    runs: Sequence[Run], facts: Callable[[Run], Facts], study: str | None, protocol: str | None
) -> list[Run]:
    """The runs of one study, then of its replicates, and of those the ones under a protocol.

    Args:
        runs: of methods.
        facts: of a run.
        study, protocol: None for all.

    Raises:
        UserError: no run of that study, or none of them under that protocol.
    """
    found = list(runs)
    if study is not None:
        found = [run for run in runs if facts(run).study == study]
        if not found:
            raise unknown("study", study, {facts(run).study for run in runs})
        others = (run for run in runs if facts(run).study != study)
        found += [run for run in others if facts(run).replicate_of == study]
    kept = [run for run in found if protocol in (None, facts(run).protocol)]
    if not kept:
        raise unknown("protocol", str(protocol), {facts(run).protocol for run in found})
    return kept


def method_figures(figures: Mapping[str, float]) -> dict[str, float]:
    """The columns of ``methods`` that are a run's metrics; NaN for what was not measured."""
    return {column: figures.get(metric, np.nan) for column, metric in OF_METHOD.items()}


def trial_row(record: RunRecord) -> dict[str, Any]:
    """A row of ``trials``, without study and method."""
    return {
        "number": record.number,
        "index": record.index,
        "state": record.state,
        **trial_figures(record.metrics),
        "params": record.params,
        "reason": record.reason or None,
    }


def trial_figures(figures: Mapping[str, float]) -> dict[str, float]:
    """The columns of ``trials`` that are a run's metrics; NaN for what was not measured."""
    return {column: figures.get(metric, np.nan) for column, metric in OF_TRIAL.items()}


def _frame(rows: list[dict[str, Any]], columns: dict[str, type]) -> pd.DataFrame:
    """A table with exactly `columns`; text stays what it is, with None where there is none."""
    series = {
        name: pd.Series([row[name] for row in rows], dtype=kind) for name, kind in columns.items()
    }
    return pd.DataFrame(series)


def _table(path: Path, columns: dict[str, type], labels: dict[str, str]) -> pd.DataFrame:
    """A Parquet file as the rows of one study and method; `pandas.read_parquet` takes longer."""
    from pyarrow.parquet import read_table

    table, arrays = read_table(path, use_threads=False), {}
    for name, kind in columns.items():
        if name in labels:
            arrays[name] = np.full(len(table), labels[name], dtype=object)
        elif name in table.column_names:
            arrays[name] = table[name].to_numpy().astype(kind, copy=False)
        elif name in names.QUALITY:  # not known, or of an older version
            arrays[name] = np.full(len(table), np.nan)
        else:
            raise ValueError(f"{path.name} lacks the column {name!r}")
    return pd.DataFrame(arrays)


def _joined(tables: list[pd.DataFrame], columns: dict[str, type]) -> pd.DataFrame:
    filled = [table for table in tables if len(table)]
    return pd.concat(filled, ignore_index=True) if filled else _frame([], columns)


def _tensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(path)


def _linearised(path: Path) -> Linearised:
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        facts = file.metadata() or {}
        held = {name: file.get_tensor(name) for name in file.keys()}
    return Linearised(
        singular=held["singular"],
        symmetric=held["symmetric"],
        product=held["product_real"] + 1j * held["product_imag"],
        matrix=held.get("J"),
        image=facts.get("image", ""),
        iteration=int(facts["iteration"]) if "iteration" in facts else None,
        derivative=facts.get("derivative", "exact"),
    )


@contextlib.contextmanager
def _readable(damaged: Callable[[str], UserError]) -> Iterator[None]:
    """Turns what a damaged file raises, of whatever kind, into one line."""
    try:
        yield
    except Exception as error:
        raise damaged((str(error).splitlines() or [""])[0]) from None
