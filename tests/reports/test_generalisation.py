"""Matched and shifted settings against numbers worked by hand and scipy's paired test."""

from __future__ import annotations

import csv
import io
import json
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from dipa_bench.errors import UserError
from dipa_bench.reports.generalisation import COLUMNS, NEEDED, generalisation, render, wide

SCORES = {
    ("identity", "factor 2"): [24.0, 25.0, 27.0],
    ("identity", "matched"): [20.0, 22.0, 24.0],
    ("net", "factor 2"): [20.0, 22.0, 21.0],
    ("net", "matched"): [25.0, 28.0, 29.0],
    ("net", "more noise"): [24.5, 28.0, 27.0],
}


def shifts(scores=SCORES, study="s", seeds=1, subjects=None):
    """A table with a seed's score moved by the seed, its mean over seeds being the score."""
    rows = [
        {
            "study": study,
            "method": method,
            "setting": setting,
            "seed": seed,
            "image": f"i{index}",
            "subject": f"p{index}" if subjects is None else subjects[index],
            "psnr": value + seed - (seeds - 1) / 2,
            "ssim": value / 100,
        }
        for (method, setting), values in scores.items()
        for seed in range(seeds)
        for index, value in enumerate(values)
    ]
    return pd.DataFrame(rows, columns=list(NEEDED))


def rows_of(table):
    return table.set_index(["method", "setting"])


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_a_row_is_scipys_paired_test(seeds):
    """Mean, difference to the reference in that setting, and loss against the own matched one."""
    row = rows_of(generalisation(shifts(seeds=seeds), "identity")).loc[("net", "factor 2")]
    net, shifted = np.array(SCORES["net", "matched"]), np.array(SCORES["net", "factor 2"])
    other = np.array(SCORES["identity", "factor 2"])
    for name, values in {
        "psnr": shifted,
        "ssim": shifted / 100,
        "difference": shifted - other,
        "drop": net - shifted,
    }.items():
        interval = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        assert row[name] == pytest.approx(values.mean())
        assert (row[f"{name}_low"], row[f"{name}_high"]) == pytest.approx(tuple(interval))
    assert row["p_value"] == pytest.approx(stats.ttest_rel(shifted, other).pvalue)
    assert (row["images"], row["subjects"], row["unpaired_images"]) == (3, 3, 0)


def test_by_hand():
    found = rows_of(generalisation(shifts(), "identity"))
    assert found.loc[("net", "factor 2"), "psnr"] == pytest.approx(21)
    assert found.loc[("net", "factor 2"), "difference"] == pytest.approx((-4 - 3 - 6) / 3)
    assert found.loc[("net", "factor 2"), "drop"] == pytest.approx((5 + 6 + 8) / 3)
    assert found.loc[("identity", "factor 2"), "drop"] == pytest.approx((-4 - 3 - 3) / 3)
    assert found.loc[("net", "matched"), "drop"] == 0
    assert found.loc[("identity", "matched"), "difference"] == 0


def test_subjects_are_clusters():
    """Two slices of one subject and one of another: CR1 with one degree of freedom, by hand."""
    table = generalisation(shifts(subjects=["a", "a", "b"]), "identity")
    row = rows_of(table).loc[("net", "factor 2")]
    lost = np.array([5.0, 6.0, 8.0])
    rest = lost - lost.mean()
    error = math.sqrt(2 / 1 * ((rest[0] + rest[1]) ** 2 + rest[2] ** 2)) / 3
    assert row["subjects"] == 2
    assert row["drop_high"] - row["drop"] == pytest.approx(stats.t.ppf(0.975, 1) * error)


def test_settings_without_a_partner_have_no_differences():
    """No reference in the setting; no matched setting of the method."""
    scores = {key: values for key, values in SCORES.items() if key != ("net", "matched")}
    found = rows_of(generalisation(shifts(scores), "identity"))
    assert math.isnan(found.loc[("net", "more noise"), "difference"])
    assert math.isnan(found.loc[("net", "factor 2"), "drop"])
    assert found.loc[("net", "factor 2"), "difference"] == pytest.approx(-13 / 3)


def test_failures_are_not_left_out():
    """An image without a finite score makes the row's figures NaN, not better."""
    scores = SCORES | {("net", "factor 2"): [20.0, math.nan, 21.0]}
    row = rows_of(generalisation(shifts(scores), "identity")).loc[("net", "factor 2")]
    assert row[["psnr", "difference", "drop"]].isna().all()


def test_order_is_best_and_matched_first():
    table = generalisation(shifts(), "identity")
    assert list(table.columns) == list(COLUMNS)
    assert list(zip(table["method"], table["setting"], strict=True)) == [
        ("net", "matched"),
        ("net", "factor 2"),
        ("net", "more noise"),
        ("identity", "matched"),
        ("identity", "factor 2"),
    ]
    assert list(wide(table, "s").columns) == ["matched", "factor 2", "more noise"]


def test_studies_stay_apart():
    """The reference is that of the same study."""
    other = {("identity", "matched"): [10.0, 11.0], ("net", "matched"): [12.0, 14.0]}
    table = generalisation(pd.concat([shifts(), shifts(other, study="t")]), "identity")
    assert list(dict.fromkeys(table["study"])) == ["s", "t"]
    own = rows_of(table[table["study"] == "t"])
    assert own.loc[("net", "matched"), "difference"] == pytest.approx(2.5)
    assert list(wide(table, "t").columns) == ["matched"]


def test_cells_are_those_of_the_rows():
    table = generalisation(shifts(), "identity")
    row = rows_of(table).loc[("net", "factor 2")]
    half = (row["psnr_high"] - row["psnr_low"]) / 2
    assert wide(table, "s").loc["net", "factor 2"] == f"21.00 ± {half:.2f}"
    assert wide(table, "s").loc["identity", "more noise"] == "-"
    assert set(wide(table, "s", "difference").loc["identity"]) == {"reference", "-"}
    assert wide(table, "s", "difference").loc["net", "factor 2"].startswith("-4.33 ± ")
    assert wide(table, "s", "drop").loc["net", "matched"] == "matched"
    assert wide(table, "s", "drop").loc["net", "factor 2"].startswith("+6.33 ± ")


def test_print_outs():
    """The terminal's fits 100 columns; CSV and JSON have every column."""
    table = generalisation(shifts(), "identity")
    text = render(table)
    assert max(map(len, text.splitlines())) <= 100
    assert "minus that of identity" in text and "21.00 ± " in text
    lines = render(table, "markdown").splitlines()
    assert lines[2] == "| method | matched | factor 2 | more noise |"
    assert lines[4].startswith("| net | 27.33 ± ")
    read = list(csv.DictReader(io.StringIO(render(table, "csv"))))
    assert [row["setting"] for row in read] == list(table["setting"])
    stored = json.loads(render(table, "json"))
    assert set(stored[0]) == set(COLUMNS)
    assert stored[2]["difference"] is None  # no reference with more noise


def test_nothing_was_shifted():
    table = generalisation(shifts({}), "identity")
    assert list(table.columns) == list(COLUMNS) and table.empty
    assert render(table) == "nothing was tested at a shifted setting\n"


def test_names_that_are_not_known():
    table = shifts()
    with pytest.raises(UserError, match="unknown reference 'identty': did you mean 'identity'"):
        generalisation(table, "identty")
    with pytest.raises(UserError, match="no column 'setting'"):
        generalisation(table.drop(columns="setting"), "identity")
    with pytest.raises(UserError, match="unknown format 'html'"):
        render(generalisation(table, "identity"), "html")
