"""What was sent: the notes beside run folders that keep a store from getting anything twice."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from pathlib import Path
from typing import Any

from dipa_bench.files import first_wins, write_json
from dipa_bench.tracking.records import RECORD, RunRecord, children

SENT = "mlflow.json"
IDENTITY = ".identity"


def fingerprint(folder: Path, uri: str, parent: str, won: bool) -> dict[str, Any]:
    """Everything that decides whether a run folder must be sent again."""
    return {
        "uri": uri,
        "record": hashlib.sha256((folder / RECORD).read_bytes()).hexdigest(),
        "files": {path.name: path.stat().st_size for path in _artifacts(folder)},
        "parent": parent,
        "winner": won,
    }


def _artifacts(folder: Path) -> list[Path]:
    """The files of a run folder that are sent."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_file()
        and not path.is_symlink()
        and not path.name.startswith(".")
        and path.name != SENT
    )


def read_note(folder: Path) -> dict[str, Any] | None:
    """What ``mlflow.json`` says, or None if it is missing or damaged (the store is asked then)."""
    try:
        note = json.loads((folder / SENT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(note, dict):
        return None
    return note if all(isinstance(note.get(name), str) for name in ("uri", "run_id")) else None


def write_note(folder: Path, note: dict[str, Any]) -> None:
    """Puts into ``mlflow.json`` what was sent and where it went."""
    write_json(folder / SENT, note)


def forget(folder: Path) -> None:
    """Drops the notes of a method's run and its children: the store is asked what it has."""
    for place in (folder, *children(folder)):
        (place / SENT).unlink(missing_ok=True)


def identity(folder: Path, record: RunRecord) -> str:
    """What tells a run's study folder from others of its name; it moves along with the folder."""
    study = folder.parent if record.kind == "method" else folder.parent.parent
    path = study / IDENTITY
    if not path.exists():
        temporary = study / f"{IDENTITY}.{os.getpid()}.tmp"
        temporary.write_text(uuid.uuid4().hex, encoding="ascii")
        first_wins(temporary, path)
        temporary.unlink(missing_ok=True)
    return path.read_text(encoding="ascii").strip()
