"""One declaration for each hyper-parameter, from which everything else is made.

A method's parameters are a pydantic model. A field's type, default, validity bounds and one line of
help are pydantic's own; its search range is a `Search` beside them::

    class MyParameters(Parameters):
        solve: SolveParameters = SolveParameters()
        damping: Annotated[float, Field(gt=0, description="..."), Search(1e-3, 10, log=True)] = 0.1

Nested models give dotted names (``solve.step``); those below ``solve`` belong to the solver. A
nested model that counts only for one value of another field is marked with `When`::

    architecture: Annotated[Literal["cnn", "vit"], Search(choices=("cnn", "vit"))] = "cnn"
    vit: Annotated[VitParameters, When("architecture", "vit")] = VitParameters()

The search space, ``--set``, the checks on study files and MLflow's params all come from this.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import lru_cache
from types import NoneType
from typing import Any, Protocol, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from pydantic.fields import FieldInfo

from dipa_bench.errors import UserError, unknown

Value = bool | int | float | str | None
SCALARS = ("bool", "int", "float", "str")  # branches of `Value` in pydantic's errors


class Parameters(BaseModel):
    """Base of every parameter model: frozen, strict about names and types, finite numbers only."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False, strict=True
    )


Model = TypeVar("Model", bound=Parameters)
Kept = TypeVar("Kept")


@dataclass(frozen=True)
class Setting:
    """A range that only the problem at hand can give, e.g. of its prior's strength.

    Attributes:
        default: what an untuned run uses.
        search: the range worth searching.
    """

    default: Value
    search: Search


class Ranges(Protocol):
    """What answers for ranges that depend on the problem; a `Task` bound to a solver does."""

    def setting(self, name: str) -> Setting: ...


@dataclass(frozen=True)
class When:
    """Marks a nested model that counts only while a field beside it has a certain value.

    Attributes:
        name: of the field; dotted from the top where a `Declared` or a `Search` carries it.
        value: its value.
    """

    name: str
    value: Value

    def holds(self, values: Mapping[str, Value]) -> bool:
        """Whether flat `values` have it; also where they do not say."""
        return values.get(self.name, self.value) == self.value


@dataclass(frozen=True)
class Search:
    """Range worth searching; validity bounds may be wider.

    Attributes:
        low, high: ends of a numeric range, both included.
        log: draw uniformly in the logarithm.
        choices: the values of a categorical parameter instead of a range.
        ask: name of a range that the problem gives (``"strength"``, ``"teacher"``) instead.
        solver: the parameter exists only with this solver (``"red-fista"``).
        when: the parameter counts only then; comes from the model around it.
    """

    low: float | None = None
    high: float | None = None
    log: bool = False
    choices: tuple[Value, ...] = ()
    ask: str | None = None
    solver: str | None = None
    when: When | None = None

    def __post_init__(self) -> None:
        numeric = self.low is not None and self.high is not None
        if sum((numeric, bool(self.choices), self.ask is not None)) != 1:
            raise ValueError("give exactly one of low and high, choices, or ask")
        if numeric and (self.high < self.low or (self.log and self.low <= 0)):
            raise ValueError(f"empty search range {self.low}..{self.high}, log={self.log}")

    def admits(self, value: Value) -> bool:
        """Whether `value` lies in the range."""
        if self.choices:
            return value in self.choices
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        return self.low <= value <= self.high


@dataclass(frozen=True)
class Declared:
    """One hyper-parameter as declared.

    Attributes:
        path: dotted.
        field: pydantic's.
        search: the range worth searching; None if it is not searched.
        default: of the outermost model, which may differ from the nested one's own.
        when: the condition under which it counts; None for always.
    """

    path: str
    field: FieldInfo
    search: Search | None
    default: Value
    when: When | None = None

    @property
    def help(self) -> str:
        return self.field.description or ""

    @property
    def integer(self) -> bool:
        """Whether it holds whole numbers only (or None)."""
        kinds = set(get_args(self.field.annotation)) or {self.field.annotation}
        return kinds <= {int, NoneType} and int in kinds


@dataclass(frozen=True)
class Key:
    """A key that can be set.

    Attributes:
        name: dotted, as in ``--set name=value``.
        default: as TOML; empty where there is none, or where only the problem can give it.
        range: what is searched, or else what is allowed.
        meaning: in a line; may be empty.
    """

    name: str
    default: str
    range: str
    meaning: str


@lru_cache(maxsize=1024)  # asked for every trial
def declared(model: type[Parameters], solver: str) -> tuple[Declared, ...]:
    """Every hyper-parameter of `model` that exists with `solver`, in order of declaration.

    Args:
        model: of the parameters.
        solver: ``pnp-fista`` or ``red-fista``.
    """
    return tuple(_declared(model, solver))


