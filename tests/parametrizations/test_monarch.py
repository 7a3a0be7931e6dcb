"""Monarch: what its members are, the part-wise optimum of the fit, and the budget."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch

import weft
from weft.errors import BudgetError, OptionError
from weft.parametrizations import LowRank, Monarch, make
from weft.testing import assert_same, oracles

SHAPES = [(20, 20), (40, 51), (51, 40), (300, 300)]


def double(shape, **options):
    return Monarch(shape, dtype=torch.float64, **options)


def shuffle(size, parts):
    """The permutation matrix that reads (parts, size/parts) column by column."""
    return torch.eye(size, dtype=torch.float64)[torch.arange(size).reshape(parts, -1).T.flatten()]


def test_it_is_a_product_of_block_diagonals_and_permutations():
    """W = P L P' R as matrices, as in section 3.1 of the paper: square, rank 1, as many blocks as their side."""
    member = double((9, 9), blocks=3)
    left, right = torch.block_diag(*member.left), torch.block_diag(*member.right)
    assert_same(member.dense(), shuffle(9, 3) @ left @ shuffle(9, 3) @ right, 1e-13, "dense()")


def test_one_block_is_low_rank():
    target = torch.randn(9, 14, dtype=torch.float64)
    monarch, low_rank = double((9, 14), blocks=1, rank=3), LowRank((9, 14), rank=3, dtype=torch.float64)
    assert monarch.num_parameters == low_rank.num_parameters
    assert monarch.fit_(target) == pytest.approx(low_rank.fit_(target), abs=1e-12)
    assert_same(monarch.dense(), low_rank.dense(), 1e-11, "the nearest matrix")


@pytest.mark.parametrize("shape", [(6, 6), (6, 18), (18, 6)])
def test_the_most_blocks_are_dense(shape):
    assert double(shape, blocks=6).fit_(torch.randn(shape, dtype=torch.float64)) < 1e-14


def test_kronecker_products_and_hadamard_are_members_and_of_full_rank():
    product = torch.kron(torch.randn(4, 4), torch.randn(4, 4)).double()
    assert double((16, 16), blocks=4).fit_(product) < 1e-7
    member = double((64, 64), blocks=8)
    assert member.fit_(torch.from_numpy(scipy.linalg.hadamard(64)).double()) < 1e-14
    assert np.linalg.matrix_rank(member.dense().detach().numpy()) == 64


def test_fourier_is_a_member_up_to_the_order_of_inputs():
    """The step of Cooley and Tukey: frequencies j*m + l, inputs i*m + k sorted by k."""
    fourier = np.fft.fft(np.eye(25)).reshape(25, 5, 5).transpose(0, 2, 1).reshape(25, 25)
    for part in (fourier.real, fourier.imag):
        assert double((25, 25), blocks=5, rank=2).fit_(torch.from_numpy(part.copy())) < 1e-13


