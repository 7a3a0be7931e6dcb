"""Effective rank: how many directions a matrix really uses.

p_i = s_i / sum_j s_j,    rho = -sum_i p_i log p_i        s: singular values
"""

from __future__ import annotations

import torch
from torch import Tensor

from weft.errors import FitError, SizeError


def effective_rank(matrix: Tensor, exponential: bool = False) -> Tensor:
    """Entropy of the normalised singular values: log n for n equal ones, 0 for rank 1.

    It is smooth where the rank jumps, so that it shows how the spectrum of a weight decays during training. Products of
    more random matrices have a smaller one, which is what over-parametrised layers are for.

    Args:
        matrix: (..., O, I), finite.
        exponential: whether to return the exponential, between 1 and min(O, I), which reads as a number of directions.

    Returns:
        (...,), in double precision; 0 (or 1) for a matrix of zeros.

    Raises:
        SizeError: fewer than two dimensions, or an empty matrix.
        FitError: values that are not finite.

    Source:
        Roy and Vetterli 2007, The Effective Rank: A Measure of Effective Dimensionality, EUSIPCO, definition 1 (the
        exponential); Huh et al. 2023, https://arxiv.org/abs/2103.10427, definition 2 (the entropy).

    Example:
        >>> import torch, weft
        >>> round(weft.effective_rank(torch.eye(6), exponential=True).item(), 6)
        6.0
    """
    matrix = torch.as_tensor(matrix)
    if matrix.dim() < 2 or 0 in matrix.shape[-2:]:
        raise SizeError(f"matrix must have two dimensions or more and no empty side, got {tuple(matrix.shape)}")
    if not bool(torch.isfinite(matrix).all()):
        raise FitError("matrix has values that are not finite; its singular values are undefined")
    values = torch.linalg.svdvals(matrix.to(torch.promote_types(matrix.dtype, torch.float64)))
    total = values.sum(-1, keepdim=True)
    parts = values / torch.where(total > 0, total, 1)
    # a value of exactly 0 adds nothing, and has no gradient instead of an infinite one
    entropy = torch.special.entr(torch.where(parts > 0, parts, 1)).sum(-1)
    return entropy.exp() if exponential else entropy
