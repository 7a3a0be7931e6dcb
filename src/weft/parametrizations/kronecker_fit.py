"""Arithmetic of sums of Kronecker products: building them, and the nearest one to a given matrix.

Letters: O, I = rows and columns of W; n = dimension of the algebra; i, p, q = its components; o, c = row and column
inside a component; R = number of products of a fast algebra.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from weft.parametrizations.base import relative_error
from weft.parametrizations.cp import Factors, compose, cp_approximate, cp_decompose


def kronecker_sum(mixing: Tensor, blocks: Tensor) -> Tensor:
    """sum_i mixing[i] (x) blocks[i], by one matrix product and one permutation.

    The n-fold larger intermediate of the obvious way (form every Kronecker product, then add) never exists.

    Args:
        mixing: A, (n, n, n).
        blocks: S, (n, O/n, I/n).

    Returns:
        (O, I).
    """
    n, rows, columns = blocks.shape
    sums = mixing.reshape(n, n * n).T @ blocks.reshape(n, rows * columns)  # (p q, o c)
    return sums.reshape(n, n, rows, columns).permute(0, 2, 1, 3).reshape(n * rows, n * columns)


def rearrange(matrix: Tensor, n: int) -> Tensor:
    """Van Loan's rearrangement: one row per block (p, q) of the matrix, so that Kronecker products become rank one.

    Args:
        matrix: (O, I).
        n: blocks per side.

    Returns:
        (n*n, O/n * I/n).
    """
    rows, columns = matrix.shape[0] // n, matrix.shape[1] // n
    return matrix.reshape(n, rows, n, columns).permute(0, 2, 1, 3).reshape(n * n, rows * columns)


def nearest_kronecker_sum(target: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """A and S of the nearest sum of n Kronecker products: the rank-n truncation of the rearranged matrix.

    Args:
        target: (O, I), n divides both.
        n: number of products and size of the first factors.

    Returns:
        mixing (n, n, n), scaled like that of a fresh layer (sum over i of A[i, p, q]^2 is 1 on average), and blocks
        (n, O/n, I/n).

    Source:
        Van Loan and Pitsianis 1993, Approximation with Kronecker Products, theorem 2.1.
    """
    rearranged = rearrange(target, n)
    # n^2 rows only: the small Gram matrix would be cheaper but squares the condition number.
    u, s, vh = torch.linalg.svd(rearranged, full_matrices=False)
    count = min(n, s.numel())
    mixing = target.new_zeros(n, n * n)
    blocks = target.new_zeros(n, rearranged.shape[1])
    scale = n / math.sqrt(count)  # orthonormal rows of u, rescaled to the energy n^2 of a fresh A
    mixing[:count] = u[:, :count].T * scale
    blocks[:count] = s[:count, None] * vh[:count] / scale
    return mixing.reshape(n, n, n), blocks.reshape(n, target.shape[0] // n, target.shape[1] // n)


def best_blocks(mixing: Tensor, target: Tensor, gram: Tensor | None) -> Tensor:
    """S of the least-squares projection for a given A, in the norm weighted by ``gram`` where one is given.

    Args:
        mixing: A, (n, n, n).
        target: (O, I).
        gram: (I, I) or None.

    Returns:
        (n, O/n, I/n).
    """
    n = mixing.shape[0]
    rows, columns = target.shape[0] // n, target.shape[1] // n
    if gram is None:
        normal = mixing.reshape(n, n * n) @ mixing.reshape(n, n * n).T
        right = mixing.reshape(n, n * n) @ rearrange(target, n)
        return (torch.linalg.pinv(normal, hermitian=True) @ right).reshape(n, rows, columns)
    # One system for all o: sum_pqr A[i,p,q] G[qc,rd] A[j,p,r] S[j,o,d] = sum_pq A[i,p,q] (T G)[po,qc].
    gram_qcrd = gram.reshape(n, columns, n, columns)
    normal = torch.einsum("ipq,jpr,qcrd->icjd", mixing, mixing, gram_qcrd).reshape(n * columns, n * columns)
    right = torch.einsum("ipq,poqc->ico", mixing, (target @ gram).reshape(n, rows, n, columns))
    solution = _solve(normal, right.reshape(n * columns, rows))
    return solution.reshape(n, columns, rows).transpose(1, 2)


def best_mixing(blocks: Tensor, target: Tensor, gram: Tensor) -> Tensor:
    """A of the weighted least-squares projection for given S.

    Args:
        blocks: S, (n, O/n, I/n).
        target: (O, I).
        gram: (I, I).

    Returns:
        (n, n, n).
    """
    n, rows, columns = blocks.shape
    gram_qcrd = gram.reshape(n, columns, n, columns)
    # One system for all p: sum_jr <S_i G_qr, S_j> A[j,p,r] = <S_i, (T G)_pq>.
    images = torch.einsum("jod,qcrd->jroqc", blocks, gram_qcrd)
    normal = torch.einsum("ioc,jroqc->iqjr", blocks, images).reshape(n * n, n * n)
    right = torch.einsum("ioc,poqc->iqp", blocks, (target @ gram).reshape(n, rows, n, columns)).reshape(n * n, n)
    return _solve(normal, right).reshape(n, n, n).transpose(1, 2)


def _solve(normal: Tensor, right: Tensor) -> Tensor:
    """Least-norm solution of positive semidefinite normal equations; a tiny ridge stands in for lost directions."""
    ridge = normal.diagonal().mean().clamp(min=torch.finfo(normal.dtype).tiny) * torch.finfo(normal.dtype).eps * 10
    factor, info = torch.linalg.cholesky_ex(
        normal + ridge * torch.eye(len(normal), dtype=normal.dtype, device=normal.device)
    )
    return torch.cholesky_solve(right, factor) if int(info) == 0 else torch.linalg.pinv(normal, hermitian=True) @ right


def alternate(
    mixing: Tensor, blocks: Tensor, target: Tensor, gram: Tensor, sweeps: int = 20, tolerance: float = 1e-4
) -> tuple[Tensor, Tensor]:
    """Weighted fit by alternating exact solves; keeps the best, so never worse than where it starts.

    Args:
        mixing: A, (n, n, n), to start from.
        blocks: S, (n, O/n, I/n), to start from.
        target: (O, I).
        gram: (I, I).
        sweeps: largest number of rounds.
        tolerance: relative gain of a round below which it stops.

    Returns:
        mixing and blocks.
    """
    best = relative_error(kronecker_sum(mixing, blocks), target, gram)
    for _ in range(sweeps):
        new_blocks = best_blocks(mixing, target, gram)
        new_mixing = best_mixing(new_blocks, target, gram)
        error = relative_error(kronecker_sum(new_mixing, new_blocks), target, gram)
        if not error < best:
            break
        gain, best, mixing, blocks = best - error, error, new_mixing, new_blocks
        if gain < tolerance * best:
            break
    return mixing, blocks


def nearest_of_rank(
    mixing: Tensor, blocks: Tensor, target: Tensor, gram: Tensor | None, rank: int, sweeps: int = 10
) -> tuple[Factors, Tensor]:
    """A of CP rank R and S near a matrix, from an unrestricted solution: decompose A, refit S, repeat.

    With orthonormal S the error of W is that of A up to a constant, so each round decomposes the best A for the
    blocks at hand, written in an orthonormal basis of them. Where no nearest A exists, because the error falls for ever
    while the terms of A grow, it ends at moderate terms: the fast product shall not lose digits.

    Args:
        mixing: A, (n, n, n), unrestricted solution.
        blocks: S, (n, O/n, I/n), unrestricted solution.
        target: (O, I).
        gram: (I, I) or None.
        rank: R.
        sweeps: largest number of rounds.

    Returns:
        the factors of A, each (n, R), and S.
    """
    n = len(mixing)
    factors: Factors | None = None
    best: tuple[float, Factors, Tensor] | None = None
    if gram is not None:  # a round may lead astray in this norm: never worse than without it
        plain, _ = nearest_of_rank(*nearest_kronecker_sum(target, n), target, None, rank, sweeps)
        blocks_ = best_blocks(compose(plain), target, gram)
        best = relative_error(kronecker_sum(compose(plain), blocks_), target, gram), plain, blocks_
    for _ in range(sweeps):
        basis, upper = torch.linalg.qr(blocks.reshape(n, -1).T)  # S^T = basis upper
        # The best A for these blocks, not only the last one, where the norm allows to read it off.
        mixing = basis.T @ rearrange(target, n).T if gram is None else upper @ mixing.reshape(n, n * n)
        tensor = mixing.reshape(-1, n, n)
        if factors is None:
            cast, _ = cp_decompose(tensor, rank, restarts=3, approximate=True)
        else:  # the A of the last round, in the new basis, is near
            cast, _ = cp_approximate(tensor, (upper @ factors[0], *factors[1:]), iterations=20)
        factors = _pad_first(tuple(f.to(target) for f in cast), n)  # type: ignore[arg-type]
        blocks = best_blocks(compose(factors), target, gram)
        error = relative_error(kronecker_sum(compose(factors), blocks), target, gram)
        if best is not None and error > best[0] * (1 - 1e-4):
            break
        best = (error, factors, blocks)
        mixing = compose(factors)
    assert best is not None
    return best[1], best[2]


def _pad_first(factors: Factors, n: int) -> Factors:
    """Zero rows where the blocks span fewer than n dimensions."""
    first, second, third = factors
    return torch.nn.functional.pad(first, (0, 0, 0, n - len(first))), second, third
