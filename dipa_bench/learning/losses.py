"""DIPA's losses, equations (6) to (10), (12), (13); each a mean over the batch.

The paper's text gives no reduction for its squared norms. Here they are means over pixels, which
sets the balance between the terms; weights are recorded with every run.
"""

from __future__ import annotations

from torch import Tensor

TINY = 1e-12


def gradient_alignment(direction: Tensor, teacher_gradient: Tensor) -> Tensor:
    """L_grad = mean of 1 - cos(P(grad f_s(x_s)), grad f_t(x_t)), in [0, 2].

    Both arguments B x C x H x W. A gradient that is exactly zero has no angle: its term is 1.
    """
    a, b = direction.flatten(1), teacher_gradient.flatten(1)
    a = a / (a.norm(dim=1, keepdim=True) + TINY)
    b = b / (b.norm(dim=1, keepdim=True) + TINY)
    return (1 - (a * b).sum(1)).mean()


def imitation(estimate: Tensor, target: Tensor) -> Tensor:
    """||x_s - x_t||^2 (L_imit), or with the true image as target L_sup; mean over pixels."""
    return (estimate - target).square().mean()


def operator_mismatch(
    preconditioned: Tensor, teacher_normal: Tensor, student_step: float, teacher_step: float
) -> Tensor:
    """R(P) = ||(alpha_s P A_s^T A_s - alpha_t A_t^T A_t) x||^2 on clean images, mean over pixels.

    Args:
        preconditioned: P A_s^T A_s x, B x C x H x W.
        teacher_normal: A_t^T A_t x.
        student_step, teacher_step: absolute.
    """
    return (student_step * preconditioned - teacher_step * teacher_normal).square().mean()
