"""Claim: LDR of 100 x 100, rank 2: a forward pass below 5 ms (2.4 s before); fit of 20 x 20 at share 0.5 below 5 s."""

import time

import torch
from harness import compare, report

import weft
from weft.parametrizations import make
from weft.testing.matrices import matrices

SIZES = ((100, 2), (256, 2), (1024, 2), (1024, 48))


def step(module: torch.nn.Module, x: torch.Tensor) -> None:
    module.zero_grad()
    module(x).sum().backward()


def main() -> None:
    torch.manual_seed(0)
    rows: list[list[object]] = []
    for size, rank in SIZES:
        plain, layer = torch.nn.Linear(size, size), weft.LDRLinear(size, size, rank=rank)
        for count in (1, 128):
            x = torch.randn(count, size)
            forward = compare(lambda x=x, f=plain: f(x), lambda x=x, f=layer: f(x), pairs=7)
            training = compare(lambda x=x, f=plain: step(f, x), lambda x=x, f=layer: step(f, x), pairs=5)
            with torch.no_grad():
                plain.eval(), layer.eval()
                cached = compare(lambda x=x, f=plain: f(x), lambda x=x, f=layer: f(x))
            plain.train(), layer.train()
            milliseconds = [f"{1e3 * ratio.ours_s:.2f}" for ratio in (forward, training)]
            floor, reached = ("5 ms", "yes" if forward.ours_s < 5e-3 else "no") if size == 100 else ("-", "-")
            rows.append([f"{size} x {size}, rank {rank}", count, *milliseconds, training, cached, floor, reached])
    fits = []
    for seed in range(3):
        start = time.perf_counter()
        error = make("ldr", (20, 20), share=0.5).fit_(matrices(20, 20, seed)["uniform"].float())
        fits.append(f"{time.perf_counter() - start:.1f} s (error {error:.3f})")
    report(
        __file__,
        "LDR: milliseconds of a forward pass in training and of forward + backward, and times faster than nn.Linear",
        [
            "layer",
            "rows",
            "forward, ms",
            "forward + backward, ms",
            "forward + backward",
            "evaluation",
            "floor",
            "reached",
        ],
        rows,
        "Powers of learned operators cost more than a dense layer in training; in evaluation the weight is kept. The "
        f"fit of a uniform 20 x 20 matrix at share 0.5, floor 5 s and error 0.60, takes {', '.join(fits)}.",
    )


if __name__ == "__main__":
    main()
