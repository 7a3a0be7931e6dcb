"""Unbinding: from the features of a superposition back to those of every input."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft.errors import OptionError
from weft.superposition.binding import check_num_superposed


class Unbinding(nn.Module):
    r"""One learned map per slot, and the mean over the slots of an input.

    .. math:: v_s = \frac{S}{N} \sum_r \mathrm{act}(U_{rS+s} u + c_{rS+s})

    Args:
        num_inputs: N, at least 1.
        features: F, of the superposition and of every input.
        activation: act; None is ReLU.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        OptionError: ``num_inputs`` or ``features`` is below 1.

    Source:
        Menet et al. 2023, MIMONets, section 3, https://arxiv.org/abs/2312.02829.

    Example:
        >>> import torch
        >>> tuple(Unbinding(4, 32)(torch.randn(5, 32), num_superposed=2).shape)
        (5, 2, 32)
    """

    def __init__(
        self,
        num_inputs: int,
        features: int,
        *,
        activation: nn.Module | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("num_inputs", num_inputs), ("features", features)):
            if value < 1:
                raise OptionError(f"{name} must be at least 1, got {value}")
        self.num_inputs, self.features = num_inputs, features
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.empty(num_inputs * features, features, **place))
        self.bias = nn.Parameter(torch.empty(num_inputs * features, **place))
        self.activation = nn.ReLU() if activation is None else activation
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Kaiming normal weights by the fan-out of one slot, and biases as those of ``torch.nn.Linear``."""
        nn.init.normal_(self.weight, std=(2 / (self.num_inputs * self.features)) ** 0.5)
        bound = self.features**-0.5
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, u: Tensor, num_superposed: int | None = None) -> Tensor:
        r"""Features of every input.

        Args:
            u: (B, F, \*) of B superpositions.
            num_superposed: S, divides N; None is N.

        Returns:
            (B, S, F, \*).
        """
        inputs = check_num_superposed(self.num_inputs if num_superposed is None else num_superposed, self.num_inputs)
        space = u.shape[2:]
        if space:
            flat = F.conv1d(u.flatten(2), self.weight[:, :, None], self.bias)
        else:
            flat = F.linear(u, self.weight, self.bias)
        slots = self.activation(flat).reshape(u.shape[0], self.num_inputs // inputs, inputs, self.features, *space)
        return slots.mean(1)

    def extra_repr(self) -> str:
        return f"num_inputs={self.num_inputs}, features={self.features}"
