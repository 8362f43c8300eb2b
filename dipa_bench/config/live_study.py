"""A study of live objects: the physics, denoiser, images and operators of a program.

Each is checked, copied, and kept for this process under a name that tells its content
(`dipa_bench.live`); what a study file has is the name.
"""

from __future__ import annotations

import copy
import functools
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from deepinv.physics import LinearPhysics
from torch import Tensor, nn

from dipa_bench import digests, live, registry
from dipa_bench.config import study_file
from dipa_bench.data.images import ROUNDING, ImageSet, Splits
from dipa_bench.data.signals import COMPLEX, magnitude
from dipa_bench.data.sources import dealt
from dipa_bench.errors import UserError, brief
from dipa_bench.methods import FitContext, Iterative, Method, SolverOnly
from dipa_bench.preconditioners import Preconditioner, State
from dipa_bench.tasks.base import Geometry, Operators, Task, TeacherSpec
from dipa_bench.tasks.custom import check

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class LiveParts:
    """What a program hands over; None and empty for what comes from the study file.

    Attributes:
        physics: the operator that can be built, a deepinv `LinearPhysics`.
        teacher: a simulated, better-conditioned one, for methods that learn from it.
        images: N x C x H x W in [0, 1] (C = 1 gray, 3 colour; 2: real and imaginary part, of
            magnitude at most 1), N x H x W, or a dataset of such images; a dictionary with the
            three splits; or a folder.
        prior: a denoiser, (v, sigma) or (v), B x C x H x W.
    """

    physics: LinearPhysics | None = None
    teacher: LinearPhysics | None = None
    images: Any = None
    prior: Any = None


@dataclass
class LiveStudy:
    """What `dipa_bench.run_study` was asked for, live objects as their names.

    Args:
        config, task, methods, sets: as for `run_study`; methods may be `Preconditioner` or `Method`
            objects.
        parts: the other live objects.

    Attributes:
        live: what is live, for messages.

    Raises:
        UserError: an object that is not what it has to be; the message names the cure.
    """

    config: str | Path | Mapping[str, Any] | None
    task: str | None
    methods: str | Sequence[Any] | None
    sets: list[str]
    parts: LiveParts
    live: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        shape = self._take_images()
        self._take_physics(shape)
        self._take_prior(shape)
        self._take_methods()

    def check(self, task: Task) -> None:
        """Tries the operators that were handed over on the study's task.

        Raises:
            UserError: one fails, or changes the shape.
        """
        for name, found in self._operators.items():
            _try(name, found, task)

    # ------------------------------------------------------------------------------------- parts

    def _set(self, **values: Any) -> None:
        """Settings that come before what the program gave itself."""
        own = [f"problem.{name}={json.dumps(value)}" for name, value in values.items()]
        self.sets = own + self.sets

    def _take_images(self) -> tuple[int, ...] | None:
        """The images' shape (C, H, W) where they are live."""
        images = self.parts.images
        if images is None:
            return None
        if isinstance(images, str | Path):
            known = isinstance(images, str) and (
                ":" in images or images in registry.names("datasets")
            )
            self._set(dataset=str(images) if known else f"folder:{images}")
            return None
        splits = _splits(images)
        name = live.put(splits.digest, splits)
        channels, height, width = splits.shape
        self._set(dataset=name, size=min(height, width), color=channels == 3)
        self.live.append("images")
        return splits.shape

    def _take_physics(self, shape: tuple[int, ...] | None) -> None:
        student, teacher = self.parts.physics, self.parts.teacher
        if student is None:
            if teacher is not None:
                raise UserError("a teacher without physics: give physics=, what it is better than")
            return
        if self.task not in (None, "custom") or self.config is not None:
            raise UserError("physics= makes a task of its own: leave out task and study file")
        self.task = "custom"
        given = getattr(student, "img_size", None)
        if shape is None and isinstance(given, Sequence | torch.Size) and len(given) == 3:
            shape = tuple(given)
            self._set(size=shape[-1])
        pair, probe = _Pair(_copied(student), _copied(teacher)), shape or (1, 32, 32)
        outputs = []
        for what, found in (("physics", pair.student), ("teacher", pair.teacher)):
            if found is not None:
                check(found, Geometry(probe), f"{what} ({type(found).__name__})")
                outputs.append(found.A(_noise(probe)))
        self._set(
            **{"options.operators": live.put(digests.of(*outputs), pair)},
            **{"options.images": "complex"} if probe[0] == COMPLEX else {},
        )
        if sigma := _sigma(student):
            self._set(noise=sigma)
        self.live += ["physics"] + ["teacher"] * (teacher is not None)

    def _take_prior(self, shape: tuple[int, ...] | None) -> None:
        prior = self.parts.prior
        if prior is None:
            return
        if isinstance(prior, str):
            self._set(prior=prior)
            return
        if not callable(prior):
            raise UserError(f"prior is a {type(prior).__name__}: give a denoiser, (v, sigma)")
        channels = 3 if shape and shape[0] == 3 else 1
        kept = _own_denoiser(prior, channels)
        self._set(prior=live.put(_digest(prior, _probed(kept, channels)), kept))
        self.live.append("prior")

    def _take_methods(self) -> None:
        self._operators: dict[str, Preconditioner] = {}
        if self.methods is None or isinstance(self.methods, str):
            return
        entries, names = {}, []
        for found in self.methods:
            if isinstance(found, str):
                names.append(found)
                continue
            name, method = self._method(found)
            if name in entries:
                raise UserError(f"two methods are called {name!r}: give one of them another name")
            digest = _digest(found)
            method = replace(method, name=live.name_of(digest))  # what a record calls it
            entries[name] = {"method": live.put(digest, method)}
            names.append(name)
            self.live.append(name)
        self.methods = names
        if entries:
            raw = study_file.read(self.task, self.config)
            self.config = {**raw, "methods": {**raw.get("methods", {}), **entries}}

    def _method(self, found: Any) -> tuple[str, Method]:
        if isinstance(found, Method):
            return found.name, found
        if not isinstance(found, Preconditioner):
            raise UserError(
                f"method {found!r} is a {type(found).__name__}: give a name, a Preconditioner or a "
                "Method"
            )
        name = type(found).__name__
        kept = _copied(found)
        self._operators[name] = kept

        def fit(task: Task, parameters: SolverOnly, context: FitContext) -> Iterative:
            return context.reconstructor(task, parameters.solve, copy.deepcopy(kept))

        return name, Method(
            name=name,
            title=name,
            summary=(inspect.getdoc(found) or "an operator of the program").splitlines()[0],
            operator=name,
            rule="none",
            parameters=SolverOnly,
            solver_free=True,
            fit=fit,
        )


