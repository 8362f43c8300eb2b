"""dipa-bench: fair benchmarks of preconditioners for plug-and-play image reconstruction.

`run_study` searches and compares methods, `leaderboard` ranks what was measured, `load` gives a
run's operator to reconstruct with; all three are in `dipa_bench.api`, which is imported when it is
used, as it loads torch and more.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dipa_bench.api import Results, leaderboard, load, run_study
    from dipa_bench.errors import StudyStopped, UserError
    from dipa_bench.search.callbacks import StudyCallback

__all__ = [
    "Results",
    "StudyCallback",
    "StudyStopped",
    "UserError",
    "leaderboard",
    "load",
    "run_study",
]

_MODULES = {
    "Results": ("api", "Results"),
    "StudyCallback": ("search.callbacks", "StudyCallback"),
    "StudyStopped": ("errors", "StudyStopped"),
    "UserError": ("errors", "UserError"),
    "leaderboard": ("api", "leaderboard"),
    "load": ("api", "load"),
    "run_study": ("api", "run_study"),
}

try:
    __version__ = version("dipa-bench")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _MODULES[name]
    return getattr(import_module(f"{__name__}.{module}"), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
