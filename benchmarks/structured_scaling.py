"""Claim: what one row costs in layers of every family, from 256 to 8192 features; a table and a picture of it."""

from __future__ import annotations

from pathlib import Path

import torch
from harness import RESULTS, compare, report
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import nn

import weft

SIZES = (256, 512, 1024, 2048, 4096, 8192)
ROWS = 128
#: Family and its sizes at a width; families that grow as n log n are shown with a fixed rank.
FAMILIES = {
    "low_rank, share 0.1": lambda n: ("low_rank", {"share": 0.1}),
    "hodlr, rank 16, leaves of 64": lambda n: ("hodlr", {"depth": (n // 64).bit_length(), "rank": 16}),
    "hedlr, share 0.1": lambda n: ("hedlr", {"share": 0.1}),
    "hmat, share 0.1": lambda n: ("hmat", {"share": 0.1}),
    "sss, stages of 64, state 16": lambda n: ("sss", {"stages": n // 64, "state": 16}),
    "monarch, sqrt(n) blocks": lambda n: ("monarch", {"blocks": 2 ** (n.bit_length() // 2)}),
    "butterfly": lambda n: ("butterfly", {"depth": 1}),
    "toeplitz_like, rank 4": lambda n: ("toeplitz_like", {"rank": 4}),
    "ldr, rank 2": lambda n: ("ldr", {"rank": 2}),
    "psm, share 0.1": lambda n: ("psm", {"share": 0.1}),
    "kronecker, n 4, rank 7": lambda n: ("kronecker", {"n": 4, "rank": 7}),
}
MARKERS = "osv^<>DPX*hp"


def draw(title: str, series: dict[str, list[tuple[int, float, float]]], path: Path) -> None:
    """Multiply-adds and microseconds of one row over the width, one line per family."""
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for index, (name, points) in enumerate(series.items()):
        style = {"color": "black", "linewidth": 2.2} if name == "nn.Linear" else {"color": f"C{index % 10}"}
        style |= {"marker": MARKERS[index % len(MARKERS)], "markersize": 5, "linestyle": "--" if index >= 10 else "-"}
        sizes = [size for size, _, _ in points]
        left.plot(sizes, [macs for _, macs, _ in points], label=name, **style)
        right.plot(sizes, [time_us for _, _, time_us in points], **style)
    for axes, label in ((left, "multiply-adds per row, by the factors"), (right, f"microseconds per row, {ROWS} rows")):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(SIZES, [str(size) for size in SIZES])
        axes.set_xlabel("features (square layers)")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    figure.suptitle(title)
    figure.legend(loc="outside right center", frameon=False, fontsize=9)
    figure.savefig(path, dpi=130)


def main() -> None:
    torch.manual_seed(0)
    rows: list[list[object]] = []
    series: dict[str, list[tuple[int, float, float]]] = {"nn.Linear": []} | {name: [] for name in FAMILIES}
    for size in SIZES:
        plain, x = nn.Linear(size, size).eval(), torch.randn(ROWS, size)
        baseline_s = []
        for name, options_of in FAMILIES.items():
            family, options = options_of(size)
            layer = weft.Linear(size, size, parametrization=family, **options).eval()
            with torch.no_grad():
                path = layer.explain(x).path
                ratio = compare(lambda: plain(x), lambda: layer(x), pairs=5)  # noqa: B023
            baseline_s.append(ratio.baseline_s)
            macs = layer.parametrization.cost(ROWS) / ROWS
            series[name].append((size, macs, ratio.ours_s / ROWS * 1e6))
            share = f"{layer.parametrization.share:.4f}"
            rows.append([size, name, share, f"{macs:,.0f}", path, f"{ratio.ours_s / ROWS * 1e6:.2f}", ratio])
        series["nn.Linear"].append((size, size**2, sorted(baseline_s)[len(baseline_s) // 2] / ROWS * 1e6))
    draw(
        "One row of square layers, evaluation, the path that the layer chooses",
        series,
        RESULTS / "structured_scaling.png",
    )
    report(
        __file__,
        f"Cost of a row from {SIZES[0]} to {SIZES[-1]} features, evaluation, {ROWS} rows",
        ["size", "family", "share", "multiply-adds by the factors", "path taken", "us per row", "times faster"],
        rows,
        "The picture: `benchmarks/results/structured_scaling.png`.",
    )


if __name__ == "__main__":
    main()
