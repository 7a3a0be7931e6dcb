"""Claim: building a PHM weight by one matrix product and a permutation beats broadcast product and sum 2.5 times."""

import torch
from harness import compare, report

from weft.parametrizations import Kronecker
from weft.parametrizations.kronecker_fit import kronecker_sum

FLOOR = 2.5


def broadcast_sum(mixing: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
    """What the published PHM layers do: form all n Kronecker products by broadcasting, then add them."""
    products = mixing[:, :, None, :, None] * blocks[:, None, :, None, :]
    n, rows, columns = blocks.shape
    return products.reshape(n, n * rows, n * columns).sum(0)


def main() -> None:
    torch.manual_seed(0)
    rows = []
    for size, n in ((1024, 4), (2048, 4), (4096, 2), (4096, 4), (4096, 8)):
        member = Kronecker((size, size), n=n)
        mixing, blocks = member.mixing.detach(), member.blocks.detach()
        assert torch.allclose(broadcast_sum(mixing, blocks), kronecker_sum(mixing, blocks), atol=1e-5)
        ratio = compare(lambda a=mixing, s=blocks: broadcast_sum(a, s), lambda a=mixing, s=blocks: kronecker_sum(a, s))
        floor = FLOOR if (size, n) == (4096, 4) else "-"
        reached = "-" if floor == "-" else "yes" if ratio.times_faster >= FLOOR else "no"
        rows.append([f"{size} x {size}", n, ratio, floor, reached])
    report(
        __file__,
        "Building the weight of a sum of Kronecker products: times faster than broadcast product and sum",
        ["size", "n", "times faster", "floor", "reached"],
        rows,
    )


if __name__ == "__main__":
    main()
