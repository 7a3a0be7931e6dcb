"""Linear: ``torch.nn.Linear`` with a weight of any family."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft.errors import SizeError
from weft.layers.base import Layer
from weft.parametrizations import Parametrization


class Linear(Layer):
    """``y = x W^T + b``, with W (out, in) described by a parametrization.

    Takes the arguments of ``torch.nn.Linear``, then the family and its options. In evaluation without gradients a
    dense weight that has to be built is built once and kept (see ``clear_cache``).

    Args:
        in_features: I, size of each input row.
        out_features: O, size of each output row.
        bias: whether to add a learned bias (O,).
        parametrization: family name (``weft.families()``), or a ``Parametrization`` of shape (O, I).
        path: ``"auto"`` (the fastest way by a model of the machine), ``"factored"`` or ``"dense"``.
        init: variance of the initial weight: ``"default"`` as nn.Linear, ``"he"`` 2/I, ``"glorot"`` 2/(I + O).
        device: as in torch.
        dtype: as in torch.
        **options: of the family, such as ``rank`` or ``n``; or ``share``, stored over dense numbers, in (0, 1].

    Raises:
        SizeError: sizes smaller than 1 or not as the family needs them.
        OptionError: an unknown name or option; the message gives the nearest.
        BudgetError: ``share`` too small; the message gives the smallest that works.

    Example:
        >>> import torch, weft
        >>> layer = weft.Linear(784, 512, parametrization="low_rank", share=0.1)
        >>> tuple(layer(torch.randn(3, 5, 784)).shape), tuple(layer.weight.shape)
        ((3, 5, 512), (512, 784))
    """

    torch_class = nn.Linear

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        parametrization: str | Parametrization = "dense",
        path: str = "auto",
        init: str = "default",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if min(in_features, out_features) < 1:
            raise SizeError(f"in_features and out_features must be at least 1, got {in_features} and {out_features}")
        self.in_features, self.out_features = in_features, out_features
        template = nn.Linear(in_features, out_features, bias, device="meta")
        shape = (out_features, in_features)
        self._set_up(template, shape, 1, parametrization, path, init, device, dtype, options)

    def forward(self, x: Tensor) -> Tensor:
        # Straight from the dictionaries: nn.Module's attribute look-up is a third of the overhead of a small layer.
        parameters = self._parameters
        bias = parameters["bias"] if "bias" in parameters else self.bias  # FSDP1 makes it a plain attribute
        if self._uses_factors(x):
            return self._modules["parametrization"].linear(x, bias)
        return F.linear(x, self._effective_weight(), bias)

    def _to_weight(self, matrix: Tensor) -> Tensor:
        return matrix

    def _to_matrix(self, weight: Tensor) -> Tensor:
        return weight

    def _can_factor(self) -> bool:
        return type(self.parametrization).linear is not Parametrization.linear  # the default builds the matrix

    def _rows(self, x: Tensor) -> int:
        return math.prod(x.shape[:-1])

    def _arguments(self) -> dict[str, Any]:
        return {"in_features": self.in_features, "out_features": self.out_features, "bias": self.bias is not None}

    @classmethod
    def _arguments_of(cls, module: nn.Linear) -> dict[str, Any]:
        return {
            "in_features": module.in_features,
            "out_features": module.out_features,
            "bias": module.bias is not None,
        }
