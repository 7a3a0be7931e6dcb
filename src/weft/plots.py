"""Pictures of weights. matplotlib is imported by the call that draws."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from weft.errors import OptionError
from weft.parametrizations import Block, Parametrization, families

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DENSE, _EMPTY, _EDGE, _SCALE = "#c2410c", "#ffffff", "#8a94a6", "YlGnBu"
#: Sizes of type in points: ranks are written no larger than the first, and not at all below the second.
_LARGEST, _SMALLEST = 11.0, 5.0


def plot_partition(parametrization: Parametrization, ax: Axes | None = None) -> Axes:
    """Draw the blocks of a hierarchical matrix where they lie, with their ranks.

    A block of A rows and C columns is the darker, the nearer its rank is to AC/(A + C), from which on factors store no
    less than the block itself; dense blocks have a colour of their own, empty ones none. Ranks are written into the
    blocks that are large enough.

    Args:
        parametrization: a member of a family with blocks, such as ``hodlr``, ``hedlr`` and ``hmat``.
        ax: where to draw; None makes a figure.

    Returns:
        the axes.

    Raises:
        OptionError: the family has no blocks.
        ModuleNotFoundError: matplotlib is missing; the ``train`` extra brings it.

    Example:
        >>> import matplotlib.pyplot as plt, weft
        >>> ax = weft.plot_partition(weft.parametrizations.make("hmat", (64, 64), share=0.3))
        >>> ax.get_title()
        'hmat, 64 x 64: 46 blocks, 1,228 numbers (share 0.3)'
        >>> plt.close(ax.figure)
    """
    blocks = parametrization.partition()
    if blocks is None:
        known = [name for name, record in families().items() if record.cls.partition is not Parametrization.partition]
        raise OptionError(
            f"family {parametrization.family or type(parametrization).__name__!r} has no blocks to draw; "
            f"those that have: {', '.join(known)}"
        )
    try:
        from matplotlib import pyplot
    except ModuleNotFoundError as error:
        remedy = "plot_partition needs matplotlib: pip install 'weft[train]'"
        raise ModuleNotFoundError(remedy, name=error.name) from error
    if ax is None:
        _, ax = pyplot.subplots(figsize=(6.8, 6.4), layout="constrained")
    rows, columns = parametrization.shape
    numbers = f"{parametrization.num_parameters:,} numbers (share {parametrization.share:.2g})"
    ax.set_title(f"{parametrization.family}, {rows} x {columns}: {len(blocks)} blocks, {numbers}", fontsize="medium")
    ax.set(xlim=(0, columns), ylim=(rows, 0), xlabel="input features", ylabel="output features")
    ax.set_aspect("equal" if 1 / 3 <= rows / columns <= 3 else "auto")
    _draw(ax, blocks)
    return ax


def _draw(ax: Axes, blocks: list[Block]) -> None:
    """Rectangles, the bar that explains their colours, and ranks as large as they fit, where that is legible."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.collections import PolyCollection

    scale = colormaps[_SCALE].with_extremes(over=_DENSE, under=_EMPTY)
    colors = [_DENSE if block.dense else scale(min(_fullness(block), 1.0) or -1.0) for block in blocks]
    corners = [[(c.start, r.start), (c.stop, r.start), (c.stop, r.stop), (c.start, r.stop)] for r, c, *_ in blocks]
    figure = ax.get_figure(root=True)
    assert figure is not None, "axes in use have a figure"
    bar = figure.colorbar(
        ScalarMappable(cmap=scale), ax=ax, shrink=0.8, extend="max", extendrect=True, extendfrac=0.06,
        label="rank / largest that saves numbers",
    )  # fmt: skip
    bar.ax.text(1.4, 1.03, "dense", transform=bar.ax.transAxes, va="center")
    figure.draw_without_rendering()  # only now the layout settles
    unit = np.abs(np.diff(ax.transData.transform([(0, 0), (1, 1)]), axis=0)[0]) * 72 / figure.dpi  # points per feature
    sizes = [(unit * (c.stop - c.start, r.stop - r.start)).tolist() for r, c, *_ in blocks]
    widths = [min(0.5, 0.06 * min(size)) for size in sizes]
    ax.add_collection(PolyCollection(corners, facecolors=colors, edgecolors=_EDGE, linewidths=widths))
    for block, (wide, high) in zip(blocks, sizes, strict=True):
        size = min(_LARGEST, 0.75 * high, 0.8 * wide / (0.64 * len(str(block.rank))))  # a digit is 0.64 em wide
        if size >= _SMALLEST:
            x, y = ((side.start + side.stop) / 2 for side in (block.columns, block.rows))
            color = "white" if block.dense or _fullness(block) > 0.6 else "black"
            ax.text(x, y, str(block.rank), size=size, ha="center", va="center_baseline", color=color)


def _fullness(block: Block) -> float:
    """Numbers of the factors per entry of the block."""
    rows, columns = block.rows.stop - block.rows.start, block.columns.stop - block.columns.start
    return block.rank * (rows + columns) / (rows * columns)
