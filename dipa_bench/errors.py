"""What can go wrong, by whose hand: one exception for each kind of ending."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

FEW = 12  # names that fit on a line


class UserError(Exception):
    """A mistake the user can mend: one line that names the value and the cure (exit code 2)."""


class Diverged(Exception):
    """A fit or a reconstruction left the finite numbers; the trial is recorded with this reason."""


class Pruned(Exception):
    """The search stopped a fit early because others were ahead; not a failure."""


class StudyStopped(KeyboardInterrupt):
    """Ctrl-C in the middle of a study; the same call, or command, continues it.

    Args:
        study: its name.
    """

    def __init__(self, study: str) -> None:
        super().__init__(f"stopped; run the same command to continue study {study!r}")
        self.study = study


def brief(error: BaseException, kind: bool = True) -> str:
    """An exception in one line: its kind, unless told otherwise, and its message's first line.

    Args:
        error: any exception.
        kind: whether the exception's class is named.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = lines[0] if lines else ""
    if not kind and first:
        return first
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def unknown(kind: str, value: str, valid: Iterable[str], listing: str = "") -> UserError:
    """A `UserError` for a name that is not known, with the nearest valid one.

    Args:
        kind: what the name stands for, e.g. ``"method"``.
        value: the name as the user wrote it.
        valid: every name that would have been accepted.
        listing: the command that lists them, where there is one.
    """
    names = sorted(valid)
    near = difflib.get_close_matches(str(value), names, n=1, cutoff=0.5)
    if near:
        cure = f"did you mean {near[0]!r}?" + (f" (all: {listing})" if listing else "")
    elif listing and len(names) > FEW:
        cure = f"see `{listing}`"
    else:
        more = f", ... ({len(names)} in all)" if len(names) > FEW else ""
        cure = "choose one of " + ", ".join(names[:FEW]) + more
    return UserError(f"unknown {kind} {str(value)!r}: {cure}")
