"""The leaderboard: one row per study and method, and a verdict in one line."""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Any

import pandas as pd

from dipa_bench import statistics
from dipa_bench.errors import unknown
from dipa_bench.reports.rendering import short
from dipa_bench.tracking.results import TaskResults

PROTOCOLS = ("tuned", "published")
COLUMNS = (
    *("task", "study", "method", "title"),
    *("psnr", "psnr_low", "psnr_high", "psnr_seed_std"),
    *("ssim", "ssim_low", "ssim_high"),
    *("reference", "difference", "difference_low", "difference_high", "p_value"),
    *("images", "subjects", "unpaired_images"),
    *("seconds_per_image", "operator_calls", "denoiser_calls", "parameters"),
    *("trials", "seeds", "fit_seconds", "search_seconds"),
    *("protocol", "preset", "operator", "rule", "learned", "start", "state", "reason", "caveat"),
)
NEGLIGIBLE = 0.1
"""Seconds; a fitting time below this is no denominator."""

REFERENCE = "identity"
Row = dict[Hashable, Any]


def leaderboard(
    results: TaskResults,
    reference: str | None = None,
    protocol: str | None = None,
    study: str | None = None,
) -> pd.DataFrame:
    """One row per study and method, best mean test PSNR first, unfinished methods last.

    Args:
        results: what was measured.
        reference: the method of the *same* study that each row is paired with, image by image;
            where a study has no finished method of this name, the difference columns are NaN. By
            default what the study itself names, else ``identity``.
        protocol: keep only ``"tuned"`` or ``"published"`` rows.
        study: keep only this study.

    Returns:
        A frame with the columns `COLUMNS`: psnr and differences in dB with the ends of their 95%
        intervals (see `dipa_bench.statistics`), psnr_seed_std the standard deviation of
        the mean PSNR over seeds in dB, seconds and calls for one image, fit_seconds the mean over
        seeds. Methods that are not finished have no scores.

    Raises:
        UserError: no such study or protocol, or no study with a method named like the reference.
    """
    methods = results.methods
    if reference is not None and not methods.empty and reference not in set(methods["method"]):
        raise unknown("reference", reference, set(methods["method"]))
    if protocol is not None and protocol not in PROTOCOLS:
        raise unknown("protocol", protocol, PROTOCOLS)
    studies = set() if methods.empty else set(methods["study"])
    if study is not None and study not in studies:
        raise unknown("study", study, studies)
    rows = [
        _row(results, record, reference or record.get("reference") or REFERENCE)
        for record in methods.to_dict("records")
        if protocol in (None, record["protocol"]) and study in (None, record["study"])
    ]
    rows.sort(key=_order)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def image_rows(results: TaskResults, study: str, method: str) -> pd.DataFrame:
    """The rows of ``results.images`` of one finished method; none if it did not finish."""
    images, methods = results.images, results.methods
    if images.empty or methods.empty:
        return images.iloc[:0]
    row = (methods["study"] == study) & (methods["method"] == method)
    if not (methods.loc[row, "state"] == "finished").any():
        return images.iloc[:0]
    return images[(images["study"] == study) & (images["method"] == method)]


def _row(results: TaskResults, record: Row, reference: str) -> Row:
    """A leaderboard row from a row of ``results.methods``."""
    ours = image_rows(results, record["study"], record["method"])
    psnr = statistics.mean_interval(ours, "psnr")
    ssim = statistics.mean_interval(ours, "ssim")
    paired = statistics.paired_difference(ours, image_rows(results, record["study"], reference))
    row = {name: record[name] for name in COLUMNS if name in record}
    row |= {"task": results.task, "psnr_seed_std": statistics.seed_spread(ours)}
    row |= {"psnr": psnr.mean, "psnr_low": psnr.low, "psnr_high": psnr.high}
    row |= {"ssim": ssim.mean, "ssim_low": ssim.low, "ssim_high": ssim.high}
    row |= {"reference": reference, "difference": paired.mean, "p_value": paired.p_value}
    row |= {"difference_low": paired.low, "difference_high": paired.high}
    row |= {"images": psnr.images, "subjects": psnr.subjects}
    row |= {"unpaired_images": paired.unpaired if paired.images else 0}
    if record["state"] == "finished" and math.isnan(psnr.mean):
        row["reason"] = _why_unscored(ours)
    return row


