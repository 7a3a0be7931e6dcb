"""Linear: ``torch.nn.Linear`` with a weight of any family."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft.errors import SizeError
from weft.layers.base import Layer
from weft.layers.chunks import chunk_rows, in_chunks
from weft.modes import is_plain
from weft.parametrizations import Parametrization, Stage


def _split(y: Tensor, parts: int) -> Tensor:
    """Features (parts, rows, size) cut into another number of parts; without a copy where there was one part."""
    if y.shape[0] == parts:
        return y
    size = y.shape[0] * y.shape[2] // parts
    return y.transpose(0, 1).reshape(y.shape[1], parts, size).transpose(0, 1)


def _stage_product(x: Tensor, stages: list[Stage]) -> Tensor:
    """The product of (rows, I) with every stage, as (parts, rows, size): feature = part * size + place.

    Parts lead, so that a stage that mixes parts is one matrix product, and one that keeps them a batch of products.
    """
    y, rows, rows_lead = x.unsqueeze(0), x.shape[0], True
    for matrix, inner in stages:
        groups, out, columns = matrix.shape
        if inner == 1:
            y, rows_lead = torch.bmm(_split(y, groups), matrix.transpose(1, 2)), False
        elif groups > 1:
            y = _split(y, 1)[0].reshape(rows, groups, columns, inner)
            y, rows_lead = (matrix @ y).reshape(1, rows, groups * out * inner), True
        elif rows_lead:  # in memory (rows, parts, size) still
            y = (matrix[0] @ _split(y, columns).transpose(0, 1)).transpose(0, 1)
        else:
            y = (matrix[0] @ _split(y, columns).reshape(columns, rows * inner)).reshape(out, rows, inner)
    return y


def run_stages(x: Tensor, stages: list[Stage], bias: Tensor | None, inference: bool) -> Tensor:
    """The product of an input with a matrix given by stages.

    Args:
        x: (..., I).
        stages: of the matrix, first applied first.
        bias: (O,) or None.
        inference: whether tensors are plain and nobody wants gradients: large inputs then run in chunks.

    Returns:
        (..., O).
    """

    def product(part: Tensor) -> Tensor:
        return _stage_product(part, stages).transpose(0, 1)  # (B, parts, size)

    if inference:
        traffic = sum(len(matrix) * matrix.shape[1] * inner for matrix, inner in stages)
        return in_chunks(product, x, traffic, bias)
    y = product(x.reshape(-1, x.shape[-1]))
    y = y.reshape(*x.shape[:-1], y.shape[1] * y.shape[2])
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

    def forward(self, input: Tensor) -> Tensor:
        # Straight from the dictionaries: nn.Module's attribute look-up is a third of the overhead of a small layer.
        parameters = self._parameters
        bias = parameters["bias"] if "bias" in parameters else self.bias  # FSDP1 makes it a plain attribute
        way = self._way(input)
        if way == "factored":
            weight: Parametrization = self._modules["parametrization"]  # type: ignore[assignment]
            if self._traffic and self._runs_in_chunks(input):
                return in_chunks(weight.linear, input, self._traffic, bias)
            return weight.linear(input, bias)
        if way.endswith("stages") and (stages := self._current_stages(way)) is not None:
            return run_stages(input, stages, bias, inference=way == "cached stages")
        return F.linear(input, self._effective_weight(), bias)

    def _runs_in_chunks(self, x: Tensor) -> bool:
        """Whether rows are many, nobody wants gradients, and nothing records the program, which this would restrict."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or not is_plain():
            return False
        return self._rows(x) >= 2 * chunk_rows(self._traffic)

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
