"""Claim: how many times faster than nn.Linear structured layers are, in evaluation and in training.

Floors are those of a 4096 x 4096 layer; the smaller sizes, at a share of 0.1, show where gains begin and whether the
path that a layer takes is the right one: the last column is the time of the path not taken over that of the one taken.
"""

from __future__ import annotations

from typing import Any

import torch
from harness import Ratio, compare, report
from torch import nn

import weft

ROWS = (1, 16, 128, 1024)
#: Family, its sizes at 4096 x 4096, and the floors in evaluation for the numbers of rows.
LARGE: tuple[tuple[str, dict[str, Any], tuple[float | None, ...]], ...] = (
    ("low_rank", {"share": 0.1}, (8.0, 8.0, 8.0, 8.0)),
    ("hodlr", {"depth": 7, "rank": 16}, (5.0, 10.0, 6.0, 4.5)),
    ("sss", {"stages": 64, "state": 16}, (3.0, 6.0, 6.0, 5.0)),
    ("monarch", {"blocks": 64}, (9.0, 12.0, 5.0, 4.0)),
    ("toeplitz_like", {"rank": 4}, (2.0, 2.7, 1.5, 1.3)),
    ("psm", {"share": 0.1}, (1.1, 3.0, 1.6, None)),
    ("butterfly", {"depth": 1}, (None,) * 4),
    ("hedlr", {"share": 0.1}, (None,) * 4),
    ("hmat", {"share": 0.1}, (None,) * 4),
)
SMALL = (256, 512, 1024)
SMALL_FAMILIES = ("low_rank", "hodlr", "sss", "monarch", "toeplitz_like", "psm", "hedlr", "hmat", "ldr")


def step(module: nn.Module, x: torch.Tensor) -> None:
    module.zero_grad()
    module(x).sum().backward()


def other_path(layer: nn.Module, x: torch.Tensor) -> Ratio:
    """The path that was not taken, dense or by the factors, against the one that was."""
    taken = layer.explain(x).path
    path = "dense" if taken == "factored" else "factored"
    other = weft.Linear(layer.in_features, layer.out_features, parametrization=layer.parametrization, path=path).eval()
    return compare(lambda: other(x), lambda: layer(x), pairs=5)


def measure(
    plain: nn.Module, family: str, options: dict[str, Any], floors: tuple[float | None, ...]
) -> list[list[object]]:
    size = plain.in_features
    layer = weft.Linear(size, size, parametrization=family, **options)
    sizes = ", ".join(f"{name} {value}" for name, value in options.items())
    rows: list[list[object]] = []
    for count, floor in zip(ROWS, floors, strict=True):
        x = torch.randn(count, size)
        training = compare(lambda x=x: step(plain.train(), x), lambda x=x: step(layer.train(), x), pairs=5)
        plain.eval(), layer.eval()
        with torch.no_grad():
            path = layer.explain(x).path
            forward = compare(lambda x=x: plain(x), lambda x=x: layer(x), pairs=9)
            other = other_path(layer, x)
        reached = "-" if floor is None else "yes" if forward.times_faster >= floor else "no"
        title = f"{family}, {sizes} (share {layer.parametrization.share:.3f})"
        rows.append(
            [
                size,
                title,
                count,
                path,
                forward,
                training,
                "-" if floor is None else floor,
                reached,
                f"{other.times_faster:.2f}",
            ]
        )
    return rows


def main() -> None:
    torch.manual_seed(0)
    rows = []
    plain = nn.Linear(4096, 4096)
    for family, options, floors in LARGE:
        rows += measure(plain, family, options, floors)
    for size in SMALL:
        plain = nn.Linear(size, size)
        for family in SMALL_FAMILIES:
            rows += measure(plain, family, {"share": 0.1}, (None,) * 4)
    gains = [(row[4].times_faster, row[5].times_faster) for row in rows if row[0] == 4096 and row[2] == 128]
    kept = sum(training >= 0.7 * forward for forward, training in gains)
    report(
        __file__,
        "Structured layers, square: times faster than nn.Linear",
        [
            *("size", "family", "rows", "path in evaluation", "evaluation", "forward + backward"),
            *("floor", "reached", "other path / this one"),
        ],
        rows,
        "Floors are for evaluation. Low rank has a ceiling of 1/share beyond the caches. At 4096 and 128 rows forward "
        f"and backward together keep 70 % of the gain in evaluation, or more, for {kept} of {len(gains)} families.",
    )


if __name__ == "__main__":
    main()
