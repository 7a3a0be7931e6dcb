"""Claim: a PHM layer with n = 4 beats nn.Linear at 2048 x 2048 and 128 rows: 1.7 times in evaluation, 1.2 in training.

In evaluation the learned algebra is decomposed once (rank 7 of 16 block products, 24 of 64 for n = 8); in training
``rank=7`` keeps it decomposed from the start.
"""

import torch
from harness import compare, report
from torch import nn

import weft

EVALUATION_FLOOR, TRAINING_FLOOR = 1.7, 1.2
RANKS = {2: 3, 4: 7, 8: 24}


def step(module: nn.Module, x: torch.Tensor) -> None:
    module.zero_grad()
    module(x).sum().backward()


def main() -> None:
    torch.manual_seed(0)
    rows = []
    for size in (256, 512, 1024, 2048, 4096):
        plain = nn.Linear(size, size)
        for n, rank in RANKS.items():
            learned = weft.PHMLinear(size, size, n=n).eval()
            trained = weft.PHMLinear(size, size, n=n, rank=rank)
            for count in (16, 128, 1024):
                x = torch.randn(count, size)
                with torch.no_grad():
                    path = learned.explain(x).path
                    evaluation = compare(lambda p=plain, x=x: p(x), lambda p=learned, x=x: p(x), pairs=9)
                x.requires_grad_()
                training = compare(lambda p=plain, x=x: step(p, x), lambda p=trained, x=x: step(p, x), pairs=7)
                claimed = (size, n, count) == (2048, 4, 128)
                kept = evaluation.times_faster >= EVALUATION_FLOOR and training.times_faster >= TRAINING_FLOOR
                rows.append([size, n, count, path, evaluation, training, ("yes" if kept else "no") if claimed else "-"])
    report(
        __file__,
        "PHM layers, square: times faster than nn.Linear",
        ["size", "n", "rows", "path in evaluation", "evaluation", "training step with rank", "reached"],
        rows,
        f"Ranks: {', '.join(f'n = {n}: {rank}' for n, rank in RANKS.items())}. Floors at 2048, n = 4, 128 rows: "
        f"evaluation {EVALUATION_FLOOR}, training step {TRAINING_FLOOR}.",
    )


if __name__ == "__main__":
    main()
