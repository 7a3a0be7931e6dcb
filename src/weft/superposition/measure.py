"""What a superposed network costs, and what its inputs do to one another."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from weft.errors import OptionError
from weft.superposition.binding import check_num_superposed
from weft.superposition.mimo import MIMO


@dataclass(frozen=True)
class Regrouping:
    """How answers depend on the company.

    Attributes:
        accuracies: share of right answers in each grouping; empty without labels.
        changed: share of inputs whose most probable class is not the same in all groupings.
        spread: mean over inputs of the standard deviation, over groupings, of the probability of its first class.
    """

    accuracies: tuple[float, ...]
    changed: float
    spread: float


@torch.no_grad()
def regrouping_spread(
    net: MIMO,
    inputs: Tensor,
    labels: Tensor | None = None,
    *,
    num_superposed: int | None = None,
    groupings: int = 5,
    batch_size: int = 512,
    seed: int = 0,
) -> Regrouping:
    """Answer the same inputs in several random groupings.

    Args:
        net: a classifier, in evaluation mode.
        inputs: (M, ...).
        labels: (M,) of integers, or None.
        num_superposed: S; None is that of the network. At S = 1 nothing depends on the company.
        groupings: number of random orders, at least 2.
        batch_size: inputs per call; rounded down to a multiple of S.
        seed: of the orders.

    Returns:
        what varies.

    Raises:
        OptionError: fewer than two groupings, or a network in training mode.

    Example:
        >>> import torch, weft
        >>> net = weft.models.mimonet(10, 1, num_inputs=2).eval()
        >>> regrouping_spread(net, torch.randn(8, 3, 16, 16), num_superposed=1).changed
        0.0
    """
    if groupings < 2:
        raise OptionError(f"groupings must be at least 2, got {groupings}")
    if net.training:
        raise OptionError("net is in training mode, where answers depend on the whole batch; call net.eval() first")
    together = net.num_superposed if num_superposed is None else check_num_superposed(num_superposed, net.num_inputs)
    size = max(batch_size // together, 1) * together
    generator = torch.Generator().manual_seed(seed)
    all_probabilities = []
    for _ in range(groupings):
        order = torch.randperm(len(inputs), generator=generator).to(inputs.device)
        answers = torch.cat([net(inputs[part], num_superposed=together).softmax(1) for part in order.split(size)])
        all_probabilities.append(answers[order.argsort()])
    probabilities = torch.stack(all_probabilities)
    classes = probabilities.argmax(2)
    first = probabilities.gather(2, classes[:1, :, None].expand(groupings, -1, 1))[..., 0]
    return Regrouping(
        () if labels is None else tuple((each == labels).double().mean().item() for each in classes),
        (classes != classes[0]).any(0).double().mean().item(),
        first.double().std(0).mean().item(),
    )


@torch.no_grad()
def seconds_per_input(
    net: MIMO, inputs: Tensor, *, num_superposed: int | None = None, repeats: int = 11, warm_up: int = 2
) -> float:
    """Median time of one call over the inputs of a batch, by the number of inputs.

    Args:
        net: is run in the mode it is in.
        inputs: one batch.
        num_superposed: S; None is that of the network.
        repeats: timed calls, at least 1.
        warm_up: calls before them.

    Returns:
        seconds; the device is waited for before every look at the clock.

    Raises:
        OptionError: no repeats.
    """
    if repeats < 1:
        raise OptionError(f"repeats must be at least 1, got {repeats}")
    times = []
    for number in range(warm_up + repeats):
        start = _now(inputs)
        net(inputs, num_superposed=num_superposed)
        if number >= warm_up:
            times.append(_now(inputs) - start)
    return statistics.median(times) / len(inputs)


def _now(x: Tensor) -> float:
    if x.device.type != "cpu":
        getattr(torch, x.device.type).synchronize(x.device)
    return time.perf_counter()
