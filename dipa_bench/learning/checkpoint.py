"""Where a fit that was interrupted goes on: tensors and facts in one safetensors file."""

from __future__ import annotations

import fcntl
import json
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from dipa_bench.files import write_whole

log = logging.getLogger(__name__)
SUFFIX = ".safetensors"
PAUSE = 5.0  # least seconds between two writings: short epochs do not wait for the disk


Entry = TypeVar("Entry")


def made_once(path: Path, read: Callable[[], Entry | None], make: Callable[[], Entry]) -> Entry:
    """Makes a file that was missing; processes that miss it at the same time wait for the first.

    Args:
        path: of the file; its folder is made.
        read: gives what is there, or None.
        make: makes and writes it; called by one process at a time.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.lock")
    with beside.open("w") as lock:
        kept = None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the kernel frees it if the other process dies
            kept = read()
        try:
            return make() if kept is None else kept
        finally:
            beside.unlink(missing_ok=True)


class Checkpoint:
    """One fit's file; a fit with another key never reads it.

    Args:
        folder: where it is kept; None keeps nothing.
        key: digest of everything that the fit depends on.
    """

    def __init__(self, folder: Path | None, key: str) -> None:
        self._path = None if folder is None else folder / f"{key}{SUFFIX}"
        self._written = time.monotonic()

    def offer(self, make: Callable[[], tuple[Mapping[str, Tensor], Mapping[str, Any]]]) -> None:
        """Writes what `make` gives, tensors and JSON-serialisable facts, unless it is too soon."""
        if self._path is None or time.monotonic() - self._written < PAUSE:
            return
        tensors, facts = make()
        plain = {name: part.detach().cpu().contiguous() for name, part in tensors.items()}
        entry = {"facts": json.dumps(facts)}
        write_whole(self._path, lambda name: save_file(plain, name, metadata=entry))
        self._written = time.monotonic()

    def read(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors (on the CPU) and facts; None where there are none, or damaged ones."""
        if self._path is None or not self._path.exists():
            return None
        try:
            with safe_open(self._path, framework="pt") as entry:
                tensors = {name: entry.get_tensor(name) for name in entry.keys()}
                return tensors, json.loads(entry.metadata()["facts"])
        except Exception:  # safetensors raises its own kinds, KeyError for missing facts
            log.warning("checkpoint %s is damaged; the fit starts over", self._path)
            return None

    def drop(self) -> None:
        """Removes the file: the fit has ended."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
