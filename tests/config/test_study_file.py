"""Study files and what the command line says on top of them."""

from __future__ import annotations

import re
from typing import Annotated, Any

import pytest
from pydantic import Field

from dipa_bench import registry
from dipa_bench.config import study_file
from dipa_bench.config.entry import Entry
from dipa_bench.config.schema import BudgetSpec
from dipa_bench.errors import UserError
from dipa_bench.parameters import Parameters, Search
from dipa_bench.search.stages import planned_trials
from dipa_bench.testing import small_task


def raw(**tables: Any) -> dict[str, Any]:
    return {"task": "sr", "methods": {"identity": {}, "ldipa": {}}, **tables}


def problem_of(table: dict[str, Any], **options: Any) -> str:
    """The one line that `table` is refused with."""
    with pytest.raises(UserError) as caught:
        study_file.resolve(table, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------------------- the embedded one


@pytest.mark.parametrize("seeds", [1, 2])
def test_older_budgets_with_seeds(seeds: int) -> None:
    """One fit of a winner is what there is; more of them are told what came in their place."""
    budget = {"settings": 5, "seeds": seeds}
    if seeds == 1:
        assert BudgetSpec.model_validate(budget).settings == 5
        return
    with pytest.raises(ValueError, match="replicates repeats search and fit"):
        BudgetSpec.model_validate(budget)


@pytest.mark.parametrize("preset", ["quick", "standard", "paper"])
def test_the_embedded_study_resolves_with_every_preset(preset: str) -> None:
    table = study_file.read("sr", None)
    study = study_file.resolve(table, task="sr", preset=preset)
    overlay = {"problem": {}, "budget": {}} | table["presets"].get(preset, {})
    for key in ("problem", "budget"):
        expected = table[key] | overlay[key]
        found = getattr(study, key).model_dump()
        assert {name: found[name] for name in expected} == expected
    assert study.name == f"sr-{preset}"
    assert study.presets == {}


@pytest.mark.parametrize("name", study_file.embedded())
def test_every_embedded_study_is_valid(name: str) -> None:
    assert study_file.resolve(study_file.read(None, name)).methods


def test_a_study_is_the_same_after_a_round_trip_through_json() -> None:
    study = study_file.resolve(study_file.read("sr", None), preset="paper")
    assert study_file.StudyFile.model_validate_json(study.model_dump_json()) == study


# ---------------------------------------------------------------------------- typos and types


@pytest.mark.parametrize(
    ("table", "wrong", "near"),
    [
        ({"task": "sr", "metods": {"identity": {}}}, "metods", "methods"),
        ({"tsk": "sr", "methods": {}}, "tsk", "task"),
        (raw(budgets={}), "budgets", "budget"),
        (raw(problem={"sise": 16}), "sise", "size"),
        (raw(budget={"setings": 3}), "setings", "settings"),
        (raw(methods={"idntity": {}}), "idntity", "identity"),
        (raw(methods={"mine": {"method": "hesian"}}), "hesian", "hessian"),
        (raw(methods={"identity": {"sets": {}}}), "sets", "set"),
        (raw(methods={"ldipa": {"set": {"train.lr": 1}}}), "train.lr", "train.clip"),
        (raw(methods={"identity": {"set": {"solve.stp": 1}}}), "solve.stp", "solve.step"),
        (raw(methods={"identity": {"search": {"solve.stp": {}}}}), "solve.stp", "solve.step"),
        (
            raw(methods={"identity": {"search": {"solve.step": {"loww": 1, "high": 2}}}}),
            "loww",
            "low",
        ),
        (raw(methods={"search": {"method": "identity", "sett": {}}}), "sett", "set"),
        (raw(presets={"paper": {"problems": {}}}), "problems", "problem"),
        (raw(presets={"paper": {"problem": {"iteration": 3}}}), "iteration", "iterations"),
        (raw(presets={"paper": {"budget": {"epoch": 3}}}), "epoch", "epochs"),
        (raw(preset="standart", presets={"standard": {}}), "standart", "standard"),
        (raw(reference="idntity"), "idntity", "identity"),
        (raw(task="srr"), "srr", "sr"),
    ],
)
def test_a_typo_names_the_nearest_valid_key(table: dict, wrong: str, near: str) -> None:
    line = problem_of(table)
    assert repr(wrong) in line
    assert f"did you mean {near!r}?" in line


@pytest.mark.parametrize(
    ("table", "key"),
    [
        (raw(problem=3), "problem = 3: input should be a table"),
        (raw(methods=["identity"]), "methods"),
        (raw(methods={"identity": "yes"}), "methods.identity"),
        (raw(problem={"size": "32"}), "problem.size = '32'"),
        (raw(problem={"size": 32.5}), "problem.size = 32.5"),
        (raw(problem={"size": 4}), "problem.size = 4"),
        (raw(problem={"solver": "fista"}), "problem.solver = 'fista'"),
        (raw(problem={"noise": -0.1}), "problem.noise = -0.1"),
        (raw(problem={"noise": float("nan")}), "problem.noise = nan"),
        (raw(problem={"options": {"factor": [4]}}), "problem.options.factor = [4]"),
        (raw(budget={"epochs": True}), "budget.epochs = True"),
        (raw(budget={"settings": 0}), "budget.settings = 0"),
        (raw(seed=-1), "seed = -1"),
        (raw(protocol="fair"), "protocol = 'fair'"),
        (raw(presets={"paper": {"budget": {"epochs": 0}}}), "presets.paper.budget.epochs = 0"),
        (raw(methods={"identity": {"set": {"solve.step": -1.0}}}), "solve.step = -1.0"),
        (raw(methods={"identity": {"set": {"solve.step": "1"}}}), "solve.step = '1'"),
        (raw(methods={"identity": {"set": {"solve.step": True}}}), "solve.step = True"),
        (
            raw(methods={"identity": {"set": {"solve.step": float("inf")}}}),
            "solve.step = inf: input should be a finite number",
        ),
        (
            raw(methods={"identity": {"set": {"solve.step": [1]}}}),
            "solve.step = [1]: give a number, a text, true or false",
        ),
        (raw(methods={}), "no methods"),
        ({"task": "sr"}, "lacks 'methods'"),
        ({"methods": {"identity": {}}}, "lacks 'task'"),
    ],
)
def test_a_wrong_type_or_value_is_told_with_its_key(table: dict, key: str) -> None:
    assert key in problem_of(table)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"low": 0.5, "high": 0.1}, "empty"),
        ({"low": 0.0, "high": 1.0, "log": True}, "solve.step|logarithmic"),
        ({"low": -1.0, "high": 1.0}, "solve.step = -1.0"),
        ({"low": 0.5}, "needs low and high"),
        ({"high": 0.5}, "needs low and high"),
        ({}, "needs low and high"),
        ({"low": 0.1, "high": 1.0, "choices": [1.0]}, "or choices"),
        ({"choices": [0.5, -2.0]}, "solve.step = -2.0"),
    ],
)
def test_a_search_range_must_be_sound(found: dict, message: str) -> None:
    line = problem_of(raw(methods={"identity": {"search": {"solve.step": found}}}))
    assert any(part in line for part in message.split("|"))
    assert "identity" in line


