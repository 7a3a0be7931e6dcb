"""Checks of ``fit_``: members are found again, errors are true and least, bad targets are refused."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from weft.errors import FitError, SizeError, WeftError
from weft.parametrizations import Parametrization
from weft.testing import oracles
from weft.testing.case import Case, assert_same


def _target(shape: tuple[int, int]) -> Tensor:
    """A random matrix whose columns have very different sizes, so that no structure is favoured."""
    return torch.randn(shape, dtype=torch.float64) * torch.linspace(0.3, 2, shape[1], dtype=torch.float64)


def _loss_gradient(member: Parametrization, target: Tensor) -> float:
    loss = (member.dense() - target).square().sum()
    return float(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(member.parameters()))]).norm())


def members_are_found_again(case: Case) -> None:
    """Fitting to a member of the family gives that member, whatever the start."""
    for shape in case.shapes:
        for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-6), (torch.bfloat16, 2e-2)):
            target = case.dense(case.member(shape))
            member = case.member(shape, dtype=dtype)
            error = member.fit_(target.to(torch.float64 if dtype == torch.bfloat16 else dtype))
            assert error <= tolerance, f"a member was fitted with error {error:.3g} in {dtype}"
            assert_same(member.dense(), target, 4 * tolerance, f"the fitted matrix in {dtype}")
            assert all(p.dtype == dtype for p in member.parameters()), "fit_ changed the dtype"


def errors_are_true(case: Case) -> None:
    """The returned error is that of the matrix it leaves, at most that of the zero matrix, and ``fit_error``."""
    for shape in case.shapes:
        target, member = _target(shape), case.member(shape)
        error = member.fit_(target)
        true = oracles.weighted_error(case.dense(member), target)
        assert abs(error - true) <= 1e-9, f"fit_ returned {error:.6g}, the error is {true:.6g}"
        assert error == member.fit_error, "fit_error is not the returned error"
        assert error <= 1, f"the fit is worse than zero: {error:.3g}"
        assert member.fit_(torch.zeros(shape, dtype=torch.float64)) == 0, "zero is not fitted exactly"


def residual_is_orthogonal(case: Case) -> None:
    """No small change of any parameter lowers the error: its gradient vanishes at the fit."""
    for shape in case.shapes:
        target, member = _target(shape), case.member(shape)
        start = _loss_gradient(member, target)
        member.fit_(target)
        rest = _loss_gradient(member, target)
        assert rest <= 1e-7 * start, f"the gradient of the error is {rest:.3g} after the fit, {start:.3g} before"


def fit_is_a_step_and_leaves_the_target(case: Case) -> None:
    """``fit_`` works in place: same tensors, gradients still wanted, no graph; the target is left as it was."""
    target, member = _target(case.shapes[0]), case.member()
    before, tensors = target.clone(), list(member.parameters())
    target.requires_grad_()
    member.fit_(target)
    assert_same(target, before, 0, "the target after the fit")
    assert all(a is b for a, b in zip(member.parameters(), tensors, strict=True)), "fit_ replaced a parameter"
    assert all(p.requires_grad and p.is_leaf for p in member.parameters()), "fit_ left a graph or froze a parameter"


def weighted_fit_is_no_worse(case: Case) -> None:
    """With a Gram matrix the error of the outputs is true, and no larger than that of the unweighted fit."""
    for shape in case.shapes:
        rows, columns = shape
        mixer = torch.randn(columns, columns, dtype=torch.float64) / columns**0.5
        for samples in (4 * columns, columns // 2):  # the second Gram matrix is singular
            x = torch.randn(samples, columns, dtype=torch.float64) @ mixer * torch.logspace(-2, 0, columns).double()
            for dtype, tolerance in ((torch.float64, 1e-6), (torch.float32, 1e-3)):
                target = _target((rows, columns)).to(dtype)
                plain, member = case.member(shape, dtype=dtype), case.member(shape, dtype=dtype)
                plain.fit_(target)
                error = member.fit_(target, (x.T @ x).to(dtype))
                true = oracles.weighted_error(case.dense(member), target, x)
                other = oracles.weighted_error(case.dense(plain), target, x)
                assert abs(error - true) <= tolerance, f"fit_ returned {error:.6g}, the weighted error is {true:.6g}"
                assert true <= other + tolerance, f"weighted error {true:.6g}, {other:.6g} without weights ({dtype})"


def bad_targets_are_refused(case: Case) -> None:
    """Wrong shapes, values that are not finite and the meta device are refused, and nothing changes."""
    member = case.member()
    rows, columns = member.shape
    good, gram = _target(member.shape), torch.eye(columns, dtype=torch.float64)
    nan, infinite = good.clone(), gram.clone()
    nan[0, 0], infinite[0, 0] = torch.nan, torch.inf
    before = member.dense().detach().clone()
    _refused(SizeError, "target", lambda: member.fit_(torch.zeros(rows + 1, columns)))
    _refused(SizeError, "target", lambda: member.fit_(torch.zeros(rows * columns)))
    _refused(SizeError, "gram", lambda: member.fit_(good, torch.eye(columns + 1)))
    _refused(FitError, "finite", lambda: member.fit_(nan))
    _refused(FitError, "finite", lambda: member.fit_(good, infinite))
    _refused(FitError, "meta", lambda: member.fit_(good.to("meta")))
    _refused(FitError, "meta", lambda: case.member(device="meta").fit_(good))
    assert_same(member.dense(), before, 0, "dense() after refused targets")


def fitting_is_refused(case: Case) -> None:
    """A family without ``fit_`` says so."""
    member = case.member()
    _refused(FitError, case.record.name, lambda: member.fit_(_target(member.shape)))


def _refused(kind: type[WeftError], word: str, call: Callable[[], object]) -> None:
    try:
        call()
    except kind as error:
        assert word in str(error), f"the message does not say {word!r}: {error}"
    else:
        raise AssertionError(f"no {kind.__name__} about {word!r}")


CHECKS = (
    members_are_found_again,
    errors_are_true,
    residual_is_orthogonal,
    fit_is_a_step_and_leaves_the_target,
    weighted_fit_is_no_worse,
    bad_targets_are_refused,
)
CHECKS_WITHOUT_FIT = (fitting_is_refused,)
