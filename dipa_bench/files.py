"""Small files that other processes see whole or not at all."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole(path: Path, sync: bool = False) -> Iterator[Path]:
    """A temporary path that becomes `path` at the end, so that a crash leaves no half a file.

    Args:
        path: of the file, in a folder that there is.
        sync: whether it is on the disk before it gets its name, so that even a machine that loses
            its power leaves the old file or the new one.
    """
    own = f"{os.getpid()}-{secrets.token_hex(4)}"
    temporary = path.with_name(f".{path.stem}-{own}.tmp{path.suffix}")
    try:
        yield temporary
        if sync:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Writes through a temporary file that `write` is given; missing folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as temporary:
        write(temporary)


def write_json(path: Path, value: object, sync: bool = False) -> None:
    """Writes a small file so that a crash leaves either the old or the new one."""
    with whole(path, sync) as temporary:
        temporary.write_text(json.dumps(value, indent=1), encoding="utf-8")


def first_wins(temporary: Path, path: Path) -> None:
    """Gives `temporary` the name `path` unless another process was faster."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without links
        os.replace(temporary, path)
