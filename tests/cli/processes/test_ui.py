"""`dipa-bench ui` says where runs are, and ends its server with itself."""

from __future__ import annotations

import signal
import socket
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import psutil
from commands import Command

from dipa_bench.tracking.connection import connect
from dipa_bench.tracking.location import sqlite_uri

PATIENCE = 90  # seconds for the server to answer


def test_a_ui_says_where_runs_are_and_leaves_no_server_running(work: Path) -> None:
    key = connect(sqlite_uri(work / "mlflow.db")).create_experiment("dipa-bench/sr")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (work / "log").touch()
    process = Command(["ui", "--port", str(port)], work, log=work / "log")
    started: list[psutil.Process] = []
    try:
        end = time.monotonic() + PATIENCE
        while "best first" not in (log := (work / "log").read_text()):
            assert process.poll() is None, log
            assert time.monotonic() < end, "the server never answered"
            time.sleep(0.1)
        (line,) = (line for line in log.splitlines() if "best first" in line)
        home = f"http://127.0.0.1:{port}"
        assert line.startswith(f"sr, best first: {home}/#/experiments/{key}/runs?workflowType=")
        with urllib.request.urlopen(f"{home}/health", timeout=20) as answer:
            assert answer.status == 200
        started = psutil.Process(process.pid).children(recursive=True)
        assert started
        process.send_signal(signal.SIGTERM)
        process.wait(20)
        _, left = psutil.wait_procs(started, timeout=5)
        assert not left
        assert "Traceback" not in (work / "log").read_text()
    finally:
        for child in started:
            with suppress(psutil.NoSuchProcess):
                child.kill()
        process.kill()
        process.wait()
