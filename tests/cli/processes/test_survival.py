"""Studies whose workers, disks, stores and neighbours fail: one line, and the same command goes on.

What happens inside of one row's search is in `tests/search/test_method_search.py`, kills are in
`test_kill.py`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from commands import Command, workers

from dipa_bench import devices
from dipa_bench.execution.study_folder import claimed
from dipa_bench.search import method_search
from dipa_bench.search.journal import trial_records
from dipa_bench.tracking import records
from dipa_bench.tracking.records import RunRecord
from dipa_bench.tracking.store import Store

PROBE = """
import multiprocessing, os, signal
from pathlib import Path
import torch
import den

HERE = Path(__file__).parent
WORKER = multiprocessing.parent_process() is not None

def smooth(v, sigma):
    if WORKER:
        facts = f"{os.environ['OMP_NUM_THREADS']} {torch.get_num_threads()}"
        (HERE / f"seen-{os.getpid()}").write_text(facts)
        ballast = HERE / "mlruns" / "ballast"
        if (HERE / "fill").exists() and len(den.CALLS) > 8 and not ballast.exists():
            with ballast.open("wb", buffering=0) as file:
                try:
                    while file.write(bytes(512)):
                        pass
                except OSError:
                    pass
        low = float((sigma if torch.is_tensor(sigma) else torch.tensor(sigma)).min())
        if (HERE / "crash").exists() and low < 0.05:
            os.kill(os.getpid(), signal.SIGSEGV)
    return den.smooth(v, sigma)
"""
BOTH = ("--methods", "identity,ldipa", "--name", "both")
PATIENCE = 90  # seconds for a process to get to a trial


def place_of(work: Path, study: str, row: str) -> Path:
    return work / "mlruns" / "studies" / study / row


def counted(place: Path) -> list[RunRecord]:
    """The trials that ended by themselves, by index."""
    found = [trial for trial in trial_records(place) if trial.state != "interrupted"]
    return sorted(found, key=lambda trial: trial.index)


def refusals(text: str) -> list[str]:
    """The lines by which a command says that it gives up."""
    assert "Traceback" not in text, text
    return [line for line in text.splitlines() if line.startswith("dipa-bench: ")]


def same_search(ours: Path, theirs: Path) -> None:
    """Asserts that two rows tried the same and found the same."""
    found, expected = counted(ours), counted(theirs)
    assert [trial.index for trial in found] == list(range(len(expected)))
    for one, other in zip(found, expected, strict=True):
        assert (one.params, one.seed, one.state) == (other.params, other.seed, other.state)
        assert one.metrics["val/psnr"] == pytest.approx(other.metrics["val/psnr"], abs=1e-4)
    one, other = records.read(ours), records.read(theirs)
    assert one.params == other.params
    assert one.metrics["test/psnr"] == pytest.approx(other.metrics["test/psnr"], abs=1e-4)


@pytest.fixture(scope="session")
def probed(small: list[str]) -> list[str]:
    """Options of a small study whose prior knows whether it is called in a worker."""
    return ["study", *small, "--set", "problem.prior=probe:smooth"]


@pytest.fixture(scope="session")
def parallel(tmp_path_factory, furnish, run_there, probed: list[str]) -> Path:
    """A folder with a study that two workers did, each with one of this process's two threads."""
    folder = furnish(tmp_path_factory.mktemp("parallel"))
    (folder / "probe.py").write_text(PROBE)
    sys.modules.pop("probe", None)
    with pytest.MonkeyPatch.context() as patch, devices.threads(2):
        patch.setattr(devices, "cores", lambda: 2)
        run_there(folder, [*probed, *BOTH, "--trials", "3", "--workers", "2"])
    return folder


@pytest.fixture
def probing(work: Path) -> Path:
    """A working folder with the prior that knows where it is."""
    sys.modules.pop("probe", None)
    (work / "probe.py").write_text(PROBE)
    return work


# ---------------------------------------------------------------------------- workers


