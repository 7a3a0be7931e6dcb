"""Sequentially semiseparable: low rank at every cut, members are found again, and budgets are kept."""

import math

import numpy as np
import pytest
import torch

from weft.errors import BudgetError, OptionError
from weft.parametrizations import SequentiallySemiseparable, make
from weft.parametrizations.low_rank import nearest_low_rank
from weft.parametrizations.semiseparable_chains import scan
from weft.parametrizations.semiseparable_sizes import plan
from weft.testing import assert_same, oracles

SIZES = [((20, 20), 5, 3), ((40, 51), 7, 4), ((51, 40), 8, 5), ((13, 13), 13, 4), ((9, 30), 2, 4), ((30, 7), 3, 2)]


def matrix(shape, kind="normal"):
    if kind == "smooth":
        rows, columns = (torch.linspace(0, 1, side, dtype=torch.float64) for side in shape)
        return 1 / (0.1 + (rows[:, None] - columns).abs())
    return torch.randn(shape, dtype=torch.float64)


@pytest.mark.parametrize(("shape", "stages", "state"), SIZES)
def test_rank_at_every_cut_is_the_size_of_its_state(shape, stages, state):
    member = SequentiallySemiseparable(shape, stages=stages, state=state, dtype=torch.float64)
    w = member.dense().detach().numpy()
    rows, columns, lower, upper = member.plan
    assert sum(rows) == shape[0]
    assert sum(columns) == shape[1]
    assert max(rows) - min(rows) <= 1
    assert max(columns) - min(columns) <= 1
    for k in range(stages - 1):
        top, left = sum(rows[: k + 1]), sum(columns[: k + 1])
        assert np.linalg.matrix_rank(w[top:, :left]) == lower[k] == min(state, shape[0] - top, left)
        assert np.linalg.matrix_rank(w[:top, left:]) == upper[k] == min(state, top, shape[1] - left)


@pytest.mark.parametrize(("shape", "stages", "state"), SIZES)
def test_members_are_found_again(shape, stages, state):
    target = oracles.semiseparable_matrix(SequentiallySemiseparable(shape, stages=stages, state=state))
    member = SequentiallySemiseparable(shape, stages=stages, state=state, dtype=torch.float64)
    assert member.fit_(target) < 1e-12
    assert_same(member.dense(), target, 1e-12, "the fitted matrix")


def test_large_member_is_found_again():
    """The check of the earlier work: 30 stages of 10 with states of 5."""
    target = oracles.semiseparable_matrix(SequentiallySemiseparable((300, 300), stages=30, state=5))
    assert make("sss", (300, 300), stages=30, state=5, dtype=torch.float64).fit_(target) < 1e-12


def test_inverse_of_a_banded_matrix_is_a_member():
    """Gantmacher and Krein: off the diagonal, the inverse of a tridiagonal matrix has rank 1."""
    band = torch.diag(torch.rand(40).double() + 3)
    band += torch.diag(torch.rand(39).double(), 1) - torch.diag(torch.rand(39).double(), -1)
    member = SequentiallySemiseparable((40, 40), stages=10, state=1, dtype=torch.float64)
    assert member.fit_(band.inverse()) < 1e-12


def test_one_stage_is_the_dense_matrix():
    target = matrix((9, 14))
    member = SequentiallySemiseparable((9, 14), stages=1, dtype=torch.float64)
    assert member.num_parameters == target.numel()
    assert member.fit_(target) == 0
    x = torch.randn(3, 14, dtype=torch.float64)
    assert_same(member.linear(x), x @ target.T, 1e-12, "the product")
    member.linear(x).sum().backward()
    assert make("sss", (9, 14), share=1.0).num_stages == 1


def test_two_stages_are_low_rank_blocks_beside_the_diagonal():
    target = matrix((9, 14))
    member = SequentiallySemiseparable((9, 14), stages=2, state=2, dtype=torch.float64)
    member.fit_(target)
    best = target.clone()
    best[5:, :7] = torch.matmul(*nearest_low_rank(target[5:, :7], 2))
    best[:5, 7:] = torch.matmul(*nearest_low_rank(target[:5, 7:], 2))
    assert_same(member.dense(), best, 1e-7, "the fitted matrix")


