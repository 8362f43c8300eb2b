"""Learning rules, and the methods that they make with operators: OPERATOR+RULE."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from pydantic import create_model
from torch import Tensor

from dipa_bench import devices
from dipa_bench.errors import UserError, brief
from dipa_bench.methods import FitContext, Iterative, Method
from dipa_bench.parameters import Parameters, Search, Value
from dipa_bench.preconditioners import Learned, OperatorSpec, Shape
from dipa_bench.preconditioners.networks import NetworkParameters
from dipa_bench.tasks.base import Task

Maker = Callable[[int], Learned]
"""(copies) -> a fresh operator as the identity, on the task's device and in its dtype."""


@dataclass(frozen=True)
class RuleSpec:
    """A registered learning rule.

    Attributes:
        name, title, summary: for `dipa-bench list`.
        parameters: of the method for an operator, a model with a field `solve`; a cell adds the
            operator's own as `operator`.
        fit: (task, make, parameters, context) -> Iterative.
        published: (operator, task) -> the published values as flat parameters.
        fixed_point, cost: see `Method`.
        paper: where it comes from.
        affine: whether the operator must be linear in its numbers.
        linear: whether it must be linear in the gradient.
        each: (parameters) -> whether an operator is fitted for each iteration.
        held: copies of the numbers that a fit keeps in memory.
        largest: numbers of one operator, beyond which a fit is out of reach; None without limit.
        stochastic, unrolled, supervision: see `Method`.
        narrow: (operator, task, search space) -> the part of the space that the task admits.
    """

    name: str
    title: str
    summary: str
    parameters: Callable[[OperatorSpec], type[Parameters]]
    fit: Callable[[Task, Maker, Any, FitContext], Iterative]
    published: Callable[[OperatorSpec, Task], dict[str, Value]]
    fixed_point: str = "another: the data term is re-weighted by P"
    cost: str = "2 operator calls, 1 denoiser call"
    paper: str = ""
    affine: bool = False
    linear: bool = False
    each: Callable[[Any], bool] = lambda parameters: False
    held: int = 2
    largest: int | None = None
    stochastic: bool = False
    unrolled: bool = False
    supervision: str | Callable[[Any], str] = ""
    narrow: Callable[[OperatorSpec, Task, dict[str, Search]], dict[str, Search]] = (
        lambda operator, task, found: found
    )

    def method(self, operator: OperatorSpec) -> Method:
        """The method OPERATOR+RULE.

        Raises:
            UserError: the rule cannot fit the operator.
        """
        return cell(operator, self)

    def refuses(self, operator: OperatorSpec) -> str | None:
        """Why the rule cannot fit a kind of operator, or None."""
        if self.linear and not operator.linear:
            return (
                f"rule {self.name!r} needs a linear operator, for which R(P) is defined; "
                f"{operator.name!r} is not: use {operator.name}+{self.name.removesuffix('-r')}"
            )
        if self.affine and (not operator.linear or operator.sample((1, 16, 16)).affine is None):
            return (
                f"rule {self.name!r} needs an operator that is linear in its numbers; "
                f"{operator.name!r} is not: use a trained rule, e.g. {operator.name}+distilled"
            )
        return None


