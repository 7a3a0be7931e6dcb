"""Low displacement rank: the displacement, every way of the product, rectangular Toeplitz members, sizes, training."""

import math

import pytest
import torch
from tests.cases import QuickLDR, SteppedLDR

import weft
from weft.errors import BudgetError, OptionError
from weft.parametrizations import LDR, make
from weft.parametrizations.ldr_krylov import stepped_block, stretches, whole_block
from weft.testing import assert_same, oracles
from weft.testing.matrices import matrices

SHAPES = [(20, 20), (40, 51), (51, 40), (300, 300)]


class SteppedKrylov(SteppedLDR):
    """Cut into stretches, but W is a product of Krylov blocks."""

    _few = 8


def spread(member, scale=0.1):
    """The member with operators that are no shifts any more."""
    with torch.no_grad():
        for parameter in member.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=scale)
    return member


def from_the_definition(member):
    return oracles.low_displacement_rank(member.row_operator, member.column_operator, member.left, member.right)


@pytest.mark.parametrize("cls", [LDR, SteppedLDR, SteppedKrylov])
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1), (2, 2), (2, 3), (3, 2), (3, 9), (33, 7), (40, 51), (51, 40)])
def test_every_way_is_the_sum_of_krylov_products(cls, shape):
    """Also with sides of 1 and 2, where diagonals lie on one another, and stretches that do not fit a side."""
    member = spread(cls(shape, rank=min(2, *shape), dtype=torch.float64))
    wanted, x = from_the_definition(member), torch.randn(5, shape[1], dtype=torch.float64)
    assert_same(member.dense(), wanted, 1e-12, "dense()")
    assert_same(member.linear(x), x @ wanted.T, 1e-12, "linear(x)")


def test_a_side_beyond_the_whole_operators():
    """No test class: the sizes at which the family itself changes its ways, for few and for many vectors."""
    for shape, rank in (((131, 150), 2), ((150, 131), 11), ((140, 1), 1)):
        member = spread(LDR(shape, rank=rank, dtype=torch.float64), 0.02)
        wanted, x = from_the_definition(member), torch.randn(3, shape[1], dtype=torch.float64)
        assert_same(member.dense(), wanted, 1e-11, "dense()")
        assert_same(member.linear(x), x @ wanted.T, 1e-11, "linear(x)")


@pytest.mark.parametrize("shape", [(12, 12), (9, 14), (14, 9)])
@pytest.mark.parametrize("cls", [LDR, SteppedLDR])
def test_displacement_is_that_of_the_generators(shape, cls):
    """W - A W B = G H^T - A^q G H^T B^q: of rank 2r where W itself has full rank."""
    member = spread(cls(shape, rank=2, dtype=torch.float64))
    w, generators = member.dense().detach(), (member.left @ member.right.T).detach()
    a, b = (
        whole_block(operator.detach(), torch.eye(side, dtype=torch.float64), 2, side)[:, side:]
        for operator, side in zip((member.row_operator, member.column_operator), shape, strict=True)
    )
    last = torch.linalg.matrix_power(a, min(shape)) @ generators @ torch.linalg.matrix_power(b, min(shape))
    assert_same(w - a @ w @ b, generators - last, 1e-11, "the displacement")
    assert torch.linalg.matrix_rank(w - a @ w @ b, rtol=1e-9) == 4
    assert torch.linalg.matrix_rank(w) == min(shape)


def test_krylov_blocks_column_by_column():
    operator, vectors = torch.randn(3, 50, dtype=torch.float64), torch.randn(50, 3, dtype=torch.float64)
    columns, x = [], vectors
    for _ in range(21):
        columns.append(x)
        x = operator[0, :, None] * x.roll(1, 0) + operator[1, :, None] * x + operator[2, :, None] * x.roll(-1, 0)
    for count in (1, 2, 3, 8, 16, 21):
        wanted = torch.cat(columns[:count], dim=1)
        assert_same(whole_block(operator, vectors, count, 3), wanted, 1e-12, "the block of a whole operator")
        for reach in (2, 4, 8):
            block = stepped_block(operator, vectors, stretches(50, reach), count, 3)
            assert_same(block, wanted, 1e-12, f"the block in steps of {reach}")


@pytest.mark.parametrize("kind", ["Toeplitz", "Hankel"])
@pytest.mark.parametrize("shape", [(20, 20), (40, 51), (51, 40), (24, 8), (8, 24), (130, 130)])
def test_toeplitz_and_hankel_matrices_are_found_exactly(kind, shape):
    """Of rank 2 in any shape, though the weight has full rank."""
    target = matrices(*shape)[kind]
    member = LDR(shape, rank=2, dtype=torch.float64)
    assert member.fit_(target) < 1e-11
    assert_same(from_the_definition(member), target, 1e-10, "the matrix")


@pytest.mark.parametrize("seed", range(3))
def test_best_of_three_starts_beats_low_rank(seed):
    """Uniform 20 x 20 at half the numbers: .635 in 385 s before; low rank has .601 and more."""
    target = matrices(20, 20, seed)["uniform"]
    error = make("ldr", (20, 20), share=0.5).fit_(target.float())
    assert error < 0.6 < make("low_rank", (20, 20), share=0.5).fit_(target.float())


