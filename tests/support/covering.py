"""Which tests run by default, and which with ``--exhaustive`` alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest


def beyond_default(items: Sequence[pytest.Item]) -> set[pytest.Item]:
    """Tests marked `exhaustive`, and combinations of parameters that others stand for.

    Of a test marked `exhaustive(after=2)` the first two run by default, of one marked `covering`
    those that `covering` chooses.
    """
    left_out: set[pytest.Item] = set()
    tests: dict[str, list[pytest.Item]] = {}
    for item in items:
        tests.setdefault(item.nodeid.split("[")[0], []).append(item)
    for cases in tests.values():
        first = [case for case in cases if not _is_extra(case)]
        left_out.update(case for case in cases if case not in first)
        if not first:
            continue
        if mark := first[0].get_closest_marker("exhaustive"):
            left_out.update(first[mark.kwargs["after"] :])
        elif first[0].get_closest_marker("covering"):
            kept = covering([_values(case) for case in first])
            left_out |= {case for place, case in enumerate(first) if place not in kept}
    return left_out


def covering(combinations: Sequence[Mapping[str, str]]) -> set[int]:
    """Places of so many combinations that each value of each parameter occurs in one of them.

    Always the first of those that have most values which none before it had.

    Args:
        combinations: parameter to value.
    """
    kept: set[int] = set()
    seen: set[tuple[str, str]] = set()
    for wanted in range(max(map(len, combinations), default=0), 0, -1):
        for place, values in enumerate(combinations):
            if len(values.items() - seen) == wanted:
                kept.add(place)
                seen.update(values.items())
    return kept


def _is_extra(item: pytest.Item) -> bool:
    """Whether it is left out whatever its parameters are, or for these."""
    mark = item.get_closest_marker("exhaustive")
    return mark is not None and "after" not in mark.kwargs


def _values(item: pytest.Item) -> dict[str, str]:
    """The parameters of a test as text; one made up for a test without any."""
    found = getattr(item, "callspec", None)
    return {name: repr(value) for name, value in found.params.items()} if found else {"": ""}
