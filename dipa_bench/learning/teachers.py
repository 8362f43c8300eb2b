"""Teachers: tuned once, run once, kept on disk, shared by every trial."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from dipa_bench import digests
from dipa_bench.data.images import ImageSet
from dipa_bench.files import write_whole
from dipa_bench.learning.checkpoint import made_once
from dipa_bench.metrics import psnr
from dipa_bench.preconditioners import Identity
from dipa_bench.solvers import SolveParameters, Solver, build_solver
from dipa_bench.tasks.base import Task

log = logging.getLogger(__name__)

STEPS = (0.1, 0.3, 0.6, 1.0, 1.25)  # relative to 1/lambda_max of the teacher
STRENGTHS = 6  # points of the logarithmic grid over the prior's range
TUNING_IMAGES = 8
BATCH = 64

Result = TypeVar("Result")


@dataclass(frozen=True)
class Targets:
    """What a teacher hands to its student.

    Attributes:
        estimates: reconstructions x_t, N x C x H x W.
        gradients: A_t^T (A_t x_t - y_t) at them.
        step: the teacher's absolute step alpha_t.
        path: gradients at the extrapolated points z_k, k = 0 ... K - 1, N x K x C x H x W, where
            they were asked for.
    """

    estimates: Tensor
    gradients: Tensor
    step: float
    path: Tensor | None = None


class TeacherCache:
    """Teacher settings and reconstructions, computed on first use and kept in a folder.

    A key is a digest of every value a result depends on, so a stale entry is never read; a damaged
    one is computed again.

    Processes that want the same entry at the same time wait for the one that computes it.

    Args:
        folder: where they are kept.

    Attributes:
        saved: seconds that reading instead of computing has saved so far; they are part of what a
            fit costs, whoever paid them first.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.saved = 0.0

    def tuned(self, task: Task, label: float) -> SolveParameters:
        """The teacher's best step and prior strength on a few training images.

        One grid, run as one batch, momentum ``textbook``, start ``adjoint``; the same for every
        trial, so that all share the reconstructions.
        """
        images = task.images.train.first(TUNING_IMAGES)
        strength = task.prior.strength
        strengths = torch.logspace(
            *torch.tensor([strength.low, strength.high], dtype=torch.float64).log10(), STRENGTHS
        )
        key = self._key(
            task, label, images, ["tuned", STEPS, [f"{value:.6g}" for value in strengths.tolist()]]
        )
        path = self.folder / f"settings-{key}.json"

        def make() -> tuple[SolveParameters, float]:
            started = time.perf_counter()
            found = _tune(task, label, images, strengths)
            entry = {"settings": found.model_dump(mode="json"), "seconds": _since(started)}
            write_whole(path, lambda name: name.write_text(json.dumps(entry)))
            return found, entry["seconds"]

        return self._once(path, lambda: _read_settings(path), make)

    def settings(self, task: Task, label: float, units: str) -> SolveParameters:
        """What the teacher of a student runs with.

        Args:
            task: the task.
            label: of the teacher.
            units: of the student's steps: published settings where they are ``absolute``.
        """
        return self.published(task) if units == "absolute" else self.tuned(task, label)

    def published(self, task: Task) -> SolveParameters:
        """The paper's settings of a teacher: its own absolute step, all else as the student's."""
        values = task.published_solve() | {"solve.step": task.spec.published.teacher}
        return SolveParameters(
            **{name.removeprefix("solve."): value for name, value in values.items()}
        )

    def step(self, task: Task, label: float, settings: SolveParameters) -> float:
        """The teacher's absolute step alpha_t."""
        return float(_solver(task, label, settings).step_size)

    def targets(
        self,
        task: Task,
        label: float,
        images: ImageSet,
        settings: SolveParameters,
        *,
        path: bool = False,
    ) -> Targets:
        """The teacher's reconstructions of `images` from its own simulated measurements.

        Args:
            task: the task.
            label: of the teacher.
            images: training images.
            settings: of the teacher's solver.
            path: whether the gradients of all iterations are wanted, beside the final one.
        """
        solver = _solver(task, label, settings)
        values = ["path" if path else "targets", settings.model_dump(mode="json")]
        place = self.folder / f"targets-{self._key(task, label, images, values)}.safetensors"
        shapes = {name: (len(images), *task.shape) for name in ("estimates", "gradients")}
        if path:
            shapes["path"] = (len(images), task.iterations, *task.shape)

        def make() -> tuple[dict[str, Tensor], float]:
            started = time.perf_counter()
            found = _reconstruct(task, label, images, solver, path)
            entry = {"seconds": str(_since(started))}
            write_whole(place, lambda name: save_file(found, name, metadata=entry))
            return found, float(entry["seconds"])

        found = self._once(place, lambda: _read_targets(place, shapes), make)
        on_device = {name: part.to(task.device) for name, part in found.items()}
        return Targets(step=self.step(task, label, settings), **on_device)

    def _once(
        self,
        path: Path,
        read: Callable[[], tuple[Result, float] | None],
        make: Callable[[], tuple[Result, float]],
    ) -> Result:
        """An entry, read or made; counts the seconds that this process did not spend on it."""
        started, kept = time.perf_counter(), read()
        if kept is not None:
            self.saved += kept[1]
            return kept[0]
        found, seconds = made_once(path, read, make)
        self.saved += max(0.0, seconds - _since(started))  # had another process made it meanwhile
        return found

    def _key(self, task: Task, label: float, images: ImageSet, values: list) -> str:
        algorithm = [task.solver, task.iterations, label, task.norm_squared(label)]
        return digests.of(task.digest, algorithm, images.digest, values)


