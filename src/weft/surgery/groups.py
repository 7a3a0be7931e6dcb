"""parameter_groups: learning rates and weight decay as each family needs them."""

from __future__ import annotations

from typing import Any, get_args

from torch import nn

from weft.errors import OptionError
from weft.layers import ResidualGate
from weft.parametrizations import Parametrization, Stacked, record_of
from weft.parametrizations.registry import OptimizerKind
from weft.superposition import FHRR, HRR

_UNDECAYED = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.PReLU, ResidualGate)


def parameter_groups(
    model: nn.Module, lr: float, weight_decay: float = 0.0, *, optimizer: OptimizerKind = "adam"
) -> list[dict[str, Any]]:
    """Optimizer groups with each family's learning-rate multiplier and decay rule.

    Parameters of a parametrization follow the record of their family: at the rate that suits a dense layer, a step
    then changes the outputs of a structured layer by about as much as those of a dense one. Of the others, biases,
    gates, single numbers, slopes of PReLUs, the parameters of normalisation layers and the angles of ``fhrr`` and
    unitary ``hrr`` keys, which decay would pull to one key, take no weight decay. Frozen parameters are left out; a
    shared one is in one group.

    Args:
        model: any module.
        lr: learning rate of a dense layer, at least 0.
        weight_decay: of those parameters that take it, at least 0.
        optimizer: "adam" for optimizers whose steps do not depend on the size of the gradient (Adam, AdamW, RMSprop,
            Adagrad, Lion); "sgd" for SGD with or without momentum. The families' multipliers differ.

    Returns:
        groups with ``params``, ``lr`` and ``weight_decay``, for an optimizer of that kind.

    Raises:
        OptionError: a negative rate or decay, another kind of optimizer, or a model without trainable parameters.

    Source:
        Qiu et al. 2024, Compute Better Spent, section 3, https://arxiv.org/abs/2406.06248: a factor of fan-in f trains
        at the rate of a dense layer of that fan-in. Here the sizes of the factors at the start count too.

    Example:
        >>> import torch, weft
        >>> groups = weft.parameter_groups(weft.PHMLinear(8, 8), lr=0.1, weight_decay=1e-4)
        >>> [(len(g["params"]), g["lr"], g["weight_decay"]) for g in groups]
        [(2, 0.1, 0.0), (1, 0.2, 0.0001)]
        >>> optimizer = torch.optim.AdamW(groups)
    """
    if lr < 0 or weight_decay < 0:
        raise OptionError(f"lr and weight_decay must be at least 0, got {lr} and {weight_decay}")
    if optimizer not in get_args(OptimizerKind):
        raise OptionError(f"optimizer must be 'adam' (Adam and its kin) or 'sgd', got {optimizer!r}")
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    seen: set[nn.Parameter] = set()

    def add(parameter: nn.Parameter, multiplier: float, decays: bool) -> None:
        if parameter.requires_grad and parameter not in seen:
            seen.add(parameter)
            groups.setdefault((lr * multiplier, weight_decay if decays else 0.0), []).append(parameter)

    members = [module for module in model.modules() if isinstance(module, Parametrization)]
    for member in members:  # first, and outermost first: a family's own rule comes before any other
        if isinstance(member, Stacked):
            continue  # its parts have rules of their own
        record = record_of(member)
        multipliers = record.multipliers(member, optimizer) if record else {}
        for name, parameter in member.named_parameters():
            add(parameter, multipliers.get(name, 1.0), record.weight_decay.get(name, True) if record else True)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            bias = name.startswith("bias") or name.endswith("bias")  # bias_ih_l0, in_proj_bias
            angles = isinstance(module, FHRR) or (isinstance(module, HRR) and module.unitary)
            add(parameter, 1.0, not (bias or angles or parameter.dim() == 0 or isinstance(module, _UNDECAYED)))
    if not groups:
        raise OptionError("model has no trainable parameters; unfreeze some, or there is nothing to optimise")
    return [{"params": groups[key], "lr": key[0], "weight_decay": key[1]} for key in sorted(groups)]
