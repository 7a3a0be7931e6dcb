"""Low rank: the rank is what it says, and the fit is the optimum of Eckart and Young, weighted or not."""

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
import torch

from weft.errors import BudgetError
from weft.parametrizations import LowRank, make
from weft.parametrizations.low_rank import nearest_low_rank
from weft.testing import assert_same, oracles

SHAPES = [(9, 14), (14, 9), (7, 7)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [1, 3, 7])
def test_rank_is_the_rank(shape, rank):
    member = LowRank(shape, rank=rank, dtype=torch.float64)
    assert np.linalg.matrix_rank(member.dense().detach().numpy()) == rank
    assert member.num_parameters == rank * sum(shape)
    assert member.cost(5) == 5 * rank * sum(shape)
    assert f"rank={rank}" in repr(member)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [1, 4, 7])
def test_fit_is_the_truncated_singular_value_decomposition(shape, rank):
    target = torch.randn(shape, dtype=torch.float64)
    member = LowRank(shape, rank=rank, dtype=torch.float64)
    error = member.fit_(target)
    u, s, vh = scipy.linalg.svd(target.numpy(), full_matrices=False)
    best = torch.from_numpy((u[:, :rank] * s[:rank]) @ vh[:rank])
    assert_same(member.dense(), best, 1e-11, "the fitted matrix")
    assert error == pytest.approx(math.sqrt((s[rank:] ** 2).sum() / (s**2).sum()), abs=1e-9)


def test_factors_of_the_fit_are_balanced():
    left, right = nearest_low_rank(torch.randn(9, 14, dtype=torch.float64), 4)
    assert_same(left.T @ left, right @ right.T, 1e-11, "left^T left")


@pytest.mark.parametrize("samples", [200, 12, 5])
def test_weighted_fit_is_the_optimum_for_the_outputs(samples):
    """Against a general optimiser from several starts, and the closed form for the outputs X W^T."""
    x = torch.randn(samples, 8, dtype=torch.float64) * torch.logspace(-1.5, 0, 8, dtype=torch.float64)
    target, rank = torch.randn(6, 8, dtype=torch.float64), 2
    member = LowRank((6, 8), rank=rank, dtype=torch.float64)
    error = member.fit_(target, x.T @ x)

    outputs = (x @ target.T).numpy()
    singular = scipy.linalg.svdvals(outputs)
    best = math.sqrt((singular[rank:] ** 2).sum() / (singular**2).sum())  # the outputs have rank at most that of W
    assert error == pytest.approx(best, rel=1e-4, abs=1e-6)

    def loss(flat):
        left, right = flat[: 6 * rank].reshape(6, rank), flat[6 * rank :].reshape(rank, 8)
        residual = outputs - x.numpy() @ right.T @ left.T
        gradient_left = -2 * residual.T @ x.numpy() @ right.T
        gradient_right = -2 * left.T @ residual.T @ x.numpy()
        return (residual**2).sum(), np.concatenate([gradient_left.ravel(), gradient_right.ravel()])

    generator = np.random.default_rng(0)
    found = min(
        scipy.optimize.minimize(loss, generator.normal(size=rank * 14), jac=True, options={"maxiter": 2000}).fun
        for _ in range(4)
    )
    assert error <= math.sqrt(found / (outputs**2).sum()) * (1 + 1e-4) + 1e-9


def test_weighted_fit_with_equal_weights_is_the_unweighted_one():
    target = torch.randn(9, 14, dtype=torch.float64)
    left, right = nearest_low_rank(target, 3, 5 * torch.eye(14, dtype=torch.float64))
    assert_same(left @ right, torch.matmul(*nearest_low_rank(target, 3)), 1e-6, "the fitted matrix")


def test_weighted_fit_moves_the_error_where_the_inputs_are_small():
    target = torch.randn(9, 14, dtype=torch.float64)
    x = torch.randn(500, 14, dtype=torch.float64)
    x[:, 7:] *= 1e-3
    member = LowRank((9, 14), rank=7, dtype=torch.float64)
    assert member.fit_(target, x.T @ x) < 1e-2
    assert oracles.weighted_error(member.dense()[:, :7], target[:, :7]) < 1e-2
    assert oracles.weighted_error(member.dense(), target, x) == pytest.approx(member.fit_error, abs=1e-9)


@pytest.mark.parametrize("shape", [(300, 200), (40, 24), (7, 100)])
@pytest.mark.parametrize("share", [0.16, 0.25, 0.5, 0.77, 1.0])
def test_within_is_the_largest_rank_of_the_budget(shape, share):
    budget = int(share * math.prod(shape))
    rank = make("low_rank", shape, share=share).rank
    assert rank * sum(shape) <= budget
    assert rank == min(shape) or (rank + 1) * sum(shape) > budget


def test_impossible_budget_names_no_share():
    with pytest.raises(BudgetError, match="no share works: use 'dense'") as caught:
        make("low_rank", (1, 5), share=0.9)
    assert caught.value.smallest_share is None


def test_initial_factors_share_the_scale():
    """right is drawn like an nn.Linear of its own, so that both factors see activations of ordinary size."""
    member = LowRank((400, 300), rank=50, variance=0.02)
    assert float(member.right.detach().var()) == pytest.approx(1 / 900, rel=0.05)
    assert float(member.left.detach().var()) == pytest.approx(0.02 * 3 * 300 / 50, rel=0.05)
    assert float(member.right.detach().abs().max()) <= 300**-0.5
