"""Claim: every row of a batch through its own network, at the speed of one call and without building its weights.

Per-sample MLP 784-32-10, 64 rows, forward and backward, against what a user would write: a loop over ``unbind``-ed
weights (floor 3), a loop that indexes ``W[b]`` (floor 20), grouped convolutions (floor 1.5). A full hypernetwork of a
linear layer 784 -> 32, hidden 16, 512 rows, against a batched matmul of the weights that it generates (floor 8). Peak
memory of a training step with 4096 rows, where the weights alone would be 411 MB. Beside them: convolutions, other
kinds, and a task in evaluation against the plain network.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from harness import compare, report
from torch import Tensor, nn
from torch.func import functional_call
from torch.profiler import ProfilerActivity, profile

import weft
from weft.hypernet import per_row_call

ROWS, SIDES = 64, (784, 32, 10)


def step(forward: Callable[[], Tensor], tensors: list[Tensor]) -> None:
    """A forward and a backward pass."""
    for tensor in tensors:
        tensor.grad = None
    forward().sum().backward()


def per_sample_mlp() -> list[list[object]]:
    net = nn.Sequential(nn.Linear(*SIDES[:2], bias=False), nn.ReLU(), nn.Linear(*SIDES[1:], bias=False))
    weights = {name: torch.randn(ROWS, *p.shape, requires_grad=True) for name, p in net.named_parameters()}
    first, second = weights.values()
    x = torch.randn(ROWS, SIDES[0])

    def unbound() -> Tensor:
        rows = zip(x.unbind(), first.unbind(), second.unbind(), strict=True)
        return torch.stack([F.linear(F.relu(F.linear(a, w)), v) for a, w, v in rows])

    def indexed() -> Tensor:
        return torch.stack([F.linear(F.relu(F.linear(x[b], first[b])), second[b]) for b in range(ROWS)])

    def grouped() -> Tensor:
        y = F.conv1d(x.reshape(1, -1, 1), first.reshape(-1, SIDES[0], 1), groups=ROWS)
        return F.conv1d(F.relu(y), second.reshape(-1, SIDES[1], 1), groups=ROWS).reshape(ROWS, -1)

    def ours() -> Tensor:
        return per_row_call(net, weights, x)

    table: list[list[object]] = []
    name = f"per-sample MLP {'-'.join(map(str, SIDES))}, {ROWS} rows, forward + backward"
    for what, baseline, floor in (
        ("loop over unbind-ed weights", unbound, 3),
        ("loop indexing W[b]", indexed, 20),
        ("grouped conv1d", grouped, 1.5),
    ):
        torch.testing.assert_close(baseline(), ours(), rtol=1e-3, atol=1e-2)
        tensors = [first, second]
        ratio = compare(lambda f=baseline, t=tensors: step(f, t), lambda f=ours, t=tensors: step(f, t))
        table.append([name, what, ratio, floor])
    return table


def contraction() -> list[list[object]]:
    table: list[list[object]] = []
    for sides, floor in ((SIDES[:2], 8), (SIDES[1::-1], "-")):
        hyper = weft.HyperNetwork(nn.Linear(*sides, bias=False), condition=20)
        x, c = torch.randn(512, sides[0]), torch.randn(512, 20)

        def built(hyper: Any = hyper, x: Tensor = x, c: Tensor = c) -> Tensor:
            return torch.bmm(hyper.generate(condition=c)["weight"], x.unsqueeze(2)).squeeze(2)

        def ours(hyper: Any = hyper, x: Tensor = x, c: Tensor = c) -> Tensor:
            return hyper(x, condition=c)

        torch.testing.assert_close(built(), ours(), rtol=1e-3, atol=1e-3)
        name = f"full hypernetwork of {sides[0]} -> {sides[1]}, hidden 16, 512 rows"
        what = "batched matmul of built weights"
        with torch.no_grad():
            table.append([f"{name}, forward", what, compare(built, ours), floor])
        tensors = list(hyper.parameters())
        ratio = compare(lambda f=built, t=tensors: step(f, t), lambda f=ours, t=tensors: step(f, t), pairs=7)
        table.append([f"{name}, forward + backward", what, ratio, floor])
    return table


def memory() -> list[object]:
    hyper = weft.HyperNetwork(nn.Linear(*SIDES[:2], bias=False), condition=20)
    x, c = torch.randn(4096, SIDES[0]), torch.randn(4096, 20)
    tensors = list(hyper.parameters())
    step(lambda: hyper(x, condition=c), tensors)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        step(lambda: hyper(x, condition=c), tensors)
    held = peak = 0
    for event in prof.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    weights = 4 * 4096 * SIDES[0] * SIDES[1]
    name = f"peak memory of a training step, 784 -> 32, 4096 rows: {peak / 1e6:.1f} MB"
    return [name, f"the weights alone, {weights / 1e6:.0f} MB", f"{weights / peak:.1f}", 1]


def other_targets() -> list[list[object]]:
    conv = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2, padding=1))
    mlp = nn.Sequential(nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))
    table: list[list[object]] = []
    for name, net, size, kind, options in (
        ("two convolutions, 32 x 32", conv, (3, 32, 32), "full", {}),
        ("784-64-10", mlp, (784,), "chunked", {"num_chunks": 100}),
        ("784-64-10", mlp, (784,), "low_rank", {"rank": 4}),
        ("784-64-10", mlp, (784,), "scaling", {}),
    ):
        hyper = weft.HyperNetwork(net, condition=20, kind=kind, **options)
        x, c = torch.randn(ROWS, *size), torch.randn(ROWS, 20)

        def loop(hyper: Any = hyper, net: Any = net, x: Tensor = x, c: Tensor = c) -> Tensor:
            made = {name: tensor.unbind() for name, tensor in hyper.generate(condition=c).items()}
            rows = ({name: tensors[b] for name, tensors in made.items()} for b in range(len(x)))
            return torch.cat([functional_call(net, own, (x[b : b + 1],)) for b, own in enumerate(rows)])

        def ours(hyper: Any = hyper, x: Tensor = x, c: Tensor = c) -> Tensor:
            return hyper(x, condition=c)

        tensors = list(hyper.parameters())
        ratio = compare(lambda f=loop, t=tensors: step(f, t), lambda f=ours, t=tensors: step(f, t), pairs=7)
        name = f"{kind} hypernetwork of {name}, {ROWS} rows, forward + backward"
        table.append([name, "loop of functional_call", ratio, "-"])
    tasks, x = weft.HyperNetwork(mlp, num_tasks=10).eval(), torch.randn(ROWS, 784)
    plain = tasks.fold(3)
    with torch.no_grad():
        ratio = compare(lambda: plain(x), lambda: tasks(x, task=3))
    table.append([f"784-64-10 of task 3, {ROWS} rows, evaluation, kept", "plain network", ratio, "-"])
    return table


def main() -> None:
    torch.manual_seed(0)
    rows = [*per_sample_mlp(), *contraction(), memory(), *other_targets()]
    for row in rows:
        floor, ratio = row[3], getattr(row[2], "times_faster", row[2])
        row.append("-" if floor == "-" else "yes" if float(str(ratio)) >= float(str(floor)) else "no")
    report(
        __file__,
        "Hypernetworks: every row through its own network",
        ["measured", "against", "times faster, or smaller", "floor", "reached"],
        rows,
    )


if __name__ == "__main__":
    main()
