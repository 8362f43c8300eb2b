"""Repeated searches against tables worked by hand."""

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
from dipa_bench.reports import tuning
from dipa_bench.reports.tuning import (
    best_at,
    best_so_far,
    curves,
    interval,
    reversals,
    spent,
    verdict,
)
from dipa_bench.reports.tuning_table import budgets, render, sentences, tuning_table
from dipa_bench.tracking.results import TaskResults

NAN = math.nan


def trials(*rows: tuple) -> pd.DataFrame:
    """Trials of one search from (state, value [dB], seconds[, borrowed]), by index."""
    names = ("state", "value", "seconds", "shared_seconds")
    table = pd.DataFrame([dict(zip(names, (*row, 0.0)[:4], strict=True)) for row in rows])
    return table.assign(index=range(len(rows)), number=range(len(rows)))


def done(*values: float, seconds: float = 1.0) -> pd.DataFrame:
    """Trials that all finished and took the same time."""
    return trials(*(("finished", value, seconds) for value in values))


def results(searches: dict, psnr: dict | None = None, **states: str) -> TaskResults:
    """Results from trials by (method, replicate) and test PSNRs of winners; state by method."""
    names = {key: {"study": name(key[1]), "method": key[0]} for key in searches}
    methods = [
        names[key]
        | {"replicate": key[1], "replicate_of": "s", "reference": "identity"}
        | {"state": states.get(key[0], "finished")}
        for key in searches
    ]
    tried = [table.assign(**names[key]) for key, table in searches.items()]
    images = [
        names[key] | {"seed": 0, "image": f"i{k}", "subject": f"p{k}", "psnr": value, "ssim": 0.5}
        for key, values in (psnr or {}).items()
        for k, value in enumerate(values)
    ]
    joined = pd.concat(tried, ignore_index=True) if tried else pd.DataFrame()
    empty = pd.DataFrame()
    return TaskResults("sr", pd.DataFrame(methods), pd.DataFrame(images), empty, joined)


def name(replicate: int) -> str:
    return f"s-replicate{replicate}" if replicate else "s"


# ---------------------------------------------------------------------------- one search


def test_spent_charges_what_was_borrowed_once_and_nothing_for_what_was_interrupted():
    table = trials(
        ("finished", 20.0, 2.0, 0.0),
        ("interrupted", NAN, 50.0, 90.0),
        ("pruned", 25.0, 1.0, 7.0),
        ("failed", NAN, NAN, NAN),
        ("finished", 21.0, 3.0, 5.0),
        ("running", NAN, NAN, NAN),
        ("diverged", NAN, 0.5, 8.0),
    )
    shuffled = table.assign(study="s", method="m").sample(frac=1, random_state=3)
    found = spent(shuffled)
    assert found.tolist() == [2.0, 2 + 1 + 7, 2 + 1 + 7, 2 + 1 + 3 + 7, 2 + 1 + 3 + 0.5 + 8]
    assert table.loc[found.index, "index"].tolist() == [0, 2, 3, 4, 6]


def test_the_best_is_of_finished_trials_and_an_interrupted_one_is_not_counted():
    search = trials(
        ("pruned", 30.0, 1.0),
        ("finished", 20.0, 1.0),
        ("interrupted", 40.0, 9.0),
        ("failed", NAN, 1.0),
        ("finished", math.inf, 1.0),
        ("finished", 19.0, 1.0),
        ("finished", 22.0, 1.0),
    )
    table = best_so_far(results({("m", 0): search, ("m", 2): done(21.0)}))
    assert list(table.columns) == list(tuning.BEST_SO_FAR)
    first = table[table["replicate"] == 0]
    assert first["trials"].tolist() == [1, 2, 3, 4, 5, 6]
    assert first["seconds"].tolist() == [1, 2, 3, 4, 5, 6]
    np.testing.assert_array_equal(first["best"], [NAN, 20, 20, 20, 20, 22])
    assert table[["study", "replicate_of", "replicate"]].iloc[-1].tolist() == [
        "s-replicate2",
        "s",
        2,
    ]


def test_the_place_in_the_search_orders_trials_not_their_number():
    search = done(20.0, 21.0, 22.0).assign(index=[0, 2, 1], number=[0, 1, 2])
    assert best_so_far(results({("m", 0): search}))["best"].tolist() == [20, 22, 22]


