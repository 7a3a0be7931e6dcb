"""Products of many rows in chunks, so that what passes between the factors stays in the caches."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from weft.modes import is_recording

#: Numbers that a chunk may keep on the way, about what a core's own cache holds.
_CACHED = 2**18


def in_chunks(product: Callable[[Tensor], Tensor], x: Tensor, numbers: int) -> Tensor:
    """A product of rows, in chunks that fit the caches where there are many rows in evaluation, else at once.

    Args:
        product: maps (B, I) to (B, O), row by row.
        x: (B, I).
        numbers: that one row needs on the way.

    Returns:
        (B, O).

    Example:
        >>> tuple(in_chunks(lambda part: part[:, :2], torch.ones(2000, 3), 1000).shape)
        (2000, 2)
    """
    chunk = max(_CACHED // numbers, 64)
    if is_recording() or torch.is_grad_enabled() or x.shape[0] <= 2 * chunk:
        return product(x)
    return torch.cat([product(part) for part in x.split(chunk)])
