"""What a preconditioner can do on a task, before any is tried."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dipa_bench import registry
from dipa_bench.errors import UserError
from dipa_bench.evaluation.denoiser_bound import DenoiserBound, denoiser_bound
from dipa_bench.evaluation.evaluate import evaluate
from dipa_bench.methods import AffineMap, Budget, FitContext, NoParameters, Teachers
from dipa_bench.metrics import psnr
from dipa_bench.preconditioners import Identity
from dipa_bench.solvers import build_solver
from dipa_bench.tasks.base import Task
from dipa_bench.tasks.spectrum import dense_spectrum


@dataclass(frozen=True)
class Spectrum:
    """An operator in figures.

    Attributes:
        name: ``student`` or e.g. ``teacher factor 2``.
        measurements, pixels: m and n.
        largest: lambda_max(A^T A).
        smallest: the smallest eigenvalue on the range; None where the operator is too large.
        rank: number of eigenvalues that count; None likewise.
        null_energy: share of the images' energy in the null space; None likewise.
        null_detail: the same after the mean training image was taken off: what is left to predict.
    """

    name: str
    measurements: int
    pixels: int
    largest: float
    smallest: float | None = None
    rank: int | None = None
    null_energy: float | None = None
    null_detail: float | None = None

    @property
    def condition(self) -> float | None:
        """Condition number of A^T A on its range."""
        return None if self.smallest is None else self.largest / self.smallest


@dataclass(frozen=True)
class Diagnosis:
    """What there is to know of a task.

    Attributes:
        spectra: of the student and the teachers.
        references: name to PSNR on the validation images (dB).
        images: how many of those there are.
        denoiser: how bounded the prior is.
    """

    spectra: list[Spectrum]
    references: dict[str, float]
    images: int
    denoiser: DenoiserBound

    def sentence(self) -> str:
        """What follows for a preconditioner, in one or two sentences."""
        student = self.spectra[0]
        if student.condition is None:
            return "The operator is too large for a full spectrum here; use a smaller size."
        if student.condition < 2:
            speed = "so inverting it there gains next to nothing over a tuned step"
        else:
            speed = "so a preconditioner can also gain speed there"
        return (
            f"On its range the student has condition number {student.condition:.3g}, {speed}. "
            f"{100 * student.null_detail:.0f}% of what the images add to their mean lies in its "
            "null space: only a prior, a start or a learned P can put it back."
        )


@torch.no_grad()
def diagnose(task: Task, teachers: Teachers, lmmse: Callable[[Task], AffineMap]) -> Diagnosis:
    """Conditioning, null space, reference PSNRs and the prior's bound.

    Args:
        task: the task.
        teachers: cache of tuned teacher settings.
        lmmse: gives the affine LMMSE map of the training images.
    """
    spectra = [_spectrum("student", task, None)]
    axis = task.operators.axis
    spectra += [_spectrum(f"teacher {axis} {label:g}", task, label) for label in task.labels]
    images = task.images.validation
    truth, measured = task.pixels(images), task.measure(images)
    references = _controls(task, teachers, lmmse)
    try:
        references["LMMSE map"] = _mean_psnr(lmmse(task)(measured), truth)
    except UserError:
        pass  # complex or too many measurements: no such reference
    for label in task.labels:
        settings = teachers.tuned(task, label)
        solver = build_solver(
            task.solver,
            task.prior,
            settings,
            iterations=task.iterations,
            largest=task.norm_squared(label),
        )
        run = solver.run(task.measure(images, label), task.teacher(label), Identity())
        references[f"teacher {axis} {label:g}, tuned"] = _mean_psnr(run.estimate, truth)
    return Diagnosis(spectra, references, len(images), denoiser_bound(task))


def _mean_psnr(estimate: Tensor, truth: Tensor) -> float:
    return psnr(estimate, truth).mean().item()


def _controls(
    task: Task, teachers: Teachers, lmmse: Callable[[Task], AffineMap]
) -> dict[str, float]:
    """Mean validation PSNR of every registered method without parameters that applies."""
    context = FitContext(seed=0, budget=Budget(), teachers=teachers, lmmse=lmmse)
    found = {}
    for method in registry.describe("methods"):
        if isinstance(method, registry.Broken):
            continue
        name = method.name
        if method.parameters is NoParameters and method.unsuitable(task) is None:
            reconstructor = method.fit(task, NoParameters(), context)
            images = task.images.validation
            found[name] = evaluate(reconstructor, task, images).psnr.mean().item()
    return found


def _spectrum(name: str, task: Task, label: float | None) -> Spectrum:
    physics = task.physics(label)
    images = task.pixels(task.images.train)
    pixels, rows = images[0].numel(), physics.A(images[:1])[0].numel()
    found = dense_spectrum(physics, task.shape, images)
    if found is None:
        return Spectrum(name, rows, pixels, task.norm_squared(label))
    eigenvalues, basis = found

    def outside(vectors: Tensor) -> float:
        inside, whole = (vectors @ basis.T).square().sum(), vectors.square().sum()
        return (1 - inside / whole).clamp(0, 1).item() if whole else 0.0

    flat = images.flatten(1).double()
    return Spectrum(
        name,
        rows,
        pixels,
        eigenvalues[-1].item(),
        eigenvalues[0].item(),
        len(eigenvalues),
        outside(flat),
        outside(flat - flat.mean(0)),
    )
