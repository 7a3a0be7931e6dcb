"""Sparse factors whose product is near a matrix: three starts, each tried for a while, and the best taken to its end.

Letters: O, I = rows and columns of the matrix; w = width between the factors; J = number of factors; T = non-zeros of
all factors together.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from weft.parametrizations.base import relative_error
from weft.parametrizations.psm_moves import largest, swapped, sweeps
from weft.parametrizations.refine import refine

_log = logging.getLogger(__name__)

_MACS = 2 * 10**12  # multiply-adds that a fit may take, about


class Found(NamedTuple):
    """Factors as dense tensors with zeros, and the relative error of their product."""

    error: float
    factors: list[Tensor]

    def affordable(self, macs: float, least: int, most: int) -> int:
        """Sweeps, or evaluations of the error and its gradient, that some multiply-adds pay for, within bounds."""
        each = len(self.factors) ** 2 * len(self.factors[0]) * math.prod(self.factors[-1].shape)
        return int(min(most, max(least, macs // each)))


def found(target: Tensor, factors: list[Tensor], gram: Tensor | None = None) -> Found:
    """Factors with their error, the last one scaled so that it is least; so it is never above 1.

    Args:
        target: (O, I).
        factors: (O, w), (w, w), ..., (w, I).
        gram: (I, I), weighs the error; None weighs alike.

    Returns:
        both.
    """
    matrix = torch.linalg.multi_dot(factors)
    weighted = matrix if gram is None else matrix @ gram
    scale = (weighted * target).sum() / (weighted * matrix).sum().clamp(min=torch.finfo(matrix.dtype).tiny)
    return Found(relative_error(matrix * scale, target, gram), [*factors[:-1], factors[-1] * scale])


def sparse_factors(target: Tensor, counts: list[int], *, shared: bool) -> Found:
    """Sparse factors whose product is near the target: the best start, taken to the end.

    Args:
        target: (O, I), not zero.
        counts: non-zeros of every factor, at least 2 factors.
        shared: whether the factors exchange numbers; their sum stays.

    Returns:
        the best factors found; what ``best_start`` promises holds.
    """
    start = best_start(target, counts, shared=shared)
    return rounds(target, start, 240, _MACS / 2, shared=shared, parts=(0.1, 0.02))


def best_start(target: Tensor, counts: list[int], *, shared: bool) -> Found:
    """The start from which the first rounds come nearest.

    Starts are the identity on either side of the target, of which proximal sweeps make sparse factors, and its singular
    vectors, thinned out; of large matrices only the first, with the identity on the shorter side, or two.

    Args:
        target: (O, I), not zero.
        counts: non-zeros of every factor, at least 2 factors.
        shared: whether the factors exchange numbers; their sum stays.

    Returns:
        the best factors found. If shared, never worse than the (sum - (J-1) min(O, I)) largest entries of the target.
    """
    macs = _MACS / 12
    starts: list[Callable[[], Found]] = [
        lambda: _from_identity(target, counts, macs, shared),
        lambda: _from_singular_vectors(target, counts, macs, shared),
        lambda: _transposed(_from_identity(target.T.contiguous(), counts[::-1], macs, shared)),
    ]
    starts = starts if target.shape[0] <= target.shape[1] else starts[::-1]
    each = 5 * len(counts) ** 2 * target.numel()  # of a width of 1; the widest start is the last one
    affordable = starts[: 1 + sum(macs >= each * width for width in target.shape)]
    tried = []
    for start in affordable:
        tried.append(rounds(target, start(), 40, macs, shared=shared, parts=(0.2, 0.1)))
        _log.info("psm: start %d of %d, relative error %.4f", len(tried), len(affordable), tried[-1].error)
    return min(tried, key=lambda result: result.error)


def _from_identity(target: Tensor, counts: list[int], macs: float, shared: bool) -> Found:
    """All factors but the last begin as the identity, w = O. If shared, no worse than they and the largest entries."""
    identities = [torch.eye(len(target), dtype=target.dtype, device=target.device)] * (len(counts) - 1)
    start = found(target, [*identities, largest(target, min(counts[-1], target.numel()))])
    result = found(target, sweeps(target, start.factors, counts, start.affordable(macs, 3, 30)))
    rest = sum(counts) - len(identities) * len(target)
    if not shared or rest < 1:
        return result
    return min(result, found(target, [*identities, largest(target, rest)]), key=lambda result: result.error)


def _transposed(result: Found) -> Found:
    return Found(result.error, [factor.T.contiguous() for factor in reversed(result.factors)])


def _from_singular_vectors(target: Tensor, counts: list[int], macs: float, shared: bool) -> Found:
    """The product of two dense factors, which is exact, thinned out sweep by sweep; w = min(O, I)."""
    u, sizes, vh = torch.linalg.svd(target, full_matrices=False)
    root, eye = sizes.sqrt(), torch.eye(len(sizes), dtype=target.dtype, device=target.device)
    start = Found(0.0, [u * root, *[eye] * (len(counts) - 2), root.unsqueeze(1) * vh])
    number = start.affordable(macs, 6, 30)
    return found(target, sweeps(target, start.factors, counts, number, falling=True, shared=shared))


class _Values(nn.Module):
    """Factors whose non-zeros are parameters."""

    def __init__(self, factors: list[Tensor]) -> None:
        super().__init__()
        self.shapes = [factor.shape for factor in factors]
        self.places = [factor.flatten().nonzero().squeeze(1) for factor in factors]
        self.values = nn.ParameterList(f.flatten()[place] for f, place in zip(factors, self.places, strict=True))

    def factors(self) -> list[Tensor]:
        return [
            values.new_zeros(shape.numel()).scatter(0, place, values).view(shape)
            for values, place, shape in zip(self.values, self.places, self.shapes, strict=True)
        ]

    def dense(self) -> Tensor:
        return torch.linalg.multi_dot(self.factors())


def rounds(
    target: Tensor,
    start: Found,
    most: int,
    macs: float = _MACS / 4,
    gram: Tensor | None = None,
    *,
    shared: bool,
    parts: tuple[float, float],
) -> Found:
    """Quasi-Newton steps on the values, then a swap of positions, in turn; fewer and fewer are swapped.

    Args:
        target: (O, I).
        start: where to begin.
        most: steps in all rounds together.
        macs: multiply-adds that they may take, about.
        gram: (I, I), weighs the error, that of the start too; None weighs alike.
        shared: whether a factor may gain what another loses.
        parts: of the non-zeros that the first and the last round may exchange.

    Returns:
        the best of all rounds, never worse than the beginning.
    """
    steps = start.affordable(macs, 6, most)
    number = max(2, steps // 12)
    best, factors, errors = start, start.factors, []
    for turn in range(number):
        member = _Values(factors)
        error = refine(member, target, gram, steps=steps // number)
        factors = [factor.detach() for factor in member.factors()]
        best = Found(error, factors) if error < best.error else best
        _log.info("psm: round %d of %d, relative error %.4f, best %.4f", turn + 1, number, error, best.error)
        errors.append(best.error)
        if turn >= 5 and errors[-6] - best.error <= 1e-3 * best.error:
            break
        part = parts[0] * (parts[1] / parts[0]) ** (turn / (number - 1))
        swap = swapped(target, factors, part, gram, shared=shared) if turn + 1 < number else None
        if swap is None:
            break
        factors = swap
    return best