def cell(operator: OperatorSpec, rule: RuleSpec) -> Method:
    """The method OPERATOR+RULE.

    Raises:
        UserError: the rule cannot fit the operator.
    """
    if reason := rule.refuses(operator):
        raise UserError(reason)
    model = rule.parameters(operator)
    if operator.parameters.model_fields:
        model = create_model(
            f"{model.__name__}Of{operator.parameters.__name__}",
            __base__=model,
            operator=(operator.parameters, operator.parameters()),
        )

    def structure(parameters: Parameters) -> Parameters:
        return getattr(parameters, "operator", operator.parameters())

    def fit(task: Task, parameters: Any, context: FitContext) -> Iterative:
        if reason := refuses(task, parameters):
            raise UserError(reason)

        def make(copies: int) -> Learned:
            with context.drawing():
                made = operator.build(task.shape, structure(parameters), copies)
            return made.to(task.device, task.dtype)

        return rule.fit(task, make, parameters, context)

    def restore(
        task: Task, parameters: Any, state: Mapping[str, Tensor], context: FitContext
    ) -> Iterative:
        made = restored(operator, task.shape, structure(parameters), state)
        return context.reconstructor(task, parameters.solve, made.requires_grad_(False))

    def refuses(task: Task, parameters: Any) -> str | None:
        copies = task.iterations if rule.each(parameters) else 1
        return _obstacle(operator, structure(parameters), copies, rule, task)

    def narrow(task: Task, space: dict[str, Search]) -> dict[str, Search]:
        return rule.narrow(operator, task, operator.narrowed(task.shape, space))

    return Method(
        name=f"{operator.name}+{rule.name}",
        title=f"{operator.title}, {rule.title.lower()}",
        summary=f"P = {operator.summary}: {rule.summary}",
        operator=operator.name,
        rule=rule.name,
        parameters=model,
        fit=fit,
        learned=True,
        supervision=rule.supervision,
        stochastic=rule.stochastic,
        unrolled=rule.unrolled,
        paper="; ".join(filter(None, (operator.paper, rule.paper))),
        published=partial(rule.published, operator),
        refuses=refuses,
        fixed_point=rule.fixed_point,
        cost=rule.cost,
        narrow=narrow,
        restore=restore,
    )


def restored(
    operator: OperatorSpec, shape: Shape, structure: Parameters, state: Mapping[str, Tensor]
) -> Learned:
    """An operator with stored numbers.

    Args:
        operator: its kind.
        shape: (C, H, W) of the images that it is to work on.
        structure: its parameters.
        state: as `state_dict` gave it.

    Raises:
        UserError: the numbers are those of another structure, or of images of another shape.
    """
    single = operator.sample(shape, structure).state_dict()
    copies = 1
    if single.keys() == state.keys():
        copies = max(
            (len(state[name]) // max(len(part), 1) for name, part in single.items() if part.dim()),
            default=1,
        )
    made = operator.build(shape, structure, max(copies, 1))
    try:
        made.load_state_dict(state)
    except RuntimeError:
        raise UserError(
            f"the stored numbers of {operator.name!r} do not fit images of shape {shape}: give "
            "images of the size and channels it was fitted for"
        ) from None
    return made


def _obstacle(
    operator: OperatorSpec, structure: Parameters, copies: int, rule: RuleSpec, task: Task
) -> str | None:
    """Why images have no such operator, or its fit cannot be held in memory or computed."""
    if reason := operator.obstacle(task.shape):
        return reason
    try:
        made = operator.sample(task.shape, structure)
    except UserError as error:
        return brief(error, kind=False)
    numbers = sum(part.numel() for part in made.parameters())
    if isinstance(structure, NetworkParameters):
        limit = structure.limit(task.shape)
        if limit is not None and numbers > limit:
            named = "dense, " if structure.max_parameters == "dense" else ""
            return (
                f"a network of {numbers:,} numbers has more than operator.max_parameters = "
                f"{named}{limit:,}: lower its width or depth"
            )
    if rule.largest is not None and numbers > rule.largest:
        return (
            f"{rule.name} fits at most {rule.largest:,} numbers of an operator, not {numbers:,}: "
            "lower problem.size or choose a structured operator"
        )
    needed = rule.held * copies * numbers * torch.finfo(task.dtype).bits // 8
    free = devices.available_memory(task.device)
    if needed <= free:
        return None
    return (
        f"fitting {copies} x {numbers:,} numbers takes {needed / 2**30:,.0f} GiB, of which "
        f"{free / 2**30:,.0f} are free: lower problem.size or choose a structured operator"
    )
