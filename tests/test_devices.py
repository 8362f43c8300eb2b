"""Names of devices."""

import subprocess
import sys
import time

import pytest
import torch

from dipa_bench import devices
from dipa_bench.errors import UserError


@pytest.fixture(params=[0, 2])
def cuda(request, monkeypatch):
    """A machine with that many CUDA devices, as PyTorch would tell."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: request.param > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: request.param)
    return request.param


def test_auto_takes_what_is_there(cuda):
    """CUDA where there is one, else the CPU."""
    assert devices.resolve("auto") == torch.device("cuda" if cuda else "cpu")
    assert devices.resolve() == devices.resolve("auto")


def test_cpu_is_always_there(cuda):
    """Whatever else the machine has."""
    assert devices.resolve("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:1.5", "", "CPU"])
def test_bad_names(cuda, name):
    """The message lists the valid forms."""
    with pytest.raises(UserError, match="not one of auto, cpu, cuda, cuda:<i>"):
        devices.resolve(name)


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:1"])
def test_cuda_by_name(cuda, name):
    """Found, or a line that says how to go on without."""
    if cuda:
        assert devices.resolve(name) == torch.device(name)
    else:
        with pytest.raises(UserError, match=r"sees no CUDA.*--device cpu"):
            devices.resolve(name)


def test_an_index_too_high(cuda):
    """The message says how many there are."""
    with pytest.raises(UserError, match=r"2 CUDA devices \(0 to 1\)" if cuda else "sees no CUDA"):
        devices.resolve("cuda:2")


def test_peak_memory_is_in_bytes():
    """Resident memory: more than an interpreter without PyTorch, less than the machine's."""
    import psutil

    found = devices.peak_memory(torch.device("cpu"))
    assert 50e6 < found < psutil.virtual_memory().total
    assert found >= 0.5 * psutil.Process().memory_info().rss


def test_descriptions():
    """The CPU with its threads."""
    for count, words in ((1, "1 thread"), (2, "2 threads")):
        with devices.threads(count):
            assert devices.describe(torch.device("cpu")) == f"cpu ({words})"
    devices.synchronise(torch.device("cpu"))


@pytest.mark.parametrize(
    ("busy", "wanted", "chosen"),
    [(0.1, 4, None), (1.1, 4, 3), (2.6, 4, 1), (9.0, 4, 1), (2.0, 1, None), (1.0, 2, None)],
)
def test_other_programs_keep_their_cores(busy, wanted, chosen, monkeypatch):
    """Of four cores; never more threads than torch would take, and at least one."""
    monkeypatch.setattr(devices, "cores", lambda: 4)
    monkeypatch.setattr(devices, "busy_cores", lambda: busy)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with devices.threads(wanted):
        assert devices.free_threads() == chosen
        monkeypatch.setenv("OMP_NUM_THREADS", str(wanted))
        assert devices.free_threads() is None


def test_a_busy_core_is_seen():
    """Of a program that does nothing but count."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as program:
        try:
            time.sleep(0.2)
            assert devices.busy_cores(0.5) > 0.3
        finally:
            program.kill()
