"""Structured operators against matrices by hand, and projections that nothing in a family beats."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from scipy import linalg

from dipa_bench.errors import UserError
from dipa_bench.parameters import Search, build
from dipa_bench.preconditioners import (
    BlockCirculant,
    Convolution,
    Dense,
    HadamardDiagonal,
    Kronecker,
    LowRank,
    Pointwise,
    Scalar,
    State,
    Symmetric,
)
from dipa_bench.preconditioners import spec as specs

SPECS = {
    found.name: found for found in vars(specs).values() if isinstance(found, specs.OperatorSpec)
}
SHAPES = [(1, 4, 8), (2, 8, 4), (3, 4, 4)]
STRUCTURED = {
    "symmetric": Symmetric,
    "low-rank": lambda shape, copies=1: LowRank(shape, 3, copies),
    "kronecker": lambda shape, copies=1: Kronecker(shape, 2, copies),
    "block-circulant": lambda shape, copies=1: BlockCirculant(shape, 2, copies),
    "hadamard": HadamardDiagonal,
}


def state_at(shape, iteration=0):
    point = torch.zeros(1, *shape, dtype=torch.float64)
    return State(iteration, point, point, point, None)


def randomised(operator, seed=0):
    """Random numbers in float64; the same seed gives the same ones."""
    generator = torch.Generator().manual_seed(seed)
    operator = operator.double()
    for part in operator.parameters():
        part.data.copy_(torch.randn(part.shape, generator=generator, dtype=torch.float64))
    return operator


def dense_of(operator, shape, iteration=0):
    return operator.dense(shape, state_at(shape, iteration)).numpy()


def on_channels(matrix, shape):
    return np.kron(np.eye(shape[0]), matrix)


def numbers(operator):
    return [part.detach().numpy()[0] for part in operator.parameters()]


def by_hand(name, operator, shape):
    """The matrix on one channel, from the parameters and the formula."""
    _, height, width = shape
    parts, pixels = numbers(operator), shape[1] * shape[2]
    if name == "symmetric":
        return parts[0] @ parts[0].T
    if name == "low-rank":
        shift, left, right = parts
        return shift * np.eye(pixels) + left @ right.T
    if name == "kronecker":
        return sum(np.kron(a, b) for a, b in zip(*parts, strict=True))
    if name == "hadamard":
        w = np.kron(linalg.hadamard(height), linalg.hadamard(width)) / pixels**0.5
        return w @ np.diag(parts[0].ravel()) @ w
    matrix = np.zeros((pixels, pixels))
    for i, j in product(range(height), range(width)):  # the column of a unit image
        kernel = parts[0][(i % 2) * 2 + j % 2]
        for down, right in product(range(height), range(width)):
            row = (i + down) % height * width + (j + right) % width
            matrix[row, i * width + j] = kernel[down, right]
    return matrix


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", STRUCTURED)
def test_the_matrix_is_the_formula(name, shape):
    """Q Q^T, s I + U V^T, a sum of Kronecker products, W diag W, kernels of phases; by channel."""
    operator = randomised(STRUCTURED[name](shape))
    expected = on_channels(by_hand(name, operator, shape), shape)
    np.testing.assert_allclose(dense_of(operator, shape), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [*SHAPES, (1, 8, 32), (2, 2, 16)], ids=str)
@pytest.mark.parametrize("name", [*STRUCTURED, "scalar", "pointwise", "convolution", "dense"])
def test_all_start_as_the_identity(name, shape):
    """To float64's rounding where they are in float64, whichever sides; with several entries."""
    model = specs.Kernel(kernel=1) if name == "convolution" and 2 in shape[1:] else None
    if name == "block-circulant":
        model = specs.Block(block=2)
    if name == "convolution" and model is None:
        model = specs.Kernel(kernel=3)
    made = SPECS[name].build(shape, model or SPECS[name].parameters(), 2).double()
    n = math.prod(shape)
    for iteration in (0, 1, 5):
        found = dense_of(made, shape, iteration)
        np.testing.assert_allclose(found, np.eye(n), rtol=0, atol=1e-13)


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 2, 8), (1, 32, 2)], ids=str)
def test_the_hadamard_transform_is_exact_in_float64(shape):
    """Also where 1 / sqrt(side) is no dyadic number: the eigenvalues are the gains."""
    operator = randomised(HadamardDiagonal(shape))
    values = np.linalg.eigvalsh(dense_of(operator, shape))
    np.testing.assert_allclose(values, np.sort(numbers(operator)[0].ravel()), atol=1e-12)


