"""The leaderboard against numbers worked by hand, its print-outs, and the verdict."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable

import pandas as pd
import pytest
from scipy import stats

from dipa_bench.errors import UserError
from dipa_bench.reports.conclusions import verdict
from dipa_bench.reports.leaderboard import leaderboard
from dipa_bench.reports.rendering import render
from dipa_bench.tracking.results import TaskResults

PROMISED = {
    *("task", "study", "method", "title", "psnr", "psnr_low", "psnr_high", "ssim", "ssim_low"),
    *("ssim_high", "difference", "difference_low", "difference_high", "p_value"),
    *("seconds_per_image", "operator_calls", "denoiser_calls", "parameters", "trials"),
    *("fit_seconds", "protocol", "operator", "rule", "learned", "start", "state", "reason"),
}


def test_best_first_and_unfinished_last_with_their_reasons(results: TaskResults) -> None:
    board = leaderboard(results)
    assert list(board["method"]) == ["ldipa", "bb", "scalar", "identity", "absent", "wild"]
    assert set(board.columns) >= PROMISED
    assert list(board["reason"][-2:]) == ["needs CUDA", "all trials diverged"]
    assert board["psnr"][-2:].isna().all(), "what did not finish has no score"


def test_a_row_by_hand(results: TaskResults) -> None:
    row = leaderboard(results).set_index("method").loc["ldipa"]
    test = stats.ttest_1samp([3.0, 3.0, 4.0], 0)
    low, high = test.confidence_interval(0.95)
    assert row["psnr"] == pytest.approx(76 / 3)
    assert row["ssim"] == pytest.approx(0.76 / 3)
    assert row["difference"] == pytest.approx(10 / 3)
    assert (row["difference_low"], row["difference_high"]) == pytest.approx((low, high))
    assert row["p_value"] == pytest.approx(test.pvalue)
    assert (row["task"], row["parameters"], row["fit_seconds"]) == ("sr", 256, 50.0)


def test_the_rank_test_is_left_out_where_no_column_shows_it(results: TaskResults) -> None:
    with_it, without = leaderboard(results), leaderboard(results, rank_test=False)
    assert with_it["p_wilcoxon"].notna().any() and without["p_wilcoxon"].isna().all()
    pd.testing.assert_frame_equal(
        with_it.drop(columns="p_wilcoxon"), without.drop(columns="p_wilcoxon")
    )


def test_further_scores_have_paired_differences(results: TaskResults) -> None:
    """Means and differences of each that is known; of what an older version left out, none."""
    images = results.images
    images["null_error"] = 10.0 ** (-images["psnr"] / 10)
    images["psnr_best"] = images["psnr"] + images["method"].map({"ldipa": 1.0}).fillna(0.5)
    rows = leaderboard(results).set_index("method")
    ours, theirs = (
        images[images["method"] == name].set_index("image") for name in ("ldipa", "identity")
    )
    own = ours["null_error"] - theirs["null_error"]
    found = rows.loc["ldipa"]
    assert found["null_error"] == pytest.approx(ours["null_error"].mean())
    assert found["null_error_difference"] == pytest.approx(own.mean())
    low, high = stats.ttest_1samp(own, 0).confidence_interval(0.95)
    ends = found["null_error_difference_low"], found["null_error_difference_high"]
    assert ends == pytest.approx((low, high))
    assert found["psnr_best_difference"] == pytest.approx(found["difference"] + 0.5)
    assert rows["nmse"].isna().all() and rows["nmse_difference"].isna().all()
    columns = ["method", "psnr_best", "null_error", "null_error_difference", "nmse"]
    table = render(leaderboard(results), "markdown", columns)
    assert r"| best iteration \[dB\] | null error | null error vs identity | NMSE |" in table
    assert f"| {found['psnr_best']:.2f} | {found['null_error']:.4f} |" in table


def test_the_reference_is_taken_from_the_same_study(
    make_results: Callable[..., TaskResults],
) -> None:
    found = leaderboard(
        make_results(
            *[{"method": "identity"}, {"method": "a"}, {"method": "b", "study": "s2"}],
            psnr={"identity": [20.0, 20.0], "a": [21.0, 22.0], "b": [30.0, 31.0]},
        )
    ).set_index("method")
    assert found.loc["a", "difference"] == pytest.approx(1.5)
    assert math.isnan(found.loc["b", "difference"]) and math.isnan(found.loc["b", "p_value"])


def test_an_unfinished_reference_is_none(results: TaskResults) -> None:
    assert leaderboard(results, reference="wild")["difference"].isna().all()
    with pytest.raises(UserError, match="unknown reference 'nobody'"):
        leaderboard(results, reference="nobody")


def test_filters_and_names_that_are_not_known(make_results: Callable[..., TaskResults]) -> None:
    made = make_results(
        *[{"method": "a"}, {"method": "b", "study": "s2", "protocol": "published"}],
        psnr={"a": [20.0], "b": [21.0]},
    )
    assert list(leaderboard(made, protocol="published")["method"]) == ["b"]
    assert list(leaderboard(made, study="s1")["method"]) == ["a"]
    with pytest.raises(UserError, match="unknown study 's3': did you mean"):
        leaderboard(made, study="s3")
    with pytest.raises(UserError, match="unknown protocol 'tune': did you mean 'tuned'"):
        leaderboard(made, protocol="tune")


def test_images_that_failed_put_a_method_below_and_say_why(
    make_results: Callable[..., TaskResults],
) -> None:
    made = make_results(
        *[{"method": "good"}, {"method": "bad"}, {"method": "exact"}],
        psnr={"good": [20.0, 21.0], "bad": [math.nan, 50.0], "exact": [math.inf, 20.0]},
    )
    board = leaderboard(made)
    assert list(board["method"]) == ["exact", "good", "bad"]
    assert board["reason"].iloc[-1] == "no finite PSNR on 1 of 2 test images"
    assert math.isfinite(board["psnr"].iloc[0])


def test_nothing_measured_yet() -> None:
    empty = TaskResults("sr", *[pd.DataFrame()] * 4)
    board = leaderboard(empty)
    assert board.empty and set(board.columns) >= PROMISED
    assert json.loads(render(board, "json")) == []
    assert "empty" in render(board, "table") and "empty" in render(board, "markdown")
    assert "empty" in verdict(board, empty)


def test_json_round_trip(results: TaskResults) -> None:
    board = leaderboard(results)
    rows = json.loads(render(board, "json"), parse_constant=lambda name: pytest.fail(name))
    assert [row["method"] for row in rows] == list(board["method"])
    assert rows[0]["psnr"] == board["psnr"].iloc[0]
    assert rows[0]["learned"] is True and rows[0]["protocol"] == "tuned"
    assert rows[-1]["psnr"] is None and rows[-1]["difference"] is None
    assert rows[0]["reason"] is None and rows[0]["parameters"] == 256


def test_csv_has_every_column(results: TaskResults) -> None:
    board = leaderboard(results)
    rows = list(csv.DictReader(io.StringIO(render(board, "csv"))))
    assert [row["method"] for row in rows] == list(board["method"])
    assert float(rows[0]["psnr"]) == board["psnr"].iloc[0]
    assert rows[-1]["psnr"] == ""


def test_table_fits_a_terminal(results: TaskResults) -> None:
    text = render(leaderboard(results), "table")
    assert max(map(len, text.splitlines())) <= 100
    line = next(line for line in text.splitlines() if "ldipa" in line)
    half = stats.t.ppf(0.975, 2) * stats.sem([3.0, 3.0, 4.0])
    assert "25.33 ± " in line and f"+3.33 ± {half:.2f}" in line
    assert "not ranked: wild (diverged): all trials diverged" in text


@pytest.mark.parametrize("format", ["table", "markdown"])
def test_hostile_names_neither_steer_nor_break_the_print_outs(
    make_results: Callable[..., TaskResults], format: str
) -> None:
    name = "[red]a|b\x1b[31m\n<script>" + "x" * 4000
    made = make_results({"method": name}, {"method": "identity"}, psnr={name: [20.0, 21.0]})
    text = render(leaderboard(made), format)
    assert "\x1b" not in text
    if format == "table":
        assert "[red]" in text and max(map(len, text.splitlines())) <= 100
    else:
        assert "<" not in text.replace("\\<", "")
        rows = [line for line in text.splitlines() if line.startswith("|")]
        assert {line.replace("\\|", "").count("|") for line in rows} == {11}


def test_an_unknown_format_names_the_nearest(results: TaskResults) -> None:
    with pytest.raises(UserError, match="unknown format 'markdwon': did you mean 'markdown'"):
        render(leaderboard(results), "markdwon")


def test_verdict_by_hand(results: TaskResults) -> None:
    # best learned is ldipa, best untrained bb: differences 2, 1.5 and 3; 50 s against 2 s
    low, high = stats.ttest_1samp([2.0, 1.5, 3.0], 0).confidence_interval(0.95)
    assert verdict(leaderboard(results), results) == (
        "best learned method (ldipa) minus the best method without training (bb) = "
        f"+2.17 dB [{low:+.2f}, {high:+.2f}], at 25 times its fitting cost"
    )


def test_verdict_of_a_free_rival_gives_both_times(make_results: Callable[..., TaskResults]) -> None:
    made = make_results(
        {"method": "free", "fit_seconds": 0.001, "start": "lmmse"},
        {"method": "net", "learned": True, "fit_seconds": 300.0},
        psnr={"free": [20.0], "net": [19.5]},
    )
    line = verdict(leaderboard(made), made)
    assert "-0.50 dB [no interval from one subject]" in line
    assert "fitted in 300 s against 0.001 s" in line
    assert "(free; its LMMSE start was fitted on training images)" in line


def test_verdict_without_a_pair_says_so(make_results: Callable[..., TaskResults]) -> None:
    net = {"method": "net", "learned": True}
    only = make_results({"method": "identity"}, psnr={"identity": [20.0]})
    assert "no learned method" in verdict(leaderboard(only), only)
    only = make_results(net, psnr={"net": [20.0]})
    assert "no method without training" in verdict(leaderboard(only), only)
    only = make_results(net | {"state": "skipped"}, psnr={})
    assert "no method has finished" in verdict(leaderboard(only), only)


def test_verdict_per_study(make_results: Callable[..., TaskResults]) -> None:
    made = make_results(
        *[{"method": "a"}, {"method": "b", "study": "s2"}], psnr={"a": [20.0], "b": [21.0]}
    )
    lines = verdict(leaderboard(made), made).splitlines()
    assert [line.split(":")[0] for line in lines] == ["s1", "s2"]
