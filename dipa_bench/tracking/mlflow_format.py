"""A record in MLflow's terms: experiment, status, tags, params and points."""

from __future__ import annotations

import hashlib
import html
import json
import math
import re
from typing import TYPE_CHECKING, Any

from dipa_bench import names
from dipa_bench.tracking.records import RunRecord, Scalar
from dipa_bench.tracking.setting import setting_of

if TYPE_CHECKING:
    from mlflow.entities import Metric

EXPERIMENT = "dipa-bench/"
STATUS = {
    "running": "RUNNING",
    "finished": "FINISHED",
    "skipped": "FINISHED",
    "pruned": "KILLED",
    "interrupted": "KILLED",
    "failed": "FAILED",
    "diverged": "FAILED",
}
SERIES_POINTS = 100
MAX_KEY, MAX_PARAM, MAX_TAG = 250, 6000, 5000  # characters


def experiment_name(task: str) -> str:
    """The MLflow experiment that holds a task's runs."""
    return (EXPERIMENT + task)[:500]


def run_name(record: RunRecord) -> str:
    """``METHOD / STUDY``, and of its trials and tests ``METHOD / STUDY / trial 3``.

    MLflow's pages list all runs of a task together, whatever they belong to, and cut long names.
    """
    name = f"{record.method} / {record.study}"
    return (name if record.kind == "method" else f"{name} / {record.name}")[:MAX_KEY]


def tags_of(record: RunRecord, identity: str, parent: str, won: bool) -> dict[str, str]:
    """A record's tags; ``dipa.key`` is the same for every sending of one run folder.

    Args:
        record: what is sent.
        identity: of the study folder (`dipa_bench.tracking.sync_state.identity`).
        parent: the id of the method's run, or ``""`` for a method.
        won: whether the record is of the trial that won the search.
    """
    key = json.dumps([identity, record.method, record.kind, record.number])
    tags: dict[str, Scalar] = {
        "dipa.key": hashlib.sha256(key.encode()).hexdigest()[:32],
        "dipa.kind": record.kind,
        "dipa.study": record.study,
        "dipa.task": record.task,
        "dipa.method": record.method,
        "dipa.reference": record.study_file.get("reference", ""),
        "dipa.number": record.number,
        "dipa.state": record.state,
        "dipa.protocol": record.protocol,
        "dipa.preset": record.preset,
        "dipa.title": record.title,
        "dipa.operator": record.operator,
        "dipa.rule": record.rule,
        "dipa.learned": record.learned,
        "dipa.data_digest": record.data_digest,
        "dipa.reason": record.reason,
        "dipa.winner": True if won else None,
        "dipa.started": repr(record.started),
        "dipa.nonfinite": _nonfinite(record),
        "mlflow.parentRunId": parent or None,
        "mlflow.source.name": "dipa-bench",
        "mlflow.note.content": _description(record),
    }
    tags |= {f"dipa.note.{clean_key(name)}": value for name, value in record.notes.items()}
    tags |= {f"dipa.env.{clean_key(name)}": value for name, value in record.environment.items()}
    if "winner" in record.notes:
        tags["dipa.winner_trial"] = record.notes["winner"]
    if record.kind == "method":
        replicate = record.study_file.get("replicate") or 0
        base = replicate_of(record.study, replicate)
        tags |= {"dipa.replicate": replicate, "dipa.replicate_of": base}
        tags["dipa.setting"] = setting_of(record) or None
    return {name[:MAX_KEY]: _text(value) for name, value in tags.items() if value is not None}


def replicate_of(study: str, replicate: int) -> str:
    """The study that `study` replicates the search of; itself for replicate 0.

    Replicate 2 of ``sr-quick`` is called ``sr-quick-replicate2``.
    """
    return study.removesuffix(f"-replicate{replicate}") if replicate else study


def _text(value: Scalar) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)[:MAX_TAG]


