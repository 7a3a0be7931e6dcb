"""Claim: a batch of series with dynamics of their own is solved as fast as a few of them one by one.

64 series, 2 numbers of state, 32 hidden units, 30 times: one call of ``solve_ode`` against a call per series, without
gradients and with them (floor 20). Then the two ways of the gradient: seconds of a training step, and the memory that
the forward pass holds for the backward pass, for a short and a long solve.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from harness import compare, report
from torch import Tensor, nn

import weft
from weft.hypernet import solve_ode

SERIES = 64


def setting(duration: float) -> tuple[weft.HyperNetwork, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 2))
    hyper = weft.HyperNetwork(net, condition=16, activation="tanh")
    return hyper, torch.randn(SERIES, 2), torch.randn(SERIES, 16), torch.linspace(0, duration, 31)


def one_by_one() -> list[list[object]]:
    hyper, y0, c, t = setting(6.0)

    def batch() -> Tensor:
        return solve_ode(hyper, y0, t, condition=c)

    def loop() -> Tensor:
        return torch.cat([solve_ode(hyper, y, t, condition=e) for y, e in zip(y0.split(1), c.split(1), strict=True)])

    torch.testing.assert_close(batch(), loop(), rtol=1e-4, atol=1e-4)

    def without(f: Callable[[], Tensor]) -> None:
        with torch.no_grad():
            f()

    rows: list[list[object]] = []
    for what, run in (("forward", without), ("forward + backward", lambda f: f().sum().backward())):
        ratio = compare(lambda r=run: r(loop), lambda r=run: r(batch), pairs=2, threads=1)
        rows.append([f"{SERIES} series, {what}", "one by one", ratio, 20, f"{1e3 * ratio.ours_s:.0f} ms"])
    return rows


def held(forward: Callable[[], Tensor]) -> float:
    """MiB of distinct tensors that autograd keeps for the backward pass."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out = forward()  # alive while we count, so that no address is used twice
        total = sum(kept.values()) / 2**20
    del out
    return total


def adjoint() -> list[list[object]]:
    rows: list[list[object]] = []
    for duration in (6.0, 24.0):
        hyper, y0, c, t = setting(duration)
        forward = {
            way: lambda w=way, h=hyper, y=y0, e=c, s=t: solve_ode(h, y, s, condition=e, gradient=w)
            for way in ("direct", "adjoint")
        }
        ratio = compare(
            lambda f=forward: f["direct"]().sum().backward(),
            lambda f=forward: f["adjoint"]().sum().backward(),
            pairs=2,
            threads=1,
        )
        memory = {way: held(call) for way, call in forward.items()}
        note = f"{1e3 * ratio.ours_s:.0f} ms; holds {memory['adjoint']:.1f} MiB, direct {memory['direct']:.1f} MiB"
        rows.append([f"adjoint, {SERIES} series, duration {duration:.0f}", "direct", ratio, "-", note])
    return rows


if __name__ == "__main__":
    torch.set_num_threads(1)
    report(
        __file__,
        "Differential equations with weights per series",
        ["what", "against", "times faster", "floor", "ours"],
        [*one_by_one(), *adjoint()],
        remark="The adjoint of torchode differentiates series by series under vmap and starts anew at each of the 31 "
        "times: at this size it costs time and memory. What it holds does not grow with the number of steps, but with "
        "times x weights.",
    )
