"""What a run leaves behind: tables, tensors and pictures beside its record, and short curves."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from dipa_bench.data.signals import is_complex, magnitude
from dipa_bench.evaluation.evaluate import Evaluation
from dipa_bench.evaluation.metrics import psnr_of_mse
from dipa_bench.methods import FitContext, Method, Reconstructor
from dipa_bench.parameters import Value
from dipa_bench.tasks.base import Task
from dipa_bench.tracking.wording import thinned

LARGEST_MATRIX = 4096  # pixels: 64 MiB of float32 as a dense picture of P
PICTURES = 4  # test images whose reconstructions are kept
SHOWN = ("pictures.safetensors", "matrix.safetensors")  # of the first seed, for its method


def keep_run(
    place: Path,
    number: int,
    method: Method,
    reconstructor: Reconstructor,
    evaluation: Evaluation,
    task: Task,
) -> None:
    """Writes a tested seed's tables and operator, and of seed 0 pictures and the operator's matrix.

    Args:
        place: the seed's run folder.
        number: index of the seed.
        method: that was fitted.
        reconstructor: what it gave.
        evaluation: on the test images, with curves.
        task: the task.
    """
    evaluation.image_table(number).to_parquet(place / "images.parquet", index=False)
    evaluation.curve_table(number).to_parquet(place / "curves.parquet", index=False)
    operator = reconstructor.preconditioner
    state = {} if operator is None else operator.state_dict()
    if state:
        plain = {name: value.detach().cpu().contiguous() for name, value in state.items()}
        save_file(plain, place / "operator.safetensors")
    if number == 0:
        _keep_pictures(place, evaluation, task)
        _keep_matrix(place, method, reconstructor, task)


def count_parameters(reconstructor: Reconstructor) -> int:
    """Numbers in the operator's state: its parameters and fitted buffers."""
    operator = reconstructor.preconditioner
    return 0 if operator is None else sum(part.numel() for part in operator.state_dict().values())


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
    save_file(plain, folder / "pictures.safetensors")


def _keep_matrix(place: Path, method: Method, reconstructor: Reconstructor, task: Task) -> None:
    """Writes a learned linear operator with at least H W numbers as its dense matrix.

    Of one that treats all channels alike, the matrix of one channel.
    """
    operator = reconstructor.preconditioner
    size = math.prod(task.shape)
    pixels = size // task.shape[0]
    wanted = method.learned and operator is not None and operator.linear
    if not wanted or not pixels <= count_parameters(reconstructor) or size > LARGEST_MATRIX:
        return
    solver = getattr(reconstructor, "solver", None)
    measured = task.measure(task.images.validation.first(1))
    state = solver.start(measured, task.student, operator)
    matrix = _of_one_channel(operator.dense(task.shape, state), task.shape[0])
    save_file({"P": matrix.cpu().float().contiguous()}, place / "matrix.safetensors")


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
