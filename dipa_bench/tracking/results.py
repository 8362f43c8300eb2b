"""The results table: what leaderboards and dashboards read, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class Linearised:
    """A learned operator near one gradient of a validation image, for images of n numbers.

    Attributes:
        singular: of J = dP(g, k)/dg (of a linear P its matrix), n, largest first.
        symmetric: eigenvalues of (J + J^T) / 2, n, largest first.
        product: eigenvalues of J A^T A with the student's A, n, complex, largest real part first.
        matrix: J, n x n, of an operator that is not linear; else None.
        image: name of the validation image.
        iteration: k, the middle of the operator's own run; None where that is not known.
        derivative: how J was taken, ``"exact"`` or ``"finite differences"``.
    """

    singular: np.ndarray
    symmetric: np.ndarray
    product: np.ndarray
    matrix: np.ndarray | None = None
    image: str = ""
    iteration: int | None = None
    derivative: str = "exact"


@dataclass(frozen=True)
class TaskResults:
    """All that tracking stored about one task, as tables. Rows join on ``(study, method)``.

    Attributes:
        task: the task's name.
        methods: a row per study and method: study, method, title, operator, rule, learned (bool),
            protocol ("tuned" or "published"), preset, state, reason, parameters (count), trials
            (finished), seconds_per_image, operator_calls, denoiser_calls (all three for one image),
            fit_seconds (of the winner), search_seconds (all trials of the method),
            late_gain (dB that the last quarter of its tuning brought, NaN where nothing was tuned),
            validation (PSNR of the winner on all validation images), published (test PSNR of the
            published settings, NaN where they were not run), start (the winner's), learns_from
            (nothing, measurements, ground truth, teacher, ... of the training images; None of older
            runs), reference (the row that the study compares with), caveat (what to know of the
            images, or None), contains (methods that this one can be too, with commas, or None),
            params (dict, the winner's), run_id, started (epoch seconds),
            replicate (0 for the first), replicate_of (the study that it is a replicate of; the
            study's own name for the first), setting (what the numbers hold for, in one line).
        images: study, method, seed, image, subject, psnr and `dipa_bench.names.QUALITY` (NaN where
            it is not known); test images only.
        curves: study, method, seed, image, iteration, psnr, residual, step_norm.
        trials: study, method, number, index (place in the search; an interrupted trial and the one
            that took its place share it), state, value (validation PSNR or NaN), estimate (of it,
            for a trial that left a race; else NaN), seconds (of fitting and validating),
            shared_seconds (that shared results saved it, such as a teacher that another row
            computed), parameters (count), seconds_per_image (of one reconstruction; both NaN
            where nothing was measured), params (dict), reason.
        pictures: (study, method) to {"original/<image>" | "measurement/<image>" |
            "reconstruction/<image>": H x W array in [0, 1]}.
        operators: (study, method) to the learned linear operator as an n x n matrix.
        linearisations: (study, method) to what a learned operator does near one gradient.
        shifts: study, method, setting ("matched", or the name of another setting that winners were
            tested at) and the columns of images; empty but for studies with shifts.
    """

    task: str
    methods: pd.DataFrame
    images: pd.DataFrame
    curves: pd.DataFrame
    trials: pd.DataFrame
    pictures: dict[tuple[str, str], dict[str, np.ndarray]] = field(default_factory=dict)
    operators: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)
    linearisations: dict[tuple[str, str], Linearised] = field(default_factory=dict)
    shifts: pd.DataFrame = field(default_factory=pd.DataFrame)


def joined(parts: Sequence[TaskResults]) -> TaskResults:
    """The tables of several studies of one task as one.

    Args:
        parts: at least one.
    """

    def tables(name: str) -> pd.DataFrame:
        found = [getattr(part, name) for part in parts]
        filled = [table for table in found if not table.empty]
        return pd.concat(filled, ignore_index=True) if filled else found[0]

    def mapping(name: str) -> dict:
        return {key: value for part in parts for key, value in getattr(part, name).items()}

    return TaskResults(
        task=parts[0].task,
        **{name: tables(name) for name in ("methods", "images", "curves", "trials", "shifts")},
        **{name: mapping(name) for name in ("pictures", "operators", "linearisations")},
    )
