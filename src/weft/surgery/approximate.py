"""approximate: the nearest member of a family, or of all families, to a given matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from weft.errors import BudgetError, FitError, OptionError
from weft.parametrizations import Parametrization
from weft.surgery.compare import as_matrix, compare, fitted


def approximate(
    matrix: Tensor,
    family: str | Sequence[str] = "auto",
    share: float | None = None,
    *,
    gram: Tensor | None = None,
    **options: Any,
) -> Parametrization:
    """A parametrization fitted to a matrix.

    Args:
        matrix: (out, in), finite; also a numpy array.
        family: family name, see ``weft.families()``; several names to keep the one of the smallest error, or
            ``"auto"`` for all that this share can size for this shape. ``weft.surgery.compare`` gives what each of them
            made of the matrix, and why some were skipped.
        share: stored over dense numbers, in (0, 1]; or give the options that size the family.
        gram: (in, in) Gram matrix of the inputs to weigh the error by, None weighs all alike.
        **options: of the family; with several families only ``positions``.

    Returns:
        the member, on the matrix's device and in its dtype; ``fit_error`` is its relative error.

    Raises:
        SizeError: ``matrix`` has not two dimensions.
        BudgetError: ``share`` too small; names the smallest that works.
        FitError: values that are complex or not finite, or a family that cannot be fitted.

    Example:
        >>> import torch, weft
        >>> matrix = torch.randn(30, 4) @ torch.randn(4, 20)
        >>> weft.approximate(matrix, "low_rank", rank=4).fit_error < 1e-5
        True
        >>> weft.approximate(matrix, ["hodlr", "low_rank"], share=0.4).family
        'low_rank'
    """
    matrix = as_matrix(matrix)
    if isinstance(family, str) and family != "auto":
        return fitted(family, matrix, gram, share=share, **options)
    return _nearest(matrix, None if isinstance(family, str) else family, share, gram, **options)


def _nearest(
    matrix: Tensor,
    names: Sequence[str] | None,
    share: float | None,
    gram: Tensor | None,
    positions: int = 1,
    **others: Any,
) -> Parametrization:
    """Of the members of several families the one of the smallest error, weighted if there is a Gram matrix."""
    if share is None or others:
        raise OptionError(
            f"several families are compared at one share, and their own options do not fit each other: give share= and "
            f"no further options; got share={share} and {sorted(others) or 'no options'}"
        )
    trials = compare(matrix, share, names, gram=gram, positions=positions)
    found = [trial.member for trial in trials if trial.member is not None]
    if found:
        return min(found, key=lambda member: (member.fit_error, member.num_parameters))
    reasons = "; ".join(f"{trial.family}: {trial.reason}" for trial in trials)
    shares = [trial.smallest_share for trial in trials if trial.smallest_share is not None]
    if not shares:
        raise FitError(f"none of the families fits a matrix of shape {tuple(matrix.shape)} at share {share}: {reasons}")
    raise BudgetError(
        f"share {share} is too small for every family and shape {tuple(matrix.shape)}: the smallest share that works "
        f"is {min(shares):.6f} ({reasons})",
        min(shares),
    )
