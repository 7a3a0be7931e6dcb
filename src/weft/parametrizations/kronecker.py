"""Sums of Kronecker products: parameterised hypercomplex multiplication (PHM, PHC) and fixed algebras.

    W = sum_{i=1..n} A[i] (x) S[i],        A (n, n, n), S (n, O/n, I/n)
    W[p*O/n + o, q*I/n + c] = sum_i A[i, p, q] S[i, o, c]

A says how the n components of a hypercomplex number mix; it is learned, or fixed to the table of an algebra.
Rows and columns are component major: the first O/n rows are component 0. On the matrix of a convolution, whose columns
are channels times kernel positions with the channel major, this *is* the PHC convolution.

Letters: O, I = rows and columns of W; n = dimension of the algebra; i, p, q = its components; o, c = row and column
inside a component; B = rows of the input.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft.errors import OptionError, SizeError
from weft.parametrizations.algebras import dimension, multiplication_table
from weft.parametrizations.base import Parametrization, relative_error
from weft.parametrizations.registry import Family, register


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


class Kronecker(Parametrization):
    """A sum of n Kronecker products, with learned or fixed first factors: 1/n of the numbers.

    Choose it to cut the numbers of a layer n-fold while it stays of full rank, and where channels come in groups of n
    that belong together (colours, microphone channels). It does not cut multiply-adds: in evaluation the layer runs
    the small factors for few rows and the cached dense matrix otherwise.

    Args:
        shape: (out, in) of the matrix; n divides out and the input channels, in/positions.
        n: dimension of the algebra, at least 1; default 4, or that of ``algebra``.
        algebra: None for learned A (PHM, PHC), or ``"complex"`` (n = 2), ``"quaternion"`` (n = 4).
        positions: kernel positions per input channel, see ``Parametrization``.
        variance: of the entries after ``reset_parameters``, None for 1/(3*in).
        device: as in torch.
        dtype: as in torch.

    Shape:
        dense(): (O, I)          linear(x): (..., I) -> (..., O)

    Parameters stored:
        mixing A (n, n, n): no weight decay (it is a direction, the scale is in S); a constant buffer if fixed.
        blocks S (n, O/n, I/n): weight decay.

    Initial law:
        S is uniform with the wanted variance; A is normal, scaled so that sum_i A[i, p, q]^2 = 1 for every (p, q):
        every entry of W then has exactly the wanted variance, for every draw of A.

    Cost:
        n^3 + O*I/n numbers; n*O*I multiply-adds to build W; O*I + n^2*O per row by the factors.

    Raises:
        SizeError: n does not divide out or the input channels.
        OptionError: n is smaller than 1 or contradicts ``algebra``.
        UnknownNameError: there is no such algebra.

    Source:
        Zhang et al. 2021, Beyond Fully-Connected Layers with Quaternions: Parameterization of Hypercomplex
        Multiplications with 1/n Parameters, https://arxiv.org/abs/2102.08597; Grassucci, Zhang, Comminiello 2022,
        PHNNs: Lightweight Neural Networks via Parameterized Hypercomplex Convolutions, https://arxiv.org/abs/2110.04176.
        Differs from them in the initial law, which there leaves W 4 to 24 times too small.

    Example:
        >>> p = Kronecker((8, 12), n=4)
        >>> tuple(p.dense().shape), p.mixing.numel() + p.blocks.numel()
        ((8, 12), 88)
    """

    family = "kronecker"
    mixing: Tensor

    def __init__(
        self,
        shape: tuple[int, int],
        *,
        n: int | None = None,
        algebra: str | None = None,
        positions: int = 1,
        variance: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(shape, positions=positions, variance=variance)
        fixed = None if algebra is None else dimension(algebra)
        if n is not None and (n < 1 or fixed not in (None, n)):
            raise OptionError(f"n must be at least 1 and that of the algebra ({algebra!r}: {fixed}), got {n}")
        self.n = int(n or fixed or 4)
        self.algebra = algebra
        _check_divides(self.n, self.shape[0], self.shape[1] // positions)
        size = (self.n, self.shape[0] // self.n, self.shape[1] // self.n)
        if algebra is None:
            self.mixing = nn.Parameter(torch.empty((self.n,) * 3, device=device, dtype=dtype))
        else:
            self.register_buffer("mixing", multiplication_table(algebra, device, dtype))
        self.blocks = nn.Parameter(torch.empty(size, device=device, dtype=dtype))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        bound = (3 * self.variance) ** 0.5
        nn.init.uniform_(self.blocks, -bound, bound)
        if self.algebra is None:
            self.mixing.normal_()
            self.mixing.div_(self.mixing.norm(dim=0, keepdim=True))
        elif not self.mixing.is_meta:
            self.mixing.copy_(multiplication_table(self.algebra))

    def dense(self) -> Tensor:
        return kronecker_sum(self.mixing, self.blocks)

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        n, rows, columns = self.blocks.shape
        # First S on every component of x, then A mixes the n^2 results: z[b, q, i, o], y[b, p, o].
        z = F.linear(x.reshape(*x.shape[:-1], n, columns), self.blocks.reshape(n * rows, columns))
        z = z.reshape(*x.shape[:-1], n * n, rows)
        y = (self.mixing.permute(1, 2, 0).reshape(n, n * n).to(z.dtype) @ z).reshape(*x.shape[:-1], n * rows)
        return y if bias is None else y + bias.to(y.dtype)

    def cost(self, rows: int) -> int:
        return rows * (math.prod(self.shape) + self.n**2 * self.shape[0])

    def build_cost(self) -> int:
        return self.n * math.prod(self.shape)

    def _fit(self, target: Tensor, gram: Tensor | None) -> None:
        if self.algebra is not None:
            self.blocks.copy_(best_blocks(self.mixing.to(target.dtype), target, gram))
            return
        mixing, blocks = nearest_kronecker_sum(target, self.n)
        if gram is not None:
            mixing, blocks = _alternate(mixing, blocks, target, gram)
        self.mixing.copy_(mixing)
        self.blocks.copy_(blocks)

    @classmethod
    def _sized(cls, shape: tuple[int, int], budget: int, positions: int, options: dict[str, Any]) -> dict[str, Any]:
        sides = math.gcd(shape[0], shape[1] // positions)
        fits = [n for n in range(1, sides + 1) if sides % n == 0 and n**3 + math.prod(shape) // n <= budget]
        remedy = f"n={fits[0]} is the smallest that fits this share" if fits else "no n fits this share"
        raise OptionError(f"family 'kronecker' is sized by n, not by share, for shape {tuple(shape)}: {remedy}")

    def extra_repr(self) -> str:
        kind = "learned" if self.algebra is None else self.algebra
        return f"shape={self.shape}, n={self.n}, algebra={kind}, share={self.share:.3g}"


def _alternate(
    mixing: Tensor, blocks: Tensor, target: Tensor, gram: Tensor, sweeps: int = 20, tolerance: float = 1e-4
) -> tuple[Tensor, Tensor]:
    """Weighted fit by alternating exact solves; keeps the best, so never worse than the unweighted optimum."""
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


def _check_divides(n: int, rows: int, channels: int) -> None:
    for side, size in (("out_features (out_channels)", rows), ("in_features (in_channels)", channels)):
        if size % n:
            divisors = [d for d in range(1, size + 1) if size % d == 0]
            near = sorted(sorted(divisors, key=lambda d: abs(d - n))[:3])
            lower, upper = size // n * n, (size // n + 1) * n
            sizes = f"{lower} or {upper}" if lower else f"{upper}"
            raise SizeError(
                f"n must divide {side}: {n} does not divide {size}; "
                f"nearest sizes for n={n}: {sizes}; nearest n for {size}: {', '.join(map(str, near))}"
            )


register(
    Family(
        name="kronecker",
        cls=Kronecker,
        title="Sum of Kronecker products (PHM, PHC, quaternion)",
        summary="n Kronecker products of a small mixing matrix and a block, with a learned or a fixed algebra.",
        advice="1/n of the numbers at full rank; for channels in groups of n that belong together; as many operations.",
        source="Zhang et al. 2021, https://arxiv.org/abs/2102.08597; Grassucci et al. 2022, https://arxiv.org/abs/2110.04176",
        options={
            "n": "dimension of the algebra; divides out and the input channels; default 4",
            "algebra": "None for a learned one, or 'complex' (n=2), 'quaternion' (n=4)",
        },
        sized_by="n",
        parameters="n^3 + out*in/n (out*in/n for a fixed algebra)",
        cost="rows*(out*in + n^2*out)",
        weight_decay={"mixing": False, "blocks": True},
        launches=8,  # two products, and reshapes and permutations that cost as much as small kernels
        export_path="dense",
    )
)
