"""Products of many rows in chunks, so that what passes between the factors stays in the caches."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.fx._symbolic_trace import is_fx_symbolic_tracing

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
    # A number of rows that is asked for would be frozen into what compilers and tracers record.
    recording = torch.compiler.is_compiling() or is_fx_symbolic_tracing() or torch._C._get_tracing_state() is not None
    chunk = max(_CACHED // numbers, 64)
    if recording or torch.is_grad_enabled() or x.shape[0] <= 2 * chunk:
        return product(x)
    return torch.cat([product(part) for part in x.split(chunk)])
