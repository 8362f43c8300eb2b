"""Content digests."""

import pytest
import torch

from dipa_bench import digests


def test_equal_content_has_equal_digests():
    """Whatever the memory layout, the device or the order of keys."""
    x = torch.arange(12.0).view(3, 4)
    assert digests.of(x) == digests.of(x.T.contiguous().T)
    assert digests.of({"a": 1, "b": [2.5]}) == digests.of({"b": [2.5], "a": 1})
    assert digests.of(x.clone().requires_grad_()) == digests.of(x)


def test_different_content_has_different_digests():
    """Values, shapes, types, order and grouping all count."""
    x = torch.arange(12.0)
    parts = [
        (x,),
        (x + 1e-6,),
        (x.view(3, 4),),
        (x.double(),),
        (x.int(),),
        (x[:6], x[6:]),
        (x[6:], x[:6]),
        (x, None),
        ("a", "b"),
        ("ab",),
        (["a", "b"],),
        (1,),
        (1.0,),
        ("1",),
        (True,),
        (0.1 + 0.2,),
        (0.3,),
    ]
    assert len({digests.of(*part) for part in parts}) == len(parts)


def test_stable_between_processes_and_versions():
    """As in another interpreter, with another hash seed, when this was written: keys on disk."""
    assert digests.of("x", [1, 2.5]) == "955bb6e45dfa5c2c"
    assert digests.of(torch.arange(3.0)) == "c3ce44167d17d216"
    assert digests.seed(3, "y") == 1972762608945743885


def test_seeds():
    """In the range of every generator, and different for different parts."""
    seeds = {digests.seed(0, name, index) for name in "abc" for index in range(200)}
    assert len(seeds) == 600
    assert all(0 <= seed < 2**63 for seed in seeds)
    torch.Generator().manual_seed(max(seeds))
    half = sum(seed > 2**62 for seed in seeds)
    assert 240 < half < 360


@pytest.mark.parametrize("dtype", [torch.complex64, torch.bool, torch.int64, torch.float64])
def test_every_kind_of_tensor(dtype):
    """Sixteen hexadecimal digits."""
    found = digests.of(torch.ones(3).to(dtype))
    assert len(found) == 16
    int(found, 16)
