"""Plants faults in a copy of the code, one at a time: the suite has to fail for each.

    python tests/soak/faults.py                  # all of them, an hour on 2 cores
    python tests/soak/faults.py --only solvers   # those whose file has this in its path

Each fault is one replacement in one file, with the tests that should see it. Exit code 0: every
fault was caught. A fault whose text is no longer in its file is an error, so that the list stays
true.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
COPIED = ("dipa_bench", "baselines", "dashboards", "studies", "tests", "docs")


@dataclass(frozen=True)
class Fault:
    """One replacement.

    Attributes:
        what: in words.
        file: below the repository.
        old, new: text; `old` stands in the file exactly once.
        tests: paths that should fail.
    """

    what: str
    file: str
    old: str
    new: str
    tests: str


SOLVERS, LEARNING, SEARCH = "tests/solvers", "tests/learning", "tests/search"
STATISTICS, COMPARISON = "tests/test_statistics.py", "tests/reports/test_comparison.py"
FAULTS = [
    # ------------------------------------------------------------------- cross-fitting, ranges
    Fault(
        "a fold's map is fitted on all images",
        "dipa_bench/learning/cross_fitting.py",
        "self._fit(without(self._images, held_out))",
        "self._fit(self._images)",
        LEARNING,
    ),
    Fault(
        "a subject is in two folds",
        "dipa_bench/learning/cross_fitting.py",
        "        members[subject].append(place)",
        "        members[images.subjects[max(0, place - 1)]].append(place)",
        LEARNING,
    ),
    Fault(
        "training images start in sample",
        "dipa_bench/learning/unrolling.py",
        "first = None if self._starts is None else self._starts[place]",
        "first = None",
        LEARNING,
    ),
    Fault(
        "a closed form is left as it is without the last fold",
        "dipa_bench/learning/cross_fitting.py",
        "                numbers.copy_(kept)",
        "                pass",
        LEARNING,
    ),
    Fault(
        "the strength falls one iteration too fast",
        "dipa_bench/solvers/base.py",
        "iteration / (self.iterations - 1) - 0.5",
        "iteration / max(1, self.iterations - 2)",
        SOLVERS,
    ),
    Fault(
        "a row's draws depend on its name",
        "dipa_bench/search/trials.py",
        'context.seed("search")',
        'context.seed(self._entry.name, "search")',
        SEARCH,
    ),
    # ------------------------------------------------------------------------------- solvers
    Fault(
        "the direction is added instead of subtracted",
        "dipa_bench/solvers/base.py",
        "return torch.sub(point, direction, alpha=step)",
        "return torch.add(point, direction, alpha=step)",
        SOLVERS,
    ),
    Fault(
        "RED's residual has the wrong sign",
        "dipa_bench/solvers/fista.py",
        "point - self.prior(point, self.strength_at(iteration))",
        "self.prior(point, self.strength) - point",
        SOLVERS,
    ),
    Fault(
        "momentum is one iteration late",
        "dipa_bench/solvers/momentum.py",
        "return iteration / (iteration + 1 + OFFSET)",
        "return (iteration + 1) / (iteration + 2 + OFFSET)",
        SOLVERS,
    ),
    Fault(
        "the published momentum is the textbook's",
        "dipa_bench/solvers/momentum.py",
        "return (iteration + OFFSET - 1) / (iteration + OFFSET)",
        "return iteration / (iteration + 1 + OFFSET)",
        SOLVERS,
    ),
    Fault(
        "the residual is y - A z",
        "dipa_bench/solvers/base.py",
        "residual = state.physics.A(state.point) - state.measurement",
        "residual = state.measurement - state.physics.A(state.point)",
        SOLVERS,
    ),
    Fault(
        "the gradient is taken at the iterate, not at the extrapolated point",
        "dipa_bench/solvers/base.py",
        "residual = state.physics.A(state.point)",
        "residual = state.physics.A(state.iterate)",
        SOLVERS,
    ),
    Fault(
        "one iteration too few",
        "dipa_bench/solvers/base.py",
        "for iteration in range(self.iterations):",
        "for iteration in range(self.iterations - 1):",
        SOLVERS,
    ),
    Fault(
        "an iteration counts one operator call too few",
        "dipa_bench/solvers/base.py",
        "each = 2 + preconditioner.operator_calls",
        "each = 1 + preconditioner.operator_calls",
        SOLVERS,
    ),
    # ------------------------------------------------------------------------------ learning
    Fault(
        "the cosine is rewarded for being small",
        "dipa_bench/learning/losses.py",
        "return (1 - (a * b).sum(1)).mean()",
        "return (1 + (a * b).sum(1)).mean()",
        LEARNING,
    ),
    Fault(
        "the operators' mismatch adds the teacher's",
        "dipa_bench/learning/losses.py",
        "student_step * preconditioned - teacher_step * teacher_normal",
        "student_step * preconditioned + teacher_step * teacher_normal",
        LEARNING,
    ),
    Fault(
        "the last epoch's operator is kept, not the best one's",
        "dipa_bench/learning/unrolling.py",
        "if quality > self._best:",
        "if True:",
        LEARNING,
    ),
    Fault(
        "the order of the images does not depend on the seed",
        "dipa_bench/learning/unrolling.py",
        "torch.Generator().manual_seed(context.seed)",
        "torch.Generator().manual_seed(0)",
        LEARNING,
    ),
    Fault(
        "an exploded loss goes on",
        "dipa_bench/learning/unrolling.py",
        "if not math.isfinite(number) or number > EXPLODED",
        "if not math.isfinite(number) or number > 1e300 * EXPLODED",
        LEARNING,
    ),
    Fault(
        "training validates on the training images",
        "dipa_bench/learning/unrolling.py",
        "task.images.validation.first(context.budget.validation_images)",
        "task.images.train.first(context.budget.validation_images)",
        LEARNING,
    ),
    Fault(
        "a resumed fit forgets its optimiser's moments",
        "dipa_bench/learning/unrolling.py",
        'for name, part in _below(tensors, "optimizer/").items():',
        'for name, part in _below(tensors, "nothing/").items():',
        LEARNING,
    ),
    Fault(
        "the LMMSE map forgets the noise",
        "dipa_bench/learning/lmmse.py",
        "(task.noise**2 + ridge * variance) * eye",
        "(ridge * variance) * eye",
        LEARNING,
    ),
    Fault(
        "the LMMSE map is not centred",
        "dipa_bench/learning/lmmse.py",
        "centred = (measurement - self.measured_mean).flatten(1)",
        "centred = measurement.flatten(1)",
        LEARNING,
    ),
    Fault(
        "a greedy operator is fitted on the start's iterates alone",
        "dipa_bench/learning/greedy.py",
        "states = [solver.advance(state, operator) for state in states]",
        "states = list(states)",
        f"{LEARNING} tests/baselines",
    ),
    Fault(
        "a teacher is tuned with the worst pair",
        "dipa_bench/learning/teachers.py",
        "pairs[int(means.argmax())]",
        "pairs[int(means.argmin())]",
        LEARNING,
    ),
    Fault(
        "the teacher measures with the student's operator",
        "dipa_bench/learning/teachers.py",
        "for measured in task.measure(images, label).split(BATCH):",
        "for measured in task.measure(images).split(BATCH):",
        LEARNING,
    ),
    # -------------------------------------------------------------------------------- search
    Fault(
        "the worst trial wins",
        "dipa_bench/search/outcome.py",
        'return max(finished, key=lambda trial: (trial.metrics["val/psnr"], -trial.index)',
        'return min(finished, key=lambda trial: (trial.metrics["val/psnr"], -trial.index)',
        SEARCH,
    ),
    Fault(
        "of equal trials the last wins",
        "dipa_bench/search/outcome.py",
        'key=lambda trial: (trial.metrics["val/psnr"], -trial.index)',
        'key=lambda trial: (trial.metrics["val/psnr"], trial.index)',
        SEARCH,
    ),
    # ------------------------------------------------------------------- tune, fit, tune
    Fault(
        "a fit is given the settings of what was fitted before",
        "dipa_bench/execution/attempt.py",
        "trained = parameters.build(method.parameters, record.params | record.fitted_at)",
        "trained = parameters.build(method.parameters, record.params)",
        SEARCH,
    ),
    Fault(
        "the winner forgets where it was fitted",
        "dipa_bench/search/outcome.py",
        '"fitted_at": winner.fitted_at,',
        '"fitted_at": {},',
        SEARCH,
    ),
    Fault(
        "what is not fitted yet may win",
        "dipa_bench/execution/attempt.py",
        'initial = self._record.stage == "settings" and self._entry.fits',
        "initial = False",
        SEARCH,
    ),
    Fault(
        "fits do not begin at the best settings",
        "dipa_bench/search/tuning.py",
        "return max(longest, key=lambda record: (psnr_of(record), -record.index), default=None)",
        "return min(longest, key=lambda record: (psnr_of(record), -record.index), default=None)",
        SEARCH,
    ),
    Fault(
        "candidates are of the best's branch alone",
        "dipa_bench/search/candidates.py",
        "for branch in space.branches:",
        "for branch in space.branches[:1]:",
        SEARCH,
    ),
    Fault(
        "a trust region climbs down",
        "dipa_bench/search/settings_tuner.py",
        "return -found",
        "return found",
        SEARCH,
    ),
    Fault(
        "the surrogate is shown what is bad as it is",
        "dipa_bench/search/surrogate.py",
        "raised = np.maximum(values, floor)",
        "raised = values",
        SEARCH,
    ),
    Fault(
        "what few images do not tell apart is told apart by them",
        "dipa_bench/search/settings_tuner.py",
        "            if far and known.alike(found[0], one, few):",
        "            if not found:",
        SEARCH,
    ),
    Fault(
        "the first strength of a schedule is taken for its last",
        "dipa_bench/search/unit_cube.py",
        "values[mean] - half, values[mean] + half",
        "values[mean] + half, values[mean] - half",
        SEARCH,
    ),
    Fault(
        "what does not race runs in the chunks of a race",
        "dipa_bench/evaluation/race.py",
        "for end in chunk_ends(total) if chunked else [total]:",
        "for end in chunk_ends(total):",
        "tests/evaluation/test_race.py",
    ),
    Fault(
        "what runs is asked for again",
        "dipa_bench/search/settings_tuner.py",
        "if params_key(one.params) not in busy",
        "if params_key(one.params)",
        SEARCH,
    ),
    Fault(
        "one trial too few",
        "dipa_bench/search/trials.py",
        "trial = self._queue.next(stage.count, self.ended, stage.first)",
        "trial = self._queue.next(stage.count and stage.count - 1, self.ended, stage.first)",
        SEARCH,
    ),
    Fault(
        "an interrupted trial counts",
        "dipa_bench/search/trials.py",
        'if record.state not in ("interrupted", "running")',
        'if record.state != "running"',
        SEARCH,
    ),
    Fault(
        "a trial is tested instead of validated",
        "dipa_bench/execution/trials.py",
        "images = context.task.images.validation\n",
        'images = context.task.images.test("a trial")\n',
        SEARCH,
    ),
    Fault(
        "a read of the test images is not logged",
        "dipa_bench/search/winner_test.py",
        "        log_read(folder, reason)\n",
        "",
        f"{SEARCH} tests/cli/processes/test_shared.py",
    ),
    Fault(
        "a failed trial has a value for Optuna",
        "dipa_bench/search/journal.py",
        '"failed": TrialState.FAIL,',
        '"failed": TrialState.PRUNED,',
        SEARCH,
    ),
    Fault(
        "halving gives up the best",
        "dipa_bench/search/pruning.py",
        "value > trial.intermediate_values[step]",
        "value < trial.intermediate_values[step]",
        SEARCH,
    ),
    Fault(
        "draws do not depend on the index",
        "dipa_bench/config/space.py",
        "engine.fast_forward(index)",
        "engine.fast_forward(1)",
        SEARCH,
    ),
    # --------------------------------------------------------------------- measuring, statistics
    Fault(
        "decibels of the wrong sign",
        "dipa_bench/metrics.py",
        "return -10 * torch.log10(mse)",
        "return 10 * torch.log10(mse)",
        "tests/test_metrics.py",
    ),
    Fault(
        "PSNR pools over the batch",
        "dipa_bench/metrics.py",
        ".flatten(1).square().mean(1)",
        ".flatten(1).square().mean().expand(len(estimate))",
        "tests/test_metrics.py",
    ),
    Fault(
        "SSIM has a sample covariance",
        "dipa_bench/metrics.py",
        "use_sample_covariance=False",
        "use_sample_covariance=True",
        "tests/test_metrics.py",
    ),
    Fault(
        "intervals forget searches and fits",
        "dipa_bench/reports/comparison.py",
        "    total = max(*parts, sum(parts) - rest)",
        "    total = parts[0]",
        COMPARISON,
    ),
    Fault(
        "p-values are not corrected for the rows",
        "dipa_bench/reports/comparison.py",
        "np.arange(len(order), 0, -1)",
        "np.ones(len(order))",
        COMPARISON,
    ),
    Fault(
        "equivalence by one of the two tests",
        "dipa_bench/reports/comparison.py",
        "        inside = margin - abs(self.mean)",
        "        inside = margin - self.mean",
        COMPARISON,
    ),
    Fault(
        "replicates are paired with others",
        "dipa_bench/reports/comparison.py",
        "        ours, theirs = ours[both], theirs[both]",
        "        ours, theirs = ours[both], theirs[both[::-1]].set_axis(both, axis=1)",
        COMPARISON,
    ),
    Fault(
        "published settings are run in every replicate",
        "dipa_bench/search/stages.py",
        'first = study.protocol != "published" and not study.replicate',
        'first = study.protocol != "published"',
        "tests/search/test_winner_test.py",
    ),
    Fault(
        "settings on some images are runs of MLflow too",
        "dipa_bench/tracking/settings_table.py",
        'return record.kind == "trial" and record.images is not None',
        'return record.kind == "trial" and record.images == 0',
        "tests/tracking/test_load.py",
    ),
    Fault(
        "clusters are ignored",
        "dipa_bench/statistics.py",
        "    if clusters is None:\n        clusters = np.arange(len(values))",
        "    clusters = np.arange(len(values))",
        STATISTICS,
    ),
    Fault(
        "one degree of freedom too many",
        "dipa_bench/statistics.py",
        "/ len(values), count - 1",
        "/ len(values), count",
        STATISTICS,
    ),
    Fault(
        "the reference minus the method",
        "dipa_bench/statistics.py",
        "difference = ours.loc[common] - theirs.loc[common]",
        "difference = theirs.loc[common] - ours.loc[common]",
        STATISTICS,
    ),
    Fault(
        "a one-sided p-value",
        "dipa_bench/statistics.py",
        "return float(2 * special.stdtr(freedom, -abs(mean) / error))",
        "return float(special.stdtr(freedom, -abs(mean) / error))",
        STATISTICS,
    ),
    Fault(
        "the worst row leads the board",
        "dipa_bench/reports/leaderboard.py",
        'score = 0.0 if missing else -row["psnr"]',
        'score = 0.0 if missing else row["psnr"]',
        "tests/reports/test_leaderboard.py",
    ),
    Fault(
        "a race drops the better ones",
        "dipa_bench/evaluation/race.py",
        'alternative="less"',
        'alternative="greater"',
        "tests/evaluation/test_race.py",
    ),
    # ---------------------------------------------------------------------- images and tracking
    Fault(
        "a subject in two splits is let pass",
        "dipa_bench/data/images.py",
        "if sum(map(len, sets)) != len(set().union(*sets)):",
        "if False:",
        "tests/data/test_images.py",
    ),
    Fault(
        "pruned runs are finished ones in MLflow",
        "dipa_bench/tracking/mlflow_format.py",
        '"pruned": "KILLED",',
        '"pruned": "FINISHED",',
        "tests/tracking",
    ),
    Fault(
        "a run's last child is not sent",
        "dipa_bench/tracking/store.py",
        "for place, child in children.items():",
        "for place, child in list(children.items())[:-1]:",
        "tests/tracking",
    ),
    Fault(
        "an infinite metric is sent as it is",
        "dipa_bench/tracking/mlflow_format.py",
        "        if math.isfinite(value)\n    ]",
        "    ]",
        "tests/tracking",
    ),
    # ----------------------------------------------------------------- scores, profiles, progress
    Fault(
        "a run arrives only once it is better than its target",
        "dipa_bench/reports/profiles.py",
        'rows[rows["psnr"] >= rows["image"].map(targets)]',
        'rows[rows["psnr"] > rows["image"].map(targets)]',
        "tests/reports/test_profiles.py",
    ),
    Fault(
        "a run that arrived has cost all of its iterations",
        "dipa_bench/reports/profiles.py",
        "cost: share * value for cost, value",
        "cost: share * 0 + value for cost, value",
        "tests/reports/test_profiles.py",
    ),
    Fault(
        "scores beside PSNR are the reference's minus the row's",
        "dipa_bench/reports/leaderboard.py",
        "comparison.differences(mine, other, name)",
        "comparison.differences(other, mine, name)",
        "tests/reports/test_leaderboard.py",
    ),
    Fault(
        "the error outside the range is the whole error",
        "dipa_bench/metrics.py",
        "for part in (seen, error - seen))",
        "for part in (seen, error))",
        "tests/evaluation/test_evaluate.py",
    ),
    Fault(
        "a folder that has not all rows of a shared study is believed",
        "dipa_bench/tracking/folders.py",
        "if not places or any(",
        "if not places or False and any(",
        "tests/tracking/test_folders.py",
    ),
    Fault(
        "trials that an entry left out are still to be done",
        "dipa_bench/cli/time_left.py",
        "self._left -= work.total - self._done.pop(record.method, 0.0)",
        "self._done.pop(record.method, 0.0)",
        "tests/cli/test_time_left.py",
    ),
    Fault(
        "a row below what it can be is not told",
        "dipa_bench/reports/conclusions.py",
        "if lack > CONTROL:",
        "if lack < -CONTROL:",
        "tests/reports/test_comparison.py",
    ),
    Fault(
        "busy cores get threads too",
        "dipa_bench/devices.py",
        "cores() - round(busy_cores())",
        "cores()",
        "tests/test_devices.py",
    ),
    Fault(
        "a run that may stop early stops an iteration late",
        "dipa_bench/evaluation/evaluate.py",
        "stop = 1 + still.to(torch.uint8).argmax(0)",
        "stop = (2 + still.to(torch.uint8).argmax(0)).clamp(max=len(still))",
        "tests/evaluation/test_evaluate.py",
    ),
    Fault(
        "a winner that is sent again is another version of its model",
        "dipa_bench/tracking/registry.py",
        "if client.search_model_versions(f\"run_id = '{run_id}'\", max_results=1):",
        "if not client:",
        "tests/runs/test_restore.py",
    ),
    Fault(
        "conjugate gradients forget the direction before",
        "dipa_bench/linear_algebra.py",
        "direction = residual + following / torch.where(energy > 0, energy, 1) * direction",
        "direction = residual",
        "tests/test_linear_algebra.py",
    ),
    Fault(
        "an item that has arrived goes on beside the others",
        "dipa_bench/linear_algebra.py",
        "going = going & (following > tolerance**2)",
        "going = going & (following > 0)",
        "tests/test_linear_algebra.py",
    ),
    Fault(
        "a row with few settings is not told",
        "dipa_bench/reports/conclusions.py",
        'few = rows[rows["trials"] / rows["replicates"] < needed]',
        'few = rows[rows["trials"] < 0]',
        "tests/reports/test_comparison.py",
    ),
    Fault(
        "images are taken for those of another replicate",
        "dipa_bench/reports/leaderboard.py",
        "assign(replicate=replicates[order])",
        "assign(replicate=replicates[::-1])",
        "tests/reports/test_comparison.py",
    ),
]


def main() -> None:
    """Plants all faults, two at a time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="part of a fault's file")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    given = parser.parse_args()
    chosen = [fault for fault in FAULTS if given.only in fault.file]
    for fault in chosen:
        if (ROOT / fault.file).read_text().count(fault.old) != 1:
            sys.exit(f"{fault.file} does not have exactly once: {fault.old}")
    with ThreadPoolExecutor(given.jobs) as pool:
        missed = sum(not caught for caught in pool.map(try_fault, chosen))
    print(f"{len(chosen) - missed} of {len(chosen)} faults caught")
    sys.exit(missed > 0)


def try_fault(fault: Fault) -> bool:
    """Whether the tests fail with a fault planted."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="dipa-fault-") as scratch:
        copy = Path(scratch)
        for name in COPIED:
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, copy / name, ignore=ignored)
        for name in ("pyproject.toml", "README.md"):
            shutil.copy(ROOT / name, copy)
        path = copy / fault.file
        path.write_text(path.read_text().replace(fault.old, fault.new))
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", *fault.tests.split()]
        environment = os.environ | {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    caught = done.returncode == 1
    by = next((line for line in done.stdout.splitlines() if line.startswith("FAILED")), "")
    said = by.removeprefix("FAILED ").split(" - ")[0] if caught else "NOT CAUGHT"
    seconds = time.monotonic() - started
    print(f"{fault.file}: {fault.what} ({seconds:.0f} s): {said}", flush=True)
    if done.returncode not in (0, 1):
        print(done.stdout[-2000:] + done.stderr[-2000:])
    return caught


if __name__ == "__main__":
    main()
