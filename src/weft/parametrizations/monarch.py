"""Monarch matrices: two block-diagonal factors with a fixed shuffle after each, W = P left P' right.

    h[k, l, r] = sum_i right[k, (l, r), i] x[k, i]          one product per block k of the input
    y[j, l]    = sum_(k, r) left[l, j, (k, r)] h[k, l, r]   one product per group l of the output

    W[(j, l), (k, i)] = sum_r left[l, j, (k, r)] right[k, (l, r), i]

Letters: O, I = rows and columns of W; B = rows of the input; K = blocks of consecutive inputs, i inside one; L = groups
of outputs l, l + L, l + 2L, ..., j inside one; R = rank of the part of W that maps block k to group l.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft.errors import OptionError
from weft.parametrizations.base import Parametrization, relative_error, too_small
from weft.parametrizations.low_rank import negligible, revived
from weft.parametrizations.refine import refine
from weft.parametrizations.registry import Family, register


class Sizes(NamedTuple):
    """Sizes of the two factors: left is (L, J, K*R), right is (K, L*R, P), their product (J*L, K*P).

    They are passed as numbers, because under ``torch.fx`` the shape of a parameter is none.
    """

    groups: int  # L
    height: int  # J
    blocks: int  # K
    width: int  # P
    rank: int = 1  # R


def monarch_product(
    x: Tensor, left: Tensor, right: Tensor, sizes: Sizes, shape: tuple[int, int], bias: Tensor | None
) -> Tensor:
    """The product x W^T + bias by the two factors.

    Args:
        x: (..., I).
        left: (L, J, K*R).
        right: (K, L*R, P).
        sizes: of the factors.
        shape: (O, I), at most (J*L, K*P); what is beyond is cut off.
        bias: (O,) or None.

    Returns:
        (..., O).
    """
    groups, height, blocks, width, rank = sizes
    result = x.shape[:-1] + (shape[0],)  # noqa: RUF005  torch.fx cannot unpack a shape
    if blocks * width > shape[1]:
        x = F.pad(x, (0, blocks * width - shape[1]))

    # Rows come last between the factors: the shuffle is then a matter of strides, for R = 1 without any copy.
    h = torch.bmm(right, x.reshape(-1, blocks, width).permute(1, 2, 0)).reshape(blocks, groups, rank, -1)
    y = torch.bmm(left, h.transpose(0, 1).reshape(groups, blocks * rank, -1))
    y = y.permute(2, 1, 0).reshape(-1, groups * height)[:, : shape[0]].contiguous().reshape(result)
    return y if bias is None else y + bias.to(y.dtype)


def monarch_matrix(left: Tensor, right: Tensor, sizes: Sizes) -> Tensor:
    """The matrix of two factors.

    Args:
        left: (L, J, K*R).
        right: (K, L*R, P).
        sizes: of the factors.

    Returns:
        (J*L, K*P).
    """
    groups, height, blocks, width, rank = sizes
    u = left.reshape(groups, height, blocks, rank).transpose(1, 2)
    v = right.reshape(blocks, groups, rank, width).transpose(0, 1)
    return (u @ v).permute(2, 0, 1, 3).reshape(height * groups, blocks * width)


def nearest_monarch(target: Tensor, groups: int, blocks: int, rank: int) -> tuple[Tensor, Tensor]:
    """The factors of the nearest Monarch matrix: every part of the target is truncated to rank R on its own.

    Args:
        target: (..., L*J, K*P).
        groups: L.
        blocks: K.
        rank: R, in 1..min(J, P).

    Returns:
        left (..., L, J, K*R) and right (..., K, L*R, P), of equal scale.

    Source:
        Dao et al. 2022, section 3.3, theorem 1 and algorithm 1, for R = 1.
    """
    lead, (rows, columns) = target.shape[:-2], target.shape[-2:]
    height, width = rows // groups, columns // blocks
    parts = target.reshape(*lead, height, groups, blocks, width).movedim(-4, -2)  # (..., L, K, J, P)
    u, s, vh = torch.linalg.svd(parts, full_matrices=False)
    root = s[..., :rank].sqrt()
    return _pack(u[..., :rank] * root.unsqueeze(-2), root.unsqueeze(-1) * vh[..., :rank, :])


def _pack(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """u (..., L, K, J, R) and v (..., L, K, R, P) in the layout of the factors."""
    return u.transpose(-2, -3).flatten(-2), v.transpose(-3, -4).flatten(-3, -2)


class Monarch(Parametrization):
    """A product of two block-diagonal matrices with fixed shuffles between them: W = P left P' right.

    Every block of inputs reaches every output, through a part of W of rank R. Numbers and multiply-adds both fall to
    the share R*b*(O + I)/(O*I), for any number of rows, and unlike low rank the matrix may have full rank. It holds
    the Kronecker products, the Hadamard matrix and, up to an order of the inputs, the Fourier matrix. Choose it to make
    a layer small and fast that is trained in this form, or whose trained weight ``low_rank`` does not meet well.

    Args:
        shape: (out, in) of the matrix.
        blocks: b, number of diagonal blocks of both factors, in 1..min(out, input channels); or use ``share``. The
            square root of the sides makes both factors alike. Where it does not divide a side, the last blocks are
            partly unused: those numbers are stored and counted.
        rank: R of the part that maps a block of inputs to a group of outputs, in 1..min(ceil(out/b), ceil(in/b)).
        positions: kernel positions per input channel, see ``Parametrization``.
        variance: of the entries after ``reset_parameters``, None for 1/(3*in).
        device: as in torch.
        dtype: as in torch.

    Shape:
        dense(): (O, I)          linear(x): (..., I) -> (..., O)

    Parameters stored:
        left (b, ceil(O/b), b*R): maps to output j*b + l, group l after group; right (b, b*R, ceil(I/b)): maps block
        k of the inputs. Both take weight decay.

    Initial law:
        right is uniform with variance 1/(3 ceil(I/b)), as an nn.Linear of each block; left is uniform with the variance
        that gives the entries of W the wanted one.

    Cost:
        R*b*(O + I) numbers where b divides the sides; as many multiply-adds per row.

    Raises:
        OptionError: ``blocks`` is missing, or ``blocks`` or ``rank`` is outside its range.

    Source:
        Dao et al. 2022, Monarch: Expressive Structured Matrices for Efficient and Accurate Training, sections 3.1 and
        3.3, https://arxiv.org/abs/2204.00595. Rectangular shapes and R > 1 as in Qiu et al. 2024, Compute Better
        Spent, section 3, https://arxiv.org/abs/2406.06248.

    Example:
        >>> p = Monarch((12, 8), blocks=4)
        >>> tuple(p.dense().shape), p.num_parameters
        ((12, 8), 80)
    """

    family = "monarch"

    def __init__(
        self,
        shape: tuple[int, int],
        *,
        blocks: int | None = None,
        rank: int = 1,
        positions: int = 1,
        variance: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(shape, positions=positions, variance=variance)
        most = min(self.shape[0], self.shape[1] // positions)
        if blocks is None:
            raise OptionError(f"family 'monarch' needs a size: give blocks=1..{most}, or share in (0, 1]")
        if not 1 <= blocks <= most:
            raise OptionError(f"blocks must be in 1..min(out, input channels) = 1..{most}, got {blocks}")
        self.blocks, self.rank = int(blocks), int(rank)
        self.height, self.width = _sides(self.shape, positions, self.blocks)
        if not 1 <= rank <= min(self.height, self.width):
            raise OptionError(
                f"rank must be in 1..{min(self.height, self.width)}, the smaller side of the parts of a {self.shape} "
                f"matrix with blocks={blocks}; got {rank}: take fewer blocks for a higher rank"
            )
        inner = self.blocks * self.rank
        self.left = nn.Parameter(torch.empty((self.blocks, self.height, inner), device=device, dtype=dtype))
        self.right = nn.Parameter(torch.empty((self.blocks, inner, self.width), device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        # Var(W) = R Var(left) Var(right); uniform on [-b, b] has variance b^2/3.
        right_bound = self.width**-0.5
        left_bound = 3 * (self.variance * self.width / self.rank) ** 0.5
        nn.init.uniform_(self.right, -right_bound, right_bound)
        nn.init.uniform_(self.left, -left_bound, left_bound)

    def _sizes(self) -> Sizes:
        return Sizes(self.blocks, self.height, self.blocks, self.width, self.rank)

    def dense(self) -> Tensor:
        return monarch_matrix(self.left, self.right, self._sizes())[: self.shape[0], : self.shape[1]]

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return monarch_product(x, self.left, self.right, self._sizes(), self.shape, bias)

    def rows(self, index: Tensor) -> Tensor:
        group, place = index % self.blocks, index // self.blocks
        left = self.left[group, place].unflatten(-1, (self.blocks, 1, self.rank))
        right = self.right.unflatten(1, (self.blocks, self.rank)).transpose(0, 1)[group]
        return (left @ right).flatten(-3)[..., : self.shape[1]]

    def rows_cost(self, count: int) -> int:
        return count * self.rank * self.blocks * self.width

    def cost(self, rows: int) -> int:
        return rows * self.num_parameters

    @property
    def traffic(self) -> int:
        return (3 if self.rank > 1 else 1) * self.blocks**2 * self.rank + 2 * self.shape[0]

    def build_cost(self) -> int:
        return self.rank * self.blocks**2 * self.height * self.width

    # ------------------------------------------------------------------ fitting

    def _fit(self, target: Tensor, gram: Tensor | None) -> None:
        rows, columns = self.blocks * self.height, self.blocks * self.width
        padded = F.pad(target, (0, columns - self.shape[1], 0, rows - self.shape[0]))
        self._set(*nearest_monarch(padded, self.blocks, self.blocks, self.rank))
        if gram is not None:
            self._fit_weighted(target, padded, gram.double())
        v = self.right.unflatten(1, (self.blocks, self.rank)).transpose(0, 1)
        u = self.left.unflatten(2, (self.blocks, self.rank)).transpose(1, 2)
        self._set(*_pack(*revived(u, v, negligible(target))))

    def _fit_weighted(self, target: Tensor, padded: Tensor, gram: Tensor) -> None:
        """Better than the nearest member where a Gram matrix weighs the error."""
        columns = padded.shape[1]
        unused = columns - self.shape[1]
        wide = F.pad(gram, (0, unused, 0, unused))
        plain = [parameter.clone() for parameter in (self.left, self.right)]
        error = relative_error(self.dense(), target, gram)
        self._set(*self._best_left(padded.double(), wide, self._whitened(padded.double(), wide)))
        if relative_error(self.dense(), target, gram) > error:
            self._set(*plain)
        # A step costs about three products with the Gram matrix: bounded to some 10^11 multiply-adds in all.
        steps = min(50, max(3, 10**11 // (self.shape[0] * self.shape[1] ** 2)))
        refine(self, target, gram.to(target.dtype), steps=steps)

    def _set(self, left: Tensor, right: Tensor) -> None:
        self.left.copy_(left)
        self.right.copy_(right)

    def _whitened(self, target: Tensor, gram: Tensor) -> Tensor:
        """The right factor that would be best if blocks of inputs were uncorrelated."""
        parts = gram.reshape(self.blocks, self.width, self.blocks, self.width)
        values, vectors = torch.linalg.eigh(parts.diagonal(dim1=0, dim2=2).movedim(-1, 0))
        ridge = values.abs().amax().clamp(min=torch.finfo(torch.float64).tiny) * 1e-12
        root = (values.clamp(min=0) + ridge).sqrt()
        columns = target.reshape(-1, self.blocks, self.width).transpose(0, 1) @ (vectors * root.unsqueeze(1))
        _, right = nearest_monarch(columns.transpose(0, 1).flatten(1), self.blocks, self.blocks, self.rank)
        return (right / root.unsqueeze(1)) @ vectors.mT

    def _best_left(self, target: Tensor, gram: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """The right factor with the left one that is best for it, by linear least squares for every group."""
        inner = self.blocks * self.rank
        parts = right.unflatten(1, (self.blocks, self.rank)).transpose(0, 1)  # (L, K, R, P)
        wide = torch.einsum("lkrp,kn->lkrnp", parts, torch.eye(self.blocks).to(parts))
        wide = wide.reshape(self.blocks, inner, -1)
        moments = wide @ gram
        rows = target.unflatten(0, (self.height, self.blocks)).transpose(0, 1)
        inverse = torch.linalg.pinv(moments @ wide.mT, rtol=1e-12, hermitian=True)
        return rows @ moments.mT @ inverse, right

    @classmethod
    def _sized(cls, shape: tuple[int, int], budget: int, positions: int, options: dict[str, Any]) -> dict[str, Any]:
        blocks, rank = options.get("blocks"), options.get("rank")
        if blocks is not None and rank is not None:
            raise OptionError(
                f"give share to 'monarch' with blocks or rank, not both; got blocks={blocks}, rank={rank}"
            )
        most = min(shape[0], shape[1] // positions)
        if blocks is not None and not 1 <= blocks <= most:
            raise OptionError(f"blocks must be in 1..min(out, input channels) = 1..{most}, got {blocks}")
        if rank is not None and not 1 <= rank <= min(shape):
            raise OptionError(f"rank must be in 1..{min(shape)}, got {rank}")
        common = math.gcd(shape[0], shape[1] // positions)
        choices = [b for b in range(1, most + 1) if common == 1 or common % b == 0] if blocks is None else [blocks]
        sizes = {}  # blocks to rank and numbers per rank
        for b in choices:
            sides = _sides(shape, positions, b)
            largest = min(budget // (b * b * sum(sides)), *sides)
            sizes[b] = (largest if rank is None else min(largest, rank), b * b * sum(sides))
        fits = {b: r * size for b, (r, size) in sizes.items() if r >= (rank or 1)}
        if not fits:
            wide = [size for b, (_, size) in sizes.items() if min(_sides(shape, positions, b)) >= (rank or 1)]
            raise too_small("monarch", shape, (rank or 1) * min(wide))
        # One block makes the best use of any budget, but is plain low rank: give a tenth for more blocks, up to the
        # square root of the sides, where the two factors are alike.
        enough = 0.9 * max(fits.values())
        wanted = math.sqrt(min(shape[0], shape[1] // positions))
        b = min((b for b in fits if fits[b] >= enough), key=lambda b: (abs(math.log(b / wanted)), b))
        return {"blocks": b, "rank": sizes[b][0]}

    def extra_repr(self) -> str:
        return f"shape={self.shape}, blocks={self.blocks}, rank={self.rank}, share={self.share:.3g}"


def _sides(shape: tuple[int, int], positions: int, blocks: int) -> tuple[int, int]:
    """Outputs per group and inputs per block, no channel's kernel positions cut apart."""
    return -(-shape[0] // blocks), -(-shape[1] // positions // blocks) * positions


register(
    Family(
        name="monarch",
        cls=Monarch,
        title="Monarch",
        summary="Two block-diagonal factors with fixed shuffles between them.",
        advice="Small and fast at full rank and at any batch size; the nearest member is exact, part by part.",
        source="Dao et al. 2022, section 3, https://arxiv.org/abs/2204.00595",
        options={
            "blocks": "diagonal blocks of both factors, 1..min(out, input channels); or give share",
            "rank": "of the part from one block of inputs to one group of outputs; default 1",
        },
        parameters="rank*blocks^2*(height + width)",
        cost="rows*rank*blocks^2*(height + width)",
        weight_decay={"left": True, "right": True},
        lr_multiplier={"left": "0.3*in/(blocks*rank)", "right": "0.3*blocks/gain"},
        sgd_multiplier={
            "left": "0.5*in/(blocks*rank)",
            "right": "0.17*blocks/(1 + height/(blocks*rank))^0.5/gain^2",
        },
        launches=14,  # two products, and shuffles that cost as much as small kernels
        efficiency=0.45,
    )
)