def test_a_parameter_of_another_solver_is_refused() -> None:
    entries = {"identity": {"search": {"solve.weight": {"low": 0.1, "high": 1.0}}}}
    assert "does not exist with solver 'pnp-fista'" in problem_of(raw(methods=entries))
    red = study_file.resolve(raw(methods=entries, problem={"solver": "red-fista"}))
    assert "solve.weight" in Entry.of(red, "identity").space(small_task(solver="red-fista"))


@pytest.mark.parametrize(
    "name", ["", " ", "a/b", "..", ".teachers", "a\\b", "a\nb", "x" * 201, "\u00e9" * 101, "\ud800"]
)
def test_names_that_are_no_folders_are_refused(name: str) -> None:
    assert "study name" in problem_of(raw(), name=name)
    if name:
        problem_of(raw(name=name))
    if name != "a/b":  # as in ndipa/vit
        problem_of(raw(methods={name or "a/": {"method": "identity"}}))


@pytest.mark.parametrize("entry", ["a/..", "/a", "a//b", "a/"])
def test_parts_of_a_rows_name_are_names(entry: str) -> None:
    problem_of(raw(methods={entry: {"method": "identity"}}))


def test_rows_that_would_share_a_folder_are_refused() -> None:
    entries = {name: {"method": "identity"} for name in ("a/b", "a__b")}
    assert "a__b" in problem_of(raw(methods=entries))


