"""The end-to-end networks: their steps against formulas, training, and other settings."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from deepinv.models.varnet import VarNetBlock

from baselines import fista_net, restormer, varnet
from baselines.controls import bicubic
from dipa_bench.errors import UserError
from dipa_bench.parameters import build, defaults, space
from dipa_bench.testing import small_task

ROWS = {"fista-net": fista_net.METHOD, "e2e-varnet": varnet.METHOD, "restormer": restormer.METHOD}
SMALL = {
    "fista-net": {"layers": 3, "features": 8},
    "e2e-varnet": {"cascades": 2, "features": 8},
    "restormer": {"width": 4},
}
PAIRS = [
    *((name, task) for name in ("fista-net", "restormer") for task in ("sr", "cs", "mri")),
    ("e2e-varnet", "mri"),
]


def fitted(name, task, context, *, settings=None, **values):
    method = ROWS[name]
    parameters = build(method.parameters, SMALL[name] | values)
    return method.fit(task, parameters, settings or context(epochs=1, batch_size=3))


def reconstructed(made, task):
    return made.run(task.measure(task.images.validation), task.student).estimate


# --------------------------------------------------------------------------------- FISTA-Net


def fista_network(task, **values):
    """One with its numbers away from where they start, and a proximal map that is the identity."""
    parameters = fista_net.FISTANetParameters(**{"layers": 4, "features": 4} | values)
    torch.manual_seed(0)
    network = fista_net.build(task, parameters).to(task.dtype).requires_grad_(False)
    for part in network.proximal.drop.parameters():
        part.zero_()
    return network


def softplus(value):
    return np.log1p(np.exp(value))


@pytest.mark.parametrize("name", ["mri", "sr"])
def test_without_a_proximal_map_it_is_fista(name):
    """Gradient steps with momentum on dense matrices; real images are kept positive."""
    task = small_task(name, (1, 12, 12), dtype=torch.float64, noise=0.3)
    network, size = fista_network(task), int(np.prod(task.shape))
    eye = torch.eye(size, dtype=torch.float64).view(size, *task.shape)
    a = task.student.A(eye).flatten(1).T.numpy()
    largest = np.linalg.eigvalsh(a.T @ a)[-1]
    measured = task.measure(task.images.validation)
    y = measured.flatten(1).numpy()
    point = before = y @ a / largest
    for k in range(4):
        step = softplus(0.1 - 0.2 * k)
        momentum = (softplus(0.5 * k) - softplus(0)) / softplus(0.5 * k)
        found = point - step * ((point @ a.T - y) @ a) / largest
        found = found if name == "mri" else np.maximum(found, 0)
        point, before = found + momentum * (found - before), found
    assert name == "mri" or (before == 0).any(), "nothing was cut off"
    estimate = network(measured, task.student).flatten(1).numpy()
    np.testing.assert_allclose(estimate, before, atol=1e-7)


def test_the_proximal_map_is_that_of_the_paper():
    """r + G(F~(soft(F(D r)))), each convolution written out by numpy."""
    torch.manual_seed(0)
    proximal = fista_net.Proximal(1, 2).double().requires_grad_(False)
    for part in proximal.parameters():
        part.copy_(torch.randn_like(part) / 3)
    image = torch.rand(1, 1, 6, 6, dtype=torch.float64)

    def convolve(values, layer):
        weight, padded = layer.weight.numpy(), np.pad(values, ((0, 0), (1, 1), (1, 1)))
        moved = [
            np.einsum("oc,chw->ohw", weight[:, :, i, j], padded[:, i : i + 6, j : j + 6])
            for i in range(3)
            for j in range(3)
        ]
        return sum(moved) + layer.bias.numpy()[:, None, None]

    def through(values, layers):
        for layer in layers:
            relu = isinstance(layer, torch.nn.ReLU)
            values = np.maximum(values, 0) if relu else convolve(values, layer)
        return values

    lifted = convolve(image[0].numpy(), proximal.lift)
    coded = through(lifted, proximal.analysis)
    kept = np.sign(coded) * np.maximum(np.abs(coded) - 0.2, 0)
    assert 0 < (kept == 0).mean() < 1
    expected = image[0].numpy() + convolve(through(kept, proximal.synthesis), proximal.drop)
    parts = proximal(image, torch.tensor(0.2, dtype=torch.float64))
    for found, each in zip(parts, (expected, lifted, coded, kept), strict=True):
        np.testing.assert_allclose(found[0], each, atol=1e-12)


def test_loss_is_fidelity_symmetry_and_sparsity():
    """Of two layers, from the proximal map's parts as they passed by."""
    task = small_task("cs", dtype=torch.float64)
    torch.manual_seed(0)
    parameters = fista_net.FISTANetParameters(layers=2, features=4, symmetry=0.3, sparsity=0.07)
    network = fista_net.build(task, parameters).double().requires_grad_(False)
    passed = []
    network.proximal.register_forward_hook(lambda module, given, found: passed.append(found))
    y, x = task.measure(task.images.train), task.pixels(task.images.train)
    found = network.loss(y, task.student, x)
    expected = (network(y, task.student) - x).square().mean()
    for _, lifted, coded, kept in passed[:2]:
        expected += 0.3 * (network.proximal.synthesis(coded) - lifted).square().mean()
        expected += 0.07 * kept.abs().mean()
    torch.testing.assert_close(found, expected)


