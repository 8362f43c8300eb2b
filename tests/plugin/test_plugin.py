"""A stranger's package: seen, listed, run and tested like our own, and harmless when broken."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import small_study

from dipa_bench import registry
from dipa_bench.cli.main import main
from dipa_bench.errors import UserError
from dipa_bench.testing import MethodContract, PreconditionerContract

HERE = Path(__file__).parent


def install(site: Path, project: str, points: dict[str, str], module: Path | str) -> None:
    """Lays out a package as pip leaves it: the module, and metadata with its entry points."""
    first = next(iter(points.values())).partition(":")[0]
    if isinstance(module, Path):
        shutil.copy(module, site / f"{first}.py")
    else:
        (site / f"{first}.py").write_text(module)
    info = site / f"{project.replace('-', '_')}-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project}\nVersion: 0.1\n")
    lines = [f"{name} = {value}" for name, value in points.items()]
    (info / "entry_points.txt").write_text("[dipa_bench.methods]\n" + "\n".join(lines) + "\n")


def install_damped(site: Path) -> None:
    project = tomllib.loads((HERE / "pyproject.toml").read_text())["project"]
    points = project["entry-points"]["dipa_bench.methods"]
    install(site, project["name"], points, HERE / "dipa_bench_damped.py")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path where packages can be installed; our memory of them is wiped."""
    place = tmp_path / "site"
    place.mkdir()
    monkeypatch.syspath_prepend(place)
    before = set(sys.modules)
    registry._entries.cache_clear()
    yield place
    registry._entries.cache_clear()
    for name in set(sys.modules) - before:
        if name.startswith("dipa_bench_"):
            del sys.modules[name]
    importlib.invalidate_caches()


