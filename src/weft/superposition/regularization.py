"""What keeps a trunk an isometry: convolutions that keep inner products do not mix superposed inputs."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import weft.layers
from weft.errors import OptionError
from weft.modes import plain_precision

_CONVOLUTIONS = (nn.Conv2d, weft.layers.Conv2d)


def isometry_penalty(module: nn.Module) -> Tensor:
    r"""How far the two-dimensional convolutions of a module are from isometries.

    .. math:: R = \sum_l \tfrac12 \bigl\lVert W_l \star W_l - T \bigr\rVert_F^2

    For a weight of shape (O, I, k, k), with the first two axes swapped where I < O (so that the smaller one comes
    first), :math:`W \star W` is the convolution of W with itself at the stride of the layer, over all shifts by
    multiples of the stride; T is the identity at the tap of no shift and 0 elsewhere. At stride 1, R is 0 exactly where
    the layer keeps inner products, or its transpose does; at a larger stride where its transpose does, if I >= O.
    Groups count as separate convolutions. Taken in fp32 at least, also under autocast, and summed in float64.

    Args:
        module: all ``Conv2d`` in it count, of torch and of Weft; give the trunk of a network.

    Returns:
        R, a float64 scalar; 0 where there are no convolutions.

    Raises:
        OptionError: a dilated convolution of a stride other than 1.

    Source:
        Qi, You, Wang, Ma, Malik 2020, Deep Isometric Learning for Visual Recognition, section 3.2,
        https://arxiv.org/abs/2006.16992; stride and sums as in Menet et al. 2023, https://arxiv.org/abs/2312.02829.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> conv = nn.Conv2d(8, 8, 3, padding=1)
        >>> _ = nn.init.dirac_(conv.weight)
        >>> isometry_penalty(conv).item()
        0.0
    """
    terms = [_deviation(each) for each in module.modules() if isinstance(each, _CONVOLUTIONS)]
    if not terms:
        place = next(module.parameters(), None)
        return torch.zeros((), dtype=torch.float64, device=None if place is None else place.device)
    return torch.stack(terms).sum() / 2


def _deviation(layer: Any) -> Tensor:
    """Squared Frobenius norm, in float64."""
    stride, dilation, weight = layer.stride, layer.dilation, layer.weight
    if set(dilation) != {1} and set(stride) != {1}:
        raise OptionError(
            f"the isometry penalty knows no dilated convolution with a stride; got dilation={dilation}, stride={stride}"
        )
    total = weight.new_zeros((), dtype=torch.float64)
    with plain_precision(weight.device.type):  # near an isometry R is a small difference of large numbers
        for part in weight.to(torch.promote_types(weight.dtype, torch.float32)).chunk(layer.groups):
            w = part.transpose(0, 1) if part.shape[1] < part.shape[0] else part
            centre = [(side - 1) // step for side, step in zip(w.shape[2:], stride, strict=True)]
            padding = [shifts * step for shifts, step in zip(centre, stride, strict=True)]
            gram = F.conv2d(w, w, padding=padding, stride=stride)
            target = torch.zeros_like(gram)
            target[:, :, centre[0], centre[1]] = torch.eye(len(gram), device=gram.device, dtype=gram.dtype)
            total = total + (gram - target).square().sum(dtype=torch.float64)
    return total
