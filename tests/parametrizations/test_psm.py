"""Products of sparse matrices: order, exact numbers, the fit's figures, and both ways of the product."""

import math

import pytest
import scipy.linalg
import torch

import weft
from weft.errors import BudgetError, OptionError
from weft.parametrizations import PSM, make, psm, psm_fit, psm_moves
from weft.parametrizations.base import relative_error
from weft.testing import assert_same, oracles

SHAPES = [(20, 20), (40, 51), (51, 40), (300, 300)]


def from_the_definition(member):
    return oracles.sparse_product(member.values, member.row_index, member.column_index, member.counts, member.shape)


@pytest.mark.parametrize("shape", [(9, 14), (14, 9), (10, 10)])
@pytest.mark.parametrize("factors", [2, 3, 4])
def test_the_last_factor_is_applied_first(shape, factors):
    """The earlier code ran last, first, second, ...: right for two factors only (defect D5)."""
    member = PSM(shape, nonzeros=shape[0] * shape[1], factors=factors, dtype=torch.float64)
    x = torch.randn(5, shape[1], dtype=torch.float64)
    assert_same(member.dense(), from_the_definition(member), 1e-13, "dense()")
    for way in (member.linear, torch.func.vmap(member.linear)):  # kernels, and gathers
        assert_same(way(x), x @ from_the_definition(member).T, 1e-12, "the product")


@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("with_bias", [False, True])
def test_chunks_of_rows_change_nothing(rows, with_bias, monkeypatch):
    monkeypatch.setattr(psm, "_CACHED", 14 * 16)  # chunks of 16 rows
    member = PSM((14, 9), nonzeros=100, factors=3, dtype=torch.float64)
    x, bias = torch.randn(2, rows, 9, dtype=torch.float64), torch.randn(14, dtype=torch.float64)
    expected = x @ from_the_definition(member).T + (bias if with_bias else 0)
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            y = member.linear(x, bias if with_bias else None)
        assert_same(y, expected, 1e-12, "the product")
        assert y.is_contiguous()


def test_kernels_and_gathers_have_the_same_gradients(monkeypatch):
    member = PSM((14, 9), nonzeros=100, factors=3, dtype=torch.float64)
    x = torch.randn(5, 9, dtype=torch.float64, requires_grad=True)

    def gradients():
        y = member.linear(x)
        first = torch.autograd.grad(y.square().sum(), [member.values, x], create_graph=True)
        return y, *first, *torch.autograd.grad(sum(g.square().sum() for g in first), [member.values, x])

    assert member._takes_kernels(x)
    kernels = gradients()
    monkeypatch.setattr(member, "_takes_kernels", lambda x: False)
    for got, want in zip(kernels, gradients(), strict=True):
        assert_same(got, want, 1e-10, "what the kernels give")


# Relative errors of the specification's table, of two and three factors: 64 x 64, or as given.
TABLE = [
    ("uniform", 0.2, 0.663, 0.712),
    ("uniform", 0.5, 0.262, 0.349),
    ("sparse", 0.2, 0.287, 0.335),
    ("hadamard", 0.5, 0.729, 0.725),
    ("rank 8", 0.2, 0.349, 0.384),
    ("uniform 40x51", 0.5, 0.288, 0.369),
]


def table_matrix(name):
    if name == "hadamard":
        return torch.from_numpy(scipy.linalg.hadamard(64)).float()
    if name == "rank 8":
        return torch.randn(64, 8) @ torch.randn(8, 64)
    if name == "sparse":  # three factors with a tenth of their entries, in (0, 1): the table's other columns tell that
        return torch.linalg.multi_dot([torch.rand(64, 64) * (torch.rand(64, 64) < 0.1) for _ in range(3)])
    return torch.rand(40, 51) * 2 - 1 if name.endswith("51") else torch.rand(64, 64) * 2 - 1


