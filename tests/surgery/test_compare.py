"""Every family on one matrix: what is kept, what is skipped and why, and what is refused."""

import sys

import numpy as np
import pytest
import torch

import weft
from weft.errors import BudgetError, FitError, OptionError, SizeError, UnknownNameError
from weft.parametrizations import LowRank, make, memory
from weft.surgery import compare
from weft.testing import assert_same

FEW = ["low_rank", "monarch", "hodlr"]


@pytest.fixture
def quick(monkeypatch):
    """The families without those that fit for seconds."""
    some = {name: record for name, record in weft.families().items() if name not in ("psm", "sss")}
    monkeypatch.setattr(sys.modules["weft.surgery.compare"], "families", lambda: some)
    return list(some)


def weighted_error(member, matrix, gram):
    """sqrt(tr(R G R^T) / tr(W G W^T)) by the definition."""
    residual = (member.dense() - matrix).detach().double()
    lost, whole = (torch.trace(m @ gram.double() @ m.T) for m in (residual, matrix.double()))
    return float((lost / whole).sqrt())


def hierarchical(size):
    """Smooth away from the diagonal, with a jump at it: HODLR is made for it."""
    place = torch.arange(size, dtype=torch.float64)
    return torch.where(place[:, None] >= place, 1.0, -1.0) / (1 + (place[:, None] - place).abs())


@pytest.mark.parametrize("family", ["auto", FEW])
def test_the_family_of_the_smallest_error_is_kept(family, quick):
    matrix = hierarchical(48)
    alone = {}
    for name in quick if family == "auto" else FEW:
        torch.manual_seed(1)
        try:
            alone[name] = weft.approximate(matrix, name, 0.3).fit_error
        except weft.WeftError:
            continue
    kept = weft.approximate(matrix, family, 0.3)
    assert kept.family == min(alone, key=alone.get) and len(alone) >= 3
    assert kept.share <= 0.3
    assert kept.fit_error == pytest.approx(min(alone.values()), rel=0.05)


def test_members_win_on_their_own_ground():
    low = torch.randn(40, 3) @ torch.randn(3, 30)
    assert weft.approximate(low, ["hodlr", "low_rank"], 0.2).family == "low_rank"
    assert weft.approximate(hierarchical(64), FEW, 0.35).family == "hodlr"


def test_sizes_are_those_that_suit_the_matrix():
    largest = make("hodlr", (64, 64), share=0.35)
    assert weft.approximate(hierarchical(64), "hodlr", 0.35).depth != largest.depth


def test_gram_decides_which_is_nearest():
    """A matrix of rank 2 on the inputs that occur, and hierarchical on those that do not."""
    matrix = hierarchical(64)
    matrix[:, :32] = torch.randn(64, 2, dtype=torch.float64) @ torch.randn(2, 32, dtype=torch.float64) / 10
    gram = torch.diag(torch.cat([torch.ones(32), torch.full((32,), 1e-6)]))
    names = ["low_rank", "hodlr"]
    blind, seeing = (weft.approximate(matrix, names, 0.25, gram=g) for g in (None, gram))
    assert seeing.family == "low_rank" and blind.family == "hodlr"
    assert seeing.fit_error == pytest.approx(weighted_error(seeing, matrix, gram), rel=1e-3)
    assert weighted_error(blind, matrix, gram) > 3 * seeing.fit_error


def test_comparison_says_what_each_made_of_it_and_why_others_were_skipped(quick):
    matrix = torch.randn(20, 30)
    tried = {trial.family: trial for trial in compare(matrix, 0.15)}
    assert list(tried) == quick
    low = tried["low_rank"]
    assert low.parameters == low.member.num_parameters == 50 and low.seconds > 0 and not low.reason
    assert low.error == pytest.approx(float((low.member.dense().detach() - matrix).norm() / matrix.norm()), rel=1e-4)
    for name, word in (("butterfly", "smallest share"), ("kronecker", "sized by n"), ("dense", "share must be 1")):
        skipped = tried[name]
        assert skipped.member is skipped.error is skipped.parameters is None
        assert word in skipped.reason
    least = tried["butterfly"].smallest_share
    assert compare(matrix, least, ["butterfly"])[0].member is not None


def test_positions_reach_the_families():
    matrix = torch.randn(16, 8 * 9)
    (trial,) = compare(matrix, 0.4, ["monarch"], positions=9)
    assert trial.member.positions == 9
    assert weft.approximate(matrix, ["monarch"], 0.4, positions=9).positions == 9


