"""How soon rows are as good as the reference ends, against runs worked by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from dipa_bench.errors import UserError
from dipa_bench.reports.profiles import arrivals, profile_table, render, shares
from dipa_bench.tracking.results import TaskResults

CURVES = {  # PSNR by iteration of two images
    "identity": ([10.0, 15.0, 19.95, 20.0], [10.0, 20.0, 29.0, 30.0]),
    "fast": ([10.0, 19.9, 21.0, 21.0], [30.5, 29.0, 31.0, 28.0]),
    "slow": ([10.0, 11.0, 12.0, 20.0], [10.0, 11.0, 12.0, 13.0]),
    "direct": ([21.0], [5.0]),
}


@pytest.fixture
def results(make_results: Callable[..., TaskResults]) -> TaskResults:
    costs = {"operator_calls": 8.0, "denoiser_calls": 4.0, "seconds_per_image": 0.3}
    made = make_results(
        *[{"method": name} | costs for name in CURVES],
        {"method": "lost", "state": "failed"},
        psnr={name: [curve[-1] for curve in own] for name, own in CURVES.items()},
    )
    rows = [
        {"study": "s1", "method": name, "seed": 0, "image": f"i{place}", "iteration": k, "psnr": v}
        for name, own in (CURVES | {"lost": ([20.0], [20.0])}).items()
        for place, curve in enumerate(own)
        for k, v in enumerate(curve)
    ]
    return replace(made, curves=pd.DataFrame(rows))


def test_a_run_arrives_where_it_first_is_as_good(results: TaskResults) -> None:
    """Targets are 19.9 and 29.9 dB; costs are shares of those of all three iterations."""
    found = arrivals(results).set_index(["method", "image"])
    expected = {
        ("identity", "i0"): 2,
        ("identity", "i1"): 3,
        ("fast", "i0"): 1,
        ("fast", "i1"): 0,
        ("slow", "i0"): 3,
        ("slow", "i1"): math.inf,
        ("direct", "i0"): 0,
        ("direct", "i1"): math.inf,
    }
    assert found["iterations"].to_dict() == expected
    assert found.loc[("identity", "i0"), "operator_calls"] == pytest.approx(8 * 2 / 3)
    assert found.loc[("fast", "i0"), "seconds"] == pytest.approx(0.1)
    assert found.loc[("fast", "i1"), "denoiser_calls"] == 0
    assert found.loc[("direct", "i0"), "operator_calls"] == 8  # has no iterations: all of it
    assert set(found["reference"]) == {"identity"}


def test_the_table_has_medians_and_shares(results: TaskResults) -> None:
    table = profile_table(results).set_index("method")
    assert list(table.index) == ["fast", "identity", "slow", "direct"]
    assert table["reached"].to_dict() == {"fast": 1, "identity": 1, "slow": 0.5, "direct": 0.5}
    assert table.loc["identity", "iterations"] == 2.5
    assert math.isinf(table.loc["slow", "iterations"])
    text = render(profile_table(results), "sr")
    assert "within 0.1 dB of what identity ends with" in text
    assert "100%        2.5" in text and "50%" in text
    rows = json.loads(render(profile_table(results), "sr", "json"))
    assert {row["method"]: row["iterations"] for row in rows}["slow"] is None
    assert "| fast | 100% | 0.5 |" in render(profile_table(results), "sr", "markdown")


def test_shares_rise_to_what_arrives(results: TaskResults) -> None:
    found = shares(arrivals(results))
    assert found["identity"].to_dict() == {0.0: 0.0, 2.0: 0.5, 3.0: 1.0}
    assert found["fast"].to_dict() == {0.0: 0.5, 1.0: 1.0}
    assert found["slow"].to_dict() == {0.0: 0.0, 3.0: 0.5}


def test_replicates_are_runs_of_one_row_and_share_a_target(results: TaskResults) -> None:
    """The target is the mean over the reference's replicates."""
    again = results.methods.assign(study="s1-replicate1", replicate=1)
    curves = results.curves.assign(study="s1-replicate1")
    own = curves["method"] == "identity"
    curves.loc[own, "psnr"] -= 1.0
    both = replace(
        results,
        methods=pd.concat([results.methods, again], ignore_index=True),
        curves=pd.concat([results.curves, curves], ignore_index=True),
    )
    found = arrivals(both)
    identity = found[(found["method"] == "identity") & (found["image"] == "i0")]
    # the target falls to 19.4: the second replicate, which ends at 19, never gets there
    assert sorted(identity["iterations"]) == [2, math.inf]
    assert set(found["study"]) == {"s1"}
    assert profile_table(both).set_index("method").loc["fast", "runs"] == 4


def test_what_cannot_be_said_is_told(results: TaskResults) -> None:
    with pytest.raises(UserError, match=r"did you mean 'identity'"):
        arrivals(results, "identty")
    with pytest.raises(UserError, match=r"margin = -1"):
        arrivals(results, margin=-1)
    with pytest.raises(UserError, match=r"unknown format"):
        render(profile_table(results), "sr", "pdf")
    nothing = replace(results, curves=results.curves.iloc[:0])
    assert "no curves" in render(profile_table(nothing), "sr")
    others = replace(results, methods=results.methods[results.methods["method"] != "identity"])
    assert arrivals(others).empty


def test_another_reference_and_margin(results: TaskResults) -> None:
    found = arrivals(results, "fast", margin=2.0).set_index(["method", "image"])["iterations"]
    assert found["identity", "i0"] == 2  # 19 dB
    assert found["identity", "i1"] == 2  # 26 dB
    assert np.isinf(found["slow", "i1"])
