"""The picture of an over-parametrised layer: nodes in a row, sub-layers between them, skips as arcs over them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from weft.overparam.base import EPLayer

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK, _SKIP, _NODE = "#1f2937", "#c2410c", "#dbeafe"


def plot_graph(layer: EPLayer, ax: Axes | None = None) -> Axes:
    """Draw what a layer computes, sub-layer by sub-layer; ``ax.figure.savefig`` writes it as PNG or SVG.

    Circles are the nodes with their channels, arrows the sub-layers with kernel size and BN where a batch norm follows,
    arcs the skips, with a G where they are learned.

    Args:
        layer: the layer.
        ax: where to draw; None makes a figure.

    Returns:
        the axes.

    Raises:
        ModuleNotFoundError: matplotlib is missing; the ``train`` extra brings it.

    Example:
        >>> import matplotlib.pyplot as plt, weft
        >>> ax = weft.overparam.plot_graph(weft.EPConv2d(4, 4, [3, 1], 1, residual=True))
        >>> [text.get_text() for text in ax.texts]
        ['4', '4', '4', '3 x 3', '1 x 1', 'identity']
        >>> plt.close(ax.figure)
    """
    try:
        from matplotlib import pyplot
    except ModuleNotFoundError as error:
        remedy = "plot_graph needs matplotlib: pip install 'weft[train]'"
        raise ModuleNotFoundError(remedy, name=error.name) from error
    reach = max((end - start for start, end in layer._pairs), default=0)
    if ax is None:
        _, ax = pyplot.subplots(figsize=(1.6 * (layer.depth + 1), 1.6 + 0.5 * reach), layout="constrained")
    for node, channels in enumerate(layer.channels):
        ax.text(
            node, 0, str(channels), ha="center", va="center", zorder=3,
            bbox={"boxstyle": "circle", "facecolor": _NODE, "edgecolor": _INK},
        )  # fmt: skip
    for index, factor in enumerate(layer.factors()[: layer.depth]):
        size = " x ".join(str(k) for k in factor.shape[2:]) or "linear"
        _arrow(ax, index, index + 1, 0, _INK)
        ax.text(index + 0.5, -0.12, size + (", BN" if len(layer.norms) else ""), ha="center", va="top", size="small")
    for start, end in layer._pairs:
        bend = 0.3 * (end - start)
        _arrow(ax, start, end, bend, _SKIP)
        label = "G" if layer.skips else "identity"
        ax.text((start + end) / 2, bend + 0.06, label, ha="center", va="bottom", size="small", color=_SKIP)
    after = "" if layer.norm is None else ", then BN"
    ax.set_title(f"{type(layer).__name__}, depth {layer.depth}{after}", fontsize="medium")
    ax.set(xlim=(-0.5, layer.depth + 0.5), ylim=(-0.5, 0.35 + 0.3 * reach))
    ax.set_axis_off()
    return ax


def _arrow(ax: Axes, start: int, end: int, height: float, color: str) -> None:
    """From node to node; straight, or along an arc whose top is at a height."""
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path

    style: dict[str, Any] = {"arrowstyle": "-|>", "mutation_scale": 12, "color": color, "zorder": 1}
    if not height:
        ax.add_patch(FancyArrowPatch((start, 0), (end, 0), shrinkA=14, shrinkB=14, **style))
        return
    # A cubic curve reaches three quarters of the height of its control points.
    points = [(start, 0.14), (start, height * 4 / 3), (end, height * 4 / 3), (end, 0.14)]
    ax.add_patch(FancyArrowPatch(path=Path(points, [Path.MOVETO, *[Path.CURVE4] * 3]), **style))
