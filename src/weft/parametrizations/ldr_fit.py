"""The nearest matrix of low displacement rank that is found from a few starts, by descent on all factors.

With shifts for A and B, whose eigenvectors are Fourier's, W = sum_j A^j D B^j is in Fourier space D, entry by entry
times fixed weights C_kl = sum_(j<q) (lambda_k mu_l)^j. The best D of rank R is a weighted low-rank approximation.

Letters: O, I = rows and columns of W; R = rank; q = min(O, I); N = side of an operator; k, l run over frequencies.
"""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from weft.parametrizations.base import relative_error
from weft.parametrizations.ldr_krylov import transposed
from weft.parametrizations.low_rank import nearest_low_rank
from weft.parametrizations.refine import refine

if TYPE_CHECKING:
    from weft.parametrizations.ldr import LDR

#: Multiply-adds that descent and the weighted approximations may cost, beside what they need at least.
_DESCENT, _SWEEPS = 10**12, 10**11
#: Scale of the shifts beside a low-rank start: without them their gradients would be zero.
_SMALL = 0.05


def shift(side: int, corner: float) -> Tensor:
    """The operator that moves every number one place on, and the last one, times ``corner``, to the first.

    Args:
        side: N.
        corner: 1 or -1 for an orthogonal operator, whose powers neither grow nor vanish.

    Returns:
        (3, N), as the family stores operators.
    """
    operator = torch.zeros(3, side)
    operator[0] = 1
    operator[0, 0] = corner
    return operator


def corners(shape: tuple[int, int]) -> tuple[float, float]:
    """Corners of the shifts for rows and columns with which every matrix has one displacement, and every D one matrix.

    They are 1 and -1, in the order for which no weight C_kl is zero: lambda^O and mu^I are the corners, and -1 belongs
    to the operator whose other one's side is an odd multiple of what divides both.

    Args:
        shape: (out, in).

    Returns:
        the corners of A and of B.
    """
    return (1.0, -1.0) if shape[0] // math.gcd(*shape) % 2 else (-1.0, 1.0)


