"""Products of circulant and skew-circulant matrices: their sum as one real matrix, or applied to rows by FFT.

    W = 1/2 sum_j C(g_j) S(h_j reversed),     C(v) = [v, Z_1 v, Z_1^2 v, ...],   S(v) = [v, Z_-1 v, Z_-1^2 v, ...]

Z_f shifts down by one place, and what leaves at the bottom comes back at the top times f. Two ways to the same thing:

* **real**: the displacement D = Z_1 W - W Z_-1 is left^T right, a product of two thin matrices, and W[i, j + 1] =
  W[i - 1, j] - D[i, j] gives W back by running sums along its wrapped diagonals. No complex number, no index: it runs
  in every dtype and can be recorded by every compiler.
* **FFT**: C is diagonal in the Fourier basis and S in the one of half-integer frequencies, so a row costs 2R + 2
  transforms instead of N^2 multiply-adds. In single and double precision only, as torch has no others.

Letters: N = order of the square matrix; O, I = rows and columns kept of it, from the top left; B = rows of the input;
R = rank, the number of pairs; left (R, N) has the rows g_j, right (R, N) the rows h_j.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

#: Rows of one block of the running sums: small, as each number meets this many; not tiny, as the blocks meet too.
_BLOCK = 32


def toeplitz_like_matrix(left: Tensor, right: Tensor, order: int, shape: tuple[int, int]) -> Tensor:
    """The matrix of a displacement left^T right, in real arithmetic.

    Args:
        left: (R, N).
        right: (R, N).
        order: N; passed as a number, because under ``torch.fx`` the shape of a parameter is none.
        shape: (O, I), at most (N, N).

    Returns:
        (O, I), a view of a larger tensor.

    Example:
        >>> first = torch.tensor([[1.0, 0.0, 0.0]])
        >>> toeplitz_like_matrix(2 * torch.tensor([[5.0, 6.0, 7.0]]), first.flip(1), 3, (2, 3))  # S = 1: circulant
        tensor([[5., 7., 6.],
                [6., 5., 7.]])
    """
    size = min(_BLOCK, order)
    blocks = -(-order // size)
    rows = blocks * size
    # Row i of D, continued to both sides by the rule of S, then shifted left by i, so that a wrapped diagonal of W is
    # a column. Cutting the flat numbers into rows one longer is that shift; it takes a few rows more than there are.
    around = torch.cat([-right[:, -1:], right, -right[:, :-1]], 1)[:, : 2 * order - 1]
    spare = rows - order + rows // (2 * order - 1) + 1
    d = F.pad(left, (0, spare)).T @ around
    d = d.flatten()[: rows * 2 * order].view(rows, 2 * order)[:, :order].unflatten(0, (blocks, size))
    # v_i = 1/2 (sum_{k > i} d_k - sum_{k <= i} d_k) down every column, first inside blocks and then between them: two
    # products with small constant matrices, several times faster than a cumulative sum across the rows of a matrix.
    inside = _half_signs(size, d, 0) @ d
    between = _half_signs(blocks, d, -1) @ d.sum(1)
    v = (inside + between.unsqueeze(1)).flatten(0, 1)[:order]
    # The inverse shift; what has wrapped around changes its sign.
    return torch.cat([-v, v], 1).flatten()[order:].view(order, 2 * order - 1)[: shape[0], : shape[1]]


def _half_signs(size: int, like: Tensor, diagonal: int) -> Tensor:
    """(size, size): 1/2 right of the diagonal, -1/2 up to the given one, which is -1 or 0."""
    ones = like.new_ones(size, size)
    return (ones.triu(1) - ones.tril(diagonal)) / 2


def toeplitz_like_product(x: Tensor, left: Tensor, right: Tensor, rows: int) -> Tensor:
    """The product of rows with W^T by fast Fourier transforms, with the sum over pairs kept between them.

    Args:
        x: (B, I), single or double precision; missing columns up to N count as zeros.
        left: (R, N), of the same dtype.
        right: (R, N).
        rows: O, at most N.

    Returns:
        (B, O).

    Source:
        Kissel and Diepold 2023 (see ``ToeplitzLike``) for the two diagonal forms; that the transform of S can be
        halved by folding is the usual one of products modulo X^N + 1.

    Example:
        >>> left, right, x = torch.randn(2, 8), torch.randn(2, 8), torch.randn(5, 8)
        >>> want = x @ toeplitz_like_matrix(left, right, 8, (6, 8)).T
        >>> torch.allclose(toeplitz_like_product(x, left, right, 6), want, atol=1e-5)
        True
    """
    order = left.shape[1]
    x = F.pad(x, (0, order - x.shape[1]))
    u = _skew_products(x, right.flip(1), order)
    total = (torch.fft.rfft(u) * torch.fft.rfft(left / 2)).sum(1)
    return torch.fft.irfft(total, order)[:, :rows]


def _skew_products(x: Tensor, v: Tensor, order: int) -> Tensor:
    """S(v_j) x_b of all rows of v (R, N) and x (B, N), as (B, R, N): products of polynomials modulo X^N + 1.

    With N = 2M even, X^N + 1 = (X^M - i)(X^M + i), and a real polynomial is known from its remainder by the first
    factor, p + i q for its halves p and q. There X = w Y with w^M = i makes it a cyclic product of M complex numbers.
    With N odd, X = -Y makes X^N + 1 the cyclic -(Y^N - 1), all real.
    """
    if order % 2:
        signs = 1 - 2 * (torch.arange(order, device=x.device) % 2).to(x.dtype)
        product = torch.fft.rfft(x * signs).unsqueeze(1) * torch.fft.rfft(v * signs)
        return torch.fft.irfft(product, order) * signs
    half = order // 2
    angles = torch.arange(half, dtype=x.dtype, device=x.device) * (math.pi / order)
    twist, back = torch.polar(torch.ones_like(angles), angles), torch.polar(torch.ones_like(angles), -angles)
    xs, vs = (torch.fft.fft(torch.complex(y[:, :half], y[:, half:]).mul_(twist)) for y in (x, v))
    z = torch.fft.ifft(xs.unsqueeze(1) * vs).mul_(back)
    return torch.cat([z.real, z.imag], -1)


def transform_cost(order: int) -> int:
    """Multiply-adds of one Fourier transform of N real numbers.

    Args:
        order: N.

    Returns:
        5/4 N log2 N, half of the usual count of additions and multiplications, where N is even and has no prime factor
        above 7. Other lengths count six times: they are transformed as a convolution, by three transforms of twice
        the length.

    Example:
        >>> transform_cost(1024), transform_cost(1023)
        (12800, 76714)
    """
    rest = order
    for prime in (2, 3, 5, 7):
        while rest % prime == 0:
            rest //= prime
    return int((1 if rest == 1 and order % 2 == 0 else 6) * 1.25 * order * math.log2(max(order, 2)))
