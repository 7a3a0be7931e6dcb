"""Gradient refinement of a fit: what a closed form left, steps on the factors themselves may still remove.

The loss is the squared error of the matrix, or of the outputs where a Gram matrix of the inputs is given:

    f(parameters) = || (W(parameters) - T) G^(1/2) ||^2 / || T G^(1/2) ||^2
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Refinable(Protocol):
    """What refinement needs of a member: any parametrization is one."""

    def dense(self) -> Tensor:
        """The matrix, differentiable."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """What it is made of."""
        ...


def refine(
    member: Refinable,
    target: Tensor,
    gram: Tensor | None = None,
    *,
    steps: int = 100,
    tolerance: float = 1e-9,
) -> float:
    """Quasi-Newton (L-BFGS) steps on all parameters of a member, from where they are; never worse than that.

    Args:
        member: changed in place. Its ``dense()`` must be differentiable; one in half precision is refined as a copy in
            the target's precision, and rounded.
        target: (O, I).
        gram: (I, I) Gram matrix of the inputs, or None.
        steps: largest number of iterations, each of a few evaluations of ``dense()`` and its gradient.
        tolerance: relative gain of an iteration below which it stops.

    Returns:
        the relative error reached.

    Source:
        Liu and Nocedal 1989, On the limited memory BFGS method for large scale optimization; torch.optim.LBFGS with
        the strong Wolfe line search.

    Example:
        >>> import torch
        >>> from weft.parametrizations import LowRank
        >>> target, member = torch.randn(8, 12), LowRank((8, 12), rank=2)
        >>> start = ((member.dense() - target).norm() / target.norm()).item()
        >>> refine(member, target) < start
        True
    """
    if any(parameter.dtype in (torch.float16, torch.bfloat16) for parameter in member.parameters()):
        wide: Any = copy.deepcopy(member)
        wide.to(target.dtype)
        error = refine(wide, target, gram, steps=steps, tolerance=tolerance)
        with torch.no_grad():
            for parameter, value in zip(member.parameters(), wide.parameters(), strict=True):
                parameter.copy_(value)
        return error
    parameters = [parameter for parameter in member.parameters() if parameter.is_floating_point()]
    wanted = [parameter.requires_grad for parameter in parameters]
    scale = float((target * (target if gram is None else target @ gram)).sum())
    if scale <= 0:
        return 0.0
    best_loss, best = torch.inf, [parameter.detach().clone() for parameter in parameters]
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=steps, history_size=20, line_search_fn="strong_wolfe", tolerance_grad=0.0,
        tolerance_change=0.0,
    )  # fmt: skip
    recent: list[float] = []

    def loss() -> Tensor:
        nonlocal best_loss, best
        optimizer.zero_grad()
        residual = member.dense().to(target.dtype) - target
        value = (residual * (residual if gram is None else residual @ gram)).sum() / scale
        value.backward()
        number = value.item()
        if number < best_loss:
            best_loss, best = number, [parameter.detach().clone() for parameter in parameters]
        recent.append(best_loss)
        if len(recent) > 20 and recent[-20] - best_loss <= tolerance * best_loss:
            raise StopIteration
        return value

    with torch.enable_grad():
        for parameter in parameters:
            parameter.requires_grad_()
        try:
            optimizer.step(loss)
        except StopIteration:
            pass
        finally:
            with torch.no_grad():
                for parameter, value, was in zip(parameters, best, wanted, strict=True):
                    parameter.copy_(value)
                    parameter.requires_grad_(was)
                    parameter.grad = None
    return max(best_loss, 0.0) ** 0.5
