"""Claim: PHC convolutions with a decomposed algebra (rank 7, rank 4) are never slower than nn.Conv2d.

The layer takes the better of the stages and the dense weight; both are shown, so that a wrong choice is seen.
"""

import torch
from harness import compare, report
from torch import nn

import weft

WHATS, HOWS = ("step", "evaluation"), ("", "by stages", "dense")
#: batch, channels, side; the first is the claim.
CASES = ((32, 128, 16), (64, 64, 32), (8, 256, 16), (32, 512, 4), (8, 512, 14))


def step(module: nn.Module, x: torch.Tensor) -> None:
    module.zero_grad()
    module(x).sum().backward()


def main() -> None:
    torch.manual_seed(0)
    rows = []
    for batch, channels, side in CASES:
        plain = nn.Conv2d(channels, channels, 3, padding=1)
        x = torch.randn(batch, channels, side, side)
        x_grad = x.clone().requires_grad_()
        for title, options in (("learned", {}), ("rank 7", {"rank": 7}), ("rank 4", {"rank": 4})):
            cells: list[object] = [f"{batch} x {channels} x {side} x {side}", title]
            for path in ("auto", "factored", "dense"):
                layer = weft.PHConv2d(channels, channels, 3, n=4, padding=1, path=path, **options)
                training = compare(lambda p=plain, x=x_grad: step(p, x), lambda p=layer, x=x_grad: step(p, x), pairs=9)
                plain.eval(), layer.eval()
                with torch.no_grad():
                    chosen = layer.explain(x).path
                    evaluation = compare(lambda p=plain, x=x: p(x), lambda p=layer, x=x: p(x), pairs=9)
                plain.train()
                cells += [training, evaluation] if path != "auto" else [chosen, training, evaluation]
            rows.append(cells)
    report(
        __file__,
        "PHConv2d 3x3, n = 4, decomposed: times faster than nn.Conv2d",
        ["input", "algebra", "chosen in evaluation", *(f"{what} {how}".strip() for how in HOWS for what in WHATS)],
        rows,
        "A learned algebra without a rank has no stages in training, so its step by stages is the dense one.",
    )


if __name__ == "__main__":
    main()
