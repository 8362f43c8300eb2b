"""The interface of a preconditioning operator, and what it may look at."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from deepinv.physics import LinearPhysics
from torch import Tensor, nn

from dipa_bench.errors import UserError

Shape = tuple[int, int, int]  # (C, H, W)


PER_IMAGE = (
    "iterate",
    "point",
    "measurement",
    "previous_point",
    "residual",
    "gradient",
    "previous_gradient",
)  # fields of a state with one row for each image of a batch


@dataclass(frozen=True)
class State:
    """One run of a solver, as it stands before iteration `iteration`; replaced, never changed.

    Attributes:
        iteration: k = 0, 1, ... of the step about to be taken.
        iterate: x_k, the newest reconstruction, B x C x H x W.
        point: z_k, where the data gradient is taken (differs from x_k by the momentum).
        previous_point: z_(k-1); None at k = 0.
        residual: A z_k - y in the measurement's shape; None until the gradient was taken.
        gradient: A^T (A z_k - y), B x C x H x W; None until it was taken.
        previous_gradient: the gradient at z_(k-1); None at k = 0.
        measurement: y.
        physics: the operator A of this run.
        memory: whatever the preconditioner's `remember` returned last; None at k = 0.
    """

    iteration: int
    iterate: Tensor
    point: Tensor
    measurement: Tensor = field(repr=False)
    physics: LinearPhysics = field(repr=False)
    previous_point: Tensor | None = None
    residual: Tensor | None = None
    gradient: Tensor | None = None
    previous_gradient: Tensor | None = None
    memory: Any = None

    def of_images(self, rows: slice, memory: Any = None) -> State:
        """The state of some images of the batch.

        Args:
            rows: of the batch.
            memory: the preconditioner's of these images.
        """
        fields = {name: getattr(self, name) for name in PER_IMAGE}
        cut = {name: None if field is None else field[rows] for name, field in fields.items()}
        return replace(self, memory=memory, **cut)


class Preconditioner(nn.Module):
    """An operator P that turns a data gradient into a direction of the same shape.

    The contract, which `dipa_bench.testing.PreconditionerContract` ships as tests:

    - ``forward(gradient, state)`` maps B x C x H x W to the same shape, keeps device and dtype, and
      treats each image of the batch by itself;
    - it changes neither its arguments nor itself, so that a step can be replayed. What belongs to
      one run (curvature pairs, past residuals) goes into the run's memory: `remember` returns the
      next one. What belongs to one iteration is a parameter indexed by ``state.iteration``; beyond
      the fitted iterations the last one repeats;
    - ``state_dict`` round-trips.

    Attributes:
        linear: whether P is linear in the gradient (then `dense` gives its matrix).
        operator_calls: applications of A or A^T that one call of `forward` makes.
    """

    linear: bool = True
    operator_calls: int = 0

    def forward(self, gradient: Tensor, state: State) -> Tensor:
        """The direction P(gradient), B x C x H x W."""
        raise NotImplementedError

    def remember(self, gradient: Tensor, state: State) -> Any:
        """The memory that the next iteration's state carries; by default it stays as it is."""
        return state.memory

    def spectral_bound(self, largest: float) -> float | None:
        """lambda_max(P A^T A) where it is known in closed form, else None.

        Steps are given relative to it, or to lambda_max(A^T A) where this is None.

        Args:
            largest: lambda_max(A^T A).
        """
        return None

    @torch.no_grad()
    def dense(self, shape: tuple[int, int, int], state: State) -> Tensor:
        """The n x n matrix of a linear P for images of `shape` (C, H, W), n = C H W.

        P is applied to the unit images as batches of their own size, so a linear operator takes
        nothing that belongs to single images (points, gradients) from `state`.

        Raises:
            UserError: P is not linear.
        """
        if not self.linear:
            raise UserError(f"{type(self).__name__} is not linear: it has no matrix")
        size = shape[0] * shape[1] * shape[2]
        like = state.point
        columns = torch.eye(size, device=like.device, dtype=like.dtype).reshape(size, *shape)
        return torch.cat([self(block, state) for block in columns.split(256)]).reshape(size, size).T


class Learned(Preconditioner):
    """An operator with numbers that learning rules fit; made by an `OperatorSpec`.

    Args:
        copies: entries for single iterations that it holds; iteration k uses entry k, beyond them
            the last.
        shape: (C, H, W) of the images that it is made for; None for any.

    Attributes:
        affine: name of the parameter in which P is linear, if P has that one alone: then least
            squares can find it (`dipa_bench.learning.least_squares`).
    """

    affine: ClassVar[str | None] = None

    def __init__(self, copies: int, shape: Shape | None = None) -> None:
        super().__init__()
        self.copies = copies
        self.shape = None if shape is None else tuple(shape)

    def check(self, gradient: Tensor) -> None:
        """Raises `UserError` for images of another shape than it is made for."""
        if self.shape is not None and tuple(gradient.shape[1:]) != self.shape:
            raise UserError(
                f"this P was fitted for images of shape {self.shape}, not "
                f"{tuple(gradient.shape[1:])}: fit it again at that size"
            )

    def entry(self, state: State) -> int:
        """Which of the copies belongs to the state's iteration."""
        return min(state.iteration, self.copies - 1)


class Identity(Preconditioner):
    """P = I: the unpreconditioned algorithm."""

    def forward(self, gradient: Tensor, state: State) -> Tensor:
        return gradient

    def spectral_bound(self, largest: float) -> float:
        return largest
