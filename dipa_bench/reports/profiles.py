"""How soon rows are as good as the reference ends: in iterations, calls and seconds.

A run has arrived at an image at the first iteration whose PSNR is within the margin of what the
reference ends with on that image, or better. Shares of images that have arrived after so much are
performance profiles (Dolan and More, "Benchmarking optimization software with performance
profiles", 2002) with the reference's quality for a target.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from dipa_bench.errors import UserError, unknown
from dipa_bench.reports.columns import number_text
from dipa_bench.reports.comparison import MARGIN
from dipa_bench.reports.leaderboard import REFERENCE, base_studies
from dipa_bench.reports.rendering import FORMATS, VALUES, render_frame
from dipa_bench.reports.text import short
from dipa_bench.statistics import CEILING
from dipa_bench.tracking.results import TaskResults

COSTS = ("iterations", "operator_calls", "denoiser_calls", "seconds")
COLUMNS = ("study", "method", "reference", "margin", "images", "runs", "reached", *COSTS)
OF_METHOD = {"seconds": "seconds_per_image"}  # cost to column of the results


def arrivals(
    results: TaskResults, reference: str | None = None, margin: float = MARGIN
) -> pd.DataFrame:
    """When each run arrived.

    Args:
        results: what was measured, with curves.
        reference: the row whose end is the target, of the same study; by default what the study
            names, else ``identity``.
        margin: dB that may be missing.

    Returns:
        A row for each study (its replicates under its name), method, replicate, seed and image of
        finished methods: study, method, reference, image, and `COSTS`, infinite where a run never
        arrived. Costs are those of one image; of K iterations k take k / K of the whole run. A
        study without its reference has no rows.

    Raises:
        UserError: an unknown reference, or a margin below 0.
    """
    if not margin >= 0:
        raise UserError(f"margin = {margin}: give a difference in dB from 0, such as 0.1")
    methods, curves = results.methods, results.curves
    columns = ["study", "method", "reference", "image", *COSTS]
    if methods.empty or curves.empty:
        return pd.DataFrame(columns=columns)
    if reference is not None and reference not in set(methods["method"]):
        raise unknown("reference", reference, set(methods["method"]))
    done = methods.assign(base=base_studies(methods))
    done = done[done["state"] == "finished"].set_index(["study", "method"])
    runs = {
        key: (done.loc[key], rows)
        for key, rows in curves.groupby(["study", "method"], sort=False)
        if key in done.index
    }
    found = []
    for base in dict.fromkeys(facts["base"] for facts, _ in runs.values()):
        own = {key: one for key, one in runs.items() if one[0]["base"] == base}
        wanted = reference or _named(own)
        ends = [_ends(rows) for (_, method), (_, rows) in own.items() if method == wanted]
        if not ends:
            continue
        targets = pd.concat(ends).groupby("image")["psnr"].mean() - margin
        for (_, method), (facts, rows) in own.items():
            costs = _costs(rows[rows["image"].isin(targets.index)], targets, facts)
            found.append(costs.assign(study=base, method=method, reference=wanted))
    return pd.concat(found, ignore_index=True)[columns] if found else pd.DataFrame(columns=columns)


def _named(own: dict[tuple[str, str], tuple[pd.Series, pd.DataFrame]]) -> str:
    """The reference that a study names."""
    return next(
        (facts["reference"] for facts, _ in own.values() if facts.get("reference")), REFERENCE
    )


def _ends(rows: pd.DataFrame) -> pd.DataFrame:
    """The last iterate of each image and seed."""
    last = rows[rows["iteration"] == rows["iteration"].max()]
    return last.assign(psnr=last["psnr"].clip(upper=CEILING))


def _costs(rows: pd.DataFrame, targets: pd.Series, facts: pd.Series) -> pd.DataFrame:
    """What the runs of one row had cost when they arrived: image and `COSTS`."""
    keys = ["image", "seed"]
    last = rows.groupby(keys)["iteration"].max()
    there = rows[rows["psnr"] >= rows["image"].map(targets)].groupby(keys)["iteration"].min()
    first = there.reindex(last.index).astype(float).fillna(math.inf)
    share = (first / last.where(last > 0)).where(last > 0, first.where(np.isinf(first), 1.0))
    whole = {cost: float(facts[OF_METHOD.get(cost, cost)]) for cost in COSTS[1:]}
    costs = {cost: share * value for cost, value in whole.items()}
    return pd.DataFrame({"iterations": first} | costs).reset_index()


def shares(found: pd.DataFrame, cost: str = "iterations") -> dict[str, pd.Series]:
    """Shares of runs that have arrived after so much.

    Args:
        found: rows of `arrivals`, of one study.
        cost: one of `COSTS`.

    Returns:
        Method to shares in [0, 1], indexed by the costs at which they rise, from 0.
    """
    profiles = {}
    for method, rows in found.groupby("method", sort=False):
        there = np.sort(rows[cost].to_numpy(dtype=float))
        finite = there[np.isfinite(there)]
        places, counts = np.unique(finite, return_counts=True)
        profile = pd.Series(np.cumsum(counts) / len(there), index=places, dtype=float)
        profiles[str(method)] = (
            profile if 0.0 in profile.index else pd.concat([pd.Series({0.0: 0.0}), profile])
        )
    return profiles


def profile_table(
    results: TaskResults, reference: str | None = None, margin: float = MARGIN
) -> pd.DataFrame:
    """How many runs arrive, and the median of what they had cost.

    Args:
        results, reference, margin: as for `arrivals`.

    Returns:
        The columns `COLUMNS`, a row for each study and method, the soonest first; medians over all
        runs, infinite where no more than half of them arrive.
    """
    found, rows = arrivals(results, reference, margin), []
    for (study, method), own in found.groupby(["study", "method"], sort=False):
        medians = {cost: float(np.median(own[cost].to_numpy(dtype=float))) for cost in COSTS}
        rows.append(
            {
                "study": study,
                "method": method,
                "reference": own["reference"].iloc[0],
                "margin": margin,
                "images": own["image"].nunique(),
                "runs": len(own),
                "reached": float(np.isfinite(own["iterations"].to_numpy(dtype=float)).mean()),
                **medians,
            }
        )
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    order = table.assign(missing=1 - table["reached"])
    order = order.sort_values(["study", "iterations", "missing", "seconds"], kind="stable")
    return table.loc[order.index].reset_index(drop=True)


def render(table: pd.DataFrame, task: str, format: str = "table") -> str:
    """The table as text.

    Args:
        table: from `profile_table`.
        task: its name.
        format: as for leaderboards; ``"csv"`` and ``"json"`` have every column.

    Raises:
        UserError: an unknown format.
    """
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    if format in VALUES:
        return VALUES[format](table.replace(math.inf, math.nan))
    if table.empty:
        return "no curves of a study with its reference are known"
    parts = []
    for study, rows in table.groupby("study", sort=True):
        first = rows.iloc[0]
        heading = (
            f"task {task}, study {short(study)}: until PSNR is within {first['margin']:g} dB of "
            f"what {short(first['reference'])} ends with on the same image"
        )
        shown = pd.DataFrame([_cells(row) for _, row in rows.iterrows()])
        parts.append(f"{heading}\n{render_frame(shown, format)}")
    closing = (
        "reached: share of runs on test images that get there at all; then medians over all runs, "
        "for one image (-: half\nof them or more do not get there). Rows are tuned for their end, "
        "not to get there soon"
    )
    return "\n\n".join([*parts, closing])


def _cells(row: pd.Series) -> dict[str, str]:
    """A row's texts by heading."""
    costs = {name: math.nan if math.isinf(row[name]) else row[name] for name in COSTS}
    return {
        "method": short(row["method"]),
        "reached": f"{100 * row['reached']:.0f}%",
        "iterations": number_text(costs["iterations"], "g"),
        "operator calls": number_text(costs["operator_calls"], ".3g"),
        "denoiser calls": number_text(costs["denoiser_calls"], ".3g"),
        "s/image": number_text(costs["seconds"], ".2g"),
    }
