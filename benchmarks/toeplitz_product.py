"""Claim: Toeplitz-like, rank 4, at 4096 x 4096 (share 0.002) is 2, 2.7, 1.5, 1.3 times faster than nn.Linear."""

import torch
from harness import compare, report

import weft

SIZE, RANK = 4096, 4
FLOORS = {1: 2.0, 16: 2.7, 128: 1.5, 1024: 1.3}


def main() -> None:
    torch.manual_seed(0)
    plain = torch.nn.Linear(SIZE, SIZE).eval()
    layer = weft.TLLinear(SIZE, SIZE, rank=RANK).eval()
    rows = []
    for count, floor in FLOORS.items():
        x = torch.randn(count, SIZE)
        with torch.no_grad():
            path = layer.explain(x).path
            forward = compare(lambda x=x: plain(x), lambda x=x: layer(x))

        def step(module: torch.nn.Module, x: torch.Tensor) -> None:
            module.zero_grad()
            module(x).sum().backward()

        training = compare(lambda x=x: step(plain, x), lambda x=x: step(layer, x), pairs=7)
        rows.append([count, path, forward, training, floor, "yes" if forward.times_faster >= floor else "no"])
    share = layer.parametrization.share
    report(
        __file__,
        f"Toeplitz-like, rank {RANK}, at {SIZE} x {SIZE} (share {share:.3f}): times faster than nn.Linear",
        ["rows", "path", "evaluation", "forward + backward", "floor (evaluation)", "reached"],
        rows,
        "2 rank + 2 real transforms per row, the skew-circulant ones folded into complex ones of half the length.",
    )


if __name__ == "__main__":
    main()
