"""Where a study's trials are claimed: in files of this machine, or on a database for many."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler

from dipa_bench.search import journal
from dipa_bench.search.claims import Claims, SharedClaims
from dipa_bench.search.journal import Aims
from dipa_bench.search.storage import Pulse, patiently

POLL = 1.0  # seconds between two looks at what others do


class Desk:
    """Files: one journal a row, all of them this process's."""

    shared = False

    def trials(
        self,
        row: str,
        folder: Path,
        space: Mapping[str, BaseDistribution],
        sampler: BaseSampler,
        aims: Aims,
    ) -> Claims:
        """The claims of a row's search.

        Args:
            row: its name.
            folder: its run folder.
            space: parameter to distribution.
            sampler: draws them.
            aims: objectives and pruner.

        Raises:
            UserError: a damaged record, or trials that were drawn from other ranges.
        """
        return Claims(journal.open_study(folder, space, sampler, aims), space, aims)

    def conclusion(self, row: str, budget: str) -> Claims | None:
        """The claims of who refits and tests the row's winner; None where nobody else could.

        Args:
            row: its name.
            budget: of the search; a larger one has another winner.
        """
        return None

    def close(self) -> None:
        """Lets go of the storage."""


class SharedDesk(Desk):
    """A database: one Optuna study a row, and one for the right to conclude it.

    Args:
        storage: on the server.
        study: the study's name, in front of all that it keeps there.
        study_file: the resolved study, as JSON; records in the database lack it.
    """

    shared = True

    def __init__(
        self, storage: optuna.storages.RDBStorage, study: str, study_file: dict[str, Any]
    ) -> None:
        self._storage, self._study, self._file = storage, study, study_file
        self._pulse = Pulse(storage)

    def agree(self, what: str, value: dict[str, Any]) -> dict[str, Any]:
        """What the study keeps under a name: `value`, unless something was there before.

        Args:
            what: e.g. ``study``.
            value: JSON-serialisable.
        """
        head = self._head()
        before = patiently(lambda: head.user_attrs.get(what))
        if before is None:
            text = json.dumps(value)
            patiently(lambda: head.set_user_attr(what, text))
            before = patiently(lambda: head.user_attrs[what])
        return json.loads(before)

    def note(self, what: str, value: dict[str, Any]) -> None:
        """Keeps a value under a name, whatever was there before."""
        head, text = self._head(), json.dumps(value)
        patiently(lambda: head.set_user_attr(what, text))

    def trials(
        self,
        row: str,
        folder: Path,
        space: Mapping[str, BaseDistribution],
        sampler: BaseSampler,
        aims: Aims,
    ) -> SharedClaims:
        study = self._open(f"{self._study}/{row}", sampler, aims)
        journal.same_ranges(study, space)
        return SharedClaims(study, space, aims, self._pulse, {"study_file": self._file})

    def conclusion(self, row: str, budget: str) -> SharedClaims:
        aims = Aims()
        study = self._open(f"{self._study}/{row}#winner of {budget}", RandomSampler(), aims)
        return SharedClaims(study, {}, aims, self._pulse, {"study_file": self._file})

    def close(self) -> None:
        self._pulse.close()
        self._storage.remove_session()

    def _head(self) -> optuna.Study:
        """Where the study keeps what concerns all rows."""
        return self._open(self._study, RandomSampler(), Aims())

    def _open(self, name: str, sampler: BaseSampler, aims: Aims) -> optuna.Study:
        return patiently(
            lambda: optuna.create_study(
                study_name=name,
                storage=self._storage,
                directions=aims.directions,
                sampler=sampler,
                pruner=aims.pruner,
                load_if_exists=True,
            )
        )
