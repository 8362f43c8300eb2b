"""Spectra of learned operators, made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from dashboards import pictures, spectra
from dashboards.page import _reference
from dashboards.palette import looks
from dipa_bench.tracking.results import Linearised


def near(product: list[complex], **changes: object) -> Linearised:
    """Three values of each kind."""
    values = {
        "singular": np.array([2.0, 1.0, 0.0]),
        "symmetric": np.array([1.0, 0.5, -1.0]),
        "product": np.array(product, dtype=complex),
    }
    return Linearised(**(values | changes))


REAL = near([3.0, 1.0 + 1e-6j, 0.0])
COMPLEX = near([2.0, 0.5 + 0.1j, 0.5 - 0.1j])
LOOKS = looks(["a", "b"])


def test_singular_values_are_lines_on_a_logarithmic_axis() -> None:
    """What is zero has no place there; what is near zero does not stretch the axis."""
    figure = spectra.singular_values({"a": REAL, "b": COMPLEX}, LOOKS)
    assert [t.name for t in figure.data] == ["a", "b"]
    assert list(figure.data[0].x) == [1, 2, 3]
    np.testing.assert_array_equal(figure.data[0].y, [2.0, 1.0, np.nan])
    assert figure.layout.yaxis.type == "log"
    tiny = near([1, 1, 1], singular=np.array([1.0, 0.1, 1e-30]))
    low, high = spectra.singular_values({"a": tiny}, LOOKS).layout.yaxis.range
    assert -7 < low < -5.9 and 0 < high < 1


def test_the_symmetric_part_is_shown_as_it_is() -> None:
    figure = spectra.symmetric_spectrum({"b": COMPLEX}, LOOKS)
    assert list(figure.data[0].y) == [1.0, 0.5, -1.0]
    assert figure.data[0].line.color == LOOKS["b"].colour


def test_complex_products_are_in_the_plane() -> None:
    """As soon as one operator has complex ones."""
    figure = spectra.product_spectrum({"a": REAL, "b": COMPLEX}, LOOKS)
    assert list(figure.data[1].x) == [2.0, 0.5, 0.5]
    assert list(figure.data[1].y) == [0.0, 0.1, -0.1]
    assert "imaginary" in figure.layout.yaxis.title.text


def test_real_products_are_sorted() -> None:
    mixed = near([0.0, 3.0, 1.0])
    figure = spectra.product_spectrum({"a": mixed}, LOOKS)
    assert list(figure.data[0].y) == [3.0, 1.0, 0.0]
    assert "number" in figure.layout.xaxis.title.text


@pytest.mark.parametrize(
    ("values", "expected"),
    [([1.0, 1e-5j], True), ([1.0, 1e-3j], False), ([0.0], True), ([], True), ([1e-9j], False)],
)
def test_what_counts_as_real(values: list, expected: bool) -> None:
    assert spectra.is_real(np.array(values, dtype=complex)) is expected


def test_nothing_linearised_draws_nothing() -> None:
    for draw in (spectra.singular_values, spectra.symmetric_spectrum, spectra.product_spectrum):
        assert len(draw({}, LOOKS).data) == 0


def test_the_reference_is_named() -> None:
    made = near([1], image="v0", iteration=5, derivative="finite differences")
    assert _reference(made) == "at validation image v0, iteration 5, by finite differences"
    assert _reference(near([1])) == "at validation image ?"


def test_the_pictures_of_a_jacobian_say_so() -> None:
    """J instead of P, and where it was taken; the column beside the rows."""
    shown = pictures.operator_pictures(np.eye(6), (2, 3), "net", "J", "at v0")
    assert shown[0].lines[0] == "J, 6 x 6" and shown[0].lines[-1] == "at v0"
    assert shown[0].alt == "the Jacobian J of net"
    assert shown[-1].lines[0] == "response to an impulse"
    assert all(" of J" in picture.alt for picture in shown[1:])


def test_rows_and_columns_are_told_apart() -> None:
    """Row i mixes, column j spreads; of two channels the first is shown."""
    matrix = np.zeros((12, 12))
    matrix[4, 0] = 1.0  # direction of pixel (1, 1) from gradient pixel (0, 0)
    matrix[5, 4] = -1.0  # gradient of pixel (1, 1) in direction pixel (1, 2)
    matrix[10, :] = 7.0  # another channel
    shown = pictures.operator_pictures(matrix, (2, 3), "m")
    row, column = shown[1], shown[-1]
    assert row.uri == pictures.diverging(np.array([[1.0, 0, 0], [0, 0, 0]]), 0.95)
    assert column.uri == pictures.diverging(np.array([[0.0, 0, 0], [0, 0, -1]]), 0.95)
