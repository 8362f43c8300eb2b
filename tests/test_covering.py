"""Which tests run by default."""

from itertools import product
from types import SimpleNamespace

import pytest
from covering import beyond_default, covering

VALUES = {"task": ["sr", "cs", "mri"], "solver": ["pnp", "red"], "dtype": ["single", "double"]}
PRODUCT = [dict(zip(VALUES, values, strict=True)) for values in product(*VALUES.values())]


def values_of(combinations: list[dict[str, str]]) -> set[tuple[str, str]]:
    return {item for one in combinations for item in one.items()}


def test_each_value_occurs_and_no_combination_is_superfluous() -> None:
    kept = covering(PRODUCT)
    assert len(kept) == 3 and 0 in kept  # as many as the longest parameter has values
    assert values_of([PRODUCT[place] for place in kept]) == values_of(PRODUCT)


def test_not_every_combination_exists() -> None:
    """PRODUCT without what would have covered two at once."""
    some = [one for one in PRODUCT if (one["task"] == "sr") == (one["solver"] == "red")]
    assert values_of([some[place] for place in covering(some)]) == values_of(some)
    assert covering([]) == set()
    assert covering([{"": ""}]) == {0}


class Item:
    """What `beyond_default` looks at of a collected test."""

    def __init__(self, name: str, mark: pytest.MarkDecorator | None = None, **params: str) -> None:
        self.nodeid = f"tests/test_it.py::{name}[{'-'.join(params.values())}]"
        self._mark = mark
        if params:
            self.callspec = SimpleNamespace(params=params)

    def get_closest_marker(self, name: str) -> pytest.Mark | None:
        return self._mark.mark if self._mark and self._mark.name == name else None


@pytest.mark.parametrize(
    ("mark", "kept"),
    [
        (None, [0, 1, 2, 3]),
        (pytest.mark.exhaustive, []),
        (pytest.mark.exhaustive(after=1), [0]),
        (pytest.mark.covering, [0, 3]),
    ],
)
def test_marks_say_what_is_left_out(mark: pytest.MarkDecorator | None, kept: list[int]) -> None:
    plain = Item("test_other")
    cases = [Item("test_one", mark, a=a, b=b) for a, b in product("xy", repeat=2)]
    extra = Item("test_one", pytest.mark.exhaustive, a="x", b="z")  # marked for this value alone
    left_out = beyond_default([plain, extra, *cases])
    assert extra in left_out
    assert [place for place, case in enumerate(cases) if case not in left_out] == kept
    assert plain not in left_out