def _declared(
    model: type[Parameters],
    solver: str,
    prefix: str = "",
    outer: Parameters | None = None,
    when: When | None = None,
) -> Iterator[Declared]:
    """As `declared`.

    Args:
        prefix: of the paths.
        outer: an instance of `model` whose values are the defaults, if the model's own are not.
        when: the condition under which all of `model` counts.
    """
    for name, field in model.model_fields.items():
        path = f"{prefix}{name}"
        annotation = field.annotation
        default = field.get_default(call_default_factory=True)
        if outer is not None:
            default = getattr(outer, name)
        if isinstance(annotation, type) and issubclass(annotation, Parameters):
            nested = default if isinstance(default, Parameters) else None
            own = next((item for item in field.metadata if isinstance(item, When)), None)
            inner = when if own is None else When(f"{prefix}{own.name}", own.value)
            yield from _declared(annotation, solver, f"{path}.", nested, inner)
            continue
        search = next((item for item in field.metadata if isinstance(item, Search)), None)
        if search is None or search.solver in (None, solver):
            yield Declared(path, field, search, default, when)


def defaults(model: type[Parameters], solver: str, ranges: Ranges) -> dict[str, Value]:
    """Flat defaults of a model, those that the problem gives included."""
    values = {}
    for item in declared(model, solver):
        default = item.default
        if default is None and item.search is not None and item.search.ask:
            default = ranges.setting(item.search.ask).default
        values[item.path] = default
    return values


def space(model: type[Parameters], solver: str, ranges: Ranges) -> dict[str, Search]:
    """The search space: dotted path to a resolved range, for each searched parameter."""
    result = {}
    for item in declared(model, solver):
        if item.search is not None:
            search = item.search
            found = ranges.setting(search.ask).search if search.ask else search
            result[item.path] = replace(found, when=item.when)
    return result


def settings_of(params: Mapping[str, Kept]) -> dict[str, Kept]:
    """What belongs to the solver's settings, by their dotted paths."""
    return {path: value for path, value in params.items() if path.startswith("solve.")}


def without_settings(params: Mapping[str, Kept]) -> dict[str, Kept]:
    """What does not."""
    return {path: value for path, value in params.items() if not path.startswith("solve.")}


def conditions(model: type[Parameters]) -> dict[str, When]:
    """When a parameter counts, of those that do not always."""
    return {item.path: item.when for item in declared(model, "red-fista") if item.when}


def active(model: type[Parameters], values: Mapping[str, Value]) -> dict[str, Value]:
    """Flat `values` without those that do not count because of others (see `When`)."""
    found = conditions(model)
    return {
        name: value
        for name, value in values.items()
        if name not in found or found[name].holds(values)
    }


def integers(model: type[Parameters]) -> set[str]:
    """Names of the parameters that hold whole numbers only."""
    return {item.path for item in declared(model, "red-fista") if item.integer}


def frozen(model: type[Model], **values: Value) -> type[Model]:
    """A model whose named fields have other defaults and are no longer searched.

    Args:
        model: of parameters.
        values: field names to defaults; their bounds stay.
    """
    fields = {}
    for name, value in values.items():
        field = copy(model.model_fields[name])
        field.metadata = [item for item in field.metadata if not isinstance(item, Search)]
        field.default = value
        fields[name] = (field.annotation, field)
    return create_model(model.__name__, __base__=model, **fields)


def build(model: type[Parameters], values: Mapping[str, Value]) -> Any:
    """An instance of `model` from flat dotted `values`.

    Raises:
        UserError: an unknown name (with the nearest) or a value out of its bounds.
    """
    nested: dict[str, Any] = {}
    valid = {item.path for item in declared(model, solver="")} | {
        item.path for solver in ("pnp-fista", "red-fista") for item in declared(model, solver)
    }
    for path, value in values.items():
        if path not in valid:
            raise unknown("parameter", path, valid)
        *parents, leaf = path.split(".")
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {})
        place[leaf] = value
    try:
        return model(**nested)
    except ValidationError as error:
        raise UserError(first_problem(error)) from None


def first_problem(error: ValidationError, above: Sequence[str] = ()) -> str:
    """The first complaint of a pydantic error in one line that names key, value and cure.

    Args:
        error: what pydantic found.
        above: the keys above those that pydantic names.
    """
    problems = error.errors()
    problem = next((found for found in problems if found["type"] == "finite_number"), problems[0])
    place, message = list(problem["loc"]), problem["msg"][:1].lower() + problem["msg"][1:]
    if len(place) > 1 and place[-1] in SCALARS and place[-1] != place[-2]:  # a union's branch
        place.pop()
        if problem["type"] != "finite_number":
            message = "give a number, a text, true or false"
    if problem["type"] in ("model_type", "dict_type"):
        message = "input should be a table of keys and values"
    path = ".".join(str(part) for part in (*above, *place))
    value = repr(problem["input"])
    return f"{path} = {value if len(value) <= 80 else value[:80] + '...'}: {message}"
