"""Products of many rows in chunks, so that what passes between the factors stays in the caches."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

#: Numbers that a chunk may pass on: some megabytes, what the caches of a processor hold beside the factors.
_CACHED = 2**21
#: Fewer rows leave the processor's matrix products below their speed, more bring nothing.
_FEWEST, _MOST = 128, 256


def chunk_rows(traffic: int) -> int:
    """How many rows should go through a product together.

    Args:
        traffic: numbers that one row passes on between the factors.

    Returns:
        the number of rows.

    Example:
        >>> chunk_rows(2048), chunk_rows(100_000)
        (256, 128)
    """
    return min(max(_CACHED // max(traffic, 1), _FEWEST), _MOST)


def in_chunks(product: Callable[[Tensor], Tensor], x: Tensor, traffic: int, bias: Tensor | None = None) -> Tensor:
    """A product of rows, plus a bias: chunk by chunk where there are many rows, else at once.

    Args:
        product: maps (B, I) to (B, ...), row by row; the features of a row may lie in any order in memory.
        x: (..., I), a plain tensor that wants no gradients, in a program that nothing records.
        traffic: numbers that one row passes on between the factors.
        bias: (O,) or None.

    Returns:
        (..., O).

    Example:
        >>> tuple(in_chunks(lambda part: part[:, :2], torch.ones(5, 2000, 3), 1000).shape)
        (5, 2000, 2)
    """
    flat, chunk = x.reshape(-1, x.shape[-1]), chunk_rows(traffic)
    if len(flat) < 2 * chunk:
        y = product(flat).flatten(1)
        y = y.view(*x.shape[:-1], y.shape[1])
        return y if bias is None else y + bias.to(y.dtype)
    result: Tensor | None = None
    for first in range(0, len(flat), chunk):
        y = product(flat[first : first + chunk])
        if result is None:
            result = y.new_empty(len(flat), y[0].numel())
        part = result[first : first + chunk].view(y.shape)  # one pass orders the features and adds the bias
        if bias is None:
            part.copy_(y)
        else:
            torch.add(y, bias.to(y.dtype).view(y.shape[1:]), out=part)
    assert result is not None, "there are at least two chunks"
    return result.view(*x.shape[:-1], -1)
