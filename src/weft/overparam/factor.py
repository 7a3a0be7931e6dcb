"""Factors of a given weight: over-parametrised layers that start as a trained layer.

Per group, the kernel as a matrix M (O/G, I/G * K) = U diag(s) V is split into

    W_1 = diag(s^(1/L)) V (as a K kernel),   W_2 = ... = W_{L-1} = diag(s^(1/L)),   W_L = U diag(s^(1/L))   (as 1 x 1)

so that the factors are balanced, W_l W_l^T = W_{l+1}^T W_{l+1}, as gradient descent keeps them (Arora et al. 2018,
https://arxiv.org/abs/1802.06509, theorem 1).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from weft.errors import OptionError


def balanced_factors(kernel: Tensor, depth: int, hidden: int, groups: int = 1) -> list[Tensor]:
    """Kernels of sub-layers whose composition is a given kernel.

    Args:
        kernel: (O, I/G, *K).
        depth: L.
        hidden: H, channels between the sub-layers, a multiple of G.
        groups: G.

    Returns:
        L kernels: (H, I/G, *K), then (H, H/G, 1, ...), at last (O, H/G, 1, ...). Channels beyond the rank carry random
        numbers that the last kernel does not use yet, so that it can learn to.

    Raises:
        OptionError: H is smaller than the rank that the kernel may have.

    Example:
        >>> import torch
        >>> first, second = balanced_factors(torch.randn(8, 6), depth=2, hidden=7)
        >>> tuple(first.shape), tuple(second.shape)
        ((7, 6), (8, 7))
    """
    if depth == 1:
        return [kernel.clone()]
    out, columns, *size = kernel.shape
    rows, width = out // groups, hidden // groups
    rank = min(rows, columns * math.prod(size))
    if width < rank:
        raise OptionError(
            f"width leaves {hidden} channels between the sub-layers, but the weight may have rank {rank * groups}; "
            f"width must be at least {rank * groups / out!r}, or use keep_function=False"
        )
    exact = kernel.to(torch.promote_types(kernel.dtype, torch.float64))
    u, s, vh = torch.linalg.svd(exact.reshape(groups, rows, -1), full_matrices=False)
    alive = s > torch.finfo(torch.promote_types(kernel.dtype, torch.float32)).eps * torch.linalg.vector_norm(exact)
    root = s ** (1 / depth)
    spare = torch.randn(groups, width, vh.shape[-1], dtype=vh.dtype, device=vh.device) * vh.shape[-1] ** -0.5
    first = torch.cat([torch.where(alive[..., None], root[..., None] * vh, spare[:, :rank]), spare[:, rank:]], dim=1)
    scales = torch.cat([torch.where(alive, root, 1), root.new_ones(groups, width - rank)], dim=1)
    last = torch.cat([u * torch.where(alive, root, 0)[:, None], u.new_zeros(groups, rows, width - rank)], dim=2)
    ones = (1,) * len(size)
    factors = [first.reshape(hidden, columns, *size)]
    factors += [torch.diag_embed(scales).reshape(hidden, width, *ones) for _ in range(depth - 2)]
    return [factor.to(kernel.dtype) for factor in (*factors, last.reshape(out, width, *ones))]
