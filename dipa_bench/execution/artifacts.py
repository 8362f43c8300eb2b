"""What a run leaves behind: tables, tensors and pictures beside its record, and short curves."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from dipa_bench import names
from dipa_bench.data.signals import is_complex, magnitude
from dipa_bench.errors import brief
from dipa_bench.evaluation import jacobian
from dipa_bench.evaluation.evaluate import Evaluation
from dipa_bench.methods import FitContext, Method, Reconstructor, fitted_module
from dipa_bench.metrics import psnr_of_mse
from dipa_bench.parameters import Value
from dipa_bench.tasks.base import Task
from dipa_bench.tracking.mlflow_format import thinned

LARGEST_MATRIX = 4096  # pixels: 64 MiB of float32 as a dense picture of P
PICTURES = 4  # test images whose reconstructions are kept


def keep_run(
    place: Path,
    number: int,
    method: Method,
    reconstructor: Reconstructor,
    evaluation: Evaluation,
    task: Task,
) -> dict[str, Value]:
    """Writes a tested seed's tables and operator; of seed 0 also pictures, P's matrix and spectra.

    Args:
        place: the seed's run folder.
        number: index of the seed.
        method: that was fitted.
        reconstructor: what it gave.
        evaluation: on the test images, with curves.
        task: the task.

    Returns:
        Notes for the record: why there are no spectra of P, where that failed.
    """
    evaluation.image_table(number).to_parquet(place / names.IMAGES, index=False)
    evaluation.curve_table(number).to_parquet(place / names.CURVES, index=False)
    state = state_of(reconstructor)
    if state:
        plain = {name: value.detach().cpu().contiguous() for name, value in state.items()}
        save_file(plain, place / names.OPERATOR)
    if number:
        return {}
    _keep_pictures(place, evaluation, task)
    if not _has_structure(method, reconstructor, task):
        return {}
    _keep_matrix(place, reconstructor, task)
    return _keep_linearisation(place, reconstructor, task)


def count_parameters(reconstructor: Reconstructor) -> int:
    """Numbers in what was fitted: its parameters and fitted buffers."""
    return sum(part.numel() for part in state_of(reconstructor).values())


def state_of(reconstructor: Reconstructor) -> dict[str, Tensor]:
    """The numbers that a fit made; none where there is nothing to store."""
    module = fitted_module(reconstructor)
    return {} if module is None else module.state_dict()


def _keep_pictures(folder: Path, evaluation: Evaluation, task: Task) -> None:
    """Original, measurement and reconstruction of some test images as gray, clipped to [0, 1]."""
    shown = evaluation.images.first(PICTURES)
    measured = task.measure(shown)
    truth = task.pixels(shown)
    if is_complex(truth) or measured.dim() != 4 or measured.shape[1] != task.shape[0]:
        measured = task.student.A_adjoint(measured)  # measurements that are no picture
        size = magnitude(measured).abs().amax((1, 2, 3), keepdim=True)
        measured = measured / size.clamp_min(torch.finfo(size.dtype).tiny)
    pictures = {}
    for index, name in enumerate(shown.names):
        place = evaluation.images.names.index(name)
        pictures |= {
            f"original/{name}": shown.pixels[index],
            f"measurement/{name}": measured[index].cpu(),
            f"reconstruction/{name}": evaluation.estimates[place],
        }
    plain = {
        name: magnitude(picture[None])[0].float().mean(0).clamp(0, 1).contiguous()
        for name, picture in pictures.items()
    }
    save_file(plain, folder / names.PICTURES)


def _has_structure(method: Method, reconstructor: Reconstructor, task: Task) -> bool:
    """Whether an operator was learned that is worth a look: a network, or of at least H W numbers.

    One outside of the common iteration has no state to be looked at.
    """
    operator = reconstructor.preconditioner
    if not method.learned or operator is None or getattr(reconstructor, "solver", None) is None:
        return False
    pixels = math.prod(task.shape[1:])
    return not operator.linear or pixels <= count_parameters(reconstructor)


def _keep_matrix(place: Path, reconstructor: Reconstructor, task: Task) -> None:
    """Writes a linear operator as its dense matrix.

    Of one that treats all channels alike, the matrix of one channel.
    """
    operator = reconstructor.preconditioner
    if not operator.linear or math.prod(task.shape) > LARGEST_MATRIX:
        return
    measured = task.measure(task.images.validation.first(1))
    state = reconstructor.solver.start(measured, task.student, operator)
    matrix = _of_one_channel(operator.dense(task.shape, state), task.shape[0])
    save_file({"P": matrix.cpu().float().contiguous()}, place / names.MATRIX)


def _keep_linearisation(place: Path, reconstructor: Reconstructor, task: Task) -> dict[str, Value]:
    """Writes the operator's spectra, and a network's Jacobian, half way through a validation run.

    Returns:
        Notes: why there is none, where an operator could not be linearised. A stranger's may fail
        in any way, which is no fault of its reconstructions.
    """
    size = math.prod(task.shape)
    if size > jacobian.LARGEST:
        return {"linearisation": f"none: {size:,} numbers an image, at most {jacobian.LARGEST:,}"}
    image, operator = task.images.validation.first(1), reconstructor.preconditioner
    try:
        state = jacobian.reference_state(
            reconstructor.solver, task.measure(image), task.student, operator
        )
        found = jacobian.linearise(operator, state)
    except Exception as error:
        return {"linearisation": f"none: {brief(error)}"}
    tensors = {
        "singular": found.singular,
        "symmetric": found.symmetric,
        "product_real": found.product.real,
        "product_imag": found.product.imag,
    } | ({} if operator.linear else {"J": found.matrix})
    facts = {
        "image": str(image.names[0]),
        "iteration": str(state.iteration),
        "derivative": "exact" if found.exact else "finite differences",
    }
    plain = {name: value.float().contiguous() for name, value in tensors.items()}
    save_file(plain, place / names.LINEARISATION, metadata=facts)
    return {}


def _of_one_channel(matrix: Tensor, channels: int) -> Tensor:
    """The block that stands for every channel where channels do not mix, else the whole matrix."""
    pixels = len(matrix) // channels
    block = matrix[:pixels, :pixels]
    alike = torch.equal(matrix, torch.block_diag(*[block] * channels))
    return block if alike else matrix


def curves_of(context: FitContext, evaluation: Evaluation | None) -> dict:
    """A run's curves for its record: the fit's own, and means over the images by iteration."""
    series = dict(context.series)
    if evaluation is not None and evaluation.curves is not None:
        series |= _curve_means(evaluation)
    return {str(name): thinned(_finite(points)) for name, points in series.items()}


def _curve_means(evaluation: Evaluation) -> dict[str, list[tuple[int, float]]]:
    """Mean PSNR and residual over the images at each iteration."""
    curves = evaluation.curves
    quality = psnr_of_mse(curves.mse).mean(1)
    residual = curves.residual.mean(1)
    return {
        "psnr_by_iteration": list(enumerate(quality.tolist())),
        "residual_by_iteration": list(enumerate(residual.tolist())),
    }


def _finite(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """The points with a finite value, as plain numbers."""
    plain = [(int(step), float(value)) for step, value in points]
    return [point for point in plain if math.isfinite(point[1])]


def notes_of(context: FitContext) -> dict[str, Value]:
    """A fit's notes as plain values; what is none (a plug-in's tensor) becomes text."""
    return {str(name): _plain(value) for name, value in context.notes.items()}


def _plain(value: object) -> Value:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)[:200]
