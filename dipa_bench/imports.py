"""Users' own code: ``module:function``, importable from the working directory, or live objects."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import sys
from pathlib import Path
from typing import Any

from dipa_bench import live
from dipa_bench.errors import UserError, brief


def attribute(name: str, what: str) -> Any:
    """What ``module:attribute`` names.

    Args:
        name: as the user wrote it.
        what: what it stands for, e.g. ``"prior"``.

    Raises:
        UserError: it cannot be imported.
    """
    if live.is_name(name):
        return live.get(name, what)
    module, colon, leaf = name.partition(":")
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        if not colon:
            raise ValueError("no colon in it")
        return getattr(importlib.import_module(module), leaf)
    except (Exception, SystemExit) as error:
        raise UserError(
            f"{what} {name!r} cannot be imported ({brief(error)}): give "
            "module:function, importable from this folder"
        ) from None
    finally:
        if added:
            sys.path.remove(here)


def source_digest(found: Any) -> str:
    """SHA-256 of the source of the module that defines `found`, or of its name without one."""
    target = found if inspect.isroutine(found) or inspect.isclass(found) else type(found)
    try:
        text = inspect.getsource(inspect.getmodule(target))
    except (OSError, TypeError):
        text = f"{target.__module__}.{getattr(target, '__qualname__', type(target))}"
    return hashlib.sha256(text.encode()).hexdigest()
