"""DIPA: a student's operator learned from a teacher's reconstructions and gradients.

The trained rules differ in their loss alone: `supervised` (L_sup), `imitated` (L_imit) and
`distilled` (L_grad + L_imit), each without R(P) and, with ``-r``, with it (linear P only).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

import torch
from pydantic import Field, create_model

from dipa_bench.errors import UserError, brief
from dipa_bench.learning import networks
from dipa_bench.learning.cross_fitting import HeldOutNumbers
from dipa_bench.learning.initial import FREE, Initial, initialise, obstacle
from dipa_bench.learning.networks import NetworkTrainParameters, prepare
from dipa_bench.learning.objective import DistillParameters, Mismatch, distillation_loss
from dipa_bench.learning.rules import Maker, RuleSpec
from dipa_bench.learning.strategies import GradientParameters, describe
from dipa_bench.learning.unrolling import TrainParameters, train
from dipa_bench.methods import FitContext, Iterative, Method, untrainable
from dipa_bench.parameters import Parameters, Search, Value, frozen
from dipa_bench.preconditioners import OperatorSpec
from dipa_bench.preconditioners.spec import (
    BLOCK_CIRCULANT,
    DENSE,
    KRONECKER,
    LOW_RANK,
    SYMMETRIC,
)
from dipa_bench.solvers import SolveParameters
from dipa_bench.tasks.base import Task

HELD = 5  # copies while training: the numbers, their gradient, Adam's two moments, the best so far
PAPER = "DIPA, Gualdron-Hurtado et al. 2026, arXiv 2605.15456"


class OperatorTrainParameters(TrainParameters):
    """How a linear operator is trained: the optimiser's, and what it starts from."""

    initial: Annotated[
        Initial,
        Field(
            description="P before training: identity; scaled (s I of least R); mismatch (least R); "
            "lmmse (least squares to the truth); greedy"
        ),
        Search(choices=("identity", "mismatch", "lmmse")),
    ] = "lmmse"
    operators: Annotated[
        Literal["one", "each"], Field(description="one P for all iterations, or one for each")
    ] = "one"


class TrainedParameters(Parameters):
    """P is trained inside the very algorithm that will use it, so solver settings are shared."""

    solve: SolveParameters = SolveParameters()
    train: TrainParameters = TrainParameters()
    gradient: GradientParameters = GradientParameters()
    distill: DistillParameters = DistillParameters()


def fit(task: Task, make: Maker, parameters: TrainedParameters, context: FitContext) -> Iterative:
    """Learns an operator by unrolling.

    Returns:
        The solver with the P of the best epoch (epoch 0, the initial one, included).
    """
    if not task.prior.differentiable:
        raise UserError(untrainable(task.prior))
    distill = parameters.distill
    label = task.label_or_default(distill.teacher)
    reconstructor, held_out = _initial(task, make, parameters, label, context)
    if not context.budget.epochs:
        return _concluded(reconstructor)
    images = task.images.train.first(context.budget.train_images)
    targets = mismatch = None
    taught = distill.target == "imit" or distill.weight_gradient
    if taught or distill.weight_mismatch:
        settings = context.teachers.settings(task, label, parameters.solve.units)
        context.notes |= {
            "teacher.step": settings.step,
            "teacher.strength": settings.strength,
            "teacher.units": settings.units,
        }
    if taught:
        along = bool(distill.weight_gradient) and distill.alignment == "along"
        targets = context.teachers.targets(task, label, images, settings, path=along)
    if distill.weight_mismatch:
        with torch.no_grad():
            truth = task.pixels(images)
            student, teacher = (
                physics.A_adjoint(physics.A(truth))
                for physics in (task.student, task.teacher(label))
            )
        step = context.teachers.step(task, label, settings)
        mismatch = Mismatch(student, teacher, step)
    loss = distillation_loss(reconstructor, targets, mismatch, distill, parameters.gradient, task)
    context.notes["gradient_strategy"] = describe(parameters.gradient, task.iterations)
    train(reconstructor, loss, images, parameters.train, task, context, held_out)
    return _concluded(reconstructor)


