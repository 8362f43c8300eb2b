"""The one place that knows about devices."""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from dipa_bench.errors import UserError

Result = TypeVar("Result")


def resolve(name: str = "auto") -> torch.device:
    """The device for ``auto``, ``cpu``, ``cuda`` or ``cuda:<i>``.

    Raises:
        UserError: a name of another form, or a CUDA device that this machine does not have.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    kind, _, index = name.partition(":")
    if kind != "cuda" or (":" in name and not index.isdecimal()):
        raise UserError(f"device {name!r} is not one of auto, cpu, cuda, cuda:<i>")
    if not torch.cuda.is_available():
        raise UserError(
            f"device {name!r}: this PyTorch ({torch.__version__}) sees no CUDA; "
            "use --device cpu, or install a CUDA build and driver"
        )
    count = torch.cuda.device_count()
    if index and int(index) >= count:
        raise UserError(f"device {name!r}: there are {count} CUDA devices (0 to {count - 1})")
    return torch.device(name)


def describe(device: torch.device) -> str:
    """The device in words, for records and `dipa-bench doctor`."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    count = torch.get_num_threads()
    return "cpu (1 thread)" if count == 1 else f"cpu ({count} threads)"


def reset_peak_memory(device: torch.device) -> None:
    """Starts a new peak on a GPU; a CPU's belongs to the process and cannot be reset."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int:
    """Peak memory, bytes: allocated on a GPU since the reset, else the process's so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def available_memory(device: torch.device) -> int:
    """Bytes that can still be allocated there."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return psutil.virtual_memory().available


def cores() -> int:
    """How many CPU cores this process may use."""
    return len(_own_cores())


def _own_cores() -> set[int]:
    """Numbers of the CPU cores that this process may use."""
    if sys.platform == "linux":
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def busy_cores(seconds: float = 0.3) -> float:
    """How many of them other programs keep busy, watched for so long."""
    import psutil

    own = _own_cores()
    shares = psutil.cpu_percent(interval=seconds, percpu=True)
    return sum(share for core, share in enumerate(shares) if core in own) / 100


def free_threads() -> int | None:
    """Threads that leave other programs theirs; None where torch's own choice stands.

    Two threads beside a busy program are several times slower than one. It stands where the user
    has chosen (OMP_NUM_THREADS), and where all cores are free.
    """
    wanted = torch.get_num_threads()
    if "OMP_NUM_THREADS" in os.environ or wanted == 1:
        return None
    free = max(1, cores() - round(busy_cores()))
    return free if free < wanted else None


@contextmanager
def threads(count: object) -> Iterator[None]:
    """Within it torch uses so many threads of the CPU, if `count` is a number of them."""
    before = torch.get_num_threads()
    if isinstance(count, int) and count > 0:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that an allocation failed, on a GPU or on the host."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    words = ("out of memory", "not enough memory", "can't allocate memory")
    return isinstance(error, RuntimeError) and any(part in str(error).lower() for part in words)


def free_memory(device: torch.device) -> None:
    """Gives back what is allocated and no longer used."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def mixes(device: torch.device) -> bool:
    """Whether networks are trained in mixed precision there: on GPUs with bfloat16 alone."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported()


def mixed(device: torch.device, enabled: bool) -> torch.autocast:
    """A context in which matrix products and convolutions run in bfloat16 if `enabled`."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def timed(work: Callable[[], Result], device: torch.device) -> tuple[Result, float]:
    """What `work` gives, and the seconds it takes on a device."""
    synchronise(device)
    started = time.perf_counter()
    result = work()
    synchronise(device)
    return result, time.perf_counter() - started


def synchronise(device: torch.device) -> None:
    """Waits for queued work, so that clocks read true."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
