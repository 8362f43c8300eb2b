"""What a search is charged for: its own seconds, and once those that shared results saved it."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def charged_seconds(seconds: ArrayLike, shared: ArrayLike) -> np.ndarray:
    """The seconds that a search had spent after each of its trials.

    They are those of all trials so far and, once, the largest that shared results (a teacher) saved
    any of them: what another row computed first is charged to every row that uses it.

    Args:
        seconds: of each trial, in order, n.
        shared: seconds that each would have taken longer without shared results, n.

    Returns:
        n seconds, never falling.
    """
    saved = np.maximum.accumulate(np.asarray(shared, dtype=float))
    return np.cumsum(np.asarray(seconds, dtype=float)) + saved
