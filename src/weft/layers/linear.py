"""Linear: ``torch.nn.Linear`` with a weight of any family."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft.errors import SizeError
from weft.layers.base import Layer
from weft.parametrizations import Parametrization, Stage

_CHUNK = 128  # rows of one part of a large input


def _stage_product(x: Tensor, stages: list[Stage]) -> Tensor:
    rows = x.shape[0]
    y = x.t()
    for matrix, inner in stages:
        groups, _, columns = matrix.shape
        y = torch.bmm(matrix, y.reshape(groups, columns, inner * rows))
    return y.reshape(y.shape[0] * y.shape[1] * stages[-1].inner, rows).t().contiguous()


def run_stages(x: Tensor, stages: list[Stage], bias: Tensor | None) -> Tensor:
    """The product of an input with a matrix given by stages.

    Rows are the last dimension on the way, so that every stage is one batched matrix product without a copy.

    Args:
        x: (..., I).
        stages: of the matrix, first applied first.
        bias: (O,) or None.

    Returns:
        (..., O).
    """
    rows = math.prod(x.shape[:-1])
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or rows < 4 * _CHUNK:
        y = _stage_product(x.reshape(rows, x.shape[-1]), stages)
    else:  # what the stages pass on stays in the caches
        y = torch.cat([_stage_product(part, stages) for part in x.reshape(rows, x.shape[-1]).split(_CHUNK)])
    y = y.reshape(*x.shape[:-1], y.shape[-1])
    return y if bias is None else y + bias.to(y.dtype)


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
        way = self._way(x)
        if way == "factored":
            return self._modules["parametrization"].linear(x, bias)  # type: ignore[union-attr, operator]
        if way.endswith("stages") and (stages := self._current_stages(way)) is not None:
            return run_stages(x, stages, bias)
        return F.linear(x, self._effective_weight(), bias)

    def _to_weight(self, matrix: Tensor) -> Tensor:
        return matrix

    def _to_matrix(self, weight: Tensor) -> Tensor:
        return weight

    def _ways(self, evaluation: bool) -> list[str]:
        weight = self.parametrization
        # The default product builds the matrix, so it is no way of its own.
        ways = ["factored"] if type(weight).linear is not Parametrization.linear else []
        if weight.stage_build_cost() and weight.stage_shapes(evaluation) is not None:  # else "factored" is the same
            ways.append("cached stages" if evaluation else "stages")
        return ways

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
