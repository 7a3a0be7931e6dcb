"""Quaternion weights: their initial laws, and the table of a layer whose input is purely imaginary.

    q = m (cos phi, u sin phi),        m = modulus, phi = phase, u = axis, a unit vector of space

A law draws the four components (r, i, j, k) of each weight; ``std`` is the root s of their mean variance. A quaternion
layer has every component once in each of its rows and columns, so s^2 is the variance of the entries of its matrix, and
the school's criteria are those of the layers: with I and O input and output *quaternions*,

    glorot    s = 1/sqrt(2 (I + O))    is    s^2 = 2/(4I + 4O),    init="glorot" of the layer
    he        s = 1/sqrt(2 I)          is    s^2 = 2/(4I),         init="he"
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from weft.errors import OptionError, UnknownNameError, nearest_name
from weft.parametrizations.algebra import multiplication_table


def quaternion_init(
    shape: Sequence[int],
    std: float = 1.0,
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Quaternions in polar form: modulus s*chi with 4 degrees of freedom, axis uniform on the sphere, phase uniform.

    The variance of the real part is then 2 s^2, that of each imaginary part 2/3 s^2.

    Args:
        shape: of each component.
        std: s, the root of the mean variance of the components.
        generator: of the random numbers; None takes torch's own.
        device: as in torch.
        dtype: as in torch.

    Returns:
        ``(4, *shape)``.

    Source:
        Gaudet and Maida 2018, Deep Quaternion Networks, on weight initialization, https://arxiv.org/abs/1712.04604;
        Parcollet et al. 2019, Quaternion Recurrent Neural Networks, https://arxiv.org/abs/1806.04418, and its code,
        pytorch-qnn. Differs from the code in the axis, which there is a normalised point of the cube and so prefers
        its corners, and in the random numbers, which there come from numpy's global state.

    Example:
        >>> q = quaternion_init((1000,), std=0.1, generator=torch.Generator().manual_seed(0))
        >>> tuple(q.shape), round(float(q.square().mean()), 3)
        ((4, 1000), 0.01)
    """
    options: dict[str, Any] = {"generator": generator, "device": device, "dtype": dtype}
    modulus = std * torch.randn((4, *shape), **options).norm(dim=0)
    phase = math.pi * (2 * torch.rand((*shape,), **options) - 1)
    axis = _directions(3, shape, options)
    return torch.cat([(modulus * phase.cos()).unsqueeze(0), modulus * phase.sin() * axis])


def unitary_init(
    shape: Sequence[int],
    std: float = 0.5,
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Quaternions of modulus 2s, uniform on their sphere: unit quaternions for s = 1/2.

    Args:
        shape: of each component.
        std: s, the root of the variance of the components.
        generator: of the random numbers; None takes torch's own.
        device: as in torch.
        dtype: as in torch.

    Returns:
        ``(4, *shape)``.

    Source:
        Parcollet et al. 2019, pytorch-qnn, ``unitary_init``. Differs from it in the law, there a normalised point of
        the hypercube, and in the scale: modulus 1 whatever the width lets a layer of 512 features grow its input
        elevenfold.

    Example:
        >>> unitary_init((3,)).norm(dim=0).round(decimals=4).tolist()
        [1.0, 1.0, 1.0]
    """
    return 2 * std * _directions(4, shape, {"generator": generator, "device": device, "dtype": dtype})


def random_init(
    shape: Sequence[int],
    std: float = 1.0,
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Independent components, uniform in -sqrt(3) s..sqrt(3) s: the law of ``weft.Linear`` itself.

    Args:
        shape: of each component.
        std: s, the root of the variance of the components.
        generator: of the random numbers; None takes torch's own.
        device: as in torch.
        dtype: as in torch.

    Returns:
        ``(4, *shape)``.

    Source:
        Parcollet et al. 2019, pytorch-qnn, ``random_init``. Differs from it in the scale, which there is worked out
        and not used.

    Example:
        >>> bool(random_init((1000,), std=0.1).abs().max() < 0.1 * 3**0.5)
        True
    """
    return std * 3**0.5 * (2 * torch.rand((4, *shape), generator=generator, device=device, dtype=dtype) - 1)


def _directions(sides: int, shape: Sequence[int], options: dict[str, Any]) -> Tensor:
    """Unit vectors, uniform on the sphere: the normal law knows no direction."""
    return torch.nn.functional.normalize(torch.randn((sides, *shape), **options), dim=0)


#: What ``weight_init`` may be.
INITIAL_LAWS: Mapping[str, Callable[..., Tensor]] = {
    "quaternion": quaternion_init,
    "unitary": unitary_init,
    "random": random_init,
}


def check_weight_init(weight_init: str | None, n: int) -> None:
    """Refuse a law that does not exist, or numbers that are no quaternions.

    Args:
        weight_init: name of the law, or None.
        n: components of one number.

    Raises:
        UnknownNameError: there is no such law; names the nearest.
        OptionError: n is not 4.
    """
    if weight_init is None:
        return
    if weight_init not in INITIAL_LAWS:
        raise UnknownNameError(
            f"weight_init must be one of {', '.join(INITIAL_LAWS)}, or None for the library's own law; "
            f"got {weight_init!r}{nearest_name(str(weight_init), INITIAL_LAWS)}"
        )
    if n != 4:
        raise OptionError(f"weight_init draws quaternions and needs n=4 components, got n={n}; leave it out")


def pure_input_table() -> Tensor:
    """The table of the quaternions for inputs without a real part: what is there in its place is not looked at.

    Returns:
        (4, 4, 4) in double precision, an ``algebra`` for the Kronecker family; ``table[:, :, 0]`` is 0.

    Example:
        >>> pure_input_table()[1].tolist()  # i times (_, x, y, z)
        [[0.0, -1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, -1.0], [0.0, 0.0, 1.0, 0.0]]
    """
    table = multiplication_table("quaternion", dtype=torch.float64)
    table[:, :, 0] = 0
    return table
