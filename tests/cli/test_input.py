"""Every mistake ends in exactly one line on standard error and exit code 2."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch


def nothing_made(work: Path) -> bool:
    return not (work / "mlruns").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--methods", "identty"), "did you mean 'identity'?"),
        (("--preset", "quik"), "did you mean 'quick'?"),
        (("--protocol", "tund"), "did you mean 'tuned'?"),
        (("--set", "problem.sise=3"), "did you mean 'size'?"),
        (("--set", "problem.size=3"), "problem.size = 3"),
        (("--set", "problem.size=big"), "problem.size = 'big'"),
        (("--set", "problem.size"), "is not key=value"),
        (("--set", "solve.step=nan"), "finite"),
        (("--set", "problem.options.factr=2"), "did you mean 'factor'?"),
        (("--set", "problem.options.factor=99"), "factor = 99"),
        (("--trials", "0"), "--trials"),
        (("--trials", "many"), "--trials"),
        (("--seed", "-1"), "--seed"),
        (("--device", "gpu"), "device 'gpu' is not one of"),
        (("--device", "cuda:x"), "device 'cuda:x' is not one of"),
        (("--name", "a/b"), "no slashes"),
        (("--name", ".."), "no dot in front"),
        (("--name", "x" * 300), "1 to 200"),
        (("--name", ""), "study name"),
        (("--config", "none.toml"), "cannot be read"),
        (("--nonsense",), "--nonsense"),
        (("surplus",), "surplus"),
        (("--set", "problem.prior=tvv"), "did you mean 'tv'?"),
        (("--set", "problem.prior=den:smoooth"), "cannot be imported"),
        (("--set", "problem.prior=nowhere:f"), "ModuleNotFoundError"),
        (("--set", "problem.prior=den:three"), "not a function"),
        (("--set", "problem.prior=den:numbers"), "is no gray denoiser"),
        (("--set", "problem.prior=none.safetensors"), "no prior weights at"),
        (("--set", "problem.prior=den.pt"), "cannot be read"),
        (("--set", "problem.dataset=facse"), "did you mean 'faces'?"),
        (("--set", "problem.dataset=folder:/nowhere/at/all"), "no image folder"),
        (("--tracking-uri", "ftp://x"), "of no kind that MLflow knows"),
        (("--tracking-uri", "./mlruns"), "is a folder"),
    ],
)
def test_a_study_refuses_before_it_makes_anything(
    arguments: tuple[str, ...], message: str, study, work: Path
) -> None:
    (work / "den.pt").write_bytes(b"no weights")
    assert message in study(*arguments).line
    assert nothing_made(work)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("command", ["study", "diagnose"])
def test_a_device_that_is_not_there(command: str, call, work: Path) -> None:
    assert "sees no CUDA" in call(command, "--task", "sr", "--device", "cuda").line


def test_an_unknown_task_and_no_task(call, work: Path) -> None:
    for command in ("study", "leaderboard", "dashboard", "diagnose"):
        assert "did you mean 'sr'?" in call(command, "--task", "srr").line
    assert "say what to study" in call("study").line
    assert "say what to diagnose" in call("diagnose").line
    assert "--task" in call("leaderboard").line
    assert "did you mean 'study'" in call("stduy").line.replace("Did", "did")


def test_task_and_config_that_disagree(call, work: Path) -> None:
    (work / "mine.toml").write_text('task = "sr"\n[methods.identity]\n')
    line = call("study", "--task", "mri", "--config", "mine.toml").line
    assert "the study file is for task 'sr', not 'mri'" in line


def test_a_users_own_study_file(call, work: Path, small) -> None:
    (work / "mine.toml").write_text(
        'task = "sr"\nname = "mine"\n[budget]\ntrials = 1\n'
        '[methods.plain]\nmethod = "identity"\nset = { "solve.step" = 0.5 }\n'
    )
    done = call("study", "--config", "mine.toml", *small[2:], "--name", "mine")
    assert done.code == 0
    assert (work / "mlruns" / "studies" / "mine" / "plain" / "record.json").exists()


@pytest.mark.parametrize("content", ["empty", "few", "broken", "text"])
def test_an_image_folder_that_is_no_use(content: str, study, work: Path) -> None:
    from skimage.io import imsave

    folder = work / "pictures"
    folder.mkdir()
    message = "holds no images"
    if content == "few":
        import numpy as np

        for index in range(2):
            picture = np.full((16, 16), 100, dtype=np.uint8)
            imsave(folder / f"{index}.png", picture, check_contrast=False)
        message = "at least 3"
    elif content == "broken":
        (folder / "a.png").write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
        (folder / "b.png").write_bytes(b"")
        (folder / "c.png").write_bytes(b"")
        message = "cannot be read"
    elif content == "text":
        (folder / "a.txt").write_text("no picture")
    assert message in study("--set", f"problem.dataset=folder:{folder}").line
    assert nothing_made(work)


def test_nothing_to_show_yet(call, work: Path) -> None:
    for command in ("leaderboard", "dashboard"):
        assert "no runs of task 'sr'" in call(command, "--task", "sr").line
    (work / "mlflow.db").unlink()
    for command in ("leaderboard", "dashboard"):
        assert "make some with `dipa-bench study" in call(command, "--task", "sr").line
    assert not (work / "mlflow.db").exists()
    assert "did you mean 'json'?" in call("leaderboard", "--task", "sr", "--format", "jsn").line


def test_an_output_that_cannot_be_written(study, call, work: Path) -> None:
    assert study("--methods", "adjoint").code == 0
    for command in ("leaderboard", "dashboard"):
        line = call(command, "--task", "sr", "--output", "den.py/file").line
        assert "den.py" in line
    assert (
        "unknown study 'nonsense'"
        in call("leaderboard", "--task", "sr", "--study", "nonsense").line
    )


def test_sync_with_nothing_to_send(call, work: Path) -> None:
    done = call("sync")
    assert (done.code, done.err) == (0, "")
    assert "0 runs sent" in done.out


def test_a_port_that_another_program_has(call, work: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        line = call("ui", "--port", port).line
    assert f"port {port} cannot be had" in line
    assert "--port" in line.split("give another")[1]
