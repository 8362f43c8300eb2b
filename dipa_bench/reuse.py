"""Fitted operators and maps that several trials use."""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dipa_bench import devices
from dipa_bench.files import write_whole
from dipa_bench.methods import AffineMap, FitContext, Iterative, Method, Reconstructor
from dipa_bench.parameters import Parameters, Value
from dipa_bench.preconditioners import Preconditioner
from dipa_bench.tasks.base import Task

KEPT = 4  # operators; a dense one of 64 x 64 pixels has 64 MiB


@dataclass(frozen=True)
class Fitted:
    """An operator that a fit made.

    Attributes:
        task: that it was made for, compared by identity.
        operator: it is shared, and never changed by runs.
        notes: that the fit wrote.
        seconds: that the fit took, its solver's LMMSE start aside.
    """

    task: Task
    operator: Preconditioner
    notes: Mapping[str, Value]
    seconds: float


class OperatorCache:
    """The operators that were used last, of methods whose fits are `solver_free`.

    Args:
        size: how many are kept.

    Attributes:
        saved: seconds that reusing instead of fitting has saved so far; like those of
            `TeacherCache` they are part of what a fit costs, whoever paid them first.
    """

    def __init__(self, size: int = KEPT) -> None:
        self._size = size
        self._kept: OrderedDict[tuple, Fitted] = OrderedDict()
        self.saved = 0.0

    def __len__(self) -> int:
        return len(self._kept)

    def take(self, key: tuple) -> Fitted | None:
        """What is kept under a key, its seconds counted as saved."""
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
            self.saved += found.seconds
        return found

    def put(self, key: tuple, fitted: Fitted) -> None:
        """Keeps an operator; the one that was not used for longest may have to go."""
        self._kept[key] = fitted
        self._kept.move_to_end(key)
        while len(self._kept) > self._size:
            self._kept.popitem(last=False)


class KeptFits:
    """What an entry's trials fitted, on disk, for trials that try it with other solver settings.

    Args:
        folder: of the entry; made on first use.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, key: str, state: Mapping[str, Tensor], notes: Mapping[str, Value]) -> None:
        """Keeps the numbers of a fit, and the notes that it wrote."""
        whole = {name: part.detach().cpu().contiguous() for name, part in state.items()}
        facts = {"notes": json.dumps(dict(notes))}
        write_whole(self._place(key), lambda path: save_file(whole, path, metadata=facts))

    def take(self, key: str) -> tuple[dict[str, Tensor], dict[str, Value]] | None:
        """The numbers and notes of a fit; None where they are not there, or damaged."""
        try:
            with safe_open(self._place(key), framework="pt") as found:
                state = {name: found.get_tensor(name) for name in found.keys()}
                return state, json.loads(found.metadata()["notes"])
        except (OSError, SafetensorError, ValueError, KeyError, TypeError):
            return None

    def _place(self, key: str) -> Path:
        return self._folder / f"{key}.safetensors"


class CachedPerTask:
    """A function of a task, computed once for each and then remembered.

    Tasks are compared by identity, and kept alive.

    Attributes:
        saved: seconds that remembering has saved so far.
    """

    def __init__(self, function: Callable[[Task], Any]) -> None:
        self._function = function
        self._results: dict[int, tuple[Task, Any, float]] = {}
        self.saved = 0.0

    def __call__(self, task: Task) -> Any:
        if id(task) in self._results:
            _, result, seconds = self._results[id(task)]
            self.saved += seconds
            return result
        started = time.perf_counter()
        result = self._function(task)
        self._results[id(task)] = task, result, time.perf_counter() - started
        return result


def fit_or_reuse(
    method: Method, task: Task, values: Any, context: FitContext, operator_cache: OperatorCache
) -> Reconstructor:
    """What `method.fit` gives, with an operator from the cache where only solver settings differ.

    A hit is a fit of the same method, on the same task object, with the same budget, the same
    parameters but for those below `solve`, and where the method is stochastic the same seed. Then
    the solver alone is built anew, and the notes of the fit are written again: the result is the
    same bit for bit.

    Args:
        method: the method; one that is not `solver_free` is always fitted.
        task: the task.
        values: its parameters.
        context: of the fit.
        operator_cache: where operators are kept.
    """
    if not method.solver_free:
        return method.fit(task, values, context)
    key = _key(method, task, values, context)
    kept = operator_cache.take(key)
    if kept is not None:
        context.notes |= kept.notes
        return context.reconstructor(task, values.solve, kept.operator)
    notes, clock = {}, _Clock(context.lmmse)
    started = time.perf_counter()
    try:
        found = method.fit(task, values, replace(context, notes=notes, lmmse=clock))
    finally:
        context.notes |= notes
    devices.synchronise(task.device)
    seconds = time.perf_counter() - started - clock.seconds
    if isinstance(found, Iterative):
        operator_cache.put(key, Fitted(task, found.preconditioner, notes, seconds))
    return found


class _Clock:
    """The LMMSE map's function, with the seconds that it takes: it is shared by other means."""

    def __init__(self, function: Callable[[Task], AffineMap]) -> None:
        self._function = function
        self.seconds = 0.0

    def __call__(self, task: Task) -> AffineMap:
        started = time.perf_counter()
        try:
            return self._function(task)
        finally:
            self.seconds += time.perf_counter() - started


def _key(method: Method, task: Task, values: Parameters, context: FitContext) -> tuple:
    """Everything that a `solver_free` operator depends on; an entry keeps its task alive."""
    own = values.model_dump_json(exclude={"solve"})
    seed = context.seed if method.stochastic else None
    return id(task), method.name, own, seed, context.budget
