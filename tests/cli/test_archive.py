"""A study from one machine to another, and MLflow made anew, by the command line."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from dipa_bench.archive import archive
from dipa_bench.execution.study_folder import claimed
from dipa_bench.search.journal import trial_records
from dipa_bench.tracking import records

NAME = "one [x](y) <b> é"
OPTIONS = ("--methods", "identity,ldipa", "--name", NAME)


@pytest.fixture(scope="module")
def there(tmp_path_factory, furnish: Callable[[Path], Path], small, run_there) -> Path:
    """The other machine: a finished study, exported."""
    folder = furnish(tmp_path_factory.mktemp("there"))
    study = ["study", *small, *OPTIONS, "--trials", "2"]
    run_there(folder, study, ["export", NAME, "--output", "one.zip"])
    board = ["leaderboard", "--task", "sr", "--format", "json", "--output", "board.json"]
    run_there(folder, board)
    return folder


@pytest.fixture
def packed(there: Path) -> Path:
    return there / "one.zip"


@pytest.fixture
def board(there: Path) -> list[dict]:
    return told((there / "board.json").read_text())


STORE = ("--tracking-uri", "sqlite:///mlflow.db")


def told(text: str) -> list[dict]:
    """Rows of a board but for their setting, in which a command has a path."""
    return [{name: row[name] for name in row if name != "setting"} for row in json.loads(text)]


def shown(call, *options: str) -> list[dict]:
    """The board that the store gives, which shows what was sent."""
    return told(call("leaderboard", "--task", "sr", "--format", "json", *STORE, *options).out)


def left(work: Path) -> set[str]:
    return {path.name for path in work.iterdir()} - {"__pycache__", "den.py", "mlflow.db"}


def test_a_study_moves_and_goes_on(
    packed: Path, board: list[dict], images: Path, work: Path, study, call, there: Path
) -> None:
    done = call("import", packed, "--trust-code", "--dataset", f"folder:{images}")
    assert (done.code, done.err) == (0, "")
    assert "10 runs sent, 0 were there already" in done.out
    assert shown(call) == board
    for run in ("identity", "ldipa", "ldipa/trial-0001"):
        assert call("rerun", f"{NAME}/{run}").out.splitlines()[-1] == "agrees exactly"
    again = study(*OPTIONS, "--trials", "2")  # the command that made it
    assert again.code == 0
    assert "trial" not in again.err
    assert shown(call) == board
    more = study(*OPTIONS, "--trials", "3")
    assert sum("trial" in line for line in more.err.splitlines()) == 2
    assert {row["trials"] for row in shown(call)} == {3}
    assert call("evaluate", f"{NAME}/ldipa", "--trials", "0").code == 0
    assert call("dashboard", "--task", "sr").code == 0
    assert records.read(work / "mlruns/studies" / NAME / "ldipa").study == NAME


@pytest.mark.exhaustive
def test_it_goes_on_as_it_would_have_there(
    packed: Path, images: Path, small, work: Path, study, call, tmp_path, furnish, monkeypatch
) -> None:
    call("import", packed, "--trust-code", "--dataset", f"folder:{images}")
    assert study(*OPTIONS, "--trials", "4").code == 0
    whole = furnish(tmp_path / "whole")
    monkeypatch.chdir(whole)
    assert study(*OPTIONS, "--trials", "4").code == 0
    for trial in range(4):
        for method in ("identity", "ldipa"):
            ours, theirs = (
                records.read(place / "mlruns/studies" / NAME / method / f"trial-{trial:04d}")
                for place in (work, whole)
            )
            assert ours.params == theirs.params
            assert ours.metrics["val/psnr"] == theirs.metrics["val/psnr"]


@pytest.mark.exhaustive
def test_another_name_and_the_images_beside(
    packed: Path, board: list[dict], images: Path, work: Path, small, study, call
) -> None:
    done = call("import", packed, "--trust-code", "--name", "two")
    assert done.code == 0
    assert f"dataset 'folder:{images.name}' is looked for in this folder" in done.out
    (work / images.name).symlink_to(images)
    assert [row | {"study": NAME} for row in shown(call)] == board
    assert call("rerun", "two/ldipa").out.splitlines()[-1] == "agrees exactly"
    options = ("--dataset", f"folder:{images.name}", "--methods", "identity,ldipa")
    at = small.index(f"problem.dataset=folder:{images}")
    plain = [*small[: at - 1], *small[at + 1 :]]
    again = call("study", *plain, *options, "--trials", "2", "--name", "two")
    assert again.code == 0
    assert "trial" not in again.err
    assert call("import", packed, "--trust-code").code == 0
    assert len(shown(call)) == 4


def test_nothing_of_the_machine_is_in_the_archive(packed: Path, images: Path, there: Path) -> None:
    with zipfile.ZipFile(packed) as file:
        everything = b"\n".join(file.read(info) for info in file.infolist())
    for place in (images.parent, there, Path.home()):
        assert f"{place}/".encode() not in everything
    assert b"sqlite:" not in everything


def test_code_needs_a_word(packed: Path, work: Path, call) -> None:
    line = call("import", packed).line
    assert "'den:smooth'" in line
    assert "--trust-code" in line
    assert left(work) == set()
    assert "den" not in sys.modules


def test_what_is_there_stays(packed: Path, work: Path, call) -> None:
    call("import", packed, "--trust-code")
    place = work / "mlruns" / "studies" / NAME / "study.json"
    before = place.stat().st_mtime_ns
    assert "give another --name" in call("import", packed, "--trust-code").line
    assert place.stat().st_mtime_ns == before
    assert sorted(path.name for path in (work / "mlruns/studies").iterdir()) == [NAME]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--name", "../x"], "no slashes"),
        (["--name", ".teachers"], "no dot in front"),
        (["--name", ""], "printable"),
        (["--dataset", "faces"], "say only where that lies"),
        (["--prior", "weights.pth"], "only another place"),
        (["--tracking-uri", "mlruns"], "is a folder"),
    ],
)
def test_bad_options_leave_nothing(options, word, packed: Path, work: Path, call) -> None:
    assert word in call("import", packed, "--trust-code", *options).line
    assert left(work) == set()


def changed(path: Path, into: Path, name: str, **values: object) -> Path:
    """The archive with a JSON file changed, and a manifest that agrees with it."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(into, "w") as new:
        manifest = json.loads(old.read(archive.MANIFEST))
        content = json.dumps(json.loads(old.read(name)) | values).encode()
        digest = hashlib.sha256(content).hexdigest()
        if name in manifest["files"]:
            manifest["files"][name] = {"size": len(content), "sha256": digest}
        else:
            manifest |= values
        for info in old.infolist():
            kept = content if info.filename == name else old.read(info)
            if info.filename == archive.MANIFEST:
                kept = json.dumps(manifest).encode()
            new.writestr(info.filename, kept)
    return into