@pytest.mark.parametrize("length", range(1, 18))
def test_scan_is_the_recursion(length):
    steps, drives = torch.randn(length - 1, 3, 3).double(), torch.randn(length, 4, 3).double()
    states = [drives[0]]
    for step, drive in zip(steps, drives[1:], strict=True):
        states.append(states[-1] @ step + drive)
    assert_same(scan(steps, drives, length), torch.stack(states), 1e-12, "the states")


def tails(target, member):
    """Squares of what the best ranks of the blocks beyond every cut leave, below and above the diagonal."""
    rows, columns, lower, upper = member.plan
    left = [[], []]
    for k in range(len(rows) - 1):
        top, side = sum(rows[: k + 1]), sum(columns[: k + 1])
        for found, block, state in ((left[0], target[top:, :side], lower), (left[1], target[:top, side:], upper)):
            found.append(float((torch.linalg.svdvals(block)[state[k] :] ** 2).sum()))
    return left


@pytest.mark.parametrize("kind", ["normal", "smooth"])
@pytest.mark.parametrize(("shape", "stages", "state"), SIZES)
def test_error_lies_between_the_bounds_of_the_cuts(shape, stages, state, kind):
    """Each cut alone bounds it from below; a realisation cut by cut leaves at most their sum."""
    target = matrix(shape, kind)
    member = SequentiallySemiseparable(shape, stages=stages, state=state, dtype=torch.float64)
    error = member.fit_(target)
    below, above = tails(target, member)
    size = float(target.square().sum())
    assert math.sqrt((max(below) + max(above)) / size) - 1e-9 <= error
    assert error <= math.sqrt((sum(below) + sum(above)) / size) + 1e-9
    assert error < 1


def test_steps_improve_the_realisation(monkeypatch):
    target = matrix((40, 51))
    member = make("sss", (40, 51), share=0.5, dtype=torch.float64)
    refined = member.fit_(target)
    monkeypatch.setattr("weft.parametrizations.semiseparable.refine", lambda *_, **__: None)
    assert refined < 0.995 * member.fit_(target)


def test_fit_of_unstructured_matrices_is_good():
    """Uniform 300 x 300 at share .5: the earlier work reached .850, and .740 after 400 steps of Adam."""
    target = 2 * torch.rand(300, 300, generator=torch.Generator().manual_seed(1)) - 1
    assert make("sss", (300, 300), share=0.5).fit_(target) < 0.68


def test_weights_find_better_outputs():
    """Some inputs hardly occur, others always together: far better than the unweighted fit, and a true error."""
    target = matrix((24, 36))
    x = torch.randn(400, 12).double() @ torch.randn(12, 36).double() + 0.05 * torch.randn(400, 36).double()
    plain = SequentiallySemiseparable((24, 36), stages=4, state=3, dtype=torch.float64)
    member = SequentiallySemiseparable((24, 36), stages=4, state=3, dtype=torch.float64)
    plain.fit_(target)
    error = member.fit_(target, x.T @ x)
    assert error == pytest.approx(oracles.weighted_error(member.dense(), target, x), abs=1e-9)
    assert error < 0.5 * oracles.weighted_error(plain.dense(), target, x)


@pytest.mark.parametrize(("shape", "stages", "state"), SIZES)
def test_weighted_outputs_are_the_best_for_the_states(monkeypatch, shape, stages, state):
    """Without the steps: no change of D, C or G lowers the weighted error of the realisation."""
    monkeypatch.setattr("weft.parametrizations.semiseparable.refine", lambda *_, **__: None)
    target, x = matrix(shape), matrix((200, shape[1])) @ matrix((shape[1], shape[1]))
    member = SequentiallySemiseparable(shape, stages=stages, state=state, dtype=torch.float64)
    names = ("diagonal", "lower_output", "upper_output")

    def slopes():
        loss = ((member.dense() - target) @ x.T).square().sum()
        return torch.cat(torch.autograd.grad(loss, [getattr(member, name) for name in names])).norm()

    member.fit_(target)
    before, error = slopes(), oracles.weighted_error(member.dense(), target, x)
    assert member.fit_(target, x.T @ x) <= error
    assert slopes() <= 1e-8 * before


