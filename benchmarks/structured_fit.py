"""Claim: how long fits to a matrix take, and the errors they reach; seconds on the machine that is named."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from harness import report

import weft


def seconds(call: Callable[[], object], repeats: int = 3) -> float:
    """The fastest of a few calls."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def uniform(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return 2 * torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) - 1


def row(what: str, time_s: float, floor_s: float | None, error: float | None, earlier: str) -> list[object]:
    reached = "-" if floor_s is None else "yes" if time_s < floor_s else "no"
    return [
        what, f"{time_s:.3g}", "-" if floor_s is None else f"< {floor_s:g}", reached,
        "-" if error is None else f"{error:.3f}", earlier,
    ]  # fmt: skip


def main() -> None:
    torch.manual_seed(0)
    rows = []

    layer, x = weft.Linear(100, 100, parametrization="ldr", rank=2, path="factored"), torch.randn(64, 100)
    rows.append(row("ldr, forward, n = 100, r = 2", seconds(lambda: layer(x), 20), 0.005, None, "2.4 s"))

    members = []
    time_s = seconds(lambda: members.extend(weft.approximate(uniform(20, 20, s), "ldr", 0.5) for s in range(3)), 1) / 3
    rows.append(
        row(
            "ldr, fit, n = 20, share 0.5, best of 3 matrices",
            time_s,
            5,
            min(m.fit_error for m in members),
            "385 s, .635",
        )
    )

    square = uniform(300, 300)
    for family, options, earlier in (
        ("hodlr", {"depth": 4}, "2.9 s (all trees)"),
        ("hedlr", {"depth": 4}, "-"),
        ("hmat", {"min_block": 2}, "4.2 s"),
    ):
        found = weft.approximate(square, family, 0.2, **options)
        time_s = seconds(lambda f=family, o=options: weft.approximate(square, f, 0.2, **o))
        rows.append(row(f"{family}, 300 x 300, share 0.2, one tree", time_s, 0.3, found.fit_error, earlier))

    wide, found = uniform(1000, 4096), []
    time_s = seconds(lambda: found.append(weft.approximate(wide, "sss", 0.2)), 1)
    rows.append(row("sss, 1000 x 4096, share 0.2", time_s, 20, found[0].fit_error, "-"))

    for family in ("low_rank", "sss", "monarch", "butterfly", "toeplitz_like", "psm", "ldr"):
        found = []
        time_s = seconds(lambda f=family: found.append(weft.approximate(square, f, 0.2)), 1)  # noqa: B023
        rows.append(row(f"{family}, 300 x 300, share 0.2", time_s, None, found[0].fit_error, "-"))
    report(
        __file__,
        "Fits to uniform random matrices",
        ["what", "seconds", "floor", "reached", "relative error", "earlier code"],
        rows,
        "Uniform random matrices have no structure: what is left is what a share of the numbers cannot hold.",
    )


if __name__ == "__main__":
    main()
