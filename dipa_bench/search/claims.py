"""Who tries what: the trials of one row, each index handed out once, however many ask.

A trial is an entry of an Optuna study that carries its *index*, its place in the search. Optuna
numbers entries; an index that was interrupted comes again under a new number. An index belongs to
the entry of the lowest number that was not given up, so that of two machines which take the same
one, one lets go.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from dipa_bench.search import journal
from dipa_bench.search.journal import INDEX, Aims
from dipa_bench.search.sampling import ask
from dipa_bench.search.storage import Pulse, patiently
from dipa_bench.tracking.records import RunRecord

RECORD = "record"
LIVE = (TrialState.RUNNING, TrialState.WAITING)


class Claims:
    """The trials of one row, in a journal that this process alone writes.

    Args:
        study: Optuna's, whose sampler reads a trial's index.
        space: parameter to distribution.
        aims: objectives and pruner.
    """

    def __init__(
        self, study: optuna.Study, space: Mapping[str, BaseDistribution], aims: Aims
    ) -> None:
        self._study, self._space, self._aims = study, dict(space), aims
        self._mine: dict[int, optuna.Trial] = {}

    def ended(self) -> list[RunRecord]:
        """Records of trials that ended anywhere else; none here, they are all on this disk."""
        return []

    def next(self, wanted: int | None, ended: Iterable[int]) -> optuna.Trial | None:
        """Claims the first index that nobody has.

        Args:
            wanted: how many indices there are; None for any number.
            ended: those that are done.

        Returns:
            The trial, drawn; None where all are taken.
        """
        index = self._first_free(wanted, set(ended))
        return None if index is None else self._enter(index)

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
        trial.report(value, step)
        return trial.should_prune()

    def tell(self, number: int, record: RunRecord) -> bool:
        """How a trial ended; whether it counts (else another machine has taken it over)."""
        self._mine.pop(number, None)
        journal.tell(self._study, number, record, self._aims)
        return True

    def close(self) -> None:
        """Lets go of what is not finished."""

    def _first_free(self, wanted: int | None, held: set[int]) -> int | None:
        for trial in self._study.get_trials(deepcopy=False, states=LIVE):
            held.add(trial.user_attrs.get(INDEX, trial.number))
        index = next(index for index in range(len(held) + 1) if index not in held)
        return None if wanted is not None and index >= wanted else index

    def _enter(self, index: int) -> optuna.Trial:
        self._study.enqueue_trial({}, user_attrs={INDEX: index})
        trial = ask(self._study, self._space)
        self._mine[trial.number] = trial
        return trial


class SharedClaims(Claims):
    """The same on a database that other processes and machines use at the same time.

    A trial's record travels in the database. A trial whose machine has given no sign of life for a
    while is given up, and its index is free again.

    Args:
        study, space, aims: as above.
        pulse: gives this process's signs of life.
        kept: what records share (the study file), which is left out of the database.
    """

    def __init__(
        self,
        study: optuna.Study,
        space: Mapping[str, BaseDistribution],
        aims: Aims,
        pulse: Pulse,
        kept: Mapping[str, Any],
    ) -> None:
        super().__init__(study, space, aims)
        self._pulse, self._kept = pulse, dict(kept)
        self._read: dict[int, RunRecord] = {}

    def ended(self) -> list[RunRecord]:
        """Records of all trials that count, whoever ran them."""
        for trial in patiently(lambda: self._study.get_trials(deepcopy=False)):
            if trial.number not in self._read and counts(trial):
                values = json.loads(trial.user_attrs[RECORD])
                self._read[trial.number] = RunRecord.model_validate(values | self._kept)
        return list(self._read.values())

    def next(self, wanted: int | None, ended: Iterable[int]) -> optuna.Trial | None:
        if self._pulse.steady:
            patiently(lambda: optuna.storages.fail_stale_trials(self._study))
        while True:
            held = set(ended) | {record.index for record in self.ended()}
            index = patiently(lambda held=held: self._first_free(wanted, held))
            if index is None:
                return None
            trial = patiently(lambda index=index: self._enter(index))
            if self._is_ours(trial):
                return trial
            self._mine.pop(trial.number)
            self._pulse.drop(trial._trial_id)
            patiently(lambda trial=trial: self._fail(trial.number))

    def report(self, number: int, step: int, value: float) -> bool:
        try:
            return patiently(lambda: Claims.report(self, number, step, value))
        except UpdateFinishedTrialError:
            return True  # taken over: what comes of it here does not count

    def tell(self, number: int, record: RunRecord) -> bool:
        trial = self._mine.pop(number)
        text = json.dumps(record.model_dump(mode="json", exclude=set(self._kept)))
        self._pulse.drop(trial._trial_id)
        try:
            if record.state != "interrupted":
                patiently(lambda: trial.set_user_attr(RECORD, text))
            patiently(lambda: journal.tell(self._study, number, record, self._aims))
        except (UpdateFinishedTrialError, ValueError):  # ended already: by us before a retry?
            return self._study.get_trials(deepcopy=False)[number].user_attrs.get(RECORD) == text
        return True

    def close(self) -> None:
        for number, trial in self._mine.items():
            self._pulse.drop(trial._trial_id)
            patiently(lambda number=number: self._fail(number))
        self._mine.clear()

    def _enter(self, index: int) -> optuna.Trial:
        self._study.enqueue_trial({}, user_attrs={INDEX: index})
        for waiting in self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            if waiting.user_attrs.get(INDEX) == index:  # also dead if this process dies right here
                self._study._storage.record_heartbeat(waiting._trial_id)
        trial = ask(self._study, self._space)
        self._mine[trial.number] = trial
        self._pulse.add(trial._trial_id)
        return trial

    def _fail(self, number: int) -> None:
        try:
            self._study.tell(number, state=TrialState.FAIL)
        except (UpdateFinishedTrialError, ValueError):
            pass  # it had ended

    def _is_ours(self, trial: optuna.Trial) -> bool:
        """Whether no entry with a lower number has the index of a trial."""
        index = trial.user_attrs[INDEX]
        return not any(
            other.number < trial.number
            and other.user_attrs.get(INDEX) == index
            and (other.state in LIVE or counts(other))
            for other in patiently(lambda: self._study.get_trials(deepcopy=False))
        )


def counts(trial: FrozenTrial) -> bool:
    """Whether a trial ended by itself, so that its index is done."""
    return trial.state.is_finished() and RECORD in trial.user_attrs
