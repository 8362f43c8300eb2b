"""Momentum rules m_k, k = 0, 1, ...: z_(k+1) = x_(k+1) + m_k (x_(k+1) - x_k)."""

from __future__ import annotations

from collections.abc import Callable

OFFSET = 3  # the parameter a of both rules


def textbook(iteration: int) -> float:
    """Chambolle and Dossal (2015), k / (k + 1 + a): O(1/k^2), and the iterates converge."""
    return iteration / (iteration + 1 + OFFSET)


def published(iteration: int) -> float:
    """deepinv's rule, (k + a - 1) / (k + a), with which DIPA's numbers were made.

    It is not the textbook rule, and on ill-conditioned problems much slower.
    """
    return (iteration + OFFSET - 1) / (iteration + OFFSET)


def none(iteration: int) -> float:
    """No momentum: proximal gradient descent."""
    return 0.0


RULES: dict[str, Callable[[int], float]] = {
    "textbook": textbook,
    "published": published,
    "none": none,
}
