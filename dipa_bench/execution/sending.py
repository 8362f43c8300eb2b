"""Sending finished entries to MLflow while a study runs."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from dipa_bench.search.callbacks import StudyCallback
from dipa_bench.search.method_search import MethodSearch
from dipa_bench.tracking.connection import StoreUnavailable
from dipa_bench.tracking.store import Store


class Sender:
    """Sends finished methods to MLflow; a store that does not answer is told of once.

    A context manager; leaving it waits for what is under way.

    Args:
        uri: of the store.
        callback: hears of a store that is away.
        aside: whether to send from a thread, while other processes work.
    """

    def __init__(self, uri: str, callback: StudyCallback, aside: bool) -> None:
        self._callback = callback
        self._line = ThreadPoolExecutor(1) if aside else None
        self._under_way: list[Future] = []
        self.store: Store | None = None
        try:
            self.store = Store(uri)
        except StoreUnavailable as error:
            self._gone(error)

    def __enter__(self) -> Sender:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._line is not None:
            self._line.shutdown()
        for sent in self._under_way:
            sent.result()

    def send(self, method_search: MethodSearch) -> None:
        """Sends a concluded entry if the store is there, then publishes it."""
        if self._line is None:
            self._send(method_search)
        else:
            self._under_way.append(self._line.submit(self._send, method_search))

    def _send(self, method_search: MethodSearch) -> None:
        if self.store is not None:
            self._try(method_search.folder)
        method_search.publish()

    def _try(self, folder: Path) -> None:
        try:
            for failure in self.store.send_method(folder).failed:
                self._callback.message(f"not sent: {failure}")
        except StoreUnavailable as error:
            self._gone(error)

    def _gone(self, error: StoreUnavailable) -> None:
        self.store = None
        self._callback.message(f"{error}; the study goes on, its records are kept")
