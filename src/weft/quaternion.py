"""Arithmetic of quaternions as pure functions of tensors.

A tensor holds m quaternions along one dimension ``dim`` of size 4m, component major: m real parts, then m of i, of j
and of k, as the quaternion layers do. ``dim`` is 1 for the channels of a convolution, -1 for features.

    q = r + i*I + j*J + k*K,    I^2 = J^2 = K^2 = I J K = -1,    v = (i, j, k)
"""

from __future__ import annotations

import torch
from torch import Tensor

from weft.errors import OptionError, SizeError

__all__ = [
    "conjugate",
    "dropout_mask",
    "hamilton_product",
    "modulus",
    "normalise",
    "parts",
    "quaternion_exp",
    "rotation_matrix",
]

#: cos(sqrt(s)) and sin(sqrt(s))/sqrt(s) near s = 0: both are power series in s, so that gradients exist at v = 0.
_COS = (1.0, -1 / 2, 1 / 24, -1 / 720, 1 / 40320)
_SINC = (1.0, -1 / 6, 1 / 120, -1 / 5040, 1 / 362880)
_NEAR_ZERO = 1e-3  # of s: the first left-out term is then below 1e-21


def parts(q: Tensor, dim: int = -1) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The components r, i, j and k, as views.

    Args:
        q: (..., 4m, ...).
        dim: where the components lie.

    Returns:
        four tensors (..., m, ...).

    Raises:
        SizeError: the size of the dimension is not divisible by 4.

    Example:
        >>> [part.tolist() for part in parts(torch.arange(8.0))]
        [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0], [6.0, 7.0]]
    """
    if q.dim() == 0 or q.shape[dim] % 4:
        raise SizeError(f"dimension {dim} of quaternions must be divisible by 4, got the shape {tuple(q.shape)}")
    r, i, j, k = q.unflatten(dim, (4, -1)).unbind(dim if dim >= 0 else dim - 1)
    return r, i, j, k


def hamilton_product(a: Tensor, b: Tensor, dim: int = -1) -> Tensor:
    """The product a b of quaternions, one with one; it does not commute.

    Args:
        a: (..., 4m, ...), left factors.
        b: (..., 4m, ...), right factors; other dimensions broadcast.
        dim: where the components lie; count from the end if the numbers of dimensions differ.

    Returns:
        (..., 4m, ...).

    Example:
        >>> i, j = torch.eye(4)[1], torch.eye(4)[2]
        >>> hamilton_product(i, j).tolist(), hamilton_product(j, i).tolist()
        ([0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, -1.0])
    """
    r, i, j, k = parts(a, dim)
    s, x, y, z = parts(b, dim)
    return torch.cat(
        [
            r * s - i * x - j * y - k * z,
            r * x + i * s + j * z - k * y,
            r * y - i * z + j * s + k * x,
            r * z + i * y - j * x + k * s,
        ],
        dim,
    )


def conjugate(q: Tensor, dim: int = -1) -> Tensor:
    """r - v; the conjugate of a product is the product of the conjugates in reverse.

    Args:
        q: (..., 4m, ...).
        dim: where the components lie.

    Returns:
        (..., 4m, ...).

    Example:
        >>> conjugate(torch.tensor([1.0, 2.0, 3.0, 4.0])).tolist()
        [1.0, -2.0, -3.0, -4.0]
    """
    r, i, j, k = parts(q, dim)
    return torch.cat([r, -i, -j, -k], dim)


def modulus(q: Tensor, dim: int = -1) -> Tensor:
    """sqrt(r^2 + i^2 + j^2 + k^2), with gradient 0 at 0.

    Args:
        q: (..., 4m, ...).
        dim: where the components lie.

    Returns:
        (..., m, ...).

    Example:
        >>> modulus(torch.tensor([1.0, 1.0, 1.0, 1.0])).tolist()
        [2.0]
    """
    return torch.linalg.vector_norm(torch.stack(parts(q, dim)), dim=0)


def normalise(q: Tensor, dim: int = -1, eps: float = 1e-12) -> Tensor:
    """``q / |q|``; quaternions shorter than ``eps`` are divided by it instead, so that 0 stays 0.

    Args:
        q: (..., 4m, ...).
        dim: where the components lie.
        eps: smallest divisor, above 0.

    Returns:
        (..., 4m, ...).

    Example:
        >>> normalise(torch.tensor([0.0, 3.0, 0.0, 4.0])).tolist()
        [0.0, 0.6000000238418579, 0.0, 0.800000011920929]
    """
    size = modulus(q, dim).clamp(min=eps)
    return torch.cat([part / size for part in parts(q, dim)], dim)


def quaternion_exp(q: Tensor, dim: int = -1) -> Tensor:
    """``e^q = e^r (cos|v| + v/|v| sin|v|)``, with the right gradients also at v = 0.

    Args:
        q: (..., 4m, ...).
        dim: where the components lie.

    Returns:
        (..., 4m, ...); a unit quaternion where r = 0.

    Example:
        >>> quaternion_exp(torch.tensor([0.0, torch.pi, 0.0, 0.0])).round().abs().tolist()
        [1.0, 0.0, 0.0, 0.0]
    """
    r, i, j, k = parts(q, dim)
    square = i * i + j * j + k * k
    near = square < _NEAR_ZERO
    safe = torch.where(near, 1.0, square).sqrt()  # the branch not taken must have a finite gradient too
    cos = torch.where(near, _series(_COS, square), safe.cos())
    sinc = torch.where(near, _series(_SINC, square), safe.sin() / safe)
    growth = r.exp()
    return torch.cat([growth * cos, *(growth * sinc * part for part in (i, j, k))], dim)


def _series(coefficients: tuple[float, ...], s: Tensor) -> Tensor:
    total = torch.full_like(s, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total = total * s + coefficient
    return total


def rotation_matrix(q: Tensor, dim: int = -1) -> Tensor:
    """The rotation R of space with ``R v = q v q* / |q|^2``; q and any multiple of it give the same one.

    Args:
        q: (..., 4m, ...), of any length; 0 gives the identity.
        dim: where the components lie.

    Returns:
        (..., m, ..., 3, 3): the matrices in two new dimensions at the end.

    Source:
        Euler 1771 and Rodrigues 1840; Shuster 1993, A Survey of Attitude Representations, section on the Euler
        symmetric parameters (there for q*).

    Example:
        >>> rotation_matrix(torch.tensor([1.0, 0.0, 0.0, 1.0]))[0].tolist()  # a quarter turn about z
        [[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    """
    return rotation_of_parts(*parts(q, dim))


def rotation_of_parts(r: Tensor, i: Tensor, j: Tensor, k: Tensor) -> Tensor:
    """``rotation_matrix`` of components that are separate tensors.

    Args:
        r: real parts, any shape.
        i: of the same shape.
        j: of the same shape.
        k: of the same shape.

    Returns:
        (..., 3, 3).
    """
    square = r * r + i * i + j * j + k * k
    twice = 2 / torch.where(square > 0, square, 1.0)
    ii, jj, kk = twice * i * i, twice * j * j, twice * k * k
    ij, ik, jk = twice * i * j, twice * i * k, twice * j * k
    ri, rj, rk = twice * r * i, twice * r * j, twice * r * k
    entries = [1 - jj - kk, ij - rk, ik + rj, ij + rk, 1 - ii - kk, jk - ri, ik - rj, jk + ri, 1 - ii - jj]
    return torch.stack(entries, -1).unflatten(-1, (3, 3))


def dropout_mask(q: Tensor, p: float, dim: int = -1, generator: torch.Generator | None = None) -> Tensor:
    """Factors that drop whole quaternions: the four components of one share their fate.

    Multiply by it in training only. Dropping single components instead would turn the quaternions that stay.

    Args:
        q: (..., 4m, ...), only its shape, device and dtype matter.
        p: probability that a quaternion is dropped, in [0, 1).
        dim: where the components lie.
        generator: of the random numbers; None takes torch's own.

    Returns:
        (..., 4m, ...), 0 or 1/(1 - p).

    Raises:
        OptionError: ``p`` is not in [0, 1).

    Example:
        >>> dropout_mask(torch.ones(8), 0.0).tolist()
        [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    """
    if not 0 <= p < 1:
        raise OptionError(f"p must be in [0, 1), the probability that a quaternion is dropped; got {p}")
    part = torch.empty_like(parts(q, dim)[0], requires_grad=False).bernoulli_(1 - p, generator=generator)
    return torch.cat([part / (1 - p)] * 4, dim)
