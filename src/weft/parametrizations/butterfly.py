"""Butterfly matrices: a product of log2(N) sparse factors, each mixing pairs of numbers, as the fast Fourier transform.

Factor m mixes numbers that are 2^m apart: with n = (g, i, t), i in {0, 1}, t in 0..2^m - 1,

    y[g, o, t] = sum_i factors[m, (o, i), (g, t)] x[g, i, t],        W = (B_(M-1) ... B_1 B_0)[:O, :I]

The lower half of the factors is block-diagonal with small blocks, the upper half is so after a shuffle: a butterfly is
a Monarch matrix whose two factors are butterflies themselves. It is evaluated in that form, as two batches of matrix
products, and fitted by going down that hierarchy.

Letters: O, I = rows and columns of W; N = 2^M, the next power of two; D = number of such products, one after the other.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft.errors import OptionError
from weft.parametrizations.base import Parametrization, too_small
from weft.parametrizations.monarch import Sizes, monarch_product, nearest_monarch
from weft.parametrizations.refine import refine
from weft.parametrizations.registry import Family, register


def fused(factors: Tensor, first: int, last: int, size: int) -> Tensor:
    """The product of the factors first..last-1, as the blocks it consists of.

    Every entry of a block is one product of entries, never a sum: each step multiplies the blocks so far with the pairs
    that join them.

    Args:
        factors: (M, 4, N/2).
        first: lowest factor.
        last: one more than the highest.
        size: N.

    Returns:
        (N / 2^last, 2^first, S, S) with S = 2^(last - first): block (g, l) maps the numbers (g, i, l) to (g, j, l).
    """
    inner, side = 2**first, 2
    blocks = factors[first].reshape(2, 2, size // (2 * inner), inner)
    for level in range(first + 1, last):  # blocks in the last dimensions, the longest: each step is one wide product
        groups = size // (2 * side * inner)
        pairs = factors[level].reshape(2, 2, groups, side, inner).permute(0, 3, 1, 2, 4)  # (o, j, i, g, l)
        below = blocks.reshape(side, side, groups, 2, inner).permute(0, 3, 1, 2, 4)  # (j, i, c, g, l)
        side *= 2
        blocks = (pairs.unsqueeze(3) * below).reshape(side, side, groups, inner)
    return blocks.permute(2, 3, 0, 1)


def nearest_butterfly(target: Tensor) -> list[Tensor]:
    """Factors of a butterfly near the target: exact for a butterfly, whichever way its factors are scaled.

    Args:
        target: (B, N, N), N a power of two, at least 2.

    Returns:
        log2(N) factors (B, 2, 2, N/2), lowest first.

    Source:
        Le, Zheng, Riccietti and Gribonval 2022, Fast learning of fast transforms, with guarantees, algorithm 2 with the
        balanced tree: the best factors of every split are singular vectors of its parts.
    """
    batch, size, _ = target.shape
    if size == 2:
        return [target.unsqueeze(-1)]
    groups = 2 ** ((size.bit_length() - 1) // 2)
    left, right = nearest_monarch(target, groups, size // groups, 1)
    low = [factor.unflatten(0, (batch, -1)).movedim(1, -2) for factor in nearest_butterfly(right.flatten(0, 1))]
    high = [factor.unflatten(0, (batch, -1)).movedim(1, -1) for factor in nearest_butterfly(left.flatten(0, 1))]
    return [factor.flatten(-2) for factor in low + high]


class Butterfly(Parametrization):
    """A product of log2(N) factors that each mix pairs: W = B_(M-1) ... B_0, the form of all fast transforms.

    2 N log2(N) numbers, the fewest of all families that connect every input with every output. It holds the Hadamard
    matrix and, up to an order of the inputs, the discrete cosine, sine and Fourier transforms. Choose it for square
    sides that are powers of two or a little less, where a weight is expected to be like a transform, or very small;
    ``monarch`` is nearer to most trained weights.

    Args:
        shape: (out, in) of the matrix; both are filled up with zeros to the next power of two, N.
        depth: D, number of butterflies whose product W is, at least 1; or use ``share``.
        positions: kernel positions per input channel, see ``Parametrization``.
        variance: of the entries after ``reset_parameters``, None for 1/(3*in).
        device: as in torch.
        dtype: as in torch.

    Shape:
        dense(): (O, I)          linear(x): (..., I) -> (..., O)

    Parameters stored:
        factors (D*M, 4, N/2), M = log2(N) and at least 2, those of the first butterfly first; no weight decay, since W
        is a product of M*D of them.

    Initial law:
        Every pair is turned by a random angle, uniform on the circle, and scaled, so that W is a random orthogonal
        matrix times sqrt(N * variance), cut to its shape.

    Cost:
        2*D*N*M numbers; D*N*(2^ceil(M/2) + 2^floor(M/2)) multiply-adds per row, in two batches of matrix products whose
        matrices are computed first, with about twice that many multiplications.

    Raises:
        OptionError: ``depth`` is smaller than 1.

    Source:
        Dao et al. 2019, Learning Fast Algorithms for Linear Transforms Using Butterfly Factorizations, section 3,
        https://arxiv.org/abs/1903.05895; the fit is that of Le et al. 2022, https://arxiv.org/abs/2110.01235.

    Example:
        >>> p = Butterfly((16, 12))
        >>> tuple(p.dense().shape), p.num_parameters
        ((16, 12), 128)
    """

    family = "butterfly"
    fit_copies = 80.0

    def __init__(
        self,
        shape: tuple[int, int],
        *,
        depth: int = 1,
        positions: int = 1,
        variance: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(shape, positions=positions, variance=variance)
        if depth < 1:
            raise OptionError(f"depth must be at least 1, got {depth}")
        self.depth, self.levels = int(depth), _levels(self.shape)
        self.size = 2**self.levels
        self.groups, self.blocks = 2 ** (self.levels // 2), 2 ** (self.levels - self.levels // 2)
        pairs = (self.depth * self.levels, 4, self.size // 2)
        self.factors = nn.Parameter(torch.empty(pairs, device=device, dtype=dtype))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        angle = 2 * math.pi * torch.rand_like(self.factors[:, 0], dtype=torch.float32)
        cosine, sine = angle.cos(), angle.sin()
        turns = torch.stack([cosine, -sine, sine, cosine], dim=1)
        self.factors.copy_(turns * (self.variance * self.size) ** (0.5 / (self.levels * self.depth)))

    def _product(self, x: Tensor, index: int, shape: tuple[int, int], bias: Tensor | None = None) -> Tensor:
        """The product with one butterfly, cut to a shape, in its form of two block-diagonal matrices."""
        half, factors = self.levels // 2, self.factors[index * self.levels : (index + 1) * self.levels]
        right = fused(factors, 0, half, self.size).squeeze(1)
        left = fused(factors, half, self.levels, self.size).squeeze(0)
        sizes = Sizes(groups=self.groups, height=self.blocks, blocks=self.blocks, width=self.groups)
        return monarch_product(x, left, right, sizes, shape, bias)

    def _products(self, x: Tensor, first: int, bias: Tensor | None) -> Tensor:
        """The products with all butterflies from ``first`` on."""
        for index in range(first, self.depth):
            columns = self.shape[1] if index == 0 else self.size
            last = index == self.depth - 1
            x = self._product(x, index, (self.shape[0] if last else self.size, columns), bias if last else None)
        return x

    def dense(self) -> Tensor:
        matrix = fused(self.factors, 0, self.levels, self.size).reshape(self.size, self.size)[:, : self.shape[1]]
        return matrix[: self.shape[0]] if self.depth == 1 else self._products(matrix.T, 1, None).T

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return self._products(x, 0, bias)

    def cost(self, rows: int) -> int:
        return self.depth * self.size * ((rows + 2) * (self.groups + self.blocks) - 8)

    @property
    def traffic(self) -> int:
        return 4 * self.depth * self.size

    def build_cost(self) -> int:
        following = (self.depth - 1) * self.size * (self.shape[1] + 2) * (self.groups + self.blocks)
        return 2 * self.size**2 + following

    def _fit(self, target: Tensor, gram: Tensor | None) -> None:
        if not target.any():  # all factors zero would have no gradients, for ever
            self.reset_parameters()
            self.factors[self.levels - 1] = 0
            return
        padded = F.pad(target, (0, self.size - self.shape[1], 0, self.size - self.shape[0]))
        nearest = torch.stack(nearest_butterfly(padded.unsqueeze(0)))
        self.factors[: self.levels].copy_(nearest.reshape(self.levels, 4, -1))
        self.factors[self.levels :].copy_(torch.eye(2).to(self.factors).reshape(4, 1))
        # The splits are best one by one, not together: the best multiple, so that zero is never nearer, then descent.
        matrix = self.dense().to(target)
        square = matrix.square().sum()
        if square > 0:
            self.factors[self.levels - 1].mul_((matrix * target).sum() / square)
        steps = min(200, max(10, 2 * 10**8 // self.build_cost()))
        refine(self, target, steps=steps)
        if gram is not None:
            refine(self, target, gram, steps=min(steps, max(3, 10**11 // (self.shape[0] * self.shape[1] ** 2))))

    @classmethod
    def _sized(cls, shape: tuple[int, int], budget: int, positions: int, options: dict[str, Any]) -> dict[str, Any]:
        if options.get("depth") is not None:
            raise OptionError(f"give depth or share to 'butterfly', not both; got depth={options['depth']}")
        numbers = 2 * _levels(shape) * 2 ** _levels(shape)
        if budget < numbers:
            raise too_small("butterfly", shape, numbers)
        return {"depth": budget // numbers}

    def extra_repr(self) -> str:
        return f"shape={self.shape}, depth={self.depth}, share={self.share:.3g}"


def _levels(shape: tuple[int, int]) -> int:
    """M, such that 2^M holds both sides; at least 2, one for each half."""
    return max(2, (max(shape) - 1).bit_length())


register(
    Family(
        name="butterfly",
        cls=Butterfly,
        title="Butterfly",
        summary="A product of log2(N) factors that each mix pairs of numbers, the form of fast transforms.",
        advice="For weights like a transform, with sides near a power of two; the fewest numbers that mix everything.",
        source="Dao et al. 2019, https://arxiv.org/abs/1903.05895; Le et al. 2022, https://arxiv.org/abs/2110.01235",
        options={"depth": "number of butterflies multiplied with each other, from 1; default 1; or give share"},
        parameters="2*depth*levels*size",
        cost="depth*size*((rows + 2)*(groups + blocks) - 8)",
        weight_decay={"factors": False},
        lr_multiplier={"factors": "0.1*in/(depth*levels)/gain"},
        sgd_multiplier={"factors": "0.1*in/(depth*levels)/gain^2"},
        launches=130,  # the blocks are put together anew in every call, by many small kernels
        efficiency=0.25,
    )
)
