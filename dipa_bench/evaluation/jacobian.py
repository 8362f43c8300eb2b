"""Any preconditioner as a matrix: its Jacobian at a reference gradient, and what its spectra say.

A network has no matrix, but near a gradient g it acts as its Jacobian J = dP(g, k)/dg: column j is
its response to an impulse in entry j of the gradient (DIPA, figure 8, arXiv 2605.15456). This is
descriptive: J is of one gradient and one iteration, and its eigenvalues are not a statement about
the convergence of the whole algorithm.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from deepinv.physics import LinearPhysics
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from dipa_bench.errors import UserError
from dipa_bench.preconditioners import Preconditioner, Shape, State
from dipa_bench.solvers import Solver

LARGEST = 2048  # numbers in an image: eigenvalues of an n x n matrix cost some 25 n^3 operations
CHUNK = 32  # unit images at a time: a network's activations are that many times those of an image


@dataclass(frozen=True)
class Linearisation:
    """A preconditioner near one gradient, for images of n = C H W numbers; on the CPU in float64.

    Attributes:
        matrix: J = dP(g, k)/dg, n x n; of a linear P its matrix.
        singular: of J, n, largest first.
        symmetric: eigenvalues of (J + J^T) / 2, n, largest first: where all are positive, J turns
            no gradient by 90 degrees or more.
        product: eigenvalues of J A^T A, n, complex, largest real part first. A gradient step with
            step size alpha multiplies the error along one of them by 1 - alpha times it.
        exact: whether J was differentiated exactly, rather than by finite differences.
    """

    matrix: Tensor
    singular: Tensor
    symmetric: Tensor
    product: Tensor
    exact: bool = True


def linearise(operator: Preconditioner, state: State) -> Linearisation:
    """Linearises an operator at a state of its run.

    A linear one gives its `dense`, any other its exact Jacobian; where an operation inside has no
    forward-mode derivative, that of finite differences.

    Args:
        operator: P.
        state: of one image, its gradient taken (`Solver.with_gradient`); its physics is A.

    Raises:
        UserError: images of more than `LARGEST` numbers, or a Jacobian that is not finite.
    """
    shape = tuple(state.point.shape[1:])
    size = math.prod(shape)
    if size > LARGEST:
        raise UserError(f"images of {size} numbers: Jacobians are taken up to {LARGEST}")
    matrix, exact = _matrix(operator, shape, state)
    matrix = matrix.cpu().double()
    if not matrix.isfinite().all():
        raise UserError(f"the Jacobian of {type(operator).__name__} is not finite")
    return spectra(matrix, normal_matrix(state.physics, state.point), exact=exact)


def _matrix(operator: Preconditioner, shape: Shape, state: State) -> tuple[Tensor, bool]:
    if operator.linear:
        return operator.dense(shape, state), True
    try:
        return exact_jacobian(operator, state), True
    except RuntimeError:
        return difference_jacobian(operator, state), False


def spectra(matrix: Tensor, normal: Tensor, *, exact: bool = True) -> Linearisation:
    """The `Linearisation` of a matrix J.

    Args:
        matrix: J, n x n, finite.
        normal: A^T A, n x n.
        exact: as in `Linearisation`.
    """
    from scipy import linalg

    plain, gram = matrix.numpy(), normal.numpy()
    # gesvd: the faster driver may not converge where all singular values are alike
    singular = linalg.svd(plain, compute_uv=False, lapack_driver="gesvd")
    symmetric = linalg.eigvalsh((plain + plain.T) / 2)[::-1].copy()
    product = linalg.eigvals(plain @ gram)
    product = product[(-product.real).argsort(kind="stable")]
    return Linearisation(
        matrix, *map(torch.from_numpy, (singular, symmetric, product)), exact=exact
    )


@torch.no_grad()
def normal_matrix(physics: LinearPhysics, like: Tensor) -> Tensor:
    """A^T A as an n x n matrix on the CPU in float64, n = C H W.

    Args:
        physics: A.
        like: B x C x H x W of the images' shape, on A's device and of its dtype.
    """
    blocks = _units(like[:1]).split(CHUNK)
    columns = [physics.A_adjoint(physics.A(block)).flatten(1) for block in blocks]
    return torch.cat(columns).T.cpu().double()


@torch.no_grad()  # of reverse mode; forward mode goes on
def exact_jacobian(operator: Preconditioner, state: State) -> Tensor:
    """J = dP(g, k)/dg by forward-mode differentiation, n x n.

    Only the gradient that P is given varies; the state, its own gradient included, stays.

    Args:
        operator: P.
        state: of one image, its gradient taken.

    Raises:
        RuntimeError: an operation has no forward-mode derivative.
    """
    gradient, columns = state.gradient, []
    with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():  # fused attention has none
        warnings.filterwarnings("ignore", message=".*torch.jit")  # torch's, of its own code
        for block in _units(gradient).split(CHUNK):
            operate = _held(operator, _repeated(state, len(block)))
            same = gradient.repeat(len(block), 1, 1, 1)
            _, column = torch.func.jvp(operate, (same,), (block,))
            columns.append(column.flatten(1))
    return torch.cat(columns).T


@torch.no_grad()
def difference_jacobian(
    operator: Preconditioner, state: State, step: float | None = None
) -> Tensor:
    """J by central finite differences, n x n: (P(g + h e_j) - P(g - h e_j)) / (2 h) is column j.

    Args:
        operator: P.
        state: of one image, its gradient taken.
        step: h in units of the gradient's root mean square (of 1 where the gradient is zero); by
            default the cube root of the dtype's resolution, where rounding and truncation balance.
    """
    gradient = state.gradient
    scale = gradient.square().mean().sqrt().item() or 1.0
    relative = torch.finfo(gradient.dtype).eps ** (1 / 3) if step is None else step
    width = relative * scale
    columns = []
    for block in _units(gradient).split(CHUNK):
        operate = _held(operator, _repeated(state, len(block)))
        difference = operate(gradient + width * block) - operate(gradient - width * block)
        columns.append(difference.flatten(1) / (2 * width))
    return torch.cat(columns).T


def _units(like: Tensor) -> Tensor:
    """The unit images, n x C x H x W, for 1 x C x H x W."""
    eye = torch.eye(like.numel(), device=like.device, dtype=like.dtype)
    return eye.view(-1, *like.shape[1:])


def _held(operator: Preconditioner, state: State) -> Callable[[Tensor], Tensor]:
    return lambda gradient: operator(gradient, state)


def _repeated(state: State, count: int) -> State:
    """The state of one image as that of a batch of `count`; the memory stays as it is."""
    wide = {
        name: value.expand(count, *value.shape[1:])
        for name, value in vars(state).items()
        if isinstance(value, Tensor) and name != "memory"
    }
    return replace(state, **wide)


@torch.no_grad()
def reference_state(
    solver: Solver, measurement: Tensor, physics: LinearPhysics, operator: Preconditioner
) -> State:
    """The state half way through a run, at iteration K // 2, its gradient taken.

    Args:
        solver: its K iterations count.
        measurement: y of one image, 1 x ...
        physics: A.
        operator: P, whose own trajectory it is.
    """
    state = solver.with_gradient(solver.start(measurement, physics, operator))
    for _ in range(solver.iterations // 2):
        state = solver.with_gradient(solver.advance(state, operator))
    return state
