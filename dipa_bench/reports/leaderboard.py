"""The leaderboard: one row per study and method, over the study's replicates."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from dipa_bench import names, statistics
from dipa_bench.errors import UserError, unknown
from dipa_bench.reports import comparison
from dipa_bench.tracking.results import TaskResults
from dipa_bench.tracking.tables import KEYS

PROTOCOLS = ("tuned", "published")
ENDS = ("", "_low", "_high", "_difference", "_difference_low", "_difference_high")
COLUMNS = (
    *("task", "study", "method", "title"),
    *("rank", "psnr", "psnr_low", "psnr_high", "psnr_replicate_std", "published", "tuning_gain"),
    *("ssim", "ssim_low", "ssim_high"),
    *("reference", "difference", "difference_low", "difference_high", "verdict", "advice"),
    *("p_value", "p_holm", "p_wilcoxon", "p_equivalence", "margin"),
    *("ssim_difference", "ssim_difference_low", "ssim_difference_high"),
    *(f"{name}{end}" for name in names.QUALITY[1:] for end in ENDS),
    *("images", "subjects", "replicates", "disagree", "unpaired_images"),
    *("seconds_per_image", "operator_calls", "denoiser_calls", "parameters"),
    *("trials", "fit_seconds", "search_seconds", "late_gain"),
    *("validation", "contains"),
    *("protocol", "preset", "operator", "rule", "learned", "learns_from", "start"),
    *("state", "reason", "caveat"),
    "setting",
)
LEAST = 3  # degrees of freedom from which rows of one kind, trained or not, speak for themselves
REFERENCE = "identity"
NOWHERE = np.array([], dtype=int)
NO_SCORES = pd.DataFrame()
Row = dict[Hashable, Any]


def leaderboard(
    results: TaskResults,
    reference: str | None = None,
    protocol: str | None = None,
    study: str | None = None,
    margin: float = comparison.MARGIN,
    rank_test: bool = True,
) -> pd.DataFrame:
    """One row per study and method, best mean test PSNR first, unfinished methods last.

    Args:
        results: what was measured.
        reference: the method of the *same* study that each row is paired with, image by image and
            replicate by replicate; where a study has no finished method of this name, the
            difference columns are NaN. By default what the study itself names, else ``identity``.
        protocol: keep only ``"tuned"`` or ``"published"`` rows.
        study: keep only this study, with its replicates.
        margin: dB; a difference within it does not matter.
        rank_test: whether p_wilcoxon is computed, which takes most of a second to import.

    Returns:
        A frame with the columns `COLUMNS`. Scores are means over replicates; psnr and differences
        are in dB with the ends of their 95% intervals over subjects, searches and fits.
        psnr_replicate_std is the standard deviation of the mean PSNR over replicates in dB;
        published the test PSNR of the method's published settings (run once, in the first
        replicate), tuning_gain what tuning added to it; verdict one word (see
        `dipa_bench.reports.comparison`); rank the place among the study's rows by PSNR in
        hundredths of a dB, which rows alike share. Seconds and calls are those of one image,
        fit_seconds the mean over fits, trials and search_seconds sums over replicates, late_gain
        the most that the last quarter of a replicate's tuning brought [dB]. Methods
        that are not finished have no scores.

    Raises:
        UserError: no such study or protocol, no study with a method named like the reference, or a
            margin that is not positive.
    """
    methods = results.methods
    if not margin > 0:
        raise UserError(f"margin = {margin}: give a difference in dB above 0, such as 0.1")
    if reference is not None and not methods.empty and reference not in set(methods["method"]):
        raise unknown("reference", reference, set(methods["method"]))
    if protocol is not None and protocol not in PROTOCOLS:
        raise unknown("protocol", protocol, PROTOCOLS)
    bases = base_studies(methods)
    if study is not None and study not in set(bases):
        raise unknown("study", study, set(bases))
    images = _ImageRows(results)
    rows = []
    for base, own in () if methods.empty else methods.groupby(bases, sort=True):
        if study in (None, base):
            kept = own if protocol is None else own[own["protocol"] == protocol]
            rows += _study_rows(results, images, str(base), kept, reference, margin, rank_test)
    rows.sort(key=_order)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def base_studies(methods: pd.DataFrame) -> pd.Series:
    """For each row of ``results.methods`` the study that it is shown under.

    A replicate is shown under the study that it replicates, where that is there.
    """
    if methods.empty:
        return pd.Series(dtype=object)
    there = methods["replicate_of"].isin(methods["study"])
    return methods["replicate_of"].where(there, methods["study"])


def image_rows(results: TaskResults, study: str, method: str) -> pd.DataFrame:
    """The rows of ``results.images`` of one method, of the replicates in which it finished.

    Args:
        results: what was measured.
        study: its name, for all of its replicates; or of one replicate, for that alone.
        method: the row.

    Returns:
        The rows with a column more, the number of the replicate.
    """
    return _ImageRows(results).of(study, method)


class _ImageRows:
    """Looks up `image_rows` of many rows; pandas' comparisons take milliseconds for each."""

    def __init__(self, results: TaskResults) -> None:
        images, methods = results.images, results.methods
        self._images = images
        self._finished: dict[tuple[str, str], dict[str, int]] = {}
        self._places: Mapping[tuple[str, str], np.ndarray] = {}
        if images.empty or methods.empty:
            return
        self._places = images.groupby(KEYS, sort=False).indices
        done = methods["state"] == "finished"
        columns = [methods.loc[done, name] for name in ("study", "method", "replicate")]
        for study, method, number, base in zip(*columns, base_studies(methods)[done], strict=True):
            for shown in {study, base}:
                self._finished.setdefault((shown, method), {})[study] = number

    def of(self, study: str, method: str) -> pd.DataFrame:
        """The rows of one method; arguments and result as of `image_rows`."""
        numbers = self._finished.get((study, method), {})
        places = {name: self._places.get((name, method), NOWHERE) for name in numbers}
        chosen = np.concatenate([*places.values(), NOWHERE])
        repeats = [len(found) for found in places.values()]
        replicates = np.repeat(np.array(list(numbers.values()), dtype=int), repeats)
        order = np.argsort(chosen, kind="stable")
        return self._images.take(chosen[order]).assign(replicate=replicates[order])


