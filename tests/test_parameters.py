"""One declaration: search spaces, defaults, checks."""

from typing import Annotated, Literal

import pytest
from pydantic import Field

from dipa_bench.errors import UserError
from dipa_bench.parameters import (
    Parameters,
    Search,
    Setting,
    When,
    active,
    build,
    declared,
    defaults,
    frozen,
    space,
)
from dipa_bench.solvers import SolveParameters


class Inner(Parameters):
    depth: Annotated[int, Field(ge=1, description="layers"), Search(1, 8)] = 3
    kind: Annotated[Literal["a", "b"], Search(choices=("a", "b"))] = "a"


class Model(Parameters):
    solve: SolveParameters = SolveParameters()
    net: Inner = Inner()
    rate: Annotated[float, Field(gt=0, lt=1, description="a rate"), Search(0.1, 0.5, log=True)] = (
        0.2
    )
    fixed: float = 4.0
    teacher: Annotated[float | None, Search(ask="teacher")] = None


class Ranges:
    """A problem that answers for strength and teacher."""

    def setting(self, name):
        return {
            "strength": Setting(0.7, Search(0.1, 0.9, log=True)),
            "teacher": Setting(2.0, Search(choices=(3.0, 2.0))),
        }[name]


def test_names_are_dotted_and_in_order():
    """Nested models give prefixes; help texts are the descriptions."""
    items = {item.path: item for item in declared(Model, "pnp-fista")}
    assert list(items)[:2] == ["solve.step", "solve.strength"]
    assert list(items)[-5:] == ["net.depth", "net.kind", "rate", "fixed", "teacher"]
    assert items["rate"].help == "a rate"
    assert items["net.depth"].integer
    assert not items["rate"].integer


def test_space_is_what_can_be_searched():
    """Ranges as declared, those that the problem gives resolved; fixed ones are not in it."""
    found = space(Model, "pnp-fista", Ranges())
    assert found["rate"] == Search(0.1, 0.5, log=True)
    assert found["solve.strength"] == Search(0.1, 0.9, log=True)
    assert found["teacher"].choices == (3.0, 2.0)
    assert found["solve.momentum"].choices == ("textbook", "published", "none")
    assert "fixed" not in found
    assert "solve.units" not in found


def test_a_solvers_own_parameters_are_hidden_from_others():
    """RED's weight exists in no PnP space, nor among its defaults."""
    assert "solve.weight" in space(Model, "red-fista", Ranges())
    assert "solve.weight" in defaults(Model, "red-fista", Ranges())
    assert "solve.weight" not in space(Model, "pnp-fista", Ranges())
    assert "solve.weight" not in defaults(Model, "pnp-fista", Ranges())


def test_defaults_are_flat_and_buildable():
    """The problem's defaults fill the gaps; building them gives the model back."""
    flat = defaults(Model, "pnp-fista", Ranges())
    assert flat["solve.strength"] == 0.7
    assert flat["teacher"] == 2.0
    assert flat["net.depth"] == 3
    made = build(Model, flat)
    assert made.solve.strength == 0.7
    assert made.net == Inner()


def test_every_default_lies_in_its_search_range():
    """For our own solver parameters and every registered method, whatever the solver."""
    from dipa_bench import registry
    from dipa_bench.testing.problems import small_task

    for solver in ("pnp-fista", "red-fista"):
        task = small_task(solver=solver)
        for name in registry.names("methods"):
            model = registry.get("methods", name).parameters
            flat = defaults(model, solver, task)
            for path, search in space(model, solver, task).items():
                assert search.admits(flat[path]), (name, path)
            build(model, flat)


def test_every_pairs_default_lies_in_its_search_range():
    """Of every operator with every rule; what is searched there a published point can freeze."""
    from dipa_bench import registry
    from dipa_bench.testing.problems import small_task

    for solver in ("pnp-fista", "red-fista"):
        task = small_task(solver=solver)
        for name in registry.names("methods", "*+*"):
            method = registry.get("methods", name)
            flat = defaults(method.parameters, solver, task)
            found = method.narrow(task, space(method.parameters, solver, task))
            assert set(found) <= set(flat), name
            for path, search in found.items():
                assert search.admits(flat[path]), (name, path)
            build(method.parameters, flat)
            build(method.parameters, flat | method.published(task))


