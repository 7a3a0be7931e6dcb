"""The layers of a model, made in one family or as torch's own.

A model asks a ``LayerFactory`` for convolutions and linear layers and never learns which family it is made of.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import weft
from weft.errors import OptionError
from weft.parametrizations import make

# Any n up to 8 divides it. Only the size of a matrix that is never allocated.
_SIDE = 840


class LayerFactory:
    """Makes the layers of a model.

    Weights start with He's variance, 2/fan_in, whatever the family: they stand before ReLUs.

    Args:
        parametrization: family name; None makes the layers of ``torch.nn`` themselves.
        options: of the family, such as ``{"n": 4}`` or ``{"share": 0.25}``.

    Example:
        >>> type(LayerFactory(None).linear(8, 4)).__name__, LayerFactory("kronecker", {"n": 2}).multiple
        ('Linear', 2)
    """

    def __init__(self, parametrization: str | None = None, options: Mapping[str, Any] | None = None) -> None:
        self.parametrization = parametrization
        self.options = dict(options or {})

    @property
    def multiple(self) -> int:
        """What input channels must be a multiple of: n, for families of n components; 1 for all others."""
        if self.parametrization is None:
            return 1
        side = _SIDE * (self.options.get("n") or 1)
        return getattr(make(self.parametrization, (side, side), device=torch.device("meta"), **self.options), "n", 1)

    def conv(
        self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, bias: bool = False
    ) -> nn.Module:
        """A convolution that keeps the image's size, but for its stride.

        Args:
            in_channels: of the input.
            out_channels: of the output.
            kernel_size: side of the kernel, odd.
            stride: of the kernel.
            bias: whether to add a bias.

        Returns:
            the layer.
        """
        geometry: dict[str, Any] = {"stride": stride, "padding": kernel_size // 2, "bias": bias}
        if self.parametrization is None:
            return _he(nn.Conv2d(in_channels, out_channels, kernel_size, **geometry))
        family = {"parametrization": self.parametrization, **self.options}
        return weft.Conv2d(in_channels, out_channels, kernel_size, init="he", **geometry, **family)

    def linear(self, in_features: int, out_features: int) -> nn.Module:
        """A linear layer with a bias.

        Args:
            in_features: of the input.
            out_features: of the output.

        Returns:
            the layer.
        """
        if self.parametrization is None:
            return _he(nn.Linear(in_features, out_features))
        family = {"parametrization": self.parametrization, **self.options}
        return weft.Linear(in_features, out_features, init="he", **family)


class PrependZeros(nn.Module):
    """Puts channels of zeros in front, so that their number is a multiple of n: (R, G, B) becomes (0, R, G, B).

    Args:
        channels: of the input.
        multiple: n.

    Example:
        >>> import torch
        >>> PrependZeros(3, 4)(torch.ones(1, 3, 1, 1)).flatten().tolist()
        [0.0, 1.0, 1.0, 1.0]
    """

    def __init__(self, channels: int, multiple: int) -> None:
        super().__init__()
        self.missing = -channels % multiple
        self.channels = channels + self.missing

    def forward(self, x: Tensor) -> Tensor:
        if not self.missing:
            return x
        return torch.cat([x.new_zeros(x.shape[0], self.missing, *x.shape[2:]), x], dim=1)

    def extra_repr(self) -> str:
        return f"missing={self.missing}"


def named_widths(widths: str | Sequence[int], known: Mapping[str, Sequence[int]]) -> Sequence[int]:
    """The widths of a name, or the widths themselves.

    Args:
        widths: a name or numbers.
        known: the names.

    Returns:
        channels of each stage.

    Raises:
        OptionError: there is no such name.
    """
    if not isinstance(widths, str):
        return widths
    if widths not in known:
        raise OptionError(f"widths must be one of {', '.join(known)}, or numbers; got {widths!r}")
    return known[widths]


def _he(layer: nn.Conv2d | nn.Linear) -> nn.Module:
    nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
    return layer
