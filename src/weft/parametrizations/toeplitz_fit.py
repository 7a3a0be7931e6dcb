"""Toeplitz-like matrices near a given one, in closed form: by its displacement, or as a Toeplitz matrix and a rest.

Truncating the displacement Z_1 W - W Z_-1 minimises the error of the displacement, which the way back to W amplifies:
on a matrix without structure it is worse than zero. So every answer here is scaled to the best multiple and compared.

Letters: N = max(O, I), order; R = rank; a pair is left (R, N) and right (R, N), as in ``toeplitz_products``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from weft.parametrizations.toeplitz_products import toeplitz_like_matrix

#: Steps of the conjugate gradients that complete a rectangle, where it is not too large.
_STEPS = 300
#: From this order on, a few singular vectors are found by random projections, in minutes less.
_LARGE = 1024


def bounded_steps(most: int, order: int) -> int:
    """Steps of a descent whose every step builds the matrix: so many that they stay within minutes.

    Args:
        most: for small matrices.
        order: N.

    Returns:
        ``most``, or less from about 2000 on.
    """
    return min(most, max(10, 10**9 // order**2))


def displacement(target: Tensor) -> Tensor:
    """Z_1 T - T Z_-1 of a matrix, as far as a rectangle tells it; what it leaves open is zero.

    Args:
        target: (O, I), the top left part of a square matrix.

    Returns:
        (N, N): for O < N the rows 1..O-1, for I < N the columns 0..I-2, and all of them for a square.
    """
    rows, columns = target.shape
    if rows < columns:
        d = target.new_zeros(columns, columns)
        d[1:rows] = target[:-1] - _turned(target[1:])
        return d
    d = target.roll(1, 0) - _turned(target)
    return d if rows == columns else torch.cat([d[:, :-1], d.new_zeros(rows, rows - columns + 1)], 1)


def _turned(target: Tensor) -> Tensor:
    """T Z_-1."""
    return torch.cat([target[:, 1:], -target[:, :1]], 1)


def nearest_toeplitz(target: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest Toeplitz matrix, which is a circulant and a skew-circulant one, as two pairs.

    Every Toeplitz matrix t[i - j] of order N is C(c) + S(s) with c, s = (t[k] + t[k - N])/2, (t[k] - t[k - N])/2.
    Diagonals that a rectangle does not have are zero.

    Args:
        target: (O, I).

    Returns:
        left (2, N), right (2, N).

    Example:
        >>> left, right = nearest_toeplitz(torch.tensor([[1.0, 2.0], [3.0, 3.0]]))
        >>> toeplitz_like_matrix(left, right, 2, (2, 2))
        tensor([[2., 2.],
                [3., 2.]])
    """
    rows, columns = target.shape
    order = max(rows, columns)
    t = target.new_zeros(2 * order)  # t[k] at place k + order, place 0 for the diagonal -N that there is not
    places = torch.arange(rows, device=target.device)[:, None] - torch.arange(columns, device=target.device) + order
    ones = torch.ones_like(target).flatten()
    counts = torch.zeros_like(t).index_add(0, places.flatten(), ones)
    t = t.index_add(0, places.flatten(), target.flatten()) / counts.clamp(min=1)
    upper, lower = t[:order], t[order:]
    circulant, skew = (lower + upper) / 2, (lower - upper) / 2
    unit = torch.zeros_like(skew)
    unit[-1] = 1  # reversed the first unit vector, whose C and S are the identity
    return torch.stack([2 * circulant, 2 * unit.flip(0)]), torch.stack([unit, skew.flip(0)])


def from_displacement(target: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Pairs of the truncated displacement, completed to what the rectangle needs, and scaled to the best multiple.

    A rectangle knows a part of the displacement. Where its matrix is that of a member, the singular vectors on the
    side that is known whole are those of the member, and its other side follows by linear least squares.

    Args:
        target: (O, I).
        rank: R.

    Returns:
        left (R, N), right (R, N); no worse than zero.
    """
    rows, columns = target.shape
    left, right = _rescaled(*_leading(displacement(target), rank), target)
    if rows < columns:
        left = _least_squares(left, right, target)
    if columns < rows:
        right = _least_squares(right, left, target, swapped=True)
    return left, right


def closed_form(target: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The better one of two: by the displacement, or the nearest Toeplitz matrix and the rest by its displacement.

    Args:
        target: (O, I).
        rank: R.

    Returns:
        left (R, N), right (R, N), with equal norms in each pair; no worse than zero.
    """
    answers = [from_displacement(target, rank)]
    if rank >= 2:
        left, right = nearest_toeplitz(target)
        if rank > 2:
            rest = from_displacement(target - _matrix(left, right, target), rank - 2)
            left, right = torch.cat([left, rest[0]]), torch.cat([right, rest[1]])
        answers.append((left, right))
    left, right = min(answers, key=lambda pair: float((_matrix(pair[0], pair[1], target) - target).norm()))
    sizes = [factor.norm(dim=1, keepdim=True) for factor in (left, right)]
    ratio = torch.where(sizes[0] * sizes[1] > 0, (sizes[1] / sizes[0]).sqrt(), 1)
    return left * ratio, right / ratio


def _leading(d: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The nearest matrix of a rank, as left^T right with orthonormal rows of right."""
    if len(d) > _LARGE and 8 * rank < len(d):
        with torch.random.fork_rng(devices=[]):  # the same answer every time, and nobody else's numbers are drawn
            torch.manual_seed(0)
            u, s, v = torch.svd_lowrank(d, q=rank + 8, niter=4)
        vh = v.T
    else:
        u, s, vh = torch.linalg.svd(d)
    return (u[:, :rank] * s[:rank]).T, vh[:rank]


def _matrix(left: Tensor, right: Tensor, target: Tensor) -> Tensor:
    return toeplitz_like_matrix(left, right, left.shape[1], (target.shape[0], target.shape[1]))


def _rescaled(left: Tensor, right: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    matrix = _matrix(left, right, target)
    size = matrix.square().sum()
    return left * (torch.where(size > 0, (matrix * target).sum() / size, 0)), right


def _least_squares(start: Tensor, other: Tensor, target: Tensor, swapped: bool = False) -> Tensor:
    """The factor that brings W nearest to a target with the other one held, by conjugate gradients from a start."""

    def matrix(factor: Tensor) -> Tensor:
        return _matrix(other, factor, target) if swapped else _matrix(factor, other, target)

    with torch.enable_grad():
        point = torch.zeros_like(start).requires_grad_()
        image = matrix(point)  # linear in the factor, so that its derivative anywhere is the adjoint

    def adjoint(residual: Tensor) -> Tensor:
        return torch.autograd.grad(image, point, residual, retain_graph=True)[0]

    factor, residual = start, target - matrix(start)
    slope = adjoint(residual)
    direction, size = slope, slope.square().sum()
    least = 1e-30 * adjoint(target).square().sum()
    for _ in range(bounded_steps(_STEPS, start.shape[1])):
        if size <= least:
            break
        step = matrix(direction)
        length = size / step.square().sum()
        factor, residual = factor + length * direction, residual - length * step
        slope = adjoint(residual)
        direction, size = slope + slope.square().sum() / size * direction, slope.square().sum()
    return factor
