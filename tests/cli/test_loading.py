"""A terminal hears which large package is being imported; nothing else hears of it."""

from __future__ import annotations

import importlib
import io
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dipa_bench.cli.loading import ERASE, loading_told


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, ...]]:
    (tmp_path / "large_outside.py").write_text("import large_inside\nfrom math import pi\n")
    (tmp_path / "large_inside.py").write_text("SEEN = 1\n")
    (tmp_path / "large_broken.py").write_text("raise RuntimeError('broken')\n")
    monkeypatch.syspath_prepend(tmp_path)
    names = ("large_outside", "large_inside", "large_broken", "large_missing")
    yield names
    for name in names:
        sys.modules.pop(name, None)


def test_a_terminal_is_told_and_the_line_is_erased(packages: tuple[str, ...]) -> None:
    stream, before = Terminal(), list(sys.meta_path)
    with loading_told(stream, packages):
        assert importlib.import_module("large_outside").large_inside.SEEN == 1
        importlib.import_module("large_outside")  # it is there already
        with pytest.raises(RuntimeError, match="broken"):
            importlib.import_module("large_broken")
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module("large_missing")
    outside, inside = "loading large_outside ...", "loading large_inside ..."
    shown = ["", outside, inside, outside, "", "loading large_broken ...", ""]
    assert stream.getvalue().split(ERASE) == shown
    assert sys.meta_path == before


def test_what_is_no_terminal_hears_nothing(packages: tuple[str, ...]) -> None:
    stream = io.StringIO()
    with loading_told(stream, packages):
        importlib.import_module("large_outside")
    assert stream.getvalue() == ""
