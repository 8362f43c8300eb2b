"""What an entry came to: which trials count, the winner among them, and its record."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from dipa_bench import names, statistics
from dipa_bench.tracking.charges import charged_seconds
from dipa_bench.tracking.records import RunRecord

HEADLINE = ("psnr", "ssim")
"""Scores of which a record has intervals, and what the published settings came to."""


def spent(trials: Sequence[RunRecord]) -> list[float]:
    """`charged_seconds` of an entry's search after each of its trials, given in their order."""
    costs = ("trial/seconds", "trial/shared_seconds")
    return charged_seconds(
        *([trial.metrics.get(cost, 0.0) for trial in trials] for cost in costs)
    ).tolist()


def within(trials: Sequence[RunRecord], minutes: float | None) -> list[RunRecord]:
    """Those of an entry's trials, in order, that ended within the budget; the first one always."""
    if minutes is None:
        return list(trials)
    ends = spent(trials)
    return [
        trial
        for place, (trial, end) in enumerate(zip(trials, ends, strict=True))
        if not place or end <= 60 * minutes
    ]


def settled(trials: Sequence[RunRecord], patience: int | None, gain: float) -> bool:
    """Whether the last `patience` trials, in order, brought no gain of more than `gain` dB."""
    if patience is None or len(trials) <= patience:
        return False
    values = [
        trial.metrics["val/psnr"] if trial.state == "finished" else -math.inf for trial in trials
    ]
    before = max(values[:-patience])
    return math.isfinite(before) and max(values[-patience:]) <= before + gain


def best(trials: Sequence[RunRecord]) -> RunRecord | None:
    """The finished trial with the highest validation PSNR, the earliest of equals; None if none.

    Settings of what an entry starts from do not count: it is not fitted yet.
    """
    finished = [
        trial
        for trial in trials
        if trial.state == "finished" and not (trial.stage == "settings" and trial.fitted_at)
    ]
    return max(finished, key=lambda trial: (trial.metrics["val/psnr"], -trial.index), default=None)


def why_none(trials: Sequence[RunRecord]) -> tuple[str, str]:
    """State and reason of a method of which no trial finished."""
    states = sorted({trial.state for trial in trials})
    reasons = list(dict.fromkeys(str(trial.reason) for trial in trials))
    state = "diverged" if "diverged" in states else "failed"
    if len(reasons) == 1:
        return state, f"all {len(trials)} trials {'/'.join(states)}: {reasons[0]}"
    why = f"none of {len(trials)} trials finished ({', '.join(states)}), the last: {reasons[-1]}"
    return state, why


def with_winner(
    record: RunRecord,
    winner: RunRecord,
    trials: Sequence[RunRecord],
    ended: Sequence[RunRecord],
    late_gain: float | None,
) -> RunRecord:
    """A method's record with its winner.

    Args:
        record: of the method.
        winner: the trial.
        trials: that count.
        ended: those and others that the budget left out.
        late_gain: what the last quarter of its tuning brought [dB]; None where nothing is tuned.
    """
    gain = {} if late_gain is None else {"search/late_gain": late_gain}
    late = {"late_trials": len(ended) - len(trials)} if len(ended) > len(trials) else {}
    return record.model_copy(
        update={
            "params": winner.params,
            "fitted_at": winner.fitted_at,
            "notes": record.notes | {"winner": winner.number} | late,
            "metrics": {
                "val/psnr": winner.metrics["val/psnr"],
                "search/trials": float(len(trials)),
                "search/seconds": sum(trial.metrics.get("trial/seconds", 0) for trial in ended),
                **gain,
            },
        }
    )


def summary(folder: Path, record: RunRecord, tested: RunRecord, shifted: bool) -> RunRecord:
    """The method's record with the figures of its winner, whose files come beside it.

    Args:
        folder: the method's run folder, in which the winner's lies.
        record: of the method, with its winner.
        tested: of the winner, fitted again and tested.
        shifted: whether it was tested at further settings.
    """
    place = folder / f"seed-{tested.number}"
    copied = [names.IMAGES, names.CURVES, *([names.SHIFTS] if shifted else []), names.OPERATOR]
    for name in copied:
        if (place / name).exists():
            (folder / name).write_bytes((place / name).read_bytes())
    for name in names.SHOWN:
        if (place / name).exists():
            (place / name).replace(folder / name)
    found = {name: value for name, value in tested.metrics.items() if not name.startswith("trial/")}
    images = pd.read_parquet(folder / names.IMAGES)
    for metric in HEADLINE:
        interval = statistics.mean_interval(images, metric)
        found |= {f"test/{metric}_low": interval.low, f"test/{metric}_high": interval.high}
    finite = {name: value for name, value in found.items() if math.isfinite(value)}
    return record.model_copy(
        update={
            "metrics": record.metrics | finite,
            "series": tested.series,
            "notes": tested.notes | record.notes,
        }
    )


def with_published(record: RunRecord, published: RunRecord | None) -> RunRecord:
    """The method's record with what its published settings came to, if they were run."""
    if published is None:
        return record
    if published.state != "finished":
        notes = record.notes | {"published": f"{published.state}: {published.reason}"}
        return record.model_copy(update={"notes": notes})
    figures = {f"published/{name}": published.metrics[f"test/{name}"] for name in HEADLINE}
    return record.model_copy(update={"metrics": record.metrics | figures})