@pytest.mark.parametrize("factors", [2, 3])
@pytest.mark.parametrize(("name", "share", "of_two", "of_three"), TABLE)
def test_fit_reaches_the_table(name, share, of_two, of_three, factors):
    target = table_matrix(name)
    member = make("psm", tuple(target.shape), share=share, factors=factors)
    error = member.fit_(target)
    assert error <= (of_two, of_three)[factors - 2]
    assert abs(error - ((from_the_definition(member) - target).norm() / target.norm()).item()) < 1e-5
    assert sum(member.counts) == member.num_parameters == int(share * target.numel())


def pruning_error(target, count):
    dropped = target.flatten().abs().sort(descending=True).values[count:]
    return (dropped.norm() / target.norm()).item()


@pytest.mark.parametrize("shape", [(20, 30), (30, 20)])
@pytest.mark.parametrize("factors", [2, 3])
def test_no_worse_than_the_largest_entries(shape, factors):
    """Identities take min(O, I) numbers each. Few large entries, all over the place, are nothing but sparse."""
    target = torch.randn(shape).pow(5)
    member = make("psm", shape, share=0.25, factors=factors)
    assert member.fit_(target) <= pruning_error(target, 150 - (factors - 1) * 20) + 1e-6


def test_sparse_targets_are_met_exactly():
    target = torch.randn(20, 30) * (torch.rand(20, 30) < 0.1)
    member = PSM((20, 30), nonzeros=int(target.count_nonzero()) + 20)
    assert member.fit_(target) < 1e-6
    assert sum(member.counts) == member.nonzeros


def test_swaps_and_starts_are_worth_it(monkeypatch):
    """Each part of the fit lowers the error of what the others leave."""
    target = table_matrix("uniform")
    whole = make("psm", (64, 64), share=0.2).fit_(target)
    monkeypatch.setattr("weft.parametrizations.psm_fit.swapped", lambda *_, **__: None)
    unswapped = make("psm", (64, 64), share=0.2).fit_(target)

    def cut(target, factors, counts, *_, **__):
        return [psm_moves.largest(factor, count) for factor, count in zip(factors, counts, strict=True)]

    monkeypatch.setattr("weft.parametrizations.psm_fit.sweeps", cut)
    unswept = make("psm", (64, 64), share=0.2).fit_(target)
    assert whole < 0.95 * unswapped
    assert unswapped < 0.95 * unswept


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_swaps_are_chosen_by_what_the_error_says(place, weighted):
    """In balanced scales the square of a slope is what the error can fall by, of an entry what it rises by without."""
    factors = [torch.randn(*side).double() for side in ((6, 7), (7, 7), (7, 5))]
    x = torch.randn(40, 5, dtype=torch.float64) @ torch.randn(5, 5, dtype=torch.float64)
    gram, target = x.T @ x if weighted else torch.eye(5, dtype=torch.float64), torch.randn(6, 5, dtype=torch.float64)

    def square(factors):
        residual = torch.linalg.multi_dot(factors) - target
        return (residual @ gram * residual).sum()

    sides = psm_moves.Sides(factors, place, gram if weighted else None)
    slope = sides.slope((torch.linalg.multi_dot(factors) - target) @ gram)
    changed = [factor.clone() for factor in factors]
    changed[place][2, 3] -= (slope / sides.lengths)[2, 3]
    assert_same(square(factors) - square(changed), slope[2, 3] ** 2, 1e-9, "the gain of the best value of one entry")
    optimum = changed[place][2, 3].clone()
    changed[place][2, 3] = 0
    lost = square(changed) - (square(factors) - slope[2, 3] ** 2)
    assert_same(lost, (optimum * sides.lengths[2, 3]) ** 2, 1e-9, "the loss without it")


def test_a_given_share_of_the_last_factor_stays():
    target = torch.randn(24, 16)
    member = PSM((24, 16), nonzeros=120, factors=3, last_share=0.5)
    assert member.fit_(target) < pruning_error(target, 60)
    assert member.counts == [20, 40, 60]


