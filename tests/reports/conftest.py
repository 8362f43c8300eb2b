"""A small table of results with round numbers."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import pytest

from dipa_bench.tracking.results import TaskResults

METHOD = {
    "study": "s1",
    "title": "a title",
    "operator": "identity",
    "rule": "analytic",
    "learned": False,
    "protocol": "tuned",
    "preset": "quick",
    "state": "finished",
    "reason": None,
    "parameters": 0,
    "trials": 40,
    "seconds_per_image": 0.5,
    "operator_calls": 20.0,
    "denoiser_calls": 10.0,
    "fit_seconds": 0.0,
    "search_seconds": 100.0,
    "late_gain": float("nan"),
    "validation": float("nan"),
    "contains": None,
    "published": 19.5,
    "start": "adjoint",
    "learns_from": "nothing",
    "params": {"step": 1.0},
    "run_id": "1",
    "started": 1.0,
    "replicate": 0,
    "setting": "faces 32 x 32",
}


def assemble(*methods: dict, psnr: dict) -> TaskResults:
    """Results of methods (changes of `METHOD`), with test PSNRs by method, or study and method."""
    rows = [METHOD | method for method in methods]
    rows = [{"replicate_of": row["study"].partition("-replicate")[0]} | row for row in rows]
    images = [
        {
            "study": row["study"],
            "method": row["method"],
            "seed": 0,
            "image": f"i{index}",
            "subject": f"p{index}",
            "psnr": value,
            "ssim": value / 100,
        }
        for row in rows
        for index, value in enumerate(
            psnr.get((row["study"], row["method"]), psnr.get(row["method"], []))
        )
    ]
    return TaskResults(
        "sr", pd.DataFrame(rows), pd.DataFrame(images), pd.DataFrame(), pd.DataFrame()
    )


@pytest.fixture
def results() -> TaskResults:
    """Identity, Barzilai-Borwein and two learned methods, a diverged one and a skipped one."""
    learned = {"learned": True, "rule": "distilled", "operator": "dense"}
    return assemble(
        {"method": "identity"},
        {"method": "bb", "fit_seconds": 2.0},
        {"method": "scalar"} | learned | {"fit_seconds": 5.0},
        {"method": "ldipa"} | learned | {"fit_seconds": 50.0, "parameters": 256},
        {"method": "wild", "state": "diverged", "reason": "all trials diverged"},
        {"method": "absent", "state": "skipped", "reason": "needs CUDA"},
        psnr={
            "identity": [20.0, 22.0, 24.0],
            "bb": [21.0, 23.5, 25.0],
            "scalar": [21.0, 23.0, 25.0],
            "ldipa": [23.0, 25.0, 28.0],
            "wild": [90.0, 90.0, 90.0],
        },
    )


@pytest.fixture
def make_results() -> Callable[..., TaskResults]:
    """The factory `assemble`."""
    return assemble
