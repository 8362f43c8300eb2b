"""Seconds from a command to its answer, beside the help of Optuna and MLflow.

    python tests/benchmarks/startup.py [--turns 3]

The leaderboards are of a made results folder: `--rows` rows in studies of ten, 100 trials with
curves of 100 points each.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
import store_fixtures

from dipa_bench.tracking import records

IMAGES, TRIALS, POINTS = 50, 100, 100


def fill(root: Path, rows: int) -> None:
    """Writes studies of ten rows each."""
    series = {"val/psnr": [(step, 15.0 + step) for step in range(POINTS)]}
    for row in range(rows):
        study, method = f"study{row // 10}", f"method{row % 10}"
        folder = records.studies_root(root) / study / method
        records.write(folder, store_fixtures.method_record(study, method, row % 10))
        store_fixtures.write_files(folder, (0,), IMAGES)
        for number in range(TRIALS):
            values = store_fixtures.trial_values(number, "finished") | {"series": series}
            trial = store_fixtures.record("trial", method, number, study=study, **values)
            place = folder / f"trial-{number:04d}"
            place.mkdir()
            (place / records.RECORD).write_text(trial.model_dump_json())


def seconds(command: list[str], folder: Path, first_line: bool) -> float:
    """Until a command has ended, or printed its first line."""
    started = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if first_line:
        process.stdout.readline()
        taken = time.perf_counter() - started
        process.kill()
    else:
        process.communicate()
        taken = time.perf_counter() - started
        assert process.returncode == 0, command
    process.wait()
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=3, help="of which the median counts")
    parser.add_argument("--rows", type=int, default=100, help="of the large leaderboard")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        small, large = Path(scratch, "small"), Path(scratch, "large")
        fill(small / "mlruns", 2)
        fill(large / "mlruns", asked.rows)
        board = ["dipa-bench", "leaderboard", "--task", "sr"]
        commands = {
            "optuna --help": (["optuna", "--help"], small, False),
            "mlflow --help": (["mlflow", "--help"], small, False),
            "--help": (["dipa-bench", "--help"], small, False),
            "--version": (["dipa-bench", "--version"], small, False),
            "list": (["dipa-bench", "list"], small, False),
            "leaderboard, 2 rows": (board, small, False),
            f"leaderboard, {asked.rows} rows of {TRIALS} trials": (board, large, False),
            "study, its first line": (["dipa-bench", "study", "--task", "sr"], small, True),
            "diagnose": (["dipa-bench", "diagnose", "--task", "sr"], small, False),
            "doctor": (["dipa-bench", "doctor"], small, False),
        }
        for name, command in commands.items():
            seconds(*command)  # warms the file cache, and what `list` keeps
            taken = [seconds(*command) for _ in range(asked.turns)]
            print(f"{name:45} {statistics.median(taken):6.2f} s", flush=True)


if __name__ == "__main__":
    main()
