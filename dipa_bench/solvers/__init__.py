"""The iterative algorithms and what their runs leave behind."""

from dipa_bench.solvers.base import Solver
from dipa_bench.solvers.fista import REDFISTA, PnPFISTA
from dipa_bench.solvers.parameters import SolveParameters, build_solver
from dipa_bench.solvers.trajectory import Curves, Trajectory

__all__ = [
    "REDFISTA",
    "Curves",
    "PnPFISTA",
    "SolveParameters",
    "Solver",
    "Trajectory",
    "build_solver",
]
