"""Wide residual networks of pre-activation blocks, for one image at a time or several in superposition, in any family.

    wide_resnet        ReLU      the baseline
    wide_isorelunet    ReLU      with the isometry penalty in training
    wide_isonet        SReLU     the same; max(x, b), b learned per channel, -1 at the start
    mimonet            PReLU     the same; slope learned per channel, 0.5 at the start

All four are one skeleton, ``weft.MIMO`` of a stem, a trunk of residual stages that ends in the mean over the image, and
a linear head; with one input and no binding it is the plain network. Which penalties training adds is not the model's
business: ``weft.train.SuperposedClassifier``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from weft.errors import OptionError
from weft.models.factory import LayerFactory
from weft.superposition import MIMO

Init = Literal["activation", "relu"]
Activation = Literal["relu", "srelu", "prelu"]
_Make = Callable[[int], nn.Module]

#: channels of the stages at width 1, by the number of stages; the stem has the first number at initial width 1
_WIDTHS = {2: (8, 16), 3: (16, 32, 64), 4: (64, 128, 256, 512)}
_STEM_WIDTH = {2: 8, 3: 16, 4: 64}
#: slope of the leaky ReLU whose gain a trunk starts with; max(x, -1) has about that of slope 0.45 on unit normal inputs
_SLOPES = {"relu": 0.0, "srelu": 0.45, "prelu": 0.5}


class SReLU(nn.Module):
    r"""ReLU with a shifted corner: :math:`\max(x, b_c)`, b learned per channel.

    Args:
        channels: of the input, which stand second.
        init: b at the start.

    Source:
        Qi et al. 2020, Deep Isometric Learning for Visual Recognition, section 3.1, https://arxiv.org/abs/2006.16992.

    Example:
        >>> import torch
        >>> SReLU(2)(torch.tensor([[-3.0, 5.0]])).tolist()
        [[-1.0, 5.0]]
    """

    def __init__(self, channels: int, init: float = -1.0) -> None:
        super().__init__()
        self.init = float(init)
        self.bias = nn.Parameter(torch.empty(channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """b as at the start."""
        nn.init.constant_(self.bias, self.init)

    def forward(self, x: Tensor) -> Tensor:
        return torch.maximum(x, self.bias.reshape(-1, *(1,) * (x.dim() - 2)))


class WideBlock(nn.Module):
    """norm, act, 3x3, norm, act, 3x3, beside the input itself or its 1x1 convolution with norm.

    Args:
        channels: of the input.
        out: of the output.
        stride: of the first convolution.
        act: makes the activation of so many channels.
        norm: makes the normalisation of so many channels.
        factory: makes the convolutions.
        skip_init: multiply the branch by a learned number that starts at 0.
    """

    def __init__(
        self,
        channels: int,
        out: int,
        stride: int,
        act: _Make,
        norm: _Make,
        factory: LayerFactory,
        skip_init: bool,
    ) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            norm(channels), act(channels), factory.conv(channels, out, 3, stride=stride),
            norm(out), act(out), factory.conv(out, out, 3),
        )  # fmt: skip
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != out:
            self.shortcut = nn.Sequential(factory.conv(channels, out, 1, stride=stride), norm(out))
        self.alpha = nn.Parameter(torch.empty(())) if skip_init else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The multiplier of the branch at 0; the layers reset themselves."""
        if self.alpha is not None:
            nn.init.zeros_(self.alpha)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.branch(x)
        return self.shortcut(x) + (branch if self.alpha is None else self.alpha * branch)


