"""Preconditioning operators: the interface, the identity and the learned linear ones."""

from dipa_bench.preconditioners.base import Identity, Preconditioner, State
from dipa_bench.preconditioners.linear import Dense

__all__ = ["Dense", "Identity", "Preconditioner", "State"]
