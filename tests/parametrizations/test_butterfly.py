"""Butterfly: transforms are members, and members are found; few numbers; products in the fused form."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch

from weft.errors import BudgetError, OptionError
from weft.parametrizations import Butterfly, make
from weft.testing import assert_same, oracles

SHAPES = [(20, 20), (40, 51), (51, 40), (300, 300)]


def double(shape, **options):
    return Butterfly(shape, dtype=torch.float64, **options)


def bit_reversed(size):
    """The order of the numbers 0..size-1 when their bits are read backwards."""
    bits = size.bit_length() - 1
    return [int(f"{n:0{bits}b}"[::-1], 2) for n in range(size)]


@pytest.mark.parametrize("size", [4, 8, 64, 256])
def test_hadamard_is_a_butterfly(size):
    matrix = torch.from_numpy(scipy.linalg.hadamard(size)).double()
    assert double((size, size)).fit_(matrix) < 1e-13


def test_the_fast_transform_of_hadamard_by_hand():
    member = double((16, 16))
    with torch.no_grad():
        member.factors.copy_(torch.tensor([[1.0, 1.0], [1.0, -1.0]]).reshape(4, 1))
    assert_same(member.dense(), torch.from_numpy(scipy.linalg.hadamard(16)), 0, "dense()")


@pytest.mark.parametrize("size", [8, 32])
def test_fourier_has_the_hierarchy_of_butterflies_after_bit_reversal(size):
    """Over the complex numbers: every part that one pair of factors is fitted to has rank 1."""
    fourier = np.fft.fft(np.eye(size))[:, bit_reversed(size)]
    low = 2 ** ((size.bit_length() - 1) // 2)
    parts = fourier.reshape(size // low, low, size // low, low)
    for group in range(low):
        for block in range(size // low):
            assert np.linalg.matrix_rank(parts[:, group, block, :], tol=1e-9) == 1


@pytest.mark.parametrize("shape", [(16, 16), (64, 64), (13, 32), (30, 9), (5, 2)])
def test_butterflies_are_found_whatever_their_values(shape):
    member = double(shape)
    with torch.no_grad():
        member.factors.normal_()
    assert double(shape).fit_(oracles.butterfly(member.factors, member.levels, shape)) < 1e-10


@pytest.mark.parametrize("size", [4, 32, 256])
def test_the_start_is_orthogonal_up_to_its_scale(size):
    matrix = double((size, size), variance=0.3, depth=2).dense()
    assert_same(matrix @ matrix.T, 0.3 * size * torch.eye(size), 1e-5, "W W^T")


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("rows", [1, 200])
def test_chunks_change_nothing(depth, rows):
    member = double((20, 13), depth=depth)
    x, bias = torch.randn(rows, 13, dtype=torch.float64), torch.randn(20, dtype=torch.float64)
    matrix = oracles.butterfly(member.factors, member.levels, (20, 13))
    assert_same(member.dense(), matrix, 1e-12, "dense()")
    with torch.no_grad():
        assert_same(member.linear(x, bias), x @ matrix.T + bias, 1e-12, "the product")


@pytest.mark.parametrize("shape", [(32, 32), (20, 32)])
def test_refinement_improves_on_the_hierarchy_and_depth_on_both(shape, monkeypatch):
    target = torch.randn(shape, dtype=torch.float64)
    one, two = double(shape).fit_(target), double(shape, depth=2).fit_(target)
    monkeypatch.setattr("weft.parametrizations.butterfly.refine", lambda *_, **__: 0.0)
    closed = double(shape).fit_(target)
    assert two < one < closed < 1


@pytest.mark.parametrize("shape", SHAPES)
def test_budgets_are_kept(shape):
    size = 2 ** (max(shape) - 1).bit_length()
    least = 2 * size * int(math.log2(size))
    for share in (0.05, 0.1, 0.2, 0.5, 0.9):
        budget = int(share * math.prod(shape))
        if budget < least:
            with pytest.raises(BudgetError, match="smallest share that works"):
                make("butterfly", shape, share=share)
        else:
            member = make("butterfly", shape, share=share)
            assert budget - least < member.num_parameters <= budget


def test_bad_options_are_refused():
    with pytest.raises(OptionError, match="depth must be at least 1, got 0"):
        Butterfly((8, 8), depth=0)
    with pytest.raises(OptionError, match="not both; got depth=2"):
        make("butterfly", (64, 64), share=0.9, depth=2)
    with pytest.raises(BudgetError, match="no share works"):
        make("butterfly", (12, 8), share=0.9)
