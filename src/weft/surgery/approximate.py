"""approximate: the nearest member of a family to a given matrix."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from weft.errors import SizeError
from weft.parametrizations import Parametrization, make


def approximate(
    matrix: Tensor, family: str, share: float | None = None, *, gram: Tensor | None = None, **options: Any
) -> Parametrization:
    """A parametrization fitted to a matrix.

    Args:
        matrix: (out, in), finite; also a numpy array.
        family: family name, see ``weft.families()``.
        share: stored over dense numbers, in (0, 1]; or give the options that size the family.
        gram: (in, in) Gram matrix of the inputs to weigh the error by, None weighs all alike.
        **options: of the family.

    Returns:
        the member, on the matrix's device and in its dtype; ``fit_error`` is its relative error.

    Raises:
        SizeError: ``matrix`` has not two dimensions.
        BudgetError: ``share`` too small; names the smallest that works.
        FitError: values that are not finite, or a family that cannot be fitted.

    Example:
        >>> import torch, weft
        >>> matrix = torch.randn(30, 4) @ torch.randn(4, 20)
        >>> weft.approximate(matrix, "low_rank", rank=4).fit_error < 1e-5
        True
    """
    matrix = torch.as_tensor(matrix)
    if matrix.dim() != 2:
        raise SizeError(f"matrix must have two dimensions (out, in), got shape {tuple(matrix.shape)}; reshape it first")
    dtype = matrix.dtype if matrix.is_floating_point() else None
    out_features, in_features = matrix.shape
    shape = (out_features, in_features)
    member = make(family, shape, target=matrix, share=share, device=matrix.device, dtype=dtype, **options)
    member.fit_(matrix, gram)
    return member
