"""Operators as least-squares problems: closed forms and conjugate gradients for P that depends
linearly on its numbers."""

from dipa_bench.learning.least_squares.minimiser import minimiser
from dipa_bench.learning.least_squares.problem import Criterion, Lesson, Objective, energy

__all__ = ["Criterion", "Lesson", "Objective", "energy", "minimiser"]
