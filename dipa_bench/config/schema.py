"""What a study file may say: its tables and keys, their types and bounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dipa_bench.data.images import SMALLEST
from dipa_bench.errors import UserError, unknown
from dipa_bench.parameters import Value, first_problem

DEFAULT_PRESET = "quick"  # a study need not define it
PROTOCOLS = ("tuned", "published")
# of the problem, by the published protocol
PUBLISHED = {"noise": 0.0, "test_noise": None, "iterations": 20}
LONGEST = 200  # bytes of a name; file systems allow 255
RESERVED = {"lock", "study.json"}  # files in a study's folder


class Strict(BaseModel):
    """No unknown keys, no NaN, no text where a number belongs."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)


class Problem(Strict):
    """What every method of the study shares."""

    dataset: str | None = Field(None, description="a registered dataset, NAME or NAME:PATH")
    data_root: str | None = Field(None, description="where data lies for names without a path")
    color: bool = Field(False, description="three channels instead of gray images")
    size: Annotated[int, Field(ge=SMALLEST, le=1024, description="pixels on a side")] = 32
    prior: str = Field("dncnn-small", description="registered, module:function or weights file")
    complex_prior: Literal["magnitude", "channels", "real"] = Field(
        "magnitude", description="what the prior denoises of complex images"
    )
    solver: Literal["pnp-fista", "red-fista"] = Field(
        "pnp-fista", description="the iterations that are preconditioned"
    )
    iterations: Annotated[int, Field(ge=1, le=10_000, description="K, of the solver")] = 10
    noise: Annotated[float, Field(ge=0, description="standard deviation, images in [0, 1]")] = 0.0
    test_noise: Annotated[
        float | None, Field(ge=0, description="that of the test measurements, if another")
    ] = None
    options: dict[str, Value] = Field(default_factory=dict, description="the task's own options")


