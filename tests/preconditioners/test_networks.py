"""The networks of N-DIPA: the identity at first, then what their parameters say."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

from dipa_bench.errors import UserError
from dipa_bench.parameters import build, declared
from dipa_bench.preconditioners import State
from dipa_bench.preconditioners.networks import SPECS, Network, NetworkParameters, chosen
from dipa_bench.preconditioners.networks.embedding import Modulate, sinusoids
from dipa_bench.testing.contracts import PreconditionerContract

BY_NAME = {spec.name: spec for spec in SPECS}
NAMES = ["mlp", "cnn", "cnn-attention", "unet", "multiscale", "indiunet", "vit", "convnext"]
ANY_SIZE = [name for name in NAMES if name not in ("mlp", "vit")]
DENSE = 1_048_576  # numbers of the dense P at 32 x 32


def make(name, shape=(1, 16, 16), copies=1, **parameters):
    """One with small random numbers in its last layer; the same seed gives the same ones."""
    spec = BY_NAME[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = spec.build(shape, build(spec.parameters, parameters), copies)
        for part in made.last.parameters():
            part.data.normal_(std=0.1)
    return made


def fresh(name, shape=(1, 16, 16), copies=1, **parameters):
    spec = BY_NAME[name]
    return spec.build(shape, build(spec.parameters, parameters), copies)


def state_at(iteration=0):
    point = torch.zeros(1, 1, 1, 1)
    return State(iteration, point, point, point, None)


def noise(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.covering
@pytest.mark.parametrize("name", NAMES)
class TestContract(PreconditionerContract):
    """Of every architecture, with random numbers in the last layer."""

    @pytest.fixture(autouse=True)
    def _choose(self, name):
        self.name = name

    def make(self, task):
        return make(self.name, task.shape, 2)


def test_the_registered_eight():
    """In the paper's order, none linear, each with its own name and parameters."""
    assert [spec.name for spec in SPECS] == NAMES
    assert not any(spec.linear for spec in SPECS)
    assert all(issubclass(spec.parameters, NetworkParameters) for spec in SPECS)
    for spec in SPECS:
        made = spec.sample((1, 16, 16))
        assert isinstance(made, Network)
        assert not made.linear
        assert made.affine is None


@pytest.mark.parametrize("normalise", ["none", "sample", "iteration"])
@pytest.mark.parametrize("name", NAMES)
def test_starts_as_the_identity(name, normalise):
    """To the last bit, until the last layer changes; whatever the scale of the gradient."""
    gradient = 1e-3 * noise(2, 1, 16, 16)
    operator = fresh(name, normalise=normalise)
    assert torch.equal(operator(gradient, state_at(3)), gradient)
    nn.init.normal_(operator.last.weight, std=0.1)
    moved = operator(gradient, state_at(3)) - gradient
    assert moved.abs().amax((1, 2, 3)).min() > 1e-6


