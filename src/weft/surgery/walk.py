"""Copying a model with other modules in place, and running an example through it."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from weft.errors import WeftError
from weft.layers.foldable import carry_hooks


def copy_with(model: nn.Module, replacements: dict[nn.Module, nn.Module]) -> nn.Module:
    """A deep copy of a model with new modules in the places of old ones, everywhere they stand, so that ties survive.

    The new modules get the hooks of the old ones, copied as the model's own are: a hook that is a method of a module
    belongs to the copy of that module.

    Args:
        model: left as it is.
        replacements: old to new; the new ones are not copied.

    Returns:
        the copy, or the replacement of the model itself.
    """
    copies: dict[int, Any] = {id(old): new for old, new in replacements.items()}
    new_model = copy.deepcopy(model, copies)
    for old, new in replacements.items():
        carry_hooks(old, new, copies)
    return new_model


@contextlib.contextmanager
def evaluation(*models: nn.Module) -> Iterator[None]:
    """Every module in evaluation mode, no gradients, torch's fused encoder off; afterwards everything as it was.

    The fused encoder knows plain weights only and fills padded rows with zeros, so that with it a model and its folded
    version would differ in rows that mean nothing.

    Args:
        *models: the models.

    Yields:
        nothing.
    """
    modes = [(module, module.training) for model in models for module in model.modules()]
    fused = torch.backends.mha.get_fastpath_enabled()
    for model in models:
        model.eval()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for module, mode in modes:
            if module.training != mode:
                module.training = mode


def call(model: Callable[..., Any], example: Any) -> Any:
    """Run a model on a copy of an example input, which the model may then change.

    Args:
        model: what to call.
        example: one tensor, a tuple of positional or a dict of keyword arguments; it is left as it is.

    Returns:
        what the model returns.
    """
    example = _pytree.tree_map_only(Tensor, Tensor.clone, example)
    if isinstance(example, dict):
        return model(**example)
    return model(*example) if isinstance(example, tuple | list) else model(example)


def relative_difference(got: Any, expected: Any) -> float:
    """max|got - expected| / max|expected| over all tensors of two outputs of the same structure.

    Args:
        got: tensor, or a structure of tensors.
        expected: the same.

    Returns:
        the ratio; 0 if both are zero everywhere; infinity for other shapes or only one zero; NaN if any value is NaN.

    Raises:
        WeftError: there are no tensors to compare.
    """
    pairs = list(zip(_tensors(got), _tensors(expected), strict=False))
    if not _tensors(got) and not _tensors(expected):
        raise WeftError(
            f"output of the model holds no tensors that can be compared: it is a {type(expected).__name__}; compare a "
            f"module whose output is a tensor, or tuples, lists and dicts of tensors"
        )
    if len(_tensors(got)) != len(_tensors(expected)) or any(a.shape != b.shape for a, b in pairs):
        return float("inf")
    pairs = [(_wide(a), _wide(b)) for a, b in pairs]
    error = max((float((a - b).abs().max()) if a.numel() else 0.0 for a, b in pairs), key=_nan_last)
    scale = max((float(b.abs().max()) if b.numel() else 0.0 for _, b in pairs), key=_nan_last)
    return error / scale if scale else (0.0 if error == 0 else float("inf"))


def _wide(value: Tensor) -> Tensor:
    return value.to(torch.promote_types(value.dtype, torch.float64))


def _nan_last(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _tensors(output: Any) -> list[Tensor]:
    return [leaf for leaf in _pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
