"""Sparse factors whose product is near a matrix, by hierarchical proximal alternating minimisation.

Letters: O, I = rows and columns of the matrix; Q = max(O, I), the width between the factors; J = number of factors.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _largest(matrix: Tensor, count: int) -> Tensor:
    """The matrix with its ``count`` largest entries only, of Frobenius norm 1; zero stays zero."""
    flat = matrix.flatten()
    kept = flat.abs().topk(count).indices
    sparse = torch.zeros_like(flat).scatter(0, kept, flat[kept])
    return (sparse / sparse.norm().clamp(min=torch.finfo(flat.dtype).tiny)).view_as(matrix)


def _spectral_norm(matrix: Tensor) -> Tensor:
    """By twenty power steps, from below."""
    v = matrix.sum(0) + matrix.abs().sum(0)
    for _ in range(20):
        v = matrix.T @ (matrix @ v)
        v = v / v.norm().clamp(min=torch.finfo(v.dtype).tiny)
    return (matrix @ v).norm()


def _product(factors: list[Tensor], size: int, like: Tensor) -> Tensor:
    """Of some factors; the identity of a size where there are none."""
    return torch.linalg.multi_dot(factors) if len(factors) > 1 else factors[0] if factors else torch.eye(size).to(like)


def proximal_sweeps(
    target: Tensor, factors: list[Tensor], counts: list[int], sweeps: int
) -> tuple[list[Tensor], Tensor]:
    """Proximal alternating linearised minimisation of ||lambda S_1 ... S_J - target||, a factor at a time.

    Args:
        target: (O, I).
        factors: starts, dense tensors with zeros.
        counts: non-zeros of every factor.
        sweeps: how often each factor takes a step.

    Returns:
        the factors, of Frobenius norm 1, and lambda.

    Source:
        Le Magoarou and Gribonval 2016, Flexible multi-layer sparse approximations of matrices, figure 4,
        https://arxiv.org/abs/1506.07300.
    """
    factors, scale = list(factors), torch.ones((), dtype=target.dtype, device=target.device)
    for _ in range(sweeps):
        for j, count in enumerate(counts):
            left = _product(factors[:j], factors[j].shape[0], target)
            right = _product(factors[j + 1 :], factors[j].shape[1], target)
            steepness = 1.01 * (scale * _spectral_norm(left) * _spectral_norm(right)) ** 2
            slope = left.T @ (scale * (left @ factors[j] @ right) - target) @ right.T
            step = scale / steepness.clamp(min=1e-30)
            factors[j] = _largest(factors[j] - step * slope, count)
        matrix = torch.linalg.multi_dot(factors)
        scale = (matrix * target).sum() / matrix.square().sum().clamp(min=torch.finfo(target.dtype).tiny)
    return factors, scale


def hierarchical_factors(target: Tensor, counts: list[int], sweeps: int) -> list[Tensor]:
    """Sparse factors whose product is near the target: split one off the rest, adjust all, go on.

    Args:
        target: (O, I).
        counts: non-zeros of every factor, the leftmost first.
        sweeps: of every split and every adjustment.

    Returns:
        the factors as dense tensors with zeros: (O, Q), (Q, Q), ..., (Q, I).

    Source:
        Le Magoarou and Gribonval 2016, figure 5.
    """
    width = max(target.shape)
    done: list[Tensor] = []
    rest, scale = target, torch.ones((), dtype=target.dtype, device=target.device)
    for j in range(1, len(counts)):
        start = [torch.eye(len(rest), width).to(target), target.new_zeros(width, rest.shape[1])]
        pair, scale = proximal_sweeps(rest, start, counts[j - 1 : j + 1], sweeps)
        done = [*done, *pair]
        if j > 1:
            done, scale = proximal_sweeps(target, done, counts[: j + 1], sweeps)
        rest = done.pop() if j + 1 < len(counts) else rest
    return [*done[:-1], done[-1] * scale]