def _solver(task: Task, label: float, settings: SolveParameters) -> Solver:
    return build_solver(
        task.solver,
        task.prior,
        settings,
        iterations=task.iterations,
        largest=task.norm_squared(label),
    )


@torch.no_grad()
def _tune(task: Task, label: float, images: ImageSet, strengths: Tensor) -> SolveParameters:
    """The pair of step and strength with the best mean PSNR, every pair in one batch."""
    count = len(images)
    pairs = [(step, strength) for step in STEPS for strength in strengths.tolist()]
    solver = _solver(task, label, SolveParameters(strength=task.prior.strength.default))
    steps, levels = (
        torch.tensor(column, device=task.device, dtype=task.dtype)
        .repeat_interleave(count)
        .view(-1, 1, 1, 1)
        for column in zip(*pairs, strict=True)
    )
    solver.step_size, solver.strength = steps * solver.step_size, levels
    measured = task.measure(images, label)
    repeated = measured.repeat(len(pairs), *[1] * (measured.dim() - 1))
    estimate = solver.run(repeated, task.teacher(label), Identity()).estimate
    quality = psnr(estimate, task.pixels(images).repeat(len(pairs), 1, 1, 1))
    means = quality.view(len(pairs), count).mean(1).nan_to_num(nan=-torch.inf)
    step, strength = pairs[int(means.argmax())]
    log.info("teacher %g tuned: step %g, strength %.3g", label, step, strength)
    return SolveParameters(step=step, strength=strength)


@torch.no_grad()
def _reconstruct(
    task: Task, label: float, images: ImageSet, solver: Solver, path: bool
) -> dict[str, Tensor]:
    physics, plain = task.teacher(label), Identity()
    parts: dict[str, list[Tensor]] = {"estimates": [], "gradients": []}
    if path:
        parts["path"] = []
    for measured in task.measure(images, label).split(BATCH):
        state, way = solver.start(measured, physics, plain), []
        for _ in range(solver.iterations):
            state = solver.with_gradient(state)
            if path:
                way.append(state.gradient.cpu())
            state = solver.advance(state, plain)
        estimate = state.iterate
        parts["estimates"].append(estimate.cpu())
        parts["gradients"].append(physics.A_adjoint(physics.A(estimate) - measured).cpu())
        if path:
            parts["path"].append(torch.stack(way, dim=1))
    return {name: torch.cat(part).contiguous() for name, part in parts.items()}


def _since(started: float) -> float:
    return time.perf_counter() - started


def _read_settings(path: Path) -> tuple[SolveParameters, float] | None:
    """Settings and the seconds it took to find them."""
    try:
        entry = json.loads(path.read_text())
        return SolveParameters(**entry["settings"]), float(entry["seconds"])
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError):
        log.warning("cached teacher settings %s are damaged; computed again", path)
        return None


def _read_targets(
    path: Path, shapes: dict[str, tuple[int, ...]]
) -> tuple[dict[str, Tensor], float] | None:
    """Tensors of an entry and the seconds it took to compute them."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as entry:
            found = {name: entry.get_tensor(name) for name in shapes}
            seconds = float(entry.metadata()["seconds"])
        if all(found[name].shape == shape for name, shape in shapes.items()):
            return found, seconds
    except Exception:  # safetensors raises its own kinds, KeyError for a missing tensor
        pass
    log.warning("cached teacher reconstructions %s are damaged; computed again", path)
    return None
