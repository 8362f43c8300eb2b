"""What is registered, as plain facts: kept between calls, as asking every record loads torch.

The facts lie in the user's cache folder as JSON, under a name that depends on the distributions
that register something, their versions, and their files: a new version, a changed file or another
environment is asked anew. A package that cannot be loaded is never kept.
"""

from __future__ import annotations

import fnmatch
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dipa_bench import registry
from dipa_bench.files import write_json

if TYPE_CHECKING:
    from dipa_bench.parameters import Key

Kept = TypeVar("Kept")

SOLVER = "solve."  # how the names of the solver's parameters begin


@dataclass(frozen=True)
class Facts:
    """What a registered record says of itself.

    Attributes:
        name, title, summary: of the record.
        more: a method's paper, or a prior's traits.
        details: label to text, of a method.
    """

    name: str
    title: str
    summary: str
    more: str = ""
    details: dict[str, str] = field(default_factory=dict)


def catalogue(kind: str, pattern: str = "*") -> list[Facts]:
    """The facts of what is registered as `kind` and matches a shell pattern, by name."""
    if registry.JOINT in pattern:
        return _asked(kind, pattern)
    every = _kept(kind)
    found = [one for one in every if fnmatch.fnmatchcase(one.name, pattern)]
    return found or (_asked(kind, pattern) if kind == "methods" else [])


def keys(method: str | None) -> list[Key]:
    """What can be set of a method, or of the whole study.

    Raises:
        UserError: no such method.
    """
    from dipa_bench.parameters import Key

    def ask() -> list[Key]:
        from dipa_bench.config.keys import method_keys, study_keys
        from dipa_bench.config.overrides import OPTIONS

        if method:
            return method_keys(method)
        return [key for key in study_keys() if key.name not in OPTIONS]

    return _remembered(f"keys-{method or ''}".replace("/", "__"), Key, ask)


def _kept(kind: str) -> list[Facts]:
    """All facts of a kind, from the cache where they are there."""
    return _remembered(kind, Facts, lambda: _asked(kind, "*"))


def _remembered(name: str, kind: type[Kept], ask: Callable[[], list[Kept]]) -> list[Kept]:
    """Facts from the cache; else what is asked for them, kept unless something did not load."""
    path = _place(name)
    with suppress(OSError, ValueError, TypeError):
        return [kind(**one) for one in json.loads(path.read_text(encoding="utf-8"))]
    found = ask()
    if not any(getattr(one, "title", "") == registry.Broken.title for one in found):
        with suppress(OSError):  # a cache that cannot be written is none
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, [asdict(one) for one in found])
    return found


def _asked(kind: str, pattern: str) -> list[Facts]:
    return [_facts(kind, record) for record in registry.describe(kind, pattern)]


def _place(name: str) -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "dipa-bench" / f"{name}-{_fingerprint()}.json"


def _fingerprint() -> str:
    """Of everything that registers something."""
    told = [sys.version, sys.prefix]
    packages = {__package__.partition(".")[0]}
    for kind in registry.KINDS:
        for source in registry.sources(kind):
            told.append(f"{kind} {source}")
            packages.add(source.split()[1].partition(":")[0].partition(".")[0])
    for package in sorted(packages):
        told += [f"{path} {stamp}" for path, stamp in _stamps(package)]
    return sha256("\n".join(sorted(told)).encode()).hexdigest()[:16]


def _stamps(package: str) -> Iterator[tuple[str, int]]:
    """The Python files of a package with their times of change."""
    spec = None
    with suppress(ImportError, ValueError):
        spec = find_spec(package)
    if spec is None:
        return
    files = [Path(spec.origin)] if spec.origin else []
    for place in spec.submodule_search_locations or ():
        files += Path(place).rglob("*.py")
    for path in files:
        with suppress(OSError):
            yield str(path), path.stat().st_mtime_ns


def _facts(kind: str, record: Any) -> Facts:
    more = getattr(record, "paper", "") or getattr(record, "traits", "")
    whole = kind == "methods" and not isinstance(record, registry.Broken)
    details = _details(record) if whole else {}
    return Facts(record.name, record.title, record.summary, more, details)


def _details(method: Any) -> dict[str, str]:
    """What a method says of itself beside its summary, and what is searched for it."""
    iteration, _, fit = method.cost.partition("; ")
    said = {
        "paper": method.paper,
        "fixed point": method.fixed_point,
        "iteration": iteration,
        "fit": fit,
    }
    return {label: text for label, text in said.items() if text} | {"searched": _searched(method)}


def _searched(method: Any) -> str:
    """Names of the searched parameters, the solver's own as one."""
    from dipa_bench.parameters import declared

    paths = [item.path for item in declared(method.parameters, "red-fista") if item.search]
    own = [path for path in paths if not path.startswith(SOLVER)]
    return ", ".join([f"{SOLVER}*"] * (len(own) < len(paths)) + own) or "nothing"
