"""Jacobians of operators against numpy, and the two ways to take one against each other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from baselines.hessian import InverseHessian
from dipa_bench import names
from dipa_bench.errors import UserError
from dipa_bench.evaluation import jacobian
from dipa_bench.evaluation.evaluate import evaluate
from dipa_bench.execution import artifacts
from dipa_bench.methods import Iterative
from dipa_bench.preconditioners import Dense, Identity, Preconditioner, Scalar, networks
from dipa_bench.solvers import SolveParameters, build_solver
from dipa_bench.tasks.spectrum import matrix
from dipa_bench.testing import small_task

SHAPE = (1, 12, 16)
PIXELS = 192


class Squared(Preconditioner):
    """P(g, k) = M g + (k + 1) c g^2: its Jacobian is M + 2 (k + 1) c diag(g)."""

    linear = False

    def __init__(self, pixels: int = PIXELS) -> None:
        super().__init__()
        rng = np.random.default_rng(0)
        self.matrix = nn.Parameter(torch.from_numpy(rng.standard_normal((pixels, pixels))))

    def forward(self, gradient, state):
        flat = gradient.flatten(1)
        bent = flat @ self.matrix.T.to(flat) + 0.3 * (state.iteration + 1) * flat**2
        return bent.view_as(gradient)


class Attention(Preconditioner):
    """Pixels attend to each other; the fused kernels of this have no forward-mode derivative."""

    linear = False

    def forward(self, gradient, state):
        rows = gradient.flatten(1).unsqueeze(2)
        rows = torch.cat([rows, rows.cos()], 2)
        return nn.functional.scaled_dot_product_attention(rows, rows, rows)[..., 0].view_as(
            gradient
        )


class Rounded(torch.autograd.Function):
    """A cube without a forward-mode derivative."""

    @staticmethod
    def forward(values):
        return values**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass


class Foreign(Preconditioner):
    """A stranger's operator that cannot be differentiated."""

    linear = False

    def forward(self, gradient, state):
        return Rounded.apply(gradient)


class Falling(Preconditioner):
    """Works on the batches of a run, not on single images."""

    linear = False

    def forward(self, gradient, state):
        if len(gradient) == 1 and state.iteration:
            raise ValueError("no single images\nplease")
        return gradient


def task_of(name="sr", shape=SHAPE, **settings):
    return small_task(name, shape, dtype=torch.float64, **settings)


def run_of(task, operator):
    solver = build_solver(
        task.solver,
        task.prior,
        SolveParameters(step=0.5, strength=0.02),
        iterations=task.iterations,
        largest=task.norm_squared(),
    )
    return Iterative(solver, operator.to(task.dtype))


def state_of(task, operator):
    solver = run_of(task, operator).solver
    measured = task.measure(task.images.validation.first(1))
    return jacobian.reference_state(solver, measured, task.student, operator)


def test_the_reference_is_half_way_through_the_own_run():
    """Iteration K // 2 of what `Solver.run` does, with the gradient taken there."""
    task, operator = task_of(iterations=5), Squared()
    state = state_of(task, operator)
    assert state.iteration == 2
    seen = []

    class Watch(Squared):
        def forward(self, gradient, state):
            seen.append(gradient)
            return super().forward(gradient, state)

    measured = task.measure(task.images.validation.first(1))
    run_of(task, operator).solver.run(measured, task.student, Watch())
    torch.testing.assert_close(state.gradient, seen[2], rtol=0, atol=0)


def test_both_jacobians_are_the_formula():
    """M + 2 c (k + 1) diag(g) at the state's iteration k."""
    operator = Squared()
    state = state_of(task_of(), operator)
    assert state.iteration == 2
    gradient = state.gradient.flatten().numpy()
    expected = operator.matrix.detach().numpy() + np.diag(1.8 * gradient)
    assert np.abs(gradient).max() > 0.01
    exact = jacobian.exact_jacobian(operator, state)
    assert not exact.requires_grad
    np.testing.assert_allclose(exact.numpy(), expected, rtol=1e-13, atol=1e-15)
    by_steps = jacobian.difference_jacobian(operator, state)
    np.testing.assert_allclose(by_steps.numpy(), expected, rtol=1e-8, atol=1e-8)


