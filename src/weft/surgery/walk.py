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


def copy_with(model: nn.Module, replacements: dict[nn.Module, nn.Module]) -> nn.Module:
    """A deep copy of a model with new modules in the places of old ones, everywhere they stand, so that ties survive.

    Args:
        model: left as it is.
        replacements: old to new; the new ones are not copied.

    Returns:
        the copy, or the replacement of the model itself.
    """
    return copy.deepcopy(model, {id(old): new for old, new in replacements.items()})


@contextlib.contextmanager
def evaluation(*models: nn.Module) -> Iterator[None]:
    """Every module in evaluation mode, no gradients; afterwards every mode as it was.

    Args:
        *models: the models.

    Yields:
        nothing.
    """
    modes = [(module, module.training) for model in models for module in model.modules()]
    for model in models:
        model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            if module.training != mode:
                module.training = mode


def call(model: Callable[..., Any], example: Any) -> Any:
    """Run a model on an example input.

    Args:
        model: what to call.
        example: one tensor, a tuple of positional or a dict of keyword arguments.

    Returns:
        what the model returns.
    """
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
    """
    pairs = list(zip(_tensors(got), _tensors(expected), strict=False))
    if not pairs or len(_tensors(got)) != len(_tensors(expected)) or any(a.shape != b.shape for a, b in pairs):
        return float("inf")
    error = max((float((a.double() - b.double()).abs().max()) if a.numel() else 0.0 for a, b in pairs), key=_nan_last)
    scale = max((float(b.double().abs().max()) if b.numel() else 0.0 for _, b in pairs), key=_nan_last)
    return error / scale if scale else (0.0 if error == 0 else float("inf"))


def _nan_last(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _tensors(output: Any) -> list[Tensor]:
    return [leaf for leaf in _pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
