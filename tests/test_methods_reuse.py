"""Operators that trials share: exactly what a fresh fit gives."""

from dataclasses import replace

import pytest
import torch

from dipa_bench import parameters, registry
from dipa_bench.methods import Direct
from dipa_bench.preconditioners import Identity
from dipa_bench.reuse import OperatorCache, fit_or_reuse
from dipa_bench.testing.problems import small_task

TASKS = ("sr", "cs", "mri", "deblur")
FREE = sorted(
    name for name in registry.names("methods") if registry.get("methods", name).solver_free
)
# every solver setting is another than a default
OTHER = {
    "solve.step": 0.6,
    "solve.strength": 0.07,
    "solve.momentum": "published",
    "solve.start": "preconditioned",
    "solve.weight": 0.3,
    "solve.units": "absolute",
}


def flat(method, task, **values):
    return parameters.defaults(method.parameters, task.solver, task) | values


def built(method, values):
    return parameters.build(method.parameters, values)


def admitted(method, task, values):
    """Those of the values that the method's own bounds allow."""
    found = {}
    for name, value in values.items():
        try:
            built(method, flat(method, task, **{name: value}))
        except Exception:
            continue
        found[name] = value
    return found


def estimate(reconstructor, task):
    with torch.no_grad():
        return reconstructor.run(task.measure(task.images.validation), task.student)


def test_the_analytic_methods_say_so():
    """And none whose operator the solver's settings reach."""
    assert FREE == [
        "barzilai-borwein",
        "bp-ls",
        "circulant",
        "hessian",
        "identity",
        "lmmse-identity",
        "lmmse-preconditioner",
        "nystrom",
        "polynomial",
        "sr1",
    ]


@pytest.mark.covering
@pytest.mark.parametrize(
    ("name", "task_name", "solver"),
    [
        pytest.param(
            *(name, TASKS[(first + second) % len(TASKS)], ("pnp-fista", "red-fista")[second]),
            marks=[pytest.mark.exhaustive] if name == "lmmse-preconditioner" else [],
        )
        for first, name in enumerate(FREE)
        for second in range(2)
    ],
)
def test_a_hit_is_a_fresh_fit_bit_for_bit(name, task_name, solver, context):
    """Estimates, costs, numbers, bound and notes, after a change of every solver setting."""
    method, task = registry.get("methods", name), small_task(task_name, solver=solver, count=4)
    if reason := method.unsuitable(task):
        pytest.skip(reason)
    operator_cache = OperatorCache()
    first = fit_or_reuse(
        method, task, built(method, flat(method, task)), context(3), operator_cache
    )
    estimate(first, task)  # a run leaves no trace in what is shared
    changes = admitted(method, task, OTHER)
    assert {"solve.step", "solve.strength", "solve.momentum"} <= set(changes)
    for part in ({name: value} for name, value in changes.items()):
        values = built(method, flat(method, task, **part))
        given, fresh_context = context(3), context(3)
        found = fit_or_reuse(method, task, values, given, operator_cache)
        fresh = method.fit(task, values, fresh_context)
        assert found.preconditioner is first.preconditioner
        assert given.notes == fresh_context.notes
        one, other = estimate(found, task), estimate(fresh, task)
        assert torch.equal(one.estimate, other.estimate)
        assert (one.operator_calls, one.denoiser_calls) == (
            other.operator_calls,
            other.denoiser_calls,
        )
        kept, made = found.module.state_dict(), fresh.module.state_dict()
        assert kept.keys() == made.keys()
        assert all(torch.equal(kept[key], made[key]) for key in kept)
    assert len(operator_cache) == 1


