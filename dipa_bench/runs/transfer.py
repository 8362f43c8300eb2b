"""What a learned operator is worth elsewhere: another solver, prior, K, operator or dataset."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import optuna
import pandas as pd
from optuna.trial import TrialState

from dipa_bench import digests, parameters, statistics
from dipa_bench.config.overrides import assign
from dipa_bench.config.problem import build_task
from dipa_bench.config.schema import Problem, StudyFile, validated
from dipa_bench.config.space import distribution
from dipa_bench.data.images import ImageSet
from dipa_bench.errors import Diverged, UserError, brief, unknown
from dipa_bench.evaluation.evaluate import Evaluation, evaluate
from dipa_bench.execution.context import StudyContext, read_test
from dipa_bench.methods import relative
from dipa_bench.parameters import Value, settings_of
from dipa_bench.runs.restore import LearnedRun, tuned_identity, untuned_identity
from dipa_bench.search.samplers import INDEX
from dipa_bench.search.sampling import NumberedSampler, ask
from dipa_bench.tasks.base import Task

TRIALS = 16  # draws of solver settings where the recorded ones mean nothing
HOME = "the study's"
RECORDED = "recorded"


@dataclass(frozen=True)
class Line:
    """One entry of the comparison.

    Attributes:
        name: of the entry.
        setting: where it was tested: what differs from the study, in words.
        images: seed, image, subject, psnr, ssim; NaN where it diverged.
        solve: the solver settings that were used, flat.
        source: where they come from, in words.
        psnr, ssim: means over the test images with their intervals.
        difference: paired PSNR difference to the identity at the same setting; None for that entry
            itself, and where there is none.
        tuned: whether the solver settings were tuned there.
        note: what went wrong, if anything did.
    """

    name: str
    setting: str
    images: pd.DataFrame
    solve: Mapping[str, Value]
    source: str
    psnr: statistics.Estimate
    ssim: statistics.Estimate
    difference: statistics.Difference | None = None
    tuned: bool = False
    note: str = ""


@dataclass(frozen=True)
class _Entrant:
    """An operator, or the identity, with the parameters it is tested with."""

    run: LearnedRun
    values: Mapping[str, Value]
    source: str
    tuned: bool = False


def changed(study: StudyFile, sets: Sequence[str]) -> Problem:
    """A study's problem with other settings.

    Args:
        study: whose problem it is.
        sets: ``problem.key=value``, the later ones winning.

    Raises:
        UserError: a key that is none of the problem's (with the nearest), or a bad value.
    """
    raw = study.model_dump(mode="json")
    for assignment in sets:
        key = assignment.partition("=")[0].strip()
        if "=" in assignment and not key.startswith("problem."):
            valid = [f"problem.{name}" for name in Problem.model_fields]
            raise unknown("key in --set, which changes the problem alone,", key, valid)
        assign(raw, assignment)
    return validated(raw).problem


def transfer(
    run: LearnedRun,
    problem: Problem,
    trials: int | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> list[Line]:
    """Tests a run's operator at its own setting and at another, the identity beside it.

    The test images are read once for each setting, which goes to the study's log. Nothing is fitted
    again but analytic operators.

    Args:
        run: the operator.
        problem: the other setting; the study's own for none.
        trials: solver settings that operator and identity each try on the validation images of the
            other setting, the recorded ones and the defaults first; None for `TRIALS` where solver
            or prior change or the study tuned no identity, else 0.
        tell: told of what takes time.

    Raises:
        UserError: the operator cannot be moved there, or the images are not the study's.
    """
    if not run.same_images:
        raise UserError(
            f"the images are not those of {run.record.study}: bring them back, other test images "
            "compare with nothing"
        )
    tuned = tuned_identity(run)
    setting = differences(run.study.problem, problem)
    if trials is None:
        trials = 0
        if _apart(run.study.problem, problem) or (tuned is None and setting != HOME):
            trials = TRIALS
    away = setting != HOME or trials > 0
    context = run.context if setting == HOME else _context_of(run, problem)
    entrants = [run]
    identity = tuned or untuned_identity(run)
    if identity.entry.name != run.entry.name:
        entrants.append(identity)
    if away:  # a word where the operator cannot be moved, before anything takes time
        carried = {one.entry.name: _carried(one, context.task, trials > 0) for one in entrants}
        for one in entrants:
            one.at(context, carried[one.entry.name])

    there = []
    known = [one for one in entrants if one is not identity or tuned is not None]
    for one in entrants if away else ():
        entrant = _Entrant(
            one, carried[one.entry.name], RECORDED if one in known else f"those of {run.entry.name}"
        )
        if trials:
            tell(f"{one.entry.name}: {trials} solver settings on the validation images")
            entrant = _tuned(entrant, context, carried, trials)
        there.append(entrant)
    here = [_Entrant(one, one.parameters, RECORDED) for one in known]
    lines = _tested(run, run.context, HOME, here)
    if away:
        name = setting if setting != HOME else f"{HOME}, tuned again"
        lines += _tested(run, context, name, there)
    return lines


def differences(before: Problem, after: Problem) -> str:
    """What changed between two problems, in words."""
    old, new = _flat(before), _flat(after)
    keys = dict.fromkeys((*old, *new))
    found = [f"{key}={new.get(key)}" for key in keys if old.get(key) != new.get(key)]
    return ", ".join(found) or HOME


def _flat(problem: Problem) -> dict[str, Value]:
    values = problem.model_dump()
    return values | {f"options.{key}": value for key, value in values.pop("options").items()}


def table(lines: Sequence[Line]) -> pd.DataFrame:
    """The comparison with one entry for each line: intervals by their ends, NaN for what is not."""
    nothing = statistics.Difference(math.nan, math.nan, math.nan, 0, 0, math.nan, 0)
    entries = []
    for line in lines:
        gap = line.difference or nothing
        entries.append(
            {
                "row": line.name,
                "setting": line.setting,
                **_ends("psnr", line.psnr),
                **_ends("difference", gap),
                "p_value": gap.p_value,
                **_ends("ssim", line.ssim),
                "images": line.psnr.images,
                "settings": line.source,
                **line.solve,
                "note": line.note,
            }
        )
    return pd.DataFrame(entries)


def _ends(name: str, found: statistics.Estimate) -> dict[str, float]:
    return {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high}


def _apart(before: Problem, after: Problem) -> bool:
    """Whether solver settings of one problem mean little in the other."""
    names = ("solver", "prior", "complex_prior")
    return any(getattr(before, name) != getattr(after, name) for name in names)


def _context_of(run: LearnedRun, problem: Problem) -> StudyContext:
    """The run's task at another setting."""
    study, task = run.study, run.task
    moved = build_task(study.task, problem, seed=study.seed, device=task.device, dtype=task.dtype)
    elsewhere = study.model_copy(update={"problem": problem})
    return replace(run.context, study=elsewhere, task=moved)


