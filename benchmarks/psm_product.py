"""Claim: two sparse factors at 4096 x 4096, share 0.1, are 1.1, 3, 1.6 times faster than nn.Linear at 1, 16, 128 rows.

Where the product is run by the factors and where as one dense matrix is the layer's choice (``path="auto"``); the
column of forced factors says what that choice had to choose from.
"""

import torch
from harness import compare, report

import weft

FLOORS = {1: 1.1, 16: 3.0, 128: 1.6}
SIZES = ((256, 0.1), (1024, 0.1), (4096, 0.1), (4096, 0.2))
ROWS = (1, 7, 16, 127, 128, 1024)


def step(module: torch.nn.Module, x: torch.Tensor) -> None:
    module.zero_grad()
    module(x).sum().backward()


def main() -> None:
    torch.manual_seed(0)
    rows: list[list[object]] = []
    for size, share in SIZES:
        plain = torch.nn.Linear(size, size).eval()
        layer = weft.PSMLinear(size, size, share=share).eval()
        forced = weft.Linear(size, size, parametrization=layer.parametrization, path="factored").eval()
        for count in ROWS:
            x = torch.randn(count, size)
            with torch.no_grad():
                auto = compare(lambda p=plain, x=x: p(x), lambda m=layer, x=x: m(x), pairs=9)
                factored = compare(lambda p=plain, x=x: p(x), lambda m=forced, x=x: m(x), pairs=9)
                path = layer.explain(x).path
            training = compare(lambda p=plain, x=x: step(p, x), lambda m=forced, x=x: step(m, x), pairs=5)
            floor = FLOORS.get(count) if (size, share) == (4096, 0.1) else None
            reached = "-" if floor is None else "yes" if auto.times_faster >= floor else "no"
            rows.append([size, share, count, path, auto, factored, training, floor or "-", reached])
    report(
        __file__,
        "Products of two sparse factors: times faster than nn.Linear",
        ["side", "share", "rows", "path", "evaluation", "by the factors", "forward + backward", "floor", "reached"],
        rows,
        "Forward and backward are by the factors too.",
    )


if __name__ == "__main__":
    main()