def test_frozen_fields_keep_their_bounds():
    """Another default, no search, the same checks; the first model is as it was."""
    made = frozen(Model, rate=0.4)
    assert "rate" not in space(made, "pnp-fista", Ranges())
    assert defaults(made, "pnp-fista", Ranges())["rate"] == 0.4
    assert made().rate == 0.4
    assert isinstance(made(), Model)
    with pytest.raises(UserError, match=r"rate = 1\.5"):
        build(made, {"rate": 1.5})
    assert build(made, {"rate": 0.3}).rate == 0.3
    assert space(Model, "pnp-fista", Ranges())["rate"] == Search(0.1, 0.5, log=True)
    assert defaults(Model, "pnp-fista", Ranges())["rate"] == 0.2
    with pytest.raises(KeyError):
        frozen(Model, rat=0.4)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rat": 0.2}, "'rat': did you mean 'rate'"),
        ({"solve.stepp": 1.0}, "did you mean 'solve.step'"),
        ({"net.dept": 3}, "did you mean 'net.depth'"),
        ({"rate": 1.5}, "rate = 1.5: .*less than 1"),
        ({"rate": "x"}, "rate = 'x'"),
        ({"rate": float("nan")}, "rate = nan"),
        ({"net.depth": 0}, "net.depth = 0: .*greater than or equal to 1"),
        ({"net.depth": 2.5}, "net.depth = 2.5"),
        ({"net.kind": "c"}, "net.kind = 'c'"),
        ({"solve.momentum": "fast"}, "solve.momentum = 'fast'"),
    ],
)
def test_mistakes_are_user_errors(values, message):
    """One line with name, value and cure."""
    with pytest.raises(UserError, match=message) as caught:
        build(Model, values)
    assert "\n" not in str(caught.value)


def test_models_are_frozen():
    """A parameter cannot change under a running fit."""
    made = build(Model, {"rate": 0.3})
    with pytest.raises(ValueError, match="frozen"):
        made.rate = 0.4
    assert made.rate == 0.3
    assert made.fixed == 4.0


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"low": 1.0},
        {"low": 2.0, "high": 1.0},
        {"low": 0.0, "high": 1.0, "log": True},
        {"low": 0.0, "high": 1.0, "choices": (1,)},
        {"choices": (1,), "ask": "teacher"},
    ],
)
def test_search_ranges_check_themselves(options):
    """Nothing, half a range, an empty one, log of zero, two kinds at once."""
    with pytest.raises(ValueError, match=r"range|exactly one"):
        Search(**options)


def test_admits():
    """Ends are included; booleans and texts are no numbers; choices are exact."""
    line = Search(1, 3)
    assert [line.admits(value) for value in (1, 2.5, 3, 0.99, 3.01)] == [True] * 3 + [False] * 2
    assert not line.admits(True)
    assert not line.admits("2")
    assert not line.admits(None)
    pick = Search(choices=("a", 2))
    assert pick.admits("a")
    assert pick.admits(2)
    assert not pick.admits("b")


def test_a_models_own_defaults_of_nested_parameters_win():
    """`solve` given as an instance with another start is what an untuned run uses."""

    class Deeper(Parameters):
        net: Inner = Inner(depth=7)

    class Other(Parameters):
        solve: SolveParameters = SolveParameters(start="zero", momentum="none")
        deeper: Deeper = Deeper()

    found = defaults(Other, "pnp-fista", Ranges())
    assert (found["solve.start"], found["solve.momentum"]) == ("zero", "none")
    assert (found["deeper.net.depth"], found["deeper.net.kind"]) == (7, "a")
    assert build(Other, found) == Other(
        solve=SolveParameters(start="zero", momentum="none", strength=0.7)
    )


class Small(Parameters):
    width: Annotated[int, Field(ge=1, description="w"), Search(1, 4)] = 2


class Large(Parameters):
    width: Annotated[int, Field(ge=1, description="w"), Search(10, 40)] = 20
    fixed: Annotated[int, Field(description="f")] = 7


class Kinds(Parameters):
    kind: Annotated[str, Field(description="k"), Search(choices=("small", "large"))] = "small"
    small: Annotated[Small, When("kind", "small")] = Small()
    large: Annotated[Large, When("kind", "large")] = Large()


class Holder(Parameters):
    operator: Kinds = Kinds()
    rate: Annotated[float, Field(description="r"), Search(0.0, 1.0)] = 0.5


def test_a_branch_counts_while_it_is_chosen() -> None:
    """Conditions carry the whole path; values of other branches are left out."""
    condition = {name: found.when for name, found in space(Holder, "pnp-fista", None).items()}
    assert condition == {
        "operator.kind": None,
        "operator.small.width": When("operator.kind", "small"),
        "operator.large.width": When("operator.kind", "large"),
        "rate": None,
    }
    values = defaults(Holder, "pnp-fista", None)
    assert active(Holder, values) == {
        "operator.kind": "small",
        "operator.small.width": 2,
        "rate": 0.5,
    }
    large = active(Holder, values | {"operator.kind": "large"})
    assert large == {
        "operator.kind": "large",
        "operator.large.width": 20,
        "operator.large.fixed": 7,
        "rate": 0.5,
    }
    assert build(Holder, large).operator.large.width == 20
    assert active(Small, {"width": 3}) == {"width": 3}
