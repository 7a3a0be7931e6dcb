"""What the structured families promise together: budgets, no error above that of zero, training by any optimizer."""

import math

import pytest
import torch
from tests.cases import CASES, ROTATION

import weft
from weft.errors import BudgetError
from weft.parametrizations import HODLR, Chain, LowRank, Monarch, families, make
from weft.testing.matrices import matrices

SIZED = [name for name, record in families().items() if record.sized_by == "share" and name != "dense"]
SHAPES = [(20, 20), (40, 51), (51, 40)]
SHARES = [0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9]


@pytest.mark.parametrize("family", SIZED)
@pytest.mark.parametrize("shape", [*SHAPES, pytest.param((300, 300), marks=pytest.mark.slow)], ids=str)
def test_budgets_hold_or_name_the_smallest_share_that_works(family, shape):
    for share in SHARES:
        try:
            member = make(family, shape, share=share)
        except BudgetError as error:
            least = error.smallest_share
            if least is not None:
                assert least > share
                assert make(family, shape, share=least).num_parameters <= int(least * math.prod(shape))
            continue
        stored = sum(parameter.numel() for parameter in member.parameters())
        assert stored == member.num_parameters <= int(share * math.prod(shape))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("family", SIZED)
def test_layers_count_their_own_numbers_and_the_bias(family, bias):
    layer = weft.Linear(51, 40, bias, parametrization=family, share=0.9)
    stored = sum(parameter.numel() for parameter in layer.parameters())
    assert stored == layer.parametrization.num_parameters + 40 * bias


@pytest.mark.parametrize("family", SIZED)
@pytest.mark.parametrize(
    ("rows", "columns", "share"),
    [(40, 51, 0.5), (51, 40, 0.2), pytest.param(300, 300, 0.2, marks=pytest.mark.slow)],
)
def test_no_fit_is_worse_than_zero(family, rows, columns, share):
    for name, matrix in matrices(rows, columns).items():
        try:
            error = weft.approximate(matrix, family, share).fit_error
        except BudgetError:
            continue  # which test_budgets_hold looks at
        assert error <= 1, f"{family} on {name}: {error}"


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.SGD])
@pytest.mark.parametrize("family", SIZED)
def test_optimizers_train_it(family, optimizer):
    torch.manual_seed(0)
    layer = weft.Linear(16, 16, parametrization=family, share=0.9)
    x = torch.randn(256, 16)
    y = x @ layer.weight.detach().roll(1, 0).T + 0.1 * torch.randn(256, 16)
    steps = optimizer(weft.parameter_groups(layer, lr=0.01 if optimizer is torch.optim.Adam else 0.1))
    losses = []
    for _ in range(200):
        steps.zero_grad()
        loss = (layer(x) - y).square().mean()
        loss.backward()
        losses.append(loss.item())
        steps.step()
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("case", [case for case in CASES if case is not ROTATION], ids=repr)
def test_every_parameter_learns_from_a_zero_target_on(case):
    member, target = case.member((16, 12)), torch.randn(16, 12, dtype=torch.float64)
    assert member.fit_(torch.zeros(16, 12)) == 0 and not case.dense(member).any()
    for _ in range(3):  # the first step finds one factor, the next one the others
        slopes = torch.autograd.grad((member.dense() - target).square().sum(), list(member.parameters()))
        with torch.no_grad():
            for parameter, slope in zip(member.parameters(), slopes, strict=True):
                parameter -= 0.01 * slope
    assert all(slope.any() for slope in slopes)


def test_what_learns_anew_leaves_the_matrix_as_it_was():
    target, member = torch.randn(8, 2).double() @ torch.randn(2, 12).double(), LowRank((8, 12), rank=6)
    member.double()
    assert member.fit_(target) < 1e-14
    assert member.fit_(torch.zeros_like(target), torch.eye(12)) == 0


@pytest.mark.parametrize(
    "make",
    [
        lambda: LowRank((8, 12), rank=3),
        lambda: Monarch((8, 12), blocks=2, rank=3),
        lambda: HODLR((8, 12), depth=2, rank=3),
        lambda: Chain((8, 12), depth=3),
    ],
    ids=["low_rank", "monarch", "hodlr", "chain"],
)
def test_rank_beyond_that_of_the_target_learns_too(make):
    member = make()
    target = torch.zeros(8, 12)
    target[0, 0], target[5, 2] = 3, 1
    assert member.fit_(target) < 1e-6
    wanted = torch.randn(8, 12)
    last = member.left if hasattr(member, "left") else member.last
    (slope,) = torch.autograd.grad((member.dense() - wanted).square().sum(), last)
    assert (slope.abs() > 1e-6).float().mean() > 0.99


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_a_gram_matrix_of_zeros_weighs_nothing(case):
    target, member = torch.randn(16, 12).double(), case.member((16, 12))
    assert member.fit_(target, torch.zeros(12, 12)) == 0
    assert member.dense().isfinite().all()