def test_share_too_small_for_all_names_the_smallest_that_works():
    matrix = torch.randn(30, 40)
    names = ["low_rank", "hodlr", "kronecker"]
    with pytest.raises(BudgetError, match=r"smallest share that works is 0\.058\d+ .*hodlr: .*kronecker: ") as caught:
        weft.approximate(matrix, names, 0.01)
    assert caught.value.smallest_share == min(
        trial.smallest_share for trial in compare(matrix, 0.01, names) if trial.smallest_share
    )
    assert weft.approximate(matrix, names, caught.value.smallest_share).family == "low_rank"
    with pytest.raises(FitError, match=r"none of the families .*kronecker: .*sized by n"):
        weft.approximate(matrix, ["kronecker"], 0.01)


def test_bad_arguments_are_refused_and_no_reason_to_skip():
    matrix = torch.randn(6, 8)
    with pytest.raises(SizeError, match="two dimensions"):
        weft.approximate(torch.randn(2, 3, 4), share=0.5)
    for bad in (float("nan"), float("inf")):
        with pytest.raises(FitError, match="finite"):
            weft.approximate(torch.full((6, 8), bad), share=0.5)
    with pytest.raises(SizeError, match=r"gram must have the shape .*\(8, 8\), got \(6, 6\)"):
        weft.approximate(matrix, share=0.5, gram=torch.eye(6))
    with pytest.raises(FitError, match="finite"):
        weft.approximate(matrix, share=0.5, gram=torch.full((8, 8), torch.inf))
    with pytest.raises(UnknownNameError, match="did you mean 'low_rank'"):
        weft.approximate(matrix, ["low_rnk"], 0.5)
    for share in (0, 1.5, -1):
        with pytest.raises(BudgetError, match=r"in \(0, 1\]"):
            weft.approximate(matrix, share=share)
    with pytest.raises(OptionError, match="give share="):
        weft.approximate(matrix)
    with pytest.raises(OptionError, match="rank"):
        weft.approximate(matrix, share=0.5, rank=2)


def test_faults_of_the_program_are_not_taken_for_a_family_that_cannot(monkeypatch):
    def broken(self, target, gram):
        raise ZeroDivisionError("a fault of ours")

    monkeypatch.setattr(LowRank, "_fit", broken)
    with pytest.raises(ZeroDivisionError):
        weft.approximate(torch.randn(6, 8), share=0.6)


def test_fit_that_finds_too_little_memory_says_what_it_needs(monkeypatch):
    monkeypatch.setattr(memory, "_WORTH_ASKING", 0)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 10 * 30 * 40 * 4 - 1)
    matrix = torch.randn(30, 40)
    for share in ({"share": 0.5}, {"rank": 2}):
        with pytest.raises(FitError, match=r"'low_rank' to a matrix of shape \(30, 40\) needs about .* GiB .*are free"):
            weft.approximate(matrix, "low_rank", **share)
    with pytest.raises(FitError, match="GiB"):
        weft.LRLinear(40, 30, 0.5, initial_weight=matrix)
    assert "GiB" in compare(matrix, 0.5, ["hodlr"])[0].reason
    monkeypatch.setattr(memory, "free_bytes", lambda device: 10 * 30 * 40 * 4)
    assert weft.approximate(matrix, "low_rank", 0.5).rank == 8


def test_free_memory_is_what_the_system_says():
    free = memory.free_bytes(torch.device("cpu"))
    assert free is None or 2**20 < free < 2**50
    assert memory.free_bytes(torch.device("meta")) is None


def test_complex_matrices_are_refused_and_errors_of_complex_members_are_right():
    matrix = torch.randn(8, 6, dtype=torch.complex128)
    with pytest.raises(FitError, match="matrix must be real"):
        weft.approximate(matrix, "low_rank", rank=2)
    with pytest.raises(FitError, match="imaginary part"):
        LowRank((8, 6), rank=2).fit_(matrix)
    member = LowRank((8, 6), rank=2, dtype=matrix.dtype)
    values = torch.linalg.svdvals(matrix)
    assert member.fit_(matrix) == pytest.approx(float(values[2:].norm() / values.norm()))


def test_views_of_numpy_in_reverse_are_taken():
    matrix = np.arange(12.0).reshape(3, 4)
    got = weft.approximate(matrix[::-1], "low_rank", rank=3)
    assert_same(got.dense(), torch.from_numpy(matrix[::-1].copy()), 1e-12)
