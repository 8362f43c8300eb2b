"""The command line in this process, in a folder of its own, on studies that take a second."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import small_study

from dipa_bench.cli.main import main
from dipa_bench.execution import sending
from dipa_bench.tracking.store import SyncReport


@dataclass(frozen=True)
class Done:
    """What a command left: its exit code and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The one line on standard error of a command that refuses."""
        assert self.code == 2, (self.code, self.err)
        assert self.err.count("\n") == 1, self.err
        assert self.err.startswith("dipa-bench: ")
        assert "Traceback" not in self.err + self.out
        return self.err


class Nowhere:
    """In place of MLflow, for tests of what a study does and not of what it sends."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def send_method(self, folder: Path) -> SyncReport:
        return SyncReport()


@pytest.fixture
def unsent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Studies send nothing to MLflow."""
    monkeypatch.setattr(sending, "Store", Nowhere)


@pytest.fixture(autouse=True)
def no_user_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps the tester's own settings out."""
    for name in ("MLFLOW_TRACKING_URI", "COLUMNS", "DEN_SLEEP"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty small smooth pictures: 14 train, 2 validate, 4 test."""
    return small_study.pictures(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def furnish(empty_database: Path) -> Callable[[Path], Path]:
    """Makes a folder ready to work in."""
    return partial(small_study.furnished, database=empty_database)


@pytest.fixture(scope="session")
def run_there() -> Callable[..., None]:
    """Runs commands that succeed in a folder, for what several tests share."""

    def run(folder: Path, *commands: list[str], sent: bool = True) -> None:
        sys.modules.pop("den", None)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            if not sent:
                patch.setattr(sending, "Store", Nowhere)
            for command in commands:
                patch.setattr(sys, "argv", ["dipa-bench", *command])
                with pytest.raises(SystemExit) as caught:
                    main()
                assert not caught.value.code

    return run


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, furnish) -> Path:
    """An empty working folder with a prior of its own and an empty store."""
    monkeypatch.chdir(furnish(tmp_path / "work"))
    sys.modules.pop("den", None)
    return tmp_path / "work"


@pytest.fixture(scope="session")
def small(images: Path) -> list[str]:
    """Options that make a study take a second."""
    return small_study.options(images)


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Runs a command: `call("list", "tasks")`."""

    def run(*arguments: str) -> Done:
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["dipa-bench", *map(str, arguments)])
        before = signal.getsignal(signal.SIGTERM)
        with pytest.raises(SystemExit) as caught:
            main()
        assert signal.getsignal(signal.SIGTERM) == before
        out, err = capfd.readouterr()
        return Done(int(caught.value.code or 0), out, err)

    return run


@pytest.fixture
def study(call: Callable[..., Done], work: Path, small: list[str]) -> Callable[..., Done]:
    """Runs a small study: `study("--methods", "identity")`."""
    return lambda *more: call("study", *small, *more)
