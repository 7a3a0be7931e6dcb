"""A convolutional network that learns 8 x 8 digits in seconds, in any family."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from weft.models.factory import LayerFactory, PrependZeros

_POOLED = 4  # side of the image that the hidden layer sees, in pixels


class SmallCNN(nn.Module):
    """3x3 convolutions with batch norm and ReLU, pooling before the last of them, global average, linear head.

    With ``hidden`` the image is averaged to 4 x 4 pixels instead, and one more layer, which then holds most of the
    numbers, stands before the head: ``head`` is linear, ReLU, linear.

    Args:
        widths: channels of each convolution, at least one.
        in_channels: of the images, any number; channels of zeros are put in front up to a multiple of n (0, R, G, B).
        num_classes: size of the output.
        hidden: size of a layer between the convolutions and the head, of the family too; None for none.
        parametrization: family of all convolutions; None takes those of ``torch.nn``.
        options: of the family, such as ``{"n": 4}``.
        family_stem: whether the first convolution is of the family too; turn it off for families that need more
            than a few input channels.

    Example:
        >>> import torch
        >>> tuple(SmallCNN(parametrization="kronecker", options={"n": 4})(torch.randn(2, 1, 8, 8)).shape)
        (2, 10)
    """

    def __init__(
        self,
        widths: Sequence[int] = (32, 64, 128),
        *,
        in_channels: int = 1,
        num_classes: int = 10,
        hidden: int | None = None,
        parametrization: str | None = None,
        options: Mapping[str, Any] | None = None,
        family_stem: bool = True,
    ) -> None:
        super().__init__()
        self.in_channels, self.num_classes = in_channels, num_classes
        factory = LayerFactory(parametrization, options)
        stem = factory if family_stem else LayerFactory()
        pad = PrependZeros(in_channels, stem.multiple)
        steps: list[nn.Module] = [pad]
        before = pad.channels
        for index, width in enumerate(widths):
            if 0 < index == len(widths) - 1:
                steps.append(nn.MaxPool2d(2))
            steps += [(factory if index else stem).conv(before, width, 3), nn.BatchNorm2d(width), nn.ReLU()]
            before = width
        self.features = nn.Sequential(*steps)
        self.pool = nn.AdaptiveAvgPool2d(1 if hidden is None else _POOLED)
        if hidden is None:
            self.head: nn.Module = nn.Linear(before, num_classes)
        else:
            wide = factory.linear(before * _POOLED**2, hidden)
            self.head = nn.Sequential(wide, nn.ReLU(), nn.Linear(hidden, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.features(x)).flatten(1))