def test_symmetric_is_positive_semidefinite():
    """Whatever Q is."""
    found = dense_of(randomised(Symmetric((2, 4, 3))), (2, 4, 3))
    np.testing.assert_array_equal(found, found.T)
    assert np.linalg.eigvalsh(found)[0] > -1e-12


@pytest.mark.parametrize("block", [1, 2, 3, 6])
def test_block_circulant_commutes_with_its_shifts_only(block):
    """Shifts of (block, 0) and (0, block); block - 1 is refused by a random one."""
    shape = (1, 6, 12)
    operator = randomised(BlockCirculant(shape, block))
    p = dense_of(operator, shape)
    assert sum(part.numel() for part in operator.parameters()) == block**2 * 72

    def shift(down, right):
        unit = np.eye(72).reshape(72, 6, 12)
        return np.roll(unit, (down, right), (1, 2)).reshape(72, 72).T

    for down, right in ((block, 0), (0, block)):
        moved = shift(down, right)
        np.testing.assert_allclose(p @ moved, moved @ p, atol=1e-12)
    if block > 1:
        for down, right in ((1, 0), (0, 1)):
            assert np.abs(p @ shift(down, right) - shift(down, right) @ p).max() > 0.1


def test_block_one_is_diagonal_in_the_fourier_basis():
    """F P F^-1 = diag of the kernel's DFT, odd sides included."""
    shape = (1, 5, 6)
    operator = randomised(BlockCirculant(shape, 1))
    f = np.kron(linalg.dft(5), linalg.dft(6))
    found = f @ dense_of(operator, shape) @ np.linalg.inv(f)
    kernel = numbers(operator)[0][0]
    np.testing.assert_allclose(found, np.diag(np.fft.fft2(kernel).ravel()), atol=1e-10)


def test_functions_of_decimated_convolutions_are_block_circulant(dense_sr):
    """(A^T A + I)^-1 of super-resolution is a member: the columns of 9 pixels make it up."""
    a = dense_sr(12, 12, 3)
    wanted = np.linalg.inv(a.T @ a + 0.1 * np.eye(144))
    operator = BlockCirculant((1, 12, 12), 3).double()
    columns = wanted.T.reshape(12, 12, 12, 12)
    kernels = [np.roll(columns[i, j], (-i, -j), (0, 1)) for i in range(3) for j in range(3)]
    operator.kernels.data[0] = torch.from_numpy(np.stack(kernels))
    np.testing.assert_allclose(dense_of(operator, (1, 12, 12)), wanted, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "shape", "structure", "count"),
    [
        ("scalar", (2, 4, 8), {}, 1),
        ("pointwise", (2, 4, 8), {}, 64),
        ("convolution", (2, 4, 8), {"kernel": 3}, 9),
        ("dense", (2, 4, 8), {}, 32**2),
        ("dense", (2, 4, 8), {"channels": "joint"}, 64**2),
        ("symmetric", (2, 4, 8), {}, 32**2),
        ("low-rank", (2, 4, 8), {"rank": 5}, 2 * 5 * 32 + 1),
        ("low-rank", (2, 4, 8), {"rank": 500}, 2 * 32 * 32 + 1),
        ("kronecker", (2, 4, 8), {"terms": 3}, 3 * (16 + 64)),
        ("block-circulant", (2, 4, 8), {"block": 2}, 4 * 32),
        ("hadamard", (2, 4, 8), {}, 32),
    ],
)
def test_numbers_are_as_many_as_said(name, shape, structure, count):
    """And with one entry for each iteration that many times more."""
    model = build(SPECS[name].parameters, structure)
    for copies in (1, 3):
        made = SPECS[name].build(shape, model, copies)
        assert sum(part.numel() for part in made.parameters()) == copies * count
        assert all(len(part) == copies for part in made.parameters())


@pytest.mark.parametrize("shape", [(1, 4, 8), (2, 8, 4)], ids=str)
@pytest.mark.parametrize("name", STRUCTURED)
def test_no_number_is_dead(name, shape):
    """From the identity, two gradient steps on a random target change every parameter."""
    operator = STRUCTURED[name](shape).double()
    generator = torch.Generator().manual_seed(0)
    g, target = torch.randn(2, 40, *shape, generator=generator, dtype=torch.float64)
    before = [part.detach().clone() for part in operator.parameters()]
    for _ in range(2):
        operator.zero_grad()
        (operator(g, state_at(shape)) - target).square().mean().backward()
        assert all(part.grad is not None for part in operator.parameters())
        assert any(part.grad.abs().max() > 0 for part in operator.parameters())
        for part in operator.parameters():
            part.data -= 0.1 * part.grad
    for part, old in zip(operator.parameters(), before, strict=True):
        changed = (part != old).double().mean()
        assert changed > 0.99


