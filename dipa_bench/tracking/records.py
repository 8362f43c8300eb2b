"""Run records: what a run was and what came of it, on disk first, as plain JSON.

A *run folder* holds one ``record.json`` and the run's files. Run folders nest once: a *method* run
(one method in one study) is the parent of its *trial* runs (the search), *seed* runs (the winner
refitted and tested) and a *published* run (its published settings, tested once)::

    <root>/studies/<study>/<method>/record.json             kind "method"
    <root>/studies/<study>/<method>/trial-0003/record.json  kind "trial"
    <root>/studies/<study>/<method>/seed-0/record.json      kind "seed"
    <root>/studies/<study>/<method>/published/record.json   kind "published"

Everything that MLflow shows is sent from these folders, so a tracking server that is down loses
nothing: ``dipa-bench sync`` sends later what could not be sent at once.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from dipa_bench.errors import UserError
from dipa_bench.files import write_json

RECORD = "record.json"
SHARED = "shared"
"""An empty file in the folder of a study of which other machines have rows."""
OLD_KEYS = {"rules"}  # of records before version 0.2
Scalar = bool | int | float | str | None
State = Literal["running", "finished", "pruned", "diverged", "failed", "interrupted", "skipped"]


class RunRecord(BaseModel):
    """One run, self-contained: `dipa-bench rerun` repeats it from this alone.

    Files that lie beside a record and what they hold:

    - ``curves.parquet`` (seed, method): seed, image, iteration, psnr [dB], residual ||Ax - y||,
      step_norm ||x_k - x_(k-1)||; one row per image and iteration (0 is the start);
    - ``images.parquet`` (seed, method): seed, image, subject, psnr [dB], ssim;
    - ``pictures.safetensors`` (method): float32 H x W pictures in [0, 1] under the names
      ``original/<image>``, ``measurement/<image>`` and ``reconstruction/<image>``;
    - ``operator.safetensors`` (seed, method): the learned operator's state;
    - ``matrix.safetensors`` (method): the learned operator as a dense n x n matrix, key ``P``;
    - ``linearisation.safetensors`` (method): the learned operator near the gradient of a validation
      image half way through its run: float32 ``singular`` values, eigenvalues of the ``symmetric``
      part and of P A^T A (``product_real``, ``product_imag``), and the Jacobian ``J`` of one that
      is not linear; metadata image, iteration and derivative (exact or finite differences);
    - ``traceback.txt`` (failed runs).
    """

    model_config = ConfigDict(extra="forbid")

    kind: Literal["method", "trial", "seed", "published"]
    study: str
    task: str
    method: str = Field(description="the row's name in the study")
    number: int = Field(0, description="trial number, or index of the seed; 0 for a method")
    seed: int = 0
    state: State = "running"
    reason: str | None = Field(None, description="why a run did not finish, in one line")
    protocol: str = "tuned"
    preset: str = ""
    title: str = Field("", description="the method in words")
    operator: str = Field("", description="kind of operator: identity, scalar, dense, none, ...")
    rule: str = Field("", description="learning rule: none, closed form, greedy, distilled, ...")
    learned: bool = False
    params: dict[str, Scalar] = Field(default_factory=dict, description="flat hyper-parameters")
    stage: Literal["", "settings", "fit", "tuned"] = Field(
        "",
        description="of a trial: solver settings of a fixed or initial operator, a fit at the best "
        "of them, or settings of what was fitted; empty where one trial is all of it",
    )
    fitted_at: dict[str, Scalar] = Field(
        default_factory=dict,
        description="solver settings that the operator was fitted at, where others than `params`",
    )
    images: int | None = Field(
        None, description="validation images that a trial runs on, in racing order; None for all"
    )
    races: bool = Field(
        True,
        description="whether a trial's images come in the chunks of a race, after which it may be "
        "given up; else in batches as large as can be, which round differently",
    )
    metrics: dict[str, float] = Field(default_factory=dict)
    series: dict[str, list[tuple[int, float]]] = Field(
        default_factory=dict, description="curves of at most 100 (step, value) points"
    )
    validation: list[float] = Field(
        default_factory=list,
        description="of a trial that raced: PSNR of each validation image, in racing order",
    )
    started: float = Field(0.0, description="seconds since the epoch")
    finished: float = 0.0
    study_file: dict[str, Any] = Field(default_factory=dict, description="the resolved study")
    environment: dict[str, Scalar] = Field(default_factory=dict)
    data_digest: str = ""
    notes: dict[str, Scalar] = Field(
        default_factory=dict, description="further facts: winner's trial number, gradient strategy"
    )

    @property
    def index(self) -> int:
        """A trial's place in the search; its number differs once a trial was interrupted."""
        return int(self.notes.get("index", self.number))

    @property
    def name(self) -> str:
        """The run's short name: ``trial 3``, ``seed 0``, ... or ``<study> / <method>``."""
        if self.kind == "method":
            return f"{self.study} / {self.method}"
        return "published settings" if self.kind == "published" else f"{self.kind} {self.number}"


def end_time(record: RunRecord) -> float:
    """The time at which a run ends: never before it began, wherever the clock was set to."""
    return max(record.started, time.time())


def write(folder: Path, record: RunRecord) -> None:
    """Writes `record` into `folder` so that a crash leaves either the old or the new one."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / RECORD, record.model_dump(mode="json"), sync=True)


def read(folder: Path) -> RunRecord:
    """Reads the record of a run folder.

    Raises:
        UserError: there is none, or it is damaged.
    """
    path = folder / RECORD
    try:
        text = path.read_text(encoding="utf-8")
        refuse_older(json.loads(text), path)
        return RunRecord.model_validate_json(text)
    except FileNotFoundError:
        raise UserError(f"no run record in {folder}: give a run folder or a run id") from None
    except (ValueError, AttributeError) as error:  # not JSON, no object, no record
        first = str(error).splitlines()[0]
        raise UserError(
            f"damaged run record {path} ({first}): move it away and run the study again"
        ) from None


def refuse_older(values: dict[str, Any], path: Path) -> None:
    """Raises `UserError` for a record or study of a version whose keys had other names."""
    if OLD_KEYS & values.keys():
        raise UserError(
            f"{path} was written by an older version of dipa-bench, whose results this one does "
            "not read: go on with that version, or give another --name"
        )


def method_folder(study: Path, method: str) -> Path:
    """Run folder of a method below its study's; a name such as ``ndipa/vit`` stays one folder."""
    return study / method.replace("/", "__")


def children(folder: Path) -> list[Path]:
    """Run folders of the trials and seeds below a method's folder, in order."""
    return sorted(path.parent for path in folder.glob(f"*/{RECORD}"))


def studies_root(root: Path) -> Path:
    """Where studies live below the results folder (``mlruns/`` by default)."""
    return root / "studies"


def method_folders(root: Path) -> list[Path]:
    """Every method's run folder below a results folder, over all studies."""
    return sorted(path.parent for path in studies_root(root).glob(f"*/*/{RECORD}"))
