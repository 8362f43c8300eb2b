"""Maps that are fitted on training images, used on those images as on ones never seen.

A start that was fitted on the training images knows them: reconstructions of them begin much nearer
to the truth than those of any other image, and an operator that is trained from there is trained
for a start that it will never see again. Cross-fitting gives each training image the start of a
map that was fitted without it and without all images of its subject (Chernozhukov et al., 2018,
"Double/debiased machine learning", doi:10.1111/ectj.12097); and it trains an operator that was
fitted in closed form from what it would be without them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from dipa_bench.data.images import ImageSet
from dipa_bench.methods import AffineMap
from dipa_bench.preconditioners import LinearOperator
from dipa_bench.solvers import Solver
from dipa_bench.tasks.base import Task

FOLDS = 10  # of a start: nine tenths of the images give nearly the map of all


@dataclass(frozen=True)
class HeldOutNumbers:
    """What an operator that was fitted in closed form would be without one fold of the images.

    Training moves the numbers of the operator that was fitted on all images. While it reconstructs
    images of a fold, the operator is what was fitted without them, moved as far.

    Attributes:
        folds: positions of the images of each.
        differences: the numbers fitted without the fold less those of all, for each fold.
    """

    folds: tuple[tuple[int, ...], ...]
    differences: tuple[Tensor, ...]

    @contextmanager
    def without(self, operator: LinearOperator, fold: int) -> Iterator[None]:
        """Within it `operator` is what it would be without a fold; gradients are taken inside."""
        numbers = operator.numbers
        kept = numbers.detach().clone()
        with torch.no_grad():
            numbers.add_(self.differences[fold])
        try:
            yield
        finally:
            with torch.no_grad():
                numbers.copy_(kept)


class CrossFitted:
    """A map of measurements to images that is fitted on training images, and knows their folds.

    Args:
        task: gives the measurements.
        images: the training images, at least two.
        whole: fitted on all of them; serves every other image.
        fit: gives the map that is fitted on some of the images.
    """

    def __init__(
        self, task: Task, images: ImageSet, whole: AffineMap, fit: Callable[[ImageSet], AffineMap]
    ) -> None:
        self._task, self._images, self._fit = task, images, fit
        self.whole = whole
        self._starts: dict[str, Tensor] | None = None

    def __call__(self, measurement: Tensor) -> Tensor:
        """The estimate of the map of all images, for measurements B x ..."""
        return self.whole(measurement)

    @torch.no_grad()
    def out_of_fold(self, images: ImageSet) -> Tensor:
        """Estimates of images from their own measurements, B x C x H x W.

        Each training image gets that of a map which was fitted without its subject; any other image
        that of the map of all.
        """
        if self._starts is None:
            self._starts = self._each()
        known = self._starts
        others = [place for place, name in enumerate(images.names) if name not in known]
        if others:
            rest = images.at(others)
            known = known | dict(zip(rest.names, self(self._task.measure(rest)), strict=True))
        return torch.stack([known[name] for name in images.names])

    def _each(self) -> dict[str, Tensor]:
        """The out-of-fold estimate of every training image, by its name."""
        measured, found = self._task.measure(self._images), {}
        for held_out in folds(self._images):
            estimates = self._fit(without(self._images, held_out))(measured[held_out])
            names = [self._images.names[place] for place in held_out]
            found |= dict(zip(names, estimates, strict=True))
        return found


def folds(images: ImageSet, count: int = FOLDS) -> list[list[int]]:
    """Positions of the images of each fold; all images of a subject are in one.

    Images of a single subject, which may be neighbouring slices, are cut into blocks.

    Args:
        images: at least two.
        count: of folds, at most; there is one for each subject where those are fewer.
    """
    subjects = list(dict.fromkeys(images.subjects))
    if len(subjects) == 1:
        blocks = torch.arange(len(images)).tensor_split(min(count, len(images)))
        return [block.tolist() for block in blocks]
    members = {subject: [] for subject in subjects}
    for place, subject in enumerate(images.subjects):
        members[subject].append(place)
    found: list[list[int]] = [[] for _ in range(min(count, len(subjects)))]
    for subject in subjects:
        min(found, key=len).extend(members[subject])
    return [sorted(fold) for fold in found]


def without(images: ImageSet, held_out: Sequence[int]) -> ImageSet:
    """All images but those at some positions."""
    left_out = set(held_out)
    return images.at([place for place in range(len(images)) if place not in left_out])


def training_starts(solver: Solver, images: ImageSet) -> Tensor | None:
    """x_0 of training images where the solver's start was fitted on training images.

    Args:
        solver: of the reconstructions.
        images: that are reconstructed in training.

    Returns:
        B x C x H x W out-of-fold starts; None for any start that is not fitted.
    """
    out_of_fold = getattr(solver.start_map, "out_of_fold", None)
    return None if out_of_fold is None else out_of_fold(images)
