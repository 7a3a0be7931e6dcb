"""Claim: with the families' multipliers, one step changes the outputs of a structured layer by about as much as those
of a dense layer of the same size at the same rate, and this does not drift with the size."""

from __future__ import annotations

import torch
from harness import report
from torch import Tensor

from weft.parametrizations import family, make
from weft.parametrizations.base import Parametrization

WIDTHS, ROWS = (256, 512, 1024, 2048), 32
MEMBERS = {
    "low_rank": {"share": 0.15},
    "kronecker": {"n": 4},
    "sss": {"share": 0.2},
    "hodlr": {"share": 0.2},
    "monarch": {"share": 0.15},
    "butterfly": {},
    "psm": {"share": 0.15},
    "toeplitz_like": {"share": 0.1},
    "ldr": {"share": 0.1},
    "hedlr": {"share": 0.2},
    "hmat": {"share": 0.2},
}


def change(member: Parametrization, x: Tensor, slope: Tensor, optimizer: str, plain: bool) -> Tensor:
    """The change of the outputs that the first step makes, per unit of the learning rate; to first order."""
    parameters = dict(member.named_parameters())
    multipliers = family(member.family).multipliers(member, optimizer)
    before = member.linear(x)
    gradients = torch.autograd.grad((before * slope).sum() / ROWS, list(parameters.values()))
    with torch.no_grad():
        steps = [g.sign() if optimizer == "adam" else g for g in gradients]  # the first step of Adam is the sign
        steps = [step if plain else step * multipliers[name] for name, step in zip(parameters, steps, strict=True)]
        small = 1e-6 / max(float(step.abs().max()) for step in steps)
        for parameter, step in zip(parameters.values(), steps, strict=True):
            parameter.sub_(small * step)
        return (member.linear(x) - before) / small


def main() -> None:
    torch.manual_seed(0)
    kwargs = {"dtype": torch.float64}
    rows = []
    for optimizer in ("adam", "sgd"):
        for name, options in MEMBERS.items():
            cells: list[object] = [optimizer, name]
            for plain in (True, False):
                for width in WIDTHS:
                    x, slope = torch.randn(ROWS, width, **kwargs), torch.randn(ROWS, width, **kwargs)
                    members = (make(name, (width, width), **options, **kwargs), make("dense", (width, width), **kwargs))
                    ours, dense = (change(m, x, slope, optimizer, plain).square().mean() ** 0.5 for m in members)
                    cells.append(f"{float(ours / dense):.2g}")
            rows.append(cells)
    report(
        __file__,
        f"Change of the outputs in the first step, structured over dense: normal inputs and slopes, {ROWS} rows",
        ["optimizer", "family", *(f"one rate, {w}" for w in WIDTHS), *(f"with multipliers, {w}" for w in WIDTHS)],
        rows,
        note="Root mean squares, to first order in the rate; the columns are the widths of square layers.",
    )


if __name__ == "__main__":
    main()
