"""Kills a study at random, again and again; nothing may be lost or counted twice.

    python tests/soak/kills.py --kills 20 --workers 3

Each kill takes some 10 s on 2 cores. Exit code 0: every trial index ended exactly once, and
records, journal and MLflow agree.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import optuna
from random_kills import METHODS, Victim, check
from small_study import furnished, options, pictures


def main() -> None:
    """Runs the soak."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0, help="of what is killed when")
    given = parser.parse_args()
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    with tempfile.TemporaryDirectory(prefix="dipa-kills-") as scratch:
        work = furnished(Path(scratch) / "work")
        trials, place = given.kills + 4, work / "mlruns" / "studies" / "killed"
        study = [*options(pictures(Path(scratch) / "images"))]
        study += ["--methods", ",".join(METHODS), "--trials", str(trials), "--name", "killed"]
        study += ["--set", "search.race=false"]
        if given.workers > 1:
            study += ["--workers", str(given.workers)]
        victim = Victim(study, place, given.seed)
        try:
            for number in range(given.kills):
                if not victim.kill_one(given.workers > 1):
                    sys.exit(f"the study ended after {number} kills")
                print(f"kill {number + 1}: {victim.kills}", flush=True)
        finally:
            victim.end()
        command = [sys.executable, "-m", "dipa_bench", "study", *study]
        subprocess.run(command, cwd=work, check=True, stdout=subprocess.DEVNULL)
        interrupted = check(place, trials)
    print(f"{given.kills} kills {victim.kills}, {interrupted} interrupted trials, nothing lost")


if __name__ == "__main__":
    main()
