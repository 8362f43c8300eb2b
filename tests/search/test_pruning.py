"""When a trial is given up: rungs of one bracket or several, against tables worked by hand."""

from __future__ import annotations

import optuna
import pytest
from optuna.trial import TrialState

from dipa_bench.search.pruning import RungPruner, rung_ends

STEPS = (0, 2, 4, 6)  # a trial that is not given up reports at each


def reached(pruner: RungPruner, values: list[float], indices: list[int] | None = None) -> list[int]:
    """The last step of each trial, one after the other, each with one value at all its steps."""
    study = optuna.create_study(direction="maximize", pruner=pruner)
    found = []
    for index, value in zip(indices or range(len(values)), values, strict=True):
        study.enqueue_trial({}, user_attrs={"index": index})
        trial, state = study.ask(), TrialState.PRUNED
        for step in STEPS:
            trial.report(value, step)
            if trial.should_prune():
                break
        else:
            state = TrialState.COMPLETE
        found.append(step)
        study.tell(trial, value if state == TrialState.COMPLETE else None, state=state)
    return found


def test_rungs_have_equal_lengths_from_zero() -> None:
    assert rung_ends(6, 3) == (0, 2, 4)
    assert rung_ends(9, 2) == (0, 4)
    assert rung_ends(4, 1) == (0,)
    for epochs, rungs in ((2, 3), (2, 0)):
        with pytest.raises(ValueError, match=f"{rungs} rungs of {epochs} epochs"):
            rung_ends(epochs, rungs)


def test_halving_by_hand() -> None:
    """One of three: of n that reached an end (itself included) the best max(1, n // 3) go on.

    ===== ===== ================================ =====
    trial value at step 0                        ends
    ===== ===== ================================ =====
    0     5     first of 1, 1 goes on            6
    1     4     second of 2, 1                   0
    2     6     first of 3, 1                    6
    3     5.5   second of 4, 1                   0
    4     5.2   third of 5, 1                    0
    5     5.7   second of 6, 2; at 2 second of   2
                3 (5, 6 and it), 1
    6     5.6   third of 7, 2                    0
    7     7     first of 8; first of all at 2, 4 6
    8     5.8   third of 9, 3; at 2 third of 5   2
    ===== ===== ================================ =====
    """
    values = [5, 4, 6, 5.5, 5.2, 5.7, 5.6, 7, 5.8]
    assert reached(RungPruner((0, 2, 4), 3), values) == [6, 0, 6, 0, 0, 2, 0, 6, 2]


def test_hyperband_by_hand() -> None:
    """Halving in three brackets over ends 0, 2; each trial against its own bracket's alone.

    ======= ======= ===== =========================== =====
    index   bracket value its first end               ends
    ======= ======= ===== =========================== =====
    0       0       5     0: first of 1               6
    1       1       1     2: first of 1               6
    2       2       0     none                        6
    3       0       4     0: second of 2, 1 goes on   0
    4       1       0.5   2: second of 2, 1           2
    5       2       -1    none                        6
    6       0       4.5   0: second of 3, 1           0
    7       1       2     2: first of 3               6
    8       2       -2    none                        6
    9       0       4.8   0: second of 4, 2; at 2     2
                          second of 2 (5 and it), 1
    ======= ======= ===== =========================== =====
    """
    pruner = RungPruner((0, 2), 2, brackets=3)
    values = [5, 1, 0, 4, 0.5, -1, 4.5, 2, -2, 4.8]
    expected = [6, 6, 6, 0, 2, 6, 0, 6, 6, 2]
    assert reached(pruner, values) == expected
    order = [2, 8, 5, 1, 4, 7, 0, 3, 6, 9]  # brackets one after the other: nothing changes
    found = reached(pruner, [values[index] for index in order], order)
    assert found == [expected[index] for index in order]


def test_brackets_change_the_decision() -> None:
    """The same trials in one bracket: some that went on are given up."""
    values = [5, 1, 0, 4, 0.5, -1]
    assert reached(RungPruner((0, 2), 2), values) == [6, 0, 0, 2, 0, 0]
    assert reached(RungPruner((0, 2), 2, brackets=3), values) == [6, 6, 6, 0, 2, 6]


def test_trials_that_run_elsewhere_compete() -> None:
    """What another worker's trial reported counts; one that waits, failed or is behind does not."""
    study = optuna.create_study(direction="maximize", pruner=RungPruner((2,), 3))
    ahead, behind, failed, own = (study.ask() for _ in range(4))
    study.enqueue_trial({})
    behind.report(9.0, 1)
    failed.report(9.0, 2)
    study.tell(failed, state=TrialState.FAIL)
    own.report(1.0, 2)
    assert not own.should_prune()
    ahead.report(2.0, 2)
    assert own.should_prune()
    assert not ahead.should_prune()


def test_nothing_is_given_up_between_the_ends() -> None:
    study = optuna.create_study(direction="maximize", pruner=RungPruner((4,), 3))
    best, worst = study.ask(), study.ask()
    for step in range(4):
        best.report(1.0, step)
        worst.report(0.0, step)
        assert not worst.should_prune()
    assert not study.ask().should_prune()  # reported nothing


@pytest.mark.parametrize(
    ("ends", "part", "brackets", "named"),
    [
        ((2, 1), 3, 1, r"\(2, 1\)"),
        ((1, 1), 3, 1, r"\(1, 1\)"),
        ((-1, 1), 3, 1, r"\(-1, 1\)"),
        ((0, 1), 1, 1, "part = 1"),
        ((0, 1), 3, 4, "4 brackets"),
        ((0, 1), 3, 0, "0 brackets"),
    ],
)
def test_what_makes_no_sense_is_refused(ends, part, brackets, named) -> None:
    with pytest.raises(ValueError, match=named):
        RungPruner(ends, part, brackets)
