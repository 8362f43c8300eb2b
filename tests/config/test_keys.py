"""What can be set, as text: complete, true, and a study file made of it does what ours does."""

from __future__ import annotations

import tomllib

import pytest

from dipa_bench import registry
from dipa_bench.config import study_file
from dipa_bench.config.keys import method_keys, study_keys
from dipa_bench.config.overrides import OPTIONS, parameters_of
from dipa_bench.config.template import inline, template
from dipa_bench.errors import UserError

TASKS = [name for name in registry.names("tasks") if name in study_file.embedded()]


@pytest.mark.parametrize("method", ["identity", "ldipa", "ndipa/cnn", "dense+greedy"])
def test_every_parameter_is_there_and_its_default_can_be_set(method: str) -> None:
    keys = method_keys(method)
    assert {key.name for key in keys} == {f"{method}.{name}" for name in parameters_of(method)}
    sets = [f"{key.name}={key.default}" for key in keys if key.default]
    sets += ["problem.solver=red-fista"]
    raw = study_file.read("sr", None) | {"presets": {}}
    study = study_file.resolve(raw, methods=f"identity,{method}", sets=sets)
    assert len(study.methods[method].set) == len(sets) - 1 > 0
    assert all(key.meaning and key.range for key in keys)


def test_keys_of_a_study_can_be_set_to_their_defaults() -> None:
    keys = study_keys()
    sets = [f"{key.name}={key.default}" for key in keys if key.default and key.name not in OPTIONS]
    raw = study_file.read("sr", None)
    study = study_file.resolve({"task": "sr", "methods": raw["methods"]}, sets=sets)
    plain = study_file.resolve({"task": "sr", "methods": raw["methods"]})
    assert study.model_dump(exclude={"name"}) == plain.model_dump(exclude={"name"})
    assert all(key.meaning and key.range for key in keys)


def test_ranges_say_what_is_searched_or_allowed() -> None:
    found = {key.name.removeprefix("ldipa."): key.range for key in method_keys("ldipa")}
    assert found["solve.step"] == "searched 0.03 to 2"
    assert found["solve.strength"] == "searched what the prior gives"
    assert found["train.learning_rate"] == "searched 5e-05 to 0.001, logarithmic"
    assert found["train.clip"] == "number > 0"
    assert found["train.optimizer"] == "adam | adamw"
    size = {key.name: key.range for key in study_keys()}["problem.size"]
    assert size == "whole number >= 11 and <= 1024"


@pytest.mark.parametrize("task", TASKS)
def test_the_written_file_is_the_tasks_own_study(task: str) -> None:
    text = template(task, "mine.toml")
    ours = study_file.resolve(study_file.read(task, None))
    theirs = study_file.resolve(tomllib.loads(text), name=ours.name)
    assert theirs == ours
    missing = {key.name for key in study_keys()} - set(_keys(text))
    assert not missing


def _keys(text: str) -> list[str]:
    """Dotted names of all keys of a study file, those behind a # included."""
    table, found = "", []
    for line in text.splitlines():
        if line.startswith("["):
            table = line.strip("[]") + "."
        elif " = " in line:
            found.append(table + line.removeprefix("# ").partition(" = ")[0])
    return found


def test_a_task_without_a_study_is_refused() -> None:
    with pytest.raises(UserError, match="unknown task 'nope'"):
        template("nope", "mine.toml")


def test_values_on_one_line_are_toml() -> None:
    value = {"a b": [1, 2.5, 'x"y\n'], "c": {"d": True}, "e": {}, "f": []}
    assert tomllib.loads(f"value = {inline(value)}")["value"] == value
