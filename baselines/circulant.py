"""`circulant`: P = F* (d + mu)^-1 F with d the Fourier diagonal of A^T A.

d = diag(F A^T A F*) makes F* d F the circulant matrix nearest to A^T A in the Frobenius norm (T.
Chan, SIAM J. Sci. Stat. Comput. 9, 1988). It is probed as Hutchinson's estimator does, with images
whose Fourier coefficients have random phases and modulus 1: exact for a circulant A^T A whatever
the phases (P is then `hessian`'s), otherwise an average over `PROBES` of them.

Fixed point: not that of the unpreconditioned algorithm, P weighs the data term anew. Cost of an
iteration: two fast Fourier transforms, no application of A beyond the gradient's; a fit makes
`PROBES` + 1 applications of A^T A, and up to 100 more for its bound where d is not exact.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from baselines.hessian import HessianParameters
from dipa_bench.data.signals import is_complex
from dipa_bench.errors import UserError
from dipa_bench.methods import FitContext, Iterative, Method, relative
from dipa_bench.parameters import Value
from dipa_bench.preconditioners import Preconditioner, State
from dipa_bench.tasks.base import Task
from dipa_bench.tasks.spectrum import lanczos

PROBES = 64
BATCH = 16
EXACT = 1e-4  # relative gap of A^T A to F* d F, on one random image, that rounding explains


def transform(images: Tensor) -> Tensor:
    """F of B x C x H x W real images; of complex ones (C = 2) as B x 1 x H x W complex numbers."""
    if is_complex(images):
        images = torch.complex(images[:, :1], images[:, 1:])
    return torch.fft.fft2(images, norm="ortho")


def back(coefficients: Tensor, images: Tensor) -> Tensor:
    """F* in the format of `images`, their dtype included."""
    found = torch.fft.ifft2(coefficients, norm="ortho")
    return torch.cat([found.real, found.imag], dim=1) if is_complex(images) else found.real


class Circulant(Preconditioner):
    """F* (d + mu)^-1 F.

    Args:
        spectrum: d >= 0, 1 x C x H x W (1 x 1 x H x W for complex images).
        mu: absolute damping.
        measured: lambda_max(P A^T A) where F* d F is not A^T A itself; None where it is.
    """

    def __init__(self, spectrum: Tensor, mu: float, measured: float | None = None) -> None:
        super().__init__()
        self.register_buffer("spectrum", spectrum)
        self.mu = mu
        self.measured = measured

    def forward(self, gradient: Tensor, state: State) -> Tensor:
        if gradient.shape[-2:] != self.spectrum.shape[-2:]:
            raise UserError(
                f"this circulant P was made for images of {tuple(self.spectrum.shape[-2:])} "
                f"pixels, not {tuple(gradient.shape[-2:])}: fit it again at that size"
            )
        return back(transform(gradient) / (self.spectrum + self.mu), gradient)

    def root(self, image: Tensor) -> Tensor:
        """P^(1/2) of a B x C x H x W batch."""
        return back(transform(image) / (self.spectrum + self.mu).sqrt(), image)

    def spectral_bound(self, largest: float) -> float:
        return largest / (largest + self.mu) if self.measured is None else self.measured


@torch.no_grad()
def fourier_diagonal(task: Task, seed: int) -> tuple[Tensor, bool]:
    """d of the task's operator, and whether A^T A is F* d F.

    Args:
        task: whose student is probed.
        seed: of the probes.

    Returns:
        d, 1 x C x H x W (complex images: 1 x 1 x H x W), not negative; the flag.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(count: int) -> Tensor:
        noise = torch.randn(count, *task.shape, generator=generator, dtype=torch.float64)
        return noise.to(task.device, task.dtype)

    def normal(images: Tensor) -> Tensor:
        return task.student.A_adjoint(task.student.A(images))

    total = 0.0
    for start in range(0, PROBES, BATCH):
        phases = torch.sgn(transform(draw(min(BATCH, PROBES - start))))
        probes = back(phases, draw(1))
        total = total + (phases.conj() * transform(normal(probes))).real.sum(0, keepdim=True)
    spectrum = (total / PROBES).clamp_min(0)
    image = draw(1)
    expected = normal(image)
    gap = torch.linalg.vector_norm(back(spectrum * transform(image), image) - expected)
    return spectrum, bool(gap <= EXACT * torch.linalg.vector_norm(expected))


def largest_of_product(root: Callable[[Tensor], Tensor], task: Task) -> float:
    """lambda_max(P A^T A) from P^(1/2), by Lanczos on the similar P^(1/2) A^T A P^(1/2).

    Args:
        root: P^(1/2) of B x C x H x W batches.
        task: whose student is A.
    """
    physics = task.student
    return lanczos(
        lambda image: root(physics.A_adjoint(physics.A(root(image)))),
        task.shape,
        task.device,
        task.dtype,
    )


def build(task: Task, parameters: HessianParameters, seed: int = 0) -> Circulant:
    """The operator for a task, its lambda_max(P A^T A) measured where d is not exact."""
    spectrum, exact = fourier_diagonal(task, seed)
    operator = Circulant(spectrum, parameters.mu * task.norm_squared())
    if not exact:
        operator.measured = largest_of_product(operator.root, task)
    return operator


def fit(task: Task, parameters: HessianParameters, context: FitContext) -> Iterative:
    operator = build(task, parameters, context.seed)
    context.notes["exact"] = operator.measured is None
    return context.reconstructor(task, parameters.solve, operator)


def published(task: Task) -> dict[str, Value]:
    """The published solver settings; their absolute step in units of 1/lambda_max(P A^T A).

    Where A^T A is far from circulant, P A^T A is so large that the step would be unstable: at most
    1 over that and RED's weight together.
    """
    operator = build(task, HessianParameters())
    values = relative(task.published_solve(), operator.spectral_bound(task.norm_squared()))
    stable = 1 / (1 + values.get("solve.weight", 0.0))
    return values | {"solve.step": min(values["solve.step"], stable)}


METHOD = Method(
    name="circulant",
    title="Circulant",
    summary="P = F* (d + mu)^-1 F with the probed Fourier diagonal d of A^T A",
    operator="circulant",
    rule="probed",
    paper="T. Chan, An optimal circulant preconditioner, SIAM J. Sci. Stat. Comput. 9, 1988",
    fixed_point="another: the data term is re-weighted by P",
    cost=(
        "2 operator calls, 1 denoiser call, 2 Fourier transforms; 130 operator calls, and 200 "
        "more at most where A^T A is not circulant"
    ),
    contains=("identity",),
    parameters=HessianParameters,
    stochastic=True,
    solver_free=True,
    fit=fit,
    published=published,
)