@pytest.mark.parametrize("name", [*STRUCTURED])
def test_gradients_against_differences(name):
    """d loss / d numbers along a random direction of all parameters."""
    shape = (2, 4, 4)
    operator = randomised(STRUCTURED[name](shape))
    g = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def loss():
        return operator(g, state_at(shape)).sin().sum()

    parts = list(operator.parameters())
    exact = torch.autograd.grad(loss(), parts)
    ways = [torch.randn_like(part) for part in parts]
    values = []
    for size in (1e-6, -2e-6):
        for part, way in zip(parts, ways, strict=True):
            part.data += size * way
        values.append(loss().item())
    slope = sum((a * b).sum().item() for a, b in zip(exact, ways, strict=True))
    assert (values[0] - values[1]) / 2e-6 == pytest.approx(slope, rel=1e-5)


@pytest.mark.parametrize("name", [*STRUCTURED, "scalar", "pointwise", "convolution", "dense"])
def test_scale_multiplies_the_operator(name):
    """Every entry by the factor."""
    shape = (2, 4, 4)
    made = {
        "scalar": lambda shape, copies: Scalar(copies),
        "pointwise": lambda shape, copies: Pointwise(copies, shape),
        "convolution": lambda shape, copies: Convolution(copies, 3),
        "dense": lambda shape, copies: Dense(shape, copies=copies),
    } | STRUCTURED
    operator = randomised(made[name](shape, copies=2))
    before = [dense_of(operator, shape, k) for k in (0, 1)]
    operator.scale(2.5)
    for k in (0, 1):
        np.testing.assert_allclose(dense_of(operator, shape, k), 2.5 * before[k], rtol=1e-12)


PROJECTED = ["symmetric", "low-rank", "kronecker"]  # others are solved for


@pytest.mark.parametrize("shape", [(1, 4, 8), (2, 8, 4)], ids=str)
@pytest.mark.parametrize("name", PROJECTED)
def test_members_are_their_own_approximation(name, shape):
    """From the shared matrix and from the one over all channels, in every entry."""
    make = STRUCTURED[name]
    member = dense_of(randomised(make(shape), 1), shape)
    pixels = shape[1] * shape[2]
    for matrix in (member, member[:pixels, :pixels]):
        operator = make(shape, copies=2).double()
        operator.approximate(torch.from_numpy(matrix.copy()))
        for k in (0, 1):
            np.testing.assert_allclose(dense_of(operator, shape, k), member, atol=1e-9)


def nearest_by_lbfgs(operator, matrix, shape, starts=4):
    """The least Frobenius distance that LBFGS finds from random numbers of the family."""
    found = []
    for seed in range(starts):
        randomised(operator, seed)
        parts = list(operator.parameters())
        for part in parts:
            part.data *= 0.5
        optimiser = torch.optim.LBFGS(
            parts, max_iter=400, tolerance_grad=1e-10, line_search_fn="strong_wolfe"
        )
        eye = torch.eye(len(matrix), dtype=torch.float64).view(-1, *shape)

        def closure(optimiser=optimiser, eye=eye):
            optimiser.zero_grad()
            rows = operator(eye, state_at(shape)).flatten(1)
            value = (rows.T - matrix).square().sum()
            value.backward()
            return value

        optimiser.step(closure)
        found.append(closure().item())
    return min(found)


@pytest.mark.parametrize(
    ("name", "slack"), [(name, 0.05 if name == "low-rank" else 1e-6) for name in PROJECTED]
)
def test_the_approximation_is_the_nearest(name, slack):
    """No member that LBFGS reaches from random starts is nearer to a matrix without structure.

    That of low rank chooses s beforehand, which costs some per cent.
    """
    shape = (2, 2, 4)
    generator = torch.Generator().manual_seed(5)
    matrix = torch.randn(16, 16, generator=generator, dtype=torch.float64)
    operator = STRUCTURED[name](shape).double()
    operator.approximate(matrix)
    reached = ((dense_of(operator, shape) - matrix.numpy()) ** 2).sum()
    least = nearest_by_lbfgs(STRUCTURED[name](shape), matrix, shape)
    assert reached <= least * (1 + slack)


