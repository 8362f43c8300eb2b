"""What a leaderboard says, in sentences: who is better, what training bought, what to doubt."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd

from dipa_bench.reports import comparison
from dipa_bench.reports.leaderboard import image_rows
from dipa_bench.reports.text import short
from dipa_bench.tracking.results import TaskResults

NEGLIGIBLE = 0.1  # seconds; a fitting time below this is no denominator
FEW = 10  # subjects, below which intervals are rough
STILL = 0.02  # dB of validation PSNR: a search that gains so much late has not converged
TUNED = 60  # settings from which the tuner of solver settings is used (docs/search.md)
CONTROL = 0.05  # dB; ranges end, so a method may come only so close to what it can be
WORDS = ("better", "worse", "equivalent", "undecided")


def conclusions(board: pd.DataFrame) -> list[str]:
    """A study's verdicts, one line for each word, then warnings.

    Args:
        board: the rows of one study.
    """
    rows = board[board["difference"].notna()]
    if rows.empty:
        return []
    reference, margin = short(rows["reference"].iloc[0]), rows["margin"].iloc[0]
    compared = {
        "better": f"better than {reference}",
        "worse": f"worse than {reference}",
        "equivalent": f"equivalent to {reference} within {margin:g} dB",
        "undecided": "undecided",
    }
    lines = []
    for word in WORDS:
        chosen = rows[rows["verdict"] == word]
        if not chosen.empty:
            told = ", ".join(_row(row, word) for _, row in chosen.iterrows())
            lines.append(f"{compared[word]}: {told}")
    return lines + [f"warning: {line}" for line in warnings(board)]


def warnings(board: pd.DataFrame) -> Iterator[str]:
    """Why the verdicts of a study may not be believed as they stand."""
    scored = board[board["psnr"].notna()]
    if scored.empty:
        return
    subjects, replicates = int(scored["subjects"].min()), int(scored["replicates"].min())
    if subjects < 2:
        yield "one subject: no intervals, and no verdicts"
    elif subjects < FEW:
        yield f"{subjects} subjects: intervals are rough"
    if replicates < 2:
        yield "one replicate: intervals hold subjects, not another search or fit (`--replicates 2`)"
    yield from _untuned(scored)
    for _, row in scored[scored["late_gain"] >= STILL].iterrows():
        yield (
            f"{short(row['method'])} gained {row['late_gain']:.2f} dB in the last quarter of its "
            "tuning: it may not have converged, a larger budget would tell"
        )
    yield from _unconverged(scored)
    for _, row in scored[scored["disagree"].astype(bool)].iterrows():
        spread = row["psnr_replicate_std"]
        yield f"replicates of {short(row['method'])} disagree (standard deviation {spread:.2f} dB)"
    for _, row in scored[scored["reason"].notna()].iterrows():
        yield f"{short(row['method'])}: {short(row['reason'], 200)}"


def _untuned(rows: pd.DataFrame) -> Iterator[str]:
    """Rows with settings of the solver of which too few were tried."""
    rows = rows[(rows["protocol"] == "tuned") & rows["start"].notna()]
    by_tuner, trained = rows["late_gain"].notna(), rows["learned"].astype(bool)
    # the tuner starts from `TUNED` and ends where no more is gained; rows that train use it twice,
    # from fewer settings on, and each time it may end one short
    needed = np.where(by_tuner & trained, 2 * (TUNED - 1), np.where(by_tuner, 0, TUNED))
    few = rows[rows["trials"] / rows["replicates"] < needed]
    cure = f"a difference may be what tuning would bring (`--trials {TUNED}` and more tunes)"
    if len(few) and len(few) == len(rows):
        yield f"no row was tuned, none was tried with {TUNED} settings: {cure}"
        return
    few = few[few["trials"] > few["replicates"]]  # one trial: nothing of it is searched
    if len(few):
        names = ", ".join(short(name) for name in few["method"])
        yield f"too few settings tried to tune {names}: {cure}"


def _unconverged(rows: pd.DataFrame) -> Iterator[str]:
    """Rows that tuning left below another one that they can be as well."""
    found = rows.set_index("method")["validation"]
    for _, row in rows[rows["contains"].notna()].iterrows():
        for name in str(row["contains"]).split(", "):
            lack = found.get(name, math.nan) - row["validation"]
            if lack > CONTROL:
                yield (
                    f"{short(row['method'])} can be {short(name)}, and yet tuning left it "
                    f"{lack:.2f} dB below (on validation images): its search has not converged"
                )


def _row(row: pd.Series, word: str) -> str:
    told = f"{short(row['method'])} {row['difference']:+.2f}"
    if word == "undecided" and row["advice"]:
        return f"{told} ({row['advice']} would decide)"
    return told


def verdict(board: pd.DataFrame, results: TaskResults) -> str:
    """What training bought: best learned method against the best one without training.

    "Best" is by mean test PSNR among the finished rows of the board; the difference is paired by
    image and replicate, and carries no correction for the choice of the best. Cost is
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
    grids = [
        comparison.by_replicate(image_rows(results, row["study"], row["method"]))
        for row in (ours, theirs)
    ]
    scores, unpaired = comparison.differences(*grids)
    paired = comparison.compare(scores, unpaired=unpaired)
    lmmse = "; its LMMSE start was fitted on training images" if theirs["start"] == "lmmse" else ""
    return (
        f"best learned method ({short(ours['method'])}) minus the best method without training "
        f"({short(theirs['method'])}{lmmse}) = {_gain(paired)}, "
        f"{_cost(float(ours['fit_seconds']), float(theirs['fit_seconds']))}"
    )


def _named(rows: pd.DataFrame) -> str:
    """The first row's method and PSNR in words."""
    return f"{short(rows.iloc[0]['method'])} at {rows.iloc[0]['psnr']:.2f} dB"


def _gain(paired: comparison.Comparison) -> str:
    """A paired difference in words, in dB."""
    if paired.images == 0:
        return "unknown (no image in common)"
    note = f" on {paired.images} common images" if paired.unpaired else ""
    low, high = paired.interval()
    if math.isnan(low):
        return f"{paired.mean:+.2f} dB [no interval from one subject]{note}"
    return f"{paired.mean:+.2f} dB [{low:+.2f}, {high:+.2f}]{note}"


def _cost(ours: float, theirs: float) -> str:
    """How the fitting costs, both in seconds, compare."""
    if not (math.isfinite(ours) and math.isfinite(theirs)):
        return "fitting cost unknown"
    if theirs < NEGLIGIBLE:
        return f"fitted in {ours:.3g} s against {theirs:.2g} s"
    ratio = ours / theirs
    times = f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.2g}"
    return f"at {times} times its fitting cost"