def wide_network(
    depth: int = 28,
    width: float = 10,
    initial_width: float = 1,
    *,
    activation: Activation = "relu",
    relu_parameter: float | None = None,
    num_inputs: int = 1,
    binding: str = "none",
    trainable_keys: bool = True,
    binding_options: Mapping[str, Any] | None = None,
    blocks: Sequence[int] | None = None,
    num_classes: int = 10,
    in_channels: int = 3,
    skip_init: bool = False,
    dirac_init: bool = False,
    batch_norm: bool = True,
    init: Init = "activation",
    parametrization: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> MIMO:
    """The skeleton of the four networks, with every choice open.

    Args:
        depth: 6k + 4: 10, 16, 28 ...; k blocks in each of three stages.
        width: multiplies the channels of the trunk: 16, 32, 64.
        initial_width: multiplies the 16 channels of the stem, which are those that are bound.
        activation: "relu", "srelu" or "prelu"; the stem has ReLU whatever the trunk has.
        relu_parameter: b of SReLU (None: -1) or slope of PReLU (None: 0.5) at the start.
        num_inputs: N.
        binding: "none", "hrr", "mbat", "map" or "fhrr".
        trainable_keys: whether the keys are learned.
        binding_options: of the binding, such as ``{"unitary": True}``.
        blocks: blocks of each stage instead of ``depth``: two numbers (8, 16 channels), three (16, 32, 64), or four
            (64 to 512, behind ImageNet's stem: 7x7 of stride 2 and max pooling).
        num_classes: size of the output.
        in_channels: of the images.
        skip_init: multiply every residual branch by a learned number that starts at 0.
        dirac_init: start the trunk's convolutions as identities.
        batch_norm: whether to normalise at all.
        init: gain of the trunk's convolutions: "activation", of the activation in use; "relu", as published code ran.
        parametrization: family of the trunk's convolutions; None takes those of ``torch.nn``.
        options: of the family, such as ``{"n": 4}``.

    Returns:
        the network.

    Raises:
        OptionError: there is no such depth, or an option is wrong.

    Source:
        Zagoruyko and Komodakis 2016, Wide Residual Networks, https://arxiv.org/abs/1605.07146; without the last norm
        and ReLU, as in Menet et al. 2023, MIMONets, https://arxiv.org/abs/2312.02829.

    Example:
        >>> net = wide_network(10, 1, activation="srelu", num_inputs=2, binding="mbat")
        >>> net.num_inputs, net.num_classes
        (2, 10)
    """
    if relu_parameter is not None and activation == "relu":
        raise OptionError("relu_parameter is for activation='srelu' or 'prelu'; the ReLU has none")
    if dirac_init and parametrization is not None:
        raise OptionError("dirac_init sets the kernels of plain convolutions; leave it out, or parametrization=None")
    if activation not in _SLOPES:
        raise OptionError(f"activation must be one of {', '.join(_SLOPES)}; got {activation!r}")
    if init not in ("activation", "relu"):
        raise OptionError(f"init must be 'activation' or 'relu', got {init!r}")
    if blocks is None:
        if depth < 10 or depth % 6 != 4:
            raise OptionError(f"depth must be 6k + 4 with k at least 1, such as 10, 16 or 28; got {depth}")
        blocks = (depth // 6,) * 3
    if len(blocks) not in _WIDTHS or min(blocks) < 1:
        raise OptionError(f"blocks must be two, three or four numbers of at least 1, one per stage; got {list(blocks)}")
    widths = [int(channels * width) for channels in _WIDTHS[len(blocks)]]
    bound = int(_STEM_WIDTH[len(blocks)] * initial_width)
    if min(*widths, bound) < 1:
        raise OptionError(f"width and initial_width must leave at least one channel, got {width} and {initial_width}")
    norm: _Make = nn.BatchNorm2d if batch_norm else nn.Identity
    act = _activation(activation, relu_parameter)
    factory = LayerFactory(parametrization, options)

    stages: list[nn.Module] = []
    channels = bound
    for index, (count, out) in enumerate(zip(blocks, widths, strict=True)):
        for block in range(count):
            stride = 2 if index > 0 and block == 0 else 1
            stages.append(WideBlock(channels, out, stride, act, norm, factory, skip_init))
            channels = out
    net = MIMO(
        _stem(in_channels, bound, norm, large=len(blocks) == 4),
        nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Linear(channels, num_classes),
        num_inputs, binding, trainable_keys,
        channels=bound, features=channels, binding_options=dict(binding_options or {}),
    )  # fmt: skip
    _initialise(net, _SLOPES[activation] if init == "activation" else 0.0, dirac_init)
    net.num_classes, net.in_channels = num_classes, in_channels  # type: ignore[assignment]
    return net


def wide_resnet(depth: int = 28, width: float = 10, initial_width: float = 1, **others: Any) -> MIMO:
    """Wide residual network with ReLU, the baseline.

    Args:
        depth: 6k + 4.
        width: of the trunk.
        initial_width: of the stem.
        **others: of ``wide_network``.

    Returns:
        the network.

    Example:
        >>> sum(p.numel() for p in wide_resnet(28, 10).parameters())
        36480186
    """
    return wide_network(depth, width, initial_width, activation="relu", **others)


def wide_isorelunet(depth: int = 28, width: float = 10, initial_width: float = 1, **others: Any) -> MIMO:
    """Wide isometric network with ReLU: ``wide_resnet``, to be trained with the isometry penalty.

    Args:
        depth: 6k + 4.
        width: of the trunk.
        initial_width: of the stem.
        **others: of ``wide_network``.

    Returns:
        the network.

    Example:
        >>> wide_isorelunet(10, 1, num_inputs=2, binding="hrr").num_inputs
        2
    """
    return wide_network(depth, width, initial_width, activation="relu", **others)


def wide_isonet(depth: int = 28, width: float = 10, initial_width: float = 1, **others: Any) -> MIMO:
    """Wide isometric network with shifted ReLUs.

    Args:
        depth: 6k + 4.
        width: of the trunk.
        initial_width: of the stem.
        **others: of ``wide_network``.

    Returns:
        the network.

    Example:
        >>> sum(p.numel() for p in wide_isonet(28, 10).parameters())
        36488522
    """
    return wide_network(depth, width, initial_width, activation="srelu", **others)


def mimonet(
    depth: int = 28,
    width: float = 10,
    initial_width: float = 4,
    *,
    num_inputs: int = 1,
    binding: str = "hrr",
    **others: Any,
) -> MIMO:
    """MIMONet: wide isometric network with PReLUs, for several images in superposition.

    Args:
        depth: 6k + 4.
        width: of the trunk.
        initial_width: of the stem; four times that of a plain network, so that keys have room to be orthogonal.
        num_inputs: N.
        binding: by name.
        **others: of ``wide_network``.

    Returns:
        the network.

    Example:
        >>> sum(p.numel() for p in mimonet(28, 10, num_inputs=4).parameters())
        38208074
    """
    return wide_network(
        depth, width, initial_width, activation="prelu", num_inputs=num_inputs, binding=binding, **others
    )


def _relu(_channels: int) -> nn.Module:
    return nn.ReLU()


def _activation(name: Activation, parameter: float | None) -> _Make:
    if name == "relu":
        return _relu
    if name == "srelu":
        return functools.partial(SReLU, init=-1.0 if parameter is None else parameter)
    return functools.partial(nn.PReLU, init=0.5 if parameter is None else parameter)


def _stem(in_channels: int, channels: int, norm: _Make, large: bool) -> nn.Module:
    if large:
        conv: list[nn.Module] = [nn.Conv2d(in_channels, channels, 7, stride=2, padding=3, bias=False)]
        pool: list[nn.Module] = [nn.MaxPool2d(3, stride=2, padding=1)]
    else:
        conv, pool = [nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)], []
    return nn.Sequential(*conv, norm(channels), nn.ReLU(), *pool)


def _initialise(net: MIMO, slope: float, dirac: bool) -> None:
    """Kaiming by fan-out; layers of a family keep the He variance they were made with."""
    for part, gain_slope in ((net.stem, 0.0), (net.trunk, slope)):
        for module in part.modules():
            if isinstance(module, nn.Conv2d):
                if dirac and part is net.trunk:
                    nn.init.dirac_(module.weight)
                else:
                    nn.init.kaiming_normal_(module.weight, a=gain_slope, mode="fan_out", nonlinearity="leaky_relu")
