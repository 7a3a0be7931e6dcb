"""Residual networks for small images: the CIFAR family (20, 32, ... layers) and ImageNet's (18 to 152), in any family.

Every convolution is of the family: the stem, the blocks and the 1x1 convolutions of the shortcuts. Batch norm and the
linear head are ordinary ones. Deep hypercomplex ones may start as chains of shortcuts: ``residual_gate``.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from weft.errors import OptionError
from weft.layers import ResidualGate
from weft.models.factory import LayerFactory, PrependZeros, named_widths

_WIDTHS = {"standard": (64, 128, 256, 512), "large": (60, 120, 240, 516)}
_CIFAR_WIDTHS = {"standard": (16, 32, 64), "large": (24, 72, 216)}
_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
_BASIC, _BOTTLENECK = 1, 4  # how many times the width the output of a block has


class ResidualNet(nn.Module):
    """The skeleton: stem, stages of residual blocks, global average pooling, linear head.

    Args:
        blocks: number of blocks of each stage.
        widths: channels of each stage; the first is also that of the stem. Stages after the first halve the image.
        expansion: 1 for blocks of two 3x3 convolutions, 4 for 1x1-3x3-1x1 bottlenecks with 4 times the channels out.
        shortcut: what a block adds where sizes change, see ``CifarResNet``.
        in_channels: of the images, any number; zeros are put in front where the family needs a multiple of n.
        num_classes: size of the output.
        factory: makes the layers.
        family_stem: whether the first convolution is of the family too, else one of ``torch.nn``.
        residual_gate: see ``CifarResNet``.
    """

    def __init__(
        self,
        blocks: Sequence[int],
        widths: Sequence[int],
        expansion: int,
        shortcut: str,
        in_channels: int,
        num_classes: int,
        factory: LayerFactory,
        family_stem: bool,
        residual_gate: bool = False,
    ) -> None:
        super().__init__()
        if len(widths) != len(blocks):
            raise OptionError(f"widths must give {len(blocks)} numbers, one per stage, got {list(widths)}")
        self.in_channels, self.num_classes = in_channels, num_classes
        stem = factory if family_stem else LayerFactory()
        self.pad = PrependZeros(in_channels, stem.multiple)
        channels = widths[0]
        self.stem = nn.Sequential(stem.conv(self.pad.channels, channels, 3), nn.BatchNorm2d(channels), nn.ReLU())
        stages = []
        for index, (count, width) in enumerate(zip(blocks, widths, strict=True)):
            stage = []
            for block in range(count):
                stride = 2 if index > 0 and block == 0 else 1
                stage.append(_block(channels, width, stride, expansion, shortcut, factory, residual_gate))
                channels = width * expansion
            stages.append(nn.Sequential(*stage))
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        features = self.stages(self.stem(self.pad(x)))
        return self.head(features.mean((2, 3)))


class ResNet(ResidualNet):
    """ResNet-18 to -152 of ImageNet with the stem of CIFAR: a 3x3 convolution of stride 1 and no pooling.

    Args:
        depth: 18 or 34 (blocks of two 3x3 convolutions), 50, 101 or 152 (bottlenecks).
        widths: "standard" (64, 128, 256, 512), "large" (60, 120, 240, 516: divisible by 2, 3 and 4), or four numbers.
        in_channels: of the images, any number; channels of zeros are put in front up to a multiple of n (0, R, G, B).
        num_classes: size of the output.
        parametrization: family of all convolutions; None takes those of ``torch.nn``.
        options: of the family, such as ``{"n": 4}``.
        family_stem: whether the first convolution is of the family too; turn it off for families that need more
            than a few input channels.
        residual_gate: whether the blocks are ``weft.ResidualGate``: ``shortcut(x) + alpha * relu(body(x))``, alpha 0
            at the start, and no activation after the sum. Choose it where a deep hypercomplex network learns slowly.

    Raises:
        OptionError: there is no such depth, or ``widths`` is neither a name nor four numbers.

    Source:
        He et al. 2015, Deep Residual Learning for Image Recognition, table 1, https://arxiv.org/abs/1512.03385;
        in hypercomplex form: Grassucci et al. 2022, PHNNs, https://arxiv.org/abs/2110.04176; gated: Mancanelli et al.
        2023, PHYDI, https://arxiv.org/abs/2310.07612.

    Example:
        >>> import torch
        >>> net = ResNet(18, widths=(8, 8, 16, 16), parametrization="kronecker", options={"n": 4})
        >>> tuple(net(torch.randn(2, 3, 32, 32)).shape)
        (2, 10)
    """

    def __init__(
        self,
        depth: int = 18,
        widths: Literal["standard", "large"] | Sequence[int] = "standard",
        *,
        in_channels: int = 3,
        num_classes: int = 10,
        parametrization: str | None = None,
        options: Mapping[str, Any] | None = None,
        family_stem: bool = True,
        residual_gate: bool = False,
    ) -> None:
        if depth not in _BLOCKS:
            raise OptionError(f"depth must be one of {', '.join(map(str, _BLOCKS))}, got {depth}")
        super().__init__(
            _BLOCKS[depth], named_widths(widths, _WIDTHS), _BASIC if depth < 50 else _BOTTLENECK, "conv",
            in_channels, num_classes, LayerFactory(parametrization, options), family_stem, residual_gate,
        )  # fmt: skip


class CifarResNet(ResidualNet):
    """The small residual networks of the CIFAR experiments: 6k + 2 layers in three stages.

    Args:
        depth: 20, 32, 44, 56, 110, 1202, or any 6k + 2.
        widths: "standard" (16, 32, 64), "large" (24, 72, 216: divisible by 2, 3 and 4), or three numbers.
        shortcut: where a block changes sizes: "conv" (the paper's option B) adds a 1x1 convolution with batch norm,
            "pad" (option A) every second pixel, with channels of zeros on both sides.
        in_channels: of the images, any number; channels of zeros are put in front up to a multiple of n (0, R, G, B).
        num_classes: size of the output.
        parametrization: family of all convolutions; None takes those of ``torch.nn``.
        options: of the family, such as ``{"n": 4}``.
        family_stem: whether the first convolution is of the family too; turn it off for families that need more
            than a few input channels.
        residual_gate: whether the blocks are ``weft.ResidualGate``: ``shortcut(x) + alpha * relu(body(x))``, alpha 0
            at the start, and no activation after the sum. Choose it where a deep hypercomplex network learns slowly.

    Raises:
        OptionError: a depth that is not 6k + 2, or ``widths`` is neither a name nor three numbers.

    Source:
        He et al. 2015, Deep Residual Learning for Image Recognition, section 4.2, https://arxiv.org/abs/1512.03385.

    Example:
        >>> sum(p.numel() for p in CifarResNet(20).parameters())
        272474
        >>> sum(p.numel() for p in CifarResNet(20, parametrization="kronecker", options={"n": 4}).parameters())
        71162
    """

    def __init__(
        self,
        depth: int = 20,
        widths: Literal["standard", "large"] | Sequence[int] = "standard",
        *,
        shortcut: Literal["conv", "pad"] = "conv",
        in_channels: int = 3,
        num_classes: int = 10,
        parametrization: str | None = None,
        options: Mapping[str, Any] | None = None,
        family_stem: bool = True,
        residual_gate: bool = False,
    ) -> None:
        if depth < 8 or depth % 6 != 2:
            raise OptionError(f"depth must be 6k + 2 with k at least 1, such as 20, 32, 44, 56 or 110; got {depth}")
        super().__init__(
            (depth // 6,) * 3, named_widths(widths, _CIFAR_WIDTHS), _BASIC, shortcut,
            in_channels, num_classes, LayerFactory(parametrization, options), family_stem, residual_gate,
        )  # fmt: skip
        nn.init.kaiming_normal_(self.head.weight)


def _block(
    channels: int, width: int, stride: int, expansion: int, shortcut: str, factory: LayerFactory, residual_gate: bool
) -> nn.Module:
    """One block: two 3x3 convolutions, or a bottleneck, beside its shortcut."""
    out = width * expansion
    if expansion == _BASIC:
        steps = [(channels, width, 3, stride), (width, out, 3, 1)]
    else:
        steps = [(channels, width, 1, 1), (width, width, 3, stride), (width, out, 1, 1)]
    body: list[nn.Module] = []
    for inside, outside, kernel, step in steps:
        body += [factory.conv(inside, outside, kernel, stride=step), nn.BatchNorm2d(outside), nn.ReLU()]
    side: nn.Module = nn.Identity()
    if stride != 1 or channels != out:
        if shortcut == "conv":
            side = nn.Sequential(factory.conv(channels, out, 1, stride=stride), nn.BatchNorm2d(out))
        else:
            side = _Subsample(channels, out, stride)
    return ResidualGate(nn.Sequential(*body), side) if residual_gate else _Block(nn.Sequential(*body[:-1]), side)


class _Block(nn.Module):
    """relu(body(x) + shortcut(x))."""

    def __init__(self, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


class _Subsample(nn.Module):
    """Every ``stride``-th pixel, with channels of zeros before and after."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.stride, self.before = stride, (out - channels) // 2
        self.after = out - channels - self.before

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[..., :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))
