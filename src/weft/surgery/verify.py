"""verify: where two versions of a model differ, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from weft.errors import WeftError
from weft.layers.composite import weft_modules
from weft.surgery.tables import format_table
from weft.surgery.walk import call, evaluation, relative_difference


@dataclass(frozen=True)
class Verification:
    """Differences between two models; ``str()`` is a table.

    Args:
        output: max|difference| / max|output| of the models.
        layers: the same for the output of every Weft layer; None where a layer was not called.
    """

    output: float
    layers: dict[str, float | None]

    def __str__(self) -> str:
        rows = [[name or "(the model)", error] for name, error in self.layers.items()]
        return format_table(["layer", "max|difference| / max|output|"], [*rows, ["output", self.output]])


def verify(model: nn.Module, plain: nn.Module, example: Any) -> Verification:
    """Compare a model and its folded version on an example, in evaluation mode.

    Args:
        model: with Weft layers.
        plain: with plain layers in the same places.
        example: a tensor, a tuple of positional or a dict of keyword arguments.

    Returns:
        the differences of the output and of every Weft layer (of its last call).

    Raises:
        WeftError: ``plain`` has no module in the place of a Weft layer.

    Example:
        >>> import torch, weft
        >>> model = torch.nn.Sequential(weft.PHMLinear(8, 8), torch.nn.ReLU())
        >>> report = weft.verify(model, weft.fold(model), torch.randn(2, 8))
        >>> report.output < 1e-5
        True
    """
    names = [name for name, _ in weft_modules(model)]
    known = dict(plain.named_modules())
    if missing := [name for name in names if name not in known]:
        raise WeftError(f"plain must have a module in the place of every Weft layer of model; missing: {missing}")
    with evaluation(model, plain):
        expected, seen = _record(model, names, example)
        got, seen_plain = _record(plain, names, example)
    layers = {
        name: relative_difference(seen_plain[name], seen[name]) if name in seen and name in seen_plain else None
        for name in names
    }
    return Verification(relative_difference(got, expected), layers)


def _record(model: nn.Module, names: list[str], example: Any) -> tuple[Any, dict[str, Any]]:
    """The output, and the outputs of the named modules."""
    outputs: dict[str, Any] = {}
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda _m, _i, y, name=name: outputs.__setitem__(name, tree_map_only(Tensor, Tensor.clone, y))
        )
        for name in names
    ]
    try:
        return call(model, example), outputs
    finally:
        for handle in handles:
            handle.remove()
