"""Claim: HODLR, rank 16, leaves of 64, at 4096 x 4096 (share 0.06) is 5, 10, 6, 4.5 times faster than nn.Linear."""

import torch
from harness import compare, report

import weft

SIZE, DEPTH, RANK = 4096, 7, 16
FLOORS = {1: 5.0, 16: 10.0, 128: 6.0, 1024: 4.5}


def main() -> None:
    torch.manual_seed(0)
    plain = torch.nn.Linear(SIZE, SIZE).eval()
    layer = weft.HODLRLinear(SIZE, SIZE, depth=DEPTH, rank=RANK).eval()
    rows = []
    for count, floor in FLOORS.items():
        x = torch.randn(count, SIZE)
        with torch.no_grad():
            forward = compare(lambda x=x: plain(x), lambda x=x: layer(x))

        def step(module: torch.nn.Module, x: torch.Tensor) -> None:
            module.zero_grad()
            module(x).sum().backward()

        training = compare(lambda x=x: step(plain, x), lambda x=x: step(layer, x), pairs=7)
        rows.append([count, forward, training, floor, "yes" if forward.times_faster >= floor else "no"])
    share = layer.parametrization.share
    report(
        __file__,
        f"HODLR {RANK}, leaves of 64, at {SIZE} x {SIZE} (share {share:.3f}): times faster than nn.Linear",
        ["rows", "evaluation", "forward + backward", "floor (evaluation)", "reached"],
        rows,
        "Two batches of products over the leaves, and one exchange of sums between them.",
    )


if __name__ == "__main__":
    main()