@pytest.fixture
def call(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs a command: exit code, standard output, standard error."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def run(*arguments: str) -> tuple[int, str, str]:
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["dipa-bench", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        return int(caught.value.code or 0), *capfd.readouterr()

    return run


@pytest.fixture
def work(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = small_study.furnished(tmp_path / "work", empty_database)
    monkeypatch.chdir(place)
    sys.modules.pop("den", None)
    return place


SMALL = (
    *("--task", "sr", "--trials", "2", "--name", "mine", "--device", "cpu"),
    *("--set", "problem.prior=den:smooth", "--set", "problem.size=16"),
    *("--set", "problem.iterations=3", "--set", "budget.train_images=8"),
    *("--set", "budget.epochs=1", "--set", "budget.final_epochs=1"),
)


def test_it_imports_public_names_only() -> None:
    text = (HERE / "dipa_bench_damped.py").read_text()
    imports = [line for line in text.splitlines() if line.startswith("from dipa_bench")]
    assert imports
    assert not any("import _" in line or ", _" in line for line in imports)


@pytest.mark.exhaustive
def test_a_process_of_its_own_sees_it(tmp_path: Path) -> None:
    install_damped(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "dipa_bench", "list", "methods", "d*"],
        env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Damped steps" in done.stdout
    assert done.stderr == ""


def test_it_is_listed_and_runs_beside_ours(site: Path, work: Path, call) -> None:
    install_damped(site)
    code, out, _ = call("list", "methods")
    assert code == 0
    assert "damped" in out
    assert "identity" in out
    code, out, err = call("study", *SMALL, "--methods", "identity,damped", "--set", "rate=0.25")
    assert code == 0, err
    assert "rate=0.25" in err
    code, out, _ = call("leaderboard", "--task", "sr", "--format", "json")
    rows = {row["method"]: row for row in json.loads(out)}
    assert set(rows) == {"identity", "damped"}
    assert rows["damped"]["title"] == "Damped steps"
    assert rows["damped"]["state"] == "finished"
    code, out, _ = call("rerun", "mine/damped")
    assert (code, out.splitlines()[-1]) == (0, "agrees exactly")
    code, _, err = call("study", *SMALL, "--methods", "dampd")
    assert code == 2
    assert "did you mean 'damped'?" in err


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        ("import nothing_of_this_name", "ModuleNotFoundError: No module named"),
        ("def broken(:", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("METHOD = None", "holds a record named None"),
        ("OTHER = 1", "AttributeError"),
        ("raise ValueError('first\\nsecond')", "ValueError: first"),
    ],
)
def test_one_that_does_not_load_is_listed_and_hurts_nobody(
    module: str, reason: str, site: Path, work: Path, call
) -> None:
    install(site, "dipa-bench-bad", {"bad": "dipa_bench_bad:METHOD"}, module)
    code, out, err = call("list", "methods")
    assert (code, err) == (0, "")
    flat = " ".join(out.split())
    assert "(cannot be loaded)" in flat
    assert reason in flat
    assert "identity" in out
    code, _, err = call("study", *SMALL, "--methods", "bad")
    assert code == 2
    assert err.count("\n") == 1
    assert reason in err
    assert not (work / "mlruns").exists()


def test_a_whole_study_and_the_doctor_leave_it_out(
    site: Path, work: Path, call, caplog: pytest.LogCaptureFixture
) -> None:
    install(site, "dipa-bench-bad", {"bad": "dipa_bench_bad:METHOD"}, "1 / 0")
    code, out, err = call("doctor")
    assert (code, err) == (0, "")
    assert "ZeroDivisionError" in " ".join(out.split())
    code, out, err = call("study", *SMALL, "--methods", "identity,b*", "--dry-run")
    assert code == 0
    assert "identity" in out
    assert any("left out" in text and "ZeroDivisionError" in text for text in caplog.messages)


def test_a_broken_one_does_not_hurt_a_diagnosis(site: Path, work: Path, call) -> None:
    install(site, "dipa-bench-bad", {"bad": "dipa_bench_bad:METHOD"}, "1 / 0")
    sets = SMALL[SMALL.index("--set") :][:4]
    code, out, err = call("diagnose", "--task", "sr", "--device", "cpu", *sets)
    assert (code, err) == (0, "")
    assert "bicubic" in out


def test_two_packages_with_one_name_are_told(site: Path, work: Path, call) -> None:
    install_damped(site)
    install(site, "dipa-bench-twin", {"damped": "dipa_bench_twin:METHOD"}, "METHOD = 1")
    for arguments in (("list", "methods"), ("study", *SMALL, "--methods", "identity")):
        code, _, err = call(*arguments)
        assert code == 2
        assert err.count("\n") == 1
        assert "two packages register the method 'damped'" in err
        assert "dipa_bench_damped:METHOD" in err
        assert "dipa_bench_twin:METHOD" in err
    code, out, err = call("doctor")
    assert (code, err) == (0, "")
    assert "two packages register" in " ".join(out.split())


def test_the_same_package_found_twice_is_one(site: Path, tmp_path, monkeypatch, call) -> None:
    install_damped(site)
    other = tmp_path / "other"
    other.mkdir()
    install(other, "dipa-bench-again", {"damped": "dipa_bench_damped:METHOD"}, "")
    monkeypatch.syspath_prepend(site)
    sys.path.append(str(other))
    try:
        registry._entries.cache_clear()
        code, out, _ = call("list", "methods", "damped")
    finally:
        sys.path.remove(str(other))
    assert (code, out.count("Damped steps")) == (0, 1)


def test_an_unknown_kind_is_told() -> None:
    with pytest.raises(UserError, match="did you mean 'methods'"):
        registry.names("method")


# ---------------------------------------------------------------------------- the contracts


@pytest.fixture
def damped(site: Path) -> None:
    install_damped(site)


@pytest.mark.usefixtures("damped")
class TestDampedMethod(MethodContract):
    name = "damped"


@pytest.mark.usefixtures("damped")
class TestDampedOperator(PreconditionerContract):
    def make(self, task):
        return importlib.import_module("dipa_bench_damped").Damped(0.3)
