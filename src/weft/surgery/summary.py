"""summary: what a model is made of, layer by layer."""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from weft.hypernet import HyperNetwork
from weft.layers import Composite, Foldable, Layer, MultiheadAttention
from weft.layers.composite import parametrizations_of, weft_modules
from weft.overparam import EPLayer
from weft.surgery.tables import format_table
from weft.surgery.walk import call, evaluation

_HEADERS = ("layer", "type", "family", "parameters", "share", "multiply-adds", "relative error")
_PLAIN = (nn.Linear, nn.modules.conv._ConvNd, nn.RNNBase, nn.MultiheadAttention)


@dataclass(frozen=True)
class Row:
    """One module with parameters of its own.

    Args:
        name: its place in the model.
        type: its class.
        family: of its weight; ``"plain"`` for a layer of torch; of a hypernetwork its kind.
        parameters: stored numbers, bias included.
        share: stored over dense numbers of the weight, bias excluded; None for other modules than layers.
        macs: multiply-adds, of the example or of one row (one output position); None for other modules than layers.
        error: relative error of the weight's last fit, None if there was none.
    """

    name: str
    type: str
    family: str
    parameters: int
    share: float | None
    macs: int | None
    error: float | None


@dataclass(frozen=True)
class Summary:
    """What a model is made of; ``str()`` is a table.

    Args:
        rows: one per module with parameters of its own.
        dense_parameters: numbers of the same model with dense weights.
        per_row: whether multiply-adds are those of one row, because there was no example.
        shared: numbers that stand in several rows, beyond the first time.
    """

    rows: tuple[Row, ...]
    dense_parameters: int
    per_row: bool
    shared: int = 0

    @property
    def parameters(self) -> int:
        """Stored numbers of the model, shared ones once."""
        return sum(row.parameters for row in self.rows) - self.shared

    @property
    def macs(self) -> int:
        """Multiply-adds of its layers."""
        return sum(row.macs or 0 for row in self.rows)

    @property
    def share(self) -> float:
        """Stored numbers over those of the same model with dense weights."""
        return self.parameters / max(self.dense_parameters, 1)

    def __str__(self) -> str:
        headers = [f"{h} per row" if h == "multiply-adds" and self.per_row else h for h in _HEADERS]
        total = ["total", "", "", self.parameters, self.share, self.macs, None]
        return format_table(headers, [*(astuple(row) for row in self.rows), total])


def summary(model: nn.Module, example: Any = None) -> Summary:
    """Family, parameters, share, multiply-adds and fit error of every layer.

    Args:
        model: any module.
        example: an input (a tensor, a tuple of positional or a dict of keyword arguments) to count multiply-adds
            for, as they run in evaluation; None counts those of one row, or one output position of a convolution.

    Returns:
        the summary; print it, or read ``rows``.

    Example:
        >>> import weft
        >>> print(weft.summary(weft.Linear(100, 50, parametrization="low_rank", rank=5)))
        layer  type    family    parameters  share  multiply-adds per row  relative error
        -----  ------  --------  ----------  -----  ---------------------  --------------
               Linear  low_rank         800   0.15                    750               -
        total                           800  0.158                    750               -
    """
    macs = {} if example is None else _count(model, example)
    rows: list[Row] = []
    dense = shared = 0
    seen: set[nn.Parameter] = set()
    ours: dict[nn.Module, Foldable] = {module: module for _, module in weft_modules(model)}
    inside = {part for module in ours for part in module.modules()}
    for name, module in model.named_modules():
        if module in ours:
            row, size = _row(name, ours[module], None if example is None else macs)
            rows.append(row)
            shared += sum(p.numel() for p in module.parameters() if p in seen)
            dense += size - _dense_again(ours[module], size, seen)
            seen.update(module.parameters())
            continue
        if module in inside:
            continue  # part of a Weft layer that is counted already
        parameters = {name: p for name, p in module._parameters.items() if p is not None}
        if own := sum(p.numel() for p in parameters.values()):
            plain = isinstance(module, _PLAIN)
            one_row = sum(p.numel() for parameter, p in parameters.items() if "weight" in parameter)
            plain_count = (one_row if example is None else macs.get(module, 0)) if plain else None
            again = sum(p.numel() for p in parameters.values() if p in seen)
            shared, dense = shared + again, dense + own - again
            seen.update(parameters.values())
            rows.append(Row(name, type(module).__name__, "plain", own, 1.0 if plain else None, plain_count, None))
    return Summary(tuple(rows), dense, example is None, shared)


