"""Canonical polyadic (CP) decomposition of small tensors: the algorithm that multiplies in an algebra.

    T[i, p, q] = sum_{r=1..R} a[i, r] b[p, r] c[q, r]

The smallest R is the tensor rank of the bilinear map with the table T: the number of products it needs. Strassen's
seven products of 2x2 matrices and Gauss's three of complex numbers are such decompositions.

Letters: n = side of the tensor; R = rank; i, p, q, r run over them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: Terms this little larger than their sum need no second start: fp32 products in them err by less than 4e-6.
_CALM = 4.0
#: Weight of the squared terms, beside the squared error: in the search for calm factors, and for those of a tensor that
#: has none of the rank, where it costs about a thousandth of the error and keeps the terms below 8 times their sum.
_CALMING, _SLIGHT_CALMING = 1e-2, 1e-5
#: Relative error up to which a tensor counts as one of the rank, with rounding errors of single precision.
_NEARLY_EXACT = 1e-5

Factors = tuple[Tensor, Tensor, Tensor]


def compose(factors: Factors) -> Tensor:
    """The tensor of given factors.

    Args:
        factors: a, b, c, each (n, R).

    Returns:
        (n, n, n).
    """
    return torch.einsum("ir,pr,qr->ipq", *factors)


def generic_rank(n: int) -> int:
    """The rank that almost every real (n, n, n) tensor needs at least: count equations and unknowns.

    Args:
        n: side of the tensor, at least 1.

    Returns:
        the number of products; 5 for n = 3, the one exception (Strassen 1983).
    """
    return 5 if n == 3 else math.ceil(n**3 / (3 * n - 2))


def cp_decompose(
    tensor: Tensor,
    rank: int,
    *,
    start: Factors | None = None,
    restarts: int = 8,
    iterations: int = 150,
    tolerance: float = 1e-13,
    seed: int = 0,
    approximate: bool = False,
) -> tuple[Factors, float]:
    """A decomposition of given rank, in terms as small as are easily found, by Levenberg-Marquardt steps in float64.

    Alternating least squares stalls on these tensors; the damped Gauss-Newton step on all factors at once does not.
    The decompositions of most tensors are a continuum, in which the terms can be much larger than their sum. So the
    steps from a random start minimise first the error and the size of the terms together, then the error alone.

    Args:
        tensor: (n, n, n); also rectangular.
        rank: R, at least 1.
        start: factors to begin with, (n, R) each; random starts follow where they lead nowhere, or to large terms.
        restarts: number of random starts. The first that converges to terms of moderate size ends the search, else the
            calmer of two.
        iterations: steps per start.
        tolerance: relative error at which a start has converged.
        seed: of the random starts, so that the result is reproducible.
        approximate: where no start leads to a decomposition, return factors in terms of moderate size. Without, they
            are those of the smallest error found, which often has no minimum, but falls for ever while the terms grow.

    Returns:
        the factors, with columns of equal norm, and the relative error ||composed - tensor|| / ||tensor||.

    Source:
        Levenberg-Marquardt for CP: Tomasi and Bro 2006, A comparison of algorithms for fitting the PARAFAC model,
        section 3.4; damping by Nielsen 1999, Damping Parameter in Marquardt's Method, equation 2.5.

    Example:
        >>> table = torch.zeros(2, 2, 2)  # complex multiplication
        >>> table[0, 0, 0] = table[0, 1, 1] = table[1, 1, 0] = 1; table[1, 0, 1] = -1
        >>> cp_decompose(table, rank=3)[1] < 1e-10, cp_decompose(table, rank=2)[1] > 0.1
        (True, True)
    """
    tensor = tensor.detach().to("cpu", torch.float64)
    size = float(tensor.norm())
    if size == 0:
        return tuple(torch.zeros(side, rank, dtype=torch.float64) for side in tensor.shape), 0.0  # type: ignore[return-value]
    generator = torch.Generator().manual_seed(seed)
    best: tuple[Factors, float] | None = None
    converged = 0
    for attempt in range(restarts + 1):
        if attempt == 0:
            if start is None:
                continue
            near: Factors = tuple(factor / size ** (1 / 3) for factor in start)
        else:
            begin = tuple(torch.randn(side, rank, dtype=torch.float64, generator=generator) for side in tensor.shape)
            near, _ = _levenberg_marquardt(tensor / size, begin, iterations, tolerance, 1.0, _CALMING, 1e-3)  # type: ignore[arg-type]
        patience = 1e-3 if approximate else 0.0
        found = _levenberg_marquardt(tensor / size, near, iterations, tolerance, 1e-3, patience=patience)
        if approximate and found[1] > _NEARLY_EXACT:
            calm = cp_approximate(tensor / size, near)
            found = _levenberg_marquardt(tensor / size, calm[0], iterations, tolerance, 1e-3, patience=patience)
            found = found if found[1] <= _NEARLY_EXACT else calm
        converged += found[1] <= tolerance
        if best is None or rating(found, tolerance) < rating(best, tolerance):
            best = found
        if best[1] <= tolerance and (converged == 2 or amplification(best[0]) < _CALM):
            break
    assert best is not None
    return _balance(best[0], size), best[1]


def _levenberg_marquardt(
    tensor: Tensor,
    factors: Factors,
    iterations: int,
    tolerance: float,
    damping: float,
    calming: float = 0.0,
    patience: float = 0.0,
) -> tuple[Factors, float]:
    """Damped Gauss-Newton on all three factors, to the least ||error||^2 + calming ||terms||^2; the tensor has norm 1.

    Returns the factors and the root of that sum. It ends where a step gains less than the share ``patience``.
    """

    def residual_of(factors: Factors) -> Tensor:
        error = (compose(factors) - tensor).flatten()
        return torch.cat([error, calming**0.5 * _terms(factors)]) if calming else error

    residual = residual_of(factors)
    error = float(residual.norm())
    growth = 2.0
    for _ in range(iterations):
        if error <= tolerance:
            break
        before = error
        jacobian = _jacobian(factors)  # (n^3, 3 n R)
        if calming:
            jacobian = torch.cat([jacobian, calming**0.5 * _jacobian_of_terms(factors)])
        # Push-through: the step from the smaller of the two Gram matrices.
        wide = jacobian.shape[0] <= jacobian.shape[1]
        normal = jacobian @ jacobian.T if wide else jacobian.T @ jacobian
        gradient = jacobian.T @ residual
        right = residual if wide else gradient
        scale = float(normal.diagonal().mean())
        while True:
            damped = normal + damping * scale * torch.eye(len(normal), dtype=normal.dtype)
            factor, info = torch.linalg.cholesky_ex(damped)
            if int(info) == 0:
                solution = torch.cholesky_solve(right[:, None], factor)[:, 0]
                step = -(jacobian.T @ solution if wide else solution)
                trial = _add(factors, step)
                new_residual = residual_of(trial)
                new_error = float(new_residual.norm())
                predicted = -float(step @ gradient) + damping * scale * float(step @ step)
                gain = (error**2 - new_error**2) / max(predicted, 1e-300)
                if gain > 0:
                    factors, residual, error = trial, new_residual, new_error
                    damping = max(damping * max(1 / 3, 1 - (2 * gain - 1) ** 3), 1e-15)
                    growth = 2.0
                    break
            damping, growth = damping * growth, growth * 2
            if damping > 1e12:  # no step goes down any more
                return factors, error
        if before - error < patience * before:
            break
    return factors, error


def _terms(factors: Factors) -> Tensor:
    """Norm of every term, (R,)."""
    return factors[0].norm(dim=0) * factors[1].norm(dim=0) * factors[2].norm(dim=0)


def _jacobian(factors: Factors) -> Tensor:
    """Derivative of the composed tensor by all factor entries, (n^3, 3 n R)."""
    a, b, c = factors
    rows, columns, depth = len(a), len(b), len(c)
    eye_a, eye_b, eye_c = (torch.eye(side, dtype=a.dtype) for side in (rows, columns, depth))
    by_a = torch.einsum("ij,pr,qr->ipqjr", eye_a, b, c)
    by_b = torch.einsum("ir,pj,qr->ipqjr", a, eye_b, c)
    by_c = torch.einsum("ir,pr,qj->ipqjr", a, b, eye_c)
    return torch.cat([d.reshape(rows * columns * depth, -1) for d in (by_a, by_b, by_c)], dim=1)


def _jacobian_of_terms(factors: Factors) -> Tensor:
    """Derivative of the norms of the terms by all factor entries, (R, 3 n R)."""
    terms = _terms(factors)
    parts = [f * (terms / f.square().sum(dim=0).clamp(min=1e-300)) for f in factors]
    return torch.cat([torch.diag_embed(part).transpose(0, 1).flatten(1) for part in parts], dim=1)


def _add(factors: Factors, step: Tensor) -> Factors:
    parts = step.split([f.numel() for f in factors])
    return tuple(f + part.reshape(f.shape) for f, part in zip(factors, parts, strict=True))


def _balance(factors: Factors, size: float) -> Factors:
    """Equal norms of a_r, b_r and c_r: the product is what it was, its rounding errors are smallest."""
    norms = [f.norm(dim=0).clamp(min=1e-300) for f in factors]
    common = (norms[0] * norms[1] * norms[2] * size).pow(1 / 3)
    return tuple(f / norm * common for f, norm in zip(factors, norms, strict=True))


def amplification(factors: Factors) -> float:
    """How much larger the terms are than their sum: rounding errors of the fast product grow by this factor.

    Args:
        factors: a, b, c.

    Returns:
        sum of the absolute terms over the norm of the tensor, at least about 1.
    """
    return float(_terms(factors).norm() / compose(factors).norm().clamp(min=1e-300))


def cp_approximate(tensor: Tensor, start: Factors, iterations: int = 50) -> tuple[Factors, float]:
    """Factors whose product is near a tensor, in terms of moderate size, whether or not there are exact ones.

    Args:
        tensor: (n, n, n); also rectangular.
        start: a, b and c to begin with.
        iterations: largest number of steps.

    Returns:
        the factors, with columns of equal norm, in float64, and the relative error.
    """
    tensor = tensor.detach().to("cpu", torch.float64)
    size = float(tensor.norm()) or 1.0
    begin: Factors = tuple(f.to("cpu", torch.float64) / size ** (1 / 3) for f in start)
    factors, _ = _levenberg_marquardt(tensor / size, begin, iterations, 0.0, 1e-3, _SLIGHT_CALMING, 1e-5)
    return _balance(factors, size), float((compose(factors) - tensor / size).norm())


def rating(found: tuple[Factors, float], tolerance: float) -> tuple[float, float]:
    """What makes one decomposition better than another: an error that matters, then the size of the terms.

    Args:
        found: factors and their relative error.
        tolerance: relative error that does not matter.

    Returns:
        numbers to compare in this order; less is better.
    """
    return max(found[1], tolerance), amplification(found[0])
