"""compare: what every family makes of one matrix within one share."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from weft.errors import BudgetError, FitError, SizeError, WeftError
from weft.parametrizations import Parametrization, families, make
from weft.parametrizations import family as record_by_name
from weft.parametrizations.registry import refuse_device_and_dtype


@dataclass(frozen=True)
class Trial:
    """What one family made of a matrix.

    Args:
        family: its name.
        share: that was asked for.
        seconds: that making and fitting the member took.
        member: the fitted member; None if the family was skipped.
        reason: why it was skipped, or "".
        smallest_share: with which the family would work, where it said so.
    """

    family: str
    share: float
    seconds: float
    member: Parametrization | None = None
    reason: str = ""
    smallest_share: float | None = None

    @property
    def error(self) -> float | None:
        """Relative error of the member, None if the family was skipped."""
        return None if self.member is None else self.member.fit_error

    @property
    def parameters(self) -> int | None:
        """Stored numbers of the member, None if the family was skipped."""
        return None if self.member is None else self.member.num_parameters


def compare(
    matrix: Tensor,
    share: float,
    names: Sequence[str] | None = None,
    *,
    gram: Tensor | None = None,
    positions: int = 1,
) -> list[Trial]:
    """Fit every family that this share can size for this shape.

    Args:
        matrix: (out, in), finite; also a numpy array.
        share: stored over dense numbers, in (0, 1].
        names: of the families; None for all.
        gram: (in, in) Gram matrix of the inputs to weigh the error by, None weighs all alike.
        positions: columns come in runs of this length that no family cuts (the kernel positions of a convolution).

    Returns:
        one trial per family, in the order of ``names``; a family that cannot is skipped with its reason.

    Raises:
        SizeError: ``matrix`` has not two dimensions, or ``gram`` is not (in, in).
        BudgetError: ``share`` is outside (0, 1].
        UnknownNameError: no such family.
        FitError: values that are complex or not finite.

    Example:
        >>> import torch
        >>> from weft.surgery import compare
        >>> tried = compare(torch.randn(20, 3) @ torch.randn(3, 30), 0.3, ["low_rank", "monarch", "kronecker"])
        >>> [(trial.family, trial.member is not None) for trial in tried], tried[0].error < 1e-5
        ([('low_rank', True), ('monarch', True), ('kronecker', False)], True)
    """
    matrix = as_matrix(matrix)
    if not 0 < share <= 1:
        raise BudgetError(f"share must be in (0, 1] (stored numbers / dense numbers), got {share}")
    if gram is not None and tuple(gram.shape) != (matrix.shape[1],) * 2:
        raise SizeError(f"gram must have the shape (in, in) = {(matrix.shape[1],) * 2}, got {tuple(gram.shape)}")
    if not torch.isfinite(matrix).all() or (gram is not None and not torch.isfinite(gram).all()):
        raise FitError("matrix and gram must be finite, got NaN or infinity; clean the checkpoint first")
    chosen = list(families()) if names is None else list(names)
    for name in chosen:
        record_by_name(name)
    return [_attempt(name, matrix, share, gram, positions) for name in chosen]


def _attempt(name: str, matrix: Tensor, share: float, gram: Tensor | None, positions: int) -> Trial:
    begun = time.perf_counter()
    try:
        member = fitted(name, matrix, gram, share=share, positions=positions)
    except WeftError as error:  # what a family says when it cannot; the arguments themselves are checked already
        smallest = error.smallest_share if isinstance(error, BudgetError) else None
        return Trial(name, share, time.perf_counter() - begun, reason=str(error), smallest_share=smallest)
    return Trial(name, share, time.perf_counter() - begun, member)


def fitted(name: str, matrix: Tensor, gram: Tensor | None, **options: Any) -> Parametrization:
    """A member of one family, fitted to a matrix.

    Args:
        name: of the family.
        matrix: from ``as_matrix``.
        gram: of the inputs, or None.
        **options: of the family.

    Returns:
        the member, on the matrix's device and in its dtype.
    """
    refuse_device_and_dtype(options)
    shape = (matrix.shape[0], matrix.shape[1])
    member = make(name, shape, target=matrix, device=matrix.device, dtype=matrix.dtype, **options)
    member.fit_(matrix, gram)
    return member


def as_matrix(matrix: Any) -> Tensor:
    """A matrix of floating-point numbers.

    Args:
        matrix: tensor or numpy array of two dimensions; whole numbers get torch's default dtype.

    Returns:
        the tensor.

    Raises:
        SizeError: it has not two dimensions.
        FitError: its numbers are complex.
    """
    if isinstance(matrix, np.ndarray) and any(stride < 0 for stride in matrix.strides):
        matrix = matrix.copy()  # a view in reverse order, which torch cannot share
    tensor = torch.as_tensor(matrix)
    if tensor.is_complex():
        raise FitError(
            f"matrix must be real, got {tensor.dtype}: not every family can be complex; approximate matrix.real and "
            f"matrix.imag one by one, or fit a member made with dtype={tensor.dtype} by its fit_"
        )
    if tensor.dim() != 2:
        raise SizeError(f"matrix must have two dimensions (out, in), got shape {tuple(tensor.shape)}; reshape it first")
    return tensor if tensor.is_floating_point() else tensor.to(torch.get_default_dtype())