def test_hostile_archives_are_one_line(packed: Path, work: Path, call, tmp_path: Path) -> None:
    bad = tmp_path / "bad.zip"
    raw = packed.read_bytes()
    bad.write_bytes(raw[:5000] + bytes([raw[5000] ^ 255]) + raw[5001:])
    assert "is damaged" in call("import", bad, "--trust-code").line
    for name in ("../x", ".hidden", "a\x1b[2Jb"):
        line = call("import", changed(packed, bad, "manifest.json", study=name)).line
        assert "study name" in line
        assert "\x1b" not in line
    changed(packed, bad, "study/study.json", methods={"identity": {"more": 1}})
    assert "cannot read" in call("import", bad, "--trust-code").line
    changed(packed, bad, "study/ldipa/record.json", study_file={"problem": {"prior": "os:abort"}})
    assert "'os:abort'" in call("import", bad).line
    assert "cannot be read" in call("import", tmp_path / "none.zip").line
    assert left(work) == set()


def test_a_store_that_is_away_gets_it_later(packed: Path, board, work: Path, call) -> None:
    away = call("import", packed, "--trust-code", "--tracking-uri", "http://127.0.0.1:9")
    assert away.code == 0
    assert "`dipa-bench sync`" in away.err
    assert "10 runs sent" in call("sync").out
    assert shown(call) == board


# ---------------------------------------------------------------------------- export


def test_a_study_that_runs_is_not_exported(packed: Path, work: Path, call) -> None:
    call("import", packed, "--trust-code")
    with claimed(work / "mlruns" / "studies" / NAME):
        assert "being run by another process: wait" in call("export", NAME).line
    assert left(work) == {"mlruns"}
    assert call("export", NAME).code == 0
    assert archive.read_manifest(work / f"{NAME}.zip").files == archive.read_manifest(packed).files


