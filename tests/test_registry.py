"""Entry points: ours, strangers', clashing and broken ones."""

from dataclasses import dataclass
from importlib.metadata import EntryPoint

import pytest

from dipa_bench import registry
from dipa_bench.errors import UserError


@dataclass(frozen=True)
class Record:
    name: str
    title: str = "A title"
    summary: str = "a summary"


GOOD, OTHER = Record("good"), Record("other")


@pytest.fixture
def install(monkeypatch):
    """Replaces what packages have registered: install("name", "module:attribute", ...)."""

    def fake(*pairs):
        entries = [
            EntryPoint(name, value, "dipa_bench.methods")
            for name, value in zip(pairs[::2], pairs[1::2], strict=True)
        ]
        monkeypatch.setattr(registry, "entry_points", lambda group: entries)
        registry._entries.cache_clear()

    yield fake
    monkeypatch.undo()
    registry._entries.cache_clear()


@pytest.fixture
def here(monkeypatch, tmp_path):
    """A module on the path that holds records and failures."""
    (tmp_path / "stranger.py").write_text(
        "from types import SimpleNamespace as N\n"
        "GOOD = N(name='good', title='T', summary='s')\n"
        "RED = N(name='ndipa/red', title='T', summary='s')\n"
        "NAMELESS = 3\n"
    )
    (tmp_path / "crash.py").write_text("raise RuntimeError('line one\\nline two')\n")
    (tmp_path / "leave.py").write_text("raise SystemExit(3)\n")
    monkeypatch.syspath_prepend(tmp_path)


def test_found_by_name_and_pattern(install, here):
    """Sorted names, shell patterns, the record behind a name."""
    install("good", "stranger:GOOD", "ndipa/red", "stranger:RED", "ndipa/blue", "stranger:BLUE")
    assert registry.names("methods") == ["good", "ndipa/blue", "ndipa/red"]
    assert registry.names("methods", "ndipa/*") == ["ndipa/blue", "ndipa/red"]
    assert registry.names("methods", "none*") == []
    assert registry.get("methods", "good").title == "T"
    assert [record.name for record in registry.describe("methods", "*/r*")] == ["ndipa/red"]


def test_two_packages_with_one_name(install):
    """Refused with both places; the same place twice (an editable install) is one entry."""
    install("good", "a:X", "good", "b:Y")
    with pytest.raises(UserError, match=r"two packages.*'good' \(a:X and b:Y\)"):
        registry.names("methods")
    install("good", "a:X", "good", "a:X")
    assert registry.names("methods") == ["good"]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("crash:X", "RuntimeError: line one"),
        ("leave:X", "SystemExit"),
        ("nowhere_at_all:X", "ModuleNotFoundError"),
        ("stranger:MISSING", "AttributeError"),
        ("stranger:GOOD", "two names must agree"),
        ("stranger:NAMELESS", "None"),
    ],
)
def test_broken_entries_are_listed_with_the_reason(install, here, value, reason):
    """`describe` goes on with the others; `get` raises one line."""
    install("bad", value, "good", "stranger:GOOD")
    bad, good = registry.describe("methods")
    assert isinstance(bad, registry.Broken)
    assert bad.name == "bad"
    assert reason in bad.summary
    assert good.name == "good"
    with pytest.raises(UserError) as caught:
        registry.get("methods", "bad")
    assert "\n" not in str(caught.value)


def test_unknown_names_and_kinds(install, here):
    """The nearest one is named."""
    install("good", "stranger:GOOD")
    with pytest.raises(UserError, match="unknown method 'god': did you mean 'good'"):
        registry.get("methods", "god")
    with pytest.raises(UserError, match="did you mean 'methods'"):
        registry.names("method")


def test_ours_are_all_sound():
    """Everything this package registers loads under its own name, with a title and a summary."""
    for kind in registry.KINDS:
        found = registry.describe(kind)
        assert found
        assert not [record for record in found if isinstance(record, registry.Broken)]
        assert all(record.title and record.summary for record in found)
    assert {"adjoint", "bicubic", "hessian", "identity", "ldipa", "scalar"} <= set(
        registry.names("methods")
    )
