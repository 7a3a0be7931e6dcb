"""The demo's pictures: accuracy against parameters, and the learning curves, each for a light and a dark page."""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from matplotlib.transforms import Bbox

from weft.cli.demo.results import Result


@dataclass(frozen=True)
class Theme:
    """Colours of a page.

    Args:
        paper: background.
        ink: text and axes.
        faint: grid and guides.
    """

    paper: str
    ink: str
    faint: str


LIGHT = Theme(paper="#ffffff", ink="#1f2430", faint="#d9dde5")
DARK = Theme(paper="#171b24", ink="#e6e9f0", faint="#343b4a")

Point = tuple[float, float]

#: Directions in which a label may leave its point, the most legible first.
DIRECTIONS = [(1, 0.0), (1, 0.8), (1, -0.8), (-1, 0.0), (-1, 0.8), (-1, -0.8), (0, 1.0), (0, -1.0)]
DISTANCES = (9, 18, 30, 44)  # in points


def _figure(theme: Theme, width: float, height: float, panels: int = 1) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), dpi=160, facecolor=theme.paper, layout="constrained")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(rect=(0.012, 0.015, 0.97, 0.97), wspace=0.04)  # type: ignore[union-attr, call-arg]
    axes = list(figure.subplots(1, panels, squeeze=False)[0])
    for ax in axes:
        ax.set_facecolor(theme.paper)
        ax.tick_params(colors=theme.ink, labelsize=9, length=0, which="both")
        ax.grid(True, color=theme.faint, linewidth=0.8)
        ax.set_axisbelow(True)
        for side, spine in ax.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(theme.faint)
    return figure, axes


def _png(figure: Figure) -> bytes:
    data = io.BytesIO()
    figure.savefig(data, format="png", facecolor=figure.get_facecolor(), metadata={"Software": "weft"})
    return data.getvalue()


def _overlap(box: Bbox, other: Bbox) -> float:
    width = min(box.x1, other.x1) - max(box.x0, other.x0)
    height = min(box.y1, other.y1) - max(box.y0, other.y0)
    return max(0.0, width) * max(0.0, height)


def place_labels(
    ax: Axes, points: Sequence[Point], labels: list[str], colors: list[str], halo: str, line: Sequence[Point]
) -> list[Bbox]:
    """Write a label beside every point so that no label covers another one, a point, the line or the frame.

    Labels are set one after another, each at the first place with the least overlap with all that stands already; far
    ones get a leader line.

    Args:
        ax: axes whose limits and scales are final.
        points: (x, y) in data coordinates.
        labels: one per point.
        colors: one per label.
        halo: colour behind the letters.
        line: corners of a line to keep clear of, in data coordinates.

    Returns:
        the boxes of the labels, in pixels.
    """
    figure = ax.get_figure()
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()  # fixes the layout, so that sizes in pixels are final
    scale = figure.dpi / 72
    centers = [ax.transData.transform(point) for point in points]
    taken = [Bbox.from_bounds(x - 7 * scale, y - 7 * scale, 14 * scale, 14 * scale) for x, y in centers]
    for start, stop in itertools.pairwise(ax.transData.transform(corner) for corner in line):
        along = [start + (stop - start) * step / 40 for step in range(41)]
        taken += [Bbox.from_bounds(x - scale, y - scale, 2 * scale, 2 * scale) for x, y in along]
    frame, boxes = ax.get_window_extent(), []
    for point, center, label, color in zip(points, centers, labels, colors, strict=True):
        text = ax.annotate(
            label, point, xytext=(0, 0), textcoords="offset points", fontsize=9.5, fontweight="bold", color=color,
            zorder=5, path_effects=[withStroke(linewidth=3, foreground=halo)],
        )  # fmt: skip
        places = list(itertools.product(DISTANCES, DIRECTIONS))
        costs = []
        for place in places:
            box = _put(text, *place).padded(2 * scale)
            outside = box.width * box.height - _overlap(box, frame)
            costs.append(sum(_overlap(box, other) for other in taken) + 4 * outside)
        distance, direction = places[costs.index(min(costs))]
        box = _put(text, distance, direction).padded(2 * scale)
        if distance > DISTANCES[0]:
            end = (min(max(center[0], box.x0), box.x1), min(max(center[1], box.y0), box.y1))
            x, y = ax.transData.inverted().transform(end)
            ax.annotate(
                "", point, xytext=(x, y), zorder=2,
                arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.9, "alpha": 0.7, "shrinkB": 4},
            )  # fmt: skip
        taken.append(box)
        boxes.append(box)
    return boxes