def _study_rows(
    results: TaskResults,
    images: _ImageRows,
    study: str,
    methods: pd.DataFrame,
    reference: str | None,
    margin: float,
    rank_test: bool,
) -> list[Row]:
    """The rows of one study, each over its replicates."""
    groups: dict[str, list[Row]] = {name: [] for name in sorted(map(str, methods["method"]))}
    for record in methods.to_dict("records"):
        groups[str(record["method"])].append(record)
    merged = {name: _merged(study, records) for name, records in groups.items()}
    scores = {name: images.of(study, name) for name in merged}
    for row in merged.values():
        row |= {"task": results.task, "margin": margin}
        row["reference"] = reference or row.get("reference") or REFERENCE
    for needed in {row["reference"] for row in merged.values()} - scores.keys():
        scores[needed] = images.of(study, needed)
    known = ["psnr", *(name for name in names.QUALITY if name in results.images)]
    found = {name: comparison.scores_by_replicate(rows, known) for name, rows in scores.items()}
    grids = {name: tables["psnr"] for name, tables in found.items()}
    versus = {
        name: comparison.differences(grids[name], grids[row["reference"]])
        for name, row in merged.items()
    }
    means = _compared(merged, {name: (grids[name], 0) for name in merged})
    pairs = _compared(merged, versus)
    others = {name: one for name, one in pairs.items() if name != merged[name]["reference"]}
    words = comparison.verdicts(others, margin)
    for name, row in merged.items():
        row |= _ends("psnr", means[name]) | _ends("difference", pairs[name])
        word = words.get(name, comparison.Verdict("reference"))
        row |= {"verdict": word.word, "advice": word.advice, "p_holm": word.p_holm}
        row |= {
            "p_value": pairs[name].p_value if name in others else math.nan,
            "p_equivalence": pairs[name].p_equivalence(margin) if name in others else math.nan,
            "p_wilcoxon": pairs[name].wilcoxon if rank_test else math.nan,
            "disagree": pairs[name].disagree or means[name].disagree,
            "images": means[name].images,
            "subjects": means[name].subjects,
            "replicates": grids[name].shape[1],
            "psnr_replicate_std": math.sqrt(comparison.replicate_variance(grids[name]).value),
            "unpaired_images": pairs[name].unpaired if pairs[name].images else 0,
        }
        row["tuning_gain"] = row["psnr"] - row["published"]
        row |= _quality(found[name], found[row["reference"]])
        if row["state"] == "finished" and math.isnan(row["psnr"]):
            row["reason"] = _why_unscored(scores[name])
    _rank(list(merged.values()))
    return list(merged.values())


