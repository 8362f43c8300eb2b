"""What a CUDA device brings, and whether it gives what the CPU gives; under 8 minutes.

    python tests/benchmarks/gpu.py [--device cuda] [--rows identity,hessian,ldipa] [--settings 48]

1. the tests marked `cuda`;
2. `study --task cs` on the device and on the CPU: the same settings and fits, PSNR side by side;
3. a search of solver settings with 8 of them in one batch, and one by one;
4. images per second against deepinv's own loop;
5. a study with two workers on the device, and with one.

With `--device cpu` the script itself is tried where there is no such device.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

HERE = Path(__file__).parent
SMALL = {"budget.train_images": 280, "budget.epochs": 1, "budget.final_epochs": 2}


def run(*arguments: object, cwd: Path = HERE.parents[1], **environment: str) -> str:
    """What a program prints; where it fails that is shown."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(HERE.parents[1])} | environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        print(
            f"failed: {' '.join(map(str, arguments))}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        )
    return done.stdout


def study(device: str, asked: argparse.Namespace, *more: str) -> tuple[dict[str, float], float]:
    """Test PSNR of each row of a study on `cs`, and the seconds that the command took."""
    sets = [part for key, value in SMALL.items() for part in ("--set", f"{key}={value}")]
    command = ["study", "--task", "cs", "--preset", "quick", "--device", device, *sets]
    command += ["--set", f"budget.settings={asked.settings}", "--set", "budget.fits=1"]
    command += ["--replicates", "1", "--methods", asked.rows, "--quiet", *more]
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        run("-m", "dipa_bench", *command, cwd=Path(folder))
        taken = time.perf_counter() - started
        board = ("-m", "dipa_bench", "leaderboard", "--task", "cs", "--format", "json")
        rows = json.loads(run(*board, cwd=Path(folder)) or "[]")
    return {row["method"]: row["psnr"] for row in rows}, taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rows", default="identity,hessian,ldipa")
    parser.add_argument("--settings", type=int, default=48, help="of each row")
    asked = parser.parse_args()
    card = "CPU"
    if asked.device != "cpu":
        card = torch.cuda.get_device_name(asked.device)
    print(f"{card}, torch {torch.__version__}, {os.cpu_count()} cores", flush=True)

    tests = run("-m", "pytest", "-q", "-n0", "-m", "cuda", "tests/test_cuda.py").splitlines()
    print(f"tests marked cuda: {tests[-1] if tests else 'none'}", flush=True)

    there, device_seconds = study(asked.device, asked)
    here, cpu_seconds = study("cpu", asked)
    print(f"study on cs: {device_seconds:.0f} s on the device, {cpu_seconds:.0f} s on the CPU")
    for row, psnr in there.items():
        other = here.get(row, float("nan"))
        print(f"  {row}: {psnr:.3f} and {other:.3f} dB, {psnr - other:+.3f}", flush=True)

    alone = argparse.Namespace(rows="identity", settings=asked.settings)
    for batch in (8, 1):
        psnr, taken = study(asked.device, alone, "--set", f"search.batch={batch}")
        found = psnr.get("identity", float("nan"))
        print(f"settings {batch} in a batch: {taken:.0f} s, {found:.3f} dB", flush=True)

    print(run(HERE / "tasks.py", "--prior", "dncnn-small", "--device", asked.device), flush=True)

    for workers in ("1", "2"):
        _, taken = study(asked.device, asked, "--workers", workers)
        print(f"{workers} workers on the device: {taken:.0f} s", flush=True)


if __name__ == "__main__":
    main()