@pytest.mark.parametrize("name", ["circulant", "lmmse-preconditioner", "nystrom", "bp-ls"])
def test_whatever_else_counts_is_fitted_anew(name, context):
    """Own parameters, budget, task, and the seed of stochastic methods alone."""
    method, task, operator_cache = registry.get("methods", name), small_task(), OperatorCache(99)
    own = "damping" if name == "lmmse-preconditioner" else "mu"
    plain = built(method, flat(method, task))

    def operator(task=task, values=plain, given=None):
        return fit_or_reuse(method, task, values, given or context(), operator_cache).preconditioner

    first = operator()
    assert operator() is first
    assert operator(values=built(method, flat(method, task, **{own: 0.05}))) is not first
    assert operator(given=context(train_images=3)) is not first
    assert operator(task=replace(task, iterations=7)) is not first
    assert (operator(given=context(1)) is first) == (not method.stochastic)


def test_methods_do_not_share(context):
    """Two methods with the same parameters have an operator each."""
    task, operator_cache = small_task(), OperatorCache()
    found = [
        fit_or_reuse(method, task, built(method, flat(method, task)), context(), operator_cache)
        for method in (registry.get("methods", name) for name in ("hessian", "circulant"))
    ]
    assert type(found[0].preconditioner) is not type(found[1].preconditioner)
    assert len(operator_cache) == 2


def test_others_are_fitted_every_time(context):
    """A method that does not say it, whose operator follows the solver, keeps nothing."""
    task, operator_cache = small_task(solver="red-fista"), OperatorCache()
    method = registry.get("methods", "weighted-proximal")
    scales = [
        fit_or_reuse(
            method,
            task,
            built(method, flat(method, task, **{"solve.step": step})),
            context(),
            operator_cache,
        ).preconditioner.scale
        for step in (0.5, 1.0)
    ]
    assert scales[0] == pytest.approx(2 * scales[1])
    assert (len(operator_cache), operator_cache.saved) == (0, 0.0)


def made(fit):
    plain = registry.get("methods", "identity")
    return replace(plain, fit=fit)


def test_seconds_count_whoever_paid(context, monkeypatch):
    """Every hit saves what the fit took, less the start's map, which is shared by other means."""
    clock = [0.0]
    monkeypatch.setattr("dipa_bench.reuse.time.perf_counter", lambda: clock[0])
    task, operator_cache = small_task(), OperatorCache()
    given = context()
    first = given.lmmse(task)

    def slow_map(task):
        clock[0] += 100.0
        return first

    def fit(task, values, context):
        clock[0] += 5.0
        context.notes["rank"] = 7
        return context.reconstructor(task, values.solve, Identity())

    method = made(fit)
    for start, saved in (("lmmse", 0.0), ("adjoint", 5.0), ("lmmse", 10.0)):
        each = replace(given, lmmse=slow_map, notes={"earlier": True})
        values = built(method, flat(method, task, **{"solve.start": start}))
        fit_or_reuse(method, task, values, each, operator_cache)
        assert operator_cache.saved == saved
        assert each.notes == {"earlier": True, "rank": 7}
    assert clock[0] == 205.0


def test_the_least_recently_used_goes(context):
    """Four operators are kept."""
    task, operator_cache, fits = small_task(), OperatorCache(), []

    def fit(task, values, context):
        fits.append(context.seed)
        return context.reconstructor(task, values.solve, Identity())

    method = replace(made(fit), stochastic=True)
    values = built(method, flat(method, task))
    for seed in (0, 1, 2, 3, 0, 4, 0, 1):
        fit_or_reuse(method, task, values, context(seed), operator_cache)
        assert len(operator_cache) <= 4
    assert fits == [0, 1, 2, 3, 4, 1]


def test_a_fit_that_fails_or_makes_no_operator_is_not_kept(context):
    """Its notes are there all the same."""
    task, operator_cache = small_task(), OperatorCache()

    def fails(task, values, context):
        context.notes["tried"] = 1
        raise RuntimeError("singular")

    values, given = built(made(fails), flat(made(fails), task)), context()
    with pytest.raises(RuntimeError, match="singular"):
        fit_or_reuse(made(fails), task, values, given, operator_cache)
    assert given.notes == {"tried": 1}
    direct = made(lambda task, values, context: Direct(lambda y, physics: y))
    fit_or_reuse(direct, task, values, given, operator_cache)
    assert len(operator_cache) == 0
