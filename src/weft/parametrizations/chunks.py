"""Products of many rows in chunks, so that what passes between the factors stays in the caches."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.fx._symbolic_trace import is_fx_symbolic_tracing

CHUNK = 64


def in_chunks(product: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A product of rows, 64 at a time above 128 in evaluation; at once where gradients are kept.

    Args:
        product: maps (B, I) to (B, O), row by row.
        x: (B, I).

    Returns:
        (B, O).

    Example:
        >>> tuple(in_chunks(lambda part: part[:, :2], torch.ones(200, 3)).shape)
        (200, 2)
    """
    # A number of rows that is asked for would be frozen into what compilers and tracers record.
    recording = torch.compiler.is_compiling() or is_fx_symbolic_tracing() or torch._C._get_tracing_state() is not None
    if recording or torch.is_grad_enabled() or x.shape[0] <= 2 * CHUNK:
        return product(x)
    return torch.cat([product(part) for part in x.split(CHUNK)])