def test_nothing_makes_empty_tables():
    nothing = TaskResults("sr", *[pd.DataFrame()] * 4)
    for table, columns in (
        (best_so_far(nothing), tuning.BEST_SO_FAR),
        (curves(nothing), tuning.CURVES),
        (verdict(nothing), tuning.VERDICT),
        (reversals(nothing), tuning.REVERSALS),
    ):
        assert table.empty
        assert list(table.columns) == list(columns)
    assert render(tuning_table(nothing), nothing) == "no trials are known\n"
    assert json.loads(render(tuning_table(nothing), nothing, "json")) == []


# ---------------------------------------------------------------------------- curves


def test_a_step_function_holds_between_trials_and_after_the_end_and_waits_for_all():
    made = results(
        {
            ("m", 0): trials(
                ("failed", NAN, 1.0), ("finished", 20.0, 2.0), ("finished", 24.0, 4.0)
            ),
            ("m", 1): done(21.0, 22.0, seconds=2.5),
        }
    )
    by_trial = curves(made)
    assert list(by_trial.columns) == list(tuning.CURVES)
    assert by_trial["budget"].tolist() == [2, 3], "no mean before both have a finished trial"
    assert by_trial["mean"].tolist() == [(20 + 22) / 2, (24 + 22) / 2]
    by_time = curves(made, "seconds").set_index("budget")["mean"]
    assert by_time.to_dict() == {3.0: (20 + 21) / 2, 5.0: (20 + 22) / 2, 7.0: (24 + 22) / 2}
    at = best_at(made, [2.99, 3.0, 4.9, 6.999, 7.0, 1e9], "seconds").loc["s", "m"]
    np.testing.assert_array_equal(at, [NAN, 20.5, 20.5, 21, 23, 23])


def test_of_a_search_that_still_runs_nothing_is_known_beyond_its_last_trial():
    made = results({("m", 0): done(20.0, 21.0, 22.0), ("m", 1): done(22.0, 23.0)}, m="running")
    assert curves(made)["budget"].tolist() == [1, 2]
    np.testing.assert_array_equal(best_at(made, [2, 3]).loc["s", "m"], [22, NAN])
    (row,) = verdict(made).to_dict("records")
    assert (row["trials"], row["best"], row["running"]) == (2, 22.0, True)
    assert "m still runs: shown up to trial 2" in render(tuning_table(made), made)
    over = results({("m", 0): done(20.0, 21.0, 22.0), ("m", 1): done(22.0, 23.0)})
    assert curves(over)["mean"].tolist() == [21, 22, 22.5]


def test_the_band_is_scipys_t_interval_and_one_search_has_none():
    values = [20.0, 21.0, 23.5]
    made = results({("m", k): done(value) for k, value in enumerate(values)})
    row = curves(made).iloc[0]
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (row["mean"], row["low"], row["high"]) == pytest.approx((21.5, low, high))
    alone = curves(results({("m", 0): done(20.0)})).iloc[0]
    assert (alone["mean"], alone["replicates"]) == (20.0, 1)
    assert math.isnan(alone["low"]) and math.isnan(alone["high"])
    same = curves(results({("m", k): done(20.0) for k in range(3)})).iloc[0]
    assert same["low"] == same["mean"] == same["high"] == 20.0


@pytest.mark.parametrize("searches", [2, 3, 5])
def test_the_interval_covers_in_19_of_20_cases(searches: int):
    draws = np.random.default_rng(searches).normal(23.0, 0.2, (searches, 2000))
    mean, low, high = interval(draws)
    assert np.all((low <= mean) & (mean <= high))
    assert np.mean((low <= 23.0) & (high >= 23.0)) == pytest.approx(0.95, abs=0.02)


def test_the_interval_of_repeated_searches_covers_their_expectation():
    """Best of four exponential trials, whose mean is 1 + 1/2 + 1/3 + 1/4, from ten searches."""
    draws = np.random.default_rng(0).exponential(size=(10, 4, 2000)).max(axis=1)
    _, low, high = interval(draws)
    truth = 1 + 1 / 2 + 1 / 3 + 1 / 4
    assert np.mean((low <= truth) & (high >= truth)) == pytest.approx(0.95, abs=0.035)  # skewed


def test_studies_are_not_mixed():
    one, two = results({("m", 0): done(20.0)}), results({("m", 0): done(30.0)})
    for table in (two.methods, two.trials):
        table["study"] = "other"
    two.methods["replicate_of"] = "other"
    both = TaskResults(
        "sr", pd.concat([one.methods, two.methods]), *[pd.DataFrame()] * 2,
        pd.concat([one.trials, two.trials]),
    )  # fmt: skip
    assert curves(both)["mean"].tolist() == [30.0, 20.0]
    assert curves(both)["replicates"].tolist() == [1, 1]


