"""EPConv1d/2d/3d: a convolution in the form of several.

The first sub-layer pads, the last one strides, all have one dilation, and nothing in between is padded: so the
sub-layers and the one convolution that they are agree everywhere, also at the borders. Sizes add up to

    K = k_1 + ... + k_L - L + 1

A skip is a convolution with the Dirac kernel of the composed size, its one at K // 2, with the same stride and
padding. So is what the sub-layers do when they run one by one: they crop the earlier node accordingly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft.errors import OptionError, SizeError
from weft.modes import is_tracing
from weft.overparam.base import BatchNorm, EPLayer, hidden_channels
from weft.overparam.compose import segment_size

Size = int | tuple[int, ...]
KernelSizes = int | Sequence[int | Sequence[int]]

_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_GEOMETRY = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")


def same_padding(
    kernel_sizes: int | Sequence[int | Sequence[int]], dilation: int | Sequence[int] = 1
) -> int | tuple[int, ...]:
    """The padding at stride 1 with which the output is as large as the input, for sub-layers of these kernel sizes.

    Args:
        kernel_sizes: one per sub-layer, each a number or one per dimension; or a single number.
        dilation: of all sub-layers, one number or one per dimension.

    Returns:
        d*(K - 1)/2: a number where all is given by numbers, else one per dimension.

    Raises:
        SizeError: d*(K - 1) is odd, so that both sides would need different paddings; ``padding="same"`` gives them.

    Example:
        >>> same_padding([5, 3, 1]), same_padding([(1, 7), 3], dilation=2)
        (3, (2, 8))
    """
    sizes = [kernel_sizes] if isinstance(kernel_sizes, int) else list(kernel_sizes)
    scalar = isinstance(dilation, int) and all(isinstance(size, int) for size in sizes)
    dims = max(1 if isinstance(size, int) else len(size) for size in [*sizes, dilation])
    spread = [_spread(size, dims, "kernel_sizes") for size in sizes]
    spans = [d * (k - 1) for k, d in zip(segment_size(spread), _spread(dilation, dims, "dilation"), strict=True)]
    if any(span % 2 for span in spans):
        raise SizeError(
            f"kernel_sizes {list(sizes)} with dilation {dilation} span {[span + 1 for span in spans]} positions; an "
            f"even span has no symmetric same padding: pass padding='same', or make it odd"
        )
    return spans[0] // 2 if scalar else tuple(span // 2 for span in spans)


def _spread(size: int | Sequence[int], dims: int, argument: str) -> tuple[int, ...]:
    """One number per dimension."""
    spread = (size,) * dims if isinstance(size, int) else tuple(size)
    if len(spread) != dims:
        raise SizeError(f"{argument} must have one number, or one per dimension ({dims}); got {size}")
    return spread


class _EPConv(EPLayer):
    """What the three share."""

    _keeps_gradient = True
    _dims: ClassVar[int]
    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: str | tuple[int, ...]
    dilation: tuple[int, ...]
    padding_mode: str
    _reversed_padding_repeated_twice: list[int]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_sizes: KernelSizes = (3, 1),
        padding: str | Size = 1,
        stride: Size = 1,
        *,
        depth: int = 2,
        width: float = 1,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        batch_norm: BatchNorm = False,
        residual: bool = False,
        residual_intervals: int | Sequence[int] = 2,
        residual_mode: str = "none",
        negative_slope: float = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if min(in_channels, out_channels) < 1:
            raise SizeError(f"in_channels and out_channels must be at least 1, got {in_channels} and {out_channels}")
        self.kernel_sizes = self._checked_sizes(kernel_sizes, depth)
        depth = len(self.kernel_sizes)
        plain: Any = self.torch_class
        try:  # torch's own layer checks and completes the geometry
            effective = plain(
                in_channels, out_channels, segment_size(self.kernel_sizes), stride, padding, dilation, groups,
                padding_mode=padding_mode, device="meta",
            )  # fmt: skip
        except ValueError as error:
            raise SizeError(f"{type(self).__name__}: {error}") from error
        for name in (*_GEOMETRY, "_reversed_padding_repeated_twice"):
            setattr(self, name, getattr(effective, name))
        hidden = hidden_channels(out_channels, width, depth, groups)
        self.width = width
        margins = self._reversed_padding_repeated_twice[::-1]
        self._pads_itself = padding_mode == "zeros" and margins[::2] == margins[1::2]
        channels = [in_channels, *[hidden] * (depth - 1), out_channels]
        layers = [
            plain(
                channels[index], channels[index + 1], size, dilation=self.dilation, groups=groups, bias=bias,
                stride=self.stride if index == depth - 1 else 1,
                padding=tuple(margins[::2]) if index == 0 and self._pads_itself else 0,
                device=device, dtype=dtype,
            )
            for index, size in enumerate(self.kernel_sizes)
        ]  # fmt: skip
        self._set_up(layers, channels, batch_norm, residual, residual_intervals, residual_mode, negative_slope)

    def _checked_sizes(self, kernel_sizes: KernelSizes, depth: int) -> tuple[tuple[int, ...], ...]:
        """One size per sub-layer and dimension."""
        if isinstance(kernel_sizes, int):
            if depth < 1:
                raise OptionError(f"depth must be at least 1, got {depth}")
            kernel_sizes = [kernel_sizes, *[1] * (depth - 1)]
        sizes = tuple(_spread(size, self._dims, "every size of kernel_sizes") for size in kernel_sizes)
        if not sizes or min(min(size) for size in sizes) < 1:
            raise SizeError(f"kernel_sizes must hold at least one size, each at least 1; got {kernel_sizes}")
        return sizes

    def _make_skip(self, start_channels: int, end_channels: int, common: dict[str, Any]) -> nn.Module:
        plain: Any = self.torch_class
        return plain(start_channels, end_channels, 1, groups=self.groups, bias=False, **common)

    def _strides(self) -> int:
        return math.prod(self.stride)

    def _arguments(self) -> dict[str, Any]:
        return {**{name: getattr(self, name) for name in _GEOMETRY}, "bias": self._has_bias}

    @classmethod
    def _arguments_of(cls, module: Any, depth: int) -> dict[str, Any]:
        geometry = {name: getattr(module, name) for name in _GEOMETRY if name != "kernel_size"}
        sizes = [tuple(module.kernel_size), *[1] * (depth - 1)]
        return {**geometry, "kernel_sizes": sizes, "bias": module.bias is not None}

    def _rows(self, x: Tensor) -> int:
        rows = x.shape[0] if x.dim() == self._dims + 2 else 1
        margins = self._reversed_padding_repeated_twice[::-1]
        for index, size in enumerate(x.shape[-self._dims :]):
            span = self.dilation[index] * (self.kernel_size[index] - 1)
            padded = size + margins[2 * index] + margins[2 * index + 1]
            rows = rows * ((padded - span - 1) // self.stride[index] + 1)
        return rows

    def _run(self, x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
        padding: str | Size = self.padding
        if not self._pads_itself:
            x, padding = self._padded(x, always=True), 0
        return _CONVOLUTIONS[self._dims](x, kernel, bias, self.stride, padding, self.dilation, self.groups)

    def _padded(self, x: Tensor, always: bool) -> Tensor:
        if self._pads_itself and not always:
            return x
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        return F.pad(x, self._reversed_padding_repeated_twice, mode=mode)

    def _cropped(self, x: Tensor, like: Tensor, start: int, end: int) -> Tensor:
        index: list[slice] = []
        for dim, k in enumerate(segment_size(self.kernel_sizes[start:end])):
            step = self.stride[dim] if end == self.depth else 1
            first = self.dilation[dim] * (k // 2)
            index.append(slice(first, first + step * (like.shape[dim - self._dims] - 1) + 1, step))
        places: tuple[Any, ...] = (..., *index)
        return x[places]

    def _normalised(self, x: Tensor, norm: nn.Module) -> Tensor:
        # What torch.fx traces must have a batch: it records no branches.
        return norm(x) if is_tracing() or x.dim() == self._dims + 2 else norm(x.unsqueeze(0)).squeeze(0)


class EPConv1d(_EPConv):
    """``torch.nn.Conv1d`` in the form of several convolutions; takes the arguments of ``weft.EPConv2d``.

    Example:
        >>> import torch, weft
        >>> layer = weft.EPConv1d(4, 8, [5, 3, 1], padding=3)
        >>> tuple(layer(torch.randn(2, 4, 20)).shape)
        (2, 8, 20)
    """

    torch_class, _norm_class, _dims = nn.Conv1d, nn.BatchNorm1d, 1


class EPConv2d(_EPConv):
    """``torch.nn.Conv2d`` in the form of L convolutions with nothing but skips and batch norms between them.

        W = W_L o ... o W_1,    W_1 (H, I/G, k_1),  W_2 ... W_{L-1} (H, H/G, k),  W_L (O, H/G, k_L)

    The functions are those of one convolution of kernel size K = k_1 + ... + k_L - L + 1. The first sub-layer pads,
    the last one strides, so that this holds at the borders too. What it is good for is said at ``weft.EPLinear``.

    Args:
        in_channels: I.
        out_channels: O.
        kernel_sizes: a number k for sub-layers k, 1, ..., 1, as many as ``depth``; or a list, one entry per sub-layer,
            each a number or one per dimension. A list overrides ``depth``.
        padding: of the effective convolution, as in torch: number, one per dimension, ``"same"`` or ``"valid"``;
            ``weft.overparam.same_padding(kernel_sizes)`` is the symmetric one that keeps the size.
        stride: of the effective convolution.
        depth: L, at least 1.
        width: H over O, H = int(O * width), a multiple of G.
        dilation: of all sub-layers and so of the effective convolution.
        groups: G, of all sub-layers.
        bias: whether every sub-layer has a bias.
        padding_mode: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``.
        batch_norm: True puts a batch norm after every sub-layer, and then training runs them one by one; ``"output"``
            puts one after the whole layer, which is put together in training too.
        residual: whether skips add earlier nodes to later ones.
        residual_intervals: how many sub-layers a skip passes over, -1 for all; a list for several at once. A skip of
            interval n ends after sub-layers n, 2n, ... It is added after the batch norm, so that y = x + BN(F(x)).
        residual_mode: ``"none"`` adds the node itself, ``"learn"`` a learned 1x1 convolution G of it without bias. The
            skip reads position K // 2 of the kernel that it passes over.
        negative_slope: of the leaky ReLU that follows, for the initial gain of the last sub-layer.
        device: as in torch.
        dtype: as in torch.

    Shape:
        as ``torch.nn.Conv2d`` with kernel size K.

    Parameters stored:
        layers.N.weight, layers.N.bias; norms.N.* or norm.*; skips.START_END.weight.

    Initial law:
        normal with variance 1/fan_out, counted within a group, the last one 2/(1 + negative_slope^2) times that;
        biases uniform within 1/sqrt(fan_in); batch norms 1 and 0.

    Cost:
        that of the sub-layers, or that of one convolution after the composition of the kernels; the cheaper by
        multiply-adds is taken.

    Raises:
        SizeError: sizes that torch refuses, a hidden width that G does not divide, a skip between unequal widths.
        OptionError: an option out of range, or ``residual_intervals`` that make no skip.

    Source:
        Huh et al. 2023, https://arxiv.org/abs/2103.10427, section 5; Guo, Alvarez, Salzmann 2020, ExpandNets,
        https://arxiv.org/abs/1811.10495; one batch norm after what is put together in training: Hu et al. 2022,
        https://arxiv.org/abs/2204.00826.

    Example:
        >>> import torch, weft
        >>> layer = weft.EPConv2d(2, 4, [5, 3, 1], 3, depth=3)
        >>> tuple(layer(torch.randn(1, 2, 16, 16)).shape), layer.kernel_size
        ((1, 4, 16, 16), (7, 7))
        >>> layer.eval().fold()
        Conv2d(2, 4, kernel_size=(7, 7), stride=(1, 1), padding=(3, 3))
    """

    torch_class, _norm_class, _dims = nn.Conv2d, nn.BatchNorm2d, 2


class EPConv3d(_EPConv):
    """``torch.nn.Conv3d`` in the form of several convolutions; takes the arguments of ``weft.EPConv2d``.

    Example:
        >>> import torch, weft
        >>> layer = weft.EPConv3d(2, 4, 3, padding=1, depth=2)
        >>> tuple(layer(torch.randn(1, 2, 5, 6, 7)).shape)
        (1, 4, 5, 6, 7)
    """

    torch_class, _norm_class, _dims = nn.Conv3d, nn.BatchNorm3d, 3
