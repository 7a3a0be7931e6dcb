"""Stacked: members on top of one another."""

import pytest
import torch

from weft.errors import FitError, SizeError
from weft.parametrizations import Kronecker, LowRank, Stacked
from weft.testing import assert_same


def make(dtype=torch.float64):
    return Stacked([Kronecker((8, 12), n=4, dtype=dtype), LowRank((5, 12), rank=2, dtype=dtype)])


def test_product_and_rows_are_those_of_the_matrix():
    member = make()
    upper, lower = member.parts()
    matrix = torch.cat(
        [torch.einsum("ipq,ioc->poqc", upper.mixing, upper.blocks).reshape(8, 12), lower.left @ lower.right]
    )
    x, bias = torch.randn(2, 3, 12, dtype=torch.float64), torch.randn(13, dtype=torch.float64)
    assert_same(member.dense(), matrix, 1e-12)
    assert_same(member.linear(x, bias), x @ matrix.T + bias, 1e-12)
    assert_same(member.linear(x), x @ matrix.T, 1e-12)
    assert_same(member.rows(torch.tensor([12, 0])), matrix[[12, 0]], 1e-12)
    assert member.num_parameters == upper.num_parameters + lower.num_parameters
    assert member.cost(7) == upper.cost(7) + lower.cost(7)
    assert member.build_cost() == upper.build_cost() + lower.build_cost() + 13 * 12


def test_every_part_is_fitted_to_its_rows_and_the_error_is_that_of_all():
    member, target = make(), torch.randn(13, 12, dtype=torch.float64)
    gram = torch.randn(30, 12, dtype=torch.float64)
    gram = gram.T @ gram
    error = member.fit_(target, gram)
    alone = Kronecker((8, 12), n=4, dtype=torch.float64)
    alone.fit_(target[:8], gram)
    assert_same(member.parts()[0].dense(), alone.dense(), 1e-9)
    residual = member.dense().detach() - target
    want = float(((residual @ gram) * residual).sum() / ((target @ gram) * target).sum()) ** 0.5
    assert error == pytest.approx(want, rel=1e-9)
    with pytest.raises(FitError, match="finite"):
        member.fit_(target * torch.nan)


def test_reset_reaches_every_part():
    member = make()
    before = member.dense().detach().clone()
    member.reset_parameters()
    assert not any(
        torch.allclose(a, b) for a, b in zip(member.dense().split([8, 5]), before.split([8, 5]), strict=True)
    )


@pytest.mark.parametrize(
    "members",
    [
        list,
        lambda: [LowRank((4, 6), rank=1), LowRank((4, 8), rank=1)],
        lambda: [LowRank((4, 6), rank=1, positions=2), LowRank((4, 6), rank=1)],
    ],
)
def test_members_that_do_not_fit_are_refused(members):
    with pytest.raises(SizeError, match="same columns"):
        Stacked(members())
