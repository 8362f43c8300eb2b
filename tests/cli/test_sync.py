"""`dipa-bench sync`: what it says of a store that took everything, something, or nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from dipa_bench.cli import show
from dipa_bench.tracking.connection import StoreUnavailable
from dipa_bench.tracking.store import SyncReport


def test_what_was_sent_is_counted(call, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(show, "sync", lambda *given: asked.append(given) or SyncReport(3, 4))
    done = call("sync", "--tracking-uri", "http://me:secret@store:5000", "--rebuild")
    assert (done.code, done.err) == (0, "")
    assert "3 runs sent, 4 were there already" in done.out
    assert "secret" not in done.out
    assert asked == [(Path.cwd() / "mlruns", "http://me:secret@store:5000", True)]


def test_what_a_store_refused_is_named_and_fails(call, work: Path, monkeypatch) -> None:
    report = SyncReport(1, 0, ("identity: too long", "ldipa: too long"))
    monkeypatch.setattr(show, "sync", lambda *given: report)
    done = call("sync")
    assert done.code == 1
    assert "1 runs sent" in done.out
    assert done.err.splitlines() == ["not sent: identity: too long", "not sent: ldipa: too long"]


def test_a_store_that_is_away_is_one_line(call, work: Path, monkeypatch) -> None:
    def away(*given: object) -> None:
        raise StoreUnavailable("the store does not answer")

    monkeypatch.setattr(show, "sync", away)
    assert "the store does not answer" in call("sync").line
