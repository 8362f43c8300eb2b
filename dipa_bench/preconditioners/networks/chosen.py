"""The operator ``network``: any of the architectures, chosen by a parameter.

The branches' parameters have the architecture in their names (``operator.vit.patch``) and count
only while it is chosen; what all architectures share is declared once.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, create_model

from dipa_bench.parameters import Parameters, Search, Value, When, build
from dipa_bench.preconditioners.base import Shape
from dipa_bench.preconditioners.networks import SPECS
from dipa_bench.preconditioners.networks.base import PAPER, Network, NetworkParameters
from dipa_bench.preconditioners.spec import OperatorSpec

BY_NAME = {spec.name: spec for spec in SPECS}


def branch(name: str) -> str:
    """An architecture's name as part of its parameters' names."""
    return name.replace("-", "_")


def _own(spec: OperatorSpec) -> type[Parameters]:
    """An architecture's parameters without those that all share."""
    fields = {
        name: (field.annotation, field)
        for name, field in spec.parameters.model_fields.items()
        if name not in NetworkParameters.model_fields
    }
    return create_model(f"Own{spec.parameters.__name__}", __base__=Parameters, **fields)


class _Shared(NetworkParameters):
    """What all share, with the limit of the chosen one."""

    def limit(self, shape: Shape) -> int | None:
        return structure(self).limit(shape)


def _parameters() -> type[NetworkParameters]:
    names = tuple(BY_NAME)
    fields: dict[str, Any] = {
        "architecture": (
            Annotated[
                Literal[names],
                Field(description="kind of network"),
                Search(choices=names),
            ],
            "convnext",
        )
    }
    for spec in SPECS:
        own = _own(spec)
        fields[branch(spec.name)] = (Annotated[own, When("architecture", spec.name)], own())
    return create_model("AnyNetworkParameters", __base__=_Shared, **fields)


def structure(parameters: Any) -> NetworkParameters:
    """The parameters of the chosen architecture, as its own spec takes them."""
    spec = BY_NAME[parameters.architecture]
    shared = {name: getattr(parameters, name) for name in NetworkParameters.model_fields}
    own = getattr(parameters, branch(spec.name)).model_dump()
    return build(spec.parameters, shared | own)


def _build(shape: Shape, parameters: Any, copies: int) -> Network:
    return BY_NAME[parameters.architecture].build(shape, structure(parameters), copies)


def _published(architecture: str) -> dict[str, Value]:
    """What was published of an architecture, under the names that it has here."""
    named = {
        name if name in NetworkParameters.model_fields else f"{branch(architecture)}.{name}": value
        for name, value in BY_NAME[architecture].published.items()
    }
    return {"architecture": architecture} | named


SPEC = OperatorSpec(
    name="network",
    title="Network",
    summary="a network of gradient and iteration, its architecture searched",
    build=_build,
    parameters=_parameters(),
    paper=PAPER,
    linear=False,
    published=_published("convnext"),
)