def _put(text: Annotation, distance: int, direction: tuple[int, float]) -> Bbox:
    """Move a label to a place beside its point; where it then is, in pixels."""
    dx, dy = direction
    text.set_position((dx * distance, dy * distance))
    text.set_horizontalalignment("left" if dx > 0 else "right" if dx < 0 else "center")
    text.set_verticalalignment("center" if dx else "bottom" if dy > 0 else "top")
    return text.get_window_extent()


def _front(results: list[Result]) -> list[Result]:
    """Those that no other one beats in both parameters and accuracy, by parameters."""
    front: list[Result] = []
    for result in sorted(results, key=lambda r: (r.parameters, -r.accuracy)):
        if not front or result.accuracy > front[-1].accuracy:
            front.append(result)
    return front


def pareto(results: list[Result], theme: Theme = LIGHT) -> bytes:
    """Accuracy against parameters, one labelled point per variant.

    Args:
        results: one per variant.
        theme: colours of the page.

    Returns:
        a PNG file.
    """
    figure, (ax,) = _figure(theme, 8.4, 5.0)
    xs = [result.parameters for result in results]
    ys = [100 * result.accuracy for result in results]
    ax.set_xscale("log")
    ax.set_xlim(min(xs) / 1.35, max(xs) * 1.45)
    margin = max(0.6, 0.22 * (max(ys) - min(ys)))
    ax.set_ylim(min(ys) - margin, min(max(ys) + margin, 100 + margin / 3))
    ax.xaxis.set_major_locator(_log_ticks(*ax.get_xlim()))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    ax.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
    points: list[Point] = list(zip(xs, ys, strict=True))
    front: list[Point] = [(result.parameters, 100 * result.accuracy) for result in _front(results)]
    ax.plot(*zip(*front, strict=True), "--", color=theme.ink, alpha=0.45, linewidth=1.1, zorder=1)
    colors = [_on(theme, result.color) for result in results]
    # variants at (nearly) the same place become rings around each other, so that none hides another
    sizes = [
        90 + 170 * sum(abs(x / u - 1) < 0.03 and abs(y - v) < margin / 8 for u, v in points[index + 1 :])
        for index, (x, y) in enumerate(points)
    ]
    ax.scatter(xs, ys, s=sizes, c=colors, edgecolors=theme.paper, linewidths=1.6, zorder=4)
    ax.set_xlabel("parameters of the trained model (log scale)", color=theme.ink, fontsize=10)
    ax.set_title(
        "Test accuracy against parameters", loc="left", color=theme.ink, fontsize=12.5, fontweight="bold", pad=10
    )
    ax.set_title("dashed: nothing smaller is better", loc="right", color=theme.ink, fontsize=9, alpha=0.75, pad=10)
    place_labels(ax, points, [result.label for result in results], colors, theme.paper, front)
    return _png(figure)


def curves(results: list[Result], theme: Theme = LIGHT) -> bytes:
    """Training loss and validation accuracy over the epochs, one line per variant.

    Args:
        results: one per variant.
        theme: colours of the page.

    Returns:
        a PNG file.
    """
    figure, (left, right) = _figure(theme, 9.6, 4.2, panels=2)
    for result in results:
        epochs = range(1, len(result.losses) + 1)
        for ax, values in ((left, result.losses), (right, [100 * value for value in result.accuracies])):
            (line,) = ax.plot(epochs, values, color=_on(theme, result.color), linewidth=1.8, label=result.label)
            line.set_marker("o" if len(epochs) < 3 else "")
    left.set_yscale("log")
    left.yaxis.set_minor_formatter(FuncFormatter(lambda *_: ""))
    left.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    right.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
    for ax, title in ((left, "Training loss (log scale)"), (right, "Validation accuracy")):
        ax.set_title(title, loc="left", color=theme.ink, fontsize=11.5, fontweight="bold", pad=8)
        ax.set_xlabel("epoch", color=theme.ink, fontsize=10)
        ax.set_xlim(0.5, len(results[0].losses) + 0.5)
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    figure.legend(
        *left.get_legend_handles_labels(), loc="outside lower center", ncols=min(3, len(results)), frameon=False,
        labelcolor=theme.ink, fontsize=9,
    )  # fmt: skip
    return _png(figure)


def _log_ticks(low: float, high: float) -> FixedLocator:
    """Round numbers, 1, 2 and 5 of every decade that lies in view."""
    ticks = [step * 10**decade for decade in range(1, 10) for step in (1, 2, 5)]
    return FixedLocator([tick for tick in ticks if low <= tick <= high])


def _on(theme: Theme, color: str) -> str:
    """A colour that reads on the theme's paper: near-black and dark ones are lightened on dark paper."""
    if theme is LIGHT:
        return color
    red, green, blue = to_rgb(color)
    lift = 0.8 if max(red, green, blue) < 0.4 else 0.3
    return to_hex((red + (1 - red) * lift, green + (1 - green) * lift, blue + (1 - blue) * lift))