# ---------------------------------------------------------------------------- the verdict

QUALITY = {
    ("identity", 0): done(20.0, 22.0, 22.0, 22.05),
    ("identity", 1): done(21.0, 21.0, 21.0, 22.15),
    ("net", 0): done(19.0, 23.0, 23.5, 23.55, seconds=3.0),
    ("net", 1): done(20.0, 21.0, 23.0, 23.05, seconds=3.0),
}
TESTED = {
    ("identity", 0): [20.0, 24.0],
    ("identity", 1): [20.2, 24.2],
    ("net", 0): [21.0, 26.0],
    ("net", 1): [21.5, 26.1],
}


def test_the_verdict_by_hand():
    net, identity = verdict(results(QUALITY, TESTED)).to_dict("records")
    assert (net["method"], identity["method"]) == ("net", "identity")
    assert (net["replicates"], net["trials"], net["seconds"]) == (2, 4, 12.0)
    assert net["best"] == pytest.approx(23.3)
    assert net["gain"] == pytest.approx(((23.55 - 22.05) + (23.05 - 22.15)) / 2)
    low, high = stats.ttest_1samp([1.5, 0.9], 0).confidence_interval(0.95)
    assert (net["gain_low"], net["gain_high"]) == pytest.approx((low, high))
    assert (net["near_trials"], net["near_seconds"]) == (3, 9)
    assert (identity["near_trials"], identity["near_seconds"]) == ((2 + 4) / 2, 3)
    assert (identity["gain"], identity["gain_low"]) == (0, 0)


def test_other_searches_and_other_images_have_intervals_of_their_own():
    net, _ = verdict(results(QUALITY, TESTED)).to_dict("records")
    searches = stats.ttest_1samp([23.5, 23.8], 0).confidence_interval(0.95)
    images = stats.ttest_1samp([21.25, 26.05], 0).confidence_interval(0.95)
    assert (net["test"], net["test_repeats"]) == (pytest.approx(23.65), 2)
    assert (net["test_low"], net["test_high"]) == pytest.approx(tuple(searches))
    assert (net["images_low"], net["images_high"]) == pytest.approx(tuple(images))
    gains = stats.ttest_1samp([1.5, 1.6], 0).confidence_interval(0.95)
    paired = stats.ttest_1samp([1.15, 1.95], 0).confidence_interval(0.95)
    assert (net["test_gain_low"], net["test_gain_high"]) == pytest.approx(tuple(gains))
    assert (net["images_gain_low"], net["images_gain_high"]) == pytest.approx(tuple(paired))


def test_only_searches_that_both_have_are_paired():
    made = results(QUALITY | {("net", 2): done(40.0)}, TESTED)
    net, _ = verdict(made).to_dict("records")
    assert net["replicates"] == 3
    assert net["gain"] == pytest.approx(1.2)
    alone = results({("net", 0): done(20.0)})
    assert math.isnan(verdict(alone).iloc[0]["gain"])


def test_a_search_without_a_finished_trial_has_no_verdict():
    made = results({("identity", 0): done(20.0), ("m", 0): trials(("failed", NAN, 1.0))})
    row = verdict(made).iloc[-1]
    assert row["method"] == "m"
    assert all(math.isnan(row[key]) for key in ("best", "gain", "near_trials", "near_seconds"))
    assert set(curves(made)["method"]) == {"identity"}
    assert "-" in render(tuning_table(made), made)


def test_a_reference_or_unit_that_is_not_there_is_told():
    made = results(QUALITY)
    with pytest.raises(UserError, match="did you mean 'identity'"):
        verdict(made, "identty")
    with pytest.raises(UserError, match="choose one of seconds, trials"):
        curves(made, "hours")
    assert set(verdict(made, "net")["reference"]) == {"net"}


# ---------------------------------------------------------------------------- equal budgets


