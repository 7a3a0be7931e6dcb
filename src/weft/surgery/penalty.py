"""algebra_penalty: an L1 term on the learned algebras of a model."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from weft.errors import OptionError
from weft.parametrizations import Parametrization


def algebra_penalty(model: nn.Module, weight: float = 1e-3) -> Tensor:
    """``weight * sum |A|`` over the learned algebras of a model, to be added to the loss.

    It drives the mixing matrices A of PHM and PHC layers towards sparse ones, such as the tables of the known
    algebras, whose entries are 0 and +-1. Fixed algebras and other families add nothing. A parametrization or a tensor
    A that several layers share is counted once.

    Args:
        model: any module.
        weight: factor of the sum, finite and at least 0.

    Returns:
        a number (0-dim tensor) on the model's device, differentiable; 0 where there is nothing to penalise.

    Raises:
        OptionError: ``weight`` is negative or not finite.

    Source:
        The l1_reg option of the code of Grassucci et al. 2022, PHNNs, https://arxiv.org/abs/2110.04176.

    Example:
        >>> import torch, weft
        >>> layer = weft.PHMLinear(8, 8, n=2)
        >>> penalty = weft.algebra_penalty(layer, weight=0.5)
        >>> torch.equal(penalty, 0.5 * layer.parametrization.mixing.abs().sum())
        True
    """
    if not (math.isfinite(weight) and weight >= 0):
        raise OptionError(f"weight of the penalty must be finite and at least 0, got {weight}")
    first = next(model.parameters(), None)
    total = torch.zeros((), device=None if first is None else first.device)
    seen: set[Tensor] = set()
    for member in model.modules():
        algebra = member.learned_algebra() if isinstance(member, Parametrization) else None
        if algebra is not None and algebra not in seen:
            seen.add(algebra)  # kept alive, so that no identity is used twice
            work = torch.promote_types(algebra.dtype, torch.float32)
            total = total + algebra.abs().sum(dtype=work).to(total.device)
    return weight * total
