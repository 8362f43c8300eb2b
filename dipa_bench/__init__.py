"""dipa-bench: fair benchmarks of preconditioners for plug-and-play image reconstruction."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("dipa-bench")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"
