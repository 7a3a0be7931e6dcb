"""HODLR, hierarchically off-diagonal low rank: dense blocks on the diagonal, low rank off it, at every scale.

    W = [ W_1         U_1 V_2 ]        W_1 and W_2 of the same form, down to dense leaves D_i (depth - 1 splits)
        [ U_2 V_1     W_2     ]

Letters: O, I = rows and columns of W; B = rows of the input; L = leaves, a power of 2; A, C = rows and columns of one;
K = levels of splits, L = 2^K; R = rank of every off-diagonal block.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft.errors import OptionError
from weft.parametrizations.base import Parametrization, too_small
from weft.parametrizations.low_rank import nearest_low_rank, negligible, revived
from weft.parametrizations.partition import Block
from weft.parametrizations.parts import part_sizes
from weft.parametrizations.refine import refine
from weft.parametrizations.registry import Family, register


def deepest(shape: tuple[int, int], positions: int = 1) -> int:
    """The largest depth at which every leaf keeps a row and an input channel.

    Args:
        shape: (out, in).
        positions: columns of one input channel.

    Returns:
        1 + floor(log2(min(out, in/positions))).

    Example:
        >>> deepest((8, 12))
        4
    """
    return min(shape[0], shape[1] // positions).bit_length()


class _Group(NamedTuple):
    """Consecutive leaves of one size."""

    leaves: int
    rows: int
    columns: int


def _runs(shape: tuple[int, int], positions: int, depth: int) -> list[_Group]:
    """Runs of equal leaves: at most three, since the sizes of rows and of columns each change once."""
    leaves = 2 ** (depth - 1)
    rows, channels = part_sizes(shape[0], leaves), part_sizes(shape[1] // positions, leaves)
    sizes = [(a, c * positions) for a, c in zip(rows, channels, strict=True)]
    return [_Group(sizes.count(size), *size) for size in dict.fromkeys(sizes)]


def _largest_rank(shape: tuple[int, int], positions: int, depth: int) -> int:
    """The smaller side of the smallest leaf; 0 without off-diagonal blocks."""
    leaves = 2 ** (depth - 1)
    return min(shape[0] // leaves, shape[1] // positions // leaves * positions) if depth > 1 else 0


class HODLR(Parametrization):
    """A matrix whose off-diagonal blocks have low rank at every scale: near things interact fully, far ones weakly.

    The matrix is split in two by rows and by columns, depth - 1 times over; what lies off the diagonal of a split is
    U V of rank R, what is left on the diagonal at the end is dense. Both sides are cut into 2^(depth - 1) leaves as
    equal as possible, the larger ones first. Choose it where the order of the features means something (positions,
    frequencies, time) and interactions grow smoother with distance: kernels, integral operators and inverses of banded
    matrices are of this kind. It is full rank, has O(n log n) numbers and multiply-adds, and is fast at any batch size.
    Without an order of the features ``low_rank`` or ``monarch`` fit better.

    Args:
        shape: (out, in) of the matrix.
        depth: levels of the tree, its root counted: 1 is a dense matrix, 2 splits once. In
            1..1 + floor(log2(min(out, in/positions))); or use ``share``, which searches what is not given.
        rank: R of every off-diagonal block, in 1..the smaller side of the smallest leaf; not given at depth 1.
        positions: kernel positions per input channel, which no split cuts; see ``Parametrization``.
        variance: of the entries after ``reset_parameters``, None for 1/(3*in).
        device: as in torch.
        dtype: as in torch.

    Shape:
        dense(): (O, I)          linear(x): (..., I) -> (..., O)

    Parameters stored:
        left, leaf after leaf the (A, C + K*R) matrix [D | U], with the columns of U from the coarsest split to the
        finest; right, leaf after leaf the (K*R, C) matrix V in the same order, absent at depth 1. Both are flat, so
        that nothing is padded where leaves differ in size; both take weight decay.

    Initial law:
        all uniform: D with the wanted variance, V with 1/(3 I_k) for the I_k columns of its block, as an nn.Linear of
        its own, U with 3 I_k/R times the wanted one.

    Cost:
        R*K*(O + I) + (entries of the leaves, about O*I/L) numbers, and as many multiply-adds per row.

    Raises:
        OptionError: ``depth`` or ``rank`` missing or out of range.

    Source:
        Ambikasaran and Darve 2013, An O(N log N) Fast Direct Solver for Partial Hierarchically Semi-Separable
        Matrices, section 2, https://arxiv.org/abs/1403.5337; as a layer Kissel and Diepold 2023, Structured Matrices
        and Their Application in Neural Networks: A Survey, https://doi.org/10.1007/s00354-023-00226-1.

    Example:
        >>> p = HODLR((8, 12), depth=3, rank=1)
        >>> tuple(p.dense().shape), p.num_parameters
        ((8, 12), 64)
        >>> HODLR.within((512, 512), share=0.2, depth=4).rank
        6
    """

    family = "hodlr"
    right: Tensor | None
    sources: Tensor | None  # of what leaf l gets at level k, among the sums over all nodes: place l*K + k

    def __init__(
        self,
        shape: tuple[int, int],
        *,
        depth: int | None = None,
        rank: int | None = None,
        positions: int = 1,
        variance: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(shape, positions=positions, variance=variance)
        _check_depth(self.shape, positions, depth)
        if depth is None or (rank is None) == (depth > 1):
            raise OptionError(
                "family 'hodlr' needs a size: give depth and rank (at depth 1, the dense matrix, no rank), "
                f"or share in (0, 1]; got depth={depth}, rank={rank}"
            )
        most = _largest_rank(self.shape, positions, depth)
        if rank is not None and not 1 <= rank <= most:
            raise OptionError(
                f"rank must be in 1..the smaller side of a leaf = 1..{most} for shape {self.shape} at depth {depth}, "
                f"got {rank}; a smaller depth has larger leaves"
            )
        self.depth, self.rank = int(depth), int(rank or 0)
        self._levels = self.depth - 1
        self._groups = _runs(self.shape, positions, self.depth)
        numbers = self._levels * self.rank
        self.left = nn.Parameter(torch.empty(self.diagonal + numbers * self.shape[0], device=device, dtype=dtype))
        right = torch.empty(numbers * self.shape[1], device=device, dtype=dtype)
        self.right = nn.Parameter(right) if numbers else None
        places = self._levels * 2**self._levels
        sources = torch.empty(places, device=device, dtype=torch.int64) if places else None
        self.register_buffer("sources", sources)
        self.reset_parameters()

    @property
    def diagonal(self) -> int:
        """Entries of the dense leaves."""
        return sum(math.prod(group) for group in self._groups)

    def _factors(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """[D | U] (leaves, A, C + K*R) and V (leaves, K*R, C) of every group of equal leaves: views of parameters."""
        width, first_left, first_right = self._levels * self.rank, 0, 0
        for leaves, rows, columns in self._groups:
            lefts, rights = leaves * rows * (columns + width), leaves * width * columns
            left = self.left.narrow(0, first_left, lefts).view(leaves, rows, columns + width)
            right = None
            if self.right is not None:
                right = self.right.narrow(0, first_right, rights).view(leaves, width, columns)
            yield left, right
            first_left, first_right = first_left + lefts, first_right + rights

    @torch.no_grad()
    def reset_parameters(self) -> None:
        if self.sources is not None:
            self.sources.copy_(_siblings(self._levels))
        # Var(U V) = R Var(U) Var(V); uniform on [-b, b] has variance b^2/3.
        columns = [self.shape[1] / 2 ** (level + 1) for level in range(self._levels)]
        for (left, right), group in zip(self._factors(), self._groups, strict=True):
            left[..., : group.columns].uniform_(-1, 1).mul_((3 * self.variance) ** 0.5)
            if right is None:
                continue
            u = left[..., group.columns :].unflatten(-1, (self._levels, self.rank))
            v = right.unflatten(1, (self._levels, self.rank))
            for level, size in enumerate(columns):
                u[:, :, level].uniform_(-1, 1).mul_(3 * (self.variance * size / self.rank) ** 0.5)
                v[:, level].uniform_(-1, 1).mul_(size**-0.5)

    def dense(self) -> Tensor:
        rows, columns = self._groups[0].rows, self._groups[0].columns  # the larger leaves; the others are padded
        blocks, ups, downs = [], [], []
        for (left, right), group in zip(self._factors(), self._groups, strict=True):
            below, beside = rows - group.rows, columns - group.columns
            blocks.append(F.pad(left[..., : group.columns], (0, beside, 0, below)))
            if right is not None:
                ups.append(F.pad(left[..., group.columns :], (0, 0, 0, below)))
                downs.append(F.pad(right, (0, beside)))
        w = torch.cat(blocks)
        if self._levels:
            up = torch.cat(ups).unflatten(2, (self._levels, self.rank))  # (L, A, K, R)
            down = torch.cat(downs).unflatten(1, (self._levels, self.rank))  # (L, K, R, C)
        for level in reversed(range(self._levels)):  # from the finest split to the coarsest, w (2^(level + 1), ., .)
            nodes = 2 ** (level + 1)
            u = up[:, :, level].unflatten(0, (nodes, -1)).flatten(1, 2)
            v = down[:, level].unflatten(0, (nodes, -1)).transpose(1, 2).flatten(2)
            far = (u.unflatten(0, (-1, 2)) @ v.unflatten(0, (-1, 2)).flip(1)).unbind(1)  # U_1 V_2 and U_2 V_1
            near = w.unflatten(0, (-1, 2)).unbind(1)
            w = torch.cat([torch.cat([near[0], far[0]], 2), torch.cat([far[1], near[1]], 2)], 1)
        w = _without_padding(w[0], 0, part_sizes(self.shape[0], 2**self._levels), 1)
        channels = part_sizes(self.shape[1] // self.positions, 2**self._levels)
        return _without_padding(w, 1, channels, self.positions)

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        shape, x = x.shape[:-1] + self.shape[:1], x.reshape(-1, self.shape[1])
        lefts, rights = zip(*self._factors(), strict=True)
        inputs, first = [], 0  # per group (leaves, C, B): rows last, so that sums over leaves run over long stretches
        for leaves, _, columns in self._groups:
            part = x.narrow(1, first, leaves * columns)
            inputs.append(part.unflatten(1, (leaves, columns)).permute(1, 2, 0))
            first += leaves * columns
        far = None  # (L, K*R, B)
        if self.sources is not None:
            far = self._exchange(torch.cat([torch.bmm(right, z) for z, right in zip(inputs, rights, strict=True)]))
        outputs, first = [], 0
        for z, left, group in zip(inputs, lefts, self._groups, strict=True):
            y = torch.bmm(left[..., : group.columns], z)
            if far is not None:
                y = torch.baddbmm(y, left[..., group.columns :], far.narrow(0, first, group.leaves))
            outputs.append(y.flatten(0, 1))
            first += group.leaves
        y = (outputs[0] if len(outputs) == 1 else torch.cat(outputs)).T.contiguous().reshape(shape)
        return y if bias is None else y + bias.to(y.dtype)

    def _exchange(self, sums: Tensor) -> Tensor:
        """(L, K*R, B) to (L, K*R, B): every level of every leaf becomes the sum over the other side of its split."""
        assert self.sources is not None, "there are splits"
        levels = sums.unflatten(1, (self._levels, self.rank)).flatten(2)  # (L, K, R*B)
        nodes = [levels[:, k].unflatten(0, (2 ** (k + 1), -1)).sum(1) for k in range(self._levels)]
        return torch.cat(nodes).index_select(0, self.sources).view(sums.shape)

    def cost(self, rows: int) -> int:
        return rows * self.num_parameters

    @property
    def traffic(self) -> int:
        return self.shape[1] + 4 * 2**self._levels * self._levels * self.rank  # before, after, with the inputs beside

    def build_cost(self) -> int:
        return 0 if self.depth == 1 else (self.rank + 1) * math.prod(self.shape)

    def partition(self) -> list[Block]:
        rows, columns = self._spans()
        dense = [Block(a, c, min(a.stop - a.start, c.stop - c.start), True) for a, c in zip(rows, columns, strict=True)]
        return [Block(a, c, self.rank, False) for _, a, c in _far_blocks(rows, columns)] + dense

    # ------------------------------------------------------------------ fit

    def _spans(self) -> tuple[list[slice], list[slice]]:
        """Rows and columns of every leaf."""
        return _slices(self.shape[0], self.depth, 1), _slices(self.shape[1], self.depth, self.positions)

    def _fit(self, target: Tensor, gram: Tensor | None) -> None:
        rows, columns = self._spans()
        far = list(_far_blocks(rows, columns))
        up = target.new_zeros(self.shape[0], self._levels, self.rank)
        down = target.new_zeros(self._levels, self.rank, self.shape[1])
        w = target.clone()
        for level, a, c in far:
            factors = revived(*nearest_low_rank(target[a, c], self.rank), negligible(target))
            up[a, level], down[level, :, c] = factors
            w[a, c] = up[a, level] @ down[level, :, c]
        if gram is not None and far:
            # The outputs mix the blocks of a row, so each is brought to its optimum with the others held, in turn.
            for _ in range(_SWEEPS):
                for level, a, c in far:
                    wanted = w[a, c] - _share_of(w[a] - target[a], gram, c)
                    factors = revived(*nearest_low_rank(wanted, self.rank, gram[c, c]), negligible(target))
                    up[a, level], down[level, :, c] = factors
                    w[a, c] = up[a, level] @ down[level, :, c]
                for a, c in zip(rows, columns, strict=True):
                    w[a, c] -= _share_of(w[a] - target[a], gram, c)
        self._pack(w, up.flatten(1), down.flatten(0, 1))
        if gram is not None and far:
            refine(self, target, gram)

    def _pack(self, w: Tensor, up: Tensor, down: Tensor) -> None:
        """Take the leaves out of w (O, I), and U (O, K*R) and V (K*R, I)."""
        spans, first = list(zip(*self._spans(), strict=True)), 0
        for (left, right), group in zip(self._factors(), self._groups, strict=True):
            here = spans[first : first + group.leaves]
            left.copy_(torch.stack([torch.cat([w[a, c], up[a]], 1) for a, c in here]))
            if right is not None:
                right.copy_(torch.stack([down[:, c] for _, c in here]))
            first += group.leaves

    @classmethod
    def _sized(cls, shape: tuple[int, int], budget: int, positions: int, options: dict[str, Any]) -> dict[str, Any]:
        sizes = cls._sizes(shape, budget, positions, options)
        if within := [(numbers, size) for size, numbers in sizes if numbers <= budget]:
            return max(within, key=lambda pair: pair[0])[1]
        least = min((numbers for _, numbers in sizes), default=None)
        raise too_small("hodlr", shape, least, otherwise="change the other options")

    @classmethod
    def _sized_for(cls, target: Tensor, budget: int, positions: int, options: dict[str, Any]) -> dict[str, Any]:
        """Of the largest rank at each depth, what leaves least: the blocks' singular values tell, without a fit."""
        shape = (target.shape[0], target.shape[1])
        best, least = cls._sized(shape, budget, positions, options), math.inf
        values: dict[tuple[int, ...], Tensor] = {}  # by block, which trees of different depths may share
        for sizes in (s for s, numbers in cls._sizes(shape, budget, positions, options) if numbers <= budget):
            depth, left = sizes["depth"], 0.0
            for _, a, c in _far_blocks(_slices(shape[0], depth, 1), _slices(shape[1], depth, positions)):
                block = (a.start, a.stop, c.start, c.stop)
                if block not in values:
                    values[block] = torch.linalg.svdvals(target[a, c])
                left += float(values[block][sizes["rank"] :].square().sum())
            if left < least:
                best, least = sizes, left
        return best

    @staticmethod
    def _sizes(
        shape: tuple[int, int], budget: int, positions: int, options: dict[str, Any]
    ) -> list[tuple[dict[str, Any], int]]:
        """Every depth with its largest rank, and the stored numbers; with the least rank where none fits."""
        depth, rank = options.get("depth"), options.get("rank")
        _check_depth(shape, positions, depth)
        if depth is not None and rank is not None:
            raise OptionError(
                f"give depth and rank, or a share, to 'hodlr'; got depth={depth}, rank={rank} beside a share"
            )
        sizes: dict[tuple[int, int | None], int] = {}
        for d in range(1, deepest(shape, positions) + 1) if depth is None else [depth]:
            diagonal = sum(math.prod(group) for group in _runs(shape, positions, d))
            per_rank, most = (d - 1) * sum(shape), _largest_rank(shape, positions, d)
            fits = min(max((budget - diagonal) // per_rank, 1), most) if d > 1 else 0
            if d == 1 and rank is None:
                sizes[1, None] = diagonal
            elif 1 <= (rank or fits) <= most:
                sizes[d, rank or fits] = diagonal + (rank or fits) * per_rank
        return [({"depth": d, "rank": r}, numbers) for (d, r), numbers in sizes.items()]

    def extra_repr(self) -> str:
        return f"shape={self.shape}, depth={self.depth}, rank={self.rank}, share={self.share:.3g}"


#: Rounds of the weighted fit over the blocks before all are refined together.
_SWEEPS = 4


def _check_depth(shape: tuple[int, int], positions: int, depth: int | None) -> None:
    most = deepest(shape, positions)
    if depth is not None and not 1 <= depth <= most:
        raise OptionError(
            f"depth must be in 1..1 + floor(log2(min(out, in/positions))) = 1..{most} for shape {tuple(shape)}, "
            f"got {depth}"
        )


def _slices(total: int, depth: int, positions: int) -> list[slice]:
    """Where the leaves of one side lie."""
    sizes = part_sizes(total // positions, 2 ** (depth - 1))
    ends = [positions * end for end in itertools.accumulate(sizes, initial=0)]
    return [slice(*span) for span in itertools.pairwise(ends)]


def _far_blocks(rows: list[slice], columns: list[slice]) -> Iterator[tuple[int, slice, slice]]:
    """Level, rows and columns of every off-diagonal block, given those of the leaves; the coarsest first."""
    leaves = len(rows)
    for level in range(leaves.bit_length() - 1):
        width = leaves >> (level + 1)
        for a in range(0, leaves, width):
            c = (a // width ^ 1) * width  # the sibling
            yield (
                level,
                slice(rows[a].start, rows[a + width - 1].stop),
                slice(columns[c].start, columns[c + width - 1].stop),
            )


def _share_of(error: Tensor, gram: Tensor, columns: slice) -> Tensor:
    """What to take off some columns of a matrix so that none of its error in the outputs is left that they can remove.

    The minimiser X of ||(error - X on the columns) G^(1/2)||, the smallest one where G is singular.
    """
    values, vectors = torch.linalg.eigh(gram[columns, columns].double())
    inverse = torch.where(values > 1e-12 * values.abs().max(), 1 / values, 0)
    correlation = error.double() @ gram[:, columns].double()
    return (((correlation @ vectors) * inverse) @ vectors.T).to(error.dtype)


def _siblings(levels: int) -> Tensor:
    """(L*K,): for every leaf, from the coarsest split to the finest, the node on its other side.

    Nodes are numbered level after level, so that those of level k, 2^(k+1) in number, begin at 2^(k+1) - 2.
    """
    leaf, level = torch.arange(2**levels)[:, None], torch.arange(levels)
    return ((leaf >> (levels - 1 - level) ^ 1) + 2 ** (level + 1) - 2).flatten()


def _without_padding(w: Tensor, dim: int, sizes: list[int], step: int) -> Tensor:
    """Parts as large as the first one, less the last ``step`` places of those that are smaller."""
    whole, size = sizes.count(sizes[0]), sizes[0] * step
    if whole == len(sizes):
        return w
    rest = w.narrow(dim, whole * size, (len(sizes) - whole) * size).unflatten(dim, (len(sizes) - whole, size))
    return torch.cat([w.narrow(dim, 0, whole * size), rest.narrow(dim + 1, 0, size - step).flatten(dim, dim + 1)], dim)


register(
    Family(
        name="hodlr",
        cls=HODLR,
        title="Hierarchically off-diagonal low rank",
        summary="Dense blocks on the diagonal and low rank off it, at every scale.",
        advice="For features in an order (time, place, frequency) that interact more smoothly the farther apart.",
        source="Ambikasaran and Darve 2013, section 2, https://arxiv.org/abs/1403.5337; as a layer Kissel and Diepold "
        "2023, https://doi.org/10.1007/s00354-023-00226-1",
        options={
            "depth": "levels of the tree, the root counted, 1..1 + floor(log2(min(out, in)))",
            "rank": "of every off-diagonal block, 1..the smaller side of a leaf; or give share, and depth if wanted",
        },
        parameters="rank*(depth - 1)*(out + in) + diagonal (diagonal: entries of leaves, about out*in/2^(depth - 1))",
        cost="rows*(rank*(depth - 1)*(out + in) + diagonal)",
        weight_decay={"left": True, "right": True},
        lr_multiplier={
            "left": "in/(in/2^(depth - 1) + 0.58*(depth - 1)*rank)/min(depth, 2)",
            "right": "1.3/gain",
        },
        sgd_multiplier={
            "left": "in/(in/2^(depth - 1) + 0.33*(depth - 1)*rank)/min(depth, 2)",
            "right": "0.5/(0.07 + 0.03*out/rank)^0.5/gain^2",
        },
        launches=45,  # sums over the nodes of every level, and views
        efficiency=0.4,
    )
)
