"""Who tries what: the trials of one entry, each index handed out once, however many ask.

A trial of an Optuna study carries its *index*, its place in the search. Optuna numbers trials as
they are made; an index that was interrupted comes again under a new number. An index belongs to
the trial of the lowest number that was not given up, so that of two machines which take the same
one, one lets go.
"""

from __future__ import annotations

import itertools
import json
import secrets
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from dipa_bench.search import journal
from dipa_bench.search.journal import Objectives
from dipa_bench.search.optuna_internals import (
    add_waiting,
    identifier_of,
    number_of,
    rouse,
    running_trial,
)
from dipa_bench.search.samplers import INDEX, index_of
from dipa_bench.search.sampling import ask, fill
from dipa_bench.search.storage import Heartbeat, StorageGone, retry
from dipa_bench.tracking.records import RunRecord

RECORD = "record"
SPREAD, CROWD = 4, 256  # a lost claim: from so many times more indices is chosen, at most
LIVE = (TrialState.RUNNING, TrialState.WAITING)


class TrialQueue:
    """The trials of one entry, in a journal that this process alone writes.

    Args:
        study: Optuna's, whose sampler reads a trial's index.
        space: parameter to distribution.
        objectives: objectives and pruner.
    """

    def __init__(
        self, study: optuna.Study, space: Mapping[str, BaseDistribution], objectives: Objectives
    ) -> None:
        self._study, self._space, self._objectives = study, dict(space), objectives
        self._mine: dict[int, optuna.Trial] = {}
        self._reported: set[tuple[int, int]] = set()  # trial, step

    def ended(self) -> list[RunRecord]:
        """Records of trials that ended anywhere else; none here, they are all on this disk."""
        return []

    def running(self) -> list[dict[str, Any]]:
        """Parameters of the trials that run now, here or elsewhere."""
        found = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return [trial.params for trial in found]

    def next(
        self,
        wanted: int | None,
        ended: Iterable[int],
        first: int = 0,
        given: Mapping[str, Any] | None = None,
    ) -> optuna.Trial | None:
        """Takes the first index that nobody has.

        Args:
            wanted: how many indices there are; None for any number.
            ended: those that are done.
            first: the smallest of them.
            given: the trial's parameters; None for what the sampler draws.

        Returns:
            The trial; None where all are taken.
        """
        live = self._study.get_trials(deepcopy=False, states=LIVE)
        free = first_free(first, wanted, set(ended) | set(map(index_of, live)))
        return self._enter(free[0], given) if free else None

    @property
    def claimed(self) -> list[int]:
        """Numbers of the trials that are under way here."""
        return list(self._mine)

    def index(self, number: int) -> int:
        """The index of a trial that was claimed here."""
        return self._mine[number].user_attrs[INDEX]

    def report(self, number: int, step: int, value: float) -> bool:
        """Takes a value on the way; whether the trial is to be given up."""
        trial = self._mine[number]
        if (number, step) not in self._reported:  # a job that is done again tells it again
            trial.report(value, step)
            self._reported.add((number, step))
        return trial.should_prune()

    def tell(self, number: int, record: RunRecord) -> bool:
        """How a trial ended; whether it counts (else another machine has taken it over)."""
        self._mine.pop(number, None)
        journal.tell(self._study, number, record, self._objectives)
        return True

    def close(self) -> None:
        """Lets go of what is not finished."""

    def _enter(self, index: int, given: Mapping[str, Any] | None) -> optuna.Trial:
        given = dict(given or {})
        self._study.enqueue_trial(given, user_attrs={INDEX: index})
        trial = ask(self._study, self._space, given)
        self._mine[trial.number] = trial
        return trial


