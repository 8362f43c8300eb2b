"""Operators as least-squares problems: closed forms and conjugate gradients for P that depends
linearly on its numbers."""

from dipa_bench.learning.least_squares.minimiser import minimiser
from dipa_bench.learning.least_squares.problem import LARGEST, Criterion, Lesson, Objective, energy

__all__ = ["LARGEST", "Criterion", "Lesson", "Objective", "energy", "minimiser"]