def _why_unscored(images: pd.DataFrame) -> str:
    """Why a finished method has no mean PSNR, in one line."""
    scores = statistics.image_scores(images)
    if scores.empty:
        return "no test scores"
    return f"no finite PSNR on {int(scores.isna().sum())} of {len(scores)} test images"


def _order(row: Row) -> tuple[bool, bool, float, str, str]:
    """Sort key: finished before not, scored before not, best first, then by name."""
    missing = math.isnan(row["psnr"])
    score = 0.0 if missing else -row["psnr"]
    return row["state"] != "finished", missing, score, str(row["study"]), str(row["method"])


# ---------------------------------------------------------------------------------- the verdict


def verdict(board: pd.DataFrame, results: TaskResults) -> str:
    """What training bought: best learned method against the best one without training.

    "Best" is by mean test PSNR among the finished rows of the board, and the difference is paired
    per image and clustered by subject; it carries no correction for the choice of the best. Cost is
    ``fit_seconds``: one fit of the winner, without its search.

    Returns:
        One line, or one line per study if the board holds several.
    """
    studies = sorted(set(board["study"]))
    if not studies:
        return "no verdict: the leaderboard is empty"
    lines = [_study_verdict(board[board["study"] == study], results) for study in studies]
    if len(studies) == 1:
        return lines[0]
    return "\n".join(f"{short(study)}: {line}" for study, line in zip(studies, lines, strict=True))


def _study_verdict(board: pd.DataFrame, results: TaskResults) -> str:
    """The verdict line of one study."""
    ranked = board[(board["state"] == "finished") & board["psnr"].notna()]
    is_learned = ranked["learned"].astype(bool)
    learned, untrained = ranked[is_learned], ranked[~is_learned]
    if learned.empty and untrained.empty:
        return "no verdict: no method has finished"
    if learned.empty:
        return f"no verdict: no learned method finished; best untrained: {_named(untrained)}"
    if untrained.empty:
        return f"no verdict: no method without training finished; best learned: {_named(learned)}"
    ours, theirs = learned.iloc[0], untrained.iloc[0]
    paired = statistics.paired_difference(
        image_rows(results, ours["study"], ours["method"]),
        image_rows(results, theirs["study"], theirs["method"]),
    )
    lmmse = "; its LMMSE start was fitted on training images" if theirs["start"] == "lmmse" else ""
    return (
        f"best learned method ({short(ours['method'])}) minus the best method without training "
        f"({short(theirs['method'])}{lmmse}) = {_gain(paired)}, "
        f"{_cost(float(ours['fit_seconds']), float(theirs['fit_seconds']))}"
    )


def _named(rows: pd.DataFrame) -> str:
    """The first row's method and PSNR in words."""
    return f"{short(rows.iloc[0]['method'])} at {rows.iloc[0]['psnr']:.2f} dB"


def _gain(paired: statistics.Difference) -> str:
    """A paired difference in words, in dB."""
    if paired.images == 0:
        return "unknown (no image in common)"
    note = f" on {paired.images} common images" if paired.unpaired else ""
    if math.isnan(paired.low):
        return f"{paired.mean:+.2f} dB [no interval from one subject]{note}"
    return f"{paired.mean:+.2f} dB [{paired.low:+.2f}, {paired.high:+.2f}]{note}"


def _cost(ours: float, theirs: float) -> str:
    """How the fitting costs, both in seconds, compare."""
    if not (math.isfinite(ours) and math.isfinite(theirs)):
        return "fitting cost unknown"
    if theirs < NEGLIGIBLE:
        return f"fitted in {ours:.3g} s against {theirs:.2g} s"
    ratio = ours / theirs
    times = f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.2g}"
    return f"at {times} times its fitting cost"
