"""Imports point one way, as the layout says; what only types need (TYPE_CHECKING) is free."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BASE = {
    "errors",
    "parameters",
    "devices",
    "digests",
    "registry",
    "imports",
    "files",
    "names",
    "linear_algebra",
    "live",
}
PROBLEM = {"tasks", "data", "priors", "solvers", "preconditioners"}
METHODS = BASE | PROBLEM | {"methods", "metrics"}
MEASURED = BASE | {"statistics", "tracking"}
ALLOWED = {  # package or module of dipa_bench -> what it may import of dipa_bench
    **{name: BASE for name in BASE},
    **{name: BASE | PROBLEM for name in PROBLEM},
    "metrics": BASE | {"data"},
    "statistics": set(),
    "interop": BASE | PROBLEM,
    "methods": BASE | PROBLEM,
    "reuse": METHODS,
    "learning": METHODS,
    "evaluation": METHODS,
    "tracking": BASE,
    "config": METHODS | {"tracking"},
    "search": METHODS | MEASURED | {"config"},
    "execution": METHODS | MEASURED | {"config", "search", "learning", "evaluation", "reuse"},
    "archive": MEASURED,
    "reports": MEASURED,
    "testing": METHODS | {"reuse", "learning", "evaluation"},
}
ALLOWED["runs"] = ALLOWED["execution"] | {"execution"}
ALLOWED["api"] = ALLOWED["runs"] | {"runs", "reports"}
ALLOWED["cli"] = ALLOWED["api"] | {"api", "archive"}
ALLOWED["__init__"] = {"errors", "api", "search"}
ALLOWED["__main__"] = {"cli"}


def modules() -> list[Path]:
    return sorted((ROOT / "dipa_bench").rglob("*.py"))


def package_of(path: Path) -> str:
    first = path.relative_to(ROOT / "dipa_bench").parts[0]
    return first.removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    """Full names of all that a module imports, within functions too, types aside."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing = {
        id(inside)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inside in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("package", sorted({package_of(path) for path in modules()}))
def test_a_package_imports_lower_ones_alone(package: str) -> None:
    names = set(ALLOWED)
    for path in modules():
        if package_of(path) != package:
            continue
        for name in imported(path):
            parts = name.split(".")
            if parts[0] == "dipa_bench" and len(parts) > 1 and parts[1] in names:
                assert parts[1] in {package, *ALLOWED[package]}, f"{path} imports {name}"


def test_competitors_and_pages_are_not_imported_by_the_library() -> None:
    for path in modules():
        for name in imported(path):
            first = name.split(".")[0]
            assert first not in ("baselines", "studies"), f"{path} imports {name}"
            assert first != "dashboards" or package_of(path) == "cli", f"{path} imports {name}"


def test_dashboards_read_results_and_nothing_else() -> None:
    readable = {"reports", "statistics", "names", "errors", "tracking"}
    for path in (ROOT / "dashboards").glob("*.py"):
        for name in imported(path):
            parts = name.split(".")
            if parts[0] == "dipa_bench" and len(parts) > 1:
                assert parts[1] in readable, f"{path} imports {name}"
