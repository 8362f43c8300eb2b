"""dipa-bench: fair benchmarks of preconditioners for plug-and-play image reconstruction."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from dipa_bench.search.restore import LearnedRun

try:
    __version__ = version("dipa-bench")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"


def load(run: str | Path, root: str | Path = "mlruns", device: str = "auto") -> LearnedRun:
    """A run's operator, task and solver, ready to reconstruct with.

    Args:
        run: a run folder, ``study/method[/seed-0]`` below `root`, or an MLflow run id.
        root: the results folder.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:<i>``.

    Raises:
        UserError: no such run, or none that left an operator (see `dipa_bench.search.restore`).
    """
    from dipa_bench.search import restore  # torch and more: only when it is wanted

    return restore.load(run, root, device)