def test_fit_depends_on_no_start_and_draws_nothing():
    first, second, target = QuickLDR((10, 12), rank=1), QuickLDR((10, 12), rank=1), torch.randn(10, 12)
    before = torch.random.get_rng_state()
    assert first.fit_(target) == second.fit_(target)
    assert_same(first.dense(), second.dense(), 0, "the matrix fitted from another draw")
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(("shape", "share"), [((24, 24), 0.4), ((20, 30), 0.6)])
def test_no_matrix_is_fitted_worse_than_by_zero(shape, share):
    for kind, target in matrices(*shape).items():
        rank = make("ldr", shape, share=share).rank
        error = QuickLDR(shape, rank=rank).fit_(target.float())
        assert error <= 1, kind
        lower = make("low_rank", shape, rank=rank).fit_(target.float())
        assert error <= lower + 1e-3, f"{kind}: {error:.3f}, and {lower:.3f} by the low rank it starts from"


def test_fit_in_half_precision_is_that_of_single():
    target = torch.randn(12, 10)
    half, single = (QuickLDR((12, 10), rank=2, dtype=dtype) for dtype in (torch.bfloat16, torch.float32))
    assert abs(half.fit_(target) - single.fit_(target)) < 0.02


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("share", [0.05, 0.1, 0.2, 0.5, 0.9])
def test_budgets_are_kept_or_refused(shape, share):
    """The earlier code had a sign wrong, and kept 6n numbers where rank 0 was all that fitted (defect D9)."""
    budget, side = int(share * math.prod(shape)), sum(shape)
    if budget < 4 * side:
        with pytest.raises(BudgetError, match="smallest share") as refused:
            make("ldr", shape, share=share)
        assert make("ldr", shape, share=refused.value.smallest_share).num_parameters == 4 * side
        return
    layer = weft.LDRLinear(shape[1], shape[0], share)
    assert layer.parametrization.rank == (budget - 3 * side) // side
    stored = sum(parameter.numel() for name, parameter in layer.named_parameters() if name != "bias")
    assert stored == layer.parametrization.num_parameters <= budget < stored + side


def test_no_share_of_a_thin_matrix_works():
    with pytest.raises(BudgetError, match="no share works"):
        make("ldr", (2, 50), share=1.0)


@pytest.mark.parametrize("shape", [(16, 16), (12, 18), (18, 12), (200, 160)])
def test_initial_entries_are_sums_of_independent_products(shape):
    """The operators are orthogonal, no product enters an entry twice, and all of their gradients are alive."""
    member = LDR(shape, rank=2, dtype=torch.float64)
    for operator, side in ((member.row_operator, shape[0]), (member.column_operator, shape[1])):
        matrix = whole_block(operator.detach(), torch.eye(side, dtype=torch.float64), 2, side)[:, side:]
        assert_same(matrix @ matrix.T, torch.eye(side, dtype=torch.float64), 0, "A A^T")
    with torch.no_grad():
        member.left.fill_(1).abs_()
        member.right.fill_(1)
        for operator in (member.row_operator, member.column_operator):
            operator.abs_()
    assert torch.equal(member.dense(), torch.full(shape, 2.0 * min(shape), dtype=torch.float64))
    member.reset_parameters()
    (member.dense() * torch.randn(shape, dtype=torch.float64)).sum().backward()
    assert (member.row_operator.grad != 0).all()
    assert (member.column_operator.grad != 0).all()


@pytest.mark.parametrize(("rule", "part"), [("plain", 0.75), ("record", 0.9)])  # the record's rates are careful ones
def test_adam_trains_it_and_nothing_blows_up(rule, part):
    """Also where all parameters take the whole rate, and not the record's part of it for the operators."""
    torch.manual_seed(0)
    layer, x = weft.LDRLinear(32, 32, rank=2), torch.randn(256, 32)
    y = x @ torch.randn(32, 32) / 32**0.5
    groups = layer.parameters() if rule == "plain" else weft.parameter_groups(layer, lr=1e-2)
    optimizer, losses = torch.optim.Adam(groups, lr=1e-2), []
    for _ in range(250):
        optimizer.zero_grad()
        loss = (layer(x) - y).square().mean()
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    assert losses[-1] < part * min(1, losses[0])
    assert max(losses) <= 1.1 * losses[0]


def test_half_precision_raises_no_rounded_powers():
    """1000 powers of operators in bf16: the factors are rounded once, W is not."""
    member = LDR((200, 200), rank=1, dtype=torch.bfloat16)
    wanted = from_the_definition(member)
    assert_same(member.dense(), wanted, 2e-2, "dense() in bf16")
    exact = spread(LDR((200, 200), rank=1), 0.02)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(exact.dense(), from_the_definition(exact), 1e-4, "dense() under autocast")
        assert exact.linear(torch.randn(2, 200)).dtype == torch.bfloat16


def test_bad_options_are_refused():
    with pytest.raises(OptionError, match=r"give rank=1"):
        LDR((8, 12))
    for rank in (0, 9):
        with pytest.raises(OptionError, match=rf"1\.\.8 for shape \(8, 12\), got {rank}"):
            LDR((8, 12), rank=rank)
    with pytest.raises(OptionError, match="not both; got rank=1"):
        make("ldr", (8, 12), share=0.9, rank=1)


def test_layer_starts_from_a_weight():
    weight = matrices(12, 16)["Toeplitz"].float()
    layer = weft.LDRLinear(16, 12, rank=2, initial_weight=weight, initial_bias=torch.ones(12))
    x = torch.randn(2, 3, 16)
    assert layer.fit_error < 1e-5
    assert_same(layer(x), x @ weight.T + 1, 1e-5, "the output")