@pytest.mark.parametrize("embedding", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_every_number_is_trained(name, embedding):
    """No parameter is out of the gradient's reach once the last layer is not zero."""
    operator = make(name, embedding=embedding)
    target = noise(4, 1, 16, 16, seed=1)
    (operator(noise(4, 1, 16, 16), state_at(2)) - target).square().mean().backward()
    for path, part in operator.named_parameters():
        assert part.grad is not None, path
        assert part.grad.abs().max() > 0, path


@pytest.mark.parametrize("name", NAMES)
def test_the_last_layer_learns_from_the_start(name):
    """The zeros have a gradient, in weight and bias."""
    operator = fresh(name)
    target = noise(4, 1, 16, 16, seed=1)
    (operator(noise(4, 1, 16, 16), state_at(2)) - target).square().mean().backward()
    assert all(part.grad.abs().max() > 0 for part in operator.last.parameters())


def test_the_embedding_is_the_formula():
    """[sin(k w_j), cos(k w_j)], w_j = 10000^(-2j/256), in the dtype asked for."""
    for k in (0, 1, 7, 19):
        rates = [10000 ** (-2 * j / 256) for j in range(128)]
        expected = [math.sin(k * w) for w in rates] + [math.cos(k * w) for w in rates]
        found = sinusoids(k, torch.zeros(1, dtype=torch.float64))
        torch.testing.assert_close(found, torch.tensor([expected], dtype=torch.float64))
    assert sinusoids(3, torch.zeros(1)).dtype == torch.float32


def test_a_modulation_by_hand():
    """W SiLU(e) + b at every place of every image, nothing without embedding."""
    modulate = Modulate(3, True).double()
    hidden, embedded = noise(2, 3, 4, 5, dtype=torch.float64), noise(1, 256, dtype=torch.float64)
    linear = modulate.project[-1]
    shift = linear.weight @ (embedded[0] / (1 + (-embedded[0]).exp())) + linear.bias
    torch.testing.assert_close(modulate(hidden, embedded), hidden + shift[:, None, None])
    assert list(Modulate(3, False).parameters()) == []
    assert Modulate(3, False)(hidden, None) is hidden


@pytest.mark.parametrize("name", NAMES)
def test_the_embedding_can_be_switched_off(name):
    """Then there are fewer numbers, and iterations are alike; else each has its own P."""
    gradient = noise(2, 1, 16, 16)
    told, untold = make(name), make(name, embedding=False)
    assert told.numbers() > untold.numbers()
    first, second = (told(gradient, state_at(k)) for k in (0, 5))
    assert (first - second).abs().max() > 1e-4
    assert torch.equal(untold(gradient, state_at(0)), untold(gradient, state_at(5)))


@pytest.mark.parametrize("embedding", [True, False])
def test_a_body_is_told_the_iteration_or_nothing(embedding, monkeypatch):
    """What a new architecture's `body` is given."""
    operator, given = make("cnn", embedding=embedding), []
    monkeypatch.setattr(operator, "body", lambda scaled, told: given.append(told) or scaled)
    operator(noise(2, 1, 16, 16), state_at(4))
    if embedding:
        assert torch.equal(given[0], sinusoids(4, torch.zeros(1)))
    else:
        assert given == [None]


@pytest.mark.parametrize("name", NAMES)
def test_each_sample_by_its_own_root_mean_square(name):
    """P(c g) = c P(g) for c > 0, image by image; without it a network is not homogeneous."""
    gradient = noise(3, 1, 16, 16)
    factors = torch.tensor([1e-6, 3.0, 1e4]).view(3, 1, 1, 1)
    operator = make(name)
    expected = operator(gradient, state_at())
    found = operator(factors * gradient, state_at()) / factors
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    plain = make(name, normalise="none")
    found = plain(factors * gradient, state_at()) / factors
    assert (found - plain(gradient, state_at())).abs().amax((1, 2, 3)).min() > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_a_zero_gradient_stays_zero(name):
    """Exactly, beside images that do not; its derivatives are finite numbers."""
    gradient = noise(2, 1, 16, 16)
    gradient[0] = 0
    gradient.requires_grad_()
    operator = make(name)
    found = operator(gradient, state_at(1))
    assert found[0].count_nonzero() == 0
    assert found[1].count_nonzero() > 0
    found.square().sum().backward()
    assert all(torch.isfinite(part.grad).all() for part in (gradient, *operator.parameters()))


def test_each_normalisation_by_hand():
    """g + s f(g / s) with the body called directly, for both other choices and the sample's."""
    gradient, state = noise(3, 2, 6, 5, dtype=torch.float64), state_at(1)
    for choice in ("none", "sample", "iteration"):
        operator = make("cnn", (2, 16, 16), 3, normalise=choice).double()
        scale = 1.0
        if choice == "sample":
            scale = gradient.square().mean((1, 2, 3), keepdim=True).sqrt()
        if choice == "iteration":
            operator.calibrate(torch.tensor([4.0, 0.5, 9.0]))
            scale = 0.5
        embedded = sinusoids(1, gradient)
        expected = gradient + scale * operator.body(gradient / scale, embedded)
        torch.testing.assert_close(operator(gradient, state), expected)


def test_scales_belong_to_iterations():
    """Ones until calibrated; beyond the known iterations the last repeats; others are refused."""
    gradient = noise(2, 1, 16, 16)
    operator = make("cnn", copies=3, normalise="iteration", embedding=False)
    plain = make("cnn", normalise="none", embedding=False)
    torch.testing.assert_close(operator(gradient, state_at()), plain(gradient, state_at()))
    operator.calibrate(torch.tensor([1.0, 0.1, 0.01]))
    assert torch.equal(operator.scales, torch.tensor([1.0, 0.1, 0.01]))
    found = [operator(gradient, state_at(k)) for k in range(5)]
    assert (found[1] - found[0]).abs().max() > 1e-3
    assert (found[2] - found[1]).abs().max() > 1e-3
    assert torch.equal(found[3], found[2])
    assert torch.equal(found[4], found[2])
    for wrong, said in (
        (torch.ones(2), r"\(2,\) scales for 3 iterations"),
        (torch.tensor([1.0, 0.0, 1.0]), "positive"),
        (torch.tensor([1.0, -1.0, 1.0]), "positive"),
        (torch.tensor([1.0, math.inf, 1.0]), "positive"),
        (torch.tensor([1.0, math.nan, 1.0]), "positive"),
    ):
        with pytest.raises(UserError, match=said):
            operator.calibrate(wrong)
    with pytest.raises(UserError, match="normalise = none has no scales"):
        plain.calibrate(torch.ones(1))
    assert not hasattr(plain, "scales")
    assert not any("scales" in key for key in make("cnn").state_dict())


@pytest.mark.parametrize("name", NAMES)
def test_state_round_trips_with_scales(name, tmp_path):
    """Through a safetensors file, which refuses shared numbers, into a fresh operator."""
    from safetensors.torch import load_file, save_file

    operator = make(name, copies=2, normalise="iteration")
    operator.calibrate(torch.tensor([0.5, 0.25]))
    save_file(operator.state_dict(), tmp_path / "operator.safetensors")
    other = fresh(name, copies=2, normalise="iteration")
    other.load_state_dict(load_file(tmp_path / "operator.safetensors"))
    gradient = noise(2, 1, 16, 16)
    for k in range(2):
        assert torch.equal(other(gradient, state_at(k)), operator(gradient, state_at(k)))


@pytest.mark.parametrize("shape", [(2, 16, 16), (3, 8, 16)])
@pytest.mark.parametrize("name", NAMES)
def test_complex_and_colour_images(name, shape):
    """Channels in and out; another number of channels is refused."""
    operator = make(name, shape, max_parameters=10**6)
    gradient = noise(2, *shape)
    found = operator(gradient, state_at())
    assert found.shape == gradient.shape
    assert (found - gradient).abs().amax((0, 2, 3)).min() > 1e-4
    with pytest.raises(UserError, match="fit it again"):
        operator(gradient[:, :1], state_at())


@pytest.mark.parametrize("size", [(17, 23), (16, 16), (11, 40), (2, 3)])
@pytest.mark.parametrize("name", ANY_SIZE)
def test_one_network_for_any_size(name, size):
    """Built for 16 x 16, applied to others; every pixel is moved."""
    operator = make(name)
    gradient = noise(2, 1, *size)
    found = operator(gradient, state_at())
    assert found.shape == gradient.shape
    assert torch.isfinite(found).all()
    assert (found != gradient).all()


@pytest.mark.parametrize("name", ["mlp", "vit"])
def test_one_network_for_one_size(name):
    """Those with numbers for each place refuse other sizes."""
    with pytest.raises(UserError, match="fit it again at that size"):
        make(name)(torch.zeros(1, 1, 8, 32), state_at())


@pytest.mark.parametrize("name", NAMES)
def test_the_mode_does_not_matter(name):
    """No dropout and no batch statistics."""
    operator, gradient = make(name).double(), noise(3, 1, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        trained = operator.train()(gradient, state_at())
        torch.testing.assert_close(operator.eval()(gradient, state_at()), trained)
    kinds = {type(part) for part in operator.modules()}
    assert not any(issubclass(kind, nn.modules.batchnorm._BatchNorm) for kind in kinds)


@pytest.mark.parametrize("name", NAMES)
def test_mixed_precision(name):
    """The network alone in bfloat16: close to, but not, the full precision, in its dtype."""
    operator, gradient = make(name), noise(2, 1, 16, 16)
    full = operator(gradient, state_at(1))
    operator.mixed = True
    found = operator(gradient, state_at(1))
    assert found.dtype == torch.float32
    assert not torch.equal(found, full)
    torch.testing.assert_close(found, full, rtol=0, atol=0.25 * (full - gradient).std().item())
    start = fresh(name)
    start.mixed = True
    assert torch.equal(start(gradient, state_at(1)), gradient)
    found.square().mean().backward()
    assert all(part.grad.dtype == torch.float32 for part in operator.parameters())


def test_only_the_network_is_mixed(monkeypatch):
    """What it returns in bfloat16 is scaled and added in the gradient's precision."""
    operator, gradient = make("cnn", normalise="iteration"), noise(2, 1, 16, 16)
    operator.calibrate(torch.tensor([0.3]))
    operator.mixed = True
    body, returned = operator.body, []
    monkeypatch.setattr(
        operator, "body", lambda *given: returned.append(body(*given)) or returned[0]
    )
    found = operator(gradient, state_at())
    assert returned[0].dtype == torch.bfloat16
    assert torch.equal(found, gradient + torch.tensor(0.3) * returned[0].float())


def test_numbers_of_the_papers_convnext():
    """858,758, fewer than the dense P: one residual scale for each block, not for each channel."""
    spec = BY_NAME["convnext"]
    made = spec.sample((1, 32, 32), spec.parameters(width=128, depth=5))
    assert made.numbers() == 858_758
    assert not made.over_dense((1, 32, 32))
    one = 128 * 49 + 128 + 2 * 128 + 128 * 512 + 512 + 512 * 128 + 128 + 1 + 257 * 128
    assert 5 * one + (9 * 128 + 128) + (9 * 128 + 1) == 858_758
    small = spec.sample((1, 32, 32), spec.parameters(width=128, depth=5, kernel=3))
    assert made.numbers() - small.numbers() == 5 * 128 * (49 - 9)


def expected_numbers(name, w, d):
    """By hand, one channel, 32 x 32 pixels, embedding on, other parameters as by default."""
    e = 257 * w  # one modulation
    block3 = 9 * w * w + w
    if name == "mlp":
        return 1025 * w + (d - 1) * (w + 1) * w + d * e + (w + 1) * 1024
    if name == "cnn":
        return 10 * w + d * (block3 + e) + 9 * w + 1
    if name == "cnn-attention":
        h = w // 8
        return 10 * w + d * (block3 + e + (w + 1) * h + (h + 1) * w + 99) + 9 * w + 1
    if name == "multiscale":
        return 10 * w + d * ((9 + 25 + 49) * w * w + 3 * w + 3 * w * w + w + e) + 9 * w + 1
    if name == "vit":
        layer = 2 * 2 * w + 4 * (w * w + w) + (w + 1) * 4 * w + (4 * w + 1) * w
        return 17 * w + e + 64 * w + d * layer + 2 * w + (w + 1) * 16
    if name == "convnext":
        return 10 * w + d * (49 * w + w + 2 * w + 8 * w * w + 5 * w + 1 + e) + 9 * w + 1
    widths = [w * 2**level for level in range(d)]
    steps = list(pairwise(widths))
    if name == "unet":
        down = sum(double(a, b) for a, b in [(1 + 4, w), *steps])
        up = sum(9 * b * a + a + double(2 * a, a) for a, b in steps)
        return 257 * 4 + down + up + w + 1
    assert name == "indiunet"
    blocks = [(a, a) for a in widths] + steps  # down to the coarsest
    blocks += [(b, a) for a, b in steps] + [(2 * a, a) for a, _ in steps]
    return 10 * w + sum(residual(*block) for block in blocks) + 2 * w + 9 * w + 1


def double(a, b):
    """Two 3 x 3 convolutions."""
    return (9 * a + 1) * b + (9 * b + 1) * b


def residual(a, b):
    """A block of the residual U-Net: two norms, two convolutions, a modulation, maybe a skip."""
    return 2 * a + 2 * b + double(a, b) + 257 * b + (a != b) * (a + 1) * b


@pytest.mark.parametrize("width, depth", [(32, 2), (16, 3)])
@pytest.mark.parametrize("name", NAMES)
def test_numbers_by_hand(name, width, depth):
    """Nothing superfluous is built."""
    spec = BY_NAME[name]
    free = spec.parameters(width=width, depth=depth, max_parameters=10**9)
    made = spec.sample((1, 32, 32), free)
    assert made.numbers() == expected_numbers(name, width, depth)


@pytest.mark.parametrize("name", NAMES)
def test_defaults_are_small(name):
    """At most 100,000 numbers at 32 x 32, and few enough for the dense P of 16 x 16 pixels."""
    assert BY_NAME[name].sample((1, 32, 32)).numbers() <= 100_000
    assert BY_NAME[name].sample((1, 16, 16)).numbers() <= 16**4


@pytest.mark.parametrize("name", NAMES)
def test_what_is_searched(name):
    """Defaults and choices are valid, architecture and normalisation are searched, the cap is not.

    The largest of the choices of width and depth has as many numbers as the dense P, about.
    """
    spec = BY_NAME[name]
    found = {item.path: item for item in declared(spec.parameters, "pnp-fista")}
    assert found.pop("max_parameters").search is None
    assert {"embedding", "normalise", "width", "depth"} <= set(found)
    for path, item in found.items():
        assert item.help
        for choice in item.search.choices:
            build(spec.parameters, {path: choice})
    largest = {path: max(found[path].search.choices) for path in ("width", "depth")}
    numbers = spec.sample((1, 32, 32), build(spec.parameters, largest)).numbers()
    assert 3e5 < numbers
    assert numbers < DENSE or name == "mlp"


def test_the_limit_of_numbers():
    """The dense P's or a given one; the MLP alone has none by default, and says what it exceeds."""
    for spec in SPECS:
        assert spec.parameters(max_parameters=7).limit((1, 32, 32)) == 7
        limit = spec.parameters().limit((1, 24, 16))
        assert limit == (None if spec.name == "mlp" else (24 * 16) ** 2)
    spec = BY_NAME["mlp"]
    large = spec.sample((1, 32, 32), spec.parameters(width=512, depth=2))
    assert large.numbers() > DENSE
    assert large.over_dense((1, 32, 32))
    assert not large.over_dense((1, 64, 64))


def test_the_chosen_architectures_limit_holds():
    """`network` has the limit of what it is."""
    made = chosen.SPEC.parameters
    assert made(architecture="mlp").limit((1, 8, 8)) is None
    assert made(architecture="vit").limit((1, 8, 8)) == 8**4
    assert made(architecture="mlp", max_parameters=9).limit((1, 8, 8)) == 9


@pytest.mark.parametrize(
    "name, values, message",
    [
        ("cnn", {"max_parameters": 0}, "max_parameters = 0:.*dense or a whole number"),
        ("cnn", {"max_parameters": True}, "max_parameters = True:.*dense or a whole number"),
        ("cnn", {"max_parameters": "few"}, "max_parameters = 'few':.*dense or a whole number"),
        ("cnn", {"kernel": 4}, "kernel = 4"),
        ("convnext", {"kernel": 9}, "kernel = 9"),
        ("convnext", {"width": 0}, "width = 0"),
        ("unet", {"depth": 1}, "depth = 1"),
        ("vit", {"normalise": "batch"}, "normalise = 'batch'"),
    ],
)
def test_mistakes_in_parameters(name, values, message):
    """One line with key and value."""
    with pytest.raises(UserError, match=message) as caught:
        build(BY_NAME[name].parameters, values)
    assert "\n" not in str(caught.value)


def test_what_a_vision_transformer_cannot_tile():
    """Patches divide the sides, heads the width."""
    spec = BY_NAME["vit"]
    with pytest.raises(UserError, match="patch 8 does not divide 30 x 32 pixels: give a divisor"):
        spec.sample((1, 30, 32), spec.parameters(patch=8))
    with pytest.raises(UserError, match="patch 8 does not divide 32 x 30 pixels: give a divisor"):
        spec.sample((1, 32, 30), spec.parameters(patch=8))
    with pytest.raises(UserError, match="4 heads do not divide the width 30"):
        spec.sample((1, 32, 32), spec.parameters(width=30))


def test_patches_return_to_their_place():
    """What a vision transformer adds to a place comes from the token of that place."""
    operator = make("vit", (2, 8, 16), normalise="none", embedding=False, max_parameters=10**6)
    operator.encoder = nn.Identity()
    gradient = noise(1, 2, 8, 16)
    changed = gradient.clone()
    changed[0, :, 4:, 8:12] += 1
    moved = (operator(changed, state_at()) - operator(gradient, state_at()) - changed + gradient)[0]
    inside = torch.zeros(8, 16, dtype=torch.bool)
    inside[4:, 8:12] = True
    assert (moved[:, inside] != 0).all()
    torch.testing.assert_close(moved[:, ~inside], torch.zeros(2, 8 * 16 - 16))


def test_attention_weighs_channels_and_places():
    """CBAM of one image by loops: sigmoid weights of channels, then of places."""
    gate = make("cnn-attention", width=16, reduction=4).blocks[0].gate.double()
    features = noise(1, 16, 9, 8, dtype=torch.float64)
    first, _, second = gate.channels

    def scores(pooled):
        return second.weight @ (first.weight @ pooled + first.bias).clamp_min(0) + second.bias

    image = features[0]
    flat = image.flatten(1)
    weights = torch.sigmoid(scores(flat.mean(1)) + scores(flat.max(1).values))
    image = image * weights[:, None, None]
    maps = nn.functional.pad(torch.stack([image.mean(0), image.max(0).values]), (3, 3, 3, 3))
    places = torch.empty(9, 8, dtype=torch.float64)
    for row in range(9):
        for column in range(8):
            window = maps[:, row : row + 7, column : column + 7]
            places[row, column] = (gate.places.weight[0] * window).sum() + gate.places.bias[0]
    torch.testing.assert_close(gate(features)[0], image * torch.sigmoid(places))
    assert first.out_features == 4
    assert make("cnn-attention", width=2).blocks[0].gate.channels[0].out_features == 1


@pytest.mark.parametrize("name, depth", [("unet", 3), ("indiunet", 3)])
def test_coarse_resolutions_see_further(name, depth):
    """A deeper U-Net passes a pixel's change on to places that a shallow one cannot reach."""

    def reach(levels):
        operator = make(
            name, (1, 64, 64), depth=levels, width=4, normalise="none", embedding=False
        ).double()
        for part in operator.modules():
            if isinstance(part, nn.GroupNorm):  # its statistics reach everywhere
                part.forward = lambda features: features
        gradient = noise(1, 1, 64, 64, dtype=torch.float64).requires_grad_()
        operator(gradient, state_at())[0, 0, 32, 32].backward()
        touched = gradient.grad[0, 0].nonzero()
        return (touched - 32).abs().max().item()

    assert reach(depth) > reach(2) > 5


@pytest.mark.parametrize("width", [1, 6, 7])
def test_groups_divide_every_width(width):
    """The residual U-Net takes any width; its fine features reach the end beside the coarse."""
    operator = make("indiunet", width=width, depth=3, max_parameters=10**6)
    operator(noise(2, 1, 16, 16), state_at())[:, 0, 3:9].square().sum().backward()
    for decode in operator.decoders:
        used = decode.skip.weight.grad.abs().amax((0, 2, 3))
        assert len(used) == 2 * decode.skip.weight.shape[0]
        assert (used > 0).all()


@pytest.mark.parametrize("name", ["convnext", "indiunet", "cnn-attention"])
def test_derivatives_against_finite_differences(name):
    """With respect to the gradient, through the normalisation."""
    small = {"width": 4, "depth": 2, "max_parameters": 10**6}
    operator = make(name, (2, 5, 4), **small).double()
    gradient = noise(2, 2, 5, 4, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda g: operator(g, state_at(1)), (gradient,))


def test_other_fields_of_the_state_do_not_matter():
    """P is a function of gradient and iteration alone."""
    operator, gradient = make("convnext"), noise(2, 1, 16, 16)
    filled = replace(state_at(2), gradient=gradient, previous_gradient=gradient, memory="x")
    assert torch.equal(operator(gradient, filled), operator(gradient, state_at(2)))
