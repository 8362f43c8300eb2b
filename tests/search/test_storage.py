"""A database that is away: waited for, and given up in one line."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import sqlalchemy.exc

from dipa_bench.errors import UserError
from dipa_bench.search import storage
from dipa_bench.search.storage import StorageGone, retry

AWAY = sqlalchemy.exc.OperationalError("SELECT 1", {}, Exception("server closed"))


@pytest.fixture(autouse=True)
def here() -> Iterator[None]:
    storage._gone.clear()
    yield
    storage._gone.clear()


def test_what_comes_back_is_waited_for() -> None:
    answers = [AWAY, AWAY, 3]

    def work() -> int:
        found = answers.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    assert retry(work) == 3
    assert not answers


def test_what_does_not_is_given_up_in_one_line_and_not_waited_for_again(monkeypatch) -> None:
    calls = []

    def work() -> None:
        calls.append(time.monotonic())
        raise AWAY

    monkeypatch.setattr(storage, "OUTAGE", 0.5)
    with pytest.raises(StorageGone, match=r"within 0\.5 s: run the same command") as caught:
        retry(work)
    assert isinstance(caught.value, UserError)
    assert "\n" not in str(caught.value)
    assert len(calls) >= 2
    calls.clear()
    with pytest.raises(StorageGone):
        retry(work)
    assert len(calls) == 1
    assert retry(lambda: 4) == 4  # it answers: the next outage is waited for as the first
    calls.clear()
    with pytest.raises(StorageGone):
        retry(work)
    assert len(calls) >= 2


def test_other_errors_pass_at_once() -> None:
    def work() -> None:
        raise ValueError("ours")

    with pytest.raises(ValueError, match="ours"):
        retry(work)
