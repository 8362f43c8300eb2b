"""Momentum rules m_k, k = 0, 1, ...: z_(k+1) = x_(k+1) + m_k (x_(k+1) - x_k)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from dipa_bench.solvers.number import Number, per_image

Rule = Callable[[int], Number]
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


RULES: dict[str, Rule] = {
    "textbook": textbook,
    "published": published,
    "none": none,
}


def side_by_side(rules: Sequence[Rule], like: torch.Tensor) -> Rule:
    """The rules of consecutive parts of a batch as one: k -> m_k of each image, B x 1 x 1 x 1.

    Args:
        rules: one for each of the parts, which are of one size; if all are the same, that one.
        like: B x C x H x W images of the dtype and device at hand.
    """
    if all(rule is rules[0] for rule in rules):
        return rules[0]
    count = len(like) // len(rules)

    def rule(iteration: int) -> Number:
        return per_image([each(iteration) for each in rules], count, like)

    return rule