@pytest.mark.parametrize("entry", ["lock", "study.json"])
def test_a_row_cannot_be_called_as_the_studys_own_files(entry: str) -> None:
    assert "taken" in problem_of(raw(methods={entry: {"method": "identity"}}))


def test_a_hostile_but_printable_name_is_fine() -> None:
    name = "<img src=x onerror=alert(1)> & co"
    assert study_file.resolve(raw(), name=name).name == name


# ---------------------------------------------------------------------------- --set


def rows_of(*sets: str, **options: Any) -> dict[str, dict]:
    study = study_file.resolve(raw(), sets=sets, **options)
    return {name: entry.set for name, entry in study.methods.items()}


def test_set_reaches_problem_budget_and_top() -> None:
    study = study_file.resolve(
        raw(),
        sets=[
            "problem.size=64",
            "budget.epochs=2",
            "problem.prior=den:smooth",
            'problem.dataset="folder:/a b"',
            "problem.options.factor=2",
            "seed=7",
            "reference=ldipa",
            " problem.noise = 0.5 ",
        ],
    )
    assert (study.problem.size, study.budget.epochs) == (64, 2)
    assert (study.problem.prior, study.problem.dataset) == ("den:smooth", "folder:/a b")
    assert study.problem.options == {"factor": 2}
    assert (study.seed, study.reference, study.problem.noise) == (7, "ldipa", 0.5)


def test_set_without_a_row_freezes_every_row_that_has_the_parameter() -> None:
    assert rows_of("solve.step=0.5") == {
        "identity": {"solve.step": 0.5},
        "ldipa": {"solve.step": 0.5},
    }
    assert rows_of("train.clip=2") == {"identity": {}, "ldipa": {"train.clip": 2.0}}


def test_set_with_a_row_freezes_that_row_only() -> None:
    assert rows_of("ldipa.train.learning_rate=1e-3", "ldipa.solve.momentum=none") == {
        "identity": {},
        "ldipa": {"train.learning_rate": 1e-3, "solve.momentum": "none"},
    }


def test_the_later_set_wins_and_over_preset_and_rules() -> None:
    assert rows_of("solve.step=0.5", "identity.solve.step=0.25")["identity"]["solve.step"] == 0.25
    overlay = {"paper": {"problem": {"size": 64}}}
    study = study_file.resolve(
        raw(presets=overlay),
        preset="paper",
        protocol="published",
        sets=["problem.size=16", "problem.noise=0.1"],
    )
    assert (study.problem.size, study.problem.noise) == (16, 0.1)


def test_set_does_not_change_the_table_it_was_given() -> None:
    table = raw(problem={"options": {"factor": 4}})
    study_file.resolve(table, sets=["problem.options.factor=2", "solve.step=0.5"])
    assert table == raw(problem={"options": {"factor": 4}})


