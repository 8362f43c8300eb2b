"""MLflow's own pages on this machine."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
import webbrowser
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from urllib.parse import quote

import typer

from dipa_bench.errors import UserError
from dipa_bench.tracking.location import redacted, resolve_uri, ui_command
from dipa_bench.tracking.mlflow_format import EXPERIMENT

GOODBYE = 10.0  # seconds for a server to end
PAUSE = 0.2  # seconds between two looks whether it answers
QUIET = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
SORTED = quote("metrics.`test/psnr`", safe="")
QUERY = f"workflowType=machine_learning&orderByKey={SORTED}&orderByAsc=false"


def start_ui(port: int, tracking_uri: str | None, browser: bool) -> None:
    """Runs MLflow's server until it is stopped; says where each task's runs are once it answers.

    Args:
        port: on 127.0.0.1.
        tracking_uri: of the store; None for the usual one.
        browser: whether the first of these pages is opened.

    Raises:
        UserError: another program has the port.
        typer.Exit: the server ended by itself, with its exit code.
    """
    _check_free(port)
    uri = resolve_uri(tracking_uri, Path.cwd())
    home = f"http://127.0.0.1:{port}"
    print(f"MLflow on {home} (store {redacted(uri)}); Ctrl-C stops it", flush=True)
    environment = QUIET | os.environ | {"MLFLOW_BACKEND_STORE_URI": uri}
    server = subprocess.Popen(ui_command(uri, port), env=environment, start_new_session=True)
    try:
        while server.poll() is None and (tasks := _tasks(home)) is None:
            time.sleep(PAUSE)
        if server.poll() is None:
            pages = {
                name: f"{home}/#/experiments/{key}/runs?{QUERY}" for name, key in tasks.items()
            }
            for task, address in pages.items():
                print(f"{task}, best first: {address}", flush=True)
            if browser:
                webbrowser.open(next(iter(pages.values()), home))
        code = server.wait()
    except KeyboardInterrupt:
        _end(server)
        return
    if code:
        raise typer.Exit(code)


def _check_free(port: int) -> None:
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
        try:
            tried.bind(("127.0.0.1", port))
        except OSError as error:
            cure = f"give another, e.g. --port {port + 1 if port < 65535 else 5000}"
            raise UserError(f"port {port} cannot be had ({error.strerror}): {cure}") from None


def _tasks(home: str) -> dict[str, str] | None:
    """Task to its experiment's id, none where the answer is no list; None before there is one."""
    asked = urllib.request.Request(
        f"{home}/api/2.0/mlflow/experiments/search",
        json.dumps({"max_results": 1000, "filter": f"name LIKE '{EXPERIMENT}%'"}).encode(),
        {"Content-Type": "application/json"},
    )
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(asked, timeout=10) as answer:
            found = json.load(answer).get("experiments", [])
    except (urllib.error.HTTPError, HTTPException, ValueError):
        return {}
    except OSError:
        return None
    return {one["name"].removeprefix(EXPERIMENT): one["experiment_id"] for one in found}


def _end(server: subprocess.Popen) -> None:
    """Ends a server with the processes that it has started."""
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGTERM)
    try:
        server.wait(GOODBYE)
    except subprocess.TimeoutExpired:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
