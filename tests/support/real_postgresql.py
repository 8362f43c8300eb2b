"""A real PostgreSQL server for the length of a test."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PASSWORD = "s3cr3t-Wort"
USERS = ("postgres", "nobody")  # whom a server may run as where the tests run as root
PATIENCE = 30.0  # seconds for it to answer


class Missing(Exception):
    """There is no server to be had here; the message says why."""


def binary(name: str) -> str:
    """A program of PostgreSQL, on the path or where Debian keeps it."""
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    found = shutil.which(name, path=os.pathsep.join([*map(str, places), os.environ["PATH"]]))
    if found is None:
        raise Missing(f"{name} is not installed: apt-get install postgresql")
    return found


def user() -> str | None:
    """Whom to run it as: the server refuses to be root."""
    if os.getuid():
        return None
    for name in USERS:
        try:
            pwd.getpwnam(name)
        except KeyError:
            continue
        return name
    raise Missing("the tests run as root, and there is no other user to run a server as")


class Server:
    """A PostgreSQL server in a folder of its own.

    Args:
        folder: empty.
        durable: whether it waits for the disk, as a server that is to be measured must.

    Attributes:
        url: with the password in it.
    """

    def __init__(self, folder: Path, durable: bool = False) -> None:
        self._folder, self._user, self._durable = folder, user(), durable
        with socket.socket() as line:
            line.bind(("127.0.0.1", 0))
            self._port = line.getsockname()[1]
        self.url = f"postgresql://dipa:{PASSWORD}@127.0.0.1:{self._port}/postgres"
        secret = folder / "password"
        secret.write_text(PASSWORD)
        if self._user is not None:
            account = pwd.getpwnam(self._user)
            for path in (folder, secret):
                os.chown(path, account.pw_uid, account.pw_gid)
        self._run(
            *(binary("initdb"), "-D", str(folder / "data"), "-U", "dipa"),
            *("--auth=scram-sha-256", f"--pwfile={secret}"),
        )
        self._process: subprocess.Popen | None = None

    def start(self) -> None:
        """Starts it and waits until it answers."""
        command = [binary("postgres"), "-D", str(self._folder / "data"), "-k", str(self._folder)]
        command += ["-p", str(self._port), "-c", "listen_addresses=127.0.0.1"]
        command += ["-c", f"fsync={'on' if self._durable else 'off'}"]
        self._process = subprocess.Popen(
            command, user=self._user, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        import psycopg2

        end = time.monotonic() + PATIENCE
        while True:
            try:
                psycopg2.connect(self.url).close()
                return
            except psycopg2.OperationalError:
                if time.monotonic() > end or self._process.poll() is not None:
                    raise
                time.sleep(0.1)

    def stop(self) -> None:
        """Ends it at once, connections and all."""
        if self._process is not None:
            self._process.terminate()
            self._process.send_signal(3)  # SIGQUIT: immediate shutdown
            self._process.wait()

    def _run(self, *command: str) -> None:
        done = subprocess.run(command, user=self._user, capture_output=True, text=True)
        if done.returncode:
            raise Missing(f"{command[0]} failed: {done.stderr.strip().splitlines()[-1]}")


@contextmanager
def postgresql(durable: bool = False) -> Iterator[Server]:
    """A running server, gone afterwards with all it kept.

    Args:
        durable: whether it waits for the disk.

    Raises:
        Missing: there is none to be had here.
    """
    folder = Path(tempfile.mkdtemp(prefix="dipa-postgresql-"))
    folder.chmod(0o755)
    try:
        server = Server(folder, durable)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
