"""Hierarchical matrices near a given one: its blocks, their singular values, and what a member stores of them.

Letters: O, I = rows and columns; n = leaves of a level; A, C = rows and columns of the largest; m = min(A, C).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from weft.parametrizations.hierarchical_product import terms
from weft.parametrizations.hierarchical_ranks import Floats
from weft.parametrizations.partition import Integers, Leaves, Tree, leaves_at


class Decomposed(NamedTuple):
    """The blocks of one level, filled up with zeros to equal sizes, and their singular value decompositions."""

    block: Tensor  # (n, A, C)
    u: Tensor  # (n, A, m)
    s: Tensor  # (n, m)
    vh: Tensor  # (n, m, C)

    def squares(self) -> Floats:
        """Squared singular values, (n, m)."""
        return _squares(self.s)


def _squares(s: Tensor) -> Floats:
    return np.asarray(s.double().square().cpu().numpy())


def decomposed(target: Tensor, leaves: Leaves) -> Decomposed:
    """The singular value decompositions of the blocks of one level, all at once.

    Args:
        target: (O, I).
        leaves: of the level.

    Returns:
        blocks and factors.
    """
    block = _blocks(target, leaves)
    return Decomposed(block, *torch.linalg.svd(block, full_matrices=False))


def _blocks(target: Tensor, leaves: Leaves) -> Tensor:
    """(n, A, C)."""
    index, there = [], []
    for side in range(2):
        first, size = leaves.first[:, side, None], leaves.sizes[:, side, None]
        within = np.arange(size.max())
        index.append(torch.from_numpy(np.minimum(first + within, target.shape[side] - 1)).to(target.device))
        there.append(torch.from_numpy(within < size).to(target.device))
    true = there[0].unsqueeze(2) & there[1].unsqueeze(1)
    return torch.where(true, target[index[0].unsqueeze(2), index[1].unsqueeze(1)], 0)


def negligible(target: Tensor) -> float:
    """Squares of singular values that rounding alone makes.

    Args:
        target: (O, I).

    Returns:
        the largest of them.
    """
    return float(target.square().sum()) * torch.finfo(target.dtype).eps ** 2


def squares_of(target: Tensor, trees: list[Tree], positions: int) -> list[list[Floats]]:
    """Squared singular values of the blocks of several trees; each of a block that trees share is worked out once.

    Args:
        target: (O, I).
        trees: of the matrix.
        positions: columns per input channel.

    Returns:
        for every tree and level (n, m).
    """
    shape = (target.shape[0], target.shape[1])
    known: dict[int, tuple[Integers, Floats]] = {}
    for level in {leaves.level for tree in trees for leaves in tree}:
        wanted = np.unique(
            np.concatenate([_keys(leaves) for tree in trees for leaves in tree if leaves.level == level])
        )
        blocks = _blocks(target, leaves_at(shape, positions, level, *np.divmod(wanted, 2**level)))
        known[level] = wanted, _squares(torch.linalg.svdvals(blocks))

    def found(leaves: Leaves) -> Floats:
        wanted, squares = known[leaves.level]
        return squares[np.searchsorted(wanted, _keys(leaves))]

    return [[found(leaves) for leaves in tree] for tree in trees]


def _keys(leaves: Leaves) -> Integers:
    return leaves.row * 2**leaves.level + leaves.column


def packed(tree: Tree, ranks: list[Integers], levels: list[Decomposed]) -> Tensor:
    """The numbers of the member whose blocks are the nearest ones of given ranks, as they are stored.

    Args:
        tree: of the member.
        ranks: of the leaves of every level.
        levels: decompositions of every level.

    Returns:
        (numbers that are used,); both factors of a block take the roots of its singular values.
    """
    parts = []
    for leaves, rank, (block, u, s, vh) in zip(tree, ranks, levels, strict=True):
        tables = (leaves.sizes, *terms(leaves, rank))
        size, right, left, partner = (torch.from_numpy(table).to(s.device) for table in tables)
        root, (leaf, k) = s.sqrt(), right.T
        v = root[leaf, k, None] * vh[leaf, k]
        parts.append(v[torch.arange(v.shape[1], device=s.device) < size[leaf, 1, None]])
        leaf, k = left.T
        low = k.clamp(max=s.shape[1] - 1)  # columns of dense blocks have no singular value
        column = torch.where(partner[:, None] < 0, block[leaf, :, k], root[leaf, low, None] * u[leaf, :, low])
        parts.append(column[torch.arange(column.shape[1], device=s.device) < size[leaf, 0, None]])
    return torch.cat(parts)
