"""Krylov blocks [V, A V, ..., A^(q-1) V] of tridiagonal operators with corners, in few large products.

    (A x)_i = a_i x_(i-1) + b_i x_i + c_i x_(i+1),  indices cyclic; stored as the rows a, b, c of one tensor

A small operator is one matrix, whose Krylov block is doubled: [V, ..., A^(2p-1) V] = [K, A^p K] with K of p powers.
In a large one, s powers carry a number only s places: the operator is cut into stretches, and the rows of A^s in one
are those of a small matrix, the stretch with s places more on both sides. A product with A^s is a batch of small ones.

Letters: N = side of the operator; M = vectors; T = stretches; L = length of one; s = reach, L + 2s = width of a window.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

#: Shorter stretches make products too small to be fast.
_SHORTEST = 16


class Stretches(NamedTuple):
    """How an operator is cut: they wrap around, and the last may end behind the first row."""

    side: int  # N
    pieces: int  # T
    length: int  # L
    reach: int  # s, a power of 2

    @property
    def width(self) -> int:
        """Of a stretch and the places that its powers reach."""
        return self.length + 2 * self.reach

    @property
    def step_cost(self) -> int:
        """Multiply-adds of A^s times a vector."""
        return self.pieces * self.length * self.width

    def block_cost(self, vectors: int) -> int:
        """Multiply-adds of ``local_block``.

        Args:
            vectors: M.

        Returns:
            multiply-adds.
        """
        return self.power_cost + self.pieces * self.width**2 * vectors * (self.reach - 1)

    @property
    def power_cost(self) -> int:
        """Multiply-adds of ``local_power``."""
        squarings = self.width**3 * (self.reach.bit_length() - 2)
        return self.pieces * (squarings + self.length * self.width**2)


def stretches(side: int, reach: int) -> Stretches:
    """Stretches of even length, not much shorter than the reach.

    Args:
        side: N, at least ``reach``.
        reach: s, a power of 2 from 2.

    Returns:
        the sizes.

    Example:
        >>> stretches(100, 8)
        Stretches(side=100, pieces=6, length=17, reach=8)
    """
    pieces = max(1, side // max(reach, _SHORTEST))
    return Stretches(side, pieces, -(-side // pieces), reach)


def transposed(operator: Tensor) -> Tensor:
    """The operator of the transposed matrix.

    Args:
        operator: (3, N).

    Returns:
        (3, N).
    """
    return torch.stack([operator[2].roll(1), operator[1], operator[0].roll(-1)])


def doubled(matrix: Tensor, vectors: Tensor, count: int, width: int) -> tuple[Tensor, Tensor]:
    """The Krylov block of whole matrices, in 2 log2(count) products.

    Args:
        matrix: (..., N, N).
        vectors: (..., N, M).
        count: q, number of powers.
        width: M, which under ``torch.fx`` no tensor tells.

    Returns:
        [V, A V, ..., A^(q-1) V], (..., N, q*M), and the last power of the matrix that it took.
    """
    block, power, have = vectors, matrix, 1
    while have < count:
        if have > 1:
            power = power @ power
        block = torch.cat([block, power @ block[..., : (count - have) * width]], dim=-1)
        have *= 2
    return block, power


def whole_block(operator: Tensor, vectors: Tensor, count: int, width: int) -> Tensor:
    """The Krylov block of a small operator.

    Args:
        operator: (3, N).
        vectors: (N, M).
        count: q.
        width: M.

    Returns:
        (N, q*M).
    """
    if count == 1:
        return vectors
    below, diagonal, above = torch.diag_embed(operator).unbind()
    return doubled(below.roll(-1, 1) + diagonal + above.roll(1, 1), vectors, count, width)[0]


def whole_cost(side: int, count: int, width: int) -> int:
    """Multiply-adds of ``whole_block``.

    Args:
        side: N.
        count: q.
        width: M.

    Returns:
        multiply-adds.
    """
    squarings = max((count - 1).bit_length() - 1, 0)
    return squarings * side**3 + side**2 * width * (count - 1)


def _windows(x: Tensor, sizes: Stretches) -> Tensor:
    """Every stretch of x (N, M) with ``reach`` places more on both sides, (T, L + 2s, M)."""
    side, pieces, length, reach = sizes
    wrapped = torch.cat([x[side - reach :], x, x[: reach + pieces * length - side]])
    return wrapped.unfold(0, sizes.width, length).transpose(1, 2)


def _local(operator: Tensor, sizes: Stretches) -> Tensor:
    """The operator inside every window, (T, L + 2s, L + 2s)."""
    bands = _windows(operator.T, sizes)
    below, diagonal, above = bands[:, 1:, 0], bands[:, :, 1], bands[:, :-1, 2]
    return torch.diag_embed(below, -1) + torch.diag_embed(diagonal) + torch.diag_embed(above, 1)


def local_power(operator: Tensor, sizes: Stretches) -> Tensor:
    """A^s, stretch by stretch.

    Args:
        operator: (3, N).
        sizes: of the stretches.

    Returns:
        (T, L, L + 2s), the rows of each stretch.
    """
    half = _local(operator, sizes)
    for _ in range(sizes.reach.bit_length() - 2):
        half = half @ half
    return _last_square(half, sizes)


def local_block(operator: Tensor, vectors: Tensor, sizes: Stretches, width: int) -> tuple[Tensor, Tensor]:
    """The first s powers of the Krylov block, and A^s.

    Args:
        operator: (3, N).
        vectors: (N, M).
        sizes: of the stretches.
        width: M.

    Returns:
        [V, A V, ..., A^(s-1) V], (N, s*M), and A^s as from ``local_power``.
    """
    block, half = doubled(_local(operator, sizes), _windows(vectors, sizes), sizes.reach, width)
    inner = block[:, sizes.reach : sizes.reach + sizes.length]
    return inner.flatten(0, 1)[: sizes.side], _last_square(half, sizes)


def _last_square(half: Tensor, sizes: Stretches) -> Tensor:
    return half[:, sizes.reach : sizes.reach + sizes.length] @ half


def step(power: Tensor, x: Tensor, sizes: Stretches) -> Tensor:
    """A^s x.

    Args:
        power: (T, L, L + 2s), from ``local_power``.
        x: (N, M).
        sizes: of the stretches.

    Returns:
        (N, M).
    """
    return torch.bmm(power, _windows(x, sizes)).flatten(0, 1)[: sizes.side]


def stepped_block(operator: Tensor, vectors: Tensor, sizes: Stretches, count: int, width: int) -> Tensor:
    """The Krylov block of a large operator, s powers at a time.

    Args:
        operator: (3, N).
        vectors: (N, M).
        sizes: of the stretches.
        count: q.
        width: M.

    Returns:
        (N, q*M).
    """
    block, power = local_block(operator, vectors, sizes, width)
    pieces, have = [block[:, : count * width]], sizes.reach
    while have < count:
        pieces.append(step(power, pieces[-1][:, : (count - have) * width], sizes))
        have += sizes.reach
    return torch.cat(pieces, dim=1)


def stepped_cost(sizes: Stretches, count: int, width: int) -> int:
    """Multiply-adds of ``stepped_block``.

    Args:
        sizes: of the stretches.
        count: q.
        width: M.

    Returns:
        multiply-adds.
    """
    return sizes.block_cost(width) + sizes.step_cost * width * max(count - sizes.reach, 0)


def reach_for(count: int, longer: int = 1) -> int:
    """The reach that makes steps and what prepares them about as slow as one another, measured for 256 to 8192 powers.

    Args:
        count: q, number of powers, at least 2.
        longer: factor on it where a step is dear.

    Returns:
        a power of 2 near longer*sqrt(q)/2, from 2 and at most q.

    Example:
        >>> reach_for(1024), reach_for(300), reach_for(3)
        (16, 8, 2)
    """
    wanted = round(math.log2(longer * math.sqrt(count) / 2))
    return 2 ** min(max(1, wanted), count.bit_length() - 1)