@pytest.mark.parametrize("stages", [5, 30])
def test_initial_entries_are_alike_however_far_from_the_diagonal(stages):
    draws = torch.stack(
        [SequentiallySemiseparable((60, 60), stages=stages, state=5, variance=0.7).dense().detach() for _ in range(300)]
    )
    size = 60 // stages
    for block in (
        draws[:, -size:, :size],
        draws[:, :size, -size:],
        draws[:, :size, :size],
        draws[:, -2 * size : -size, :size],
    ):
        assert float(block.var()) == pytest.approx(0.7, rel=0.3)
    assert float(draws.var()) == pytest.approx(0.7, rel=0.05)


def numbers(shape, stages, state):
    """Stored numbers from the definition: states end where the blocks beyond them do."""
    rows = [len(part) for part in np.array_split(np.arange(shape[0]), stages)]
    columns = [len(part) for part in np.array_split(np.arange(shape[1]), stages)]
    total, before = sum(r * c for r, c in zip(rows, columns, strict=True)), None
    for k in range(1, stages):
        low = min(state, sum(columns[:k]), sum(rows[k:]))
        up = min(state, sum(rows[:k]), sum(columns[k:]))
        total += low * (columns[k - 1] + rows[k]) + up * (rows[k - 1] + columns[k])
        total += 0 if before is None else low * before[0] + up * before[1]
        before = (low, up)
    return total


@pytest.mark.parametrize("shape", [(20, 20), (40, 51), (51, 40), (300, 300)])
@pytest.mark.parametrize("share", [0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 0.9, 1.0])
def test_budgets_are_kept_and_used(shape, share):
    budget = int(share * math.prod(shape))
    least = min(numbers(shape, stages, 1) for stages in range(2, min(shape) + 1))
    if budget < least:
        with pytest.raises(BudgetError, match="smallest share that works is"):
            make("sss", shape, share=share)
        return
    member = make("sss", shape, share=share)
    assert member.num_parameters == numbers(shape, member.num_stages, member.state) <= budget
    if member.num_stages > 1:
        assert numbers(shape, member.num_stages, member.state + 1) > budget
    assert member.num_parameters > (0.9 if math.prod(shape) > 1e4 else 0.7) * budget


def test_the_smallest_member_is_the_smallest():
    for shape in ((20, 20), (40, 51), (64, 9)):
        least = min(numbers(shape, stages, 1) for stages in range(2, min(shape) + 1))
        with pytest.raises(BudgetError, match="smallest share that works is") as caught:
            make("sss", shape, share=1e-6)
        assert math.ceil(caught.value.smallest_share * math.prod(shape)) >= least
        assert make("sss", shape, share=caught.value.smallest_share).num_parameters == least


def test_one_size_may_be_given_beside_a_share():
    assert make("sss", (60, 60), share=0.4, stages=6).num_stages == 6
    assert make("sss", (60, 60), share=0.4, state=2).state == 2
    with pytest.raises(OptionError, match="stages=6, state=2 beside a share"):
        make("sss", (60, 60), share=0.4, stages=6, state=2)
    with pytest.raises(BudgetError, match="smallest share that works"):
        make("sss", (60, 60), share=0.1, stages=6)
    with pytest.raises(BudgetError, match="no share works: use 'dense'"):
        make("sss", (2, 2), share=0.9, stages=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give stages and state, or share"),
        ({"stages": 3}, "give stages and state, or share"),
        ({"state": 3}, "give stages and state, or share"),
        ({"stages": 9, "state": 1}, r"stages must be in 1..min\(out, in/positions\) = 1..8 .* got 9"),
        ({"stages": 0, "state": 1}, "stages must be in"),
        ({"stages": 4, "state": 5}, r"state must be in 1..4, the largest rank .* got 5"),
        ({"stages": 4, "state": 0}, "state must be in 1..4"),
        ({"stages": 1, "state": 1}, "state must be in 0..0"),
    ],
)
def test_bad_sizes_are_refused(options, message):
    with pytest.raises(OptionError, match=message):
        SequentiallySemiseparable((8, 12), **options)


def test_runs_of_kernel_positions_are_never_cut():
    member = SequentiallySemiseparable((8, 27), stages=4, state=2, positions=3)
    assert [size % 3 for size in member.plan.columns] == [0] * 4
    assert plan((8, 27), 3, 4, 2).numbers() == member.num_parameters
    with pytest.raises(OptionError, match=r"1..min\(out, in/positions\) = 1..3"):
        SequentiallySemiseparable((8, 27), stages=4, state=2, positions=9)
