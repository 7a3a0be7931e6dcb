"""Linear sub-layers with skips and batch norm, put together to one: a recurrence over the nodes between them.

Node 0 is the input, node m the output of sub-layer m and of the skips that end there:

    y_m = N_m(W_m * y_{m-1} + b_m) + sum over skips a -> m of  G_am * shift(y_a)

In the input, y_m = K_m * x + c_m, where K_0 is the identity and

    K_m = W_m o K_{m-1},    c_m = W_m c_{m-1} + b_m        (W c: the kernel summed over its positions)
    batch norm with running statistics: rows of K_m and c_m times gamma / sqrt(var + eps), and so on
    each skip adds G_am o K_a, embedded in the kernel size of m, and G_am c_a

Every (K_m, c_m) is made once. A linear layer is the case without spatial dimensions. Kernels are in torch's layout
(out, in/groups, *size). Their composition is exact if what is between sub-layers is neither padded nor strided, and
all have one dilation.

Letters: O, H, I = channels of output, middle and input; G = groups; L = number of sub-layers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


class Affine(NamedTuple):
    """A sub-layer, or the way from the input to a node; kernel None is the identity."""

    kernel: Tensor | None
    bias: Tensor | None


def compose(outer: Tensor, inner: Tensor | None, groups: int = 1) -> Tensor:
    """The kernel of one convolution after another, or of one linear layer after another.

    Args:
        outer: (O, H/G, *s), of what comes second.
        inner: (H, I/G, *r), of what comes first; None for the identity.
        groups: G, of both.

    Returns:
        (O, I/G, *(s + r - 1)).

    Example:
        >>> import torch
        >>> tuple(compose(torch.randn(8, 6, 3, 1), torch.randn(6, 4, 5, 2)).shape)
        (8, 4, 7, 2)
    """
    if inner is None:
        return outer
    (rows, middle), columns = outer.shape[:2], inner.shape[1]
    outer_size, inner_size = outer.shape[2:], inner.shape[2:]
    if math.prod(outer_size) == 1:  # one matrix product per group
        stacked = inner.reshape(groups, middle, columns * math.prod(inner_size))
        return _mix(outer.reshape(groups, rows // groups, middle), stacked).reshape(rows, columns, *inner_size)
    if math.prod(inner_size) == 1:
        first = outer.reshape(groups, rows // groups, middle, math.prod(outer_size))
        both = torch.einsum("gohs,ghi->gois", first, inner.reshape(groups, middle, columns))
        return both.reshape(rows, columns, *outer_size)
    # sum_s outer[o, h, s] inner[h, i, t - s] over all t is what a transposed convolution computes.
    first = outer.reshape(groups, rows // groups, middle, *outer_size).transpose(1, 2).flatten(0, 1)
    return _TRANSPOSED[len(outer_size)](inner.transpose(0, 1), first, groups=groups).transpose(0, 1)


def _mix(matrices: Tensor, columns: Tensor) -> Tensor:
    """Products (G, O/G, H/G) (G, H/G, n); one plain product where there is one group."""
    if len(matrices) == 1:
        return torch.mm(matrices[0], columns[0])
    return torch.bmm(matrices, columns)


def pass_bias(kernel: Tensor, bias: Tensor | None, groups: int = 1) -> Tensor | None:
    """What a convolution without padding makes of a constant.

    Args:
        kernel: (O, H/G, *s).
        bias: (H,), one constant per channel; None for zeros.
        groups: G.

    Returns:
        (O,), or None.
    """
    if bias is None:
        return None
    sums = kernel.flatten(2).sum(2) if kernel.dim() > 2 else kernel
    matrices = sums.reshape(groups, len(kernel) // groups, kernel.shape[1])
    return _mix(matrices, bias.reshape(groups, kernel.shape[1], 1)).reshape(-1)


def identity_kernel(channels: int, groups: int, like: Tensor) -> Tensor:
    """The 1x1 kernel that changes nothing.

    Args:
        channels: of input and output.
        groups: G.
        like: a kernel, whose number of dimensions, device and dtype it takes.

    Returns:
        (channels, channels/G, 1, ...).
    """
    block = torch.eye(channels // groups, device=like.device, dtype=like.dtype).repeat(groups, 1)
    return block.reshape(*block.shape, *(1,) * (like.dim() - 2))


def embed(kernel: Tensor, size: Sequence[int]) -> Tensor:
    """A kernel after a Dirac kernel, whose one is at the centre ``k // 2``.

    Args:
        kernel: (O, I/G, *r).
        size: of the Dirac kernel, k per dimension.

    Returns:
        (O, I/G, *(r + size - 1)), zero around the kernel.
    """
    if math.prod(size) == 1:
        return kernel
    margins = [margin for k in reversed(size) for margin in (k // 2, k - 1 - k // 2)]
    return F.pad(kernel, margins)


def fold_batch_norm(kernel: Tensor, bias: Tensor | None, norm: nn.modules.batchnorm._NormBase) -> tuple[Tensor, Tensor]:
    """A layer followed by a batch norm in evaluation, as one layer.

    Args:
        kernel: (O, I/G, *r).
        bias: (O,) or None.
        norm: any batch norm with running statistics; its own eps counts, and of several sets of statistics the one
            that is in use.

    Returns:
        kernel and bias; there is a bias, whether there was one or not.
    """
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None and variance is not None, "the layers make batch norms with running statistics only"
    if mean.dim() == 2:
        row: Any = norm.row
        mean, variance = mean[row], variance[row]
    scale = torch.rsqrt(variance + norm.eps)
    scale = scale if norm.weight is None else scale * norm.weight
    bias = (-mean if bias is None else bias - mean) * scale
    return kernel * scale.reshape(-1, *(1,) * (kernel.dim() - 1)), bias if norm.bias is None else bias + norm.bias


def segment_size(sizes: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Kernel size of convolutions that run one after the other: sum of the sizes, minus their number, plus 1.

    Args:
        sizes: one per convolution, each with one number per dimension.

    Returns:
        the size, per dimension.
    """
    return tuple(sum(of_dimension) - len(of_dimension) + 1 for of_dimension in zip(*sizes, strict=True))