@pytest.mark.parametrize("name", ["nothing", "../one", "", ".teachers", "a/b"])
def test_no_such_study(name: str, work: Path, call) -> None:
    assert "study" in call("export", name).line
    assert left(work) == set()


def test_a_disk_that_is_full_leaves_the_old_archive(there: Path, call, monkeypatch) -> None:
    monkeypatch.chdir(there)
    before = (there / "one.zip").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
        done = call("export", NAME, "--output", "one.zip")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert os.strerror(errno.EFBIG) in done.line
    assert (there / "one.zip").read_bytes() == before
    assert not list(there.glob(".export*"))


def test_a_disk_that_fills_up_leaves_nothing_of_an_import(packed: Path, work: Path, call) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
        done = call("import", packed, "--trust-code")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert os.strerror(errno.EFBIG) in done.line
    assert left(work) == set()


def test_outputs_that_cannot_be_written(there: Path, tmp_path: Path, call, monkeypatch) -> None:
    monkeypatch.chdir(there)
    assert "is a folder" in call("export", NAME, "--output", tmp_path).line
    assert "No such file" in call("export", NAME, "--output", tmp_path / "no" / "a.zip").line
    (tmp_path / "file").touch()
    assert "Not a directory" in call("export", NAME, "--output", tmp_path / "file" / "a.zip").line


@pytest.mark.exhaustive
@pytest.mark.parametrize("journal", ["kept", "lost"])
def test_a_study_that_was_killed_goes_on_elsewhere(
    journal: str, packed: Path, board, images: Path, work: Path, study, call, furnish, monkeypatch
) -> None:
    call("import", packed, "--trust-code", "--dataset", f"folder:{images}")
    place = work / "mlruns" / "studies" / NAME / "ldipa"
    for run in (place, place / "trial-0001"):  # as a process that is killed leaves them
        records.write(run, records.read(run).model_copy(update={"state": "running"}))
    if journal == "lost":
        (place / "journal.log").unlink()
    assert call("export", NAME, "--output", "killed.zip").code == 0
    monkeypatch.chdir(furnish(work / "new"))
    options = ("--trust-code", "--dataset", f"folder:{images}")
    assert call("import", work / "killed.zip", *options).code == 0
    assert study(*OPTIONS, "--trials", "2").code == 0
    assert [row["psnr"] for row in shown(call)] == [row["psnr"] for row in board]
    states = {record.state for record in trial_records(Path("mlruns/studies") / NAME / "ldipa")}
    assert states == {"finished", "interrupted"}


# ---------------------------------------------------------------------------- MLflow anew


def emptied(path: Path, empty: Path) -> None:
    """A database without runs; a file that was deleted would stay open in this process."""
    with contextlib.closing(sqlite3.connect(empty)) as source:
        with contextlib.closing(sqlite3.connect(path)) as target:
            source.backup(target)


def test_mlflow_is_rebuilt_from_the_records(
    packed: Path, board, work: Path, call, empty_database: Path
) -> None:
    call("import", packed, "--trust-code")
    emptied(work / "mlflow.db", empty_database)
    assert "0 runs sent" in call("sync").out  # the notes say that they were
    assert "no runs of task" in call("leaderboard", "--task", "sr", *STORE).line
    for _ in range(2):
        assert "10 runs sent" in call("sync", "--rebuild").out
        assert shown(call) == board
    assert "0 runs sent, 10 were there already" in call("sync").out


@pytest.mark.exhaustive
def test_a_database_that_was_deleted_comes_back(packed: Path, board, work: Path, call) -> None:
    call("import", packed, "--trust-code")
    (work / "mlflow.db").unlink()
    board_of_store = ["leaderboard", "--task", "sr", "--format", "json", *STORE]
    code = (
        "import sys; from dipa_bench.cli.main import _run\n"
        f"for words in (['sync', '--rebuild'], {board_of_store}):"
        " sys.argv[1:] = words; assert _run() == 0"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, _, rest = done.stdout.partition("\n")
    assert "10 runs sent" in first
    assert told(rest) == board
