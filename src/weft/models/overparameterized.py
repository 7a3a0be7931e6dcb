"""Over-parametrised models for recipes, which can name a function but not call one on the result of another."""

from typing import Any, Literal

from torch import nn

import weft


def overparameterized(
    model: nn.Module,
    depth: int = 2,
    width: float = 1,
    which: Literal["all", "conv", "linear"] = "all",
    *,
    keep_function: bool = False,
    batch_norm: bool | Literal["output"] = False,
    residual: bool = False,
    residual_intervals: int | list[int] = 2,
    residual_mode: Literal["none", "learn"] = "none",
) -> nn.Module:
    """``weft.overparameterize`` of a model that is to be trained from scratch.

    Args:
        model: is left as it is.
        depth: number of sub-layers of each layer.
        width: channels between them over output channels.
        which: layers: "all", "conv" or "linear".
        keep_function: whether to factor the model's own weights; else the factors are drawn.
        batch_norm: after every sub-layer, or only of the "output".
        residual: whether there are skips.
        residual_intervals: sub-layers that a skip spans, -1 from start to end.
        residual_mode: "none" adds the input itself, "learn" a learned map of it.

    Returns:
        the model; it has the ``num_classes`` and ``in_channels`` of the original.

    Example:
        >>> net = overparameterized(weft.models.SmallCNN(widths=[4, 8]), depth=3)
        >>> type(net.head).__name__, net.num_classes
        ('EPLinear', 10)
    """
    options: dict[str, Any] = {"batch_norm": batch_norm}
    if residual:
        options |= {"residual": True, "residual_intervals": residual_intervals, "residual_mode": residual_mode}
    return weft.overparameterize(model, depth, width, which, keep_function=keep_function, **options)