def test_steps_and_thresholds_fall_and_momentum_rises():
    """Whatever training made of the slopes."""
    network = fista_network(small_task())
    for line in (network.step, network.threshold, network.momentum):
        line.slope.copy_(torch.tensor(-0.3))
    steps, thresholds, momenta = (
        [value.item() for value in values]
        for values in zip(*(network.coefficients(k) for k in range(5)), strict=True)
    )
    for values in (steps, thresholds):
        assert values == sorted(values, reverse=True) and min(values) > 0
    assert momenta == sorted(momenta) and momenta[0] == 0 and momenta[-1] < 1


def test_the_operators_scale_is_divided_out(from_matrix):
    """3 A and 3 y give the images of A and y."""
    matrix = np.random.default_rng(0).standard_normal((20, 36))
    largest = np.linalg.norm(matrix, 2) ** 2
    parameters = fista_net.FISTANetParameters(layers=3, features=4)
    images = torch.rand(2, 1, 6, 6, dtype=torch.float64)
    found = []
    for scale in (1, 3):
        torch.manual_seed(0)
        network = fista_net.FISTANet(1, scale**2 * largest, parameters).double()
        physics = from_matrix(scale * matrix)
        with torch.no_grad():
            found.append(network(physics.A(images), physics))
    torch.testing.assert_close(*found)


# ------------------------------------------------------------------------------------ VarNet


def var_network(**values):
    torch.manual_seed(0)
    parameters = varnet.VarNetParameters(**{"cascades": 3, "features": 4} | values)
    return varnet.VarNet(parameters).double().requires_grad_(False)


def awake(network):
    """Refinements that do something: the untrained ones return zero."""
    for cascade in network.cascades:
        last = cascade.refine.Conv_1x1
        last.weight.copy_(torch.randn_like(last.weight))
        cascade.weight.fill_(0.7)
    return network


def test_cascades_share_no_weights():
    network = var_network()
    owned = [{id(part) for part in cascade.parameters()} for cascade in network.cascades]
    assert len(set.union(*owned)) == sum(map(len, owned)) == len(list(network.parameters()))


def test_data_consistency_is_the_formula():
    """k - eta M (k - y) of a cascade whose refinement is zero."""
    task = small_task("mri", dtype=torch.float64)
    cascade = var_network().cascades[0]
    cascade.weight.fill_(0.3)
    y = task.measure(task.images.train)
    k = torch.randn_like(y)
    found = cascade(k, y, task.student, varnet.unmasked(task.student))
    expected = k.numpy() - 0.3 * task.student.mask.numpy() * (k.numpy() - y.numpy())
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_a_cascade_is_deepinvs_block():
    """Whose forward swaps the operator's mask; ours leaves it alone."""
    task = small_task("mri", dtype=torch.float64)
    network = awake(var_network())
    y, mask = task.measure(task.images.train), task.student.mask.clone()
    k = torch.randn_like(y)
    found = network.cascades[0](k, y, task.student, varnet.unmasked(task.student))
    assert torch.equal(task.student.mask, mask)
    block = VarNetBlock(network.cascades[0].refine, estimate_x=False).double()
    block.dc_weight.data.fill_(0.7)
    with torch.no_grad():
        expected = block((k, task.student, y, None))[0]
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, k)