def _concluded(reconstructor: Iterative) -> Iterative:
    """A reconstructor that is not trained any more."""
    reconstructor.module.requires_grad_(False)
    networks.conclude(reconstructor)
    return reconstructor


def _initial(
    task: Task, make: Maker, parameters: TrainedParameters, label: float, context: FitContext
) -> tuple[Iterative, HeldOutNumbers | None]:
    """The solver with the operator that training starts from, and that without each fold."""
    train = parameters.train
    if isinstance(train, OperatorTrainParameters):
        operator = make(task.iterations if train.operators == "each" else 1)
        reconstructor = context.reconstructor(task, parameters.solve, operator)
        initial, solve = train.initial, parameters.solve
        held_out = initialise(reconstructor, make, initial, solve, label, task, context)
        context.notes["initial"] = initial
        return reconstructor, held_out
    reconstructor = context.reconstructor(task, parameters.solve, make(task.iterations))
    prepare(reconstructor, task, context)
    return reconstructor, None


def published(task: Task) -> dict[str, Value]:
    """The paper's settings of a linear P; its learning rates are lost, so the rate is ours."""
    return task.published_solve() | {
        "train.learning_rate": 1e-4,
        "train.optimizer": task.spec.published.optimizer,
        "train.initial": "identity",
        "train.operators": "one",
        "gradient.strategy": "full",
    }


def narrow(operator: OperatorSpec, task: Task, space: dict[str, Search]) -> dict[str, Search]:
    """Leaves out the initial operators that cannot be had: for want of size, or of a teacher."""
    if not operator.linear or "train.initial" not in space:
        return space
    try:
        sample = operator.sample(task.shape)
    except UserError:  # defaults that do not fit: the row is skipped, or has others
        return space
    choices = space["train.initial"].choices
    if "distill.teacher" not in space:
        choices = tuple(choice for choice in choices if choice != "mismatch")
    if obstacle(sample, task):
        choices = FREE if "distill.teacher" in space else FREE[:1]
    return space | {"train.initial": Search(choices=choices)}


def supervision(parameters: TrainedParameters) -> str:
    """What training and what it starts from learn from (see `Method`)."""
    distill = parameters.distill
    initial = getattr(parameters.train, "initial", "identity")
    taught = bool(distill.weight_gradient or distill.weight_mismatch)
    read = {
        "measurements": initial == "greedy",
        "ground truth": distill.target == "sup" or initial == "lmmse",
        "teacher": distill.target == "imit" or taught or initial in ("mismatch", "scaled"),
    }
    return " and ".join(name for name, holds in read.items() if holds)


def _rule(name: str, summary: str, initial: Initial | None = None, **fixed: Value) -> RuleSpec:
    """A trained rule whose loss has the terms that `fixed` leaves.

    Args:
        name, summary: as in `RuleSpec`.
        initial: what a linear operator starts from, where that is not searched.
        fixed: of `DistillParameters`: values that are no longer searched.
    """
    terms = frozen(DistillParameters, **fixed)
    several = OperatorTrainParameters
    if initial is not None:
        several = frozen(OperatorTrainParameters, initial=initial)
    single = frozen(OperatorTrainParameters, initial="identity")  # all others differ in size alone

    def parameters(operator: OperatorSpec) -> type[TrainedParameters]:
        train = single if operator.single else several
        if not operator.linear:
            train = NetworkTrainParameters
        parts = {"train": (train, train()), "distill": (terms, terms())}
        return create_model("TrainedParameters", __base__=TrainedParameters, **parts)

    weights = {
        f"distill.{term}": value
        for term, value in {"weight_gradient": 1.0, "weight_mismatch": 1e-3}.items()
        if term not in fixed
    }

    def paper(operator: OperatorSpec, task: Task) -> dict[str, Value]:
        teacher = {} if "teacher" in fixed else {"distill.teacher": task.labels[-1]}
        settings = published(task) if operator.linear else networks.published(task)
        structure = {f"operator.{name}": value for name, value in operator.published.items()}
        if operator.linear and initial is not None:
            structure["train.initial"] = initial
        return settings | weights | teacher | structure

    return RuleSpec(
        name=name,
        title=name.capitalize().replace("-r", ", with R"),
        summary=summary,
        parameters=parameters,
        fit=fit,
        published=paper,
        cost="2 operator calls, 1 denoiser call; all iterations forwards and back for each image "
        "and epoch",
        paper=PAPER,
        held=HELD,
        stochastic=True,
        unrolled=True,
        supervision=supervision,
        each=lambda parameters: getattr(parameters.train, "operators", "one") == "each",
        linear="weight_mismatch" not in fixed,
        narrow=narrow,
    )


