"""The queues of a study's trials: in files of this machine, or on a database for many."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler

from dipa_bench.search import journal
from dipa_bench.search.journal import Objectives
from dipa_bench.search.storage import Heartbeat, retry
from dipa_bench.search.trial_queue import SharedTrialQueue, TrialQueue

POLL = 1.0  # seconds between two looks at what others do


class TrialQueues:
    """Files: one journal an entry, all of them this process's."""

    shared = False

    def trials(
        self,
        entry: str,
        folder: Path,
        space: Mapping[str, BaseDistribution],
        sampler: BaseSampler,
        objectives: Objectives,
    ) -> TrialQueue:
        """The queue of an entry's search.

        Args:
            entry: its name.
            folder: its run folder.
            space: parameter to distribution.
            sampler: draws them.
            objectives: objectives and pruner.

        Raises:
            UserError: a damaged record, or trials that were drawn from other ranges.
        """
        return TrialQueue(journal.open_study(folder, space, sampler, objectives), space, objectives)

    def conclusion(self, entry: str, budget: str) -> TrialQueue | None:
        """The queue of who refits and tests the entry's winner; None where nobody else could.

        Args:
            entry: its name.
            budget: of the search; a larger one has another winner.
        """
        return None

    def close(self) -> None:
        """Lets go of the storage."""


class SharedTrialQueues(TrialQueues):
    """A database: one Optuna study an entry, and one for the right to conclude it.

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
        self._heartbeat = Heartbeat(storage)

    def agree(self, what: str, value: dict[str, Any]) -> dict[str, Any]:
        """What the study keeps under a name: `value`, unless something was there before.

        Args:
            what: e.g. ``study``.
            value: JSON-serialisable.
        """
        head = self._head()
        before = retry(lambda: head.user_attrs.get(what))
        if before is None:
            text = json.dumps(value)
            retry(lambda: head.set_user_attr(what, text))
            before = retry(lambda: head.user_attrs[what])
        return json.loads(before)

    def note(self, what: str, value: dict[str, Any]) -> None:
        """Keeps a value under a name, whatever was there before."""
        head, text = self._head(), json.dumps(value)
        retry(lambda: head.set_user_attr(what, text))

    def trials(
        self,
        entry: str,
        folder: Path,
        space: Mapping[str, BaseDistribution],
        sampler: BaseSampler,
        objectives: Objectives,
    ) -> SharedTrialQueue:
        study = self._open(f"{self._study}/{entry}", sampler, objectives)
        journal.same_ranges(study, space)
        return SharedTrialQueue(
            study, space, objectives, self._heartbeat, {"study_file": self._file}
        )

    def conclusion(self, entry: str, budget: str) -> SharedTrialQueue:
        objectives = Objectives()
        study = self._open(f"{self._study}/{entry}#winner of {budget}", RandomSampler(), objectives)
        return SharedTrialQueue(study, {}, objectives, self._heartbeat, {"study_file": self._file})

    def close(self) -> None:
        self._heartbeat.close()
        self._storage.remove_session()

    def _head(self) -> optuna.Study:
        """Where the study keeps what concerns all entries."""
        return self._open(self._study, RandomSampler(), Objectives())

    def _open(self, name: str, sampler: BaseSampler, objectives: Objectives) -> optuna.Study:
        return retry(
            lambda: optuna.create_study(
                study_name=name,
                storage=self._storage,
                directions=objectives.directions,
                sampler=sampler,
                pruner=objectives.pruner,
                load_if_exists=True,
            )
        )
