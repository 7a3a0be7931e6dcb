"""Multiplication tables of algebras, as the matrices of left multiplication.

An algebra of dimension n with basis e_1..e_n is its table T of shape (n, n, n): multiplying by e_i from the left maps
the coefficients x to T[i] x, so that

    (a b)[p] = sum_{i,q} a[i] T[i, p, q] b[q].

Used as the first factors of a Kronecker sum, W = sum_i T[i] (x) S[i] multiplies a vector of n components by the
hypercomplex number whose coefficients are the matrices S[i].
"""

from __future__ import annotations

import torch
from torch import Tensor

from weft.errors import UnknownNameError, nearest_name

# Row p, column q of T[i]: which basis element e_i e_q gives, written as products e_i e_q = sign * e_p.
_PRODUCTS: dict[str, tuple[tuple[int, ...], ...]] = {
    # Entry (i, q) is +-(p + 1): the product of the i-th and the q-th basis element is +-e_p.
    "complex": ((1, 2), (2, -1)),
    "quaternion": ((1, 2, 3, 4), (2, -1, 4, -3), (3, -4, -1, 2), (4, 3, -2, -1)),
}


def algebras() -> tuple[str, ...]:
    """Names of the algebras with a fixed table.

    Returns:
        the names.
    """
    return tuple(_PRODUCTS)


def dimension(name: str) -> int:
    """Number of components of one number of the algebra.

    Args:
        name: of the algebra.

    Returns:
        n.

    Raises:
        UnknownNameError: there is no such algebra; names the nearest one.
    """
    try:
        return len(_PRODUCTS[name])
    except (KeyError, TypeError):
        names = ", ".join(_PRODUCTS)
        raise UnknownNameError(
            f"algebra must be one of {names}, or None for a learned one; "
            f"got {name!r}{nearest_name(str(name), _PRODUCTS)}"
        ) from None


def multiplication_table(
    name: str, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """The table of an algebra.

    Args:
        name: ``"complex"`` or ``"quaternion"``.
        device: as in torch.
        dtype: as in torch.

    Returns:
        (n, n, n), entries 0, 1 and -1.

    Raises:
        UnknownNameError: there is no such algebra.

    Source:
        Hamilton 1843; as sums of Kronecker products: Zhang et al. 2021, Beyond Fully-Connected Layers with
        Quaternions, equation 5, https://arxiv.org/abs/2102.08597.

    Example:
        >>> i = multiplication_table("complex")[1]
        >>> (i @ i).tolist()
        [[-1.0, 0.0], [0.0, -1.0]]
    """
    n = dimension(name)
    table = torch.zeros((n, n, n), dtype=dtype)
    for i, row in enumerate(_PRODUCTS[name]):
        for q, product in enumerate(row):
            table[i, abs(product) - 1, q] = 1 if product > 0 else -1
    return table.to(device)