class SharedTrialQueue(TrialQueue):
    """The same on a database that other processes and machines use at the same time.

    A trial's record travels in the database. A trial whose machine has given no sign of life for a
    while is given up, and its index is free again.

    Args:
        study, space, objectives: as above.
        heartbeat: gives this process's signs of life.
        kept: what records share (the study file), which is left out of the database.
    """

    def __init__(
        self,
        study: optuna.Study,
        space: Mapping[str, BaseDistribution],
        objectives: Objectives,
        heartbeat: Heartbeat,
        kept: Mapping[str, Any],
    ) -> None:
        super().__init__(study, space, objectives)
        self._heartbeat, self._kept = heartbeat, dict(kept)
        self._read: dict[int, RunRecord] = {}

    def ended(self) -> list[RunRecord]:
        """Records of all trials that count, whoever ran them."""
        self._look()
        return list(self._read.values())

    def running(self) -> list[dict[str, Any]]:
        return retry(super().running)

    def _look(self) -> list[FrozenTrial]:
        """All trials as they are now, with all that run anywhere: each look reads those anew."""
        trials = retry(lambda: self._study.get_trials(deepcopy=False))
        for trial in trials:
            if trial.number not in self._read and counts(trial):
                values = json.loads(trial.user_attrs[RECORD])
                self._read[trial.number] = RunRecord.model_validate(values | self._kept)
        return trials

    def next(
        self,
        wanted: int | None,
        ended: Iterable[int],
        first: int = 0,
        given: Mapping[str, Any] | None = None,
    ) -> optuna.Trial | None:
        if self._heartbeat.steady:
            retry(lambda: optuna.storages.fail_stale_trials(self._study))
        count = 1
        while True:
            trials = self._look()
            for waiting in (trial for trial in trials if trial.state == TrialState.WAITING):
                identifier = identifier_of(waiting)
                retry(lambda identifier=identifier: rouse(self._study, identifier))
            held = set(ended) | {record.index for record in self._read.values()}
            held |= {index_of(trial) for trial in trials if trial.state in LIVE}
            free = first_free(first, wanted, held, count)
            if not free:
                return None
            index = secrets.choice(free)
            trial = retry(lambda index=index: self._enter(index, given))
            if trial is not None:
                return trial
            count = min(SPREAD * count, CROWD)

    def report(self, number: int, step: int, value: float) -> bool:
        try:
            return retry(lambda: TrialQueue.report(self, number, step, value))
        except UpdateFinishedTrialError:
            return True  # taken over: what comes of it here does not count

    def tell(self, number: int, record: RunRecord) -> bool:
        trial = self._mine.pop(number)
        text = json.dumps(record.model_dump(mode="json", exclude=set(self._kept)))
        self._heartbeat.drop(identifier_of(trial))
        try:
            if record.state != "interrupted":
                retry(lambda: trial.set_user_attr(RECORD, text))
            retry(lambda: journal.tell(self._study, number, record, self._objectives))
        except (UpdateFinishedTrialError, ValueError):  # ended already: by us before a retry?
            return self._study.get_trials(deepcopy=False)[number].user_attrs.get(RECORD) == text
        return True

    def close(self) -> None:
        for number, trial in self._mine.items():
            self._heartbeat.drop(identifier_of(trial))
            with suppress(StorageGone):  # others take it over
                retry(lambda number=number: self._fail(number))
        self._mine.clear()

    def _enter(self, index: int, given: Mapping[str, Any] | None) -> optuna.Trial | None:
        """As above; None where another entry has the index."""
        study, given = self._study, dict(given or {})
        identifier = add_waiting(study, {INDEX: index}, given)
        rouse(study, identifier)
        number = number_of(study, identifier)
        if not self._is_first(number, index):
            self._fail(number)
            return None
        trial = fill(running_trial(study, identifier), self._space, given)
        self._mine[number] = trial
        self._heartbeat.add(identifier)
        return trial

    def _fail(self, number: int) -> None:
        try:
            self._study.tell(number, state=TrialState.FAIL)
        except (UpdateFinishedTrialError, ValueError):
            pass  # it had ended

    def _is_first(self, number: int, index: int) -> bool:
        """Whether no entry with a lower number has the index."""
        return not any(
            other.number < number
            and other.user_attrs.get(INDEX) == index
            and (other.state in LIVE or counts(other))
            for other in self._study.get_trials(deepcopy=False)
        )


def first_free(first: int, wanted: int | None, held: set[int], count: int = 1) -> list[int]:
    """The first indices that nobody has, at most `count`, of the `wanted` ones from `first` on."""
    free = (index for index in itertools.count(first) if index not in held)
    found = itertools.islice(free, count)
    return [one for one in found if wanted is None or one < first + wanted]


def counts(trial: FrozenTrial) -> bool:
    """Whether a trial ended by itself, so that its index is done."""
    return trial.state.is_finished() and RECORD in trial.user_attrs