def _description(record: RunRecord) -> str:
    """What a stranger reads at the top of the run's page."""
    row = f"**{html.escape(record.title or record.method)}** (`{record.method}`)"
    where = f"task `{record.task}`, study `{record.study}`, protocol {record.protocol}"
    again = "`dipa-bench rerun` with this run's id repeats it."
    if record.kind == "trial":
        text = (
            f"Trial {record.number} of the search for the hyper-parameters of {row}: {where}. "
            "Measured on validation images; `val/psnr` in dB, more is better."
        )
    elif record.kind == "published":
        text = (
            f"The published settings of {row}, fixed before the search and measured once on test "
            f"images: {where}. `test/psnr` in dB, more is better."
        )
    elif record.kind == "seed":
        text = (
            f"The winner of the search of {row}, fitted again with seed {record.seed} and measured "
            f"once on test images: {where}. `test/psnr` in dB, more is better."
        )
    else:
        text = (
            f"{row}, a preconditioner or competitor of iterative image reconstruction: {where}. "
            f"Operator: {record.operator or '-'}; learning rule: {record.rule or '-'}. Its child "
            "runs are the trials of the search on all validation images and the winner's test, "
            f"`{names.SETTINGS}` has those on some of the images; metrics and params are the "
            "winner's, measured on test images."
        )
    ending = f" State: {record.state}" + (
        f" ({html.escape(record.reason)})." if record.reason else "."
    )
    return text + ending + " " + again


def params_of(record: RunRecord) -> dict[str, str]:
    """Hyper-parameters as MLflow's texts; `dipa_bench.tracking.load` reads the types back."""
    return {clean_key(name): encode(value)[:MAX_PARAM] for name, value in record.params.items()}


def encode(value: Scalar) -> str:
    """A value as text: JSON, but a word stays plain unless it would read as something else."""
    if not isinstance(value, str):
        return json.dumps(value)
    return value if value and decode(value) == value else json.dumps(value)


def decode(text: str) -> Scalar:
    """The value that `encode` wrote."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, bool | int | float | str | None) else text


def clean_key(name: str) -> str:
    """`name` with what MLflow does not take in names of metrics and params replaced by ``_``."""
    clean = re.sub(r"[^\w.\- :/]", "_", name)
    clean = "/".join(part if part.strip(".") else "_" for part in clean.split("/"))
    return re.sub(r"^\.\.", "__", clean)[:MAX_KEY]


def _nonfinite(record: RunRecord) -> str | None:
    """What a run's latest metrics get wrong, as a tag: name to ``"nan"``, ``"inf"``, ``"-inf"``.

    Stores keep NaN and infinity in different ways (as 0, as 1.8e308), so none is sent; and the last
    point of a series looks like a figure of that name where a record has none.
    """
    values = {name: "nan" for name in record.series if name not in record.metrics}
    values |= {name: str(v) for name, v in record.metrics.items() if not math.isfinite(v)}
    return json.dumps({clean_key(name): text for name, text in values.items()}) if values else None


def points_of(record: RunRecord, stamp: int) -> list[Metric]:
    """The points of a record's series, all of the time `stamp` [ms]."""
    from mlflow.entities import Metric

    return [
        Metric(clean_key(name), value, stamp, step)
        for name, points in record.series.items()
        for step, value in _shown(points)
    ]


def figures_of(record: RunRecord, stamp: int) -> list[Metric]:
    """A record's figures; one that bears a series' name comes after the series' last point."""
    from mlflow.entities import Metric

    last = {
        name: max((step for step, _ in _shown(points)), default=0)
        for name, points in record.series.items()
    }
    return [
        Metric(clean_key(name), float(value), stamp + 1, last.get(name, 0))
        for name, value in record.metrics.items()
        if math.isfinite(value)
    ]


def _shown(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    return thinned([(step, float(value)) for step, value in points if math.isfinite(value)])


def thinned(points: list[Any], limit: int = SERIES_POINTS) -> list[Any]:
    """At most `limit` of `points`, evenly spread, the first and the last among them."""
    if len(points) <= limit:
        return points
    return [points[round(i * (len(points) - 1) / (limit - 1))] for i in range(limit)]