def skip_pairs(intervals: Sequence[int], depth: int) -> list[tuple[int, int]]:
    """From where to where skips lead.

    Args:
        intervals: numbers n of sub-layers that are skipped: m - n to m for m = n, 2n, ... up to the depth; -1 for all.
        depth: L.

    Returns:
        pairs (start, end) of nodes, each once.

    Example:
        >>> skip_pairs([2, -1, 2], 5)
        [(0, 2), (2, 4), (0, 5)]
    """
    lengths = sorted({depth if n == -1 else n for n in intervals})
    return [(m - n, m) for n in lengths for m in range(n, depth + 1, n)]


def collapse(
    sublayers: Sequence[Affine],
    norms: Sequence[nn.modules.batchnorm._NormBase],
    skips: Mapping[tuple[int, int], Tensor | None],
    groups: int = 1,
) -> Affine:
    """Kernel and bias of the one layer that a chain of sub-layers with skips and batch norm is in evaluation.

    Args:
        sublayers: (W_m, b_m).
        norms: one per sub-layer, or none at all.
        skips: (start, end) to the 1x1 kernel G, None for the identity.
        groups: G.

    Returns:
        kernel (O, I/G, *size) and bias (O,), None if there is nothing to add.
    """
    kernels = [sublayer.kernel for sublayer in sublayers]
    sizes = [kernel.shape[2:] for kernel in kernels if kernel is not None]
    nodes = [Affine(None, None)]
    for end, (outer, own_bias) in enumerate(sublayers, start=1):
        assert outer is not None, "a sub-layer has a kernel"
        kernel = compose(outer, nodes[-1].kernel, groups)
        bias = _add(pass_bias(outer, nodes[-1].bias, groups), own_bias)
        if norms:
            kernel, bias = fold_batch_norm(kernel, bias, norms[end - 1])
        for (start, stop), mixing in skips.items():
            if stop != end:
                continue
            way, passed = nodes[start]
            if mixing is not None:
                way, passed = compose(mixing, way, groups), pass_bias(mixing, passed, groups)
            elif way is None:
                way = identity_kernel(len(kernel), groups, kernel)
            kernel = kernel + embed(way, segment_size(sizes[start:end]))
            bias = _add(bias, passed)
        nodes.append(Affine(kernel, bias))
    return nodes[-1]


def _add(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


def collapse_macs(sublayers: Sequence[Sequence[int]]) -> int:
    """Multiply-adds of the compositions along a chain.

    Args:
        sublayers: shape of every kernel, (out, in/groups, *size).

    Returns:
        the number.

    Example:
        >>> collapse_macs([(8, 4), (6, 8)]) == 6 * 8 * 4
        True
    """
    columns, positions, macs = sublayers[0][1], sublayers[0][2:], 0
    for rows, middle, *size in sublayers[1:]:
        macs += rows * middle * math.prod(size) * columns * math.prod(positions)
        positions = segment_size([positions, size])
    return macs