@pytest.mark.parametrize(("of_two", "of_three", "chosen"), [(0.3, 0.2, 3), (0.2, 0.3, 2)])
def test_the_number_of_factors_is_what_comes_nearer_to_a_target(of_two, of_three, chosen, monkeypatch):
    def start(target, counts, *, shared):
        assert sum(counts) == 160
        assert shared
        return psm_fit.Found((of_two, of_three)[len(counts) - 2], [])

    monkeypatch.setattr(psm, "best_start", start)
    target = torch.randn(20, 20)
    assert make("psm", (20, 20), target=target, share=0.4).factors == chosen
    assert make("psm", (20, 20), target=target, share=0.4, factors=4).factors == 4


def test_a_weighted_fit_moves_positions_too():
    """Inputs of which four matter: their columns get the numbers."""
    target, gram = torch.randn(12, 16), torch.diag(torch.cat([torch.full((4,), 1e4), torch.ones(12)]))
    member, plain = PSM((12, 16), nonzeros=60), PSM((12, 16), nonzeros=60)
    plain.fit_(target)
    assert member.fit_(target, gram) < 0.2 * relative_error(plain.dense(), target, gram)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("factors", [2, 3])
def test_budgets_are_met_exactly(shape, share, factors):
    member = make("psm", shape, share=share, factors=factors)
    assert member.num_parameters == member.values.numel() == int(share * math.prod(shape)) == sum(member.counts)
    flat = [
        pattern.rows.long() * side[1] + pattern.columns
        for (_, pattern), side in zip(member._sparse(), member.sides, strict=True)
    ]
    assert [len(places.unique()) for places in flat] == member.counts  # no position is stored twice


def test_a_fitted_pattern_travels_with_the_state():
    target = torch.randn(12, 8)
    source, other = PSM((12, 8), nonzeros=50), PSM((12, 8), nonzeros=50)
    source.fit_(target)
    other.load_state_dict(source.state_dict())
    assert other.counts == source.counts
    assert torch.equal(other.dense(), source.dense())
    x = torch.randn(3, 8, requires_grad=True)
    for gradient in (torch.autograd.grad(each.linear(x).square().sum(), x)[0] for each in (source, other)):
        assert_same(gradient, 2 * x @ source.dense().T @ source.dense(), 1e-5, "the gradient")
    source.reset_parameters()
    assert source.counts == [25, 25]


def test_numbers_are_reported_with_and_without_their_indices():
    """Values, a column of each, and where the 12 + 1 and 20 + 1 rows of the two factors begin."""
    member = PSM((12, 20), nonzeros=60)
    assert member.share == 60 / 240
    assert member.share_with_indices == (60 + 60 + 13 + 21) / 240
    assert "share=0.25, share_with_indices=0.642" in repr(member)


def test_any_optimizer_trains_it():
    layer, x = weft.PSMLinear(16, 12, share=0.5, factors=3), torch.randn(64, 16)
    y, optimizer = x @ torch.randn(16, 12), torch.optim.Adam(layer.parameters(), 0.02)
    losses = []
    for _ in range(300):
        optimizer.zero_grad()
        loss = (layer(x) - y).square().mean()
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]


def test_bad_options_are_refused():
    with pytest.raises(OptionError, match="factors must be at least 2, got 1"):
        PSM((8, 12), nonzeros=10, factors=1)
    with pytest.raises(OptionError, match=r"give nonzeros=2\.\.96"):
        PSM((8, 12))
    with pytest.raises(OptionError, match=r"nonzeros must be in .* = 2\.\.96, got 97"):
        PSM((8, 12), nonzeros=97)
    with pytest.raises(OptionError, match=r"last_share must be in \(0, 1\), got 1"):
        PSM((8, 12), nonzeros=50, last_share=1)
    with pytest.raises(OptionError, match="leaves no numbers"):
        PSM((8, 12), nonzeros=50, factors=3, last_share=0.9)
    with pytest.raises(OptionError, match="not both; got nonzeros=5"):
        make("psm", (8, 12), share=0.5, nonzeros=5)
    with pytest.raises(BudgetError, match="smallest share"):
        make("psm", (8, 12), share=0.01)
