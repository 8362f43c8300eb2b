"""Commands that look: --help, list, doctor, diagnose."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

COMMANDS = (
    *("study", "leaderboard", "dashboard", "diagnose", "list"),
    *("init", "rerun", "sync", "ui", "doctor", "profile"),
)


def test_help_of_every_command_imports_nothing_heavy() -> None:
    script = """
import sys
from dipa_bench.cli.main import app
for command in [None, *sys.argv[1:]]:
    print("==", command)
    try:
        app([command, "--help"] if command else ["--help"], prog_name="dipa-bench")
    except SystemExit as stop:
        assert not stop.code
heavy = ("torch", "deepinv", "mlflow", "optuna", "numpy", "pandas", "plotly", "skimage")
print("heavy:", [name for name in heavy if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", script, *COMMANDS], capture_output=True, text=True, check=True
    )
    parts = done.stdout.split("== ")[1:]
    assert len(parts) == 1 + len(COMMANDS)
    for command, part in zip(COMMANDS, parts[1:], strict=True):
        assert f"Usage: dipa-bench {command}" in part
    assert all(command in parts[0] for command in COMMANDS)
    assert "heavy: []" in done.stdout
    assert done.stderr == ""


def test_no_arguments_show_the_help(call) -> None:
    done = call()
    assert done.code == 2
    assert "Usage: dipa-bench" in done.out
    assert done.err == ""


def test_the_version(call) -> None:
    assert call("--version").out == f"dipa-bench {importlib.metadata.version('dipa-bench')}\n"


def test_list(call) -> None:
    done = call("list")
    assert done.code == 0
    for word in ("tasks", "methods", "priors", "datasets", "identity", "faces", "ldipa", "sr"):
        assert word in done.out
    assert max(map(len, done.out.splitlines())) > 80  # not wrapped as if for a small terminal


def test_list_of_a_kind_and_a_pattern(call) -> None:
    done = call("list", "methods", "id*")
    assert done.code == 0
    assert "identity" in done.out
    assert "ldipa" not in done.out
    assert "unknown kind of registered thing 'nonsense'" in call("list", "nonsense").line
    assert "unknown method pattern 'zz*'" in call("list", "methods", "zz*").line
    assert "did you mean 'methods'?" in call("list", "method").line


def test_list_of_methods_says_all(call) -> None:
    """Paper, fixed point, cost and searched parameters; nothing is cut at 120 columns."""
    done = call("list", "methods", "*i*")
    lines = [line.rstrip() for line in done.out.splitlines()]
    assert max(map(len, lines)) <= 120
    assert "…" not in done.out

    def facts(name: str) -> dict[str, str]:
        start = next(place for place, line in enumerate(lines) if line.startswith(f"{name} "))
        found, label = {}, ""
        for line in [lines[start].replace(name, " " * len(name), 1), *lines[start + 1 :]]:
            if not line.startswith(" "):
                break
            first, _, rest = line.strip().partition("  ")
            label, text = (first, rest) if rest else (label, first)
            found[label] = f"{found.get(label, '')} {text.strip()}".strip()
        return found

    circulant = facts("circulant")
    assert circulant[""].startswith("Circulant: P = F* (d + mu)^-1 F")
    assert circulant["paper"].endswith("SIAM J. Sci. Stat. Comput. 9, 1988")
    assert circulant["fixed point"] == "another: the data term is re-weighted by P"
    assert circulant["iteration"] == "2 operator calls, 1 denoiser call, 2 Fourier transforms"
    assert circulant["fit"].startswith("130 operator calls, and 200 more")
    assert circulant["searched"] == "solve.*, mu"
    assert facts("bicubic")["searched"] == "nothing"
    assert facts("identity")["searched"] == "solve.*"
    assert set(facts("barzilai-borwein")) == {
        *("", "paper", "fixed point", "iteration", "searched")
    }


def test_a_broken_method_is_listed_with_its_reason_and_not_kept(
    call, monkeypatch, tmp_path: Path
) -> None:
    from dipa_bench import registry

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    broken = registry.Broken("absent", "its package is gone")
    with monkeypatch.context() as patch:
        patch.setattr(registry, "describe", lambda kind, pattern="*": [broken])
        assert "(cannot be loaded): its package is gone" in call("list", "methods").out
    assert "identity" in call("list", "methods").out


def test_what_is_registered_is_asked_once(call, monkeypatch, tmp_path: Path) -> None:
    from dipa_bench import registry

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first = call("list", "priors").out
    with monkeypatch.context() as patch:
        patch.setattr(registry, "describe", None)
        assert call("list", "priors").out == first
    (path,) = (tmp_path / "cache" / "dipa-bench").glob("priors-*.json")
    path.write_text("[{")
    assert call("list", "priors").out == first, "a damaged file is made anew"
    real = registry.sources
    monkeypatch.setattr(registry, "sources", lambda kind: [*real(kind), "new there:METHOD 1"])
    monkeypatch.setattr(registry, "describe", lambda kind, pattern="*": [])
    assert call("list", "priors").code == 2, "another version is asked anew"


def test_doctor(call, work: Path) -> None:
    done = call("doctor")
    assert (done.code, done.err) == (0, "")
    for word in ("python", "torch", "deepinv", "free disk", "dataset faces", "280 train"):
        assert word in done.out
    assert "mlflow.db: readable" in done.out
    (work / "mlflow.db").unlink()
    assert "not there yet" in call("doctor").out
    assert not (work / "mlflow.db").exists()


@pytest.mark.exhaustive(after=2)
@pytest.mark.parametrize("content", [b"rubbish that is long enough to be a header", b"", None])
def test_doctor_and_study_without_sound_weights(
    content: bytes | None, call, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dipa_bench.priors import dncnn_small

    place = work / "weights.safetensors"
    if content is not None:
        place.write_bytes(content)
    real = dncnn_small.load_dncnn_small
    monkeypatch.setattr(dncnn_small, "load_dncnn_small", lambda path=None: real(path or place))
    if content is None:
        done = call("doctor")
        assert (done.code, done.err) == (0, "")
        assert "the prior 'dncnn-small' has no weights" in done.out
    arguments = ("--task", "sr", "--set", "problem.prior=dncnn-small")
    assert "the prior 'dncnn-small' has no weights" in call("study", *arguments).line
    assert not (work / "mlruns").exists()


@pytest.mark.exhaustive
def test_doctor_survives_anything(call, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    import torch

    from dipa_bench import registry
    from dipa_bench.data import faces

    def broken(*arguments, **options):
        raise RuntimeError("broken\nin two lines")

    monkeypatch.setattr(shutil, "disk_usage", broken)
    monkeypatch.setattr(torch.cuda, "is_available", broken)
    monkeypatch.setattr(faces, "folder", broken)
    monkeypatch.setattr(registry, "describe", broken)
    done = call("doctor", "--tracking-uri", "http://127.0.0.1:9")
    assert (done.code, done.err) == (0, "")
    assert done.out.count("fails: RuntimeError: broken") == 5
    assert "does not take or give runs" in " ".join(done.out.split())
    assert "is a folder" in " ".join(call("doctor", "--tracking-uri", "./mlruns").out.split())


def test_diagnose(call, work: Path, small) -> None:
    done = call("diagnose", *small[:4], *small[4:12])
    assert (done.code, done.err) == (0, "")
    heading = next(line for line in done.out.splitlines() if line.startswith("operator"))
    expected = "operator m n largest smallest condition rank null null detail"
    assert heading.split() == expected.split()
    assert "…" not in done.out
    rows = {line.split()[0]: line.split() for line in done.out.splitlines() if line.strip()}
    assert rows["student"][1:3] == ["16", "256"]
    assert float(rows["bicubic"][1]) > float(rows["adjoint"][1])
    assert "condition number" in done.out
    strengths, constants = rows["s"][2:], rows["C(s)"][3:]
    assert len(strengths) == len(constants) > 3
    assert all(float(text) > 0 for text in strengths + constants)
    assert "(Assumption 1)" in done.out


def test_parameters_of_a_method_and_keys_of_a_study(call) -> None:
    done = call("list", "parameters", "ldipa")
    assert done.code == 0
    assert "ldipa.train.learning_rate=0.0005" in done.out
    assert "searched 5e-05 to 0.001, logarithmic" in done.out
    assert "budget.settings=192" in call("list", "parameters").out
    assert (
        "unknown method 'ldipo': did you mean 'ldipa'?" in call("list", "parameters", "ldipo").line
    )


def test_an_unknown_key_points_to_the_list_of_its_method(call) -> None:
    done = call("study", "--task", "sr", "--set", "ldipa.train.learning_rat=1")
    assert done.code == 2
    assert "did you mean 'ldipa.train.learning_rate'?" in done.line
    assert done.line.strip().endswith("(all: dipa-bench list parameters ldipa)")


def test_a_study_file_is_written_once_and_can_be_run(call, work: Path) -> None:
    assert call("init", "mine.toml", "--task", "cs").code == 0
    written = Path("mine.toml").read_text()
    again = call("init", "mine.toml")
    assert (again.code, Path("mine.toml").read_text()) == (2, written)
    assert "mine.toml exists: give another name, or remove it first" in again.line
    assert "cannot be written" in call("init", "missing/mine.toml").line
    done = call("study", "--config", "mine.toml", "--set", "problem.siz=1")
    assert done.code == 2 and "did you mean 'size'?" in done.line
