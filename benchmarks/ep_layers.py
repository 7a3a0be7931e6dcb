"""Claim: over-parametrised layers cost about a plain layer in training, and nothing afterwards.

Training step of EPConv2d 1x1-3x3-1x1, width 2, against nn.Conv2d (limit 1.25; the sub-layers one by one beside it); of
EPLinear 512, depth 4, against the cheaper of its two forms (limit 1.05); peak memory of the step against that of the
plain layer plus the factors (limit 1.3); folded and cached layers against plain ones; and the time to collapse 64
channels, depth 16, with batch norms and skips of intervals 1, 2 and 3 (limit 10 ms).
"""

from __future__ import annotations

import torch
from harness import compare, report
from torch import nn
from torch.profiler import ProfilerActivity, profile

import weft

CONVOLUTIONS = ((32, 64, 32), (64, 128, 16))  # batch, channels, side
ROWS = (32, 128, 512, 2048)
CONV_LIMIT, LINEAR_LIMIT, MEMORY_LIMIT, COLLAPSE_LIMIT_S = 1.25, 1.05, 1.3, 0.01


def step(module: nn.Module, x: torch.Tensor, **options: bool) -> None:
    module.zero_grad()
    module(x, **options).sum().backward()


def peak_bytes(module: nn.Module, x: torch.Tensor) -> int:
    """Most bytes held at once during a training step, over what was held before it."""
    step(module, x)
    module.zero_grad(set_to_none=True)
    x.grad = None
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        step(module, x)
    held = peak = 0
    for event in prof.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def convolutions() -> list[list[object]]:
    rows: list[list[object]] = []
    for batch, channels, side in CONVOLUTIONS:
        plain = nn.Conv2d(channels, channels, 3, padding=1)
        layer = weft.EPConv2d(channels, channels, [1, 3, 1], 1, width=2)
        x = torch.randn(batch, channels, side, side, requires_grad=True)
        ours = compare(lambda p=plain, x=x: step(p, x), lambda p=layer, x=x: step(p, x), pairs=11)
        name = f"EPConv2d {channels} channels, batch {batch}, {side} x {side}"
        rows.append([f"{name}: step / nn.Conv2d", ours, f"{1 / ours.times_faster:.3f}", CONV_LIMIT])
        slow = compare(lambda p=plain, x=x: step(p, x), lambda p=layer, x=x: step(p, x, expanded=True), pairs=3)
        rows.append([f"{name}: step of the expanded form / nn.Conv2d", slow, f"{1 / slow.times_faster:.3f}", "-"])
        factors = 4 * sum(p.numel() for p in layer.parameters())
        ratio = peak_bytes(layer, x) / (peak_bytes(plain, x) + factors)
        rows.append([f"{name}: peak memory / (nn.Conv2d + factors)", "-", f"{ratio:.3f}", MEMORY_LIMIT])
        folded, layer = layer.fold().eval(), layer.eval()
        with torch.no_grad():
            x = x.detach()
            same = compare(lambda p=plain, x=x: p(x), lambda p=folded, x=x: p(x), pairs=11)
            warm = compare(lambda p=plain, x=x: p(x), lambda p=layer, x=x: p(x), pairs=11)
        rows.append([f"{name}: folded / nn.Conv2d", same, f"{1 / same.times_faster:.3f}", "-"])
        rows.append([f"{name}: evaluation / nn.Conv2d", warm, f"{1 / warm.times_faster:.3f}", "-"])
    return rows


def linears() -> list[list[object]]:
    rows: list[list[object]] = []
    layer, forced = (weft.EPLinear(512, 512, depth=4) for _ in range(2))
    forced._rows_from = 0
    for count in ROWS:
        x = torch.randn(count, 512, requires_grad=True)
        one_by_one = compare(lambda x=x: step(layer, x, expanded=True), lambda x=x: step(layer, x))
        together = compare(lambda x=x: step(forced, x), lambda x=x: step(layer, x))
        worst = min(one_by_one, together, key=lambda ratio: ratio.times_faster)
        name = f"EPLinear 512, depth 4, {count} rows: step / the cheaper form"
        rows.append([name, worst, f"{1 / worst.times_faster:.3f}", LINEAR_LIMIT])
    return rows


def collapse() -> list[object]:
    layer = weft.EPConv2d(
        64, 64, 3, 1, depth=16, batch_norm=True, residual=True, residual_intervals=[1, 2, 3]
    ).eval()  # fmt: skip
    with torch.no_grad():
        layer(torch.randn(1, 64, 8, 8))
        copy = compare(lambda: torch.randn(1000), layer._collapsed, pairs=15)
    return [
        "collapse of 64 channels, depth 16, batch norms, intervals [1, 2, 3], in ms", "-",
        f"{copy.ours_s * 1e3:.2f}", COLLAPSE_LIMIT_S * 1e3,
    ]  # fmt: skip


def main() -> None:
    torch.manual_seed(0)
    rows = [collapse(), *linears(), *convolutions()]
    for row in rows:
        limit = row[3]
        row.append("-" if limit == "-" else "yes" if float(str(row[2])) <= float(str(limit)) else "no")
    report(
        __file__,
        "Over-parametrised layers: training step, memory, evaluation and collapse",
        ["measured", "times faster", "value", "limit", "reached"],
        rows,
        "'Times faster' is of ours over what stands after the slash; 'value' is its inverse, in time or memory.",
    )


if __name__ == "__main__":
    main()