def test_values_are_kept_as_their_parameters_hold_them() -> None:
    found = rows_of("solve.step=1", "distill.teacher=3")
    assert isinstance(found["identity"]["solve.step"], float)
    assert isinstance(found["ldipa"]["distill.teacher"], float)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("solve.step", "is not key=value"),
        ("=3", "is not key=value"),
        ("solve.stpe=1", "did you mean 'solve.step'?"),
        ("problem.sise=1", "did you mean 'size'?"),
        ("budget.epoch=1", "did you mean 'epochs'?"),
        ("problem.size.x=1", "problem.size = {'x': 1}"),
        ("problem=1", "unknown key in --set 'problem'"),
        ("ldipa.train.clp=1", "did you mean 'ldipa.train.clip'?"),
        ("identity.train.clip=1", "unknown key in --set"),
        ("seeed=1", "did you mean 'seed'?"),
        ("protocol=published", "use --protocol"),
        ("name=x", "use --name"),
        ("solve.step=nan", "solve.step = nan: input should be a finite number"),
        ("solve.step=inf", "finite"),
        ("problem.noise=nan", "problem.noise = nan"),
        ("solve.step=", "solve.step = ''"),
        ('solve.step="0.5"', "solve.step = '0.5': input should be a valid number"),
        ("solve.step=[1]", "give a number"),
        ("solve.step=2020-01-01", "give a number"),
        ("solve.momentum=fast", "solve.momentum = 'fast'"),
        ("budget.epochs=2.5", "budget.epochs = 2.5"),
        ("solve.weight=1", "does not exist with solver"),
    ],
)
def test_a_bad_set_is_told(text: str, message: str) -> None:
    assert message in problem_of(raw(), sets=[text])


def test_a_set_below_a_value_is_no_key() -> None:
    line = problem_of(raw(problem={"size": 32}), sets=["problem.size.x=1"])
    assert "unknown key in --set 'problem.size.x'" in line


# ---------------------------------------------------------------------------- --methods


def chosen(pattern: str, table: dict | None = None) -> list[str]:
    return list(study_file.resolve(table or raw(), methods=pattern).methods)


def test_methods_are_rows_registered_names_and_patterns() -> None:
    assert chosen("ldipa, hessian") == ["ldipa", "hessian"]
    assert chosen("h*,id*") == ["hessian", "identity"]
    assert set(chosen("all")) == set(registry.names("methods"))


def test_cells_are_named_or_matched_and_not_part_of_all() -> None:
    assert chosen("dense+greedy, identity") == ["dense+greedy", "identity"]
    assert "pointwise+greedy" in chosen("*+greedy")
    assert "kronecker+greedy" not in chosen("*+greedy")
    assert not any("+" in name for name in chosen("all"))


@pytest.mark.parametrize(
    ("part", "word"),
    [
        ("dense+gredy", "unknown rule 'gredy': did you mean 'greedy'?"),
        ("dens+greedy", "unknown operator 'dens': did you mean 'dense'?"),
        ("kronecker+greedy", "linear in its numbers; 'kronecker' is not"),
    ],
)
def test_a_cell_that_is_none_says_which_half(part: str, word: str) -> None:
    with pytest.raises(UserError, match=re.escape(word)):
        chosen(part)


def test_rows_under_other_names_are_matched_and_part_of_all() -> None:
    table = raw(methods={"plain": {"method": "identity", "set": {"solve.step": 0.5}}})
    assert chosen("pl*", table) == ["plain"]
    assert "plain" in chosen("all", table)
    kept = study_file.resolve(table, methods="plain").methods["plain"]
    assert (kept.method, kept.set) == ("identity", {"solve.step": 0.5})


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("identty", "did you mean 'identity'?"),
        ("identity,hesian", "did you mean 'hessian'?"),
        ("zz*", "unknown method 'zz*'"),
        (",", "names no method"),
        ("", "names no method"),
    ],
)
def test_methods_that_are_not_there(pattern: str, message: str) -> None:
    assert message in problem_of(raw(), methods=pattern)


# ---------------------------------------------------------------------------- rules and names


def test_published_rules_take_the_noise_away_and_give_one_trial() -> None:
    study = study_file.resolve(raw(problem={"noise": 0.05}), protocol="published")
    assert (study.protocol, study.problem.noise) == ("published", 0.0)
    task = small_task()
    entry = Entry.of(study, "identity")
    assert planned_trials(entry, task, study) == 1
    assert planned_trials(entry, task, study_file.resolve(raw(), trials=5)) == 5
    assert "did you mean 'published'" in problem_of(raw(), protocol="publishd")


