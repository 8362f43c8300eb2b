"""An entry of a study: a method under a name, with what is frozen and what is searched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from optuna.distributions import BaseDistribution

from dipa_bench import parameters, registry
from dipa_bench.config.space import distribution, sobol_point
from dipa_bench.config.study_file import MethodSpec, StudyFile
from dipa_bench.errors import UserError, brief
from dipa_bench.methods import Method, SolverOnly, relative
from dipa_bench.parameters import Value
from dipa_bench.tasks.base import Task

LOOKS = 64  # points of a search space before it counts as out of reach


@dataclass(frozen=True)
class Entry:
    """One entry of a study: a method under a name, with what is frozen and what is searched.

    Attributes:
        points_to_evaluate: points that the study file gives, the same for all entries.
    """

    name: str
    method: Method
    spec: MethodSpec
    points_to_evaluate: tuple[dict[str, Value], ...] = ()

    @staticmethod
    def of(study: StudyFile, name: str) -> Entry:
        """The entry `name` of a study."""
        spec = study.methods[name]
        method = registry.get("methods", spec.method or name)
        return Entry(name, method, spec, tuple(study.points_to_evaluate))

    @property
    def fits(self) -> bool:
        """Whether operators are fitted with solver settings: trying other ones takes a fit."""
        method = self.method
        return (method.learned or method.stochastic) and not method.solver_free

    def check(self, task: Task) -> None:
        """Raises `UserError` where the entry names a teacher that the task does not have."""
        for item in parameters.declared(self.method.parameters, task.solver):
            if item.search is None or item.search.ask != "teacher":
                continue
            labels = [self.spec.set[item.path]] if item.path in self.spec.set else []
            if item.path in self.spec.search:
                found = self.spec.search[item.path]
                labels += found.choices or [found.low, found.high]
            for label in labels:
                if label is not None:
                    task.teacher_spec(label)

    def defaults(self, task: Task) -> dict[str, Value]:
        """Flat parameters of an untuned run, with the entry's frozen ones."""
        return parameters.defaults(self.method.parameters, task.solver, task) | self.spec.set

    def published(self, task: Task) -> dict[str, Value]:
        """Flat parameters of the published run, with the entry's frozen ones."""
        return self.defaults(task) | self.method.published(task) | self.spec.set

    def space(self, task: Task) -> dict[str, parameters.Search]:
        """What is searched: the declared ranges, less frozen ones, with the entry's own."""
        found = parameters.space(self.method.parameters, task.solver, task)
        found = self.method.narrow(task, found)
        conditions = parameters.conditions(self.method.parameters)
        for name, spec in self.spec.search.items():
            own = parameters.Search(spec.low, spec.high, spec.log, tuple(spec.choices))
            found[name] = replace(own, when=conditions.get(name))
        return {
            name: search
            for name, search in found.items()
            if name not in self.spec.set
            and (search.when is None or search.when.holds(self.spec.set))
        }

    def conditions(self, task: Task) -> dict[str, parameters.When]:
        """When a searched parameter counts, of those that do not always."""
        return {
            name: search.when
            for name, search in self.space(task).items()
            if search.when is not None
        }

    def admits(self, task: Task, values: Mapping[str, Value]) -> bool:
        """Whether the method has nothing against some of its parameters, others at defaults."""
        try:
            given = parameters.build(self.method.parameters, self.defaults(task) | values)
            return not self.method.refuses(task, given)
        except Exception:  # a stranger's function may fail in any way: the trial will say so
            return True

    def solver_names(self, task: Task) -> list[str]:
        """The searched solver settings, frozen ones included; the same for every entry."""
        found = parameters.space(self.method.parameters, task.solver, task)
        return [name for name in found if name.startswith("solve.")]

    def distributions(self, task: Task) -> dict[str, BaseDistribution]:
        """The same for Optuna."""
        whole = parameters.integers(self.method.parameters)
        return {
            name: distribution(search, name in whole) for name, search in self.space(task).items()
        }

    def first_points(self, task: Task) -> list[dict[str, Value]]:
        """What a search tries first: the defaults, the published settings, the study's points.

        Of each, what the search's ranges admit; a point that adds nothing is left out. What a point
        does not say stays at its default. The published sizes of a structure are for the published
        protocol: with them one trial of a network can take longer than all the others.
        """
        defaults = self.defaults(task)
        sizes = {name: value for name, value in defaults.items() if name.startswith("operator.")}
        return self._first(task, defaults, self.published(task) | sizes)

    def first_settings(self, task: Task) -> list[dict[str, Value]]:
        """What a search of the solver's settings alone tries first, before there is an operator.

        It is the same for all entries with the same ranges, whatever their own defaults are.
        """
        plain = parameters.defaults(SolverOnly, task.solver, task)
        return self._first(task, plain | self.spec.set, plain | task.published_solve())

    def _first(
        self, task: Task, defaults: Mapping[str, Value], published: Mapping[str, Value]
    ) -> list[dict[str, Value]]:
        """The defaults, the published settings and the study's points, as the ranges admit them."""
        space, points = self.space(task), []
        published = relative(dict(published), task.norm_squared())
        for values in (
            defaults,
            published,
            *(defaults | point for point in self.points_to_evaluate),
        ):
            point = {
                name: values[name]
                for name, search in space.items()
                if name in values and search.admits(values[name])
            }
            if point and point not in points:
                points.append(point)
        return points

    def obstacle(self, task: Task) -> tuple[str, str] | None:
        """Why there is nothing to search: the state and reason of the method's record, or None.

        Untuned parameters that the task refuses are no obstacle where others can be searched.
        """
        try:
            untuned = parameters.build(self.method.parameters, self.defaults(task))
            reason = self.method.unsuitable(task, untuned)
            if reason and self.method.refuses(task, untuned) == reason and self._searchable(task):
                reason = None
            self.published(task)
            self.space(task)
        except Exception as error:  # a stranger's functions may fail in any way
            return "failed", brief(error, kind=not isinstance(error, UserError))
        return ("skipped", brief(Exception(reason), kind=False)) if reason else None

    def _searchable(self, task: Task) -> bool:
        """Whether the task admits some point of the search space."""
        space = self.distributions(task)
        points = (sobol_point(space, index, 0) for index in range(LOOKS if space else 0))
        return any(self.admits(task, point) for point in points)
