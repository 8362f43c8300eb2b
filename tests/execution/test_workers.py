"""Who does the work, as the user asked, and what is told while entries are sent."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dipa_bench import devices
from dipa_bench.errors import UserError
from dipa_bench.execution import sending, workers
from dipa_bench.execution.sending import Sender
from dipa_bench.execution.workers import MEMORY, WorkerConfig, worker_config
from dipa_bench.search.callbacks import StudyCallback
from dipa_bench.tracking.connection import StoreUnavailable
from dipa_bench.tracking.store import SyncReport

CPU = torch.device("cpu")


def test_workers_are_this_process_a_number_or_a_cluster() -> None:
    assert worker_config(None, CPU, None) == WorkerConfig()
    assert not WorkerConfig().parallel
    assert worker_config("3", CPU, None) == WorkerConfig(3)
    assert worker_config(None, CPU, "tcp://host:8786") == WorkerConfig(cluster="tcp://host:8786")
    assert WorkerConfig(cluster="tcp://host:8786").parallel
    for given in ("0", "-1", "two", "1.5"):
        with pytest.raises(UserError, match=f"'{given}'"):
            worker_config(given, CPU, None)
    with pytest.raises(UserError, match="drop --workers"):
        worker_config("2", CPU, "tcp://host:8786")


@pytest.mark.parametrize(
    ("cores", "memory", "count"),
    [(8, 100 * MEMORY, 8), (8, 3 * MEMORY + 1, 3), (8, MEMORY - 1, 1)],
)
def test_auto_takes_the_cores_that_memory_suffices_for(
    cores: int, memory: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "cores", lambda: cores)
    monkeypatch.setattr(devices, "available_memory", lambda device: memory)
    assert worker_config("auto", CPU, None) == WorkerConfig(count)


@pytest.mark.parametrize(
    ("visible", "device", "names"),
    [
        ("", "cuda", ["0", "1", "2"]),
        ("", "cuda:1", ["1"]),
        ("GPU-a,GPU-b", "cuda", ["GPU-a", "GPU-b"]),
        ("4,6", "cuda:1", ["6"]),
    ],
)
def test_auto_takes_each_gpu_by_the_name_that_it_is_visible_under(
    visible: str, device: str, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    where = torch.device(device)
    assert workers._gpus(where) == names
    assert worker_config("auto", where, None) == WorkerConfig(len(names))


class Heard(StudyCallback):
    """What the user was told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def message(self, text: str) -> None:
        self.said.append(text)


def search(name: str, published: list[str]) -> SimpleNamespace:
    return SimpleNamespace(folder=Path(name), publish=lambda: published.append(name))


@pytest.mark.parametrize("aside", [False, True])
def test_what_a_store_refuses_is_told_and_the_rest_is_sent(aside: bool, monkeypatch) -> None:
    class Store:
        def __init__(self, uri: str) -> None:
            self.uri = uri

        def send_method(self, folder: Path) -> SyncReport:
            return SyncReport(failed=["too long"] if folder.name == "b" else [])

    monkeypatch.setattr(sending, "Store", Store)
    heard, published = Heard(), []
    with Sender("http://store", heard, aside) as sender:
        for name in "abc":
            sender.send(search(name, published))
    assert published == ["a", "b", "c"]
    assert heard.said == ["not sent: too long"]


@pytest.mark.parametrize("when", ["at once", "later"])
def test_a_store_that_is_away_is_told_of_once_and_entries_are_published(
    when: str, monkeypatch
) -> None:
    class Store:
        def __init__(self, uri: str) -> None:
            if when == "at once":
                raise StoreUnavailable("no answer")

        def send_method(self, folder: Path) -> SyncReport:
            raise StoreUnavailable("no answer")

    monkeypatch.setattr(sending, "Store", Store)
    heard, published = Heard(), []
    with Sender("http://store", heard, aside=False) as sender:
        for name in "abc":
            sender.send(search(name, published))
        assert sender.store is None
    assert published == ["a", "b", "c"]
    assert heard.said == ["no answer; the study goes on, its records are kept"]