def test_default_names_tell_studies_apart() -> None:
    def name(**options: Any) -> str:
        return study_file.resolve(raw(), **options).name

    assert name() == "sr-quick"
    assert name(trials=50) == name(methods="ldipa") == "sr-quick"
    assert name(sets=["budget.replicates=9"]) == "sr-quick"
    assert name(protocol="published") == "sr-quick-published"
    assert name(seed=3) == "sr-quick-seed3"
    assert name(seed=0) == "sr-quick"
    changed = [
        name(sets=[text])
        for text in ("problem.size=64", "problem.size=16", "solve.step=0.5", "budget.epochs=9")
    ]
    assert len({*changed, "sr-quick"}) == 5
    assert all(found.startswith("sr-quick-") for found in changed)
    assert name(sets=["problem.size=64"]) == changed[0]
    assert name(sets=["solve.step=1"]) == name(sets=["solve.step=1.0"])
    assert study_file.resolve(raw(name="mine")).name == "mine-quick"
    assert name(name="other") == "other"


def test_task_and_config_must_agree(tmp_path, monkeypatch) -> None:
    assert "drop --task" in problem_of(raw(), task="mri")
    assert study_file.resolve({"methods": {"identity": {}}}, task="sr").task == "sr"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sr").mkdir()  # does not hide the embedded study
    assert study_file.read(None, "sr") == study_file.read("sr", None)


@pytest.mark.parametrize(
    ("config", "content", "message"),
    [
        ("no.toml", None, "cannot be read"),
        ("bad.toml", b"task = ", "is not TOML"),
        ("bad.toml", b"\xff\xfe", "cannot be read"),
        ("srr", None, "did you mean 'sr'?"),
    ],
)
def test_a_study_file_that_cannot_be_read(
    config: str, content: bytes | None, message: str, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / config).write_bytes(content)
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        study_file.read(None, config)


# ---------------------------------------------------------------------------- entries


def test_a_row_with_frozen_and_other_ranges() -> None:
    spec = {
        "method": "identity",
        "set": {"solve.momentum": "none", "solve.step": 0.5, "solve.decay": 0.5},
        "search": {
            "solve.strength": {"low": 0.1, "high": 0.2, "log": True},
            "solve.start": {"choices": ["zero"]},
        },
    }
    entry = Entry.of(study_file.resolve(raw(methods={"plain": spec})), "plain")
    task = small_task()
    space = entry.space(task)
    assert entry.method.name == "identity"
    assert set(space) == {"solve.strength", "solve.start"}
    strength = space["solve.strength"]
    assert (strength.low, strength.high, strength.log) == (0.1, 0.2, True)
    assert space["solve.start"].choices == ("zero",)
    for values in (entry.defaults(task), entry.published(task)):
        assert (values["solve.step"], values["solve.momentum"]) == (0.5, "none")


def test_whole_numbers_are_searched_as_such(register) -> None:
    class Depths(Parameters):
        depth: Annotated[int, Field(ge=1), Search(1, 5)] = 2
        width: Annotated[int | None, Field(ge=1), Search(1, 64, log=True)] = None

    register("deep", parameters=Depths, published=lambda task: {})
    spec = {"search": {"depth": {"low": 2, "high": 3}}}
    entry = Entry.of(study_file.resolve(raw(methods={"deep": spec})), "deep")
    found = entry.distributions(small_task())
    assert found["depth"].to_internal_repr(3) == 3
    assert type(found["depth"].low) is type(found["width"].high) is int
    assert (found["depth"].low, found["depth"].high, found["width"].log) == (2, 3, True)
    spec["search"]["depth"]["low"] = 1.5
    assert "depth = 1.5" in problem_of(raw(methods={"deep": spec}))


@pytest.mark.parametrize(
    ("point", "words"),
    [({"solve.stepp": 1.0}, "solve.step"), ({"solve.step": -1.0}, "solve.step = -1.0")],
)
def test_points_to_evaluate_are_checked(point: dict, words: str) -> None:
    raw = study_file.read("sr", None) | {"points_to_evaluate": [point]}
    with pytest.raises(UserError, match=words):
        study_file.resolve(raw)


