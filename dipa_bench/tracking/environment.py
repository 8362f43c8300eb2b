"""Where a run happened: versions, device, threads, state of the source tree."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from dipa_bench import __version__, devices

PACKAGES = ("torch", "deepinv", "optuna", "mlflow", "numpy", "scikit-image")


def describe(device: torch.device) -> dict[str, str | int | bool | None]:
    """Facts about this process that a run's numbers may depend on."""
    return {
        "dipa-bench": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": devices.describe(device),
        "threads": torch.get_num_threads(),
        **{name: installed(name) for name in PACKAGES},
        **git_state(Path(__file__).resolve().parent),
    }


@cache
def installed(name: str) -> str | None:
    """The version of an installed distribution."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def git_state(folder: Path) -> dict[str, str | bool | None]:
    """Commit and cleanliness of the source tree that `folder` lies in; nothing for an install."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *arguments],
                capture_output=True,
                text=True,
                timeout=10,
                check=True,
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    if "site-packages" in folder.parts or (commit := git("rev-parse", "HEAD")) is None:
        return {}
    return {"git_commit": commit, "git_dirty": bool(git("status", "--porcelain"))}