def test_who_leads_by_trials_may_not_lead_by_seconds():
    made = results(
        {
            ("fast", 0): done(20.0, 22.0),
            ("slow", 0): done(21.0, 23.0, seconds=2.0),  # 21 when fast was done after 2 s
            ("slower", 0): done(22.5, 24.0, seconds=3.0),  # nothing then
            ("even", 0): done(22.5, 23.0, seconds=2.0),  # ahead then too
            ("fixed", 0): done(10.0, seconds=0.1),  # nothing was searched
        }
    )
    found = reversals(made).set_index(["leader", "other"])
    assert set(found.index) == {
        ("slow", "fast"),
        ("slower", "fast"),
        ("slower", "slow"),
        ("slower", "even"),
    }
    row = found.loc["slow", "fast"]
    assert (row["budget"], row["leader_best"], row["other_best"]) == (2, 21, 22)
    assert math.isnan(found.loc[("slower", "fast"), "leader_best"])
    assert reversals(made, "trials").empty
    text = "\n".join(sentences(verdict(made), made, "s"))
    assert "when fast was done (2 s, 22.00 dB), rows that end ahead of it were behind" in text
    assert "slow (21.00 dB), slower (nothing yet)" in text


def test_in_equal_time_a_quick_row_may_lead_by_its_many_trials_only():
    quick = done(20.0, 20.5, *[21.0] * 5, 23.0, seconds=1.0)
    made = results({("quick", 0): quick, ("slow", 0): done(21.0, 22.0, seconds=4.0)})
    assert reversals(made).empty
    (row,) = reversals(made, "trials").to_dict("records")
    assert row == {
        **{"study": "s", "leader": "quick", "other": "slow"},
        **{"budget": 2.0, "leader_best": 20.5, "other_best": 22.0},
    }


def test_ties_have_no_order():
    made = results({("a", 0): done(20.0, 22.005, seconds=9.0), ("b", 0): done(20.0, 22.0)})
    assert reversals(made).empty


# ---------------------------------------------------------------------------- print-outs


def test_budgets_are_powers_of_two_or_1_2_5():
    assert budgets(pd.Series(range(1, 81)), "trials") == [1, 2, 4, 8, 16, 32, 64]
    assert budgets(pd.Series([0.4, 7.0]), "seconds") == [0.5, 1, 2, 5]
    assert budgets(pd.Series([3.0]), "seconds") == []
    assert budgets(pd.Series([0.0]), "seconds") == []
    assert budgets(pd.Series([], dtype=object), "trials") == []
    assert len(budgets(pd.Series([0.01, 1e6]), "seconds")) <= 8


def test_the_table_and_what_it_says():
    made = results(QUALITY, TESTED)
    text = render(tuning_table(made), made)
    lines = {line.split()[0]: line.split() for line in text.splitlines()[2:4]}
    half = (np.subtract(*stats.ttest_1samp([23.55, 23.05], 0).confidence_interval(0.95))) / -2
    assert lines["net"][:8] == ["net", "2", "19.50", "22.00", "23.30", "23.30", "±", f"{half:.2f}"]
    assert lines["net"][8:10] == ["3", "+1.20"]
    assert lines["identity"][-1] == "reference"
    said = " ".join(text.split())
    assert "± is half the width of the 95% t interval over 2 searches, wide from so few" in said
    assert "luck in the search may explain it" in said, "two searches 0.6 dB apart"
    sure = QUALITY | {("net", 1): done(19.0, 23.0, 23.5, 23.66, seconds=3.0)}
    made = results(sure, TESTED)
    assert "more than luck in the search explains" in " ".join(sentences(verdict(made), made, "s"))
    one = results({key: value for key, value in QUALITY.items() if key[1] == 0})
    text = " ".join(sentences(verdict(one), one, "s"))
    assert "one search each, so no ±" in text
    assert "whether another search agrees is not known" in text


def test_csv_and_json_have_every_column():
    made = results(QUALITY, TESTED)
    table = tuning_table(made, unit="seconds")
    assert [name for name in table if name.startswith("best_at")][:2] == [
        "best_at_1_seconds",
        "best_at_2_seconds",
    ]
    rows = list(csv.DictReader(io.StringIO(render(table, made, "csv"))))
    assert [row["method"] for row in rows] == ["net", "identity"]
    assert float(rows[1]["best_at_2_seconds"]) == 21.5
    assert json.loads(render(table, made, "json"))[0]["best_at_1_seconds"] is None
    with pytest.raises(UserError, match="format"):
        render(table, made, "markdown")


def test_hostile_names_stay_text():
    odd = "\x1b[31m[bold]<script>\n" + "x" * 200
    made = results({("identity", 0): done(20.0, 21.0), (odd, 0): done(22.0, 23.0, seconds=9.0)})
    text = render(tuning_table(made), made)
    assert "\x1b" not in text
    assert "[bold]<script>" in text
    assert "x" * 100 not in text