@pytest.mark.parametrize(("shape", "blocks", "rank"), [((12, 8), 4, 1), ((13, 8), 4, 2), ((9, 20), 3, 2)])
def test_fit_truncates_every_part(shape, blocks, rank):
    target = torch.randn(shape, dtype=torch.float64)
    error = double(shape, blocks=blocks, rank=rank).fit_(target)
    width, lost = -(-shape[1] // blocks), 0.0
    for group in range(blocks):
        for block in range(blocks):
            part = target[group::blocks, block * width : (block + 1) * width].numpy()
            lost += (scipy.linalg.svdvals(part)[rank:] ** 2).sum() if part.size else 0
    assert error == pytest.approx(math.sqrt(lost) / float(target.norm()), abs=1e-12)


def test_sides_need_not_be_multiples_of_the_blocks():
    member = double((13, 10), blocks=4, rank=2)
    matrix, x = oracles.monarch(member.left, member.right, (13, 10)), torch.randn(7, 10, dtype=torch.float64)
    assert_same(member.dense(), matrix, 1e-13, "dense()")
    assert_same(member.linear(x), x @ matrix.T, 1e-12, "linear")
    assert_same(member.rows(torch.tensor([12, 0])), matrix[[12, 0]], 1e-13, "rows")
    draws = torch.stack([double((13, 10), blocks=4, rank=2, variance=0.5).dense().detach() for _ in range(400)])
    assert float(draws.var()) == pytest.approx(0.5, rel=0.05)
    near = double((13, 10), blocks=4, rank=2)
    assert near.fit_(matrix) < 1e-12
    assert near.fit_(matrix, torch.eye(10, dtype=torch.float64)) < 1e-12


def test_kernel_positions_of_a_channel_stay_together():
    member = double((6, 30), blocks=4, positions=6)
    assert (member.width, member.right.shape) == (12, (4, 4, 12))


def test_weighted_fit_beats_the_unweighted_one():
    x = torch.randn(200, 30, dtype=torch.float64) @ torch.randn(30, 30, dtype=torch.float64)
    target = torch.randn(20, 30, dtype=torch.float64)
    plain, weighted = double((20, 30), blocks=5), double((20, 30), blocks=5)
    plain.fit_(target)
    error = weighted.fit_(target, x.T @ x)
    assert error < 0.8 * oracles.weighted_error(plain.dense(), target, x)
    assert error == pytest.approx(oracles.weighted_error(weighted.dense(), target, x), abs=1e-9)


def test_weighted_fit_is_the_optimum_where_blocks_are_uncorrelated():
    """Then every part is on its own again: the truncation of its outputs."""
    blocks = [torch.randn(40, 6, dtype=torch.float64) * torch.logspace(-3, 0, 6) for _ in range(3)]
    target, lost = torch.randn(12, 18, dtype=torch.float64), 0.0
    for k, x in enumerate(blocks):
        for group in range(3):
            lost += (scipy.linalg.svdvals((target[group::3, 6 * k : 6 * k + 6] @ x.T).numpy())[2:] ** 2).sum()
    x = torch.block_diag(*blocks)
    best = math.sqrt(lost / float((target @ x.T).square().sum()))
    assert double((12, 18), blocks=3, rank=2).fit_(target, x.T @ x) == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("share", [0.05, 0.1, 0.2, 0.35, 0.5, 0.9])
def test_budgets_are_kept_and_used(shape, share):
    budget = int(share * math.prod(shape))
    try:
        member = make("monarch", shape, share=share)
    except BudgetError as error:
        assert budget < sum(shape)
        member = make("monarch", shape, share=error.smallest_share)
        budget = int(error.smallest_share * math.prod(shape))
    assert 0.8 * (budget - sum(shape)) <= member.num_parameters <= budget
    assert member.num_parameters == sum(p.numel() for p in member.parameters())
    assert member.fit_(torch.rand(shape)) < 1


def test_a_share_takes_blocks_first_then_rank():
    assert (make("monarch", (4096, 4096), share=0.0313).blocks, make("monarch", (64, 64), share=0.25).blocks) == (64, 8)
    assert make("monarch", (64, 64), share=0.75).rank == 3
    assert make("monarch", (4096, 4096), share=0.05).blocks == 32  # two blocks of rank 51 would store a bit more
    assert make("monarch", (64, 64), share=0.75, blocks=4).rank == 6
    assert make("monarch", (64, 64), share=0.75, rank=6).blocks == 4
    assert make("monarch", (64, 64), share=1.0, blocks=1).rank == 32


def test_bad_options_are_refused():
    with pytest.raises(OptionError, match=r"give blocks=1\.\.8"):
        Monarch((8, 12))
    with pytest.raises(OptionError, match=r"blocks must be in 1.*1\.\.4, got 5"):
        Monarch((8, 12), blocks=5, positions=3)
    with pytest.raises(OptionError, match=r"rank must be in 1\.\.2.*got 3: take fewer blocks"):
        Monarch((8, 12), blocks=4, rank=3)
    with pytest.raises(OptionError, match="blocks or rank, not both"):
        make("monarch", (8, 12), share=0.5, blocks=2, rank=1)
    with pytest.raises(OptionError, match=r"blocks must be in 1.*1\.\.8, got 9"):
        make("monarch", (8, 12), share=0.5, blocks=9)
    with pytest.raises(OptionError, match=r"rank must be in 1\.\.8, got 9"):
        make("monarch", (8, 12), share=0.5, rank=9)
    with pytest.raises(BudgetError, match="no share works"):
        make("monarch", (1, 5), share=0.9)


def test_the_named_layer_starts_from_a_weight():
    weight, bias = torch.kron(torch.randn(5, 5), torch.randn(4, 4)), torch.randn(20)
    layer = weft.MonarchLinear(20, 20, 0.5, True, weight, bias, blocks=5)
    assert layer.fit_error < 1 and torch.equal(layer.bias, bias)
    assert layer.parametrization.family == "monarch"
    assert isinstance(layer.fold(), torch.nn.Linear)