def test_the_step_is_relative_to_the_gradient():
    """Gradients a million times smaller are differentiated as well."""

    class Bent(Preconditioner):
        linear = False

        def forward(self, gradient, state):
            return gradient + 1e6 * gradient**3 * 1e6

    state = state_of(task_of(), Identity())
    for factor in (1.0, 1e-6):
        small = replace(state, gradient=state.gradient * factor)
        exact = jacobian.exact_jacobian(Bent(), small)
        by_steps = jacobian.difference_jacobian(Bent(), small)
        torch.testing.assert_close(by_steps, exact, rtol=1e-7, atol=1e-7 * exact.abs().max().item())
    zero = replace(state, gradient=torch.zeros_like(state.gradient))
    by_steps = jacobian.difference_jacobian(Identity(), zero)
    np.testing.assert_allclose(by_steps.numpy(), np.eye(PIXELS), atol=1e-10)


def test_single_precision_is_good_to_a_thousandth():
    """The default step balances rounding and truncation in float32 too."""
    task, operator = small_task("sr", SHAPE), Squared().float()
    state = state_of(task, operator)
    exact = jacobian.exact_jacobian(operator, state)
    torch.testing.assert_close(
        jacobian.difference_jacobian(operator, state), exact, rtol=1e-3, atol=1e-3
    )


def test_attention_is_differentiated_exactly():
    """Forward mode passes through scaled_dot_product_attention."""
    operator = Attention()
    state = state_of(task_of(), operator)
    found = jacobian.linearise(operator, state)
    assert found.exact
    by_steps = jacobian.difference_jacobian(operator, state)
    torch.testing.assert_close(found.matrix, by_steps, rtol=1e-7, atol=1e-8)


def test_what_an_operator_takes_from_the_state_is_that_of_the_image():
    """Its point stands beside every impulse; only the gradient that P is given varies."""

    class Beside(Preconditioner):
        linear = False

        def forward(self, gradient, state):
            both = torch.cat([gradient, state.point, state.gradient], 1)
            return (both[:, :1] * both[:, 1:2]).sin() + both[:, 2:]

    state = state_of(task_of(), Beside())
    gradient, point = state.gradient.flatten(), state.point.flatten()
    expected = torch.diag(point * (gradient * point).cos())
    torch.testing.assert_close(jacobian.exact_jacobian(Beside(), state), expected)
    by_steps = jacobian.difference_jacobian(Beside(), state)
    torch.testing.assert_close(by_steps, expected, rtol=1e-7, atol=1e-9)


def test_what_has_no_derivative_is_taken_by_differences():
    """And the record says so."""
    operator = Foreign()
    state = state_of(task_of(), operator)
    found = jacobian.linearise(operator, state)
    assert not found.exact
    expected = torch.diag(3 * state.gradient.flatten() ** 2)
    torch.testing.assert_close(found.matrix, expected, rtol=1e-5, atol=1e-9)


@pytest.mark.covering
@pytest.mark.parametrize("normalise", ["none", "sample", "iteration"])
@pytest.mark.parametrize("spec", networks.SPECS, ids=lambda spec: spec.name)
def test_both_jacobians_of_the_networks_agree(spec, normalise):
    """Of all architectures, away from their start as the identity."""
    task = task_of(shape=(1, 12, 12))
    torch.manual_seed(0)
    operator = spec.build(task.shape, spec.parameters(normalise=normalise, **small(spec)), 4)
    operator.last.reset_parameters()
    operator.double()
    state = state_of(task, operator)
    found = jacobian.linearise(operator, state)
    assert found.exact, "every architecture is differentiated in forward mode"
    identity = torch.eye(len(found.matrix), dtype=torch.float64)
    assert (found.matrix - identity).norm() > 0.05
    torch.testing.assert_close(
        jacobian.difference_jacobian(operator, state), found.matrix, rtol=1e-6, atol=1e-6
    )


