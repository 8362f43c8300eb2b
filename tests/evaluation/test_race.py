"""Racing: what is given up, when, and that nothing else changes."""

import numpy as np
import pytest
import torch
from scipy import stats

from dipa_bench.errors import Diverged
from dipa_bench.evaluation import race as module
from dipa_bench.evaluation.evaluate import evaluate
from dipa_bench.evaluation.race import chunk_ends, race, racing_order, significantly_below
from dipa_bench.methods import Direct, Iterative
from dipa_bench.preconditioners import Identity, Preconditioner
from dipa_bench.solvers import PnPFISTA
from dipa_bench.testing.problems import small_task

COUNT = 40


@pytest.fixture(scope="module")
def task():
    return small_task(count=COUNT)


def setting(task, step=1.0, strength=0.05, momentum="textbook", operator=None):
    solver = PnPFISTA(
        task.prior,
        step=step / task.norm_squared(),
        strength=strength,
        iterations=4,
        momentum=momentum,
    )
    return Iterative(solver, operator or Identity())


class Watched:
    """A reconstructor that keeps the sizes of its batches."""

    preconditioner = None

    def __init__(self, inner):
        self.inner = inner
        self.batches = []

    def run(self, measurement, physics, **options):
        self.batches.append(len(measurement))
        return self.inner.run(measurement, physics, **options)


def known(task, error):
    """A direct map whose PSNR is that of the constant `error` on every image."""
    truth = {row.sum().item(): row for row in task.pixels(task.images.validation)}
    measured = {
        y.sum().item(): x
        for y, x in zip(task.measure(task.images.validation), truth.values(), strict=True)
    }

    def restore(measurement, physics):
        return torch.stack([measured[y.sum().item()] for y in measurement]) + error

    return Direct(restore)


def test_order_is_random_and_always_the_same():
    """A permutation that depends on the number of images alone."""
    assert sorted(racing_order(COUNT)) == list(range(COUNT))
    assert racing_order(COUNT) == racing_order(COUNT)
    assert racing_order(COUNT) != sorted(racing_order(COUNT))
    assert racing_order(41)[:8] != racing_order(40)[:8]


@pytest.mark.parametrize(
    ("count", "ends"),
    [(3, [3]), (5, [5]), (6, [5, 6]), (40, [5, 10, 20, 40]), (300, [5, 10, 20, 40, 80, 160, 300])],
)
def test_ends_of_chunks(count, ends):
    """5, 10, 20, ... and what is left."""
    assert chunk_ends(count) == ends


