"""Blocks that a hierarchical matrix is cut into, and the trees that cut it.

A tree starts with the whole matrix and splits blocks in four, at the midpoints of both sides. The blocks of one level
lie in a grid of 2^level by 2^level; those that are split no further are its leaves.

Letters: n = leaves of one level. O and C are the numbers of rows and of input channels, between which columns are cut.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]


class Block(NamedTuple):
    """A block of a partition: where it lies, its rank, and whether its entries are stored as they are."""

    rows: slice
    columns: slice
    rank: int
    dense: bool


class Leaves(NamedTuple):
    """The leaves of one level: their places in its grid, their first rows and columns, and their sizes."""

    level: int
    row: Integers  # (n,)
    column: Integers
    first: Integers  # (n, 2)
    sizes: Integers


#: The leaves of every level that has some, from the coarsest.
Tree = list[Leaves]


def cuts(total: int, level: int) -> Integers:
    """Where the blocks of a level end along one side.

    Args:
        total: length of the side.
        level: number of times that every part was halved.

    Returns:
        (2^level + 1,), from 0 to ``total``.

    Example:
        >>> cuts(75, 2).tolist()
        [0, 18, 37, 56, 75]
    """
    ends = np.array([0, total])
    for _ in range(level):
        ends = np.sort(np.concatenate([ends, (ends[:-1] + ends[1:]) // 2]))
    return ends


def leaves_at(shape: tuple[int, int], positions: int, level: int, row: Integers, column: Integers) -> Leaves:
    """Blocks by their places in the grid of one level.

    Args:
        shape: (out, in) of the matrix.
        positions: columns of one channel.
        level: of the blocks.
        row: (n,) places.
        column: (n,) places.

    Returns:
        the leaves, row by row.
    """
    by_row = np.lexsort((column, row))
    row, column = row[by_row], column[by_row]
    down, across = cuts(shape[0], level), cuts(shape[1] // positions, level) * positions
    first = np.stack([down[row], across[column]], 1)
    return Leaves(level, row, column, first, np.stack([down[row + 1], across[column + 1]], 1) - first)


def grid(shape: tuple[int, int], positions: int, level: int) -> Tree:
    """The tree in which every block is split, down to a level.

    Args:
        shape: (out, in) of the matrix.
        positions: columns of one channel.
        level: of all leaves; 0 is the whole matrix.

    Returns:
        the leaves, row by row.
    """
    return [leaves_at(shape, positions, level, *np.divmod(np.arange(4**level), 2**level))]


def admissible_tree(shape: tuple[int, int], positions: int, min_block: int, eta: float) -> Tree:
    """The tree in which blocks are split until they are far from the diagonal, or small.

    A block is far, "admissible", if max(rows, columns) <= 2 eta distance, where the distance is the gap between its
    rows and its columns, 0 if they touch. Rows and columns are measured in parts of the whole side, so that the
    diagonal of a rectangular matrix goes from corner to corner.

    Args:
        shape: (out, in) of the matrix.
        positions: columns of one channel.
        min_block: blocks are split while both sides exceed twice this, in rows and channels.
        eta: in (0, 1).

    Returns:
        the leaves, row by row on every level.

    Source:
        Hackbusch 1999, A Sparse Matrix Arithmetic Based on H-Matrices, Part I, section 2,
        https://doi.org/10.1007/s006070050015.

    Example:
        >>> [(leaves.level, len(leaves.row)) for leaves in admissible_tree((64, 64), 1, 2, 0.5)]
        [(2, 6), (3, 18), (4, 88)]
    """
    rows, channels = shape[0], shape[1] // positions
    found, level = [], 0
    i = j = np.zeros(1, dtype=np.int64)
    while len(i):
        down, across = cuts(rows, level), cuts(channels, level)
        a, b, c, d = down[i], down[i + 1], across[j], across[j + 1]
        # In units of 1/(O*C) of a side there is no rounding.
        gap = np.maximum(np.maximum(a * channels - d * rows, c * rows - b * channels), 0)
        far = np.maximum((b - a) * channels, (d - c) * rows) <= 2 * eta * gap
        split = ~far & (b - a > 2 * min_block) & (d - c > 2 * min_block)
        if not split.all():
            found.append(leaves_at(shape, positions, level, i[~split], j[~split]))
        i = (2 * i[split, None] + np.array([0, 0, 1, 1])).ravel()
        j = (2 * j[split, None] + np.array([0, 1, 0, 1])).ravel()
        level += 1
    return found
