"""fold: Weft layers become plain layers that compute the same, with proof."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from weft.errors import FoldError
from weft.layers.composite import weft_modules
from weft.layers.foldable import Foldable
from weft.surgery.walk import call, copy_with, evaluation, relative_difference


def fold(model: nn.Module, check: Any = None, rtol: float = 1e-4) -> nn.Module:
    """A copy of a model with every Weft layer replaced by the plain layer that computes the same.

    Layers that share a parametrization or a bias share the weight or the bias afterwards.

    Do this before ``torch.compile`` for inference, or to hand the model to tools that know torch.nn only. For ONNX the
    unfolded model is smaller and runs as fast.

    Args:
        model: the model; it is left as it is.
        check: an example input (a tensor, a tuple of positional or a dict of keyword arguments) on which both models
            are compared in evaluation mode; None folds without the comparison.
        rtol: the largest allowed max|difference| / max|output|.

    Returns:
        the new model.

    Raises:
        FoldError: the output moved by more than ``rtol`` (``weft.verify`` tells where), or is not finite; or fold was
            called inside a transform such as vmap.

    Example:
        >>> import torch, weft
        >>> model = torch.nn.Sequential(weft.PHMLinear(8, 8), torch.nn.ReLU())
        >>> type(weft.fold(model, check=torch.randn(2, 8))[0])
        <class 'torch.nn.modules.linear.Linear'>
    """
    replacements: dict[nn.Module, nn.Module] = {}
    for _, module in weft_modules(model):
        folded = module.fold()
        if next(weft_modules(folded), None) is not None:  # in the target of a hypernetwork
            folded = fold(folded)
        replacements[module] = folded
    _tie(replacements)
    plain = copy_with(model, replacements)
    if check is not None:
        with evaluation(model, plain):
            moved = relative_difference(call(plain, check), call(model, check))
        if not moved <= rtol:
            raise FoldError(
                f"folding moved the output by {moved:.3g} of its largest value, rtol allows {rtol:.3g}; "
                f"weft.verify(model, plain, example) shows where, a wider dtype or a larger rtol may help"
            )
    return plain


def _tie(replacements: dict[nn.Module, nn.Module]) -> None:
    """Let plain layers share the parameters that were made of the same ones."""
    first: dict[tuple[int, ...], nn.Parameter] = {}
    for module, plain in replacements.items():
        assert isinstance(module, Foldable), "only layers of Weft are replaced"
        for name, origins in module._origins():
            parameter, key = plain.get_parameter(name), tuple(id(origin) for origin in origins)
            same = first.setdefault(key, parameter)
            if same is not parameter and not same.is_meta and torch.equal(same, parameter):  # a padded table differs
                owner, _, last = name.rpartition(".")
                setattr(plain.get_submodule(owner), last, same)
