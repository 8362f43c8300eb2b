"""The same on a CUDA device as on the CPU: solver, operators, a fit, an interrupted search."""

import pytest
import torch

from baselines.hessian import InverseHessian
from dipa_bench import registry
from dipa_bench.config import study_file
from dipa_bench.config.entry import Entry
from dipa_bench.evaluation.evaluate import evaluate
from dipa_bench.execution.study_folder import claimed, open_context, run_entry, study_folder
from dipa_bench.learning import lmmse
from dipa_bench.learning.teachers import TeacherCache
from dipa_bench.methods import Iterative
from dipa_bench.parameters import build, defaults
from dipa_bench.preconditioners import Identity
from dipa_bench.priors import tv
from dipa_bench.search.callbacks import StudyCallback
from dipa_bench.solvers import REDFISTA, PnPFISTA
from dipa_bench.testing.problems import small_task

DEVICE = "cuda"

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(
        DEVICE == "cuda" and not torch.cuda.is_available(), reason="this machine has no CUDA device"
    ),
]


def tasks(**options):
    """The same task on the CPU and on the device."""
    return small_task(**options), small_task(device=DEVICE, **options)


def test_measurements_are_the_same():
    """The noise is drawn on the CPU, so it does not depend on the device."""
    here, there = tasks(noise=0.1)
    found = there.measure(there.images.train)
    assert found.device.type == DEVICE
    torch.testing.assert_close(found.cpu(), here.measure(here.images.train), rtol=1e-4, atol=1e-5)
    assert there.norm_squared() == pytest.approx(here.norm_squared(), rel=1e-5)
    assert there.digest == here.digest


@pytest.mark.parametrize("kind", [PnPFISTA, REDFISTA])
@pytest.mark.parametrize("factor", [4, 3])
@pytest.mark.parametrize("damping", [None, 0.01])
def test_solver(kind, factor, damping):
    """Estimates and curves with the identity and with both ways of inverting the Hessian."""
    results = []
    for task in tasks(options={"factor": factor}, dtype=torch.float64):
        extra = {"weight": 0.05} if kind is REDFISTA else {}
        step = 0.9 / task.norm_squared() if damping is None else 0.9
        solver = kind(task.prior, step=step, strength=0.05, iterations=5, **extra)
        operator = Identity() if damping is None else InverseHessian(damping)
        images = task.images.validation
        results.append(evaluate(Iterative(solver, operator), task, images, record=True))
    here, there = results
    torch.testing.assert_close(there.estimates, here.estimates, rtol=1e-4, atol=1e-5)
    for name in ("mse", "residual", "step_norm"):
        found, expected = getattr(there.curves, name), getattr(here.curves, name)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_total_variation():
    """The prior without weights, thresholds per image."""
    v = torch.rand(3, 1, 16, 16)
    thresholds = torch.tensor([0.01, 0.1, 0.5]).view(3, 1, 1, 1)
    found = tv.SPEC.build()(v.to(DEVICE), thresholds.to(DEVICE))
    expected = tv.SPEC.build()(v, thresholds)
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-5)


def test_lmmse():
    """The fitted map."""
    estimates = []
    for task in tasks(dtype=torch.float64):
        estimates.append(lmmse.fit(task)(task.measure(task.images.validation)).cpu())
    torch.testing.assert_close(*estimates, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", registry.names("methods"))
def test_every_method(name, context, tmp_path):
    """Fitted and evaluated there and here: mean PSNR within 0.05 dB (0.2 where networks are trained
    in bfloat16); the state stays there."""
    method, quality = registry.get("methods", name), []
    for task in tasks(noise=0.0, count=8):
        found = context(3, epochs=3, batch_size=4)
        found.teachers = TeacherCache(tmp_path / str(task.device))
        values = defaults(method.parameters, task.solver, task)
        if reason := method.unsuitable(task, build(method.parameters, values)):
            pytest.skip(reason)
        made = method.fit(task, build(method.parameters, values), found)
        if made.module is not None:
            state = made.module.state_dict().values()
            assert {part.device.type for part in state} <= {task.device.type}
        result = evaluate(made, task, task.images.validation).check()
        quality.append(result.psnr.mean().item())
    exact = found.notes.get("precision", "full") == "full"
    assert quality[1] == pytest.approx(quality[0], abs=0.05 if exact else 0.2)


class Stopping(StudyCallback):
    """Presses Ctrl-C in the second epoch of the second trial."""

    def __init__(self):
        self.trial = None

    def run(self, kind, entry, number):
        self.trial = number if kind == "trial" else None

    def epoch(self, progress):
        if self.trial == 1 and progress.epoch == 2:
            raise KeyboardInterrupt


def row_on(device, root, callback=None):
    """Two trials of L-DIPA and its test, below `root`."""
    raw = study_file.read("sr", None)
    budget = ["train_images=6", "epochs=3", "final_epochs=3", "batch_size=3"]
    study = study_file.resolve(
        raw,
        task="sr",
        methods="identity,ldipa",
        trials=2,
        name="cuda",
        sets=[f"budget.{item}" for item in budget],
    )
    task = small_task(device=device, noise=0.01)
    with claimed(study_folder(root, study.name)):
        context = open_context(study, root, task)
        return run_entry(context, Entry.of(study, "ldipa"), callback or StudyCallback())


def test_a_search_row_and_its_resumption(tmp_path):
    """Interrupted in the second trial and continued, it ends as the uninterrupted one does."""
    here = row_on("cpu", tmp_path / "here")
    there = row_on(DEVICE, tmp_path / "there")
    with pytest.raises(KeyboardInterrupt):
        row_on(DEVICE, tmp_path / "stopped", Stopping())
    resumed = row_on(DEVICE, tmp_path / "stopped")
    assert here.state == there.state == resumed.state == "finished"
    assert there.environment["device"].startswith(DEVICE)
    assert there.params == resumed.params
    for name in ("val/psnr", "test/psnr", "test/ssim"):
        assert resumed.metrics[name] == pytest.approx(there.metrics[name], abs=0.01)
        assert there.metrics[name] == pytest.approx(here.metrics[name], abs=0.1)