NO_GRADIENT = {"weight_gradient": 0.0}
NO_MISMATCH = {"weight_mismatch": 0.0}

SUPERVISED = _rule(
    "supervised",
    "trained by unrolling towards the truth (L_sup)",
    target="sup",
    teacher=None,
    **NO_GRADIENT,
    **NO_MISMATCH,
)
SUPERVISED_R = _rule(
    "supervised-r",
    "trained by unrolling towards the truth (L_sup + R)",
    target="sup",
    **NO_GRADIENT,
)
IMITATED = _rule(
    "imitated",
    "trained by unrolling towards a teacher's reconstructions (L_imit)",
    target="imit",
    **NO_GRADIENT,
    **NO_MISMATCH,
)
IMITATED_R = _rule(
    "imitated-r",
    "trained by unrolling towards a teacher's reconstructions (L_imit + R)",
    target="imit",
    **NO_GRADIENT,
)
DISTILLED = _rule(
    "distilled",
    "trained by unrolling towards a teacher's reconstructions and gradients (L_grad + L_imit)",
    target="imit",
    **NO_MISMATCH,
)
DISTILLED_R = _rule(
    "distilled-r",
    "trained by unrolling towards a teacher's reconstructions and gradients (L_grad + L_imit + R)",
    target="imit",
)


def _ldipa(operator: OperatorSpec, name: str, title: str) -> Method:
    """The cell of the rule ``distilled-r`` under the paper's name, trained from the identity."""
    rule = _rule("distilled-r", DISTILLED_R.summary, initial="identity")
    summary = f"P = {operator.summary}, distilled from a better-conditioned teacher by unrolling"
    return replace(rule.method(operator), name=name, title=title, summary=summary)


def _from_closed_form(operator: OperatorSpec, name: str, title: str) -> Method:
    """The same trained from the least-squares operator, for tasks where that can be had."""
    rule = _rule("distilled-r", DISTILLED_R.summary, initial="lmmse")
    summary = f"P = {operator.summary}, distilled like L-DIPA, but from its closed form"

    def skip(task: Task) -> str | None:
        try:
            return obstacle(operator.sample(task.shape), task)
        except UserError as error:
            return brief(error, kind=False)

    return replace(rule.method(operator), name=name, title=title, summary=summary, skip=skip)


LDIPA = _ldipa(DENSE, "ldipa", "L-DIPA")
LDIPA_SYMMETRIC = _ldipa(SYMMETRIC, "ldipa-symmetric", "L-DIPA, symmetric")
LDIPA_LOW_RANK = _ldipa(LOW_RANK, "ldipa-low-rank", "L-DIPA, low rank")
LDIPA_KRONECKER = _ldipa(KRONECKER, "ldipa-kronecker", "L-DIPA, Kronecker")
LDIPA_BLOCKS = _ldipa(BLOCK_CIRCULANT, "ldipa-block-circulant", "L-DIPA, block-circulant")
LDIPA_FROM_CLOSED_FORM = _from_closed_form(
    DENSE, "ldipa-from-closed-form", "L-DIPA from the closed form"
)
LDIPA_KRONECKER_FROM_CLOSED_FORM = _from_closed_form(
    KRONECKER, "ldipa-kronecker-from-closed-form", "L-DIPA, Kronecker, from the closed form"
)
