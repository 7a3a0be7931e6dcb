"""VGG networks for small images, in any family: convolutions and the hidden layers of the classifier."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from weft.errors import OptionError
from weft.models.factory import LayerFactory, PrependZeros, named_widths

_REPEATS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
_WIDTHS = {"standard": (64, 128, 256, 512), "large": (24, 72, 216, 648)}
_HIDDEN = {"standard": 512, "large": 516}


class VGG(nn.Module):
    """VGG-11 to -19: five groups of 3x3 convolutions, each halving the image, and a classifier of three layers.

    Args:
        depth: 11, 13, 16 or 19.
        widths: of the groups, the last for two of them: "standard" (64, 128, 256, 512), "large" (24, 72, 216, 648:
            divisible by 2, 3 and 4), or four numbers.
        hidden: features of the classifier's second layer; None is 512 ("large": 516), for other widths the last width.
        batch_norm: whether a batch norm follows every convolution.
        dropout: probability before the classifier's first two layers, in [0, 1).
        in_channels: of the images, any number; channels of zeros are put in front up to a multiple of n (0, R, G, B).
        num_classes: size of the output.
        parametrization: family of all layers but the last; None takes those of ``torch.nn``.
        options: of the family, such as ``{"n": 4}``.
        family_stem: whether the first convolution is of the family too; turn it off for families that need more
            than a few input channels.

    Raises:
        OptionError: there is no such depth, or ``widths`` is neither a name nor four numbers.

    Source:
        Simonyan, Zisserman 2014, Very Deep Convolutional Networks, table 1, https://arxiv.org/abs/1409.1556; in
        hypercomplex form: Grassucci et al. 2022, PHNNs, https://arxiv.org/abs/2110.04176.

    Example:
        >>> import torch
        >>> net = VGG(11, widths=(8, 8, 16, 16), parametrization="kronecker", options={"algebra": "quaternion"})
        >>> tuple(net(torch.randn(2, 3, 32, 32)).shape)
        (2, 10)
    """

    def __init__(
        self,
        depth: int = 16,
        widths: Literal["standard", "large"] | Sequence[int] = "standard",
        *,
        hidden: int | None = None,
        batch_norm: bool = True,
        dropout: float = 0.5,
        in_channels: int = 3,
        num_classes: int = 10,
        parametrization: str | None = None,
        options: Mapping[str, Any] | None = None,
        family_stem: bool = True,
    ) -> None:
        super().__init__()
        if depth not in _REPEATS:
            raise OptionError(f"depth must be one of {', '.join(map(str, _REPEATS))}, got {depth}")
        channels = named_widths(widths, _WIDTHS)
        if len(channels) != len(_WIDTHS["standard"]):
            raise OptionError(f"widths must give 4 numbers, got {list(channels)}")
        if hidden is None:
            hidden = _HIDDEN[widths] if isinstance(widths, str) else channels[-1]
        self.in_channels, self.num_classes = in_channels, num_classes
        factory = LayerFactory(parametrization, options)
        stem = factory if family_stem else LayerFactory()
        pad = PrependZeros(in_channels, stem.multiple)
        steps: list[nn.Module] = [pad]
        before = pad.channels
        for repeats, width in zip(_REPEATS[depth], (*channels, channels[-1]), strict=True):
            for _ in range(repeats):
                steps.append((stem if len(steps) == 1 else factory).conv(before, width, 3, bias=True))
                steps += [nn.BatchNorm2d(width), nn.ReLU()] if batch_norm else [nn.ReLU()]
                before = width
            steps.append(nn.MaxPool2d(2, ceil_mode=True))
        self.features = nn.Sequential(*steps)
        self.classifier = nn.Sequential(
            nn.Dropout(dropout),
            factory.linear(before, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            factory.linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))
