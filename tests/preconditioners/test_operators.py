"""Identity and dense operators beyond the shared contract."""

import numpy as np
import pytest
import torch

from dipa_bench.errors import UserError
from dipa_bench.preconditioners import Dense, Identity, Preconditioner, State

SHAPE = (2, 3, 5)


def state_at(shape=SHAPE, dtype=torch.float64):
    point = torch.zeros(1, *shape, dtype=dtype)
    return State(0, point, point, point, None)


def random_dense(seed=0):
    operator = Dense(SHAPE, joint=True).double()
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((30, 30))
    operator.load_state_dict({"matrix": torch.from_numpy(matrix)[None]})
    return operator, matrix


def test_identity_is_the_identity():
    """The same values, dense I, no parameters, bound = lambda_max."""
    operator, g = Identity(), torch.randn(4, *SHAPE, dtype=torch.float64)
    assert torch.equal(operator(g, state_at()), g)
    np.testing.assert_array_equal(operator.dense(SHAPE, state_at()), np.eye(30))
    assert operator.state_dict() == {}
    assert operator.spectral_bound(0.3) == 0.3


def test_dense_multiplies_by_its_matrix():
    """Row by row of the batch, channels and pixels in C order."""
    operator, matrix = random_dense()
    g = np.random.default_rng(1).standard_normal((4, *SHAPE))
    found = operator(torch.from_numpy(g), state_at()).detach().numpy()
    expected = np.stack([(matrix @ one.ravel()).reshape(SHAPE) for one in g])
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_dense_starts_as_the_identity():
    """L-DIPA's initialisation; its bound is unknown."""
    for joint, count in ((False, 15 * 15), (True, 30 * 30)):
        operator, g = Dense(SHAPE, joint), torch.randn(2, *SHAPE)
        torch.testing.assert_close(operator(g, state_at()), g)
        assert operator.spectral_bound(1.0) is None
        assert sum(part.numel() for part in operator.parameters()) == count
        np.testing.assert_array_equal(operator.dense(SHAPE, state_at()), np.eye(30))


def test_channels_share_a_matrix():
    """Real and imaginary part go through the same matrix; its dense form is block-diagonal."""
    operator = Dense(SHAPE).double()
    matrix = np.random.default_rng(3).standard_normal((15, 15))
    operator.load_state_dict({"matrix": torch.from_numpy(matrix)[None]})
    g = np.random.default_rng(1).standard_normal((4, *SHAPE))
    found = operator(torch.from_numpy(g), state_at()).detach().numpy()
    expected = np.einsum("pq,bcq->bcp", matrix, g.reshape(4, 2, 15)).reshape(g.shape)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_array_equal(operator.dense(SHAPE, state_at()), np.kron(np.eye(2), matrix))


def test_dense_gives_its_matrix_away_safely():
    """`dense` equals the matrix, and changing the copy does not change the operator."""
    operator, matrix = random_dense()
    copy = operator.dense(SHAPE, state_at())
    np.testing.assert_array_equal(copy, matrix)
    copy.zero_()
    np.testing.assert_array_equal(operator.matrix.detach()[0], matrix)


def test_the_generic_dense_agrees():
    """Column by column through `forward`, transposed the right way round."""
    operator, matrix = random_dense()
    found = Preconditioner.dense(operator, SHAPE, state_at())
    np.testing.assert_allclose(found, matrix, rtol=1e-12)


def test_dense_through_several_blocks():
    """More columns than fit in one block of 256."""

    class Reverse(Preconditioner):
        def forward(self, gradient, state):
            return gradient.flatten(1).flip(1).view_as(gradient)

    found = Reverse().dense((1, 20, 20), state_at((1, 20, 20)))
    np.testing.assert_array_equal(found, np.eye(400)[::-1])


def test_state_dict_round_trip(tmp_path):
    """Through a safetensors file into a fresh operator."""
    from safetensors.torch import load_file, save_file

    operator, _ = random_dense()
    save_file(operator.state_dict(), tmp_path / "operator.safetensors")
    fresh = Dense(SHAPE, joint=True).double()
    fresh.load_state_dict(load_file(tmp_path / "operator.safetensors"))
    g = torch.randn(2, *SHAPE, dtype=torch.float64)
    assert torch.equal(fresh(g, state_at()), operator(g, state_at()))


@pytest.mark.parametrize("shape", [(1, 3, 5), (2, 5, 3), (30, 1, 1)])
def test_another_image_shape_is_refused(shape):
    """Even one with as many numbers; the message names both shapes."""
    with pytest.raises(UserError, match=r"\(2, 3, 5\).*fit it again"):
        Dense(SHAPE)(torch.zeros(1, *shape), state_at(shape))


def test_a_nonlinear_operator_has_no_matrix():
    """`dense` refuses and names the class."""

    class Cube(Preconditioner):
        linear = False

        def forward(self, gradient, state):
            return gradient**3

    with pytest.raises(UserError, match="Cube is not linear"):
        Cube().dense(SHAPE, state_at())


def test_states_cannot_be_changed():
    """A run's state is frozen."""
    with pytest.raises(AttributeError):
        state_at().iteration = 3
