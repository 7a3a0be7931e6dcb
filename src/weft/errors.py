"""What Weft raises. Every message names the argument, the rule, the value and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class WeftError(ValueError):
    """Base of all errors a user can cause; a ``ValueError``, so that ``except ValueError`` catches it."""


class SizeError(WeftError):
    """A shape, a channel count or a geometry argument does not fit."""


class OptionError(WeftError):
    """An option is unknown, missing, out of range or contradicts another one."""


class UnknownNameError(OptionError):
    """A family, an algebra or another thing chosen by name does not exist."""


class BudgetError(OptionError):
    """``share`` is out of (0, 1] or smaller than the smallest member of the family.

    Args:
        message: what happened, with the remedy.
        smallest_share: smallest share that works for this family and shape, None if no share does.
    """

    def __init__(self, message: str, smallest_share: float | None = None) -> None:
        super().__init__(message)
        self.smallest_share = smallest_share


class FitError(WeftError):
    """A target cannot be fitted: the family has no ``fit_``, or the target or the Gram matrix is unusable."""


class ConversionError(WeftError):
    """``convert`` found nothing that it could replace."""


class FoldError(WeftError):
    """A layer cannot be folded here, or folding moved the output by more than the tolerance."""


def nearest_name(name: str, names: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest known one, or nothing.

    Args:
        name: what was asked for.
        names: what exists.

    Returns:
        ``"; did you mean 'x'?"`` or ``""``.

    Example:
        >>> nearest_name("kroneker", ["dense", "kronecker"])
        "; did you mean 'kronecker'?"
    """
    match = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return f"; did you mean {match[0]!r}?" if match else ""
