"""Testing what was fitted at the study's setting at others, nothing being fitted or tuned again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pandas as pd
from torch import Tensor

from dipa_bench import names
from dipa_bench.config.schema import Shift
from dipa_bench.data.images import ImageSet
from dipa_bench.errors import UserError, brief
from dipa_bench.evaluation.evaluate import Evaluation, evaluate
from dipa_bench.methods import FitContext, Method
from dipa_bench.parameters import build
from dipa_bench.tasks.base import Task


def shifted(task: Task, shift: Shift) -> Task:
    """A task with other options, noise or iterations; images, prior and seed stay.

    Raises:
        UserError: an option that the task does not have, or a bad value.
    """
    changes: dict[str, Any] = {}
    if shift.options:
        task = task.remade(build(task.spec.options, task.options.model_dump() | shift.options))
    if shift.noise is not None:
        changes |= {"noise": shift.noise, "test_noise": None}
    if shift.iterations is not None:
        changes["iterations"] = shift.iterations
    return replace(task, **changes)


def score(
    method: Method,
    tasks: Mapping[str, Task],
    parameters: Any,
    state: Mapping[str, Tensor],
    images: ImageSet,
    matched: Evaluation,
    seed: int,
    context: FitContext,
) -> pd.DataFrame:
    """Scores at all settings: columns setting, seed, image, subject, psnr, ssim.

    Args:
        method: that was fitted.
        tasks: setting to task.
        parameters: of the method.
        state: what the fit made, as stored.
        images: test images.
        matched: the evaluation at the study's own setting.
        seed: index of the refit.
        context: of the fit; its notes say why a setting has no scores.
    """

    def tables() -> Iterator[pd.DataFrame]:
        yield matched.image_table(seed).assign(setting=names.MATCHED)
        for name, task in tasks.items():
            apart = replace(context, notes={}, series={}, folder=None)
            try:
                there = method.rebuild(task, parameters, state, apart, moved=True)
                found = evaluate(there, task.tested, images, with_quality=True)
            except Exception as error:  # the seed itself is finished: its other figures count
                reason = brief(error, kind=not isinstance(error, UserError))
                context.notes[f"shift {name}"] = f"none: {reason}"
                continue
            yield found.image_table(seed).assign(setting=name)

    return pd.concat(tables(), ignore_index=True)
