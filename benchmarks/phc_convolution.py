"""Claim: a PHC convolution (n = 4, 128 channels, 16 x 16, batch 32) is as fast as nn.Conv2d.

A training step takes at most 1.05 of its time, an evaluation at most 1.03.
"""

import torch
from harness import compare, report
from torch import nn

import weft

#: batch, channels, side; the first is the claim.
CASES = ((32, 128, 16), (64, 64, 32), (8, 256, 16), (32, 512, 4), (1, 128, 16))
STEP_LIMIT, EVALUATION_LIMIT = 1.05, 1.03


def step(module: nn.Module, x: torch.Tensor) -> None:
    module.zero_grad()
    module(x).sum().backward()


def main() -> None:
    torch.manual_seed(0)
    rows = []
    for index, (batch, channels, side) in enumerate(CASES):
        plain = nn.Conv2d(channels, channels, 3, padding=1)
        layer = weft.PHConv2d(channels, channels, 3, n=4, padding=1)
        x = torch.randn(batch, channels, side, side)
        x_grad = x.clone().requires_grad_()
        training = compare(lambda p=plain, x=x_grad: step(p, x), lambda p=layer, x=x_grad: step(p, x), pairs=31)
        plain.eval(), layer.eval()
        with torch.no_grad():
            evaluation = compare(lambda p=plain, x=x: p(x), lambda p=layer, x=x: p(x), pairs=31)
        ours, ours_eval = 1 / training.times_faster, 1 / evaluation.times_faster
        claimed = index == 0
        verdict = "yes" if ours <= STEP_LIMIT and ours_eval <= EVALUATION_LIMIT else "no"
        rows.append(
            [
                f"{batch} x {channels} x {side} x {side}",
                f"{ours:.3f}",
                f"{ours_eval:.3f}",
                training,
                evaluation,
                verdict if claimed else "-",
            ]
        )
    report(
        __file__,
        "PHConv2d 3x3, n = 4: time of nn.Conv2d's training step and evaluation",
        [
            "input",
            "step / nn.Conv2d",
            "evaluation / nn.Conv2d",
            "step, times faster",
            "evaluation, times faster",
            "reached",
        ],
        rows,
        f"Limits for the first row: step {STEP_LIMIT}, evaluation {EVALUATION_LIMIT}.",
    )


if __name__ == "__main__":
    main()
