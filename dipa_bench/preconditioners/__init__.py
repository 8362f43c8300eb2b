"""Preconditioning operators: the interface, the identity and the learned linear ones."""

from dipa_bench.preconditioners.base import Identity, Learned, Preconditioner, Shape, State
from dipa_bench.preconditioners.grouped import Grouped
from dipa_bench.preconditioners.linear import Convolution, Dense, LinearOperator, Pointwise, Scalar
from dipa_bench.preconditioners.spec import OperatorSpec
from dipa_bench.preconditioners.structured import (
    BlockCirculant,
    HadamardDiagonal,
    Kronecker,
    LowRank,
    Symmetric,
)

__all__ = [
    "BlockCirculant",
    "Convolution",
    "Dense",
    "Grouped",
    "HadamardDiagonal",
    "Identity",
    "Kronecker",
    "Learned",
    "LinearOperator",
    "LowRank",
    "OperatorSpec",
    "Pointwise",
    "Preconditioner",
    "Scalar",
    "Shape",
    "State",
    "Symmetric",
]
