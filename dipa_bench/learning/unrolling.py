"""Training an operator through the unrolled iteration, whatever the loss."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from dipa_bench.data.images import ImageSet
from dipa_bench.errors import Diverged, UserError
from dipa_bench.evaluation.metrics import psnr
from dipa_bench.methods import FitContext, Iterative, Progress, untrainable
from dipa_bench.parameters import Parameters, Search
from dipa_bench.tasks.base import Task

EXPLODED = 1e3  # times the first loss
BATCH = 64  # images in one validation run


class TrainParameters(Parameters):
    """How the optimiser steps; epochs and batch size are the study's budget."""

    learning_rate: Annotated[
        float,
        Field(gt=0, description="at the start; falls to 0 as a cosine"),
        Search(5e-5, 1e-3, log=True),
    ] = 5e-4
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
    """

    index: Tensor
    measurement: Tensor
    truth: Tensor


def train(
    reconstructor: Iterative,
    loss: Callable[[Batch], Tensor],
    images: ImageSet,
    parameters: TrainParameters,
    task: Task,
    context: FitContext,
) -> None:
    """Minimises `loss` over the preconditioner's parameters and keeps the best epoch's.

    Best means highest validation PSNR; the initial operator competes as epoch 0.

    Args:
        reconstructor: its preconditioner is trained in place.
        loss: of one batch, differentiable in the preconditioner's parameters.
        images: training images.
        parameters: of the optimiser.
        task: gives measurements and validation images.
        context: budget, seed, reports.

    Raises:
        UserError: no gradients pass through the prior.
        Diverged: the loss became NaN, infinite or a thousand times what it was.
        Pruned: from the context's report.
    """
    if not task.prior.differentiable:
        raise UserError(untrainable(task.prior))
    operator = reconstructor.preconditioner
    optimizer = _optimizer(operator, parameters)
    generator = torch.Generator().manual_seed(context.seed)
    truth, measured = task.pixels(images), task.measure(images)
    validation = task.images.validation.first(context.budget.validation_images)
    best = validate(reconstructor, task, validation)
    state = copy.deepcopy(operator.state_dict())
    losses: list[tuple[int, float]] = []
    qualities, first = [(0, best)], None
    started = time.perf_counter()
    seconds = [(0, 0.0)]
    context.series |= {
        "train/loss": losses,
        "train/seconds": seconds,
        "val/psnr_by_epoch": qualities,
    }
    epochs = context.budget.epochs
    steps = epochs * math.ceil(len(images) / context.budget.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    for epoch in range(1, epochs + 1):
        total = 0.0
        for index in _shuffled(len(images), context.budget.batch_size, generator):
            place = index.to(task.device)
            value = loss(Batch(place, measured[place], truth[place]))
            number = value.item()
            first = number if first is None else first
            if not math.isfinite(number) or number > EXPLODED * max(abs(first), 1e-6):
                raise Diverged(f"training loss {number:.3g} in epoch {epoch} (first: {first:.3g})")
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            torch.nn.utils.clip_grad_norm_(operator.parameters(), parameters.clip)
            optimizer.step()
            schedule.step()
            total += number * len(index)
        quality = validate(reconstructor, task, validation)
        losses.append((epoch, total / len(images)))
        seconds.append((epoch, time.perf_counter() - started))
        qualities.append((epoch, quality))
        if quality > best:
            best, state = quality, copy.deepcopy(operator.state_dict())
        context.progress(Progress(epoch, epochs, total / len(images), quality))
        context.report(epoch, quality)
    operator.load_state_dict(state)
    operator.requires_grad_(False)
    context.notes |= {
        "train_images": len(images),
        "epochs": epochs,
        "best_epoch": max(qualities, key=lambda pair: (pair[1], -pair[0]))[0],
    }


@torch.no_grad()
def validate(reconstructor: Iterative, task: Task, images: ImageSet) -> float:
    """Mean PSNR over `images` in dB; minus infinity where a reconstruction is not finite."""
    parts = zip(task.measure(images).split(BATCH), task.pixels(images).split(BATCH), strict=True)
    values = [psnr(reconstructor.run(y, task.student).estimate, x) for y, x in parts]
    mean = torch.cat(values).mean().item()
    return mean if math.isfinite(mean) else -math.inf


def _optimizer(operator: torch.nn.Module, parameters: TrainParameters) -> torch.optim.Optimizer:
    if parameters.optimizer == "adamw":
        return torch.optim.AdamW(
            operator.parameters(),
            lr=parameters.learning_rate,
            weight_decay=parameters.weight_decay,
        )
    return torch.optim.Adam(operator.parameters(), lr=parameters.learning_rate)


def _shuffled(count: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    return iter(torch.randperm(count, generator=generator).split(size))
