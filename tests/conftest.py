"""What the numerical tests share; everything heavy is imported only when a fixture is used."""

from __future__ import annotations

import fcntl
import functools
import gc
import os
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from covering import beyond_default

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny tensors: threads would only wait
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores Ctrl-C
os.fsync = lambda descriptor: None  # no test is about a power cut; a small study waits 300 times
gc.set_threshold(20_000, 20, 100)  # else a twentieth of the suite's time, beside torch and MLflow


def pytest_collection_finish() -> None:
    """What was imported stays: later collections of garbage need not look at it."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """pytest collects garbage five times at its end, for warnings; once is enough."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def databases_that_do_not_wait_for_the_disk() -> None:
    """As `os.fsync` above, in MLflow's SQLite databases."""
    from sqlalchemy import Engine, event

    @event.listens_for(Engine, "connect")
    def connected(connection: Any, _: Any) -> None:
        if isinstance(connection, sqlite3.Connection):
            connection.execute("PRAGMA synchronous=OFF")


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database as a first study makes it, once for all workers; copies save its migrations."""
    folder = tmp_path_factory.getbasetemp()
    shared = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    path = shared / "template" / "mlflow.db"
    path.parent.mkdir(exist_ok=True)
    with open(path.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            from dipa_bench.tracking.connection import connect
            from dipa_bench.tracking.location import sqlite_uri

            connect(sqlite_uri(path))
    return path


PROCESSES = "tests/cli/processes/"
LONGEST = (
    *(PROCESSES, "tests/cli/test_tasks.py", "tests/cli/test_archive.py", "tests/cli/test_apply.py"),
    *("tests/tracking/test_store.py", "tests/search/test_method_search.py", "tests/test_api.py"),
)


def group_of(nodeid: str) -> str:
    """Which tests one worker runs: a file, which may share what it made; of contracts a class.

    All tests of processes and servers are one group, so that they never disturb each other.
    """
    if nodeid.startswith(PROCESSES):
        return PROCESSES
    return nodeid.rsplit("::", 1)[0] if "test_contracts.py" in nodeid else nodeid.split("::", 1)[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One more than there are cores: tests of processes wait for most of their time."""
    return 1 + (os.cpu_count() or 1)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Gives the workers one group after the other (pytest-xdist's own groups are of one class)."""
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    return Groups(config, log)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--exhaustive",
        action="store_true",
        help="also what is marked exhaustive, and all combinations of what is marked covering",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what is for `--exhaustive`; the longest groups begin first, so that no worker is
    left with one at the end.
    """
    if not config.getoption("exhaustive"):
        left_out = beyond_default(items)
        config.hook.pytest_deselected(items=[item for item in items if item in left_out])
        items[:] = [item for item in items if item not in left_out]
    order = {group: place for place, group in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(group_of(item.nodeid), len(LONGEST)))


BESIDE = Path(__file__).parents[2] / "shared" / "weights"
"""Where the published weights may lie beside a checkout."""


@pytest.fixture
def published_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights of deepinv's DnCNN, below TORCH_HOME or beside the checkout; else a skip."""
    from dipa_bench.priors.published import WEIGHTS

    for place in filter(None, (os.environ.get("TORCH_HOME"), str(BESIDE))):
        if (Path(place) / "hub" / "checkpoints" / WEIGHTS).is_file():
            monkeypatch.setenv("TORCH_HOME", place)
            return
    pytest.skip(f"no {WEIGHTS} below TORCH_HOME or {BESIDE}")


def average_matrix(height: int, width: int) -> np.ndarray:
    """The circular 3 x 3 binomial average as a dense matrix, written out tap by tap."""
    taps = {-1: 0.25, 0: 0.5, 1: 0.25}
    matrix = np.zeros((height * width, height * width))
    for row in range(height):
        for column in range(width):
            for down, first in taps.items():
                for right, second in taps.items():
                    source = (row + down) % height * width + (column + right) % width
                    matrix[row * width + column, source] += first * second
    return matrix


@pytest.fixture(scope="session")
def smoother() -> Callable[..., np.ndarray]:
    """The stand-in prior of `dipa_bench.testing.problems` as a matrix W: (h, w, sigma) -> W."""

    def build(height: int, width: int, sigma: float) -> np.ndarray:
        weight = sigma / (sigma + 0.1)
        return (1 - weight) * np.eye(height * width) + weight * average_matrix(height, width)

    return build


@pytest.fixture(scope="session")
def dense_sr() -> Callable[..., np.ndarray]:
    """Blur and decimation as a matrix, from the definition: (h, w, factor, sigma) -> A."""

    @functools.cache
    def build(height: int, width: int, factor: int, sigma: float = 1.0) -> np.ndarray:
        offsets = range(-4, 5)
        kernel = {
            (i, j): np.exp(-(i * i + j * j) / (2 * sigma**2)) for i in offsets for j in offsets
        }
        total = sum(kernel.values())
        rows = []
        for top in range(0, height, factor):
            for left in range(0, width, factor):
                row = np.zeros((height, width))
                for (i, j), weight in kernel.items():
                    row[(top - i) % height, (left - j) % width] += weight / total
                rows.append(row.ravel())
        return np.array(rows)

    return build


@pytest.fixture
def context(tmp_path) -> Callable:
    """A fit's context with a budget: (seed, epochs=..., ...) -> FitContext."""
    from dipa_bench.learning import lmmse
    from dipa_bench.learning.teachers import TeacherCache
    from dipa_bench.methods import Budget, FitContext
    from dipa_bench.reuse import CachedPerTask

    maps = CachedPerTask(lmmse.cross_fitted)

    def build(seed: int = 0, report: Callable | None = None, **budget: int) -> FitContext:
        extra = {} if report is None else {"report": report}
        return FitContext(
            seed=seed,
            budget=Budget(**budget),
            teachers=TeacherCache(tmp_path / "teachers"),
            lmmse=maps,
            **extra,
        )

    return build


@pytest.fixture
def from_matrix() -> Callable:
    """A deepinv physics y = M x on 1 x side x side images, from an m x n array."""
    import torch
    from deepinv.physics import LinearPhysics

    class Matrix(LinearPhysics):
        def __init__(self, matrix: np.ndarray) -> None:
            super().__init__()
            self.matrix = torch.from_numpy(matrix)
            self.side = round(matrix.shape[1] ** 0.5)
            self.calls = 0

        def A(self, x, **parameters):  # noqa: N802
            self.calls += 1
            return x.flatten(1).to(self.matrix.dtype) @ self.matrix.T

        def A_adjoint(self, y, **parameters):  # noqa: N802
            self.calls += 1
            found = (y @ self.matrix.conj()).view(-1, 1, self.side, self.side)
            return found.real if found.is_complex() else found

    return Matrix