def test_figures_agree_with_evaluate(task):
    """PSNR in the images' order, pooled figure and costs, to the rounding of other batches."""
    one = setting(task)
    (found,) = race([one], task, task.images.validation, None)
    expected = evaluate(one, task, task.images.validation)
    assert found.complete
    torch.testing.assert_close(found.in_order, expected.psnr, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(found.psnr, found.in_order[racing_order(COUNT)])
    figures, wanted = found.check().metrics("val"), expected.metrics("val")
    assert figures.keys() == wanted.keys()
    assert figures.pop("cost/seconds") > 0
    assert figures == pytest.approx({k: v for k, v in wanted.items() if k in figures}, rel=1e-5)
    assert found.estimate == pytest.approx(wanted["val/psnr"], rel=1e-6)


def test_what_is_worse_leaves_off_early(task):
    """After 5 images; its mean is estimated from the incumbent's, its costs are of its images."""
    images = task.images.validation
    good, bad = race(
        [setting(task, strength=3.0), setting(task)], task, images, None, enabled=False
    )
    assert bad.estimate < good.estimate - 3
    watched = Watched(setting(task))
    (found,) = race([watched], task, images, good.psnr)
    assert watched.batches == [5]
    assert not found.complete
    assert found.check() is found
    assert len(found.psnr) == 5
    by_hand = good.psnr.mean() + (bad.psnr[:5] - good.psnr[:5]).mean()
    assert found.estimate == pytest.approx(by_hand.item(), abs=1e-4)
    assert set(found.metrics("val")) == {
        "cost/operator_calls",
        "cost/denoiser_calls",
        "cost/seconds",
    }


def test_a_better_bar_changes_no_numbers(task):
    """The chunks that both ran have the same PSNRs bit for bit, and the same batches."""
    images, watched = task.images.validation, Watched(setting(task, strength=0.4))
    (whole,) = race([watched], task, images, None)
    assert watched.batches == [5, 5, 10, 20]
    incumbent = whole.psnr + 1
    (cut,) = race([watched], task, images, incumbent)
    assert len(cut.psnr) == 5
    assert torch.equal(cut.psnr, whole.psnr[:5])
    assert cut.estimate == pytest.approx(whole.psnr.mean().item(), abs=1e-4)
    (kept,) = race([watched], task, images, incumbent, enabled=False)
    assert torch.equal(kept.psnr, whole.psnr)


def test_better_and_equal_settings_are_kept(task):
    """Against a worse incumbent, and against itself."""
    images = task.images.validation
    (found,) = race([setting(task)], task, images, None)
    for incumbent in (found.psnr - 1, found.psnr):
        assert race([setting(task)], task, images, incumbent)[0].complete


def test_a_batch_races_against_its_own_best(task):
    """Whatever the incumbent; the best is run to the end, the numbers are those of each alone."""
    images = task.images.validation
    members = [setting(task, strength=s) for s in (0.05, 3.0, 0.2)]
    alone = [race([member], task, images, None)[0] for member in members]
    incumbent = alone[0].psnr - 1
    for given in (None, incumbent):
        found = race(members, task, images, given)
        assert [each.complete for each in found] == [False, True, False]
        for each, expected in zip(found, alone, strict=True):
            seen = len(each.psnr)
            torch.testing.assert_close(each.psnr, expected.psnr[:seen], rtol=1e-4, atol=1e-3)
            assert each.operator_calls == expected.operator_calls
        best = alone[1].psnr
        seen = len(found[0].psnr)
        by_hand = best.mean() + (alone[0].psnr[:seen] - best[:seen]).mean()
        assert found[0].estimate == pytest.approx(by_hand.item(), abs=1e-3)


def test_batches_are_bounded(task, monkeypatch):
    """So many images at once that the limit holds; one setting at a time where it must be."""
    sizes = []

    class Seen(Preconditioner):
        def forward(self, gradient, state):
            if state.iteration == 0:
                sizes.append(len(gradient))
            return gradient

    operator = Seen()
    members = [setting(task, strength=s, operator=operator) for s in (0.05, 0.06, 0.07)]
    race(members, task, task.images.validation, None, enabled=False)
    assert sizes == [15, 15, 30, 60]
    sizes.clear()
    monkeypatch.setattr(module, "LARGEST", 10)
    race(members, task, task.images.validation, None, enabled=False)
    assert sizes == [10, 5, 10, 5, 10, 10, 10, 20, 20, 20]


def test_long_chunks_are_cut_into_batches():
    """No batch of one setting has more than 64 images."""
    task = small_task(count=130, shape=(1, 12, 12))
    watched = Watched(setting(task))
    race([watched], task, task.images.validation, None)
    assert watched.batches == [5, 5, 10, 20, 40, 50]
    watched.batches.clear()
    race([watched], task, task.images.validation, None, batch=48)
    assert watched.batches == [5, 5, 10, 20, 40, 48, 2]


def test_what_does_not_race_runs_in_whole_batches(task):
    """With the numbers that it has in chunks, but for rounding, and whatever the incumbent."""
    images, watched = task.images.validation, Watched(setting(task, strength=0.4))
    (chunks,) = race([watched], task, images, None)
    watched.batches.clear()
    (whole,) = race([watched], task, images, chunks.psnr + 1, chunked=False)
    assert watched.batches == [len(images)]
    assert whole.complete
    torch.testing.assert_close(whole.psnr, chunks.psnr, rtol=1e-5, atol=1e-4)
    watched.batches.clear()
    race([watched], task, images, None, chunked=False, batch=16, most=36)
    assert watched.batches == [16, 16, 4]


def test_divergence_ends_a_candidate(task):
    """In the words of an evaluation; the others go on as if it had not been there."""
    images = task.images.validation
    bad = [setting(task, step=1e4), setting(task, step=1e30)]
    good = setting(task)
    lost, gone, kept = race([*bad, good], task, images, None)
    for found in (lost, gone):
        assert not found.complete
        assert np.isnan(found.estimate)
        with pytest.raises(Diverged, match=r"5 of 5 reconstructions left the image range \(worst"):
            found.check()
    assert kept.complete
    (exact,) = race([known(task, 0.0)], task, images, None)
    with pytest.raises(Diverged, match="a reconstruction is the truth"):
        exact.check()


def test_an_exception_is_its_own_candidates(task):
    """Also in a batch, which is then run one by one."""

    class Broken(Preconditioner):
        def forward(self, gradient, state):
            raise RuntimeError("no such kernel")

    broken, good = race(
        [setting(task, operator=Broken()), setting(task)], task, task.images.validation, None
    )
    assert good.complete
    assert not len(broken.psnr)
    with pytest.raises(RuntimeError, match="no such kernel"):
        broken.check()


def test_a_rival_that_diverges_is_no_bar(task):
    """Who was given up for it is estimated from those that are left."""
    images = task.images.validation
    first = {y.sum().item() for y in task.measure(images)[racing_order(COUNT)[:5]]}
    inner = known(task, 0.01)

    def restore(measurement, physics):
        found = inner.map(measurement, physics)
        return torch.stack(
            [
                x if y.sum().item() in first else torch.full_like(x, torch.nan)
                for x, y in zip(found, measurement, strict=True)
            ]
        )

    rival, good = race([Direct(restore), known(task, 0.02)], task, images, None)
    assert isinstance(rival.error, Diverged)
    assert not good.complete
    assert good.estimate == pytest.approx(-20 * np.log10(0.02), abs=1e-2)


def test_a_bar_of_other_images_is_refused(task):
    """Instead of comparing image by image what does not belong together."""
    with pytest.raises(ValueError, match="7 images"):
        race([setting(task)], task, task.images.validation, [20.0] * 7)


def test_signed_ranks():
    """Against the exact distribution by hand: 8 of 8 below has p = 2^-8, signs of 5 : 3 more."""
    ranks = np.arange(1, 9, dtype=float)
    assert significantly_below(-ranks, np.zeros(8))
    assert not significantly_below(ranks, np.zeros(8))
    assert not significantly_below(ranks * [1, -1, 1, -1, 1, -1, 1, -1], np.zeros(8))
    assert not significantly_below(np.zeros(8), np.zeros(8))
    # ranks 2, 3 above: W+ = 5, of 256 sign patterns 10 have at most 5, p = 0.039
    assert significantly_below(ranks * [-1, 1, 1, -1, -1, -1, -1, -1], np.zeros(8))
    # W+ = 6: 14 patterns, p = 0.055
    assert not significantly_below(ranks * [1, 1, 1, -1, -1, -1, -1, -1], np.zeros(8))
    # significantly below by ranks, above in the mean: stays
    skewed = np.array([*np.linspace(-2, -1, 11), 30.0])
    assert stats.wilcoxon(skewed, alternative="less").pvalue < 0.05
    assert not significantly_below(skewed, np.zeros(12))


def dropped(mean, count, runs, seed=0):
    """Share of settings that are given up; their differences to the incumbent have spread 1."""
    generator = np.random.default_rng(seed)

    def leaves(values):
        ends = chunk_ends(count)[:-1]
        return any(significantly_below(values[:end], np.zeros(end)) for end in ends)

    return np.mean([leaves(mean + generator.standard_normal(count)) for _ in range(runs)])


@pytest.mark.exhaustive
def test_how_often_a_good_setting_is_dropped():
    """The docstring's rates, within three standard errors of 600 runs; bad ones do leave."""
    rates = {0.0: 0.085, 0.1: 0.041, 0.25: 0.015, 0.5: 0.002}
    for mean, rate in rates.items():
        assert dropped(mean, COUNT, 600) <= rate + 3 * (rate * (1 - rate) / 600) ** 0.5
    assert dropped(-0.5, COUNT, 200) > 0.6
