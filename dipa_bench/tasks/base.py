"""Tasks: what is reconstructed, with which operators, from which images."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from deepinv.physics import MRI, LinearPhysics, MultiCoilMRI
from torch import Tensor

from dipa_bench import digests
from dipa_bench.data.complex import real_images
from dipa_bench.data.images import ImageSet, Splits
from dipa_bench.errors import unknown
from dipa_bench.parameters import Parameters, Search, Setting, Value
from dipa_bench.priors.base import Prior
from dipa_bench.tasks.spectrum import largest_eigenvalue, onto_range

DENSE_UP_TO = 4096  # numbers in an image: three matrices of that side in float64, 400 MB


@dataclass(frozen=True)
class Geometry:
    """What operators are built for.

    Attributes:
        shape: (C, H, W) of the images; C = 2 is complex.
        device, dtype: of the operators.
        seed: of whatever is drawn once for a study, e.g. sampling masks.
    """

    shape: tuple[int, int, int]
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    seed: int = 0


@dataclass(frozen=True)
class TeacherSpec:
    """A simulated, better-conditioned operator, used only in training.

    Attributes:
        label: its value on the task's teacher axis (a factor, a ratio, an acceleration).
        build: makes the physics on the task's device.
    """

    label: float
    build: Callable[[], LinearPhysics]


@dataclass(frozen=True)
class Operators:
    """The operators of a task.

    Attributes:
        student: the operator that can be built.
        teachers: those worth searching, worst conditioned first.
        axis: what a teacher's label is, e.g. ``factor``.
        other: makes the teacher of any further label; a `UserError` says which labels there are.
        facts: about the student, for the record: its mask, how much it really measures.
        identity: what tells operators apart that options, shape and seed do not (a user's source).
    """

    student: LinearPhysics
    teachers: tuple[TeacherSpec, ...]
    axis: str
    other: Callable[[float], TeacherSpec] | None = None
    facts: Mapping[str, Value] = field(default_factory=dict)
    identity: str = ""


@dataclass(frozen=True)
class PublishedSettings:
    """The paper's absolute steps for student and teacher, and its optimiser (weight decay 1e-2)."""

    student: float = 0.4
    teacher: float = 0.7
    optimizer: str = "adam"


@dataclass(frozen=True)
class TaskSpec:
    """A registered task.

    Attributes:
        name, title, summary: for `dipa-bench list`.
        options: its own options (pydantic model) beside those that every problem has.
        operators: makes the operators from options and geometry.
        dataset: the dataset used unless a study names another.
        published: the paper's steps.
        prepare: makes the images those of the task (complex where it measures complex ones).
    """

    name: str
    title: str
    summary: str
    options: type[Parameters]
    operators: Callable[[Any, Geometry], Operators]
    dataset: str
    published: PublishedSettings = PublishedSettings()
    prepare: Callable[[Splits, Any], Splits] = real_images


@dataclass(frozen=True)
class Task:
    """A task made concrete: operators, images, prior and algorithm, ready to run.

    Attributes:
        spec: the registered record.
        options: the task's own options.
        operators: student and teachers.
        images: the splits; at rest on the CPU.
        prior: the denoiser, on `device`.
        solver: ``pnp-fista`` or ``red-fista``.
        iterations: K.
        noise: standard deviation of the measurements' Gaussian noise, images being in [0, 1].
        test_noise: the same when the test images are measured; None for `noise`.
        seed: of the noise.
        device, dtype: where and in what arithmetic runs take place.
        caveat: what a reader of results on these images has to know.
    """

    spec: TaskSpec
    options: Parameters
    operators: Operators
    images: Splits
    prior: Prior
    solver: str = "pnp-fista"
    iterations: int = 10
    noise: float = 0.0
    test_noise: float | None = None
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    caveat: str = ""
    _largest: dict[float | None, float] = field(default_factory=dict, init=False, repr=False)
    _teachers: dict[float, LinearPhysics] = field(default_factory=dict, init=False, repr=False)

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def notes(self) -> dict[str, Value]:
        """What a record says of the task itself: facts about the operators, and the caveat."""
        return dict(self.operators.facts) | ({"caveat": self.caveat} if self.caveat else {})

    @property
    def student(self) -> LinearPhysics:
        """The operator that reconstructions have to live with."""
        return self.operators.student

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images."""
        return self.images.shape

    @property
    def labels(self) -> tuple[float, ...]:
        """The teachers' labels."""
        return tuple(teacher.label for teacher in self.operators.teachers)

    def teacher_spec(self, label: float) -> TeacherSpec:
        """The teacher with that label, not yet made.

        Raises:
            UserError: there is none.
        """
        for found in self.operators.teachers:
            if found.label == label:
                return found
        if self.operators.other is None:
            raise unknown(f"teacher {self.operators.axis}", str(label), map(str, self.labels))
        return self.operators.other(label)

    def teacher(self, label: float) -> LinearPhysics:
        """The teacher with that label, made on first use.

        Raises:
            UserError: there is none.
        """
        if label not in self._teachers:
            self._teachers[label] = self.teacher_spec(label).build()
        return self._teachers[label]

    def physics(self, label: float | None) -> LinearPhysics:
        """The teacher with that label, or the student for None."""
        return self.student if label is None else self.teacher(label)

    def norm_squared(self, label: float | None = None) -> float:
        """lambda_max(A^T A) of the student (None) or of a teacher."""
        if label not in self._largest:
            self._largest[label] = largest_eigenvalue(
                self.physics(label), self.shape, self.device, self.dtype
            )
        return self._largest[label]

    @cached_property
    def onto_range(self) -> Callable[[Tensor], Tensor] | None:
        """The orthogonal projection onto what the student measures; None where it is not known."""
        like = torch.empty(0, device=self.device, dtype=self.dtype)
        return onto_range(self.student, self.shape, like, self.norm_squared())

    @cached_property
    def tested(self) -> Task:
        """The task as the test images see it: with their own level of noise."""
        if self.test_noise in (None, self.noise):
            return self
        return replace(self, noise=self.test_noise, test_noise=None)

    def remade(self, options: Parameters | None = None, images: Splits | None = None) -> Task:
        """The task with other options, or for images of another shape: its operators made anew.

        Raises:
            UserError: options and shape do not go together.
        """
        options, images = options or self.options, images or self.images
        geometry = Geometry(images.shape, self.device, self.dtype, self.seed)
        operators = self.spec.operators(options, geometry)
        return replace(self, options=options, images=images, operators=operators)

    def pixels(self, images: ImageSet) -> Tensor:
        """The images on the task's device and in its dtype, N x C x H x W."""
        return images.pixels.to(self.device, self.dtype)

    def measure(self, images: ImageSet, label: float | None = None) -> Tensor:
        """y = A x + w, the same for an image whichever others stand beside it.

        Args:
            images: N images.
            label: of the teacher; None for the student.
        """
        with torch.no_grad():
            physics = self.physics(label)
            clean = physics.A(self.pixels(images))
        if not self.noise:
            return clean
        noise = torch.empty_like(clean, device="cpu")
        for row, name in zip(noise, images.names, strict=True):
            generator = torch.Generator().manual_seed(digests.seed(self.seed, name, label))
            row.copy_(torch.randn(row.shape, generator=generator, dtype=row.dtype))
        return clean + self.noise * where_measured(physics, noise.to(self.device))

    def label_or_default(self, label: float | None) -> float:
        """A teacher's label; where none is given, the one that is used untuned."""
        return self.setting("teacher").default if label is None else label

    def setting(self, name: str) -> Setting:
        """Ranges that depend on the task.

        They are the ``strength`` of its prior, its ``teacher`` labels, and the kinds of
        ``covariance`` that images of its size can have.
        """
        if name == "strength":
            return self.prior.strength.setting()
        if name == "teacher":
            middle = self.labels[len(self.labels) // 2]
            return Setting(middle, Search(choices=self.labels))
        if name == "covariance":
            dense = ("dense",) if math.prod(self.shape) <= DENSE_UP_TO else ()
            return Setting("stationary", Search(choices=(*dense, "stationary", "kronecker")))
        raise KeyError(name)

    def published_solve(self) -> dict[str, Value]:
        """The paper's solver settings, with absolute steps."""
        return {
            "solve.units": "absolute",
            "solve.step": self.spec.published.student,
            "solve.strength": self.prior.strength.published,
            "solve.momentum": "published",
            "solve.start": "adjoint",
        } | ({"solve.weight": 1.0} if self.solver == "red-fista" else {})

    @cached_property
    def digest(self) -> str:
        """Digest of everything that measurements and reconstructions depend on, solver aside."""
        return digests.of(
            self.name,
            self.options.model_dump(mode="json"),
            self.operators.identity,
            list(self.shape),
            self.images.digest,
            self.prior.digest(),
            [self.noise, self.seed, str(self.dtype)],
        )


def where_measured(physics: LinearPhysics, noise: Tensor) -> Tensor:
    """`noise` without the entries that `physics` does not measure (k-space off the mask)."""
    if isinstance(physics, MRI):
        return noise * physics.mask
    if isinstance(physics, MultiCoilMRI):
        return noise * physics.mask[:, :, None]
    return noise