@dataclass(frozen=True)
class _Pair:
    """Makes the operators of the task `custom`."""

    student: LinearPhysics
    teacher: LinearPhysics | None

    def __call__(self, geometry: Geometry) -> Operators:
        teachers = ()
        if self.teacher is not None:
            teachers = (TeacherSpec(1.0, lambda: self._at(self.teacher, geometry)),)
        return Operators(self._at(self.student, geometry), teachers, axis="teacher")

    @staticmethod
    def _at(physics: LinearPhysics, geometry: Geometry) -> LinearPhysics:
        return copy.deepcopy(physics).to(geometry.device)


def _copied(found: Any) -> Any:
    """A copy of an object, modules on the CPU; it moves to the study's device later."""
    kept = copy.deepcopy(found)
    return kept.cpu() if isinstance(kept, nn.Module) else kept


def _own_denoiser(prior: Any, channels: int) -> Any:
    """A copy of a denoiser that says how many channels it takes, unless it does already."""
    if inspect.isroutine(prior):

        @functools.wraps(prior)
        def kept(*arguments: Any) -> Tensor:
            return prior(*arguments)
    else:
        kept = _copied(prior)
    if not hasattr(kept, "channels"):
        kept.channels = channels
    return kept


@torch.no_grad()
def _probed(denoiser: Any, channels: int) -> Tensor:
    """What a denoiser makes of some noise, to tell it from others."""
    v = _noise((channels, 16, 16)).sigmoid()
    for arguments in ((v, 0.05), (v,)):
        try:
            return denoiser(*arguments)
        except Exception:  # the study says what is wrong with it
            continue
    return v


def _digest(found: Any, *outputs: Tensor) -> str:
    """Of what an object is: its kind, its numbers, and what it makes of a probe."""
    target = found.fit if isinstance(found, Method) else type(found)
    try:
        source = inspect.getsource(target)
    except (OSError, TypeError):
        source = ""
    named = getattr(target, "__qualname__", repr(target))
    facts = _facts(found)
    return digests.of(named, source, list(facts), *facts.values(), *outputs)


