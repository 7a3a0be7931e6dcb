"""HODLR: ranks and supports of its blocks, exact recovery, the best depth in a budget, every path of the product."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch

import weft
from weft.errors import BudgetError, FitError, OptionError
from weft.parametrizations import HODLR, make
from weft.parametrizations.refine import refine
from weft.testing import assert_same, oracles

SHAPES = [(16, 24), (20, 20), (40, 51), (51, 40)]


def spans(total, leaves):
    """First and last index of every leaf."""
    return [(part[0], part[-1] + 1) for part in np.array_split(range(total), leaves)]


def off_diagonal_blocks(matrix, depth):
    """Blocks off the diagonal of every split, by recursion over the leaves."""
    rows, columns = spans(matrix.shape[0], 2 ** (depth - 1)), spans(matrix.shape[1], 2 ** (depth - 1))

    def split(first, last):
        if last - first == 1:
            return
        middle = (first + last) // 2
        upper, lower = (slice(rows[a][0], rows[b - 1][1]) for a, b in ((first, middle), (middle, last)))
        left, right = (slice(columns[a][0], columns[b - 1][1]) for a, b in ((first, middle), (middle, last)))
        yield matrix[upper, right]
        yield matrix[lower, left]
        yield from split(first, middle)
        yield from split(middle, last)

    return list(split(0, len(rows)))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("depth", "rank"), [(2, 3), (3, 1), (4, 2)])
def test_every_block_off_the_diagonal_has_the_rank(shape, depth, rank):
    member = HODLR(shape, depth=depth, rank=rank, dtype=torch.float64)
    blocks = off_diagonal_blocks(member.dense().detach().numpy(), depth)
    assert len(blocks) == 2**depth - 2
    assert {np.linalg.matrix_rank(block) for block in blocks} == {rank}
    assert f"depth={depth}, rank={rank}" in repr(member)


def test_right_factor_reaches_everything_but_the_leaves():
    member = HODLR((20, 21), depth=3, rank=1, dtype=torch.float64)
    with torch.no_grad():
        member.right.zero_()
    got = member.dense() != 0
    want = torch.block_diag(
        *(torch.ones(b - a, d - c) for (a, b), (c, d) in zip(spans(20, 4), spans(21, 4), strict=True))
    )
    assert torch.equal(got, want.bool())


def test_depth_one_is_the_dense_matrix():
    target = torch.randn(5, 7, dtype=torch.float64)
    member = HODLR((5, 7), depth=1, dtype=torch.float64)
    assert member.right is None
    assert member.num_parameters == 35
    assert member.build_cost() == 0
    assert member.fit_(target) == 0
    assert member.fit_(target, torch.eye(7, dtype=torch.float64)) == 0
    x = torch.randn(3, 7, dtype=torch.float64)
    assert_same(member.linear(x), x @ target.T, 1e-14, "the product")


@pytest.mark.parametrize("shape", [(300, 300), (40, 51), (51, 40)])
def test_members_with_rank_one_blocks_are_recovered(shape):
    target = HODLR(shape, depth=4, rank=1, dtype=torch.float64).dense().detach()
    member = weft.approximate(target, "hodlr", depth=4, rank=1)
    assert member.fit_error < 1e-14
    assert weft.approximate(target, "hodlr", share=min(1, member.share * 1.0001)).fit_error < 1e-7


def test_fit_truncates_every_block():
    target = torch.randn(22, 18, dtype=torch.float64)
    error = HODLR((22, 18), depth=3, rank=2, dtype=torch.float64).fit_(target)
    lost = sum((scipy.linalg.svdvals(block)[2:] ** 2).sum() for block in off_diagonal_blocks(target.numpy(), 3))
    assert error == pytest.approx(math.sqrt(lost / float(target.square().sum())), abs=1e-12)


def test_weighted_fit_beats_the_unweighted_one_clearly():
    x = torch.randn(200, 24, dtype=torch.float64) @ torch.randn(24, 24, dtype=torch.float64)
    x *= torch.logspace(-1.5, 0, 24, dtype=torch.float64)
    target = torch.randn(16, 24, dtype=torch.float64)
    plain, weighted = (HODLR((16, 24), depth=3, rank=1, dtype=torch.float64) for _ in range(2))
    plain.fit_(target)
    error = weighted.fit_(target, x.T @ x)
    assert error < 0.8 * oracles.weighted_error(plain.dense(), target, x)
    assert error == pytest.approx(oracles.weighted_error(weighted.dense(), target, x), abs=1e-9)
    assert error < 0.99 * refine(plain, target, x.T @ x)  # a descent from the unweighted fit ends higher


@pytest.mark.parametrize("shape", [(20, 20), (40, 51), (51, 40), (300, 300)])
@pytest.mark.parametrize("share", [0.15, 0.2, 0.5, 0.9])
def test_budgets_are_kept_and_the_fit_is_no_worse_than_zero(shape, share):
    target = torch.rand(shape, dtype=torch.float64) * 2 - 1
    try:
        member = weft.approximate(target, "hodlr", share)
    except BudgetError:
        assert share < 0.25
        assert min(shape) < 300
        return
    largest = make("hodlr", shape, share=share, dtype=torch.float64)
    assert member.num_parameters <= largest.num_parameters <= int(share * math.prod(shape))
    assert member.fit_error <= min(1, largest.fit_(target) + 1e-9)


def test_depth_is_the_one_that_leaves_least():
    place = torch.linspace(0, 1, 128, dtype=torch.float64)
    target = torch.exp(-20 * (place[:, None] - place).abs())
    best = weft.approximate(target, "hodlr", 0.3)
    errors = {}
    for depth in range(1, 9):
        try:
            errors[depth] = weft.approximate(target, "hodlr", 0.3, depth=depth).fit_error
        except BudgetError:
            continue
    assert best.fit_error == pytest.approx(min(errors.values()), abs=1e-9)
    assert len(errors) > 2


@pytest.mark.parametrize(("shape", "depth"), [((512, 512), 8), ((300, 700), 9), ((130, 70), 3)])
def test_deep_trees_give_the_same_product(shape, depth):
    member = HODLR(shape, depth=depth, rank=1, dtype=torch.float64)
    x = torch.randn(30, shape[1], dtype=torch.float64)
    assert_same(member.linear(x), x @ member.dense().T, 1e-12, "the product")


def test_options_are_checked():
    for options, words in (
        ({}, "needs a size"),
        ({"depth": 3}, "needs a size"),
        ({"rank": 1}, "needs a size"),
        ({"depth": 1, "rank": 1}, "at depth 1"),
        ({"depth": 0, "rank": 1}, r"1\.\.1 \+ floor.*= 1\.\.4 .*got 0"),
        ({"depth": 5, "rank": 1}, "got 5"),
        ({"depth": 3, "rank": 3}, r"1\.\.2 for shape \(8, 12\) at depth 3, got 3"),
        ({"depth": 3, "rank": 0}, "got 0"),
    ):
        with pytest.raises(OptionError, match=words):
            make("hodlr", (8, 12), **options)
    with pytest.raises(OptionError, match="beside a share"):
        make("hodlr", (8, 12), share=0.9, depth=3, rank=1)
    assert make("hodlr", (64, 64), share=0.5, rank=2).rank == 2
    assert make("hodlr", (64, 64), share=0.5, depth=4).depth == 4
    with pytest.raises(BudgetError, match="no share works") as caught:
        make("hodlr", (2, 3), share=0.9, depth=2)
    assert caught.value.smallest_share is None
    with pytest.raises(FitError, match="finite"):
        weft.approximate(torch.full((8, 12), torch.nan), "hodlr", 0.8)


def test_splits_cut_no_kernel():
    member = HODLR((8, 15), depth=2, rank=2, positions=3, dtype=torch.float64)
    columns = torch.autograd.grad(member.dense()[0, :].sum(), member.left)[0].reshape(-1)[:9]
    assert columns.count_nonzero() == 9  # the first leaf holds three of five channels


def test_named_layer():
    layer = weft.HODLRLinear(64, 48, depth=3, rank=2, bias=False, initial_weight=torch.randn(48, 64))
    assert isinstance(layer.parametrization, HODLR)
    assert layer.fit_error < 1
