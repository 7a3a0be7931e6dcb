"""Batch norm with one set of running statistics per number of superposed inputs.

A superposition of four inputs has another mean and variance than one of a single input, so a network that is used with
several S needs several sets; the weights are shared. The idea is that of slimmable networks (Yu et al. 2019, section
3.2, https://arxiv.org/abs/1812.08928: "switchable batch normalization").
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from weft.errors import OptionError
from weft.layers.foldable import carry_hooks
from weft.superposition.binding import check_num_superposed

_PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class SwitchableBatchNorm(_BatchNorm):
    """Batch norm whose running statistics are those of the S in use.

    Buffers ``running_mean`` and ``running_var`` are (K, channels), ``num_batches_tracked`` is (K,), one row per S.

    Args:
        plain: its weight, bias and hooks are taken over, and its running statistics, for every S, as a start: they
            count as those of no S.
        capacities: the K numbers of superposed inputs, ascending.
    """

    def __init__(self, plain: _BatchNorm, capacities: Sequence[int]) -> None:
        nn.Module.__init__(self)
        self.num_features, self.eps, self.momentum = plain.num_features, plain.eps, plain.momentum
        self.affine, self.track_running_stats = plain.affine, plain.track_running_stats
        self.weight, self.bias = plain.weight, plain.bias
        self.capacities = tuple(capacities)
        self.row = len(capacities) - 1
        assert (
            plain.running_mean is not None and plain.running_var is not None and plain.num_batches_tracked is not None
        )
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            buffer = getattr(plain, name)
            self.register_buffer(name, buffer.expand(len(capacities), *buffer.shape).clone())
        self.num_batches_tracked.zero_()  # type: ignore[union-attr]
        self.train(plain.training)
        carry_hooks(plain, self)

    def reset_running_stats(self) -> None:
        """Forget the statistics of every S."""
        self.running_mean.zero_()  # type: ignore[union-attr]
        self.running_var.fill_(1)  # type: ignore[union-attr]
        self.num_batches_tracked.zero_()  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        mean, var, seen = self.running_mean[self.row], self.running_var[self.row], self.num_batches_tracked  # type: ignore[index]
        momentum = self.momentum
        if self.training:
            seen[self.row] += 1  # type: ignore[index]
            if momentum is None:  # the mean of all batches
                momentum = 1 / float(seen[self.row])  # type: ignore[index]
        return F.batch_norm(x, mean, var, self.weight, self.bias, self.training, momentum or 0.0, self.eps)

    def _check_input_dim(self, x: Tensor) -> None:
        """Any number of dimensions will do."""

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:  # type: ignore[no-untyped-def]
        # A plain network's checkpoint has one set: a start for every S, and of none of them.
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            own, given = getattr(self, name), state_dict.get(prefix + name)
            if given is not None and given.dim() == own.dim() - 1:
                given = torch.zeros_like(given) if name == "num_batches_tracked" else given
                state_dict[prefix + name] = given.expand_as(own).clone()
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def make_switchable(
    module: nn.Module, capacities: Sequence[int], made: dict[nn.Module, nn.Module] | None = None
) -> nn.Module:
    """Put switchable batch norms in the place of plain ones that keep running statistics.

    Args:
        module: is changed, unless it is a batch norm itself.
        capacities: the numbers of superposed inputs, ascending.
        made: what was put in the place of what already, so that a norm in several places stays one.

    Returns:
        the module, or what takes its place.

    Raises:
        OptionError: a batch norm that is none of torch's three, or switchable with other capacities.
    """
    made = {} if made is None else made
    if module in made:
        return made[module]
    if isinstance(module, _BatchNorm) and module.track_running_stats:
        if isinstance(module, SwitchableBatchNorm) and module.capacities == tuple(capacities):
            return module
        if type(module) not in _PLAIN:
            raise OptionError(
                f"the network has a {type(module).__name__}, whose running statistics cannot be kept for every number "
                f"of superposed inputs {tuple(capacities)}; use nn.BatchNorm2d of its own, GroupNorm or LayerNorm"
            )
        made[module] = SwitchableBatchNorm(module, capacities)
        return made[module]
    made[module] = module
    for name, child in list(module._modules.items()):
        if child is not None:
            setattr(module, name, make_switchable(child, capacities, made))
    return module


def switch(module: nn.Module, num_superposed: int) -> None:
    """Choose the statistics.

    Args:
        module: all switchable batch norms in it change.
        num_superposed: S.
    """
    for each in norms(module):
        each.row = each.capacities.index(num_superposed)


def norms(module: nn.Module) -> list[SwitchableBatchNorm]:
    """The switchable batch norms of a module.

    Args:
        module: any.

    Returns:
        in the order of ``modules()``.
    """
    return [each for each in module.modules() if isinstance(each, SwitchableBatchNorm)]


def uncalibrated(module: nn.Module, capacities: Iterable[int]) -> list[int]:
    """The S whose statistics no batch has entered.

    Args:
        module: with switchable batch norms or without.
        capacities: the S in question.

    Returns:
        those for which evaluation would normalise with statistics of nothing, or of another S.
    """
    first = next(iter(norms(module)), None)
    if first is None:
        return []
    return [s for s in capacities if not int(first.num_batches_tracked[first.capacities.index(s)])]  # type: ignore[index]


@torch.no_grad()
def recalibrate(net: nn.Module, batches: Iterable[Tensor], num_superposed: int, max_batches: int = 100) -> int:
    """Measure the batch-norm statistics of one S anew, as the mean over batches; weights stay.

    For an S that the network was not trained with, or after the weights were changed by hand. All other modules stay
    in the mode they are in (dropout, for one, off in evaluation).

    Args:
        net: a ``MIMO`` network.
        batches: of training inputs, as the network takes them.
        num_superposed: S.
        max_batches: the most batches that are used, at least 1.

    Returns:
        the number of batches used.

    Raises:
        OptionError: there were no batches, or they are no tensors.
        SizeError: S does not divide N.

    Example:
        >>> import torch, weft
        >>> net = weft.models.mimonet(10, 1, num_inputs=4).eval()
        >>> recalibrate(net, [torch.randn(16, 3, 16, 16)], num_superposed=2)
        1
    """
    own: Any = net
    check_num_superposed(num_superposed, own.num_inputs)
    if max_batches < 1:
        raise OptionError(f"max_batches must be at least 1, got {max_batches}")
    first = next(given := iter(batches), None)
    if first is None:
        raise OptionError("batches is empty: recalibration needs at least one batch of training inputs")
    if not isinstance(first, Tensor):
        raise OptionError(f"batches must be tensors of inputs, without labels; got {type(first).__name__}")
    switchable = norms(net)
    before = [(each.momentum, each.training) for each in switchable]
    for each in switchable:
        row = each.capacities.index(num_superposed)
        each.num_batches_tracked[row] = 0  # type: ignore[index]
        each.momentum, each.training = None, True
    used = 0
    try:
        for batch in itertools.islice(itertools.chain([first], given), max_batches):
            net(batch, num_superposed=num_superposed)
            used += 1
    finally:
        for each, (momentum, training) in zip(switchable, before, strict=True):
            each.momentum, each.training = momentum, training
    return used
