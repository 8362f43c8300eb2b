"""Training what a method fits, through the unrolled iteration or end to end, whatever the loss."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from dipa_bench import digests
from dipa_bench.data.images import ImageSet
from dipa_bench.errors import Diverged
from dipa_bench.learning.checkpoint import Checkpoint
from dipa_bench.learning.cross_fitting import HeldOutNumbers, training_starts
from dipa_bench.methods import GROWTH, FitContext, Progress, Reconstructor
from dipa_bench.metrics import psnr
from dipa_bench.parameters import Parameters, Search
from dipa_bench.tasks.base import Task

EXPLODED = 1e3  # times the first loss
BATCH = 64  # images in one validation run


class TrainParameters(Parameters):
    """How the optimiser steps; epochs and batch size are the study's budget."""

    learning_rate: Annotated[
        float,
        Field(gt=0, description="at the start"),
        Search(5e-5, 1e-3, log=True),
    ] = 5e-4
    schedule: Annotated[
        Literal["cosine", "plateau"],
        Field(
            description="the rate falls to 0 as a cosine, or by half where validation has not "
            "improved for `patience` epochs"
        ),
    ] = "cosine"
    patience: Annotated[int, Field(ge=0, description="of `plateau`, in epochs")] = 2
    optimizer: Annotated[
        Literal["adam", "adamw"], Field(description="adam, or adamw with weight decay")
    ] = "adam"
    weight_decay: Annotated[float, Field(ge=0, description="of adamw; adam ignores it")] = 1e-2
    clip: Annotated[float, Field(gt=0, description="largest norm of the whole gradient")] = 1.0


@dataclass(frozen=True)
class Batch:
    """One training batch, on the task's device.

    Attributes:
        index: positions in the training images, B.
        measurement: y.
        truth: x, B x C x H x W.
        first: x_0 where the start was fitted on training images, out of fold; else None.
    """

    index: Tensor
    measurement: Tensor
    truth: Tensor
    first: Tensor | None = None


Loss = Callable[[Batch], Tensor]


def train(
    reconstructor: Reconstructor,
    loss: Loss,
    images: ImageSet,
    parameters: TrainParameters,
    task: Task,
    context: FitContext,
    held_out: HeldOutNumbers | None = None,
) -> None:
    """Minimises `loss` over the parameters of `reconstructor.module` and keeps the best epoch's.

    Best means highest validation PSNR; what the fit starts from competes as epoch 0, and is all
    that a budget without epochs gives. A fit that was interrupted goes on from its checkpoint, as
    if it had never stopped.

    Args:
        reconstructor: its module is trained in place.
        loss: of one batch, differentiable in the module's parameters.
        images: training images.
        parameters: of the optimiser.
        task: gives measurements and validation images.
        context: budget, seed, reports, checkpoint folder.
        held_out: what a linear operator fitted in closed form would be without each fold of the
            images: then each batch is of one fold, and the operator what it is without it.

    Raises:
        Diverged: the loss became NaN, infinite or a thousand times what it was.
        Pruned: from the context's report.
    """
    if not context.budget.epochs:
        reconstructor.module.requires_grad_(False)
        return
    training = _Training(reconstructor, loss, images, parameters, task, context, held_out)
    checkpoint = Checkpoint(context.folder, training.key)
    kept = checkpoint.read()
    if kept is not None:
        training.resume(*kept)
    else:
        training.begin()
    for _ in range(training.epoch, context.budget.epochs):
        training.run_epoch()
        checkpoint.offer(training.state)
        training.tell()
    training.finish()
    checkpoint.drop()


