"""The iterative algorithms and what their runs leave behind."""

from dipa_bench.solvers.base import Solver
from dipa_bench.solvers.fista import PnPFISTA, REDFISTA
from dipa_bench.solvers.parameters import SOLVERS, SolveParameters, build_solver
from dipa_bench.solvers.trajectory import Curves, Trajectory

__all__ = [
    "SOLVERS",
    "Curves",
    "PnPFISTA",
    "REDFISTA",
    "SolveParameters",
    "Solver",
    "Trajectory",
    "build_solver",
]
