"""Products of sparse matrices: order, exact numbers, the fit's figures, and both ways of the product."""

import math

import pytest
import torch

import weft
from weft.errors import BudgetError, OptionError
from weft.parametrizations import PSM, make
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


# Relative errors of the specification's table: 64 x 64, or as given. "sparse" is a product of three 10 % matrices.
TABLE = [
    ("uniform", 0.2, 2, 0.663),
    ("uniform", 0.5, 2, 0.262),
    ("uniform", 0.5, 3, 0.349),
    ("hadamard", 0.5, 2, 0.729),
    ("rank 8", 0.2, 2, 0.349),
    ("uniform 40x51", 0.5, 2, 0.288),
]


def table_matrix(name):
    torch.manual_seed(0)
    if name == "hadamard":
        matrix = torch.ones(1, 1)
        for _ in range(6):
            matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), matrix)
        return matrix
    if name == "rank 8":
        return torch.randn(64, 8) @ torch.randn(8, 64)
    return torch.rand(40, 51) * 2 - 1 if name.endswith("51") else torch.rand(64, 64) * 2 - 1


@pytest.mark.parametrize(("name", "share", "factors", "error"), TABLE)
def test_fit_reaches_the_table(name, share, factors, error):
    target = table_matrix(name)
    member = make("psm", tuple(target.shape), share=share, factors=factors)
    assert member.fit_(target) < error + 0.015  # another draw of the matrix
    assert sum(member.counts) == member.num_parameters == int(share * target.numel())
    assert int((member.dense() != 0).sum()) > 0


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
    source.reset_parameters()
    assert source.counts == [25, 25]


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
