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
        forget()

    def forget():
        registry._entries.cache_clear()
        registry._cells.cache_clear()

    yield fake
    monkeypatch.undo()
    forget()


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


def test_pairs_of_operator_and_rule_are_methods():
    """Listed by a pattern with a plus only; each loads under its name."""
    assert not [name for name in registry.names("methods") if "+" in name]
    cells = registry.names("methods", "*+*")
    operators, rules = registry.names("operators"), registry.names("rules")
    assert set(cells) <= {f"{operator}+{rule}" for operator in operators for rule in rules}
    assert registry.names("methods", "dense+*") == [f"dense+{rule}" for rule in rules]
    assert "kronecker+greedy" not in cells
    for name in cells:
        record = registry.get("methods", name)
        assert (record.name, record.operator) == (name, name.split("+")[0])
        assert record.title
        assert record.summary
        assert record.cost
        assert record.fixed_point


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dens+greedy", "unknown operator 'dens': did you mean 'dense'"),
        ("dense+gredy", "unknown rule 'gredy': did you mean 'greedy'"),
        ("dense+distilled+r", "unknown rule 'distilled\\+r': did you mean 'distilled-r'"),
        ("dense+", "unknown rule ''"),
        ("+greedy", "unknown operator ''"),
        ("kronecker+greedy", "'greedy' needs.*linear in its numbers; 'kronecker' is not"),
    ],
)
def test_pairs_that_are_none(name, message):
    """One line that names the nearest, or why the two do not fit."""
    with pytest.raises(UserError, match=message) as caught:
        registry.get("methods", name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("failure", ["UserError('needs 32 pixels')", "RuntimeError('x')"])
def test_an_operator_that_cannot_be_built_costs_its_own_pairs_alone(monkeypatch, tmp_path, failure):
    """A stranger's record loads, but its `build` fails: all others stay in the list."""
    (tmp_path / "unbuilt.py").write_text(
        "from dipa_bench.errors import UserError\n"
        "from dipa_bench.preconditioners import OperatorSpec\n"
        f"def fail(shape, parameters, copies): raise {failure}\n"
        "SPEC = OperatorSpec('unbuilt', 'T', 's', fail)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    real = registry.entry_points
    mine = EntryPoint("unbuilt", "unbuilt:SPEC", "dipa_bench.operators")

    def with_mine(group):
        return [*real(group=group), *([mine] if group == mine.group else [])]

    before = registry.names("methods", "*+*")
    monkeypatch.setattr(registry, "entry_points", with_mine)
    try:
        registry._entries.cache_clear()
        registry._cells.cache_clear()
        assert "unbuilt" in registry.names("operators")
        assert set(before) <= set(registry.names("methods", "*+*"))
    finally:
        monkeypatch.undo()
        registry._entries.cache_clear()
        registry._cells.cache_clear()
