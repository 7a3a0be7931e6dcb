"""What hierarchical matrices have in common: blocks, each of a low rank of its own or dense, that tile the matrix.

    W[rows of a block, columns of a block] = U V,       U (A, r), V (r, C)

Letters: O, I = rows and columns of W; B = rows of the input; T = stored numbers; N = blocks; A, C, r = rows, columns
and rank of one.
"""

from __future__ import annotations

import abc
import math
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft.errors import OptionError
from weft.parametrizations.base import Parametrization, too_small
from weft.parametrizations.hierarchical_fit import decomposed, negligible, packed, squares_of
from weft.parametrizations.hierarchical_product import plan, product, terms
from weft.parametrizations.hierarchical_ranks import best_ranks, even_ranks, prices
from weft.parametrizations.partition import Block, Integers, Tree
from weft.parametrizations.refine import refine


class Hierarchical(Parametrization):
    """A matrix tiled by blocks of low rank, each with its own, or dense; the subclass cuts the blocks.

    Args:
        shape: (out, in) of the matrix.
        numbers: T; None is refused with the range.
        options: those that make the tree, None where not given.
        positions: kernel positions per input channel, which no block cuts.
        variance: of the entries after ``reset_parameters``, None for 1/(3*in).
        device: as in torch.
        dtype: as in torch.

    Raises:
        OptionError: ``numbers`` is missing or outside its range.
    """

    ranks: Tensor
    index: Tensor

    def __init__(
        self,
        shape: tuple[int, int],
        numbers: int | None,
        options: dict[str, Any],
        *,
        positions: int,
        variance: float | None,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__(shape, positions=positions, variance=variance)
        trees = self._trees(self.shape, positions, options, searched=False)
        least, most = _least(trees), math.prod(self.shape)
        if numbers is None:
            raise OptionError(f"family {self.family!r} needs a size: give numbers={least}..{most}, or share in (0, 1]")
        if not least <= numbers <= most:
            raise OptionError(
                f"numbers must be in (those of the smallest block of rank 1)..out*in = {least}..{most} "
                f"for shape {self.shape}, got {numbers}"
            )
        self.numbers = int(numbers)
        option, self._tree = _preferred(trees, self.numbers)
        setattr(self, self._option, option)
        self.values = nn.Parameter(torch.empty(self.numbers, device=device, dtype=dtype))
        self.register_buffer("ranks", torch.empty(self.blocks, dtype=torch.int32, device=device))
        self.register_buffer("index", None, persistent=False)  # follows from the ranks
        self.reset_parameters()

    @property
    def blocks(self) -> int:
        """N, number of blocks."""
        return sum(len(leaves.row) for leaves in self._tree)

    @property
    def padded(self) -> int:
        """Multiply-adds of the product per row: T, and what filling the panels of blocks up to equal widths adds."""
        return self._plan.cost

    def _sizes(self) -> Integers:
        """(N, 2), rows and columns of every block."""
        return _all_sizes(self._tree)

    def _arrange(self, ranks: Integers) -> None:
        """Take over the ranks of all blocks, and what follows from them."""
        per_level = np.split(ranks, np.cumsum([len(leaves.row) for leaves in self._tree])[:-1])
        self._ranks = per_level
        self._plan, index = plan(self.shape, self.positions, self._tree, per_level, self.numbers)
        self.ranks.copy_(torch.from_numpy(ranks))
        self.index = torch.from_numpy(index).to(self.ranks.device)

    def _spread(self) -> None:
        """Take the ranks of the start: the same for all, the rest of the budget along wrapped diagonals."""
        away = np.concatenate([(leaves.column - leaves.row) % 2**leaves.level for leaves in self._tree])
        self._arrange(even_ranks(self._sizes(), np.argsort(away, kind="stable"), self.numbers))

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        was_meta = self.ranks.is_meta
        super()._apply(fn, recurse)
        if was_meta and not self.ranks.is_meta:
            self._spread()  # memory as it was found holds no ranks
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        if self.ranks.is_meta:
            return
        ranks, sizes = self.ranks.cpu().numpy().astype(np.int64), self._sizes()
        if ranks.min() >= 0 and 0 < prices(sizes, ranks).sum() <= self.numbers:
            self._arrange(ranks)
        else:
            args[-1].append(f"the ranks of {self.family!r} do not fit its {self.numbers} numbers; the state is damaged")

    @torch.no_grad()
    def reset_parameters(self) -> None:
        self._spread()
        if self.values.is_meta:
            return
        # Var(U V) = r Var(U) Var(V), uniform on [-b, b] has variance b^2/3; blocks of rank 0 are zero.
        sizes = self._sizes()
        stored = sizes[np.concatenate(self._ranks) > 0].prod(1).sum()
        variance = self.variance * math.prod(self.shape) / float(stored)
        bounds = []
        for leaves, rank in zip(self._tree, self._ranks, strict=True):
            right, left, partner = terms(leaves, rank)
            v, u, (rows, columns) = right[:, 0], left[:, 0], leaves.sizes.T
            of_u = np.where(partner < 0, 3 * variance, 9 * variance * columns[u] / np.maximum(rank[u], 1)) ** 0.5
            bounds += [np.repeat(columns[v] ** -0.5, columns[v]), np.repeat(of_u, rows[u])]
        bound = torch.from_numpy(np.concatenate(bounds)).to(self.values)
        self.values.uniform_(-1, 1).mul_(F.pad(bound, (0, self.numbers - len(bound))))

    def _clear_left(self) -> None:
        """Make all U and the dense blocks zero, and W with them; V stay as they are."""
        first = 0
        for leaves, rank in zip(self._tree, self._ranks, strict=True):
            right, left, _ = terms(leaves, rank)
            first += int(leaves.sizes[right[:, 0], 1].sum())
            end = first + int(leaves.sizes[left[:, 0], 0].sum())
            self.values[first:end] = 0
            first = end

    def dense(self) -> Tensor:
        identity = torch.eye(self.shape[1], dtype=self.values.dtype, device=self.values.device)
        return product(self._plan, self.index, self.values, identity)

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        y = product(self._plan, self.index, self.values, x.reshape(-1, self.shape[1]).T)
        y = y.T.contiguous().reshape(x.shape[:-1] + self.shape[:1])
        return y if bias is None else y + bias.to(y.dtype)

    def cost(self, rows: int) -> int:
        return rows * self.padded

    @property
    def traffic(self) -> int:
        return self._plan.traffic

    def build_cost(self) -> int:
        return self.shape[1] * self.padded

    def partition(self) -> list[Block]:
        first = np.concatenate([leaves.first for leaves in self._tree])
        columns = (first, first + self._sizes(), np.concatenate(self._ranks)[:, None])
        return [
            Block(slice(a, b), slice(c, d), rank, rank * (b - a + d - c) > (b - a) * (d - c))
            for a, c, b, d, rank in np.concatenate(columns, 1).tolist()
        ]

    # ------------------------------------------------------------------ fit

    def _fit(self, target: Tensor, gram: Tensor | None) -> None:
        levels = [decomposed(target, leaves) for leaves in self._tree]
        squares = [level.squares() for level in levels]
        ranks, _ = best_ranks(self._sizes(), squares, self.numbers, negligible(target))
        if not ranks.any():  # of zero, all ranks are the best, but factors that are both zero have no gradients
            self.reset_parameters()
            self._clear_left()
            return
        self._arrange(ranks)
        numbers = packed(self._tree, self._ranks, levels)
        self.values.copy_(F.pad(numbers, (0, self.numbers - len(numbers))))
        if gram is not None:
            refine(self, target, gram)

    _option: ClassVar[str]  # the one that makes the tree

    @classmethod
    @abc.abstractmethod
    def _trees(
        cls, shape: tuple[int, int], positions: int, options: dict[str, Any], searched: bool
    ) -> list[tuple[int, Tree]]:
        """Trees to choose from, with the option that makes each: the given one, or all in the order of preference.

        Args:
            shape: (O, I).
            positions: columns per input channel.
            options: of the constructor.
            searched: whether singular values will tell which suits.

        Returns:
            values of the option, and their trees.
        """

    @classmethod
    def _sized(cls, shape: tuple[int, int], budget: int, positions: int, options: dict[str, Any]) -> dict[str, Any]:
        if options.get("numbers") is not None:
            raise OptionError(f"give numbers or share to {cls.family!r}, not both; got numbers={options['numbers']}")
        trees = cls._trees(shape, positions, options, searched=False)
        least = _least(trees)
        if budget < least:
            raise too_small(cls.family, shape, least)
        return {"numbers": budget}

    @classmethod
    def _sized_for(cls, target: Tensor, budget: int, positions: int, options: dict[str, Any]) -> dict[str, Any]:
        """The tree whose best ranks leave least: the blocks' singular values tell, without a fit."""
        shape = (target.shape[0], target.shape[1])
        sized, trees = (
            cls._sized(shape, budget, positions, options),
            cls._trees(shape, positions, options, searched=True),
        )
        squares, tolerance = squares_of(target, [tree for _, tree in trees], positions), negligible(target)
        least = math.inf
        for (option, tree), values in zip(trees, squares, strict=True):
            left = best_ranks(_all_sizes(tree), values, budget, tolerance)[1]
            if left < least - tolerance:  # else the coarser tree, whose product is faster
                least, sized[cls._option] = left, option
        return sized

    def extra_repr(self) -> str:
        option = f"{self._option}={getattr(self, self._option)}"
        return f"shape={self.shape}, numbers={self.numbers}, {option}, blocks={self.blocks}, share={self.share:.3g}"


def _all_sizes(tree: Tree) -> Integers:
    """(N, 2), rows and columns of all leaves."""
    return np.concatenate([leaves.sizes for leaves in tree])


def _least(trees: list[tuple[int, Tree]]) -> int:
    """Numbers of the smallest member: one block of rank 1."""
    return min(int(prices(_all_sizes(tree), 1).min()) for _, tree in trees)


def _preferred(trees: list[tuple[int, Tree]], numbers: int) -> tuple[int, Tree]:
    """The first tree with numbers for every block; where there is none, for at least one."""
    costs = [prices(_all_sizes(tree), 1) for _, tree in trees]
    for enough in ([cost.sum() <= numbers for cost in costs], [cost.min() <= numbers for cost in costs]):
        if any(enough):
            return trees[enough.index(True)]
    raise AssertionError("the caller has checked the numbers")
