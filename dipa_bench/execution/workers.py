"""Who does a study's jobs: this process, some of its own, or a cluster's."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from dipa_bench import devices
from dipa_bench.errors import UserError
from dipa_bench.execution import cluster
from dipa_bench.execution.cluster import DaskPool
from dipa_bench.execution.context import StudyContext
from dipa_bench.execution.jobs import JobCallback, Setup
from dipa_bench.execution.pool import Inline, Pool
from dipa_bench.execution.processes import Processes, share_resources

MEMORY = 2 * 2**30  # bytes of the host that `auto` leaves to each worker
AUTO = "auto"


@dataclass(frozen=True)
class WorkerConfig:
    """Workers as the user asked for them.

    Attributes:
        count: of processes on this machine; 1 is this process itself.
        cluster: a Dask cluster instead, as the user named it.
    """

    count: int = 1
    cluster: str | None = None

    @property
    def parallel(self) -> bool:
        """Whether jobs are done beside this process."""
        return self.count > 1 or self.cluster is not None

    @contextlib.contextmanager
    def pool(self, context: StudyContext, job_callback: JobCallback) -> Iterator[Pool]:
        """The workers, for as long as the context lasts.

        Raises:
            UserError: the cluster does not answer, or has no workers.
        """
        study = context.study.model_dump(mode="json")
        where = context.task.device
        if self.cluster is not None:
            setup = Setup(study, None, None, AUTO)
            with (
                cluster.connected(self.cluster) as client,
                DaskPool(client, setup, job_callback) as pool,
            ):
                yield pool
        elif self.count > 1:
            setup = Setup(study, context.folder, context.teachers.folder, str(where))
            with Processes(share_resources(setup, self.count, _gpus(where)), job_callback) as pool:
                yield pool
        else:
            yield Inline(context, job_callback)


def worker_config(workers: str | None, where: torch.device, on_cluster: str | None) -> WorkerConfig:
    """The workers that ``--workers`` and ``--cluster`` ask for.

    Args:
        workers: a number, or ``auto``: one for each GPU, or for each core as far as memory goes;
            None for this process alone.
        where: the device.
        on_cluster: as ``--cluster`` says.

    Raises:
        UserError: no number, or both options.
    """
    if on_cluster is not None:
        if workers is not None:
            raise UserError("--cluster has workers of its own: drop --workers")
        return WorkerConfig(cluster=on_cluster)
    if workers is None:
        return WorkerConfig()
    if workers == AUTO:
        room = devices.available_memory(torch.device("cpu")) // MEMORY
        return WorkerConfig(max(1, len(_gpus(where)) or min(devices.cores(), room)))
    if not workers.isdecimal() or not int(workers):
        raise UserError(f"--workers {workers!r}: give a number from 1, or auto")
    return WorkerConfig(int(workers))


def _gpus(where: torch.device) -> list[str]:
    """The GPUs that workers share out, as CUDA_VISIBLE_DEVICES names them; none on a CPU."""
    if where.type != "cuda":
        return []
    named = [part for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part]
    names = named or [str(number) for number in range(torch.cuda.device_count())]
    return names if where.index is None else [names[where.index]]