def test_workers_do_what_one_process_does(
    parallel: Path, probing: Path, call, probed: list[str], monkeypatch
) -> None:
    assert not workers()
    seen = [path.read_text() for path in parallel.glob("seen-*")]
    assert seen == ["1 1"] * 2
    assert f"seen-{os.getpid()}" not in {path.name for path in parallel.glob("seen-*")}
    assert call(*probed, *BOTH, "--trials", "3").code == 0
    for row in ("identity", "ldipa"):
        same_search(place_of(parallel, "both", row), place_of(probing, "both", row))
        for path in records.children(place_of(parallel, "both", row)):
            record = records.read(path)
            assert record.environment["threads"] == 1
            assert record.environment["device"] == "cpu (1 thread)"
    monkeypatch.chdir(parallel)
    for run in ("identity/trial-0002", "ldipa/trial-0001", "ldipa"):
        done = call("rerun", f"both/{run}")
        assert (done.code, done.out.splitlines()[-1]) == (0, "agrees exactly")


@pytest.mark.parametrize("workers", ["0", "x", "-1", "1.5"])
def test_no_number_of_workers(workers: str, study) -> None:
    assert "give a number from 1, or auto" in study("--workers", workers).line


def test_two_at_once_with_workers(study, work: Path) -> None:
    with claimed(work / "mlruns" / "studies" / "one"):
        line = study("--methods", "identity", "--name", "one", "--workers", "2").line
    assert "is being run by another process" in line
    assert not workers()


def test_a_setting_that_crashes_its_worker_is_a_failed_trial(
    probing: Path, call, probed, monkeypatch
) -> None:
    monkeypatch.setattr(method_search, "LOSSES", 2)
    (probing / "crash").touch()
    done = call(
        *probed, "--methods", "identity", "--name", "one", "--trials", "4", "--workers", "2"
    )
    assert done.code == 0
    assert refusals(done.err) == []
    place = place_of(probing, "one", "identity")
    found = counted(place)
    weakest = {  # in some iteration
        trial.number: trial.params["solve.strength"]
        * min(trial.params["solve.decay"] ** power for power in (0.5, -0.5))
        for trial in found
    }
    bad = [trial for trial in found if weakest[trial.number] < 0.05]
    assert bad
    assert [trial for trial in found if trial.state == "failed"] == bad
    assert {trial.state for trial in found if trial not in bad} == {"finished"}
    for trial in bad:
        assert trial.reason.startswith("its worker died 2 times, the last time its process was")
        assert "SIGSEGV" in trial.reason
    assert done.err.count("SIGSEGV; it is run again") == len(bad) + 1, "published settings too"
    assert records.read(place).state == "finished"
    assert not workers()


# ---------------------------------------------------------------------------- signals


@pytest.fixture
def started(work: Path, small: list[str]) -> Iterator[Callable[[], Command]]:
    """Starts a slow study with two workers as a process group of its own."""
    running = []

    def start() -> Command:
        arguments = ["study", *small, "--methods", "identity", "--trials", "4", "--name", "one"]
        arguments += ["--workers", "2"]
        process = Command(arguments, work, {"DEN_SLEEP": "0.5"}, work / "log", own_group=True)
        running.append(process)
        return process

    yield start
    for process in running:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def until(what: Callable[[], bool], process: Command) -> None:
    end = time.monotonic() + PATIENCE
    while not what():
        assert process.poll() is None, "the study ended by itself"
        assert time.monotonic() < end, "the study never got there"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("number", "whole_group"),
    [(signal.SIGINT, True), (signal.SIGTERM, False)],
    ids=["ctrl-c", "terminate"],
)
def test_a_signal_ends_all_processes_and_the_same_command_goes_on(
    number: int, whole_group: bool, started, work: Path, study
) -> None:
    process, place = started(), place_of(work, "one", "identity")
    until(lambda: len(workers(psutil.Process(process.pid))) == 2, process)
    until(lambda: len(list(place.glob(f"trial-*/{records.RECORD}"))) >= 2, process)
    group = psutil.Process(process.pid).children(recursive=True)
    (os.killpg if whole_group else os.kill)(process.pid, number)
    assert process.wait(15) == 130
    _, left = psutil.wait_procs(group, timeout=3)
    assert not [one for one in left if one.status() != psutil.STATUS_ZOMBIE]
    lines = (work / "log").read_text().splitlines()
    assert lines[-1] == "stopped; run the same command to continue study 'one'"
    assert all(line.startswith(("study 'one'", "identity, trial")) for line in lines[:-1]), lines
    found = trial_records(place)
    stopped = [trial for trial in found if trial.state != "finished"]
    assert {trial.state for trial in stopped} <= {"interrupted"}
    assert 1 <= len(stopped) <= 2  # one of two may just have ended, and the next not begun
    assert {trial.reason for trial in stopped} <= {"stopped by the user"}
    assert study("--methods", "identity", "--trials", "4", "--name", "one").code == 0
    assert [trial.index for trial in counted(place)] == list(range(4))
    for trial in stopped:
        (again,) = (one for one in counted(place) if one.index == trial.index)
        assert again.params == trial.params


