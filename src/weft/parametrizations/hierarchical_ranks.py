"""How a budget of numbers is shared out among the blocks of a hierarchical matrix.

A block of A rows and C columns takes r (A + C) numbers at rank r. From the rank AC/(A + C) on it is stored dense: that
takes AC numbers and is exact. Such a block has the rank min(A, C) here, which no cheaper one reaches.

Letters: n = blocks; A, C = rows and columns of one; m = singular values of one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from weft.parametrizations.partition import Integers

Floats = NDArray[np.float64]


def largest_ranks(sizes: Integers) -> Integers:
    """The largest rank of every block at which factors take no more than the block itself.

    Args:
        sizes: (n, 2), rows and columns.

    Returns:
        (n,).
    """
    return sizes.prod(1) // sizes.sum(1)


def prices(sizes: Integers, ranks: Integers | int) -> Integers:
    """Numbers that blocks take.

    Args:
        sizes: (n, 2), rows and columns.
        ranks: (n,), or one for all; above the largest rank a block is dense.

    Returns:
        (n,).
    """
    return np.where(ranks > largest_ranks(sizes), sizes.prod(1), ranks * sizes.sum(1))


def even_ranks(sizes: Integers, order: Integers, budget: int) -> Integers:
    """The same rank for all blocks, and one more for as many as the rest of the budget allows.

    Args:
        sizes: (n, 2), rows and columns.
        order: (n,) blocks in the order in which the rest is given out.
        budget: numbers.

    Returns:
        (n,) ranks; small blocks, for which the common rank is too large, are dense.
    """
    low, high = 0, int(largest_ranks(sizes).max()) + 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if prices(sizes, middle).sum() <= budget else (low, middle - 1)
    ranks = np.full(len(sizes), low)
    steps = (prices(sizes, low + 1) - prices(sizes, low))[order]
    more = _affordable(steps, order, budget - int(prices(sizes, low).sum()))
    ranks[order[more]] += 1
    return _dense_as_full(sizes, ranks)


def best_ranks(sizes: Integers, squares: list[Floats], budget: int, tolerance: float) -> tuple[Integers, float]:
    """The ranks that leave least of a matrix: whatever lowers the squared error most per number comes first.

    One more singular value of a block gains its square for A + C numbers; after the largest rank, storing the block
    dense gains all that are left for the numbers still missing. All these steps are sorted once. What does not fit into
    the rest of the budget is left out, and the rest spent on what does.

    Args:
        sizes: (n, 2), rows and columns.
        squares: squared singular values, falling, of consecutive blocks: arrays (blocks, m) with n blocks in all.
        budget: numbers.
        tolerance: squares up to this are taken for zero, and get no numbers.

    Returns:
        (n,) ranks, and the squared error that they leave.

    Source:
        Kissel and Diepold 2023, Structured Matrices and Their Application in Neural Networks: A Survey,
        https://doi.org/10.1007/s00354-023-00226-1; there singular values are given out one by one, no block is dense.
    """
    steps, first = [], 0
    for values in squares:
        steps.append(_steps(values, sizes[first : first + len(values)], first))
        first += len(values)
    block, price, lowers, gain = (np.concatenate(column) for column in zip(*steps, strict=True))
    order = np.argsort(-gain, kind="stable")
    order = order[lowers[order] > tolerance]
    taken = order[_affordable(price[order], block[order], budget)]
    left = sum(float(values.sum()) for values in squares) - float(lowers[taken].sum())
    return _dense_as_full(sizes, np.bincount(block[taken], minlength=len(sizes))), max(left, 0.0)


def _steps(values: Floats, sizes: Integers, first: int) -> tuple[Integers, Integers, Floats, Floats]:
    """All steps of the blocks of one level, those of a block in turn.

    Args:
        values: (n, m) squared singular values.
        sizes: (n, 2).
        first: number of the first block.

    Returns:
        the block of every step, its price, by how much it lowers the squared error, and that per number.
    """
    most, every = largest_ranks(sizes), np.arange(len(values))
    block, index = np.nonzero(np.arange(values.shape[1]) < most[:, None])
    alone = values[block, index] / sizes.sum(1)[block]
    rest = np.where(np.arange(values.shape[1]) < most[:, None], 0, values).sum(1)
    missing = prices(sizes, most + 1) - prices(sizes, most)
    # Whatever it gains, a block becomes dense after its last single value.
    last = np.where(most > 0, values[every, most - 1] / sizes.sum(1), np.inf)
    gain = np.minimum(rest / np.maximum(missing, 1), last)
    return (
        first + np.concatenate([block, every]),
        np.concatenate([sizes.sum(1)[block], missing]),
        np.concatenate([values[block, index], rest]),
        np.concatenate([alone, gain]),
    )


def _affordable(price: Integers, block: Integers, budget: int) -> NDArray[np.bool_]:
    """What is bought if everything is taken in turn that fits, and nothing of a block after a step that did not."""
    taken = np.cumsum(price) <= budget
    rest, stuck = budget - int(price[taken].sum()), set()
    beyond = np.flatnonzero(~taken)
    least = int(price[beyond].min(initial=rest + 1))
    for item, cost, owner in zip(beyond.tolist(), price[beyond].tolist(), block[beyond].tolist(), strict=True):
        if rest < least:
            break
        if cost > rest:
            stuck.add(owner)
        elif owner not in stuck:
            taken[item] = True
            rest -= cost
    return taken


def _dense_as_full(sizes: Integers, ranks: Integers) -> Integers:
    return np.where(ranks > largest_ranks(sizes), sizes.min(1), ranks)
