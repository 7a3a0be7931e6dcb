"""Chain: factors that multiply to the weight, stay balanced under gradient flow, and fit the nearest of their rank."""

import itertools
import math

import pytest
import torch

import weft
from weft.errors import OptionError
from weft.parametrizations import Chain
from weft.testing import assert_same


def factors(member):
    middle = [] if member.inner is None else list(member.inner)
    return [member.first, *middle, *([] if member.last is None else [member.last])]


def imbalance(member):
    """W_l W_l^T - W_(l+1)^T W_(l+1) for neighbours, which gradient flow on any loss of the product leaves as it is."""
    matrices = [factor.detach() for factor in factors(member)]
    return torch.stack([a @ a.T - b.T @ b for a, b in itertools.pairwise(matrices)])


@pytest.mark.parametrize("shape", [(9, 9), (7, 12), (12, 7)])
@pytest.mark.parametrize("depth", [1, 2, 3, 5])
def test_fit_is_exact_where_the_width_allows(shape, depth):
    target = torch.randn(shape, dtype=torch.float64)
    member = Chain(shape, depth=depth, width=1.5, dtype=torch.float64)
    assert member.fit_(target) < 1e-13
    assert_same(member.dense(), target, 1e-12, "the matrix")


@pytest.mark.parametrize("weighted", [False, True])
def test_narrow_chains_fit_the_nearest_matrix_of_their_rank(weighted):
    target = torch.randn(10, 14, dtype=torch.float64)
    inputs = torch.randn(40, 14, dtype=torch.float64) * torch.linspace(0.1, 3, 14, dtype=torch.float64)
    gram = inputs.T @ inputs if weighted else torch.eye(14, dtype=torch.float64)
    member = Chain((10, 14), depth=3, width=0.4, dtype=torch.float64)
    error = member.fit_(target, gram if weighted else None)
    assert torch.linalg.matrix_rank(member.dense().detach()) == 4
    root = torch.linalg.cholesky(gram)
    values = torch.linalg.svdvals(target @ root)  # Eckart and Young
    assert error == pytest.approx(float(values[4:].norm() / values.norm()), rel=1e-9)


def test_fitted_factors_are_balanced_and_gradients_keep_them_so():
    target = torch.randn(6, 6, dtype=torch.float64)
    member = Chain((6, 6), depth=4, dtype=torch.float64)
    member.fit_(target)
    assert float(imbalance(member).abs().max()) < 1e-12
    before = imbalance(member := Chain((6, 6), depth=4, dtype=torch.float64))
    moved = []
    for lr in (1e-3, 5e-4):
        twin = Chain((6, 6), depth=4, dtype=torch.float64)
        twin.load_state_dict(member.state_dict())
        (twin.dense() - target).square().sum().backward()
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter -= lr * parameter.grad
        moved.append(float((imbalance(twin) - before).abs().max()))
    assert moved[0] / moved[1] == pytest.approx(4, rel=1e-2), "a step moves the imbalance in second order only"


@pytest.mark.parametrize(
    ("shape", "depth", "width"), [((8, 20), 4, 2), ((20, 8), 4, 0.5), ((6, 6), 1, 3), ((5, 7), 2, 1)]
)
def test_building_cost_is_that_of_the_cheaper_order(shape, depth, width):
    member = Chain(shape, depth=depth, width=width)
    sizes = [tuple(factor.shape) for factor in factors(member)]

    def macs(order):
        total, (rows, columns) = 0, order[0]
        for one, other in order[1:]:
            inner, rows, columns = (rows, one, columns) if other == rows else (columns, rows, other)
            total += rows * inner * columns
        return total

    assert member.build_cost() == min(macs(sizes), macs(sizes[::-1]))


def test_width_beyond_the_rank_can_learn():
    member = Chain((4, 4), depth=3, width=2, dtype=torch.float64)
    member.fit_(torch.randn(4, 4, dtype=torch.float64))
    member.dense().sum().backward()
    assert float(member.last.grad[:, 4:].abs().min()) > 0


def test_deeper_chains_start_with_a_smaller_effective_rank():
    ranks = [
        sum(float(weft.effective_rank(Chain((32, 32), depth=depth).dense().detach())) for _ in range(10)) / 10
        for depth in (1, 2, 4, 8)
    ]
    assert ranks == sorted(ranks, reverse=True)


def test_layers_collapse_it_where_that_is_cheaper():
    layer = weft.Linear(512, 512, parametrization="chain", depth=4)
    assert layer.explain(torch.empty(4, 512)).path == "factored"
    assert layer.explain(torch.empty(8192, 512)).path == "dense"
    with torch.no_grad():
        assert layer.eval().explain(torch.empty(8192, 512)).path == "cached"


def test_bad_options_are_refused():
    with pytest.raises(OptionError, match="depth must be at least 1"):
        Chain((4, 4), depth=0)
    with pytest.raises(OptionError, match=r"at least 1/out = 0\.25"):
        Chain((4, 4), width=0.1)
    assert "depth=3, width=2" in repr(Chain((4, 4), depth=3, width=2))
    assert math.prod(Chain((4, 4), depth=1, width=9).first.shape) == 16
