"""What a family gets for free from its two required methods, and the dense family."""

import pytest
import torch
from tests.toys import CanonicalKronecker

from weft.errors import FitError, OptionError
from weft.parametrizations import Dense, Kronecker, LowRank, Parametrization
from weft.parametrizations.base import relative_error, smallest_share
from weft.testing import assert_same


def test_two_methods_are_required():
    class Nothing(Parametrization):
        pass

    with pytest.raises(TypeError, match="dense"):
        Nothing((2, 2))


def test_everything_else_follows_from_them():
    member = CanonicalKronecker((4, 6), dtype=torch.float64)
    x, bias = torch.randn(5, 6, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    assert_same(member.linear(x, bias), x @ member.dense().T + bias, 1e-12, "the product")
    assert (
        member.build_cost() == 24
    )  # at least one operation per entry, so that layers know there is something to cache
    assert member.cost(10) == 24 + 240
    assert member.variance == 1 / 18
    with pytest.raises(FitError, match=r"CanonicalKronecker.*has_fit"):
        member.fit_(torch.randn(4, 6))
    with pytest.raises(OptionError, match=r"CanonicalKronecker.*no size option"):
        CanonicalKronecker.within((4, 6), 0.5)
    assert Parametrization.stages(member) is None


def test_dense_is_the_matrix_itself():
    member = Dense((3, 5), dtype=torch.float64)
    assert member.dense() is member.weight
    assert (member.share, member.num_parameters, member.build_cost(), member.cost(4)) == (1, 15, 0, 60)
    target = torch.randn(3, 5, dtype=torch.float64)
    assert member.fit_(target) == 0
    assert_same(member.weight, target, 0, "the weight")
    assert member.weight.data_ptr() != target.data_ptr()


def test_shape_may_be_anything_that_counts():
    for shape in ([3, 5], torch.Size([3, 5])):
        assert LowRank(shape, rank=2).shape == (3, 5)


def test_relative_error():
    target, other = torch.randn(3, 4), torch.randn(3, 4)
    zero = torch.zeros(3, 4)
    assert relative_error(other, target) == pytest.approx(float((other - target).norm() / target.norm()), rel=1e-6)
    assert relative_error(zero, zero) == 0
    assert relative_error(other, zero) == float("inf")
    x = torch.randn(10, 4)
    want = float((x @ (other - target).T).norm() / (x @ target.T).norm())
    assert relative_error(other, target, x.T @ x) == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("numbers", [1, 7, 500, 12345])
@pytest.mark.parametrize("shape", [(10, 10), (300, 200), (7, 13)])
def test_smallest_share_holds_its_numbers(numbers, shape):
    share = smallest_share(numbers, shape)
    size = shape[0] * shape[1]
    assert int(share * size) >= numbers
    assert int((share - 3e-6) * size) < numbers or numbers < 3e-6 * size


def test_fit_works_in_the_wider_of_both_precisions():
    matrix = LowRank((6, 8), rank=2, dtype=torch.float64).dense().detach()
    assert LowRank((6, 8), rank=2, dtype=torch.float64).fit_(matrix.float()) < 1e-6
    assert LowRank((6, 8), rank=2, dtype=torch.float32).fit_(matrix) < 1e-6
    assert LowRank((6, 8), rank=2, dtype=torch.bfloat16).fit_(matrix.bfloat16()) < 2e-2
    assert Dense((2, 2)).fit_(torch.tensor([[1, 2], [3, 4]])) == 0  # integers


def test_fit_is_not_touched_by_autocast_or_inference_mode():
    matrix = Kronecker((8, 8), n=2).dense().detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert Kronecker((8, 8), n=2).fit_(matrix) < 1e-6
        assert LowRank((8, 8), rank=8).fit_(matrix) < 1e-6
    member = Kronecker((8, 8), n=2)
    with torch.inference_mode():
        assert member.fit_(matrix.clone()) < 1e-6
    member.dense().sum().backward()
