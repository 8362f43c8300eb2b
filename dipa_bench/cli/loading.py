"""Says in a terminal which large package is being imported: some take seconds."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import TextIO

LARGE = ("torch", "torchvision", "deepinv", "mlflow", "optuna", "pandas", "scipy", "skimage")
ERASE = "\r\033[K"  # the line that the cursor is in


@contextmanager
def loading_told(stream: TextIO | None = None, packages: Sequence[str] = LARGE) -> Iterator[None]:
    """Within it a line ``loading PACKAGE ...`` stands on a terminal while one is imported.

    Args:
        stream: the terminal, by default standard error; anything else is left alone.
        packages: names of those that are told of.
    """
    stream = sys.stderr if stream is None else stream
    if not stream.isatty():
        yield
        return
    finder = _Finder(stream, packages)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _Finder(MetaPathFinder):
    """Finds what Python finds, with loaders that tell of themselves."""

    def __init__(self, stream: TextIO, packages: Sequence[str]) -> None:
        self._stream, self._packages = stream, frozenset(packages)
        self._loading: list[str] = []

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in self._packages:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def told(module: ModuleType) -> None:
                self._loading.append(name)
                self._show()
                try:
                    execute(module)
                finally:
                    self._loading.pop()
                    self._show()

            spec.loader.exec_module = told
        return spec

    def _show(self) -> None:
        text = f"loading {self._loading[-1]} ..." if self._loading else ""
        self._stream.write(ERASE + text)
        self._stream.flush()
