"""`dipa-bench ui` ends its server with itself."""

from __future__ import annotations

import signal
import socket
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from commands import Command

PATIENCE = 90  # seconds for the server to answer


@pytest.mark.slow
def test_a_terminated_ui_leaves_no_server_running(work: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = Command(["ui", "--port", str(port)], work, log=work / "log")
    started: list[psutil.Process] = []
    try:
        end = time.monotonic() + PATIENCE
        while True:
            with suppress(urllib.error.URLError, OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
                break
            assert process.poll() is None, (work / "log").read_text()
            assert time.monotonic() < end, "the server never answered"
            time.sleep(0.1)
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
