"""Eigenvalues of A^T A, without forming A where one is enough."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from deepinv.physics import LinearPhysics
from torch import Tensor

from dipa_bench.errors import UserError

MOST = 100  # steps of `lanczos`
TOLERANCE = 1e-4  # relative residual at which it stops
LARGEST = 2048  # rows or columns of A, the fewer, of which all eigenvalues are computed
NEGLIGIBLE = 1e-6  # eigenvalues below this share of the largest count as zero
PIXELS = 4096  # numbers of an image up to which its part in the range of A^T is computed densely
ALIKE = 1e-4  # how close to a projection A^T A / lambda_max has to be to count as one
DENSE_UP_TO = 8  # below this many rows Lanczos has nothing to do


@torch.no_grad()
def largest_eigenvalue(
    physics: LinearPhysics,
    shape: tuple[int, int, int],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> float:
    """lambda_max(A^T A) by Lanczos, to a relative 1e-6 (or what the dtype allows).

    deepinv's power iteration is 2 to 7% low at its default settings; steps relative to it would
    overshoot the stability limit by as much. A physics with a `largest_eigenvalue` of its own is
    believed.

    Args:
        physics: A, on `device`.
        shape: (C, H, W) of the images.

    Raises:
        UserError: A^T A of a random image is not finite.
    """
    from scipy.sparse.linalg import LinearOperator, eigsh

    known = getattr(physics, "largest_eigenvalue", None)
    if known is not None:
        return known
    zero = torch.zeros(1, *shape, device=device, dtype=dtype)
    measured = physics.A(zero)
    if measured.is_complex() or measured.numel() >= zero.numel():
        example, apply = zero, lambda v: physics.A_adjoint(physics.A(v))
    else:
        example, apply = measured, lambda v: physics.A(physics.A_adjoint(v))
    size = example.numel()

    def product(vector: np.ndarray) -> np.ndarray:
        batch = torch.from_numpy(np.ascontiguousarray(vector, dtype=np.float64))
        image = batch.reshape(example.shape).to(example.device, example.dtype)
        return apply(image).reshape(-1).double().cpu().numpy()

    if size <= DENSE_UP_TO:
        matrix = np.stack([product(row) for row in np.eye(size)])
        return float(np.linalg.eigvalsh((matrix + matrix.T) / 2)[-1])
    operator = LinearOperator((size, size), matvec=product, dtype=np.float64)
    first = np.random.default_rng(0).standard_normal(size)
    tried = product(first)
    if not np.isfinite(tried).all():
        raise UserError(f"{type(physics).__name__} gives values that are not finite: mend it")
    if not tried.any():
        return 0.0
    return float(eigsh(operator, k=1, which="LA", tol=1e-6, v0=first, return_eigenvectors=False)[0])


@torch.no_grad()
def lanczos(
    product: Callable[[Tensor], Tensor],
    shape: tuple[int, int, int],
    device: torch.device,
    dtype: torch.dtype,
) -> float:
    """The largest eigenvalue of a symmetric map of images.

    All vectors are kept orthogonal; never more than the true value, 2e-4 low at the worst on dense
    spectra. Deterministic to the last bit, which ARPACK's restarts are not on invariant subspaces;
    those are the rule for projections.

    Args:
        product: the map, 1 x C x H x W to the same.
        shape: (C, H, W).
        device, dtype: what `product` takes.
    """
    size = int(np.prod(shape))
    vector = torch.randn(size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    basis, tridiagonal = [vector.numpy() / np.linalg.norm(vector)], np.zeros((MOST, MOST))
    for k in range(min(MOST, size)):
        image = torch.from_numpy(basis[k]).to(device, dtype).view(1, *shape)
        vector = product(image).reshape(-1).double().cpu().numpy()
        tridiagonal[k, k] = vector @ basis[k]
        for _ in range(2):
            vector = vector - np.stack(basis).T @ (np.stack(basis) @ vector)
        values, vectors = np.linalg.eigh(tridiagonal[: k + 1, : k + 1])
        rest = np.linalg.norm(vector)
        if rest * abs(vectors[-1, -1]) <= TOLERANCE * values[-1] or k + 1 == MOST:
            break
        tridiagonal[k, k + 1] = tridiagonal[k + 1, k] = rest
        basis.append(vector / rest)
    return float(values[-1])


@torch.no_grad()
def matrix(physics: LinearPhysics, shape: tuple[int, int, int], like: Tensor) -> Tensor:
    """A as an m x n matrix, column by column (n = C H W); for small images and for tests.

    Args:
        like: a tensor whose device and dtype to use.
    """
    size = shape[0] * shape[1] * shape[2]
    columns = torch.eye(size, device=like.device, dtype=like.dtype).reshape(size, *shape)
    return torch.cat([physics.A(block).flatten(1) for block in columns.split(256)]).T


class DenseSpectrum(NamedTuple):
    """The eigenvalues of A^T A that count, and their eigenvectors.

    Attributes:
        eigenvalues: r, smallest first, above `NEGLIGIBLE` of the largest.
        basis: r x n with orthonormal rows, of the range of A^T.
    """

    eigenvalues: Tensor
    basis: Tensor


@torch.no_grad()
def dense_spectrum(
    physics: LinearPhysics, shape: tuple[int, int, int], like: Tensor
) -> DenseSpectrum | None:
    """All of it, in double precision.

    Args:
        physics: A.
        shape: (C, H, W) of the images.
        like: a tensor whose device and dtype A takes.

    Returns:
        None where A has more than `LARGEST` rows and columns, or measures complex numbers.
    """
    zero = torch.zeros(1, *shape, device=like.device, dtype=like.dtype)
    measured = physics.A(zero)
    if measured.is_complex() or min(measured.numel(), zero.numel()) > LARGEST:
        return None
    dense = matrix(physics, shape, like).double()
    rows, pixels = dense.shape
    # the SVD of a projection, all of whose singular values are alike, may not converge
    gram = dense @ dense.T if rows < pixels else dense.T @ dense
    eigenvalues, vectors = torch.linalg.eigh(gram)
    kept = eigenvalues > NEGLIGIBLE * eigenvalues[-1]
    eigenvalues, basis = eigenvalues[kept], vectors[:, kept].T
    if rows < pixels:
        basis = (basis @ dense) / eigenvalues.sqrt()[:, None]
    return DenseSpectrum(eigenvalues, basis)


@torch.no_grad()
def onto_range(
    physics: LinearPhysics, shape: tuple[int, int, int], like: Tensor, largest: float
) -> Callable[[Tensor], Tensor] | None:
    """The orthogonal projection onto the range of A^T, B x C x H x W to the same.

    Args:
        physics: A.
        shape: (C, H, W) of the images.
        like: a tensor whose device and dtype A takes.
        largest: lambda_max(A^T A).

    Returns:
        None where A^T A is no multiple of a projection, and images have more than `PIXELS` numbers
        or A is too large for `dense_spectrum`.
    """

    def normalised(images: Tensor) -> Tensor:
        return physics.A_adjoint(physics.A(images)) / largest

    generator = torch.Generator().manual_seed(0)
    random = torch.randn(1, *shape, generator=generator).to(like.device, like.dtype)
    once = normalised(random)
    if (normalised(once) - once).norm() <= ALIKE * once.norm():
        return normalised
    found = dense_spectrum(physics, shape, like) if random.numel() <= PIXELS else None
    if found is None:
        return None

    def projected(images: Tensor) -> Tensor:
        flat = images.flatten(1).double()
        return (flat @ found.basis.T @ found.basis).view_as(images).to(images.dtype)

    return projected