@pytest.mark.parametrize(("old", "new"), [("rules", "protocol"), ("known", "points_to_evaluate")])
def test_keys_of_older_files_are_told(old: str, new: str) -> None:
    with pytest.raises(UserError, match=f"'{old}' is called '{new}' now: rename it"):
        study_file.resolve(study_file.read("sr", None) | {old: []})


def test_points_to_evaluate_do_not_trouble_controls() -> None:
    points = [{"solve.step": 0.5}]
    table = study_file.read("sr", None) | {"points_to_evaluate": points}
    assert study_file.resolve(table, methods="bicubic").points_to_evaluate == points


def test_trials_of_older_files_are_as_many_settings_and_fits(caplog) -> None:
    presets = {"more": {"budget": {"trials": 9}}}
    resolved = study_file.resolve(raw(budget={"trials": 5}, presets=presets))
    assert (resolved.budget.settings, resolved.budget.fits) == (5, 5)
    assert "budget.trials" in caplog.text
    more = study_file.resolve(raw(budget={"trials": 5}, presets=presets), preset="more")
    assert (more.budget.settings, more.budget.fits) == (9, 9)
    caplog.clear()
    named = study_file.resolve(raw(budget={"settings": 40}), trials=5, sets=["budget.fits=2"])
    assert (named.budget.settings, named.budget.fits) == (5, 2)
    assert not caplog.text


def test_a_preset_freezes_parameters_where_rows_have_them() -> None:
    """What an entry freezes itself, and what the command line says, stays."""
    methods = {
        "identity": {},
        "ldipa": {},
        "other": {"method": "ldipa", "set": {"train.clip": 0.25}},
        "third": {"method": "ldipa"},
    }
    presets = {"short": {"set": {"train.clip": 0.5}}}
    resolved = study_file.resolve(
        raw(methods=methods, presets=presets), preset="short", sets=["third.train.clip=0.75"]
    )
    assert [entry.set for entry in resolved.methods.values()] == [
        {},
        {"train.clip": 0.5},
        {"train.clip": 0.25},
        {"train.clip": 0.75},
    ]
    plain = study_file.resolve(raw(methods=methods, presets=presets))
    assert plain.methods["ldipa"].set == {}
    bad = {"short": {"set": {"train.clip": -1.0}}}
    assert "train.clip" in problem_of(raw(methods=methods, presets=bad), preset="short")


def test_a_preset_freezes_only_what_exists() -> None:
    """A misspelt cap would be no cap; an entry's own range stays."""
    entries = {"identity": {}, "ldipa": {"search": {"train.clip": {"low": 0.1, "high": 1.0}}}}
    presets = {"short": {"set": {"train.clp": 0.5}}}
    assert "train.clip" in problem_of(raw(methods=entries, presets=presets), preset="short")
    presets = {"short": {"set": {"train.clip": 0.5}}}
    kept = study_file.resolve(raw(methods=entries, presets=presets), preset="short").methods[
        "ldipa"
    ]
    assert kept.set == {} and kept.search["train.clip"].low == 0.1


@pytest.mark.parametrize("task", ["sr", "cs", "mri", "deblur"])
def test_the_quick_preset_caps_networks_that_are_asked_for(task: str) -> None:
    """Entries of the file have none; a method that --methods names gets it; the name stays."""
    table = study_file.read(task, None)
    plain = study_file.resolve(table, task=task)
    assert not any("operator.max_parameters" in entry.set for entry in plain.methods.values())
    assert plain.name == f"{task}-quick"
    asked = study_file.resolve(table, task=task, methods="ndipa,ndipa/vit,identity")
    caps = [entry.set.get("operator.max_parameters") for entry in asked.methods.values()]
    assert caps == [100_000, 100_000, None]
    free = study_file.resolve(
        table, task=task, methods="ndipa", sets=["operator.max_parameters=dense"]
    )
    assert free.methods["ndipa"].set["operator.max_parameters"] == "dense"
    large = study_file.resolve(table, task=task, methods="ndipa", preset="standard")
    assert large.methods["ndipa"].set == {}
