"""Operators inside deepinv's loop do what they do in ours; the documents' examples run."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest
import torch
from deepinv.optim import L2, RED, DataFidelity, PnP, optim_builder
from deepinv.optim.distance import L2Distance

from baselines.sr1 import SR1
from dipa_bench.interop import PreconditionedGD, PreconditionedPGD
from dipa_bench.preconditioners import Convolution, Dense, Identity, Preconditioner
from dipa_bench.solvers import SolveParameters, build_solver
from dipa_bench.testing import small_task

DOCUMENT = Path(__file__).parents[1] / "docs" / "operators.md"
K = 6
STEP, STRENGTH, WEIGHT = 0.7, 0.1, 0.3


def dense(task):
    """One operator for each of the first iterations, all different."""
    operator = Dense(task.shape, copies=3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        operator.matrix += 0.02 * torch.randn(operator.matrix.shape, generator=generator)
    return operator.to(task.dtype).requires_grad_(False)


def convolution(task):
    operator = Convolution(2, 3)
    with torch.no_grad():
        operator.kernels[1] += 0.05
    return operator.to(task.dtype).requires_grad_(False)


def identity(task):
    return Identity()


def two_points(task):
    return SR1(0.1, 1.0)


class Averages(Preconditioner):
    """The gradient, and what the memory has of those before."""

    def forward(self, gradient, state):
        return gradient if state.memory is None else gradient + 0.3 * state.memory

    def remember(self, gradient, state):
        return self(gradient, state)


def with_memory(task):
    return Averages()


def ours(task, operator, measured):
    parameters = SolveParameters(
        step=STEP, strength=STRENGTH, momentum="none", weight=WEIGHT, units="absolute"
    )
    solver = build_solver(task.solver, task.prior, parameters, iterations=K, largest=1.0)
    return solver.run(measured, task.student, operator).estimate


def theirs(task, operator, measured, fidelity=None, step=STEP):
    iterator = PreconditionedPGD if task.solver == "pnp-fista" else PreconditionedGD
    prior = PnP if task.solver == "pnp-fista" else RED
    model = optim_builder(
        iterator(operator),
        max_iter=K,
        data_fidelity=fidelity or L2(),
        prior=prior(denoiser=task.prior),
        params_algo={"stepsize": step, "g_param": STRENGTH, "lambda": WEIGHT},
    )
    with torch.no_grad():
        return model(measured, task.student)


@pytest.mark.parametrize("solver", ["pnp-fista", "red-fista"])
@pytest.mark.parametrize("name", ["sr", "mri"])
@pytest.mark.parametrize("make", [identity, dense, convolution, two_points, with_memory])
def test_deepinv_runs_our_iteration(make, name, solver):
    """Operators of single iterations and those with a memory included."""
    task = small_task(name, solver=solver, dtype=torch.float64)
    measured = task.measure(task.images.validation)
    operator = make(task)
    expected = ours(task, operator, measured)
    found = theirs(task, operator, measured)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_a_preconditioner_changes_the_result():
    task = small_task("sr", dtype=torch.float64)
    measured = task.measure(task.images.validation)
    plain, ready = (theirs(task, operator, measured) for operator in (Identity(), dense(task)))
    assert (plain - ready).abs().max() > 1e-3


class Halves(DataFidelity):
    """A quadratic data term that is not deepinv's `L2`."""

    def __init__(self):
        super().__init__(d=L2Distance(sigma=2**0.5))  # |Ax - y|^2 / 4


def test_other_data_terms_and_weights():
    task = small_task("sr", dtype=torch.float64)
    measured = task.measure(task.images.validation)
    operator = dense(task)
    expected = theirs(task, operator, measured)
    for fidelity in (Halves(), L2(sigma=2**0.5)):
        found = theirs(task, operator, measured, fidelity, step=2 * STEP)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_a_second_run_starts_anew():
    """Nothing of one run is left in the model for the next."""
    task = small_task("sr", dtype=torch.float64)
    measured = task.measure(task.images.validation)
    model = optim_builder(
        PreconditionedPGD(dense(task)),
        max_iter=K,
        data_fidelity=L2(),
        prior=PnP(denoiser=task.prior),
        params_algo={"stepsize": STEP, "g_param": STRENGTH},
    )
    with torch.no_grad():
        assert torch.equal(model(measured, task.student), model(measured, task.student))


def example(name: str) -> str:
    """The code below a marker of the document."""
    text = DOCUMENT.read_text("utf-8")
    return re.search(rf"<!-- {name} example -->\n```python\n(.*?)```", text, re.DOTALL).group(1)


def test_the_documents_examples(tmp_path, monkeypatch, capfd):
    """Word for word, after the smallest study of that name."""
    from dipa_bench.cli.main import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    settings = {
        "problem.size": 16,
        "problem.iterations": 2,
        "budget.train_images": 6,
        "budget.epochs": 1,
        "budget.final_epochs": 1,
        "ldipa.solve.start": "adjoint",
    }
    command = ["study", "--task", "sr", "--device", "cpu", "--methods", "ldipa", "--trials", "1"]
    command += [part for pair in settings.items() for part in ("--set", "{}={}".format(*pair))]
    monkeypatch.setattr(sys, "argv", ["dipa-bench", *command, "--name", "sr-quick"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert not caught.value.code, capfd.readouterr().err
    names = {}
    exec(example("python"), names)
    run = names["run"]
    assert run.entry.name == "ldipa"
    assert names["estimate"].shape == names["images"].pixels.shape
    exec(example("deepinv"), names)
    assert names["inside"].shape == names["estimate"].shape
    assert os.listdir(tmp_path / "mlruns" / "studies" / "sr-quick")
    task = run.task
    parameters = SolveParameters(strength=0.1, momentum="none")
    solver = build_solver(
        "pnp-fista", task.prior, parameters, iterations=10, largest=task.norm_squared()
    )
    expected = solver.run(names["y"], task.student, run.operator).estimate
    torch.testing.assert_close(names["inside"], expected, rtol=0, atol=1e-5)