def _facts(found: Any) -> dict[str, Any]:
    """Tensors, numbers and texts that an object holds, by name; of a method those its fit uses."""
    facts = dict(found.state_dict()) if isinstance(found, nn.Module) else {}
    held = getattr(found, "__dict__", {})
    if isinstance(found, Method):
        cells = getattr(found.fit, "__closure__", None) or ()
        names = found.fit.__code__.co_freevars if cells else ()
        held = {name: cell.cell_contents for name, cell in zip(names, cells, strict=True)}
    for name, value in sorted(held.items()):
        value = torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        if value is None or isinstance(value, bool | int | float | str | Tensor):
            facts[name] = value
    return facts


def _noise(shape: Sequence[int], count: int = 1) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(0))


def _sigma(physics: LinearPhysics) -> float:
    """Standard deviation of the Gaussian noise that a physics says it has; else 0."""
    sigma = getattr(getattr(physics, "noise_model", None), "sigma", 0.0)
    try:
        return float(sigma)
    except (TypeError, ValueError):
        return 0.0


def _splits(images: Any) -> Splits:
    """Splits of a program's images: its own, or 70, 10 and 20% by a hash of their places."""
    if isinstance(images, Mapping):
        if set(images) != set(SPLITS):
            raise UserError(f"images has the keys {sorted(images)}: give {', '.join(SPLITS)}")
        return Splits(*(_image_set(_pixels(images[name]), name) for name in SPLITS))
    pixels = _pixels(images)
    if len(pixels) < 3:
        raise UserError(f"{len(pixels)} images: three splits need at least 3")
    whole = _image_set(pixels, "image")
    place = {name: k for k, name in enumerate(whole.names)}
    parts = dealt(whole.subjects)
    return Splits(*(whole.at(sorted(place[name] for name in part)) for part in parts))


def _image_set(pixels: Tensor, name: str) -> ImageSet:
    names = tuple(f"{name}-{k:05d}" for k in range(len(pixels)))
    return ImageSet(pixels, names, names)


def _pixels(images: Any) -> Tensor:
    """N x C x H x W, float32, checked."""
    if isinstance(images, np.ndarray):
        images = torch.from_numpy(images)
    if not isinstance(images, Tensor):
        images = _stacked(images)
    if images.is_complex():
        images = torch.view_as_real(images.reshape(-1, *images.shape[-2:])).movedim(-1, 1)
    if images.dim() == 3:
        images = images[:, None]
    shape = tuple(images.shape)
    if images.dim() != 4 or shape[1] not in (1, 2, 3):
        raise UserError(f"images are {shape}: give N x C x H x W with C = 1, 2 (complex) or 3")
    pixels = images.detach().cpu().to(torch.float32).contiguous()
    shown = magnitude(pixels)
    low, high = shown.min().item(), shown.max().item()
    if not (low >= 0 and high <= 1 + ROUNDING):
        raise UserError(
            f"images reach from {low:.3g} to {high:.3g}: scale them to [0, 1] (complex ones to "
            "magnitudes of at most 1)"
        )
    return pixels


def _stacked(images: Any) -> Tensor:
    """The images of a dataset; of items that are pairs (image, label) the first."""
    try:
        count = len(images)
        items = [images[k] for k in range(count)]
        items = [item[0] if isinstance(item, tuple | list) else item for item in items]
        found = torch.stack([torch.as_tensor(np.asarray(item)) for item in items])
    except Exception as error:  # a program's dataset may fail in any way
        raise UserError(
            f"images is a {type(images).__name__} that cannot be stacked ({brief(error)}): give a "
            "tensor N x C x H x W, or a dataset of images of one shape"
        ) from None
    return found


@torch.no_grad()
def _try(name: str, operator: Preconditioner, task: Task) -> None:
    """Raises `UserError` where an operator fails on a gradient or changes its shape."""
    x = _noise(task.shape, 2).to(task.device, task.dtype)
    y = task.student.A(x)
    state = State(0, x, x, y, task.student, residual=y, gradient=x)
    try:
        found = copy.deepcopy(operator).to(task.device, task.dtype)(x, state)
    except Exception as error:
        raise UserError(
            f"method {name} fails on gradients of {tuple(x.shape)} ({brief(error)}): mend its "
            "forward(gradient, state)"
        ) from None
    if not isinstance(found, Tensor) or found.shape != x.shape:
        kind = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise UserError(
            f"method {name} gives {kind} for gradients of {tuple(x.shape)}: return the same shape"
        )
