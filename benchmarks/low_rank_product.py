"""Claim: a low-rank layer of share 0.1 at 4096 x 4096 is 8 times faster than nn.Linear, at any number of rows."""

import torch
from harness import compare, report

import weft

SIZE, SHARE, FLOOR = 4096, 0.1, 8.0


def main() -> None:
    torch.manual_seed(0)
    plain = torch.nn.Linear(SIZE, SIZE).eval()
    layer = weft.Linear(SIZE, SIZE, parametrization="low_rank", share=SHARE).eval()
    rows = []
    for count in (1, 16, 128, 1024):
        x = torch.randn(count, SIZE)
        with torch.no_grad():
            forward = compare(lambda x=x: plain(x), lambda x=x: layer(x))

        def step(module: torch.nn.Module, x: torch.Tensor) -> None:
            module.zero_grad()
            module(x).sum().backward()

        training = compare(lambda x=x: step(plain, x), lambda x=x: step(layer, x), pairs=7)
        rows.append([count, forward, training, FLOOR, "yes" if forward.times_faster >= FLOOR else "no"])
    share = layer.parametrization.share
    report(
        __file__,
        f"Low rank {layer.parametrization.rank} at {SIZE} x {SIZE} (share {share:.3f}): times faster than nn.Linear",
        ["rows", "evaluation", "forward + backward", "floor (evaluation)", "reached"],
        rows,
        "The ceiling is 1/share; rows beyond the caches come nearest to it.",
    )


if __name__ == "__main__":
    main()