def _carried(run: LearnedRun, task: Task, to_search: bool) -> dict[str, Value]:
    """A run's recorded parameters as far as they mean something at a task, else its defaults.

    Args:
        run: whose they are.
        task: where they are used.
        to_search: whether a search starts from them, for which steps are relative.
    """
    recorded = dict(run.parameters)
    if to_search:
        largest = run.task.norm_squared()
        bound = None if run.operator is None else run.operator.spectral_bound(largest)
        recorded = relative(recorded, bound or largest)
    values = parameters.defaults(run.method.parameters, task.solver, task)
    carried = {name: recorded[name] for name in values if name in recorded}
    if task.prior.strength.name != run.task.prior.strength.name:
        carried.pop("solve.strength", None)
    return values | carried


def _tuned(
    entrant: _Entrant,
    context: StudyContext,
    carried: Mapping[str, Mapping[str, Value]],
    trials: int,
) -> _Entrant:
    """An entrant with the best solver settings on the validation images; P stays as it is.

    Every entrant tries the same: what any of them brought along, the defaults, then the study's
    Sobol draws (from `STARTUP` on TPE's).

    Raises:
        UserError: none of them worked.
    """
    task, run, own = context.task, entrant.run, entrant.values
    space = settings_of(run.entry.space(task))
    if not space:
        return entrant
    points = [*carried.values(), run.entry.defaults(task)]
    admitted = [
        {name: point[name] for name, search in space.items() if search.admits(point.get(name))}
        for point in points
    ]
    distributions = {name: distribution(search) for name, search in space.items()}
    seed = digests.seed(context.study.seed, "transfer")
    shared = digests.seed(context.study.seed, "solver settings")
    sampler = NumberedSampler(
        distributions,
        seed,
        admitted,
        run.entry.solver_names(task),
        shared,
    )
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        search = optuna.create_study(direction="maximize", sampler=sampler)
    why = ""
    for index in range(trials):
        search.enqueue_trial({}, user_attrs={INDEX: index})
        trial = ask(search, distributions)
        try:
            made = run.at(context, {**own, **trial.params})
            found = evaluate(made, task, task.images.validation).check()
            search.tell(trial, found.psnr.mean().item())
        except (UserError, Diverged, RuntimeError) as error:
            why = brief(error, kind=not isinstance(error, UserError))
            search.tell(trial, state=TrialState.FAIL)
    finished = search.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not finished:
        raise UserError(
            f"none of {trials} solver settings of {run.entry.name} worked, the last: {why}"
        )
    best = max(finished, key=lambda trial: (trial.value, -trial.number))
    return _Entrant(
        run, {**own, **best.params}, f"best of {trials} on validation images", tuned=True
    )


def _tested(
    run: LearnedRun, context: StudyContext, setting: str, entrants: Sequence[_Entrant]
) -> list[Line]:
    """Reads the test images once and measures the entrants on them, the identity last."""
    images = read_test(context, f"evaluate {run.record.study} / {run.record.method}: {setting}")
    lines = [_measured(one, context, setting, images) for one in entrants]
    *others, last = lines
    return [
        Line(**vars(line) | {"difference": statistics.paired_difference(line.images, last.images)})
        for line in others
    ] + [last]


def _measured(entrant: _Entrant, context: StudyContext, setting: str, images: ImageSet) -> Line:
    """One entrant at one setting."""
    run, note = entrant.run, ""
    made = run.reconstructor
    if context is not run.context or entrant.values != run.parameters:
        made = run.at(context, entrant.values)
    try:
        found = evaluate(made, context.task.tested, images, with_quality=True)
    except RuntimeError as error:  # an operator that met images it does not check
        raise UserError(f"{run.entry.name} cannot run at {setting}: {brief(error)}") from None
    scores = found.image_table(0)
    if reason := _lost(found):
        lost = dict.fromkeys(("psnr", *found.quality), math.nan)
        scores, note = scores.assign(**lost), reason
    return Line(
        name=run.entry.name,
        setting=setting,
        images=scores,
        solve=settings_of(entrant.values),
        source=entrant.source,
        psnr=statistics.mean_interval(scores, "psnr"),
        ssim=statistics.mean_interval(scores, "ssim"),
        tuned=entrant.tuned,
        note=note,
    )


def _lost(found: Evaluation) -> str:
    """Why an evaluation counts as none, or nothing."""
    try:
        found.check()
    except Diverged as error:
        return str(error)
    return ""