@pytest.mark.parametrize("coils", [1, 3])
def test_untrained_it_is_the_adjoint(coils):
    task = small_task("mri", dtype=torch.float64, options={"coils": coils})
    y = task.measure(task.images.train)
    found = var_network()(y, task.student)
    torch.testing.assert_close(found, task.student.A_adjoint(y))


def test_several_coils_are_trained(context):
    task = small_task("mri", options={"coils": 3})
    assert reconstructed(fitted("e2e-varnet", task, context), task).shape == (6, *task.shape)


@pytest.mark.parametrize("name", ["sr", "cs", "deblur"])
def test_varnet_is_for_mri(name, context):
    task = small_task(name)
    assert "k-space of MRI" in varnet.METHOD.unsuitable(task)
    with pytest.raises(UserError, match=f"{name} measures something else"):
        fitted("e2e-varnet", task, context)


# --------------------------------------------------------------------------------- Restormer


@pytest.mark.parametrize("name", ["sr", "deblur", "cs", "mri"])
def test_first_picture(name):
    """Bicubic where a picture was decimated (the blurred one itself by 1), else A^T y."""
    task = small_task(name, dtype=torch.float64)
    network = restormer.build(task, restormer.RestormerParameters(width=4))
    y = task.measure(task.images.train)
    expected = {
        "sr": lambda: bicubic(y, task.student),
        "deblur": lambda: y,
        "cs": lambda: task.student.A_adjoint(y),
        "mri": lambda: task.student.A_adjoint(y),
    }[name]()
    torch.testing.assert_close(network.first(y, task.student), expected)


def test_sides_are_padded_with_the_border():
    """12 x 16 pixels to 16 x 16 below, and back."""
    task = small_task(shape=(1, 12, 16), dtype=torch.float64)
    network = restormer.build(task, restormer.RestormerParameters(width=4)).double()
    y = task.measure(task.images.train)
    first = bicubic(y, task.student).numpy()
    padded = torch.from_numpy(np.pad(first, ((0, 0), (0, 0), (0, 4), (0, 0)), mode="edge"))
    with torch.no_grad():
        found, expected = network(y, task.student), network.network.forward_restormer(padded)
    torch.testing.assert_close(found, expected[..., :12, :])


def test_published_restormer_is_deepinvs_default():
    """The same names and shapes of numbers, for colour images."""
    values = {k: v for k, v in restormer.METHOD.published(None).items() if "." not in k}
    given = inspect.signature(restormer.Restormer).parameters
    with torch.device("meta"):
        network = restormer.Restored(3, True, 1.0, restormer.RestormerParameters(**values)).network
        expected = restormer.Restormer(pretrained=None)
    assert given["num_blocks"].default == restormer.BLOCKS
    found, expected = (
        {name: part.shape for name, part in each.state_dict().items()}
        for each in (network, expected)
    )
    assert found == expected


# --------------------------------------------------------------------------------------- all


@pytest.mark.covering
@pytest.mark.parametrize(("name", "task_name"), PAIRS)
def test_training_lowers_the_loss(name, task_name, context):
    """And the validation PSNR rises above that of the untrained network."""
    task = small_task(task_name, count=12)
    settings = context(epochs=4, batch_size=4)
    made = fitted(name, task, context, settings=settings)
    losses = [value for _, value in settings.series["train/loss"]]
    quality = [value for _, value in settings.series["val/psnr_by_epoch"]]
    assert losses[-1] < losses[0]
    assert max(quality) > quality[0]
    assert not any(part.requires_grad for part in made.module.parameters())


@pytest.mark.covering
@pytest.mark.parametrize(("name", "task_name"), PAIRS)
def test_every_number_is_reached_by_the_loss(name, task_name, context):
    task = small_task(task_name)
    network = fitted(name, task, context).module.requires_grad_(True)
    y, x = task.measure(task.images.train), task.pixels(task.images.train)
    network.loss(y, task.student, x).backward()
    assert [key for key, part in network.named_parameters() if part.grad is None] == []


