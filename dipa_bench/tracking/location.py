"""Which store: from what the user gave, or nothing, to one address and how it may be shown."""

from __future__ import annotations

import importlib.metadata
import os
import re
import sys
from pathlib import Path
from urllib.parse import unquote

from dipa_bench.errors import UserError

_FAMILIES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks")
_PLUGINS = "mlflow.tracking_store"  # entry points of further kinds of store


def named(explicit: str | None) -> str | None:
    """The address that the user named, as ``--tracking-uri`` or ``MLFLOW_TRACKING_URI``."""
    return explicit or os.environ.get("MLFLOW_TRACKING_URI") or None


def resolve_uri(explicit: str | None, root_cwd: Path) -> str:
    """The tracking store's address: `explicit`, else ``MLFLOW_TRACKING_URI``, else MLflow's own.

    MLflow's own is the file ``mlflow.db`` in the working directory, which ``mlflow ui`` opens too.
    Relative SQLite paths are made absolute, so that the address means the same everywhere.

    Args:
        explicit: what the user gave as ``--tracking-uri``, if anything.
        root_cwd: the working directory.

    Raises:
        UserError: the address is a folder (the old file store), or of a kind MLflow does not know.
    """
    uri = named(explicit)
    if uri is None:
        _refuse_old_runs(root_cwd)
        return sqlite_uri(root_cwd.absolute() / "mlflow.db")
    if uri in {"databricks", "databricks-uc", "uc"}:
        return uri
    kind = family(uri)
    if kind in {"", "file"} or len(kind) == 1:
        raise UserError(
            f"tracking address {uri!r} is a folder, and MLflow 3 has closed its file store: give a "
            f"database such as --tracking-uri sqlite:///mlflow.db (MLFLOW_TRACKING_URI is read too)"
        )
    if kind == "sqlite":
        return _absolute_sqlite(uri, root_cwd)
    plugins = {entry.name for entry in importlib.metadata.entry_points(group=_PLUGINS)}
    if kind not in {*_FAMILIES, *plugins}:
        raise UserError(
            f"tracking address {redacted(uri)!r} is of no kind that MLflow knows: give "
            "sqlite:///mlflow.db, an http(s):// server or a postgresql:// or mysql:// database"
        )
    return uri


def sqlite_uri(path: Path) -> str:
    """The address of an SQLite file; only what would end a path in an address is quoted."""
    text = path.as_posix()
    for character in "%?#":
        text = text.replace(character, f"%{ord(character):02X}")
    return "sqlite:///" + text


def redacted(uri: str) -> str:
    """`uri` without what may be secret: user, password, query and fragment."""
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return uri
    if family(uri) != "sqlite" and "@" in rest:
        rest = "***@" + rest.rpartition("@")[2]
    if match := re.search("[?#]", rest):
        rest = rest[: match.start() + 1] + "***"
    return f"{scheme}://{rest}"


def ui_command(uri: str, port: int) -> list[str]:
    """The command that shows a store in the browser, reachable from this machine only.

    An address that may hold a password is not among the arguments, which every user of the machine
    can list: the caller sets ``MLFLOW_BACKEND_STORE_URI`` in the command's environment.

    Args:
        uri: a resolved address of a database.
        port: the TCP port to listen at.

    Raises:
        UserError: the address is a server already.
    """
    if family(uri) in {"http", "https"}:
        raise UserError(f"{redacted(uri)} is a server already: open it in a browser")
    command = [sys.executable, "-m", "mlflow", "server"]
    if path := sqlite_path(uri):  # no secrets in it; others come by the environment
        command += ["--backend-store-uri", uri]
        command += ["--artifacts-destination", str(path.parent / "mlruns")]
    return [*command, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]


def sqlite_path(uri: str) -> Path | None:
    """The file behind an SQLite address, or None for another kind of store."""
    if family(uri) != "sqlite":
        return None
    return Path(unquote(uri.partition(":///")[2].partition("?")[0]))


def family(uri: str) -> str:
    """``postgresql`` for ``postgresql+psycopg2://...``; ``""`` for a plain path."""
    match = re.match(r"([A-Za-z][\w.+-]*):", uri)
    return match.group(1).lower().partition("+")[0] if match else ""


def _absolute_sqlite(uri: str, root_cwd: Path) -> str:
    path = sqlite_path(uri)
    if path is None or str(path) in {".", ":memory:"}:
        raise UserError(f"tracking address {uri!r} names no file: give sqlite:///mlflow.db")
    query = uri.partition("?")
    return sqlite_uri(root_cwd.absolute() / path) + "".join(query[1:])


def _refuse_old_runs(root_cwd: Path) -> None:
    """MLflow's default falls back on a file store that exists, and then refuses to open it."""
    for meta in (root_cwd / "mlruns").glob("*/meta.yaml"):
        if meta.parent.name.isdigit():
            raise UserError(
                f"{root_cwd / 'mlruns'} holds runs of MLflow's closed file store: convert them "
                "with `mlflow migrate-filestore`, or give --tracking-uri sqlite:///mlflow.db"
            )
