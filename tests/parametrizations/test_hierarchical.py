"""H-matrices and grids of low rank: ranks shared out at best, exact recovery, ranks that travel with the state."""

import copy
import heapq
import math
import pickle

import numpy as np
import pytest
import scipy.linalg
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import weft
from weft.errors import BudgetError, FitError, OptionError
from weft.parametrizations import HEDLR, HMat, make
from weft.parametrizations.hierarchical_ranks import best_ranks, even_ranks, largest_ranks, prices
from weft.testing import assert_same, oracles
from weft.testing.matrices import matrices

SHAPES = [(20, 20), (40, 51), (51, 40), (300, 300)]
ORACLES = {"hmat": oracles.hmat_matrix, "hedlr": oracles.hedlr_matrix}


def uneven_target(rows, columns):
    """Rank one in most blocks, dense in a corner, nothing in another: ranks that differ from block to block."""
    target = torch.randn(rows, 1, dtype=torch.float64) @ torch.randn(1, columns, dtype=torch.float64)
    target[: rows // 5, : columns // 5] = torch.randn(rows // 5, columns // 5, dtype=torch.float64)
    target[rows // 2 :, columns // 2 :] = 0
    return target


# ---------------------------------------------------------------- who gets how many numbers


def one_by_one(sizes, squares, budget):
    """Ranks by giving one more singular value to whichever block gains most per number, as long as one fits."""
    ranks, heap = (
        [0] * len(sizes),
        [(-s[0] / sum(size), b) for b, (s, size) in enumerate(zip(squares, sizes, strict=True))],
    )
    heapq.heapify(heap)
    while heap:
        _, b = heapq.heappop(heap)
        if sum(sizes[b]) <= budget:
            budget -= sum(sizes[b])
            ranks[b] += 1
            if ranks[b] < len(squares[b]):
                heapq.heappush(heap, (-squares[b][ranks[b]] / sum(sizes[b]), b))
    return ranks


def blocks_to_share_among(seed, decay=1.0):
    draw = np.random.default_rng(seed)
    sizes = np.concatenate([np.full((12, 2), (9, 7)), np.full((5, 2), (18, 25))])
    squares = [-np.sort(-(draw.random((n, m)) ** 4)) * draw.random((n, 1)) for n, m in ((12, 7), (5, 18))]
    return sizes, [values * decay ** np.arange(values.shape[1]) for values in squares]


@pytest.mark.parametrize("seed", range(5))
def test_sorting_once_is_giving_one_by_one(seed):
    sizes, squares = blocks_to_share_among(seed, decay=0.1)  # so that no block wants to be dense
    flat = [list(s) for level in squares for s in level]
    for budget in (16, 100, 217, 500):
        ranks, left = best_ranks(sizes, squares, budget, 0.0)
        assert ranks.tolist() == one_by_one(sizes.tolist(), flat, budget)
        assert left == pytest.approx(sum(sum(s[r:]) for s, r in zip(flat, ranks, strict=True)))


@pytest.mark.parametrize("seed", range(5))
def test_dense_blocks_leave_less_than_singular_values_alone(seed):
    sizes, squares = blocks_to_share_among(seed)
    flat = [list(s) for level in squares for s in level]
    for budget in (500, 1500, 2000, int(sizes.prod(1).sum())):
        ranks, left = best_ranks(sizes, squares, budget, 0.0)
        assert prices(sizes, ranks).sum() <= budget
        assert left == pytest.approx(sum(sum(s[r:]) for s, r in zip(flat, ranks, strict=True)), abs=1e-12)
        capped = [s[:r] for s, r in zip(flat, largest_ranks(sizes), strict=True)]
        other = one_by_one(sizes.tolist(), capped, budget)
        assert left <= (1.02 if budget == 500 else 0.98) * sum(sum(s[r:]) for s, r in zip(flat, other, strict=True))
    assert left < 1e-12  # all dense
    assert (ranks == sizes.min(1)).all()


def test_what_is_zero_gets_nothing():
    sizes, squares = blocks_to_share_among(0)
    squares[0][3], squares[1][:, 2:] = 0, 0
    ranks, left = best_ranks(sizes, squares, 5000, 1e-30)
    assert left < 1e-12
    assert ranks[3] == 0
    assert ranks[12:].tolist() == [2] * 5


@pytest.mark.parametrize("budget", [9, 60, 200, 700, 2000, 3006])
def test_even_ranks_differ_by_one_step(budget):
    sizes, _ = blocks_to_share_among(0)
    ranks = even_ranks(sizes, np.arange(17), budget)
    assert prices(sizes, ranks).sum() <= budget
    common = min(ranks.max(), *ranks[ranks <= largest_ranks(sizes)], 99)
    assert (ranks <= np.where(common + 1 > largest_ranks(sizes), sizes.min(1), common + 1)).all()
    unused = budget - prices(sizes, ranks).sum()
    steps = (prices(sizes, ranks + 1) - prices(sizes, ranks))[(ranks <= common) & (ranks < sizes.min(1))]
    assert unused < steps.min(initial=10**9)


# ---------------------------------------------------------------- the fit


@pytest.mark.parametrize("name", ["hmat", "hedlr"])
@pytest.mark.parametrize("shape", SHAPES)
def test_members_with_rank_one_blocks_are_recovered(name, shape):
    option = {"min_block": 4} if name == "hmat" else {"depth": 4}
    ones = make(name, shape, numbers=math.prod(shape), dtype=torch.float64, **option)
    target = torch.zeros(shape, dtype=torch.float64)
    for rows, columns, *_ in ones.partition():
        a, c = rows.stop - rows.start, columns.stop - columns.start
        target[rows, columns] = torch.randn(a, 1, dtype=torch.float64) @ torch.randn(1, c, dtype=torch.float64)
    numbers = sum(min(a + c, a * c) for a, c in (block_size(block) for block in ones.partition()))
    member = weft.approximate(target, name, numbers=numbers, **option)
    assert member.fit_error < 1e-13
    assert {min(block.rank, 1) for block in member.partition()} == {1}
    assert weft.approximate(target, name, min(1, numbers / math.prod(shape) * 1.0001)).fit_error < 1e-7


def block_size(block):
    return block.rows.stop - block.rows.start, block.columns.stop - block.columns.start


@pytest.mark.parametrize("name", ["hmat", "hedlr"])
def test_error_is_what_the_ranks_leave(name):
    target = torch.randn(45, 62, dtype=torch.float64)
    member = weft.approximate(target, name, 0.3)
    lost = sum(
        (scipy.linalg.svdvals(target[rows, columns].numpy())[rank:] ** 2).sum()
        for rows, columns, rank, _ in member.partition()
    )
    assert member.fit_error == pytest.approx(math.sqrt(lost / float(target.square().sum())), abs=1e-12)


@pytest.mark.parametrize("name", ["hmat", "hedlr"])
def test_the_tree_is_the_one_that_leaves_least(name):
    place = torch.linspace(0, 1, 96, dtype=torch.float64)
    target = torch.log((place[:, None] - place**2).abs() + 1e-3)
    options = [{"min_block": 2**k} for k in range(1, 7)] if name == "hmat" else [{"depth": d} for d in range(1, 6)]
    errors = [weft.approximate(target, name, 0.2, **option).fit_error for option in options]
    assert weft.approximate(target, name, 0.2).fit_error == pytest.approx(min(errors), abs=1e-9)
    assert max(errors) > 1.5 * min(errors)


@pytest.mark.parametrize("name", ["hmat", "hedlr"])
def test_no_error_above_one(name):
    for matrix in matrices(60, 45).values():
        for share in (0.05, 0.2, 0.6):
            assert weft.approximate(matrix, name, share).fit_error <= 1


def test_kernels_with_a_singularity_want_blocks_of_different_ranks():
    """Where the kernel is singular, one rank for all blocks is wrong: the H-matrix beats the uniform families."""
    place = torch.linspace(0, 1, 256, dtype=torch.float64) ** 2
    target = torch.log((place[:, None] - place).abs() + 1e-4)
    error = weft.approximate(target, "hmat", 0.12).fit_error
    assert error < 0.3 * min(weft.approximate(target, name, 0.12).fit_error for name in ("low_rank", "monarch"))


@pytest.mark.parametrize("name", ["hmat", "hedlr"])
def test_weighted_fit_beats_the_unweighted_one(name):
    x = torch.randn(200, 24, dtype=torch.float64) @ torch.randn(24, 24, dtype=torch.float64)
    x *= torch.logspace(-1.5, 0, 24, dtype=torch.float64)
    target = torch.randn(16, 24, dtype=torch.float64)
    plain, weighted = (weft.approximate(target, name, 0.4, gram=gram) for gram in (None, x.T @ x))
    assert weighted.fit_error < 0.9 * oracles.weighted_error(plain.dense(), target, x)


@pytest.mark.parametrize("name", ["hmat", "hedlr"])
def test_fitted_to_zero_a_member_still_computes_and_learns(name):
    member = make(name, (20, 24), share=0.3, dtype=torch.float64)
    assert member.fit_(torch.zeros(20, 24)) == 0
    assert any(block.rank for block in member.partition())
    assert member.linear(torch.randn(3, 24, dtype=torch.float64)).requires_grad


# ---------------------------------------------------------------- budgets


@pytest.mark.parametrize("name", ["hmat", "hedlr"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("share", [0.05, 0.3, 0.9, 1.0])
def test_budgets_are_kept_and_used(name, shape, share):
    member = make(name, shape, share=share)
    sizes = [(block_size(block), block.rank, block.dense) for block in member.partition()]
    used = sum(a * c if dense else rank * (a + c) for (a, c), rank, dense in sizes)
    assert used <= member.num_parameters == int(share * math.prod(shape))
    step = [(rank + 1) * (a + c) for (a, c), rank, dense in sizes if not dense]
    assert member.num_parameters - used < max(step, default=1)
    assert member.values[used:].count_nonzero() == 0


def test_too_small_a_budget_names_the_smallest():
    for name, option in (("hmat", {"min_block": 4}), ("hedlr", {"depth": 3})):
        with pytest.raises(BudgetError, match="smallest share that works") as caught:
            make(name, (40, 60), share=0.001, **option)
        member = make(name, (40, 60), share=caught.value.smallest_share, **option)
        assert sum(block.rank > 0 for block in member.partition()) == 1


def test_without_options_every_block_gets_something_where_it_can():
    assert make("hedlr", (64, 64), share=0.3).depth == 4
    assert make("hedlr", (64, 64), share=0.15).depth == 3
    assert make("hedlr", (64, 64), share=0.04).depth == 1
    for share in (0.5, 0.1, 0.05):
        assert all(block.rank for block in make("hmat", (300, 300), share=share).partition())
    assert make("hmat", (300, 300), share=0.5).min_block == 32
    assert make("hmat", (300, 300), share=0.02).min_block > 32


@pytest.mark.parametrize("member", [HEDLR((24, 30), numbers=90, depth=3), HMat((24, 30), numbers=150, min_block=2)])
def test_variance_is_right_on_average_where_most_blocks_are_zero(member):
    draws = []
    for _ in range(300):
        member.reset_parameters()
        draws.append(member.dense().detach())
    entries = torch.stack(draws)
    assert (entries == 0).double().mean() > 0.4
    assert entries.square().mean().item() == pytest.approx(1 / 90, rel=0.05)


# ---------------------------------------------------------------- the product


@pytest.mark.parametrize("name", ["hmat", "hedlr"])
@pytest.mark.parametrize("shape", [(64, 64), (61, 75), (130, 48)])
def test_products_with_fitted_ranks(name, shape):
    """Ranks that differ, dense blocks and empty ones; with gradients at once, without in chunks."""
    member = weft.approximate(uneven_target(*shape), name, 0.3, **({"min_block": 2} if name == "hmat" else {}))
    ranks = {block.rank for block in member.partition()}
    assert 0 in ranks
    assert len(ranks) > 2
    assert any(block.dense for block in member.partition())
    x, want = torch.randn(900, shape[1], dtype=torch.float64), ORACLES[name](member)
    assert_same(member.dense(), want, 1e-13, "dense()")
    assert_same(member.linear(x), x @ want.T, 1e-13, "the product with gradients")
    with torch.no_grad():
        assert_same(member.linear(x), x @ want.T, 1e-13, "the product in evaluation")


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation makes."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.numbers = max(self.numbers, result.numel())
        return result


@pytest.mark.parametrize("name", ["hmat", "hedlr"])
@pytest.mark.parametrize("side", [256, 300])
def test_the_product_makes_no_dense_matrix(name, side):
    member = make(name, (side, side), share=0.1)
    with Largest() as largest:
        member.linear(torch.randn(2, side)).sum().backward()
    assert largest.numbers < side * side / 4


def test_multiply_adds_grow_by_panels_only():
    assert HEDLR((64, 64), numbers=64 * 16, depth=4).padded == 64 * 16  # rank one everywhere
    for share in (0.1, 0.3):
        assert 1 <= make("hmat", (512, 512), share=share).padded / (share * 512**2) < 1.4


def test_splits_cut_no_kernel():
    for name in ("hmat", "hedlr"):
        layer = weft.Conv2d(16, 16, 3, parametrization=name, share=0.4, dtype=torch.float64)
        x = torch.randn(2, 16, 5, 5, dtype=torch.float64)
        assert all(block.columns.start % 9 == 0 for block in layer.parametrization.partition())
        assert_same(layer(x), layer.fold()(x), 1e-12, "the convolution")


# ---------------------------------------------------------------- the state


@pytest.mark.parametrize("name", ["hmat", "hedlr"])
@pytest.mark.parametrize("shape", [(48, 48), (45, 53)])
def test_fitted_ranks_travel(name, shape):
    option = {"min_block": 2} if name == "hmat" else {"depth": 4}
    fitted = weft.approximate(uneven_target(*shape), name, 0.3, **option)
    want, state = fitted.dense(), fitted.state_dict()

    def fresh(**common):
        return make(name, shape, share=0.3, dtype=torch.float64, **option, **common)

    loaded, emptied, assigned = fresh(), fresh(device="meta").to_empty(device="cpu"), fresh(device="meta")
    assert not torch.equal(loaded.ranks, fitted.ranks)
    loaded.load_state_dict(state)
    emptied.load_state_dict(state)
    assigned.load_state_dict(state, assign=True)
    for other in (loaded, emptied, assigned, copy.deepcopy(fitted), pickle.loads(pickle.dumps(fitted))):
        assert_same(other.dense(), want, 0, "the matrix")
        assert other.partition() == fitted.partition()
        assert_same(other.linear(torch.eye(shape[1]).double()), want.T, 1e-14, "the product")
    fitted.reset_parameters()
    assert fitted.partition() == fresh().partition()
    assert not torch.equal(fitted.ranks, loaded.ranks)


def test_damaged_states_are_refused():
    member = HMat((32, 32), numbers=400, min_block=2)
    for ranks in (torch.full_like(member.ranks, 50), torch.zeros_like(member.ranks), member.ranks - 3):
        with pytest.raises(RuntimeError, match="ranks of 'hmat' do not fit its 400 numbers"):
            HMat((32, 32), numbers=400, min_block=2).load_state_dict({**member.state_dict(), "ranks": ranks})


# ---------------------------------------------------------------- options


def test_options_are_checked():
    for name, options, words in (
        ("hmat", {}, r"needs a size: give numbers=\d+\.\.96, or share"),
        ("hmat", {"numbers": 97}, r"numbers must be in .*\.\.96 for shape \(8, 12\), got 97"),
        ("hmat", {"numbers": 4, "min_block": 2}, r"= 10\.\.96 .*got 4"),
        ("hmat", {"numbers": 50, "min_block": 0}, "min_block must be at least 1, got 0"),
        ("hmat", {"numbers": 50, "eta": 1.0}, r"eta must be in \(0, 1\), got 1"),
        ("hmat", {"share": 0.5, "eta": 0}, r"eta must be in \(0, 1\), got 0"),
        ("hedlr", {}, "needs a size"),
        ("hedlr", {"numbers": 50, "depth": 5}, r"1\.\.1 \+ floor.*= 1\.\.4 for shape \(8, 12\), got 5"),
        ("hedlr", {"numbers": 50, "depth": 0}, "got 0"),
        ("hedlr", {"share": 0.5, "numbers": 50}, "give numbers or share to 'hedlr', not both; got numbers=50"),
    ):
        with pytest.raises(OptionError, match=words):
            make(name, (8, 12), **options)
    with pytest.raises(FitError, match="finite"):
        weft.approximate(torch.full((8, 12), torch.nan), "hmat", 0.8)


def test_eta_makes_blocks_larger():
    blocks = [HMat((128, 128), numbers=4000, min_block=2, eta=eta).blocks for eta in (0.2, 0.3, 0.5)]
    assert blocks == sorted(blocks, reverse=True)
    assert len(set(blocks)) == 3


@pytest.mark.parametrize("layer", [weft.HMatLinear, weft.HEDLRLinear])
def test_named_layers(layer):
    weight = uneven_target(48, 64).float()
    made = layer(64, 48, 0.4, bias=False, initial_weight=weight)
    assert made.fit_error < 0.2
    assert made.parametrization.num_parameters == int(0.4 * 64 * 48)
    assert "blocks=" in repr(made)
