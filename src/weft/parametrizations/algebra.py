"""Multiplication tables of algebras, their laws, and the fewest products that multiply in them.

An algebra of dimension n with basis e_0..e_{n-1} is its table T of shape (n, n, n): multiplying by e_i from the left
maps the coefficients x to T[i] x, so that

    (a b)[p] = sum_{i,q} a[i] T[i, p, q] b[q].

Used as the first factors of a Kronecker sum, W = sum_i T[i] (x) S[i] multiplies a vector of n components by the
hypercomplex number whose coefficients are the matrices S[i].

Letters: n = dimension; i, p, q = components of the left factor, the product and the right factor.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from weft.errors import OptionError, SizeError, UnknownNameError, nearest_name
from weft.parametrizations.cp import Factors, cp_decompose, generic_rank, rating

#: What an ``algebra`` option may be: a name, or a table as nested sequences or a tensor.
Table = Tensor | Sequence[Sequence[Sequence[float]]]

_CLIFFORD = re.compile(r"cl\((\d),(\d)(?:,(\d))?\)")
_LARGEST = 16  # dimension of the largest Clifford algebra on offer: n = 32 would store more in A than most layers have


# ---------------------------------------------------------------------- tables


def _from_products(n: int, product: Callable[[int, int], tuple[int, int]]) -> Tensor:
    """A table from e_i e_q = sign * e_p, where ``product(i, q)`` is (p, sign)."""
    table = torch.zeros(n, n, n, dtype=torch.float64)
    for i, q in itertools.product(range(n), repeat=2):
        p, sign = product(i, q)
        table[i, p, q] = sign
    return table


def _doubled(table: Tensor, square: int) -> Tensor:
    """Cayley-Dickson: (a, b)(c, d) = (a c + square d* b, d a + b c*), with * the conjugation."""
    n = len(table)
    conjugation = torch.diag(torch.tensor([1.0] + [-1.0] * (n - 1), dtype=torch.float64))
    new = torch.zeros(2 * n, 2 * n, 2 * n, dtype=torch.float64)
    new[:n, :n, :n] = table  # a c
    new[n:, :n, n:] = square * torch.einsum("jpi,jq->ipq", table, conjugation)  # d* b
    new[:n, n:, n:] = torch.einsum("qpi->ipq", table)  # d a
    new[n:, n:, :n] = torch.einsum("ipj,jq->ipq", table, conjugation)  # b c*
    return new


def _clifford(p: int, q: int, r: int) -> Tensor:
    """Basis blades by the bits of their index; generators square to +1 (p of them), -1 (q) and 0 (r)."""
    squares = [1] * p + [-1] * q + [0] * r

    def product(a: int, b: int) -> tuple[int, int]:
        swaps = sum((a >> (bit + 1)).bit_count() for bit in range(len(squares)) if b >> bit & 1)
        sign = -1 if swaps % 2 else 1
        for bit, square in enumerate(squares):
            if a & b & (1 << bit):
                sign *= square
        return a ^ b, sign

    return _from_products(2 ** len(squares), product)


def _tensor_product(first: Tensor, second: Tensor) -> Tensor:
    """The algebra of pairs: basis e_i of the first runs fastest."""
    n = len(first) * len(second)
    return torch.einsum("ipq,jrs->jirpsq", first, second).reshape(n, n, n)


def _named() -> dict[str, Callable[[], Tensor]]:
    real = torch.ones(1, 1, 1, dtype=torch.float64)
    return {
        "complex": lambda: _clifford(0, 1, 0),
        "split_complex": lambda: _clifford(1, 0, 0),
        "dual": lambda: _clifford(0, 0, 1),
        "quaternion": lambda: _clifford(0, 2, 0),
        "split_quaternion": lambda: _doubled(_doubled(real, -1), 1),
        "octonion": lambda: _doubled(_doubled(_doubled(real, -1), -1), -1),
        "tessarine": lambda: _tensor_product(_clifford(0, 1, 0), _clifford(1, 0, 0)),
    }


_NAMED = _named()


def algebras() -> tuple[str, ...]:
    """Names of the algebras with a fixed table; ``"cl(p,q)"`` and ``"cl(p,q,r)"`` come on top.

    Returns:
        the names.

    Example:
        >>> algebras()[:3]
        ('complex', 'split_complex', 'dual')
    """
    return tuple(_NAMED)


@functools.lru_cache(maxsize=64)
def _table(name: str) -> Tensor:
    """The table of a named algebra, in float64; not to be written to."""
    if name in _NAMED:
        with torch.device("cpu"):  # whatever device is the default outside: tables are kept
            return _NAMED[name]()
    if match := _CLIFFORD.fullmatch(name.replace(" ", "")):
        p, q, r = (int(group or 0) for group in match.groups())
        if 2 ** (p + q + r) > _LARGEST:
            raise OptionError(f"algebra {name!r} has dimension {2 ** (p + q + r)}; p + q + r must be at most 4")
        with torch.device("cpu"):
            return _clifford(p, q, r)
    raise UnknownNameError(
        f"algebra must be one of {', '.join(_NAMED)}, 'cl(p,q)', 'cl(p,q,r)', a table, or None for a learned one; "
        f"got {name!r}{nearest_name(name, _NAMED)}"
    )


def multiplication_table(
    algebra: str | Table, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """The table of an algebra.

    Args:
        algebra: one of ``algebras()``; ``"cl(p,q)"`` or ``"cl(p,q,r)"``, the Clifford algebra with p generators that
            square to 1, q to -1 and r to 0, basis blades ordered by the bits of their index (1, e1, e2, e12, e3, ...);
            or a table (n, n, n) of your own, see ``laws``.
        device: as in torch.
        dtype: as in torch.

    Returns:
        (n, n, n): ``table[i]`` is the matrix of the multiplication by e_i from the left.

    Raises:
        UnknownNameError: there is no such algebra; names the nearest one.
        OptionError: p + q + r is larger than 4.
        SizeError: a table that is not (n, n, n), or not finite.

    Source:
        Hamilton 1843 and Cayley 1845 for quaternions and octonions; Cayley-Dickson construction: Baez 2002, The
        Octonions, section 2.2, https://arxiv.org/abs/math/0105155. Clifford: Lounesto 2001, Clifford Algebras and
        Spinors, chapter 3. As sums of Kronecker products: Zhang et al. 2021, https://arxiv.org/abs/2102.08597.

    Example:
        >>> i = multiplication_table("complex")[1]
        >>> (i @ i).tolist()
        [[-1.0, 0.0], [0.0, -1.0]]
    """
    if isinstance(algebra, str):
        table = _table(algebra)
    else:
        table = torch.as_tensor(algebra, dtype=torch.float64, device="cpu")
        if table.dim() != 3 or len(set(table.shape)) != 1 or not torch.isfinite(table).all():
            raise SizeError(f"a table of an algebra must be finite and of shape (n, n, n), got {tuple(table.shape)}")
    return table.to(device=device or torch.get_default_device(), dtype=dtype or torch.get_default_dtype(), copy=True)


def dimension(algebra: str | Table) -> int:
    """Number of components of one number of the algebra.

    Args:
        algebra: as in ``multiplication_table``.

    Returns:
        n.
    """
    return len(_table(algebra)) if isinstance(algebra, str) else len(algebra)


# ---------------------------------------------------------------------- laws


def laws(algebra: str | Table, tolerance: float = 1e-9) -> dict[str, bool]:
    """Which laws an algebra obeys.

    Args:
        algebra: as in ``multiplication_table``.
        tolerance: largest deviation of an entry, relative to the largest entry of the table.

    Returns:
        ``unital`` (e_0 is the one), ``commutative``, ``associative``, ``alternative`` (a(ab) = (aa)b and
        (ba)a = b(aa)) and ``normed`` (the Euclidean norm of ab is that of a times that of b) to whether they hold.

    Example:
        >>> [law for law, holds in laws("octonion").items() if holds]
        ['unital', 'alternative', 'normed']
    """
    table = multiplication_table(algebra, "cpu", torch.float64)
    scale = float(table.abs().max()) or 1.0
    n = len(table)
    eye = torch.eye(n, dtype=torch.float64, device="cpu")
    # (e_i e_j) e_k and e_i (e_j e_k), coefficient p.
    bracket_left = torch.einsum("ilj,lpk->ijkp", table, table)
    bracket_right = torch.einsum("jlk,ipl->ijkp", table, table)
    associator = (bracket_left - bracket_right) / scale**2
    # |ab|^2 = |a|^2 |b|^2 as an identity of the symmetrised quartic forms.
    gram = torch.einsum("ipq,jpr->ijqr", table, table)
    symmetric = gram + gram.transpose(0, 1) + gram.transpose(2, 3) + gram.transpose(0, 1).transpose(2, 3)
    wanted = 4 * torch.einsum("ij,qr->ijqr", eye, eye)

    def small(deviation: Tensor) -> bool:
        return bool(deviation.abs().max() <= tolerance)

    return {
        "unital": small((table[0] - eye) / scale) and small((table[:, :, 0].T - eye) / scale),
        "commutative": small((table - table.permute(2, 1, 0)) / scale),
        "associative": small(associator),
        "alternative": small(associator + associator.transpose(0, 1))
        and small(associator + associator.transpose(1, 2)),
        "normed": small((symmetric - wanted) / scale**2),
    }


def check_laws(algebra: str | Table, required: Sequence[str]) -> None:
    """Refuse a table that does not obey the laws it is meant to.

    Args:
        algebra: as in ``multiplication_table``.
        required: names of laws, see ``laws``.

    Raises:
        UnknownNameError: there is no such law.
        OptionError: a law does not hold; the message names all that fail.

    Example:
        >>> check_laws("quaternion", ["unital", "associative", "normed"])
    """
    holds = laws(algebra)
    for law in required:
        if law not in holds:
            raise UnknownNameError(f"law must be one of {', '.join(holds)}; got {law!r}{nearest_name(law, holds)}")
    if failing := [law for law in required if not holds[law]]:
        kept = ", ".join(law for law, holds_ in holds.items() if holds_) or "none"
        raise OptionError(
            f"algebra is no algebra of the stated kind: not {', not '.join(failing)} (laws that hold: {kept}); "
            f"check the table: table[i, p, q] is the p-th coefficient of e_i e_q"
        )


def algebra_distance(mixing: Table, algebra: str | Table) -> float:
    """How far learned mixing matrices are from an algebra, whatever basis they are written in.

    A sum of Kronecker products keeps its value if the A are recombined and the S with them, so only the space spanned
    by the A means anything. The distance is the root mean square of the sines of the principal angles between the two
    spaces.

    Args:
        mixing: A, (n, n, n).
        algebra: as in ``multiplication_table``, of the same dimension.

    Returns:
        0 for the same space, 1 for orthogonal ones.

    Raises:
        SizeError: the dimensions differ.

    Source:
        Bjorck and Golub 1973, Numerical Methods for Computing Angles Between Linear Subspaces.

    Example:
        >>> table = multiplication_table("quaternion")
        >>> recombined = torch.einsum("ij,jpq->ipq", torch.randn(4, 4), table)
        >>> algebra_distance(recombined, "quaternion") < 1e-3, algebra_distance(table, "tessarine") > 0.5
        (True, True)
    """
    spaces = [multiplication_table(table, "cpu", torch.float64).flatten(1).T for table in (mixing, algebra)]
    if spaces[0].shape != spaces[1].shape:
        raise SizeError(f"mixing and algebra must have the same n, got {spaces[0].shape[1]} and {spaces[1].shape[1]}")
    first, second = (torch.linalg.qr(space)[0] for space in spaces)
    cosines = torch.linalg.svdvals(first.T @ second).clamp(max=1)
    return float((1 - cosines.square()).mean().clamp(min=0).sqrt())


# ---------------------------------------------------------------------- fast products

# Known algorithms: which combinations of the left and of the right factor's coefficients are multiplied. The
# combinations of the products that give the result follow by least squares, exactly.
_KARATSUBA = ([[1, 0], [0, 1], [1, 1]], [[1, 0], [0, 1], [1, 1]])
_HOWELL_LAFON = (
    [
        [0, 1, 0, 1],
        [1, 0, -1, 0],
        [1, 0, 1, 0],
        [0, -1, 0, 1],
        [0, 0, -1, 1],
        [1, 1, 0, 0],
        [1, -1, 0, 0],
        [0, 0, 1, 1],
    ],
    [
        [0, 1, 1, 0],
        [1, 0, 0, 1],
        [1, 0, 0, -1],
        [0, 1, -1, 0],
        [0, 0, 1, -1],
        [1, 1, 0, 0],
        [0, 0, 1, 1],
        [1, -1, 0, 0],
    ],
)
# Strassen's algorithm in the bases in which these algebras are the 2x2 matrices: 1, f, g and f g, with (f, g) from
# swap = [[0, 1], [1, 0]], flip = [[1, 0], [0, -1]], turn = [[0, -1], [1, 0]]: (swap, flip), (swap, turn), (turn, swap).
_STRASSEN_20 = (
    [[2, 0, 0, 0], [1, 1, -1, 1], [1, 0, 1, 0], [1, 0, -1, 0], [1, 1, 1, -1], [-1, 1, -1, 1], [-1, 1, 1, -1]],
    [[2, 0, 0, 0], [1, 0, 1, 0], [-1, 1, 1, -1], [-1, 1, -1, 1], [1, 0, -1, 0], [1, 1, 1, -1], [1, 1, -1, 1]],
)
_STRASSEN_11 = (
    [[2, 0, 0, 0], [1, 1, 1, -1], [1, 0, 0, 1], [1, 0, 0, -1], [1, 1, -1, 1], [-1, 1, 1, -1], [-1, 1, -1, 1]],
    [[2, 0, 0, 0], [1, 0, 0, 1], [-1, 1, -1, 1], [-1, 1, 1, -1], [1, 0, 0, -1], [1, 1, -1, 1], [1, 1, 1, -1]],
)
_STRASSEN_SPLIT = (
    [[2, 0, 0, 0], [1, 1, 1, 1], [1, 0, 0, -1], [1, 0, 0, 1], [1, -1, 1, -1], [-1, 1, 1, 1], [-1, -1, 1, -1]],
    [[2, 0, 0, 0], [1, 0, 0, -1], [-1, -1, 1, -1], [-1, 1, 1, 1], [1, 0, 0, 1], [1, -1, 1, -1], [1, 1, 1, 1]],
)
# Grassmann's algebra of two generators in 8 products: e12 has a0 b3, a3 b0 and (a1 - a2)(b1 + b2), less a1 b1 and plus
# a2 b2, which the products for e1 and e2, (a0 +- a1)(b0 +- b1) and (a0 +- a2)(b0 +- b2), give too.
_GRASSMANN = (
    [[1, 0, 0, 0], [1, 1, 0, 0], [1, -1, 0, 0], [1, 0, 1, 0], [1, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 1, -1, 0]],
    [[1, 0, 0, 0], [1, 1, 0, 0], [1, -1, 0, 0], [1, 0, 1, 0], [1, 0, -1, 0], [0, 0, 0, 1], [1, 0, 0, 0], [0, 1, 1, 0]],
)
_SAME = {"complex": "cl(0,1)", "split_complex": "cl(1,0)", "dual": "cl(0,0,1)", "quaternion": "cl(0,2)"}
_ALGORITHMS = {
    "cl(0,0)": ([[1]], [[1]]),
    "cl(0,1)": _KARATSUBA,
    "cl(1,0)": ([[1, 1], [1, -1]], [[1, 1], [1, -1]]),
    "cl(0,2)": _HOWELL_LAFON,
    "cl(2,0)": _STRASSEN_20,
    "cl(1,1)": _STRASSEN_11,
    "cl(0,0,2)": _GRASSMANN,
    "split_quaternion": _STRASSEN_SPLIT,
}
# If no algorithm is known: a rank at which the search succeeds, and a seed from which it soon ends in calm terms.
_FOUND = {"octonion": (25, 2), "cl(0,1,1)": (8, 2)}
# Clifford algebras of three generators: their volume element commutes with all and squares to +-1, so they are
# products of a two-generator algebra with the complex or the split-complex numbers.
_PRODUCTS = {
    "tessarine": ("cl(0,1)", "cl(1,0)"),
    "cl(3,0)": ("cl(2,0)", "cl(0,1)"),
    "cl(2,1)": ("cl(2,0)", "cl(1,0)"),
    "cl(1,2)": ("cl(1,1)", "cl(0,1)"),
    "cl(0,3)": ("cl(0,2)", "cl(1,0)"),
}


def _plain_name(name: str) -> str:
    """The one name by which the algorithms know an algebra: no spaces, no synonyms, no third number that is 0."""
    name = name.replace(" ", "")
    return re.sub(r"^cl\((\d),(\d),0\)$", r"cl(\1,\2)", _SAME.get(name, name))


def _without_last(name: str) -> str | None:
    """The Clifford algebra without its last generator, where that squares to 0."""
    match = _CLIFFORD.fullmatch(name)
    if match is None or int(match[3] or 0) == 0:
        return None
    return _plain_name(f"cl({match[1]},{match[2]},{int(match[3]) - 1})")


def _known_product(table: Tensor, algorithm: tuple[list[list[int]], list[list[int]]]) -> Factors:
    """The factors of a known algorithm for a table."""
    left, right = (torch.tensor(rows, dtype=torch.float64).T.contiguous() for rows in algorithm)
    n, rank = left.shape
    products = (left[:, None, :] * right[None, :, :]).reshape(n * n, rank)
    result = torch.linalg.lstsq(products, table.permute(0, 2, 1).reshape(n * n, n)).solution
    return left, result.T.contiguous(), right


def _product_of(name: str) -> Factors:
    """The factors of a tensor product of algebras, in the basis of the table."""
    first, second = (fast_product(part) for part in _PRODUCTS[name])
    joint = tuple(
        torch.einsum("ir,js->jirs", f, g).flatten(2).flatten(0, 1) for f, g in zip(first, second, strict=True)
    )
    if name == "tessarine":
        return joint  # type: ignore[return-value]
    # Basis of the product: blades of the first two generators, times 1 or the volume element (the last blade).
    table = _table(name)
    basis = torch.cat([torch.eye(8, dtype=torch.float64)[:, :4], table[:4, :, 7].T], dim=1)  # a signed permutation
    return tuple(basis @ factor for factor in joint)  # type: ignore[return-value]


def _extended(factors: Factors) -> Factors:
    """The factors after a generator e more, e^2 = 0: (a + b e)(c + d e) = a c + (a d + b c*) e.

    The star changes the sign of the generators that e passes.
    """
    left, result, right = factors
    signs = torch.tensor([(-1.0) ** index.bit_count() for index in range(len(right))], dtype=torch.float64)
    none = torch.zeros_like(left)
    rows = (  # of a and b; of the coefficients of 1 and e; of c and d
        ((left, left, none), (none, none, left)),
        ((result, none, none), (none, result, result)),
        ((right, none, signs[:, None] * right), (none, right, none)),
    )
    return tuple(torch.cat([torch.cat(row, dim=1) for row in pair]) for pair in rows)  # type: ignore[return-value]


@functools.lru_cache(maxsize=64)
def fast_product(name: str) -> Factors:
    """The fewest products known here that multiply in a named algebra, T[i, p, q] = sum_r a[i, r] b[p, r] c[q, r].

    Complex and dual numbers need 3 products (Karatsuba), split-complex 2, quaternions 8, split-quaternions 7
    (they are the 2x2 matrices: Strassen), tessarines 6, Cl(3,0) 21, octonions 25 instead of 64 (found numerically).
    A generator more that squares to 0 takes at most three times the products.

    Args:
        name: of an algebra, as in ``multiplication_table``; for n = 16 a generator has to square to 0.

    Returns:
        a, b, c, each (n, R) in float64; not to be written to.

    Raises:
        OptionError: none is known.

    Source:
        Howell and Lafon 1975, The complexity of the quaternion product, Cornell TR 75-245 (8 products);
        Strassen 1969 (7 products); numerically by ``cp_decompose``.
    """
    name, table = _plain_name(name), _table(name)
    with torch.device("cpu"):  # whatever device is the default outside: products are kept
        if name in _ALGORITHMS:
            return _known_product(table, _ALGORITHMS[name])
        if name in _PRODUCTS:
            return _product_of(name)
        if name in _FOUND:
            rank, seed = _FOUND[name]
            factors, error = cp_decompose(table, rank, seed=seed)
            assert error <= FIXED_TOLERANCE, f"the search for a fast product of {name} ended at {error:.2g}"
            return factors
    smaller = _without_last(name)
    if smaller is None or expected_rank(smaller, 0) is None:
        raise OptionError(
            f"no fast product is known for algebra {name!r} of n = {len(table)}: choose one of n at most 8, or with "
            "one generator more, which squares to 0"
        )
    return _extended(fast_product(smaller))


#: Largest relative error of the decomposition of a fixed table, and of a learned one, that may stand for it.
FIXED_TOLERANCE, LEARNED_TOLERANCE = 1e-12, 1e-11
#: Largest ``cp.amplification`` that may stand for a learned table. The fp32 product errs by 4e-7 to 7.5e-7 times that,
#: relative to its largest entry (measured for random A, n = 2, 4, 8, widths 256 to 2048): by less than 1e-5 with room.
LARGEST_AMPLIFICATION = 8.0
_LARGEST_DIMENSION = 8  # the search is over 3 n R numbers: n = 16 would take minutes


def expected_rank(algebra: str | Table | None, n: int) -> int | None:
    """Number of products that a fast product will need, known without searching for it.

    Args:
        algebra: of the layer, None for a learned one.
        n: its dimension.

    Returns:
        the number; None where no fast product is on offer.
    """
    if isinstance(algebra, str):
        name = _plain_name(algebra)
        if name in _ALGORITHMS:
            return len(_ALGORITHMS[name][0])
        if name in _PRODUCTS:
            first, second = (expected_rank(part, 0) or 0 for part in _PRODUCTS[name])
            return first * second
        if name in _FOUND:
            return _FOUND[name][0]
        smaller = _without_last(name)
        rank = None if smaller is None else expected_rank(smaller, 0)
        return None if rank is None else 3 * rank
    return generic_rank(n) if algebra is None and 2 <= n <= _LARGEST_DIMENSION else None


def decompose(
    table: Tensor,
    rank: int | None = None,
    start: Factors | None = None,
    tolerance: float = LEARNED_TOLERANCE,
    most: int | None = None,
) -> tuple[Factors, float]:
    """Factors of any table, with as few products as are found.

    Args:
        table: (n, n, n), any values.
        rank: number of products; None tries the number that almost every table needs, then up to two more where there
            is no decomposition, or none in terms of moderate size.
        start: factors of a nearby table to begin with, such as those of the last evaluation; a few steps then do.
        tolerance: largest relative error of a decomposition that ends the search.
        most: number of products beyond which nothing is won; at least that which almost every table needs.

    Returns:
        the factors in float64, and their relative error; the best that was found, which may exceed ``tolerance``.
    """
    first = generic_rank(len(table))
    best: tuple[Factors, float] | None = None
    last = first + 2 if most is None else min(first + 2, most)
    for r in range(first, last + 1) if rank is None else (rank,):
        near = start if start is not None and start[0].shape[1] == r else None
        found = cp_decompose(table, r, start=near, restarts=4 if rank is None else 8)
        if best is None or rating(found, tolerance) < rating(best, tolerance):
            best = found
        if rating(best, tolerance) <= (tolerance, LARGEST_AMPLIFICATION):
            break
    assert best is not None
    return best
