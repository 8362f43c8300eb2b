"""The documents name what is registered."""

import re
import runpy
import tomllib
from pathlib import Path

import pytest

from dipa_bench.config.schema import SearchSpec
from dipa_bench.registry import get

ROOT = Path(__file__).parents[1]
TASKS = (ROOT / "docs" / "tasks.md").read_text("utf-8")
LEARNED = (ROOT / "docs" / "learned.md").read_text("utf-8")
NETWORKS = (ROOT / "docs" / "networks.md").read_text("utf-8")
OPERATORS = (ROOT / "docs" / "operators.md").read_text("utf-8")
README = (ROOT / "README.md").read_text("utf-8")


def ours(kind):
    """Names that this repository registers; a plug-in installed beside it does not count."""
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    table = text.split(f'[project.entry-points."dipa_bench.{kind}"]')[1].split("\n[")[0]
    return re.findall(r'^"?([\w/-]+)"? =', table, flags=re.MULTILINE)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("tasks", TASKS),
        ("datasets", TASKS),
        ("priors", TASKS),
        ("methods", README),
        ("operators", LEARNED + NETWORKS),
        ("rules", LEARNED),
    ],
)
def test_everything_registered_is_in_a_table(kind, text):
    for name in ours(kind):
        assert re.search(rf"^\| .*`{re.escape(name)}`", text, flags=re.MULTILINE), name


@pytest.mark.parametrize("name", ["sr", "cs", "mri", "deblur", "custom"])
def test_every_option_of_a_task_is_named(name):
    row = next(line for line in TASKS.splitlines() if line.startswith(f"| `{name}` |"))
    for option in get("tasks", name).options.model_fields:
        assert f"`{option}`" in row


def test_priors_say_which_pass_gradients():
    for name in ours("priors"):
        row = next(line for line in TASKS.splitlines() if re.match(rf"\| .*`{name}`", line))
        word = "yes" if get("priors", name).differentiable else "no"
        assert row.split("|")[4].strip() == word


def test_every_key_of_the_search_is_explained():
    text = (ROOT / "docs" / "search.md").read_text("utf-8")
    for name in SearchSpec.model_fields:
        assert f"`search.{name}" in text, name


def test_links_lead_somewhere():
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text, place = page.read_text("utf-8"), page.parent
        for link in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (place / link).exists(), link


@pytest.mark.exhaustive
def test_embedded_datasets_have_their_stated_sizes():
    from dipa_bench.data.load import load

    for name in ("faces", "digits", "brain", "natural"):
        row = next(line for line in TASKS.splitlines() if line.startswith(f"| `{name}` |"))
        counts = re.match(r"(\d+) / (\d+) / (\d+)", row.split("|")[3].strip()).groups()
        splits = load(name, 32)
        found = len(splits.train), len(splits.validation), splits.test_count
        assert tuple(map(int, counts)) == found


def test_the_example_of_a_network_works():
    """It is made, starts as the identity and is trained by the rule of N-DIPA."""
    import torch

    from dipa_bench.preconditioners import State

    (code,) = re.findall(r"```python\n(.*?)```", NETWORKS, flags=re.DOTALL)
    made: dict = {}
    exec(code, made)
    spec = made["SPEC"]
    operator = spec.build((1, 16, 16), spec.parameters(), 3)
    gradient = torch.randn(2, 1, 16, 16)
    assert torch.equal(operator(gradient, State(0, gradient, gradient, gradient, None)), gradient)
    assert get("rules", "distilled").method(spec).name == "two-layers+distilled"


def test_tables_of_boards_are_those_that_are_kept() -> None:
    found = runpy.run_path(str(ROOT / "studies" / "results" / "boards.py"))
    for (file, place), made in found["TABLES"].items():
        begin, end = (found[mark].format(place) for mark in ("BEGIN", "END"))
        text = (ROOT / file).read_text(encoding="utf-8")
        assert text.count(f"{begin}\n{made()}\n{end}") == 1, place
    for task, board in found["kept"]({task: task for task in found["TASKS"]}).items():
        assert board["setting"].str.contains(f"dipa-bench study --task {task}").all()
        assert (board["replicates"] >= 2).all() and board["verdict"].notna().all()


def test_every_dependency_is_justified() -> None:
    """Each stands in a table of docs/install.md, and nothing else does."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = (ROOT / "docs" / "install.md").read_text()
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| `")]
    told = {name for row in rows for name in re.findall(r"`([\w\[\]-]+)`", row[1])}
    needed = {re.split(r"[<>=]", one)[0] for one in project["dependencies"]}
    extras = {f"dipa-bench[{name}]" for name in project["optional-dependencies"]}
    assert told == needed | extras


def test_the_faults_that_the_readme_counts_can_be_planted() -> None:
    """The text that each replaces stands in its file, once; its tests exist."""
    faults = runpy.run_path(str(ROOT / "tests" / "soak" / "faults.py"))["FAULTS"]
    for fault in faults:
        assert (ROOT / fault.file).read_text().count(fault.old) == 1, fault.what
        assert all((ROOT / place).exists() for place in fault.tests.split()), fault.what
    assert f"plants {len(faults)} faults" in README