@pytest.mark.parametrize("name", STRUCTURED)
def test_entries_belong_to_iterations(name):
    """Iteration k uses entry k, later ones the last."""
    shape = (1, 4, 4)
    operator = randomised(STRUCTURED[name](shape, copies=3))
    singles = []
    for k in range(3):
        single = STRUCTURED[name](shape).double()
        for own, all_ in zip(single.parameters(), operator.parameters(), strict=True):
            own.data.copy_(all_.data[k : k + 1])
        singles.append(dense_of(single, shape))
    for k, entry in [(0, 0), (1, 1), (2, 2), (3, 2), (17, 2)]:
        np.testing.assert_array_equal(dense_of(operator, shape, k), singles[entry])


@pytest.mark.parametrize("name", STRUCTURED)
def test_the_state_dict_holds_the_numbers_alone(name):
    """Through a state dict the operator comes back to the bit; transforms are not stored."""
    shape = (1, 4, 4)
    operator = randomised(STRUCTURED[name](shape, copies=2))
    kept = operator.state_dict()
    assert set(kept) == {key for key, _ in operator.named_parameters()}
    fresh = STRUCTURED[name](shape, copies=2).double()
    fresh.load_state_dict(kept)
    np.testing.assert_array_equal(dense_of(fresh, shape, 1), dense_of(operator, shape, 1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BlockCirculant((1, 12, 16), 5), "block = 5 does not divide 12 x 16"),
        (lambda: BlockCirculant((1, 12, 16), 8), "block = 8 does not divide 12 x 16"),
        (lambda: HadamardDiagonal((1, 12, 16)), "12 x 16 pixels.*powers of two"),
        (lambda: HadamardDiagonal((1, 16, 24)), "16 x 24 pixels.*powers of two"),
        (
            lambda: specs.CONVOLUTION.build((1, 4, 9), specs.Kernel(kernel=5), 1),
            "kernel = 5 is larger than the images' 4 pixels",
        ),
        (lambda: build(specs.Kernel, {"kernel": 4}), "kernel = 4.*odd"),
        (lambda: build(specs.Rank, {"rank": 0}), "rank = 0"),
    ],
)
def test_mistakes_are_user_errors(make, message):
    """One line with the value and the sizes."""
    with pytest.raises(UserError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", STRUCTURED)
def test_images_of_another_shape_are_refused(name):
    """All structured numbers depend on the shape."""
    with pytest.raises(UserError, match="fit it again"):
        STRUCTURED[name]((1, 4, 8))(torch.zeros(1, 1, 8, 4), state_at((1, 8, 4)))


def test_obstacles_tell_of_shapes():
    """What `build` would refuse, said before."""
    assert specs.HADAMARD.obstacle((1, 16, 32)) is None
    assert "12 x 16" in specs.HADAMARD.obstacle((1, 12, 16))
    assert all(found.obstacle((1, 16, 16)) is None for found in SPECS.values())


def test_more_terms_than_a_matrix_has():
    """A sum of more Kronecker products than the rearranged matrix has singular values is exact."""
    shape = (1, 2, 4)
    matrix = torch.randn(8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    operator = Kronecker(shape, 6).double()
    operator.approximate(matrix)
    np.testing.assert_allclose(dense_of(operator, shape), matrix.numpy(), atol=1e-10)


@pytest.mark.parametrize("name", ["low-rank", "kronecker"])
def test_no_number_is_dead_after_an_approximation(name):
    """Training can leave the approximation of the identity, of which the rest is zero."""
    shape = (1, 4, 4)
    operator = STRUCTURED[name](shape).double()
    operator.approximate(torch.eye(16, dtype=torch.float64))
    np.testing.assert_allclose(dense_of(operator, shape), np.eye(16), atol=1e-12)
    g, target = torch.randn(2, 9, *shape, dtype=torch.float64)
    (operator(g, state_at(shape)) - target).square().mean().backward()
    left = operator.left.grad[0] if name == "low-rank" else operator.left.grad[0, 1:]
    right = operator.right.grad[0] if name == "low-rank" else operator.right.grad[0, 1:]
    assert max(left.abs().max(), right.abs().max()) > 1e-4


def test_a_structure_is_searched_among_what_images_can_have():
    """Blocks that divide the sides, kernels that fit into the image; others as declared."""
    space = {"operator.block": Search(choices=(1, 2, 4)), "solve.step": Search(0.1, 1.0)}
    found = specs.BLOCK_CIRCULANT.narrowed((1, 18, 20), space)
    assert found["operator.block"].choices == (1, 2)
    assert found["solve.step"] is space["solve.step"]
    space = {"operator.kernel": Search(choices=(3, 5, 7, 9))}
    assert specs.CONVOLUTION.narrowed((1, 6, 20), space)["operator.kernel"].choices == (3, 5)
    space = {"operator.rank": Search(choices=(8, 32))}
    assert specs.LOW_RANK.narrowed((1, 4, 4), space) == space
