"""Convolutions and transposed convolutions in one to three dimensions, with a weight of any family.

The weight is one (out, in/groups * K) matrix M, input channel major, whatever the direction:

    convolution:             weight[o, c, k] = M[o, c*K + k]
    transposed convolution:  weight[g*I/G + c, o, k] = M[g*O/G + o, c*K + k]       (torch's layout, permuted)

Letters: O, I = output and input channels; G = groups; K = product of the kernel sizes; g, o, c, k run over them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft.errors import SizeError
from weft.layers.base import Layer
from weft.parametrizations import Parametrization, Stage, StageShape

Size = int | tuple[int, ...]

_CHUNK_BYTES = 2**21  # of what one stage passes to the next

_SHARED_ARGUMENTS = (
    "in_channels",
    "out_channels",
    "kernel_size",
    "stride",
    "padding",
    "dilation",
    "groups",
    "padding_mode",
)


class _Conv(Layer):
    """What convolutions in both directions share. ``nn`` itself checks and completes the geometry."""

    _convolution: ClassVar[Callable[..., Tensor]]
    _dims: ClassVar[int]
    _floor_s = 15e-6
    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: str | tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    padding_mode: str
    output_padding: tuple[int, ...]
    _reversed_padding_repeated_twice: list[int]
    transposed: bool

    def _set_up_geometry(
        self,
        geometry: dict[str, Any],
        parametrization: str | Parametrization,
        path: str,
        init: str,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        options: dict[str, Any],
    ) -> None:
        """Let torch's own layer check the geometry, take it over, set the rest up."""
        if min(geometry["in_channels"], geometry["out_channels"]) < 1:
            sizes = f"{geometry['in_channels']} and {geometry['out_channels']}"
            raise SizeError(f"in_channels and out_channels must be at least 1, got {sizes}")
        try:
            template = self.torch_class(**geometry, device="meta")
        except ValueError as error:
            raise SizeError(f"{type(self).__name__}: {error}") from error
        for name in (*_SHARED_ARGUMENTS, "output_padding", "transposed", "_reversed_padding_repeated_twice"):
            setattr(self, name, getattr(template, name))
        positions = math.prod(self.kernel_size)
        shape = (self.out_channels, self.in_channels // self.groups * positions)
        self._set_up(template, shape, positions, parametrization, path, init, device, dtype, options)

    def _arguments(self) -> dict[str, Any]:
        names = (*_SHARED_ARGUMENTS, "output_padding") if self.transposed else _SHARED_ARGUMENTS
        return {**{name: getattr(self, name) for name in names}, "bias": self.bias is not None}

    @classmethod
    def _arguments_of(cls, module: Any) -> dict[str, Any]:
        names = (*_SHARED_ARGUMENTS, "output_padding") if module.transposed else _SHARED_ARGUMENTS
        return {**{name: getattr(module, name) for name in names}, "bias": module.bias is not None}

    def _rows(self, x: Tensor) -> int:
        rows = x.shape[0] if x.dim() == self._dims + 2 else 1
        if self.transposed:  # every input position is multiplied with the whole kernel
            return rows * math.prod(x.shape[-self._dims :])
        spans = zip(x.shape[-self._dims :], self.kernel_size, self.stride, self.dilation, self._paddings(), strict=True)
        return rows * math.prod((size + pad - d * (k - 1) - 1) // s + 1 for size, k, s, d, pad in spans)

    def _paddings(self) -> tuple[int, ...]:
        """Numbers that padding adds to each dimension, both ends together."""
        if self.padding == "same":
            return tuple(d * (k - 1) for k, d in zip(self.kernel_size, self.dilation, strict=True))
        return (0,) * self._dims if isinstance(self.padding, str) else tuple(2 * pad for pad in self.padding)

    # ------------------------------------------------------------------ the factored product, as convolutions

    def _spatial_stage(self, stages: Sequence[Stage | StageShape]) -> int | None:
        """Which stage sees the kernel positions, None where the stages cannot run as convolutions."""
        positions = math.prod(self.kernel_size)
        for wanted in (lambda inner: inner % positions != 0, lambda inner: inner == 1):
            for index, stage in enumerate(stages):
                if wanted(stage.inner):
                    return index
        return None

    def _ways(self, evaluation: bool) -> list[str]:
        shapes = self.parametrization.stage_shapes(evaluation)
        if shapes is None or self.groups != 1 or self._spatial_stage(shapes) is None:
            return []
        return ["cached stages" if evaluation and self.parametrization.stage_build_cost() else "stages"]

    def _stage_macs(self, stages: list[Stage], x: Tensor) -> int:
        # Stages before the spatial one run once per input position, the others once per output position (transposed:
        # the other way round would be exact, but rows are those of the input there).
        positions, spatial = math.prod(self.kernel_size), self._spatial_stage(stages) or 0
        inputs = x.numel() // self.in_channels
        before = inputs * sum(stage.matrix.numel() * stage.inner // positions for stage in stages[:spatial])
        return before + self._rows(x) * sum(stage.matrix.numel() * stage.inner for stage in stages[spatial:])

    def _samples_at_once(self, x: Tensor, stages: list[Stage]) -> int:
        """How many samples to run through all stages together, so that what they pass on stays in the caches."""
        channels = max(len(matrix) * matrix.shape[1] * inner for matrix, inner in stages[1:])
        numbers = max(channels, self.in_channels) * max(math.prod(x.shape[-self._dims :]), self._rows(x[:1]))
        return max(1, _CHUNK_BYTES // (numbers * x.element_size()))

    def _by_stages(self, x: Tensor, stages: list[Stage], bias: Tensor | None, output_size: list[int] | None) -> Tensor:
        spatial = self._spatial_stage(stages)
        assert spatial is not None, "a way by stages was chosen without a spatial stage"
        positions, last = math.prod(self.kernel_size), len(stages) - 1
        for index, (matrix, inner) in enumerate(stages):
            stage_bias = bias if index == last else None
            if index == spatial:
                groups, rows, columns = matrix.shape
                kernel = matrix.reshape(groups, rows, columns // positions, *self.kernel_size)
                if self.transposed:
                    kernel = kernel.transpose(1, 2)
                x = self._convolve(x, kernel.flatten(0, 1), stage_bias, groups, output_size)
            else:
                x = self._mix(x, matrix, inner // positions if index < spatial else inner, stage_bias)
        return x

    def _mix(self, x: Tensor, matrix: Tensor, inner: int, bias: Tensor | None) -> Tensor:
        """A stage without kernel positions: a 1x1 convolution, or one small matrix over groups of channels."""
        groups, rows, columns = matrix.shape
        if inner == 1:
            kernel = matrix.reshape(groups * rows, columns, *(1,) * self._dims)
            return _CONVOLUTIONS[self._dims](x, kernel, bias, groups=groups)
        channels = -1 - self._dims  # counted from the end: inputs may have no batch dimension
        size = [x.shape[d] for d in range(-self._dims, 0)]
        y = matrix.to(x.dtype) @ x.unflatten(channels, (groups, columns, inner)).flatten(channels)
        y = y.unflatten(-1, (inner, *size)).flatten(channels - 2, channels)
        return y if bias is None else y + bias.to(y.dtype).reshape(-1, *(1,) * self._dims)

    def _dense(self, x: Tensor, weight: Tensor, bias: Tensor | None, output_size: list[int] | None) -> Tensor:
        return self._convolve(x, weight, bias, self.groups, output_size)

    def _convolve(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int, output_size: list[int] | None
    ) -> Tensor:
        raise NotImplementedError

    def _run(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        parameters = self._parameters
        bias = parameters["bias"] if "bias" in parameters else self.bias  # FSDP1 makes it a plain attribute
        way = self._way(x)
        if way.endswith("stages") and (stages := self._current_stages(way)) is not None:
            if way == "cached stages" and x.dim() == self._dims + 2:
                parts = x.split(self._samples_at_once(x, stages))
                if len(parts) > 1:
                    return torch.cat([self._by_stages(part, stages, bias, output_size) for part in parts])
            return self._by_stages(x, stages, bias, output_size)
        return self._dense(x, self._effective_weight(), bias, output_size)


_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED: dict[int, Callable[..., Tensor]] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


class _Forward(_Conv):
    """A convolution."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: str | Size = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        parametrization: str | Parametrization = "dense",
        path: str = "auto",
        init: str = "default",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        geometry = {
            "in_channels": in_channels,
            "out_channels": out_channels,
            "kernel_size": kernel_size,
            "stride": stride,
            "padding": padding,
            "dilation": dilation,
            "groups": groups,
            "bias": bias,
            "padding_mode": padding_mode,
        }
        self._set_up_geometry(geometry, parametrization, path, init, device, dtype, options)

    def forward(self, input: Tensor) -> Tensor:
        return self._run(input)

    def _convolve(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int, output_size: list[int] | None
    ) -> Tensor:
        padding: str | Size = self.padding
        if self.padding_mode != "zeros":
            x, padding = F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode), 0
        return _CONVOLUTIONS[self._dims](x, weight, bias, self.stride, padding, self.dilation, groups)

    def _to_weight(self, matrix: Tensor) -> Tensor:
        return matrix.reshape(self.out_channels, self.in_channels // self.groups, *self.kernel_size)

    def _to_matrix(self, weight: Tensor) -> Tensor:
        return weight.reshape(self.out_channels, -1)


class _Transposed(_Conv):
    """A transposed convolution."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        output_padding: Size = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Size = 1,
        padding_mode: str = "zeros",
        *,
        parametrization: str | Parametrization = "dense",
        path: str = "auto",
        init: str = "default",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        geometry = {
            "in_channels": in_channels,
            "out_channels": out_channels,
            "kernel_size": kernel_size,
            "stride": stride,
            "padding": padding,
            "output_padding": output_padding,
            "groups": groups,
            "bias": bias,
            "dilation": dilation,
            "padding_mode": padding_mode,
        }
        self._set_up_geometry(geometry, parametrization, path, init, device, dtype, options)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        return self._run(input, output_size)

    def _convolve(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int, output_size: list[int] | None
    ) -> Tensor:
        torchs: Any = nn.modules.conv._ConvTransposeNd  # its rule for output_size, whatever class of ours asks
        output_padding = torchs._output_padding(
            self, x, output_size, self.stride, self.padding, self.kernel_size, self._dims, self.dilation
        )
        return _TRANSPOSED[self._dims](
            x, weight, bias, self.stride, self.padding, output_padding, groups, self.dilation
        )

    def _to_weight(self, matrix: Tensor) -> Tensor:
        groups, positions = self.groups, math.prod(self.kernel_size)
        blocks = matrix.reshape(groups, self.out_channels // groups, self.in_channels // groups, positions)
        return blocks.transpose(1, 2).reshape(self.in_channels, self.out_channels // groups, *self.kernel_size)

    def _to_matrix(self, weight: Tensor) -> Tensor:
        groups, positions = self.groups, math.prod(self.kernel_size)
        blocks = weight.reshape(groups, self.in_channels // groups, self.out_channels // groups, positions)
        return blocks.transpose(1, 2).reshape(self.out_channels, -1)


class Conv1d(_Forward):
    """1-D convolution with a weight of any family.

    Takes the arguments of ``torch.nn.Conv1d`` in their order, then by name ``parametrization``, ``path``, ``init``,
    ``device``, ``dtype`` and the family's options, all as ``weft.Linear``.

    Example:
        >>> import torch, weft
        >>> layer = weft.Conv1d(8, 16, 3, padding="same", parametrization="low_rank", share=0.5)
        >>> tuple(layer(torch.randn(2, 8, 20)).shape)
        (2, 16, 20)
    """

    torch_class, _dims = nn.Conv1d, 1


class Conv2d(_Forward):
    """2-D convolution with a weight of any family.

    Takes the arguments of ``torch.nn.Conv2d`` in their order, then by name ``parametrization``, ``path``, ``init``,
    ``device``, ``dtype`` and the family's options, all as ``weft.Linear``.

    Example:
        >>> import torch, weft
        >>> layer = weft.Conv2d(8, 16, 3, padding=1, parametrization="kronecker", n=4)
        >>> tuple(layer(torch.randn(2, 8, 10, 10)).shape), tuple(layer.weight.shape)
        ((2, 16, 10, 10), (16, 8, 3, 3))
    """

    torch_class, _dims = nn.Conv2d, 2


class Conv3d(_Forward):
    """3-D convolution with a weight of any family.

    Takes the arguments of ``torch.nn.Conv3d`` in their order, then by name ``parametrization``, ``path``, ``init``,
    ``device``, ``dtype`` and the family's options, all as ``weft.Linear``.

    Example:
        >>> import torch, weft
        >>> layer = weft.Conv3d(4, 8, (1, 3, 3), parametrization="kronecker", algebra="quaternion")
        >>> tuple(layer(torch.randn(2, 4, 5, 6, 6)).shape)
        (2, 8, 5, 4, 4)
    """

    torch_class, _dims = nn.Conv3d, 3


class ConvTranspose1d(_Transposed):
    """1-D transposed convolution with a weight of any family.

    Takes the arguments of ``torch.nn.ConvTranspose1d`` in their order, then by name ``parametrization``, ``path``,
    ``init``, ``device``, ``dtype`` and the family's options, all as ``weft.Linear``.

    Example:
        >>> import torch, weft
        >>> layer = weft.ConvTranspose1d(8, 4, 4, stride=2, padding=1, parametrization="kronecker", n=2)
        >>> tuple(layer(torch.randn(2, 8, 10)).shape), tuple(layer.weight.shape)
        ((2, 4, 20), (8, 4, 4))
    """

    torch_class, _dims = nn.ConvTranspose1d, 1


class ConvTranspose2d(_Transposed):
    """2-D transposed convolution with a weight of any family.

    Takes the arguments of ``torch.nn.ConvTranspose2d`` in their order, then by name ``parametrization``, ``path``,
    ``init``, ``device``, ``dtype`` and the family's options, all as ``weft.Linear``.

    Example:
        >>> import torch, weft
        >>> layer = weft.ConvTranspose2d(8, 4, 2, stride=2, parametrization="low_rank", rank=2)
        >>> tuple(layer(torch.randn(2, 8, 5, 5)).shape)
        (2, 4, 10, 10)
    """

    torch_class, _dims = nn.ConvTranspose2d, 2


class ConvTranspose3d(_Transposed):
    """3-D transposed convolution with a weight of any family.

    Takes the arguments of ``torch.nn.ConvTranspose3d`` in their order, then by name ``parametrization``, ``path``,
    ``init``, ``device``, ``dtype`` and the family's options, all as ``weft.Linear``.

    Example:
        >>> import torch, weft
        >>> layer = weft.ConvTranspose3d(4, 8, 2, stride=2, parametrization="kronecker", n=4)
        >>> tuple(layer(torch.randn(1, 4, 3, 3, 3)).shape)
        (1, 8, 6, 6, 6)
    """

    torch_class, _dims = nn.ConvTranspose3d, 3
