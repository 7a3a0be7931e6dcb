"""Error against share, one line per family, told apart by colour, line and marker together."""

from __future__ import annotations

import io

from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from weft.cli.approximate.results import Results
from weft.parametrizations import families

_INK, _FAINT = "#1f2430", "#d9dde5"
_MARKERS = "osD^vPX<>phd"
_LINES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)), (0, (9, 2)))
_FLOOR = 1e-8  # errors below are rounding


def errors(results: Results, title: str) -> bytes:
    """The plot of a run.

    Args:
        results: with at least one record that was not skipped.
        title: of the plot.

    Returns:
        a PNG file.
    """
    done = results.done
    figure = Figure(figsize=(8.4, 5.0), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.subplots()
    everyone, colors = list(families()), colormaps["tab20"].colors  # type: ignore[attr-defined]
    last = {record.family: record.error or 0.0 for record in done}  # of the largest share, for the order of the legend
    for name in sorted(last, key=lambda name: -last[name]):
        points = [(record.share, max(record.error or 0.0, _FLOOR)) for record in done if record.family == name]
        index = everyone.index(name) if name in everyone else 0
        ax.plot(
            *zip(*points, strict=True), label=name, color=colors[(2 * index + index // 10) % 20], linewidth=1.7,
            linestyle=_LINES[index % len(_LINES)], marker=_MARKERS[index % len(_MARKERS)], markersize=7,
            markeredgecolor="white", markeredgewidth=0.8,
        )  # fmt: skip
    shares = sorted({record.share for record in done})
    ax.set_xscale("log")
    ax.set_xlim(shares[0] / 1.15, shares[-1] * 1.15)
    ax.xaxis.set_major_locator(FixedLocator(shares))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    values = [max(record.error or 0.0, _FLOOR) for record in done]
    if max(values) > 20 * min(values):
        ax.set_yscale("log")
        ax.yaxis.set_minor_formatter(NullFormatter())
    else:
        ax.set_ylim(0, max(1.0, 1.05 * max(values)))
    ax.set_xlabel("share: stored numbers of the weight / dense numbers (log scale)", color=_INK)
    note = " (log scale)" if ax.get_yscale() == "log" else ""
    ax.set_ylabel(f"relative error{note}", color=_INK)
    ax.set_title(title, loc="left", color=_INK, fontsize=11.5, fontweight="bold", pad=9)
    ax.grid(True, color=_FAINT, linewidth=0.8)
    ax.set_axisbelow(True)
    ax.tick_params(colors=_INK, labelsize=9, length=0, which="both")
    for side, spine in ax.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_FAINT)
    figure.legend(loc="outside right upper", frameon=False, labelcolor=_INK, fontsize=9.5, handlelength=3.6)
    data = io.BytesIO()
    figure.savefig(data, format="png", metadata={"Software": "weft"})
    return data.getvalue()
