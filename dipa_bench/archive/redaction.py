"""What of a study's records goes to another machine: no private paths, one name, joined tables."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from dipa_bench import names
from dipa_bench.errors import UserError, brief
from dipa_bench.tracking import records
from dipa_bench.tracking.records import RunRecord

PLACES = ("dataset", "data_root", "prior")  # of a problem: they may hold a path
JOINED = (names.IMAGES, names.SHIFTS)  # of methods
_FOLDERS = re.compile(r"""(?<![^\s"'=(:\[,])~?/(?:[^/\s"']+/)+""")
_LOGIN = re.compile(r"://[^/\s]+@")


def shortened(text: str) -> str:
    """An absolute path, also one after ``NAME:``, by its last part; other texts as they are."""
    if text.startswith(("/", "~")):
        return Path(text).name or "."
    name, colon, path = text.partition(":")
    if colon and path.startswith(("/", "~")):
        return f"{name}:{Path(path).name or '.'}"
    return text


def without_places(study: Mapping[str, Any]) -> dict[str, Any]:
    """A resolved study in which every path is shortened; the images' digest says which they were.

    Args:
        study: as ``study.json`` and records hold it.
    """
    made = copy.deepcopy(dict(study))
    for table in _tables(made):
        for key, value in table.items():
            if isinstance(value, str):
                table[key] = shortened(value)
    return made


def places_of(study: Mapping[str, Any]) -> list[str]:
    """The paths of a resolved study that `without_places` shortens."""
    texts = [text for table in _tables(study) for text in table.values() if isinstance(text, str)]
    found = [text for text in texts if shortened(text) != text]
    return [text if text.startswith(("/", "~")) else text.partition(":")[2] for text in found]


def code_of(study: Mapping[str, Any]) -> list[str]:
    """What a resolved study makes Python import: the ``module:function`` values of its problem."""
    problem = _table(study, "problem")
    options = [text for table in _tables(study) if table is not problem for text in table.values()]
    named = [problem.get("prior"), *options]
    return list(dict.fromkeys(text for text in named if isinstance(text, str) and ":" in text))


def _tables(study: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The tables of a study that may hold paths: its problem, and options there and of shifts."""
    problem = _table(study, "problem")
    yield problem
    yield _table(problem, "options")
    for shift in _table(study, "shifts").values():
        if isinstance(shift, dict):
            yield _table(shift, "options")


def _table(values: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The table under a key; an empty one where there is none, as a stranger's file may have it."""
    found = values.get(key)
    return found if isinstance(found, dict) else {}


def scrubber(places: Iterable[str]) -> Callable[[str], str]:
    """A function that takes out of a text what is nobody's business elsewhere.

    Folders of absolute paths (with those of the user and the study by name, as they may hold
    spaces), and logins in addresses.

    Args:
        places: absolute paths that the study names.
    """
    known = {str(Path(place)): Path(place).name for place in places if Path(place).name}
    here = {Path.cwd(): "", Path.home(): "~/"}
    known |= {f"{folder}/": short for folder, short in here.items() if folder != folder.parent}

    def scrub(text: str) -> str:
        for place in sorted(known, key=len, reverse=True):
            text = text.replace(place, known[place])
        return _FOLDERS.sub("", _LOGIN.sub("://***@", text))

    return scrub


def redaction(record: RunRecord, scrub: Callable[[str], str]) -> RunRecord:
    """A record as it goes into an archive."""

    def plain(values: Mapping[str, Any]) -> dict[str, Any]:
        return {key: scrub(v) if isinstance(v, str) else v for key, v in values.items()}

    return record.model_copy(
        update={
            "study_file": without_places(record.study_file),
            "reason": None if record.reason is None else scrub(record.reason),
            "notes": plain(record.notes),
            "environment": plain(record.environment),
        }
    )


def moved(record: RunRecord, name: str, places: Mapping[str, str]) -> RunRecord:
    """A record under another study's name, with places of this machine in its problem."""
    study = renamed(record.study_file, name, places) if record.study_file else {}
    return record.model_copy(update={"study": name, "study_file": study})


def renamed(study: Mapping[str, Any], name: str, places: Mapping[str, str]) -> dict[str, Any]:
    """A resolved study under another name, with other places (keys of `PLACES`)."""
    return {**study, "name": name, "problem": {**_table(study, "problem"), **places}}


def runs_table(found: Iterable[RunRecord]) -> pd.DataFrame:
    """A row for each run: what it was, hyper-parameters as JSON text, a column for each metric."""
    rows = []
    for record in found:
        facts = {
            "study": record.study,
            "task": record.task,
            "method": record.method,
            "kind": record.kind,
            "number": record.number,
            "seed": str(record.seed),  # may exceed 64 bits
            "state": record.state,
            "reason": record.reason,
            "protocol": record.protocol,
            "preset": record.preset,
            "operator": record.operator,
            "rule": record.rule,
            "learned": record.learned,
            "started": record.started,
            "finished": record.finished,
            "params": json.dumps(record.params),
        }
        rows.append({**record.metrics, **facts})
    table = pd.DataFrame(rows)
    first = [name for name in facts if name in table] if rows else []
    return table[first + sorted(set(table.columns) - set(first))]


def joined_table(study: str, methods: Mapping[str, Path], name: str) -> pd.DataFrame | None:
    """The tables of this name of all methods, with study and method; None where there is none.

    Args:
        study: its name.
        methods: row to run folder.
        name: one of `JOINED`.

    Raises:
        UserError: one of them is damaged.
    """
    parts = []
    for method, folder in methods.items():
        path = folder / name
        if path.is_file() and not path.is_symlink():
            try:
                part = pd.read_parquet(path)
            except (OSError, ValueError) as error:
                raise UserError(
                    f"damaged table {path} ({brief(error)}): move its run folder away and run the "
                    "study again"
                ) from None
            part.insert(0, "study", study)
            part.insert(1, "method", method)
            parts.append(part)
    return pd.concat(parts, ignore_index=True) if parts else None


def records_of(study: Path) -> dict[str, RunRecord]:
    """All records of a study's folder, by the run folder's place in it.

    Raises:
        UserError: one is damaged, or is not of the row or study whose folder it lies in.
    """
    found: dict[str, RunRecord] = {}
    rows = sorted(path.parent for path in study.glob(f"*/{records.RECORD}"))
    for row in rows:
        for place in (row, *records.children(row)):
            found[place.relative_to(study).as_posix()] = _of_row(records.read(place), place, row)
    return found


def _of_row(record: RunRecord, place: Path, row: Path) -> RunRecord:
    if records.method_folder(row.parent, record.method) != row:
        raise UserError(
            f"the record in {place} is of the method {record.method!r}: put its folder where it "
            "belongs"
        )
    if (record.kind == "method") != (place == row):
        raise UserError(f"the record in {place} is of a {record.kind}: move it away")
    return record