# ---------------------------------------------------------------------------- disks


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Mounts small file systems: `disk(place, "size=1m")`, and again with "remount,ro"."""
    mounted = []

    def mount(place: Path, options: str) -> None:
        place.mkdir(exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("mounting a small file system needs root")
        if "remount" not in options:
            mounted.append(place)

    yield mount
    for place in mounted:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_disk_that_a_worker_finds_full_stops_the_study(probing: Path, call, probed, disk) -> None:
    disk(probing / "mlruns", "size=1m")
    (probing / "fill").touch()
    command = [*probed, "--methods", "identity", "--trials", "12", "--name", "one"]
    command += ["--workers", "2"]
    done = call(*command)
    assert done.code == 2, done.err
    (line,) = refusals(done.err)
    assert "No space left on device" in line
    assert line.count("No space") == 1
    assert "run the same command again" in line
    assert not workers()
    place = place_of(probing, "one", "identity")
    kept = {trial.number: trial for trial in trial_records(place) if trial.state == "finished"}
    assert 0 < len(kept) < 12
    (probing / "fill").unlink()
    (probing / "mlruns" / "ballast").unlink()
    assert call(*command).code == 0
    assert [trial.index for trial in counted(place)] == list(range(12))
    assert kept.items() <= {trial.number: trial for trial in trial_records(place)}.items()
    assert records.read(place).state == "finished"


def test_a_store_on_a_read_only_disk_does_not_stop_a_study(study, call, work: Path, disk) -> None:
    disk(work / "store", "size=8m")
    shutil.copy(work / "mlflow.db", work / "store")
    disk(work / "store", "remount,ro")
    uri = "sqlite:///store/mlflow.db"
    done = study("--methods", "identity,scalar", "--trials", "2", "--name", "one", *at(uri))
    assert done.code == 0
    assert (done.out + done.err).count("does not take or give runs") == 1
    assert "readonly" in done.err
    assert "Traceback" not in done.err
    assert "dipa-bench sync" in done.out
    assert records.read(place_of(work, "one", "scalar")).state == "finished"
    other = "sqlite:///mlflow.db"
    assert call("sync", *at(other)).code == 0
    assert {row["method"] for row in board(call, other)} == {"identity", "scalar"}


# ---------------------------------------------------------------------------- tracking servers


def at(uri: str) -> tuple[str, str]:
    return "--tracking-uri", uri


def board(call, uri: str) -> list[dict]:
    """The leaderboard's rows, as a store has them."""
    return json.loads(call("leaderboard", "--task", "sr", "--format", "json", *at(uri)).out)


