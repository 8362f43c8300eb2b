"""A winner as MLflow's Python-function model: the code behind ``models:/STUDY.METHOD/VERSION``.

The model is the winner's run as it was sent: a record in JSON, numbers in safetensors. Nothing of
it is pickled; `dipa_bench.tracking.registry` writes the file that points here.
"""

from __future__ import annotations

import numpy as np
import torch

from dipa_bench.data.signals import is_complex
from dipa_bench.runs import restore
from dipa_bench.runs.reconstruction import as_measurements, estimate
from dipa_bench.runs.restore import LearnedRun


class ReconstructionModel:
    """Turns measurements into images.

    Args:
        run: the winner.
    """

    def __init__(self, run: LearnedRun) -> None:
        self.run = run

    def predict(self, measurements: np.ndarray) -> np.ndarray:
        """Reconstructs a batch.

        Args:
            measurements: B x (shape of one measurement), real or, for `mri`, complex.

        Returns:
            B x C x H x W in the precision of the run; complex B x H x W of complex images.

        Raises:
            UserError: of another shape, or not finite.
        """
        context = self.run.context
        named = {str(number): values for number, values in enumerate(np.asarray(measurements))}
        images = estimate(self.run, context, as_measurements(named, context.task)).cpu()
        if is_complex(images):
            images = torch.view_as_complex(images.movedim(1, -1).contiguous())
        return images.numpy()


def _load_pyfunc(path: str) -> ReconstructionModel:
    """What MLflow calls with the folder of the run's files."""
    return ReconstructionModel(restore.load(path))