class BudgetSpec(Strict):
    """What every method may spend; the same for all.

    ``trials`` of version 0.1 stands for as many settings and as many fits.
    """

    settings: Annotated[
        int,
        Field(ge=1, description="evaluations of solver settings of each operator that is tuned"),
    ] = 192
    fits: Annotated[
        int, Field(ge=1, description="fits of an entry whose fit depends on them, or on a seed")
    ] = 4
    minutes: Annotated[
        float | None,
        Field(gt=0, description="of tuning and fitting an entry, instead of these two"),
    ] = None
    replicates: Annotated[
        int,
        Field(ge=1, description="of the whole study: each has its own search draws and fits"),
    ] = 1
    epochs: Annotated[int, Field(ge=1, description="of one trial's training")] = 4
    final_epochs: Annotated[int, Field(ge=1, description="of the winner's training")] = 4
    train_images: Annotated[
        int | None, Field(ge=1, description="the first so many of the split; else all")
    ] = None
    validation_images: Annotated[
        int | None, Field(ge=1, description="scored after each epoch; trials are compared on all")
    ] = None
    batch_size: Annotated[int, Field(ge=1, description="images of a training step")] = 16
    rungs: Annotated[
        int,
        Field(ge=1, description="stages of a trial's training, each with a third of the next's"),
    ] = 1

    @model_validator(mode="before")
    @classmethod
    def _of_older_files(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        found = without_trials(values)
        if found.pop("seeds", 1) != 1:
            raise ValueError("budget.seeds is gone: budget.replicates repeats search and fit")
        return found


def without_trials(budget: Mapping[str, Any]) -> dict[str, Any]:
    """A raw budget with as many settings and fits as it has trials; what it names itself stays."""
    rest = dict(budget)
    if "trials" not in rest:
        return rest
    trials = rest.pop("trials")
    return {"settings": trials, "fits": trials} | rest


class SearchSpec(Strict):
    """How the trials of every entry are chosen and given up; the same for all."""

    tuner: Literal["trust-region", "sampler"] = Field(
        "trust-region",
        description="what tunes solver settings: screening, a surrogate, then trust regions, from "
        "60 settings on; or the sampler, which also draws what is fitted",
    )
    sampler: Literal["tpe", "gp", "random", "qmc"] = Field(
        "tpe", description="what draws, once given points and start-up points are tried"
    )
    pruner: Literal["auto", "none", "median", "halving", "hyperband"] = Field(
        "auto",
        description="of fits that train: what gives them up between epochs; auto is halving where "
        "the budget has rungs, else median",
    )
    race: bool = Field(
        True,
        description="settings that need no training leave off once they are significantly worse "
        "than the best on the first validation images",
    )
    batch: Annotated[
        int | None,
        Field(
            ge=1,
            le=64,
            description="settings that need no training and run as one batch; by default 8 on a "
            "GPU, 1 on a CPU, where up to 8 race side by side until a sampler learns from them",
        ),
    ] = None
    plateau: Annotated[
        int | None,
        Field(ge=1, description="a row stops after so many trials that brought no gain"),
    ] = None
    gain: Annotated[float, Field(ge=0, description="in dB, what counts as a gain")] = 0.01


class RangeSpec(Strict):
    """A search range that replaces the declared one."""

    low: float | None = None
    high: float | None = None
    log: bool = False
    choices: list[Value] = Field(default_factory=list)


class MethodSpec(Strict):
    """One entry of the study: a method, with parameters frozen or searched elsewhere."""

    method: str = ""
    set: dict[str, Value] = Field(default_factory=dict, description="frozen parameters")
    search: dict[str, RangeSpec] = Field(default_factory=dict, description="other ranges")


class Shift(Strict):
    """Another setting that winners are tested at, as they are."""

    options: dict[str, Value] = Field(default_factory=dict, description="of the task")
    noise: Annotated[float | None, Field(ge=0)] = None
    iterations: Annotated[int | None, Field(ge=1, le=10_000)] = None


class Overlay(Strict):
    """What a preset changes."""

    problem: dict[str, Any] = Field(default_factory=dict)
    budget: dict[str, Any] = Field(default_factory=dict)
    search: dict[str, Any] = Field(default_factory=dict)
    set: dict[str, Value] = Field(
        default_factory=dict, description="parameters frozen in every row that has them"
    )


SHARED = {"problem": Problem, "budget": BudgetSpec, "search": SearchSpec}  # tables of all entries
RENAMED = {"rules": "protocol", "known": "points_to_evaluate"}  # keys of version 0.1


class StudyFile(Strict):
    """A whole study, resolved: no preset is left to apply."""

    name: str = Field("", description="of the study and its folder")
    task: str = Field(description="see `dipa-bench list tasks`")
    protocol: Literal["tuned", "published"] = Field(
        "tuned", description="search every entry's settings, or run each as it was published"
    )
    seed: Annotated[int, Field(ge=0, description="of noise, masks, draws and fits")] = 0
    reference: str = Field("identity", description="the entry that others are compared with")
    preset: str = Field("quick", description="which of the file's [presets] holds")
    problem: Problem = Problem()
    budget: BudgetSpec = BudgetSpec()
    search: SearchSpec = SearchSpec()
    replicate: Annotated[int, Field(ge=0, description="which of the study's replicates")] = 0
    objectives: list[Literal["psnr", "parameters", "seconds"]] = Field(
        default_factory=lambda: ["psnr"],
        description="of the search; with several it seeks their Pareto front, the winner has the "
        "best PSNR",
    )
    points_to_evaluate: list[dict[str, Value]] = Field(
        default_factory=list, description="points that every entry tries after its own"
    )
    shifts: dict[str, Shift] = Field(
        default_factory=dict, description="further settings at which winners are tested"
    )
    methods: dict[str, MethodSpec]
    presets: dict[str, Overlay] = Field(default_factory=dict)

    def identity(self) -> dict[str, Any]:
        """What must agree for a study to be continued; its budget may grow, entries be added."""
        values = self.model_dump(mode="json", exclude={"name", "presets", "methods"})
        values["budget"]["unit"] = "trials" if self.budget.minutes is None else "minutes"
        for growing in ("settings", "fits", "minutes", "replicates"):
            del values["budget"][growing]
        del values["search"]["plateau"], values["search"]["batch"]  # how long, how fast
        del values["problem"]["data_root"]  # the images' digest is what counts
        if self.problem.dataset is not None:
            values["problem"]["dataset"] = self.problem.dataset.partition(":")[0]
        return values


def check_name(what: str, name: str) -> None:
    """Refuses names that cannot be folders on disk, or would be hidden or foreign ones.

    Raises:
        UserError: the name is empty, long, hidden, not printable or has a slash.
    """
    bad = not name or name.startswith(".") or not name.isprintable() or set("/\\") & set(name)
    if bad or len(name.encode()) > LONGEST or name != name.strip():
        shown = name if len(name) <= 40 else name[:40] + "..."
        raise UserError(
            f"{what} {shown!r}: use 1 to {LONGEST} printable bytes, no slashes, no dot in front "
            "and no spaces at the ends"
        )


def validated(table: Mapping[str, Any]) -> StudyFile:
    """A study from a raw table.

    Raises:
        UserError: an unknown key (with the nearest valid one), a bad type or value, or a gap.
    """
    for old in RENAMED.keys() & table.keys():
        raise UserError(f"the study's key {old!r} is called {RENAMED[old]!r} now: rename it")
    try:
        study = StudyFile.model_validate(table)
    except ValidationError as error:
        raise _complaint(error) from None
    if study.name:
        check_name("study name", study.name)
    for name, overlay in study.presets.items():
        for key, model in SHARED.items():
            values = getattr(overlay, key)
            try:
                model.model_validate(values)
            except ValidationError as error:
                raise _complaint(error, ("presets", name, key)) from None
    return study


def _complaint(error: ValidationError, above: tuple[str, ...] = ()) -> UserError:
    """One line about the worst problem: a key that is unknown explains one that is missing."""
    problems = error.errors()
    extra = next((found for found in problems if found["type"] == "extra_forbidden"), None)
    if extra is not None:
        *place, key = (*above, *extra["loc"])
        inside = f"[{'.'.join(map(str, place))}] of " if place else ""
        return unknown(f"key in {inside}the study", str(key), _siblings(place))
    if problems[0]["type"] == "missing":
        return UserError(f"the study lacks {'.'.join(map(str, problems[0]['loc']))!r}")
    return UserError(first_problem(error, above))


def _siblings(place: Sequence[Any]) -> list[str]:
    """The keys that are valid at `place` in a study file."""
    table: Any = StudyFile
    if place:
        tables = {**SHARED, "methods": MethodSpec, "shifts": Shift}
        table = tables.get(place[0], Overlay)
        if place[0] == "methods" and len(place) > 2:
            table = RangeSpec
        elif place[0] == "presets" and len(place) > 2:
            table = tables[place[2]]
    return list(table.model_fields)
