"""What is registered of an operator that learning rules can fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, field_validator

from dipa_bench.errors import UserError
from dipa_bench.parameters import Parameters, Search, Value
from dipa_bench.preconditioners import linear, structured
from dipa_bench.preconditioners.base import Learned, Shape

Choices = tuple[Value, ...]


class NoStructure(Parameters):
    """Of an operator that has nothing to choose."""


@dataclass(frozen=True)
class OperatorSpec:
    """A registered kind of operator; with a learning rule it makes a method, OPERATOR+RULE.

    Attributes:
        name, title, summary: for `dipa-bench list`.
        build: (shape C x H x W, parameters, copies) -> the operator as the identity, with `copies`
            entries (1, or one for each iteration). Raises `UserError` where parameters do not fit.
        parameters: of its structure, e.g. a rank; the method's parameters below ``operator.``.
        paper: where it comes from.
        linear: whether P is linear in the gradient: only then R(P) is defined, and P has an initial
            value other than the identity.
        single: whether P has one number, so that neither a ridge nor a direction is to be chosen.
        published: values of its structure that a paper used.
        obstacle: the reason why images of a shape cannot have it, or None.
        narrow: (shape, choices) -> those choices of its only parameter that images can have.
    """

    name: str
    title: str
    summary: str
    build: Callable[[Shape, Any, int], Learned]
    parameters: type[Parameters] = NoStructure
    paper: str = ""
    linear: bool = True
    single: bool = False
    published: Mapping[str, Value] = field(default_factory=dict)
    obstacle: Callable[[Shape], str | None] = lambda shape: None
    narrow: Callable[[Shape, Choices], Choices] = lambda shape, choices: choices

    def narrowed(self, shape: Shape, space: dict[str, Search]) -> dict[str, Search]:
        """A method's search space with the choices of the structure that images can have."""
        found = dict(space)
        for name in self.parameters.model_fields:
            search = space.get(f"operator.{name}")
            if search is not None and search.choices:
                kept = self.narrow(shape, search.choices)
                found[f"operator.{name}"] = Search(choices=kept or search.choices)
        return found

    def sample(self, shape: Shape, parameters: Parameters | None = None) -> Learned:
        """One with the given or default parameters, without memory for its numbers."""
        with torch.device("meta"):
            return self.build(shape, parameters or self.parameters(), 1)


class Kernel(Parameters):
    kernel: Annotated[
        int,
        Field(ge=1, description="side of the kernel in pixels, odd; one for all channels"),
        Search(choices=(3, 5, 7, 9)),
    ] = 5

    @field_validator("kernel")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError("a kernel has a middle: give an odd number")
        return value


class Channels(Parameters):
    channels: Annotated[
        Literal["shared", "joint"],
        Field(description="of complex or colour images: one matrix for each channel, or over all"),
    ] = "shared"


class Rank(Parameters):
    rank: Annotated[
        int,
        Field(ge=1, description="columns of U and V; at most the pixels of an image"),
        Search(choices=(8, 32, 128)),
    ] = 32


class Terms(Parameters):
    terms: Annotated[
        int, Field(ge=1, description="Kronecker products in the sum"), Search(choices=(1, 2, 4))
    ] = 2


class Block(Parameters):
    block: Annotated[
        int,
        Field(ge=1, description="shift in pixels that P commutes with; 1: Fourier-diagonal"),
        Search(choices=(1, 2, 4)),
    ] = 4


def _convolution(shape: Shape, parameters: Kernel, copies: int) -> Learned:
    size, least = parameters.kernel, min(shape[1:])
    if size > least:
        raise UserError(f"kernel = {size} is larger than the images' {least} pixels: give less")
    return linear.Convolution(copies, size)


def _divisors(shape: Shape, choices: Choices) -> Choices:
    return tuple(block for block in choices if all(side % block == 0 for side in shape[1:]))


def _no_larger(shape: Shape, choices: Choices) -> Choices:
    return tuple(size for size in choices if size <= min(shape[1:]))


def _no_powers_of_two(shape: Shape) -> str | None:
    if all(side & (side - 1) == 0 for side in shape[1:]):
        return None
    return f"a Hadamard transform needs powers of two, not {shape[1]} x {shape[2]} pixels"


SCALAR = OperatorSpec(
    name="scalar",
    title="Scalar",
    summary="s I",
    build=lambda shape, parameters, copies: linear.Scalar(copies),
    single=True,
)

POINTWISE = OperatorSpec(
    name="pointwise",
    title="Pointwise",
    summary="a diagonal matrix",
    build=lambda shape, parameters, copies: linear.Pointwise(copies, shape),
)

CONVOLUTION = OperatorSpec(
    name="convolution",
    title="Convolution",
    summary="one small circular kernel",
    build=_convolution,
    parameters=Kernel,
    narrow=_no_larger,
)

DENSE = OperatorSpec(
    name="dense",
    title="Dense",
    summary="an unconstrained matrix",
    build=lambda shape, parameters, copies: linear.Dense(
        shape, parameters.channels == "joint", copies
    ),
    parameters=Channels,
)

SYMMETRIC = OperatorSpec(
    name="symmetric",
    title="Symmetric",
    summary="Q Q^T with a dense Q",
    build=lambda shape, parameters, copies: structured.Symmetric(shape, copies),
    paper="DIPA, section 3.3, arXiv 2605.15456",
)

LOW_RANK = OperatorSpec(
    name="low-rank",
    title="Low rank",
    summary="s I + U V^T",
    build=lambda shape, parameters, copies: structured.LowRank(shape, parameters.rank, copies),
    parameters=Rank,
)

KRONECKER = OperatorSpec(
    name="kronecker",
    title="Kronecker",
    summary="a sum of L (x) R: rows and columns by themselves",
    build=lambda shape, parameters, copies: structured.Kronecker(shape, parameters.terms, copies),
    parameters=Terms,
)

BLOCK_CIRCULANT = OperatorSpec(
    name="block-circulant",
    title="Block-circulant",
    summary="a matrix that commutes with shifts by a block (1: Fourier-diagonal)",
    build=lambda shape, parameters, copies: structured.BlockCirculant(
        shape, parameters.block, copies
    ),
    parameters=Block,
    narrow=_divisors,
)

HADAMARD = OperatorSpec(
    name="hadamard",
    title="Hadamard-diagonal",
    summary="a diagonal in the Walsh-Hadamard basis",
    build=lambda shape, parameters, copies: structured.HadamardDiagonal(shape, copies),
    obstacle=_no_powers_of_two,
)
