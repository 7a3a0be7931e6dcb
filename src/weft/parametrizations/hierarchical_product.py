"""How the product with a hierarchical matrix runs: two batches of products for every level of blocks.

On one level W is a sum of u v^T, each in a block of the grid. The v of one block column are the rows of a panel, the u
of one block row the columns of another, so that with x cut into the columns of the grid and y into its rows

    s = V x          one product per block column       V (P, R, C)
    y = U s'         one product per block row          U (P, A, S)

where s' holds for every u the number of its v; for a column of a dense block, the entry of x itself. All vectors are
stored in the order of the panels and without padding. The panels of a level are as wide as the widest: the others end
in whatever is stored next, whose products nobody reads. Where blocks of a level differ in size (by one), everything
runs on blocks filled up with zeros.

Letters: O, I = rows and columns of W; P = 2^level, panels of a level; A, C = rows and columns of a panel's blocks;
R, S = widths of panels; B = columns of x; n = leaves of a level.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from weft.parametrizations.hierarchical_ranks import largest_ranks
from weft.parametrizations.partition import Integers, Leaves, Tree, cuts


class Terms(NamedTuple):
    """The vectors of one level in the order in which they are stored: v by block column, then u by block row.

    Each is the number of its leaf and its own number in there: of a singular value, or of a column where dense.
    """

    right: Integers  # (number of v, 2)
    left: Integers  # (number of u, 2)
    partner: Integers  # (number of u,), the place of its v among the v; -1 where the leaf is dense


def terms(leaves: Leaves, ranks: Integers) -> Terms:
    """What one level stores.

    Args:
        leaves: of the level.
        ranks: (n,), above the largest rank where they are dense.

    Returns:
        the terms.
    """
    dense = ranks > largest_ranks(leaves.sizes)
    low = _numbered(np.where(dense, 0, ranks))
    by_column = np.argsort(leaves.column[low[:, 0]], kind="stable")
    place = np.empty_like(by_column)
    place[by_column] = np.arange(len(by_column))
    columns = _numbered(np.where(dense, leaves.sizes[:, 1], 0))
    left, partner = np.concatenate([low, columns]), np.concatenate([place, np.full(len(columns), -1)])
    by_row = np.argsort(leaves.row[left[:, 0]], kind="stable")
    return Terms(low[by_column], left[by_row], partner[by_row])


def _numbered(counts: Integers) -> Integers:
    """(sum of counts, 2): every owner as often as it counts, and how often it came before."""
    owner = np.repeat(np.arange(len(counts)), counts)
    return np.stack([owner, np.arange(len(owner)) - (np.cumsum(counts) - counts)[owner]], 1)


class Piece(NamedTuple):
    """A part of the index buffer."""

    start: int
    length: int


class Step(NamedTuple):
    """One level of the product. A piece is None where everything stands in its order already."""

    panels: int
    rows: int  # of a block
    columns: int
    right: int  # stored v
    left: int  # stored u
    right_panels: Piece | None  # which of the v are in the panels
    left_panels: Piece | None
    sources: Piece | None  # where s' comes from: among s, then x, then a zero
    takes_input: bool
    takes_zero: bool


class Plan(NamedTuple):
    """All levels, and what is filled up with zeros where blocks differ in size."""

    steps: tuple[Step, ...]
    numbers: Piece | None
    columns: Piece | None
    rows: Piece | None
    cost: int  # multiply-adds per column of x
    traffic: int  # numbers that one column of x passes on between the batches of products


class _Side:
    """Rows or columns, each block of the deepest level filled up to the size of the largest.

    Args:
        total: rows or channels.
        positions: columns per channel; 1 for rows.
        deepest: level of the smallest blocks.
    """

    def __init__(self, total: int, positions: int, deepest: int) -> None:
        ends = cuts(total, deepest) * positions
        width, block = int(np.diff(ends).max()), np.repeat(np.arange(2**deepest), np.diff(ends))
        self.size = width * 2**deepest
        self.place = block * width + np.arange(len(block)) - ends[block]  # of every true one
        self.there = np.zeros(self.size, dtype=bool)
        self.there[self.place] = True

    def taken(self) -> Integers:
        """Which true one stands at every place; any where none does."""
        return np.maximum(np.cumsum(self.there) - 1, 0)


def plan(
    shape: tuple[int, int], positions: int, tree: Tree, ranks: list[Integers], stored: int
) -> tuple[Plan, NDArray[np.int32]]:
    """How the product runs for given ranks.

    Args:
        shape: (O, I).
        positions: columns per input channel.
        tree: the leaves of every level.
        ranks: of the leaves of every level.
        stored: length of the parameter, where a zero is put.

    Returns:
        the plan, and the index buffer that its pieces are parts of.
    """
    parts: list[Integers] = []

    def piece(index: Integers, whole: int) -> Piece | None:
        if len(index) == whole and (index == np.arange(whole)).all():
            return None
        parts.append(index)
        return Piece(sum(map(len, parts[:-1])), len(index))

    deepest = tree[-1].level
    down, across = _Side(shape[0], 1, deepest), _Side(shape[1] // positions, positions, deepest)
    steps, filled, cost, traffic = [], [], 0, sum(shape)
    for leaves, rank in zip(tree, ranks, strict=True):
        right, left, partner = terms(leaves, rank)
        if not len(left):
            continue
        panels = 2**leaves.level
        rows, columns = down.size // panels, across.size // panels
        above, beside = leaves.row[left[:, 0]], leaves.column[right[:, 0]]  # the panel of every u and v
        right_first, right_panels = _panels(beside, panels)
        left_first, left_panels = _panels(above, panels)
        width = right_panels.shape[1]
        of_sum = np.arange(len(right)) - right_first[beside] + beside * width
        column = leaves.first[left[:, 0], 1] + left[:, 1]
        dense = partner < 0
        takes_input = bool(dense.any())
        source = np.full(left_panels.shape, panels * width + across.size * takes_input)  # the zero
        source[above, np.arange(len(left)) - left_first[above]] = np.where(
            dense, panels * width + across.place[np.where(dense, column, 0)], of_sum[partner] if len(right) else 0
        )
        step = Step(
            panels=panels,
            rows=rows,
            columns=columns,
            right=len(right),
            left=len(left),
            right_panels=piece(right_panels.ravel(), len(right)),
            left_panels=piece(left_panels.ravel(), len(left)),
            sources=piece(source.ravel(), panels * width + across.size * takes_input),
            takes_input=takes_input,
            takes_zero=len(left) < left_panels.size,
        )
        steps.append(step)
        filled += [across.there.reshape(panels, -1)[beside].ravel(), down.there.reshape(panels, -1)[above].ravel()]
        cost += right_panels.size * columns + left_panels.size * rows
        traffic += right_panels.size + left_panels.size + takes_input * across.size
    there = np.concatenate(filled)
    numbers = piece(np.where(there, np.cumsum(there) - 1, stored), len(there))
    taken, place = piece(across.taken(), shape[1]), piece(down.place, down.size)
    index = np.concatenate([*parts, np.zeros(0, dtype=np.int64)]).astype(np.int32)
    return Plan(tuple(steps), numbers, taken, place, cost, traffic), index


def _panels(panel: Integers, count: int) -> tuple[Integers, Integers]:
    """Where every panel starts among its vectors, sorted by panel; and which vectors fill it, (panels, width)."""
    wide = np.bincount(panel, minlength=count)
    first = np.cumsum(wide) - wide
    if not len(panel):
        return first, np.zeros((count, 0), dtype=np.int64)
    return first, np.minimum(first[:, None] + np.arange(wide.max()), len(panel) - 1)


def product(plan: Plan, index: Tensor, values: Tensor, x: Tensor) -> Tensor:
    """W x.

    Args:
        plan: of the product.
        index: its index buffer.
        values: the stored numbers.
        x: (I, B).

    Returns:
        (O, B).
    """

    def chosen(rows: Tensor, piece: Piece | None) -> Tensor:
        return rows if piece is None else rows.index_select(0, index.narrow(0, piece.start, piece.length))

    if plan.numbers is not None:
        values = chosen(F.pad(values, (0, 1)), plan.numbers)
    x, y, first = chosen(x, plan.columns), None, 0
    for step in plan.steps:
        parts = []
        if step.right:
            v = values.narrow(0, first, step.right * step.columns).unflatten(0, (step.right, step.columns))
            v = chosen(v, step.right_panels).unflatten(0, (step.panels, -1))
            parts.append(torch.bmm(v, x.unflatten(0, (step.panels, step.columns))).flatten(0, 1))
        if step.takes_input:
            parts.append(x)
        if step.takes_zero:
            parts.append(parts[0].new_zeros((1, x.shape[1])))
        s = chosen(parts[0] if len(parts) == 1 else torch.cat(parts), step.sources).unflatten(0, (step.panels, -1))
        first += step.right * step.columns
        u = values.narrow(0, first, step.left * step.rows).unflatten(0, (step.left, step.rows))
        u = chosen(u, step.left_panels).unflatten(0, (step.panels, -1)).transpose(1, 2)
        first += step.left * step.rows
        y = torch.bmm(u, s) if y is None else torch.baddbmm(y.unflatten(0, (step.panels, step.rows)), u, s)
        y = y.flatten(0, 1)
    assert y is not None, "a member stores something"
    return chosen(y, plan.rows)
