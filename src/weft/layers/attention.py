"""Multi-head attention with projections of any family.

    head_h = softmax(q_h k_h^T / sqrt(d) + mask) v_h,    q = x_q W_q^T + b_q, and so on
    y = [head_1, ..., head_H] W_o^T + b_o

Letters: E = width; H = heads, d = E/H; N = batch; L, S = number of queries and of keys.
"""

from __future__ import annotations

from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft.errors import OptionError, SizeError
from weft.layers.cache import WeightCache, count_sources
from weft.layers.composite import Composite, Maker
from weft.layers.linear import Linear
from weft.modes import is_recording

_SMALL_PRODUCT = 2**23  # multiply-adds of a dense projection that no factors win back from torch's fused kernel
_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")


class _NoTensor:
    """What stands for ``in_proj_weight``: torch's encoders see that it is no tensor and call the layer instead."""

    _problem = "weft.MultiheadAttention has no in_proj_weight; q_proj, k_proj and v_proj have a weight each"

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise OptionError(cls._problem)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(self._problem)


class MultiheadAttention(Composite):
    """``torch.nn.MultiheadAttention`` whose four projections are of any family.

    Each projection is a ``weft.Linear`` of its own, which takes the fastest way for the rows it gets. Inside
    ``nn.TransformerEncoderLayer`` it turns off that layer's fused kernel, which knows dense weights only.

    Args:
        embed_dim: E, width of queries and outputs.
        num_heads: H, divides E.
        dropout: of the attention weights in training, in [0, 1].
        bias: whether the projections add biases.
        add_bias_kv: whether a learned key and value are appended to the sequence.
        add_zero_attn: whether a key and value of zeros are appended.
        kdim: width of the keys, None for E.
        vdim: width of the values, None for E.
        batch_first: whether inputs are (N, L, E) instead of (L, N, E).
        device: as in torch.
        dtype: as in torch.
        parametrization: family name (``weft.families()``), or a function ``make(shape, variance=..., device=...,
            dtype=...)`` that gives a member.
        path: of the projections: ``"auto"``, ``"factored"`` or ``"dense"``.
        **options: of the family, such as ``n`` or ``share``; they hold for every projection.

    Raises:
        SizeError: H does not divide E, or sizes that the family cannot take.
        OptionError: an unknown name or option; the message gives the nearest.

    Source:
        Vaswani et al. 2017, section 3.2.2, https://arxiv.org/abs/1706.03762, in torch's variant. Hypercomplex
        projections: Zhang et al. 2021, section 4.2, https://arxiv.org/abs/2102.08597.

    Example:
        >>> import torch, weft
        >>> layer = weft.MultiheadAttention(16, 4, batch_first=True, parametrization="kronecker", n=4)
        >>> x = torch.randn(2, 7, 16)
        >>> y, weights = layer(x, x, x)
        >>> tuple(y.shape), tuple(weights.shape)
        ((2, 7, 16), (2, 7, 7))
    """

    torch_class = nn.MultiheadAttention
    _has_paths = True
    #: What torch's encoder layers ask for before they take their fused kernel.
    _qkv_same_embed_dim = False
    q_proj: Linear
    k_proj: Linear
    v_proj: Linear
    out_proj: Linear
    bias_k: nn.Parameter | None
    bias_v: nn.Parameter | None

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        parametrization: str | Maker = "dense",
        path: str = "auto",
        **options: Any,
    ) -> None:
        super().__init__()
        if min(embed_dim, num_heads) < 1 or embed_dim % num_heads:
            raise SizeError(f"num_heads must divide embed_dim, both at least 1; got {num_heads} and {embed_dim}")
        self.embed_dim, self.num_heads, self.dropout = embed_dim, num_heads, dropout
        self.kdim, self.vdim = kdim or embed_dim, vdim or embed_dim
        self.add_zero_attn, self.batch_first = add_zero_attn, batch_first
        maker = self._maker(parametrization, device, dtype, options)
        together = self.kdim == self.vdim == embed_dim  # torch then draws the three projections as one matrix
        for name, width in zip(_PROJECTIONS, (embed_dim, self.kdim, self.vdim, embed_dim), strict=True):
            glorot = 2 / (4 * embed_dim if together else embed_dim + width)
            member = maker((embed_dim, width), variance=1 / (3 * embed_dim) if name == "out_proj" else glorot)
            layer = Linear(width, embed_dim, bias, parametrization=member, path=path, device=device, dtype=dtype)
            self.add_module(name, layer)
        self._cache = WeightCache()  # of torch's own module
        for name in ("bias_k", "bias_v"):
            empty = torch.empty((1, 1, embed_dim), device=device, dtype=dtype)
            self.register_parameter(name, nn.Parameter(empty) if add_bias_kv else None)
        self._count_sources()
        with torch.no_grad():
            self._reset_biases()

    def _count_sources(self) -> None:
        self._num_sources = count_sources(self)

    def _reset_biases(self) -> None:
        for layer in self._layers().values():
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        for bias in (self.bias_k, self.bias_v):
            if bias is not None:
                nn.init.xavier_normal_(bias)

    # ------------------------------------------------------------------ from and to torch's module

    def _plain_parameters(self) -> dict[str, list[tuple[str, str]]]:
        three = _PROJECTIONS[:3]
        if self.kdim == self.vdim == self.embed_dim:
            weights = {"in_proj_weight": [(name, "weight") for name in three]}
        else:
            weights = {f"{name}_weight": [(name, "weight")] for name in three}
        outer = {f"out_proj.{name}": [("out_proj", name)] for name in ("weight", "bias")}
        biases = {"in_proj_bias": [(name, "bias") for name in three], "bias_k": [("", "bias_k")]}
        return {**weights, **biases, **outer, "bias_v": [("", "bias_v")]}

    def _arguments(self) -> dict[str, Any]:
        return {
            "embed_dim": self.embed_dim,
            "num_heads": self.num_heads,
            "dropout": self.dropout,
            "bias": self.in_proj_bias is not None,
            "add_bias_kv": self.bias_k is not None,
            "add_zero_attn": self.add_zero_attn,
            "kdim": self.kdim,
            "vdim": self.vdim,
            "batch_first": self.batch_first,
        }

    @classmethod
    def _arguments_of(cls, module: nn.MultiheadAttention) -> dict[str, Any]:
        names = ("embed_dim", "num_heads", "dropout", "add_zero_attn", "kdim", "vdim", "batch_first")
        biases = {"bias": module.in_proj_bias is not None, "add_bias_kv": module.bias_k is not None}
        return {**{name: getattr(module, name) for name in names}, **biases}

    @property
    def in_proj_weight(self) -> Any:
        """No tensor, but what keeps ``nn.TransformerEncoder``, which asks for it first, from taking its fused kernel.

        The weights are those of ``q_proj``, ``k_proj`` and ``v_proj``.
        """
        return _NoTensor()

    @property
    def in_proj_bias(self) -> Tensor | None:
        """The biases of the projections of queries, keys and values, one after the other, read-only; None without."""
        layers = (self.q_proj, self.k_proj, self.v_proj)
        biases: list[Tensor] = [layer.bias for layer in layers if layer.bias is not None]
        return torch.cat(biases) if biases else None

    # ------------------------------------------------------------------ running

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attention, with the arguments and results of ``torch.nn.MultiheadAttention``.

        Args:
            query: (L, N, E); (N, L, E) with ``batch_first``; (L, E) without a batch.
            key: the same with S and kdim.
            value: the same with S and vdim.
            key_padding_mask: (N, S) or (S,), bool (True: left out) or added to the scores.
            need_weights: whether to return the attention weights; without them the fused kernel runs.
            attn_mask: (L, S) or (N*H, L, S), bool (True: left out) or added to the scores.
            average_attn_weights: whether the weights are the mean over the heads.
            is_causal: hint that ``attn_mask`` is the causal mask, which then need not be read.

        Returns:
            the output, shaped as the query, and the weights: (N, L, S) or (N, H, L, S), without N where the query has
            none; None if they are not needed.

        Raises:
            OptionError: ``is_causal`` without the mask that it describes.
            SizeError: inputs of different ranks, or a mask that fits neither shape.
        """
        folded = self._folded(query, key, value)
        if folded is not None:
            masks = {"attn_mask": attn_mask, "key_padding_mask": key_padding_mask, "is_causal": is_causal}
            return folded(
                query, key, value, need_weights=need_weights, average_attn_weights=average_attn_weights, **masks
            )
        if not query.dim() == key.dim() == value.dim() or query.dim() not in (2, 3):
            ranks = (query.dim(), key.dim(), value.dim())
            raise SizeError(f"query, key and value must all have 3 dimensions, or 2 without a batch; got {ranks}")
        if is_causal and attn_mask is None:
            raise OptionError("is_causal is a hint about attn_mask and needs it; give the causal mask too")
        batched = query.dim() == 3
        if not batched:
            query, key, value = (x.unsqueeze(0) for x in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = self.q_proj(query), self.k_proj(key), self.v_proj(value)
        causal = is_causal and key_padding_mask is None and not need_weights and not self._appends()
        mask = None if causal else self._mask(attn_mask, key_padding_mask, q, k.shape[1])
        k, v = self._append(k, self.bias_k), self._append(v, self.bias_v)
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (q, k, v))
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            depth = self.embed_dim // self.num_heads  # not read off a tensor: tracers would make it one
            scores = (q * depth**-0.5) @ k.transpose(-2, -1)
            weights = torch.softmax(scores if mask is None else scores + mask.to(scores.dtype), dim=-1)
            weights = F.dropout(weights, dropout) if dropout else weights
            y = weights @ v
            weights = weights.mean(dim=1) if average_attn_weights else weights
        else:
            y = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=causal)
        y = self.out_proj(y.transpose(1, 2).flatten(-2))
        if not batched:
            return y.squeeze(0), None if weights is None else weights.squeeze(0)
        return y if self.batch_first else y.transpose(0, 1), weights

    def _folded(self, *inputs: Tensor) -> nn.Module | None:
        """In evaluation, where projections run on kept dense weights or are small: torch's own module, kept."""
        if self.training or torch.is_grad_enabled() or is_recording():
            return None
        small = inputs[0].numel() * self.embed_dim < _SMALL_PRODUCT
        for name, x in zip(_PROJECTIONS, (*inputs, inputs[0]), strict=True):
            layer: Any = self._modules[name]
            if not (small and layer.path == "auto") and layer._way(x) not in ("cached", "dense"):
                return None
        return self._cache.lookup(self, "folded", self._num_sources, self.fold)

    def _kernel_macs(self, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
        widths = (query.numel(), key.numel(), value.numel(), query.numel())
        return self.embed_dim * sum(widths)

    def clear_cache(self) -> None:
        """Forget what was built in evaluation."""
        super().clear_cache()
        self._cache.entry = None

    def train(self, mode: bool = True) -> Self:
        """As any module's; what was built in evaluation is forgotten.

        Args:
            mode: whether to train.

        Returns:
            the module.
        """
        self._cache.entry = None
        return super().train(mode)

    def _appends(self) -> int:
        """Number of positions that are appended to keys and values."""
        return (self.bias_k is not None) + self.add_zero_attn

    def _append(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Keys or values (N, S, E) with the learned position and the one of zeros after them."""
        more = [] if bias is None else [bias.to(x.dtype).expand(x.shape[0], 1, -1)]
        if self.add_zero_attn:
            more.append(torch.zeros_like(x[:, :1]))
        return torch.cat([x, *more], dim=1) if more else x

    def _mask(self, attention: Tensor | None, padding: Tensor | None, q: Tensor, keys: int) -> Tensor | None:
        """Both masks as one summand of the scores, (N or 1, H or 1, L or 1, S + appended); None without masks."""
        batch, queries = q.shape[0], q.shape[1]
        masks = []
        if attention is not None:
            shapes = ((queries, keys), (batch * self.num_heads, queries, keys))
            if tuple(attention.shape) not in shapes:
                raise SizeError(
                    f"attn_mask must have the shape {shapes[0]} or {shapes[1]}, got {tuple(attention.shape)}"
                )
            one = attention.dim() == 2
            masks.append(attention[None, None] if one else attention.unflatten(0, (batch, self.num_heads)))
        if padding is not None:
            if tuple(padding.shape) != (batch, keys):
                raise SizeError(f"key_padding_mask must have the shape {(batch, keys)}, got {tuple(padding.shape)}")
            masks.append(padding[:, None, None])
        if not masks:
            return None
        summands = [
            torch.zeros_like(mask, dtype=q.dtype).masked_fill(mask, -torch.inf)
            if mask.dtype == torch.bool
            else mask.to(q.dtype)
            for mask in masks
        ]
        return F.pad(sum(summands[1:], summands[0]), (0, self._appends()))