def small(spec):
    """Choices that keep a network quick, of those that it has."""
    wanted = {"width": 8, "depth": 2, "max_parameters": 10**6}
    return {name: value for name, value in wanted.items() if name in spec.parameters.model_fields}


def dense_of(values):
    operator = Dense(SHAPE).double()
    operator.load_state_dict({"matrix": torch.from_numpy(values)[None]})
    return operator


def test_a_linear_operator_gives_its_matrix_either_way():
    """`linearise`, exact and by differences equal `dense`."""
    values = np.random.default_rng(1).standard_normal((PIXELS, PIXELS)) / 14
    operator = dense_of(values)
    state = state_of(task_of(), operator)
    for found in (
        jacobian.linearise(operator, state).matrix,
        jacobian.exact_jacobian(operator, state),
        jacobian.difference_jacobian(operator, state),
    ):
        np.testing.assert_allclose(found.numpy(), values, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", ["sr", "cs", "mri", "deblur"])
def test_spectra_against_numpy(name):
    """Of a matrix without structure, with the task's own A."""
    task = task_of(name, (1, 16, 16) if name == "cs" else SHAPE)
    size = task.images.train.pixels[0].numel()
    values = np.random.default_rng(2).standard_normal((size, size))
    point = task.pixels(task.images.train)[:1]
    dense = matrix(task.student, task.shape, point)
    dense = torch.view_as_real(dense).flatten(1) if dense.is_complex() else dense
    a = dense.numpy()
    normal = jacobian.normal_matrix(task.student, point)
    np.testing.assert_allclose(normal.numpy(), a.T @ a, atol=1e-12)
    found = jacobian.spectra(torch.from_numpy(values), normal)
    np.testing.assert_allclose(found.singular, np.linalg.svd(values, compute_uv=False), rtol=1e-9)
    np.testing.assert_allclose(
        found.symmetric, np.linalg.eigvalsh((values + values.T) / 2)[::-1], rtol=1e-8, atol=1e-10
    )
    product = found.product.numpy()
    assert found.product.is_complex() and len(product) == size
    assert (np.diff(product.real) <= 0).all()
    np.testing.assert_allclose(product.sum(), np.trace(values @ a.T @ a), rtol=1e-8)
    wanted = np.linalg.eigvals(values @ a.T @ a)
    distances = np.abs(product[:, None] - wanted)
    assert distances.min(1).max() < 1e-6 and distances.min(0).max() < 1e-6


def test_a_positive_definite_operator_has_real_positive_products():
    """(A^T A + mu I)^-1: the eigenvalues of P A^T A are l / (l + mu), the largest its bound."""
    task = task_of("deblur")
    operator = InverseHessian(0.05)
    found = jacobian.linearise(operator, state_of(task, operator))
    product = found.product.numpy()
    assert np.abs(product.imag).max() < 1e-10
    normal = jacobian.normal_matrix(task.student, task.pixels(task.images.train)).numpy()
    eigenvalues = np.linalg.eigvalsh(normal)[::-1]
    np.testing.assert_allclose(product.real, eigenvalues / (eigenvalues + 0.05), atol=1e-8)
    assert product.real.min() > 0
    assert product.real.max() == pytest.approx(
        operator.spectral_bound(task.norm_squared()), rel=1e-6
    )
    assert (found.symmetric > 0).all()


def test_the_identity_has_the_operators_own_spectrum():
    """Singular values 1 although all are alike, and lambda_max(A^T A) on top."""
    task = task_of("cs", (1, 16, 16))
    found = jacobian.linearise(Identity(), state_of(task, Identity()))
    np.testing.assert_allclose(found.singular, 1)
    assert found.product.real.max().item() == pytest.approx(task.norm_squared(), rel=1e-6)
    assert found.product.real[0] >= found.product.real[-1]


def test_large_images_and_infinite_jacobians_are_refused(monkeypatch):
    """With the limit in the message."""
    task = task_of()
    state = state_of(task, Identity())
    broken = dense_of(np.full((PIXELS, PIXELS), np.nan))
    with pytest.raises(UserError, match="Dense is not finite"):
        jacobian.linearise(broken, state)
    monkeypatch.setattr(jacobian, "LARGEST", PIXELS - 1)
    with pytest.raises(UserError, match="192 numbers: Jacobians are taken up to 191"):
        jacobian.linearise(Identity(), state)


# ---------------------------------------------------------------------------- what a run keeps


class Named:
    """As much of a method as keeping a run asks for."""

    learned = True


def keep(folder, operator, number=0, task=None):
    """The files and notes of a tested seed."""
    task = task or task_of()
    run = run_of(task, operator)
    images = task.images.test("the tests of what is kept")
    found = evaluate(run, task, images, record=True, with_quality=False)
    notes = artifacts.keep_run(folder, number, Named(), run, found, task)
    return notes, {path.name for path in folder.iterdir()}


def test_a_networks_jacobian_is_kept(tmp_path):
    """With its spectra and where it was taken, and no matrix of P."""
    task, operator = task_of(), Squared()
    notes, files = keep(tmp_path, operator, task=task)
    assert notes == {} and "matrix.safetensors" not in files
    assert "linearisation.safetensors" in names.SHOWN
    path = tmp_path / "linearisation.safetensors"
    stored = load_file(path)
    with safe_open(path, "np") as file:
        assert file.metadata() == {
            "image": task.images.validation.names[0],
            "iteration": "2",
            "derivative": "exact",
        }
    expected = jacobian.linearise(operator, state_of(task, operator))
    torch.testing.assert_close(stored["J"], expected.matrix.float())
    torch.testing.assert_close(stored["singular"], expected.singular.float())
    torch.testing.assert_close(stored["symmetric"], expected.symmetric.float())
    torch.testing.assert_close(stored["product_real"], expected.product.real.float())
    torch.testing.assert_close(stored["product_imag"], expected.product.imag.float())


def test_a_matrix_is_kept_once(tmp_path):
    """Of a linear operator only spectra stand beside its matrix."""
    notes, files = keep(tmp_path, dense_of(np.eye(PIXELS)))
    stored = load_file(tmp_path / "linearisation.safetensors")
    assert notes == {} and "matrix.safetensors" in files
    assert set(stored) == {"singular", "symmetric", "product_real", "product_imag"}


@pytest.mark.parametrize("case", ["other seed", "few numbers", "untrained", "large"])
def test_nothing_is_kept_of(tmp_path, monkeypatch, case):
    """Other seeds, operators of a few numbers, what is not learned; of large images the reason."""
    operator = Scalar(1) if case == "few numbers" else Squared()
    if case == "untrained":
        monkeypatch.setattr(Named, "learned", False)
    if case == "large":
        monkeypatch.setattr(jacobian, "LARGEST", PIXELS - 1)
    notes, files = keep(tmp_path, operator, number=int(case == "other seed"))
    reason = {"linearisation": f"none: {PIXELS} numbers an image, at most {PIXELS - 1}"}
    assert notes == (reason if case == "large" else {})
    assert not files & {"linearisation.safetensors", "matrix.safetensors"}


def test_an_operator_that_cannot_be_linearised_is_noted(tmp_path):
    """A stranger's failure does not fail the run."""
    notes, files = keep(tmp_path, Falling())
    assert notes == {"linearisation": "none: ValueError: no single images"}
    assert "linearisation.safetensors" not in files and "operator.safetensors" not in files
    assert "pictures.safetensors" in files
