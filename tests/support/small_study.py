"""Studies of a second: a working folder with pictures, a prior and an empty store of its own."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from skimage.io import imsave

PRIOR = """
import os, time
import torch

CALLS = []

def smooth(v, sigma):
    CALLS.append(len(v))
    time.sleep(float(os.environ.get("DEN_SLEEP", 0)))
    wrapped = torch.nn.functional.pad(v, [1] * 4, mode="circular")
    weight = sigma / (sigma + 0.1)
    return (1 - weight) * v + weight * torch.nn.functional.avg_pool2d(wrapped, 3, 1)

def numbers(v):
    return 3

three = 3
"""


def pictures(folder: Path) -> Path:
    """Twenty small smooth pictures: 14 train, 2 validate, 4 test."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for index in range(20):
        coarse = generator.random((4, 4))
        picture = np.kron(coarse, np.ones((4, 4)))
        imsave(folder / f"{index:02d}.png", (255 * picture).astype(np.uint8), check_contrast=False)
    return folder


def furnished(folder: Path, database: Path | None = None) -> Path:
    """A folder ready to work in; `database` is an empty store, whose copy saves its migrations."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "den.py").write_text(PRIOR)
    if database is not None:
        shutil.copy(database, folder / "mlflow.db")
    return folder


def options(images: Path) -> list[str]:
    """Options that make a study take a second."""
    settings = {
        "problem.prior": "den:smooth",
        "problem.dataset": f"folder:{images}",
        "problem.size": 16,
        "problem.iterations": 3,
        "budget.train_images": 8,
        "budget.epochs": 1,
        "budget.final_epochs": 1,
        "search.batch": 1,
    }
    sets = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    return ["--task", "sr", "--device", "cpu", *sets, "--replicates", "1"]
