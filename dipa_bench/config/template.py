"""A commented study file to begin with: a task's own study with every other key beside it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from dipa_bench.config import study_file
from dipa_bench.config.keys import PLAIN, literal, study_keys
from dipa_bench.config.schema import SHARED
from dipa_bench.parameters import Key

HEAD = """\
# A study of dipa-bench: dipa-bench study --config {file}
# A key behind a # is not set; the value is its default (... for none).
"""
METHODS = """
# One table for each entry of the study; see `dipa-bench list methods`. An entry may freeze
# parameters or search them elsewhere; see `dipa-bench list parameters METHOD`:
#
#   [methods.my-entry]
#   method = "ldipa"
#   set = { "train.learning_rate" = 0.001 }
#   search = { "solve.step" = { low = 0.5, high = 1.5 } }
"""


def template(task: str, file: str) -> str:
    """The text of a study file that does what the task's own study does.

    Args:
        task: with an embedded study.
        file: the name that the text is written to.

    Raises:
        UserError: no such task, or one without a study.
    """
    raw = study_file.read(task, None)
    keys = study_keys()
    parts = [HEAD.format(file=file), *_lines((key for key in keys if key.name in PLAIN), raw)]
    for table in SHARED:
        inside = [key for key in keys if key.name.startswith(f"{table}.")]
        parts += ["", f"[{table}]", *_lines(inside, raw.get(table, {}))]
    parts += [METHODS, *_tables("methods", raw["methods"])]
    presets = raw.get("presets", {})
    if presets:
        parts += ["", "# What `--preset NAME` changes.", *_tables("presets", presets)]
    return "\n".join(parts) + "\n"


def _lines(keys: Iterable[Key], given: Mapping[str, Any]) -> Iterator[str]:
    """A line for each key: its value or, behind a #, its default; then range and meaning."""
    for key in keys:
        name = key.name.rpartition(".")[2]
        value = inline(given[name]) if name in given else key.default or "..."
        line = f"{'' if name in given else '# '}{name} = {value}"
        said = "; ".join(filter(None, (key.range, key.meaning)))
        yield f"{line.ljust(31)} # {said}"


def _tables(above: str, tables: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for name, table in tables.items():
        bare = name.replace("-", "").replace("_", "").isalnum() and name.isascii()
        yield f"[{above}.{name if bare else literal(name)}]"
        yield from (f"{key} = {inline(value)}" for key, value in table.items())


def inline(value: Any) -> str:
    """A value as TOML on one line."""
    if isinstance(value, Mapping):
        parts = ", ".join(f"{literal(key)} = {inline(one)}" for key, one in value.items())
        return f"{{ {parts} }}" if parts else "{}"
    if isinstance(value, list):
        return f"[{', '.join(map(inline, value))}]"
    return literal(value)
