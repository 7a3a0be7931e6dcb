"""EPLinear: a linear layer in the form of several.

y = W_L(... (W_2 (W_1 x + b_1) + b_2) ...) + b_L = W x + b
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft.errors import SizeError
from weft.overparam.base import BatchNorm, EPLayer, hidden_channels


class EPLinear(EPLayer):
    """``torch.nn.Linear`` in the form of L linear layers with nothing but skips and batch norms between them.

        W = W_L ... W_2 W_1,    b = b_L + W_L b_{L-1} + ... + W_L ... W_2 b_1
        W_1 (H, I),  W_2 ... W_{L-1} (H, H),  W_L (O, H)

    The functions are those of one linear layer, but gradient descent on the factors is drawn to weights of small
    effective rank, the more the deeper. Costs more in training, and nothing afterwards: evaluation runs one layer, and
    ``fold`` gives it. ``forward(x, expanded=True)`` runs the sub-layers one by one in any mode.

    Args:
        in_features: I.
        out_features: O.
        width: H over O, H = int(O * width). Below min(O, I)/O it limits the rank of the weight.
        depth: L, at least 1.
        bias: whether every sub-layer has a bias.
        batch_norm: True puts a batch norm after every sub-layer, and then training runs them one by one; ``"output"``
            puts one after the whole layer, which is put together in training too. As every batch norm, it cannot train
            on a single row.
        residual: whether skips add earlier nodes to later ones.
        residual_intervals: how many sub-layers a skip passes over, -1 for all; a list for several at once. A skip of
            interval n ends after sub-layers n, 2n, ... It is added after the batch norm, so that y = x + BN(F(x)).
        residual_mode: ``"none"`` adds the node itself, ``"learn"`` a learned linear map G of it without bias.
        negative_slope: of the leaky ReLU that follows, for the initial gain of the last sub-layer.
        device: as in torch.
        dtype: as in torch.

    Shape:
        (..., I) -> (..., O); batch norm takes its statistics over all rows.

    Parameters stored:
        layers.N.weight, layers.N.bias; norms.N.* or norm.*; skips.START_END.weight.
        H*I + (L - 2)*H^2 + O*H numbers of weights for L >= 2.

    Initial law:
        normal with variance 1/fan_in, the last one 2/(1 + negative_slope^2) times that; biases uniform within
        1/sqrt(fan_in); batch norms 1 and 0.

    Cost:
        per row as many multiply-adds as weights; or O*I, after H*I*(O + (L - 2)*H) to put them together. The cheaper is
        taken.

    Raises:
        SizeError: sizes below 1, or a skip between unequal widths.
        OptionError: an option out of range, or ``residual_intervals`` that make no skip.

    Source:
        Huh, Mobahi, Zhang, Cheung, Agrawal, Isola 2023, The Low-Rank Simplicity Bias in Deep Networks, TMLR,
        https://arxiv.org/abs/2103.10427. One batch norm after what is put together in training: Hu et al. 2022, Online
        Convolutional Re-parameterization, https://arxiv.org/abs/2204.00826.

    Example:
        >>> import torch, weft
        >>> layer = weft.EPLinear(12, 8, depth=4, width=2)
        >>> tuple(layer(torch.randn(3, 12)).shape), tuple(layer.weight.shape)
        ((3, 8), (8, 12))
        >>> type(layer.fold())
        <class 'torch.nn.modules.linear.Linear'>
    """

    torch_class, _norm_class, _keeps_gradient = nn.Linear, nn.BatchNorm1d, False

    def __init__(
        self,
        in_features: int,
        out_features: int,
        width: float = 1,
        depth: int = 2,
        bias: bool = True,
        batch_norm: BatchNorm = False,
        residual: bool = False,
        residual_intervals: int | Sequence[int] = 2,
        residual_mode: str = "none",
        negative_slope: float = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if min(in_features, out_features) < 1:
            raise SizeError(f"in_features and out_features must be at least 1, got {in_features} and {out_features}")
        hidden = hidden_channels(out_features, width, depth)
        self.in_features, self.out_features, self.width = in_features, out_features, width
        widths = [in_features, *[hidden] * (depth - 1), out_features]
        layers = [nn.Linear(*sides, bias, device=device, dtype=dtype) for sides in itertools.pairwise(widths)]
        self._set_up(layers, widths, batch_norm, residual, residual_intervals, residual_mode, negative_slope)

    def _make_skip(self, start_channels: int, end_channels: int, common: dict[str, Any]) -> nn.Module:
        return nn.Linear(start_channels, end_channels, bias=False, **common)

    def _strides(self) -> int:
        return 1

    def _arguments(self) -> dict[str, Any]:
        return {"in_features": self.in_features, "out_features": self.out_features, "bias": self._has_bias}

    @classmethod
    def _arguments_of(cls, module: Any, depth: int) -> dict[str, Any]:
        sizes = {"in_features": module.in_features, "out_features": module.out_features}
        return {**sizes, "depth": depth, "bias": module.bias is not None}

    def _rows(self, x: Tensor) -> int:
        return math.prod(x.shape[:-1])

    def _run(self, x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, kernel, bias)

    def _padded(self, x: Tensor, always: bool) -> Tensor:
        return x

    def _cropped(self, x: Tensor, like: Tensor, start: int, end: int) -> Tensor:
        return x

    def _normalised(self, x: Tensor, norm: nn.Module) -> Tensor:
        return norm(x.reshape(-1, x.shape[-1])).reshape(x.shape)