class Server:
    """A tracking server that can be killed and started again, on one port and one database."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self._folder = folder
        self._process: subprocess.Popen | None = None
        self.uri = f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--port", str(self._port)]
        command += ["--backend-store-uri", f"sqlite:///{self._folder / 'server.db'}"]
        command += ["--artifacts-destination", str(self._folder / "artifacts"), "--workers", "1"]
        with (self._folder / "server.log").open("a") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self._folder,
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        end = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(urllib.error.URLError, OSError):
                urllib.request.urlopen(f"{self.uri}/health", timeout=2).close()
                return
            assert self._process.poll() is None, (self._folder / "server.log").read_text()
            assert time.monotonic() < end, "the server never answered"
            time.sleep(0.1)

    def kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(10)


@pytest.fixture
def server(work: Path) -> Iterator[Server]:
    shutil.copy(work / "mlflow.db", work / "server.db")
    running = Server(work)
    running.start()
    yield running
    running.kill()


@pytest.mark.exhaustive
def test_a_server_that_goes_in_the_middle_gets_all_when_it_is_back(
    server: Server, study, call, work: Path, monkeypatch
) -> None:
    real, sent = Store.send_method, []

    def send_method(self, folder: Path):
        report = real(self, folder)
        server.kill()
        sent.append(folder.name)
        return report

    monkeypatch.setattr(Store, "send_method", send_method)
    rows = ("--methods", "identity,scalar,bicubic", "--trials", "2", "--name", "one")
    done = study(*rows, *at(server.uri))
    assert done.code == 0
    assert refusals(done.err) == []
    assert (done.out + done.err).count("does not take or give runs") == 1
    assert "the study goes on, its records are kept" in done.err
    assert "`dipa-bench sync` sends them" in done.out
    monkeypatch.undo()
    monkeypatch.chdir(work)
    server.start()
    assert {row["method"] for row in board(call, server.uri)} == set(sent)
    assert len(sent) == 1
    assert call("sync", *at(server.uri)).code == 0
    assert call("sync", *at("sqlite:///mlflow.db")).code == 0
    assert board(call, server.uri) == board(call, "sqlite:///mlflow.db")
    assert {row["method"] for row in board(call, server.uri)} == {"identity", "scalar", "bicubic"}


# ---------------------------------------------------------------------------- clocks, budgets


@pytest.mark.exhaustive
def test_mlflow_takes_the_times_of_a_clock_that_jumps(study, call, work: Path, monkeypatch) -> None:
    real, looks = time.time, []

    def jumping() -> float:
        looks.append(1)
        return real() + (0.0, -86400.0, 365 * 86400.0)[len(looks) % 3]

    monkeypatch.setattr(time, "time", jumping)
    done = study("--methods", "identity,ldipa", "--trials", "2", "--name", "one")
    assert done.code == 0
    assert refusals(done.err) == []
    rows = board(call, "sqlite:///mlflow.db")
    assert {row["state"] for row in rows} == {"finished"}
    for row in rows:
        assert 0 <= row["search_seconds"] < 60
    for path in (work / "mlruns" / "studies" / "one").glob(f"*/*/{records.RECORD}"):
        record = records.read(path.parent)
        assert record.finished >= record.started
    assert call("dashboard", "--task", "sr").code == 0


@pytest.mark.exhaustive
def test_minutes_on_the_command_line(study, work: Path, monkeypatch) -> None:
    monkeypatch.setenv("DEN_SLEEP", "0.01")
    assert "a budget is one of the two" in study("--trials", "2", "--minutes", "1").line
    assert study("--minutes", "0").code == 2
    options = ("--methods", "identity", "--name", "one")
    assert study(*options, "--minutes", "0.002").code == 0
    first = counted(place_of(work, "one", "identity"))
    assert study(*options, "--minutes", "0.004").code == 0
    second = counted(place_of(work, "one", "identity"))
    assert len(second) > len(first) >= 1
    assert second[: len(first)] == first
    (line,) = refusals(study(*options, "--trials", "4").err)
    assert "budget.unit = 'minutes', not 'trials'" in line


@pytest.mark.exhaustive
def test_repeats_are_studies_with_other_draws_on_the_same_images(study, work: Path) -> None:
    options = ("--methods", "identity", "--trials", "7", "--replicates", "2")
    assert "1 to 200 printable bytes" in study(*options, "--name", "n" * 195).line
    assert not (work / "mlruns").exists()
    assert study(*options, "--name", "one").code == 0
    folder = work / "mlruns" / "studies"
    assert {path.name for path in folder.iterdir() if path.name[0] != "."} == {
        "one",
        "one-replicate1",
    }
    first, second = (
        counted(place_of(work, name, "identity")) for name in ("one", "one-replicate1")
    )
    same = [one.params == other.params for one, other in zip(first, second, strict=True)]
    assert same == [True] * 2 + [False] * 5  # defaults and published settings
    assert not {one.seed for one in first} & {one.seed for one in second}
    assert {one.data_digest for one in first} == {one.data_digest for one in second}
    kept = [*first, *second]
    assert study(*options, "--name", "one").code == 0
    again = [*counted(place_of(work, "one", "identity"))]
    again += counted(place_of(work, "one-replicate1", "identity"))
    assert again == kept
