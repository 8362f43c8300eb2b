"""A hand-made study on disk, and SQLite stores that are copied instead of migrated anew."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file

from dipa_bench.tracking import records
from dipa_bench.tracking.location import sqlite_uri
from dipa_bench.tracking.records import RunRecord

TASK = "sr"
STATES = ("finished", "pruned", "diverged", "failed", "interrupted", "running", "finished")
WINNER = 6


@pytest.fixture(autouse=True)
def no_user_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps the tester's own MLflow settings out."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_HTTP_REQUEST_MAX_RETRIES"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def uri(tmp_path: Path, empty_database: Path) -> str:
    """The address of an empty store in ``tmp_path``."""
    path = tmp_path / "mlflow.db"
    shutil.copy(empty_database, path)
    return sqlite_uri(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A results folder that holds `write_study`'s study."""
    write_study(tmp_path / "mlruns")
    return tmp_path / "mlruns"


@pytest.fixture(scope="session")
def hand() -> SimpleNamespace:
    """What the hand-made study is made of."""
    return SimpleNamespace(
        record=record,
        write_study=write_study,
        method_record=method_record,
        trial_values=trial_values,
        tables=tables,
        pictures=pictures,
        linearised=linearised,
        task=TASK,
        states=STATES,
        winner=WINNER,
    )


def record(kind: str, method: str, number: int = 0, **values: object) -> RunRecord:
    """A record with enough in it to be told from the others."""
    fields: dict[str, object] = {
        "kind": kind,
        "study": "small",
        "task": TASK,
        "method": method,
        "number": number,
        "seed": 40 + number,
        "state": "finished",
        "preset": "quick",
        "title": f"The method {method}",
        "operator": "dense",
        "rule": "distilled",
        "learned": method == "dipa",
        "started": 1_700_000_000.25 + number,
        "finished": 1_700_000_010.5 + number,
        "environment": {"git": "0123abc", "torch": "2.9.0", "gpu": None},
        "data_digest": "d1g357",
    }
    return RunRecord(**{**fields, **values})


def write_study(
    root: Path, study: str = "small", methods: tuple[str, ...] = ("dipa", "none")
) -> Path:
    """Writes a study of a few methods; the first has trials of all states and two seeds."""
    home = records.studies_root(root) / study
    for index, method in enumerate(methods):
        folder = home / method
        records.write(folder, method_record(study, method, index))
        write_files(folder, seeds=(0, 1), images=3)
        if index == 0:
            write_children(folder, study, method)
    return home


def method_record(study: str, method: str, index: int = 0) -> RunRecord:
    """A finished method's record."""
    return record(
        "method",
        method,
        study=study,
        started=1_700_000_000.0 + 100 * index,
        params={"solve.start": "adjoint", "solve.step": 0.1 + index, "fit.epochs": 3},
        metrics={
            "parameters": 64.0,
            "cost/operator_calls": 40.0,
            "cost/denoiser_calls": 20.0,
            "cost/seconds": 0.125,
            "fit/seconds": 2.5,
            "search/seconds": 12.25,
            "search/late_gain": 0.125,
            "val/psnr": 28.25,
            "search/trials": 2.0,
            "test/psnr": 27.5 + index,
        },
        series={"loss": [(i, 1.0 / (i + 1)) for i in range(250)]},
        notes={
            "winner": WINNER,
            "gradient": "checkpoint",
            "contains": "none, other",
            "learns_from": "ground truth",
        },
    )


def write_children(folder: Path, study: str, method: str) -> None:
    """Writes a trial of each state and two seeds."""
    for number, state in enumerate(STATES):
        values = trial_values(number, state)
        trial = folder / f"trial-{number:04d}"
        records.write(trial, record("trial", method, number, study=study, state=state, **values))
        (trial / "traceback.txt").write_text("Traceback: none\n")
    for number in range(2):
        seed = record("seed", method, number, study=study, metrics={"test/psnr": 27.0 + number})
        records.write(folder / f"seed-{number}", seed)


def trial_values(number: int, state: str) -> dict[str, object]:
    """What a trial of a state has to say."""
    bad = state in {"failed", "diverged"}
    value = {"diverged": float("nan"), "interrupted": float("inf")}.get(state, 20.0 + number / 8)
    return {
        "reason": "step 9.9 is too long" if bad else None,
        "params": {
            "solve.start": "zero",
            "solve.step": 0.1 * number,
            "solve.restart": number % 2 == 0,
            "fit.width": 2**number,
            "fit.word": "3",
            "fit.empty": "",
            "fit.absent": None,
        },
        "metrics": {"trial/seconds": 1.5}
        | ({} if state == "failed" else {"val/psnr": value})
        | ({"parameters": 9.0 + number, "cost/seconds": 0.25} if state == "finished" else {}),
        "series": {"val/psnr": [(i, 15.0 + i) for i in range(5)]},
    }


def write_files(folder: Path, seeds: tuple[int, ...], images: int) -> None:
    """Writes the files that lie beside a method's record."""
    tables(seeds, images)["images"].to_parquet(folder / "images.parquet")
    tables(seeds, images)["curves"].to_parquet(folder / "curves.parquet")
    save_file(pictures(images), folder / "pictures.safetensors")
    save_file({"P": np.eye(4, dtype=np.float32)}, folder / "matrix.safetensors")
    facts = {"image": "v0/1", "iteration": "10", "derivative": "finite differences"}
    save_file(linearised(), folder / "linearisation.safetensors", metadata=facts)


def linearised() -> dict[str, np.ndarray]:
    """Spectra and a Jacobian with known values."""
    values = np.arange(4, dtype=np.float32)
    return {
        "J": np.diag(values),
        "singular": values[::-1].copy(),
        "symmetric": values[::-1] - 1,
        "product_real": values / 2,
        "product_imag": -values,
    }


def tables(seeds: tuple[int, ...], images: int) -> dict[str, pd.DataFrame]:
    """Per-image figures and curves with known values."""
    rows = [(seed, image) for seed in seeds for image in range(images)]
    steps = [(seed, image, k) for seed, image in rows for k in range(4)]
    return {
        "images": pd.DataFrame(
            {
                "seed": [seed for seed, _ in rows],
                "image": [f"s{image}/1" for _, image in rows],
                "subject": [f"s{image}" for _, image in rows],
                "psnr": [25.0 + seed + image / 7 for seed, image in rows],
                "ssim": [0.5 + image / 10 for _, image in rows],
            }
        ),
        "curves": pd.DataFrame(
            {
                "seed": [seed for seed, _, _ in steps],
                "image": [f"s{image}/1" for _, image, _ in steps],
                "iteration": [k for _, _, k in steps],
                "psnr": [20.0 + k / 3 for _, _, k in steps],
                "residual": [1.0 / (k + 1) for _, _, k in steps],
                "step_norm": [0.1 * k for _, _, k in steps],
            }
        ),
    }


def pictures(images: int) -> dict[str, np.ndarray]:
    """Small pictures with known values."""
    kinds = ("original", "measurement", "reconstruction")
    return {
        f"{kind}/{image}": np.full((4, 4), index / 4 + image / 100, dtype=np.float32)
        for index, kind in enumerate(kinds)
        for image in range(images)
    }
