"""MIMO: several inputs through one network at once."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import torch
from torch import Tensor, nn

from weft.errors import OptionError, SizeError
from weft.superposition.binding import Binding, check_num_superposed, make_binding
from weft.superposition.statistics import make_switchable, switch, uncalibrated
from weft.superposition.unbinding import Unbinding

#: What a stem is fed to learn its widths, by the kind of its first layer: the sides of a small input.
_PROBES: dict[type[nn.Module], tuple[int, ...]] = {nn.Conv1d: (64,), nn.Conv2d: (32, 32), nn.Conv3d: (16, 16, 16)}


class MIMO(nn.Module):
    r"""Computes on S inputs in superposition: the trunk, where the work is, runs once for all of them.

    .. math::
        z_i = \mathrm{stem}(x_i), \qquad u = \mathrm{trunk}\Bigl(\sum_{i=1}^{N} M_i z_i\Bigr), \qquad
        y_i = \mathrm{head}\bigl(\mathrm{act}(U_i u + c_i)\bigr)

    Consecutive inputs of a batch share a superposition. With S < N (dynamic mode), every input takes N / S slots, and
    the answers of its slots are averaged: slower, and more accurate. A batch that is not a multiple of S is filled up
    with inputs from its beginning, whose second answers are dropped. The answer to an input depends on the inputs
    beside it: `regrouping_spread` says how much.

    Batch norms of trunk and head are replaced by ones that keep the running statistics of every S apart. Which are in
    use is chosen by the call, and stays: with activation checkpointing go back through one S before the forward of the
    next. ``nn.SyncBatchNorm.convert_sync_batchnorm`` knows no such norms, so leave it out.

    Args:
        stem: (B, ...) to (B, D, \*), run for every input.
        trunk: (G, D, \*) to (G, F) or (G, F, \*), run for every superposition.
        head: (B, F) or (B, F, \*) to the answers, run for every input.
        num_inputs: N, at least 1; 1 without binding is the plain network, to the bit.
        binding: "hrr", "mbat", "map", "fhrr" or "none", or a ``Binding`` for N inputs. What is made by name has device
            and type of the trunk.
        trainable_keys: whether the keys are learned.
        channels: D; None asks a dry run of the stem.
        features: F; None asks a dry run of the trunk.
        example: a batch for the dry run; None makes one up from the first layer of the stem.
        activation: of the unbinding; None is ReLU.
        channel_dim: where D and F stand: 1, or -1 for tokens, (B, tokens, D).
        binding_options: of the binding, such as ``{"unitary": True}``.

    Raises:
        OptionError: the widths cannot be found by a dry run, or an option is wrong.
        SizeError: a binding for another number of inputs or channels.

    Source:
        Menet, Hersche, Karunaratne, Benini, Sebastian, Rahimi 2023, MIMONets: Multiple-Input-Multiple-Output Neural
        Networks Exploiting Computation in Superposition, section 3, https://arxiv.org/abs/2312.02829.

    Example:
        >>> import torch, weft
        >>> from torch import nn
        >>> stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU())
        >>> trunk = nn.Sequential(nn.Conv2d(16, 32, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> net = weft.MIMO(stem, trunk, nn.Linear(32, 10), num_inputs=4)
        >>> tuple(net(torch.randn(8, 3, 32, 32)).shape)
        (8, 10)
        >>> net.num_superposed = 2  # half as many at once
        >>> tuple(net(torch.randn(5, 3, 32, 32)).shape)
        (5, 10)
    """

    def __init__(
        self,
        stem: nn.Module,
        trunk: nn.Module,
        head: nn.Module,
        num_inputs: int,
        binding: str | Binding = "hrr",
        trainable_keys: bool = True,
        *,
        channels: int | None = None,
        features: int | None = None,
        example: Tensor | None = None,
        activation: nn.Module | None = None,
        channel_dim: int = 1,
        binding_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(num_inputs, int) or num_inputs < 1:
            raise OptionError(f"num_inputs must be at least 1, a whole number; got {num_inputs}")
        if not isinstance(binding, str | Binding):
            raise OptionError(f"binding must be a name or a weft.superposition.Binding, got {type(binding).__name__}")
        if channel_dim not in (1, -1):
            raise OptionError(f"channel_dim must be 1, or -1 for features that stand last, got {channel_dim}")
        if channels is None or features is None:
            channels, features = _dry_run(stem, trunk, channel_dim, example, channels, features)
        if isinstance(binding, str):
            binding = make_binding(binding, num_inputs, channels, trainable=trainable_keys, **(binding_options or {}))
            binding.to(**_place(trunk, stem))
        elif (binding.num_inputs, binding.channels) != (num_inputs, channels):
            raise SizeError(
                f"binding is for {binding.num_inputs} inputs of {binding.channels} channels, the network has "
                f"{num_inputs} inputs of {channels} channels; make the binding with these numbers"
            )
        self.num_inputs, self.channel_dim = num_inputs, channel_dim
        self.capacities = tuple(s for s in range(1, num_inputs + 1) if num_inputs % s == 0)
        self.stem, self.binding = stem, binding
        self.trunk = make_switchable(trunk, self.capacities) if num_inputs > 1 else trunk
        plain = num_inputs == 1 and type(binding).__name__ == "Bundle"
        self.unbinding = (
            None if plain else Unbinding(num_inputs, features, activation=activation, **_place(trunk, stem))
        )
        self.head = make_switchable(head, self.capacities) if num_inputs > 1 else head
        self._num_superposed = num_inputs

    @property
    def num_superposed(self) -> int:
        """How many inputs share a superposition, S; divides ``num_inputs``."""
        return self._num_superposed

    @num_superposed.setter
    def num_superposed(self, value: int) -> None:
        self._num_superposed = check_num_superposed(value, self.num_inputs)
        self._switch(value)

    def _switch(self, num_superposed: int) -> None:
        """Choose the statistics of trunk and head."""
        if self.num_inputs > 1:
            switch(self.trunk, num_superposed)
            switch(self.head, num_superposed)

    def forward(self, x: Tensor, num_superposed: int | None = None) -> Tensor:
        """The answers.

        Args:
            x: (B, ...), any B from 1.
            num_superposed: S for this call; None is that of the network.

        Returns:
            (B, ...), one answer per input, in their order.

        Raises:
            SizeError: S does not divide N.
        """
        inputs = (
            self._num_superposed if num_superposed is None else check_num_superposed(num_superposed, self.num_inputs)
        )
        z = self.stem(x)
        if self.unbinding is None:
            return self.head(self.trunk(z))
        self._switch(inputs)
        if missing := -x.shape[0] % inputs:
            # not zeros, which the trunk has never seen
            z = torch.cat([z, z[torch.arange(missing, device=z.device) % x.shape[0]]])
        groups = self._to_first(z).unflatten(0, (-1, inputs))
        u = self.trunk(self._to_own(self.binding(groups)))
        v = self.unbinding(self._to_first(u), inputs).flatten(0, 1)
        return self.head(self._to_own(v[: x.shape[0]]))

    def uncalibrated(self, *capacities: int) -> list[int]:
        """The S among these for which the batch norms have seen no batch: train with them, or ``recalibrate``.

        Args:
            *capacities: numbers of superposed inputs; none asks for all divisors of N.

        Returns:
            those that an evaluation should not use yet.
        """
        wanted = [check_num_superposed(s, self.num_inputs) for s in capacities]
        return uncalibrated(self, wanted or self.capacities)

    def extra_repr(self) -> str:
        return f"num_inputs={self.num_inputs}, num_superposed={self.num_superposed}"

    def _to_first(self, x: Tensor) -> Tensor:
        return x.movedim(-1, 1) if self.channel_dim == -1 else x

    def _to_own(self, x: Tensor) -> Tensor:
        return x.movedim(1, -1) if self.channel_dim == -1 else x


def _dry_run(
    stem: nn.Module,
    trunk: nn.Module,
    channel_dim: int,
    example: Tensor | None,
    channels: int | None,
    features: int | None,
) -> tuple[int, int]:
    """D and F, from copies in evaluation mode: nothing of the modules changes."""
    x = _probe(stem, channel_dim) if example is None else example
    try:
        with torch.no_grad():
            z = copy.deepcopy(stem).eval()(x)
            u = copy.deepcopy(trunk).eval()(z)
    except Exception as error:
        raise OptionError(
            f"channels and features could not be found by running stem and trunk on an input of shape "
            f"{tuple(x.shape)} ({error}); give channels= and features=, or a batch of inputs as example="
        ) from error
    return channels or z.shape[channel_dim], features or u.shape[channel_dim]


def _place(*modules: nn.Module) -> dict[str, Any]:
    """Device and type of the first parameter of floating point."""
    for parameter in itertools.chain.from_iterable(module.parameters() for module in modules):
        if parameter.is_floating_point():
            return {"device": parameter.device, "dtype": parameter.dtype}
    return {}


def _probe(stem: nn.Module, channel_dim: int) -> Tensor:
    for module in stem.modules():
        for kind, sides in _PROBES.items():
            if isinstance(module, kind) or type(module).__name__.endswith(kind.__name__):
                return _random(module, (2, module.in_channels, *sides))  # type: ignore[arg-type]
        if hasattr(module, "in_features"):
            tokens = (8,) if channel_dim == -1 else ()
            return _random(module, (2, *tokens, module.in_features))  # type: ignore[arg-type]
    raise OptionError(
        "the stem has no convolution or linear layer to learn the shape of an input from; give channels= and "
        "features=, or a batch of inputs as example="
    )


def _random(module: nn.Module, shape: tuple[int, ...]) -> Tensor:
    place = next(itertools.chain(module.parameters(), module.buffers()))
    return torch.rand(shape, device=place.device, dtype=place.dtype)
