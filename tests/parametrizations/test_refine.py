"""Gradient refinement: it reaches what closed forms reach, is never worse than its start, leaves no traces."""

import pytest
import torch
from torch import nn

import weft
from weft.parametrizations import Kronecker, LowRank
from weft.parametrizations.refine import refine
from weft.testing import assert_same, oracles


def matrices(rows=10, columns=8):
    target = torch.randn(rows, columns, dtype=torch.float64)
    x = torch.randn(40, columns, dtype=torch.float64) * torch.logspace(-1, 0, columns, dtype=torch.float64)
    return target, x.T @ x, x


@pytest.mark.parametrize("weighted", [False, True])
def test_it_reaches_the_closed_form(weighted):
    torch.manual_seed(0)
    target, gram, x = matrices()
    gram = gram if weighted else None
    best, member = (LowRank((10, 8), rank=3, dtype=torch.float64) for _ in range(2))
    want = best.fit_(target, gram)
    got = refine(member, target, gram, steps=500)
    assert got == pytest.approx(want, rel=1e-6)
    assert got == pytest.approx(
        oracles.weighted_error(member.dense().detach(), target, x if weighted else None), rel=1e-9
    )


def test_it_is_never_worse_than_its_start_and_leaves_no_traces():
    target, _, _ = matrices(8, 8)
    member = Kronecker((8, 8), n=4, dtype=torch.float64)
    start = member.fit_(target)
    member.mixing.requires_grad_(False)
    kept = list(member.parameters())
    assert refine(member, target, steps=3) <= start * (1 + 1e-12)
    assert [p.requires_grad for p in member.parameters()] == [False, True]
    assert all(a is b and a.grad is None for a, b in zip(kept, member.parameters(), strict=True))
    assert refine(member, torch.zeros(8, 8, dtype=torch.float64)) == 0


def test_a_start_that_explodes_is_put_back():
    member = LowRank((4, 4), rank=1, dtype=torch.float64)
    with torch.no_grad():
        member.left.fill_(torch.inf)
    before = member.left.detach().clone()
    refine(member, torch.eye(4, dtype=torch.float64), steps=2)
    assert torch.equal(member.left, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refined_in_the_precision_of_the_target(dtype):
    target = torch.randn(8, 12)
    wide = LowRank((8, 12), rank=2)
    member = LowRank((8, 12), rank=2, dtype=dtype)
    with torch.no_grad():
        for parameter, value in zip(wide.parameters(), member.parameters(), strict=True):
            parameter.copy_(value)
    assert refine(member, target) == pytest.approx(refine(wide, target), rel=1e-4)
    assert_same(member.dense().float(), wide.dense(), 0.02)
    assert {p.dtype for p in member.parameters()} == {dtype}


@pytest.mark.parametrize("family", ["butterfly", "psm"])
def test_models_in_half_precision_are_converted(family):
    plain = nn.Linear(16, 16)
    full = weft.convert(plain, family, share=1.0)
    torch.manual_seed(0)
    half = weft.convert(plain.half(), family, share=1.0)
    assert half.weight.dtype == torch.float16 and half.fit_error < full.fit_error + 0.02