class _Training:
    """What changes from epoch to epoch of one fit, and how."""

    def __init__(
        self,
        reconstructor: Reconstructor,
        loss: Loss,
        images: ImageSet,
        parameters: TrainParameters,
        task: Task,
        context: FitContext,
        held_out: HeldOutNumbers | None,
    ) -> None:
        self._held_out = held_out
        self._reconstructor, self._loss, self._task = reconstructor, loss, task
        self._context, self._clip = context, parameters.clip
        self._module = reconstructor.module
        self._optimizer = _optimizer(self._module, parameters)
        self._generator = torch.Generator().manual_seed(context.seed)
        self._images = len(images)
        self._order = torch.arange(self._images)
        if context.budget.rungs > 1:  # a part of the images is a random one
            self._order = torch.randperm(self._images, generator=self._generator)
        self._truth, self._measured = task.pixels(images), task.measure(images)
        solver = getattr(reconstructor, "solver", None)
        self._starts = None if solver is None else training_starts(solver, images)
        self._validation = task.images.validation.first(context.budget.validation_images)
        self._schedule = self._scheduler(parameters)
        self.epoch = 0
        self._first: float | None = None
        self._best = validate(reconstructor, task, self._validation)
        self._state = copy.deepcopy(self._module.state_dict())
        self._losses: list[tuple[int, float]] = []
        self._qualities = [(0, self._best)]
        self._seconds = [(0, 0.0)]
        self._started = time.perf_counter()
        context.series |= {
            "train/loss": self._losses,
            "train/seconds": self._seconds,
            "val/psnr_by_epoch": self._qualities,
        }
        self.key = digests.of(
            type(self._module).__name__,
            [[name, list(part.shape)] for name, part in self._state.items()],
            images.digest,
            task.digest,
            parameters.model_dump(mode="json"),
            asdict(context.budget),
            context.seed,
        )

    def run_epoch(self) -> None:
        """One pass over the epoch's training images, and its validation."""
        total, self.epoch = 0.0, self.epoch + 1
        order = self._order[: self._images_in(self.epoch)]
        shuffled = order[torch.randperm(len(order), generator=self._generator)]
        batches = self._batches(shuffled)
        if self._held_out is not None:
            mixed = torch.randperm(len(batches), generator=self._generator)
            batches = [batches[place] for place in mixed]
        for fold, index in batches:
            total += self._step(index.to(self._task.device), fold) * len(index)
        quality = validate(self._reconstructor, self._task, self._validation)
        if self._per_epoch:
            self._schedule.step(quality)
        self._losses.append((self.epoch, total / len(order)))
        self._seconds.append((self.epoch, time.perf_counter() - self._started))
        self._qualities.append((self.epoch, quality))
        if quality > self._best:
            self._best, self._state = quality, copy.deepcopy(self._module.state_dict())

    def begin(self) -> None:
        """Reports what the fit starts from; the search may give up before anything is trained."""
        self._context.report(0, self._best)

    def tell(self) -> None:
        """Reports the last epoch; the search may give up there."""
        epochs = self._context.budget.epochs
        loss, quality = self._losses[-1][1], self._qualities[-1][1]
        self._context.progress(Progress(self.epoch, epochs, loss, quality))
        self._context.report(self.epoch, quality)

    def finish(self) -> None:
        """Leaves the best epoch's parameters in the module, and facts in the context."""
        self._module.load_state_dict(self._state)
        self._module.requires_grad_(False)
        self._context.notes |= {
            "train_images": self._images,
            "epochs": self._context.budget.epochs,
            "best_epoch": max(self._qualities, key=lambda pair: (pair[1], -pair[0]))[0],
            "learning_rate_at_end": self._optimizer.param_groups[0]["lr"],
        }

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that later epochs depend on, as tensors and facts."""
        tensors = {"generator": self._generator.get_state()}
        tensors |= {f"now/{name}": part for name, part in self._module.state_dict().items()}
        tensors |= {f"best/{name}": part for name, part in self._state.items()}
        for index, parts in self._optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{name}": part for name, part in parts.items()}
        facts = {
            "epoch": self.epoch,
            "first": self._first,
            "best": self._best,
            "losses": self._losses,
            "qualities": self._qualities,
            "seconds": self._seconds,
            "schedule": {
                name: value
                for name, value in self._schedule.state_dict().items()
                if isinstance(value, int | float | list | None)
            },
            "rates": [group["lr"] for group in self._optimizer.param_groups],
        }
        return tensors, facts

    def resume(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Goes on from what `state` gave, epochs reported again for the search's pruning."""
        self._module.load_state_dict(_below(tensors, "now/"))
        self._state = {
            name: part.to(self._task.device) for name, part in _below(tensors, "best/").items()
        }
        moments: dict[int, dict[str, Tensor]] = {}
        for name, part in _below(tensors, "optimizer/").items():
            index, _, leaf = name.partition("/")
            moments.setdefault(int(index), {})[leaf] = part
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": moments, "param_groups": groups})
        for group, rate in zip(self._optimizer.param_groups, facts["rates"], strict=True):
            group["lr"] = rate
        self._schedule.load_state_dict(facts["schedule"])
        self._generator.set_state(tensors["generator"])
        self.epoch, self._first, self._best = facts["epoch"], facts["first"], facts["best"]
        for own, kept in (
            (self._losses, facts["losses"]),
            (self._qualities, facts["qualities"]),
            (self._seconds, facts["seconds"]),
        ):
            own[:] = [(step, value) for step, value in kept]
        earlier = self._seconds[-1][1]
        self._started -= earlier
        self._context.earlier += earlier
        self._context.notes["resumed_after_epoch"] = self.epoch
        for epoch, quality in self._qualities:
            self._context.report(epoch, quality)

    def _batches(self, order: Tensor) -> list[tuple[int | None, Tensor]]:
        """Positions of an epoch's images, batch after batch, each with the fold that it is of."""
        size = self._context.budget.batch_size
        if self._held_out is None:
            return [(None, index) for index in order.split(size)]
        return [
            (fold, index)
            for fold, members in enumerate(self._held_out.folds)
            for index in order[torch.isin(order, torch.tensor(members))].split(size)
            if len(index)
        ]

    def _step(self, place: Tensor, fold: int | None) -> float:
        """One step of the optimiser on the training images at `place`, of a fold; their loss."""
        first = None if self._starts is None else self._starts[place]
        batch = Batch(place, self._measured[place], self._truth[place], first)
        self._optimizer.zero_grad(set_to_none=True)
        with nullcontext() if fold is None else self._held_out.without(self._module, fold):
            number = self._backward(self._loss(batch))
        torch.nn.utils.clip_grad_norm_(self._module.parameters(), self._clip)
        self._optimizer.step()
        if not self._per_epoch:
            self._schedule.step()
        return number

    def _backward(self, value: Tensor) -> float:
        """Takes the gradient of a loss, which is returned as a number."""
        number = value.item()
        self._first = number if self._first is None else self._first
        if not math.isfinite(number) or number > EXPLODED * max(abs(self._first), 1e-6):
            raise Diverged(
                f"training loss {number:.3g} in epoch {self.epoch} (first: {self._first:.3g})"
            )
        value.backward()
        return number

    def _images_in(self, epoch: int) -> int:
        """How many training images an epoch has: a third for each rung below the last."""
        budget = self._context.budget
        rung = (epoch - 1) * budget.rungs // budget.epochs
        part = math.ceil(self._images / GROWTH ** (budget.rungs - 1 - rung))
        return min(self._images, max(part, budget.batch_size))

    def _scheduler(self, parameters: TrainParameters) -> Any:
        self._per_epoch = parameters.schedule == "plateau"
        if self._per_epoch:
            return torch.optim.lr_scheduler.ReduceLROnPlateau(
                self._optimizer, mode="max", factor=0.5, patience=parameters.patience
            )
        budget = self._context.budget
        steps = sum(
            len(self._batches(self._order[: self._images_in(epoch)]))
            for epoch in range(1, budget.epochs + 1)
        )
        return torch.optim.lr_scheduler.CosineAnnealingLR(self._optimizer, T_max=steps)


@torch.no_grad()
def validate(reconstructor: Reconstructor, task: Task, images: ImageSet) -> float:
    """Mean PSNR over `images` in dB; minus infinity where a reconstruction is not finite."""
    parts = zip(task.measure(images).split(BATCH), task.pixels(images).split(BATCH), strict=True)
    values = [psnr(reconstructor.run(y, task.student).estimate, x) for y, x in parts]
    mean = torch.cat(values).mean().item()
    return mean if math.isfinite(mean) else -math.inf


def _optimizer(module: torch.nn.Module, parameters: TrainParameters) -> torch.optim.Optimizer:
    if parameters.optimizer == "adamw":
        return torch.optim.AdamW(
            module.parameters(),
            lr=parameters.learning_rate,
            weight_decay=parameters.weight_decay,
        )
    return torch.optim.Adam(module.parameters(), lr=parameters.learning_rate)


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): part for name, part in tensors.items() if name.startswith(prefix)
    }
