"""A surrogate of PSNR over settings, and which candidates to evaluate next.

The stochastic radial basis function method (Regis and Shoemaker, "A Stochastic Radial Basis
Function Method for the Global Optimization of Expensive Functions", INFORMS Journal on Computing
19, 2007): candidates are rated by what the surrogate predicts and by how far they are from all that
was evaluated. It models numbers and choices at once, needs no gradients and no fit of parameters of
its own, and takes milliseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.spatial.distance import cdist

CLOSEST = 0.05  # to what was evaluated: what is closer tells nothing new
DEPTH = 3.0  # dB below the best: what is worse counts as no worse
RIDGE = 1e-6  # keeps the equations regular where points are close


class Request(NamedTuple):
    """One candidate to choose.

    Attributes:
        weight: of the prediction, in [0, 1]; the rest is that of the distance.
        among: (m), which of the candidates may be chosen.
    """

    weight: float
    among: np.ndarray


class Surrogate:
    """Cubic radial basis functions with a constant, through what was evaluated.

    Args:
        points: (n, d), coordinates of which a step of 1 is large.
        values: (n), PSNR [dB]. What is far below the best, or in the lower half, counts as no worse
            than that: settings that diverge would bend the surrogate everywhere else.
    """

    def __init__(self, points: np.ndarray, values: np.ndarray) -> None:
        size, ones = len(points), np.ones((len(points), 1))
        floor = max(values.max() - DEPTH, float(np.median(values)))
        raised = np.maximum(values, floor)
        self._points, self._offset = points, raised.mean()
        kernel = cdist(points, points) ** 3 + RIDGE * np.eye(size)
        system = np.block([[kernel, ones], [ones.T, np.zeros((1, 1))]])
        self._coefficients = np.linalg.solve(system, np.append(raised - self._offset, 0.0))

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Predicted PSNR [dB] at points of shape (m, d)."""
        *bases, constant = self._coefficients
        return cdist(points, self._points) ** 3 @ np.asarray(bases) + constant + self._offset

    def choose(self, candidates: np.ndarray, requests: Sequence[Request]) -> list[int]:
        """The best candidate for each request, given those chosen before it.

        Args:
            candidates: (m, d).
            requests: what to choose.

        Returns:
            Indices; fewer than requests where no candidate is new.
        """
        predicted = _scaled(self(candidates))
        distance = cdist(candidates, self._points).min(axis=1)
        found: list[int] = []
        for weight, among in requests:
            new = among & (distance >= CLOSEST)
            if not new.any():
                continue
            score = weight * predicted + (1 - weight) * _scaled(distance)
            found.append(int(np.argmax(np.where(new, score, -1.0))))
            distance = np.minimum(distance, cdist(candidates, candidates[found[-1:]])[:, 0])
        return found


def _scaled(values: np.ndarray) -> np.ndarray:
    """From 0 to 1."""
    span = np.ptp(values)
    return (values - values.min()) / span if span > 0 else np.zeros_like(values)