def _fourier(side: int, corner: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Eigenvalues (N,) and unitary eigenvectors (N, N) of ``shift``."""
    place = torch.arange(side, dtype=torch.float64, device=device)
    angle = (2 * place + (corner < 0)) * (math.pi / side)
    one = torch.ones((), dtype=torch.float64, device=device)
    return torch.polar(one, angle), torch.polar(one, -place.unsqueeze(1) * angle) / math.sqrt(side)


def structured(target: Tensor, rank: int, hankel: bool) -> list[Tensor]:
    """A, B, G and H with shifts for operators, near a matrix; exact for members of these operators.

    Args:
        target: (O, I).
        rank: R.
        hankel: whether B moves to the left, so that antidiagonals are what is alike, as in Hankel matrices; else
            diagonals, as in Toeplitz matrices.

    Returns:
        (3, O), (3, I), (O, R) and (I, R), in double precision.
    """
    shape, target = (target.shape[0], target.shape[1]), target.double()
    row_corner, column_corner = corners(shape)
    row_values, row_vectors = _fourier(shape[0], row_corner, target.device)
    column_values, column_vectors = _fourier(shape[1], column_corner, target.device)
    turns = row_values.unsqueeze(1) * (column_values if hankel else column_values.conj())
    weights = (1 - turns ** min(shape)) / (1 - turns)
    spectrum = row_vectors.mH @ target.to(turns.dtype) @ column_vectors
    plain = (row_vectors @ (spectrum / weights) @ column_vectors.mH).real
    left, right = nearest_low_rank(plain, rank)

    def left_over(left: Tensor, right: Tensor) -> float:
        there = (row_vectors.mH @ left.to(turns.dtype)) @ (right.to(turns.dtype) @ column_vectors)
        return float((weights * there - spectrum).norm())

    found = (left_over(left, right), left, right)
    sweeps = 0 if found[0] <= 1e-9 * float(target.norm()) else _SWEEPS // (8 * math.prod(shape) * rank**2)
    for _ in range(min(30, sweeps)):
        known = torch.linalg.qr(right.T).Q.T
        left = (row_vectors @ _best_rows(spectrum, weights, (known.to(turns.dtype) @ column_vectors).mT)).real
        known = torch.linalg.qr(left).Q
        columns = _best_rows(spectrum.mT, weights.mT, row_vectors.mH @ known.to(turns.dtype))
        left, right = known, (column_vectors.conj() @ columns).real.T
        found = min(found, (left_over(left, right), left, right), key=lambda pair: pair[0])
    _, left, right = found
    column_operator = shift(shape[1], column_corner).to(target)
    column_operator = column_operator if hankel else transposed(column_operator)
    return [shift(shape[0], row_corner).to(target), column_operator, left, right.T]


def _best_rows(spectrum: Tensor, weights: Tensor, known: Tensor) -> Tensor:
    """For every row k the vector x that minimises || spectrum_k - weights_k * (known x) ||.

    Args:
        spectrum: (O, I).
        weights: (O, I).
        known: (I, R), orthonormal.

    Returns:
        (O, R).
    """
    rank = known.shape[1]
    pairs = (known.conj().unsqueeze(2) * known.unsqueeze(1)).flatten(1)
    normal = (weights.abs().square().to(pairs.dtype) @ pairs).unflatten(1, (rank, rank))
    ridge = 1e-12 * normal.diagonal(dim1=1, dim2=2).real.mean(1)
    normal = normal + torch.diag_embed(ridge.unsqueeze(1).expand(-1, rank)).to(normal.dtype)
    return torch.linalg.solve(normal, (weights.conj() * spectrum) @ known.conj())


def nearly_low_rank(target: Tensor, rank: int) -> list[list[Tensor]]:
    """The nearest matrix of low rank, with shifts so small that they do not matter yet, in both directions of B.

    Args:
        target: (O, I).
        rank: R.

    Returns:
        twice A, B, G and H: (3, O), (3, I), (O, R) and (I, R).
    """
    left, right = nearest_low_rank(target, rank)
    row_operator, column_operator = _SMALL * shift(target.shape[0], 1.0), _SMALL * shift(target.shape[1], -1.0)
    return [[row_operator, operator, left, right.T] for operator in (transposed(column_operator), column_operator)]


def fit(member: LDR, target: Tensor, gram: Tensor | None, most: int) -> None:
    """Bring a member near a matrix: the best of three starts after some descent goes on descending.

    Args:
        member: changed in place.
        target: (O, I).
        gram: (I, I) Gram matrix of the inputs, or None.
        most: steps of descent; fewer for small matrices, which need no more, and for large ones, where they are dear.
    """
    # In single precision descent ends early: a tenth farther from a matrix of 20 x 20, in half precision at once.
    work, rounding = copy.deepcopy(member).double(), torch.finfo(target.dtype).eps
    target, gram = target.double(), None if gram is None else gram.double()
    parameters = [work.row_operator, work.column_operator, work.left, work.right]

    def start(values: list[Tensor]) -> float:
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)
        return relative_error(work.dense(), target)

    if not target.any():
        member.left.zero_()
        return
    shifted = min((structured(target, member.rank, hankel) for hankel in (False, True)), key=start)
    steps = min(most, 3 * member.num_parameters, max(8, _DESCENT // (12 * member.build_cost())))
    if start(shifted) > 10 * rounding:
        found = []
        for values in (shifted, *nearly_low_rank(target, member.rank)):
            start(values)
            error = refine(work, target, steps=steps // 8)
            found.append((error, [parameter.clone() for parameter in parameters]))
        start(min(found, key=lambda pair: pair[0])[1])
        refine(work, target, steps=steps // 2)
    if gram is not None:
        refine(work, target, gram, steps=steps // 4)
    for name, parameter in member.named_parameters():
        parameter.copy_(work.get_parameter(name))
    matrix = member.dense().double()
    weighted = matrix if gram is None else matrix @ gram
    size = float((weighted * matrix).sum())
    if size > 0:  # the best scale, with which no member is farther than zero
        member.left.mul_(float((weighted * target).sum()) / size)
