"""A study's wall time and peak memory, and the share that bookkeeping takes of it.

Usage: python tests/benchmarks/study.py [further options of `dipa-bench study`]

Runs `dipa-bench study --task sr` in an empty folder with timers around everything that talks to
Optuna, MLflow or the records on disk.
"""

from __future__ import annotations

import functools
import os
import resource
import sys
import tempfile
import time
from collections import Counter
from typing import Any

import optuna

from dipa_bench.search import journal
from dipa_bench.tracking import folders, records, store

spent: Counter[str] = Counter()
_inside: list[str] = []


def timed(owner: Any, name: str, label: str) -> None:
    """Replaces `owner.name` by one whose time is added up; nested calls count once."""
    original = getattr(owner, name)

    @functools.wraps(original)
    def wrapper(*arguments: Any, **options: Any) -> Any:
        if _inside:
            return original(*arguments, **options)
        _inside.append(label)
        started = time.perf_counter()
        try:
            return original(*arguments, **options)
        finally:
            spent[label] += time.perf_counter() - started
            _inside.pop()

    setattr(owner, name, wrapper)


def main() -> None:
    timed(records, "write", "records")
    timed(journal, "open_study", "optuna")
    timed(journal, "tell", "optuna")
    timed(optuna.Study, "ask", "optuna")
    timed(optuna.Trial, "report", "optuna")
    timed(optuna.Trial, "should_prune", "optuna")
    timed(store.Store, "__init__", "mlflow")
    timed(store.Store, "send_method", "mlflow")
    timed(folders, "study_results", "leaderboard")
    sys.argv = ["dipa-bench", "study", "--task", "sr", *sys.argv[1:]]
    from dipa_bench.cli.main import app

    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        started = time.perf_counter()
        app(standalone_mode=False)
        wall = time.perf_counter() - started
        os.chdir("/")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"\nwall {wall:.1f} s, peak memory {peak:.2f} GiB")
    for label, seconds in spent.most_common():
        print(f"{label:12s} {seconds:7.2f} s  {100 * seconds / wall:5.2f}%")
    bookkeeping = sum(seconds for label, seconds in spent.items() if label != "leaderboard")
    print(f"Optuna, MLflow and records together: {100 * bookkeeping / wall:.2f}% of the wall time")


if __name__ == "__main__":
    main()