def _merged(study: str, records: list[Row]) -> Row:
    """A method's row over its replicates: the first that finished, with all their costs."""
    finished = [record for record in records if record["state"] == "finished"]
    first = (finished or records)[0]
    row = {name: first[name] for name in COLUMNS if name in first} | {"study": study}
    for name in ("trials", "search_seconds"):
        row[name] = sum(record[name] for record in records)
    gains = [record["late_gain"] for record in records]
    row["late_gain"] = max((gain for gain in gains if not math.isnan(gain)), default=math.nan)
    for name in ("fit_seconds", "seconds_per_image", "validation"):
        row[name] = sum(record[name] for record in finished or records) / len(finished or records)
    if finished and len(finished) < len(records):
        bad = next(record for record in records if record["state"] != "finished")
        count = f"{len(records) - len(finished)} of {len(records)} replicates"
        why = f": {bad['reason']}" if pd.notna(bad["reason"]) else ""  # none while it runs
        row["reason"] = f"{count} {bad['state']}{why}"
    return row


def _compared(
    rows: dict[str, Row], found: dict[str, tuple[pd.DataFrame, int]]
) -> dict[str, comparison.Comparison]:
    """Means with their errors; rows of one kind share what is known of replicates."""
    variances: dict[bool, list[comparison.Variance]] = {True: [], False: []}
    for name, (scores, _) in found.items():
        if scores.to_numpy().any() and name != rows[name]["reference"]:
            variances[bool(rows[name]["learned"])].append(comparison.replicate_variance(scores))
    shared = {kind: comparison.pooled(several) for kind, several in variances.items()}
    every = comparison.pooled([one for several in variances.values() for one in several])
    for kind, one in shared.items():
        if one.freedom < LEAST:
            shared[kind] = every
    return {
        name: comparison.compare(scores, shared[bool(rows[name]["learned"])], unpaired)
        for name, (scores, unpaired) in found.items()
    }


def _quality(ours: dict[str, pd.DataFrame], theirs: dict[str, pd.DataFrame]) -> Row:
    """Scores beside PSNR and their paired differences, with their own error alone."""
    row: Row = {}
    for name in names.QUALITY:
        mine, other = (scores.get(name, NO_SCORES) for scores in (ours, theirs))
        pair, _ = comparison.differences(mine, other, name)
        row |= _ends(name, comparison.compare(mine))
        row |= _ends(f"{name}_difference", comparison.compare(pair))
    return row


def _ends(name: str, found: comparison.Comparison) -> Row:
    """A mean and the ends of its interval as columns."""
    low, high = found.interval()
    return {name: found.mean, f"{name}_low": low, f"{name}_high": high}


def _rank(rows: list[Row]) -> None:
    """Places by PSNR in hundredths of a dB; rows alike share one."""
    scored = {id(row): round(row["psnr"], 2) for row in rows if not math.isnan(row["psnr"])}
    for row in rows:
        own = scored.get(id(row))
        row["rank"] = None if own is None else 1 + sum(one > own for one in scored.values())


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