def _dense_again(layer: Foldable, size: int, seen: set[nn.Parameter]) -> int:
    """Of the numbers of the plain layer, those that rows before counted."""
    if not isinstance(layer, Layer | Composite):
        return size if seen.issuperset(layer.parameters()) else 0
    weights = parametrizations_of(layer)
    inside = {p for w in weights for p in w.parameters()}
    repeated = sum(math.prod(w.shape) for w in weights if seen.issuperset(w.parameters()))
    return repeated + sum(p.numel() for p in layer.parameters() if p in seen and p not in inside)


def _row(name: str, layer: Foldable, macs: dict[nn.Module, int] | None) -> tuple[Row, int]:
    """The row of a Weft layer, and the numbers of the plain one."""
    own = sum(p.numel() for p in layer.parameters())
    count = 0 if macs is None else sum(macs.get(part, 0) for part in layer.modules())
    if isinstance(layer, EPLayer):
        size, bias = layer.effective_size
        share = sum(p.numel() for p in layer.factors()) / size
        count = size if macs is None else count
        return Row(name, type(layer).__name__, layer.family, own, share, count, layer.fit_error), size + bias
    if isinstance(layer, HyperNetwork):  # against one network; what it multiplies depends on rows and tasks
        size = sum(slot.size for slot in layer.slots) + sum(p.numel() for p in layer.target.parameters())
        return Row(name, type(layer).__name__, layer.kind, own, own / size, None, None), size
    assert isinstance(layer, Layer | Composite), "there are no other Weft layers"
    weights = parametrizations_of(layer)
    stored, size = sum(w.num_parameters for w in weights), sum(math.prod(w.shape) for w in weights)
    if macs is None:
        count = sum(min(w.cost(1), math.prod(w.shape)) for w in weights)
    families = "+".join(dict.fromkeys(w.family or type(w).__name__ for w in weights))
    return Row(name, type(layer).__name__, families, own, stored / size, count, layer.fit_error), own - stored + size


def _count(model: nn.Module, example: Any) -> dict[nn.Module, int]:
    """Multiply-adds of every layer in one evaluation of the example."""
    macs: dict[nn.Module, int] = {}

    def hook(module: Any, inputs: tuple[torch.Tensor, ...], named: dict[str, Any], output: torch.Tensor) -> None:
        if isinstance(module, EPLayer):
            count = output.numel() * (module.effective_size[0] // module.channels[-1])
        elif isinstance(module, Layer):
            count = module.explain(inputs[0] if inputs else named["input"]).macs
        elif isinstance(module, Composite):
            by_parts = any(part in macs for part in module._layers().values())
            count = 0 if by_parts else module._kernel_macs(*inputs, **named)
        elif isinstance(module, nn.MultiheadAttention):
            count = module.embed_dim * (inputs[0] if inputs else named["query"]).numel()
            macs[module.out_proj] = macs.get(module.out_proj, 0) + count
            count = MultiheadAttention._kernel_macs(module, *inputs, **named) - count  # type: ignore[arg-type]
        elif isinstance(module, nn.RNNBase):
            x: Any = inputs[0] if inputs else named["input"]
            steps = (x.data if isinstance(x, PackedSequence) else x).numel() // module.input_size
            count = steps * sum(p.numel() for name, p in module.named_parameters() if name.startswith("weight"))
        elif isinstance(module, nn.modules.conv._ConvTransposeNd):
            count = (inputs[0] if inputs else named["input"]).numel() * module.weight[0].numel()
        elif isinstance(module, nn.modules.conv._ConvNd):
            count = output.numel() * module.weight[0].numel()
        else:
            count = output.numel() * module.in_features
        macs[module] = macs.get(module, 0) + count

    inside = {part for m in model.modules() if isinstance(m, EPLayer) for part in m.modules() if part is not m}
    handles = [
        m.register_forward_hook(hook, with_kwargs=True)
        for m in model.modules()
        if isinstance(m, (EPLayer, Layer, Composite, *_PLAIN)) and m not in inside
    ]
    try:
        with evaluation(model):
            call(model, example)
    finally:
        for handle in handles:
            handle.remove()
    return macs
