"""Results made up from a model with known truth, small or of realistic size."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from dipa_bench.tracking.results import Linearised, TaskResults

QUALITY = {
    "identity": 0.0,
    "scalar": 0.6,
    "greedy": 1.2,
    "ldipa": 2.4,
    "lmmse": 1.5,
    "network": 3.0,
}
LEARNED = {"scalar", "greedy", "ldipa", "network"}


def phantom(rng: np.random.Generator, size: int) -> np.ndarray:
    """A smooth bright blob on a dark ground, size x size in [0, 1]."""
    y, x = np.mgrid[:size, :size] / size
    (cy, cx), r = rng.uniform(0.35, 0.65, 2), rng.uniform(0.1, 0.3)
    blob = np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * r**2))
    return np.clip(blob + 0.3 * (np.hypot(y - cy, x - cx) < r / 2), 0, 1)


def preconditioner(size: int) -> np.ndarray:
    """A circulant sharpening operator with ringing rows, size**2 x size**2."""
    y, x = np.divmod(np.arange(size * size), size)
    far = np.hypot(y[:, None] - y, x[:, None] - x)
    return np.exp(-far) * np.cos(1.5 * far)


def linearised(matrix: np.ndarray, nonlinear: bool = False, image: str = "") -> Linearised:
    """What a matrix does on an A that keeps every other pixel."""
    product = np.linalg.eigvals(matrix * (np.arange(len(matrix)) % 2 == 0))
    return Linearised(
        singular=np.linalg.svd(matrix, compute_uv=False),
        symmetric=np.linalg.eigvalsh((matrix + matrix.T) / 2)[::-1],
        product=np.array(sorted(product, key=lambda value: -value.real), dtype=complex),
        matrix=matrix if nonlinear else None,
        image=image,
        iteration=10,
        derivative="exact",
    )


def numbers_of(name: str, size: int) -> int:
    """How many parameters a method has."""
    return {"scalar": 1, "greedy": size**4, "ldipa": size**4, "network": 20 * size**2}.get(name, 0)


def build(
    size: int = 8,
    images: int = 6,
    subjects: int = 3,
    seeds: int = 2,
    iterations: int = 4,
    trials: int = 6,
    studies: tuple[str, ...] = ("study",),
    rename: Callable[[str], str] = lambda name: name,
) -> TaskResults:
    """Results of six finished methods and a diverged one; every name goes through `rename`."""
    rng = np.random.default_rng(0)
    methods, scores, curves, tried = [], [], [], []
    pictures, operators, linearisations = {}, {}, {}
    originals = [phantom(rng, size) for _ in range(2)]
    for study in map(rename, studies):
        hard = rng.normal(24, 1.5, subjects)[np.arange(images) % subjects] + rng.normal(
            0, 1, images
        )
        for name, gain in QUALITY.items():
            method = rename(name)
            key = {"study": study, "method": method}
            learned = name in LEARNED
            methods.append(
                key
                | {
                    "title": rename(f"{name} in words"),
                    "operator": "dense" if learned else name,
                    "rule": "distilled" if learned else "analytic",
                    "learned": learned,
                    "protocol": "tuned",
                    "preset": "quick",
                    "state": "finished",
                    "reason": None,
                    "parameters": numbers_of(name, size),
                    "trials": trials,
                    "seconds_per_image": 0.0123 * (1 + gain) ** 2,
                    "operator_calls": 2.0 * iterations,
                    "denoiser_calls": float(iterations),
                    "fit_seconds": 61.0 if learned else (4.0 if name == "lmmse" else 0.0),
                    "search_seconds": 900.0,
                    "late_gain": float("nan"),
                    "validation": float("nan"),
                    "contains": None,
                    "published": float("nan"),
                    "learns_from": "teacher" if learned else "nothing",
                    "start": "lmmse" if name == "lmmse" else "adjoint",
                    "params": {rename("solve.step"): 0.93, "prior": rename("dncnn")},
                    "run_id": "0" * 8,
                    "started": 1.75e9,
                    "replicate": 0,
                    "replicate_of": study,
                }
            )
            for seed in range(seeds):
                for image in range(images):
                    final = hard[image] + gain + rng.normal(0, 0.2)
                    row = key | {"seed": seed, "image": rename(f"image-{image}")}
                    scores.append(
                        row
                        | {
                            "subject": rename(f"subject-{image % subjects}"),
                            "psnr": final,
                            "ssim": 1 - 10 ** (-final / 35),
                        }
                    )
                    for k in range(iterations + 1):
                        done = 1 - np.exp(-(1 + gain) * k / 3)
                        curves.append(
                            row
                            | {
                                "iteration": k,
                                "psnr": final - 8 * (1 - done),
                                "residual": float(10 ** (0.5 - 2 * done + rng.normal(0, 0.05))),
                                "step_norm": float(1 - done),
                            }
                        )
            for number in range(trials):
                state = ("finished", "finished", "pruned", "finished", "diverged")[number % 5]
                tried.append(
                    key
                    | {
                        "number": number,
                        "index": number,
                        "state": state,
                        "value": np.nan if state == "diverged" else 24 + gain - rng.exponential(),
                        "estimate": np.nan,
                        "seconds": 30.0,
                        "shared_seconds": 0.0,
                        "parameters": numbers_of(name, size) * (1 + number % 4)
                        if name == "network"
                        else numbers_of(name, size),
                        "seconds_per_image": 0.01 * (1 + gain) ** 2 * rng.uniform(0.8, 1.2),
                        "params": {
                            rename("solve.step"): float(rng.uniform(0.1, 2)),
                            "solve.momentum": ("textbook", "none")[number % 2],
                            "operator.width": 2 ** (number % 4),
                        },
                        "reason": rename("left the finite numbers")
                        if state == "diverged"
                        else None,
                    }
                )
            pictures[study, method] = {}
            for index, original in enumerate(originals):
                image = rename(f"image-{index}")
                noisy = original + rng.normal(0, 0.12 / (1 + gain), original.shape)
                pictures[study, method] |= {
                    f"original/{image}": original,
                    f"measurement/{image}": original[::2, ::2],
                    f"reconstruction/{image}": np.clip(noisy, 0, 1),
                }
            matrix = preconditioner(size)
            if name == "network":
                bent = matrix + 0.2 * np.triu(rng.normal(0, 1 / size, matrix.shape))
                image = rename("validation-0")
                linearisations[study, method] = linearised(bent, nonlinear=True, image=image)
            elif learned and name != "scalar":
                operators[study, method] = matrix * (1 + gain / 10)
                linearisations[study, method] = linearised(operators[study, method])
        failed = methods[-1] | {
            "method": rename("broken"),
            "title": rename("a method that diverged"),
            "state": "diverged",
            "reason": rename("all trials left the finite numbers"),
            "trials": 0,
            "seconds_per_image": np.nan,
            "params": {},
        }
        methods.append(failed)
    return TaskResults(
        task="sr",
        methods=pd.DataFrame(methods),
        images=pd.DataFrame(scores),
        curves=pd.DataFrame(curves),
        trials=pd.DataFrame(tried),
        pictures=pictures,
        operators=operators,
        linearisations=linearisations,
    )


@pytest.fixture(scope="session")
def make_results() -> Callable[..., TaskResults]:
    """The factory `build`."""
    return build