SHIFTS = {
    "sr": [{"options": {"factor": 2}}, {"options": {"factor": 3}}, {"noise": 0.1}],
    "cs": [{"options": {"ratio": 0.5}}, {"options": {"sampling": "zig-zag"}}, {"noise": 0.1}],
    "mri": [{"options": {"acceleration": 2.0}}, {"options": {"mask": "uniform"}}, {"noise": 0.1}],
}


@pytest.mark.covering
@pytest.mark.parametrize(("name", "task_name"), PAIRS)
def test_restored_as_it_was_and_at_other_settings(name, task_name, context):
    """Bit for bit at its own setting; at another it follows the operator at hand."""
    task = small_task(task_name)
    made = fitted(name, task, context)
    state = {key: part.clone() for key, part in made.module.state_dict().items()}
    parameters = build(ROWS[name].parameters, SMALL[name])
    again = ROWS[name].restore(task, parameters, state, context(seed=5))
    own = reconstructed(made, task)
    assert torch.equal(reconstructed(again, task), own)
    assert again.operator_calls == made.operator_calls
    assert not any(part.requires_grad for part in again.module.parameters())
    for changed in SHIFTS[task_name]:
        shifted = small_task(task_name, **changed)
        moved = ROWS[name].restore(shifted, parameters, state, context())
        found = reconstructed(moved, shifted)
        assert found.shape == own.shape and torch.isfinite(found).all()
        assert not torch.equal(found, own)


@pytest.mark.parametrize("name", ["fista-net", "restormer"])
def test_restored_numbers_have_to_fit(name, context):
    """Other channels, or other sizes of the network."""
    task = small_task()
    state = fitted(name, task, context).module.state_dict()
    parameters = build(ROWS[name].parameters, SMALL[name])
    with pytest.raises(UserError, match="do not fit images of 3 channels"):
        ROWS[name].restore(small_task(shape=(3, 16, 16)), parameters, state, context())
    with pytest.raises(UserError, match="sizes that it was trained with"):
        ROWS[name].restore(task, ROWS[name].parameters(), state, context())


@pytest.mark.parametrize("name", ["fista-net", "restormer"])
def test_colour_and_other_sizes(name, context):
    """The numbers do not depend on the images' size."""
    task = small_task(shape=(3, 16, 16))
    made = fitted(name, task, context)
    larger = small_task(shape=(3, 20, 28))
    state, parameters = made.module.state_dict(), build(ROWS[name].parameters, SMALL[name])
    found = ROWS[name].restore(larger, parameters, state, context())
    assert reconstructed(found, larger).shape == (6, 3, 20, 28)


@pytest.mark.parametrize("name", list(ROWS))
def test_seeds_differ_and_leave_the_global_state(name, context):
    task = small_task("mri")
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    found = [
        reconstructed(
            fitted(name, task, context, settings=context(seed, epochs=1, batch_size=3)), task
        )
        for seed in (0, 0, 1)
    ]
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


@pytest.mark.parametrize(("name", "task_name"), PAIRS)
def test_calls_are_counted(name, task_name, context, monkeypatch):
    """Of A and A^T; E2E-VarNet's are those of the transform without its mask."""
    task, calls = small_task(task_name), []
    made = fitted(name, task, context)
    y = task.measure(task.images.validation)
    kind = type(task.student)
    for each in ("A", "A_adjoint"):
        plain = getattr(kind, each)
        monkeypatch.setattr(
            kind, each, lambda *a, plain=plain, **kw: calls.append(0) or plain(*a, **kw)
        )
    assert made.run(y, task.student).operator_calls == len(calls)


@pytest.mark.parametrize("name", list(ROWS))
def test_sizes_and_rate_are_searched(name):
    """And the defaults lie in the space; no solver settings are asked for."""
    task, model = small_task("mri"), ROWS[name].parameters
    found, values = space(model, task.solver, task), defaults(model, task.solver, task)
    assert set(SMALL[name]) | {"train.learning_rate"} <= set(found)
    assert all(search.admits(values[key]) for key, search in found.items())
    assert not any(key.startswith("solve.") for key in values)
