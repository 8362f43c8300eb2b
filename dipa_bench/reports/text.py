"""Text from users and plug-ins, safe to print."""

from __future__ import annotations


def plain(text: object) -> str:
    """Text on one line without control characters, which could steer a terminal."""
    return "".join(c if c.isprintable() else " " for c in str(text))


def short(text: object, length: int = 60) -> str:
    """Text on one line, cut to `length` characters with an ellipsis."""
    line = plain(text)
    return line if len(line) <= length else line[: length - 1] + "…"


def counted(number: float, noun: str) -> str:
    """A number of things: ``1 replicate``, ``2 replicates``."""
    return f"{int(number)} {noun}{'' if number == 1 else 's'}"


def inert(text: str) -> str:
    """Text that Markdown shows as it is: no cells, emphasis, links or HTML."""
    return "".join(f"\\{c}" if c in "\\`*_[]<>|#&~$" else c for c in text)


def tex(text: str) -> str:
    """Text that LaTeX shows as it is."""
    special = {c: f"\\{c}" for c in "&%$#_{}"}
    special |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {"<": r"\textless{}", ">": r"\textgreater{}", "±": r"$\pm$", "…": r"\dots{}"}
    special |= {"`": r"\textasciigrave{}", "|": r"\textbar{}", '"': r"\textquotedbl{}"}
    return "".join(special.get(c, c) for c in plain(text))
