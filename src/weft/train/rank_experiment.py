"""The toy experiment on the rank bias of depth: linear regression by chains of linear maps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from weft.errors import OptionError
from weft.overparam import effective_rank


@dataclass(frozen=True)
class RankBias:
    """One depth and one rank of the target, at the best learning rate.

    Attributes:
        depth: L, number of maps in the chain.
        rank: of the target.
        lr: the best of those tried.
        at_start: effective rank of the product before training, mean over seeds.
        at_end: after training.
        target: effective rank of the target.
        train_error: mean squared error over the training samples, over the variance of the outputs.
        test_error: expected squared error on fresh samples, over the variance of the outputs.
        seeds: number of seeds in the means.
    """

    depth: int
    rank: int
    lr: float
    at_start: float
    at_end: float
    target: float
    train_error: float
    test_error: float
    seeds: int


def check(
    depths: Sequence[int],
    ranks: Sequence[int],
    rates: Sequence[float],
    *,
    dim: int,
    samples: int,
    steps: int,
    momentum: float,
    clip: float,
    seeds: int,
) -> None:
    """Refuse arguments that ``rank_bias`` cannot work with.

    Args:
        depths: as its.
        ranks: as its.
        rates: as its.
        dim: as its.
        samples: as its.
        steps: as its.
        momentum: as its.
        clip: as its.
        seeds: as its.

    Raises:
        OptionError: one is out of range.
    """
    for name, several, most in (("depths", depths, math.inf), ("ranks", ranks, dim)):
        if not several or not all(1 <= each <= most for each in several):
            rule = "at least 1" if most == math.inf else f"from 1 to {most}"
            raise OptionError(f"{name} must be one or several numbers {rule}, got {list(several)}")
    for name, one in (("samples", samples), ("steps", steps), ("seeds", seeds)):
        if one < 1:
            raise OptionError(f"{name} must be at least 1, got {one}")
    if not rates or min(*rates, clip) <= 0 or not 0 <= momentum < 1:
        raise OptionError(
            f"rates and clip must be above 0 and momentum in [0, 1), got {list(rates)}, {clip} and {momentum}"
        )


def rank_bias(
    depths: Sequence[int] = (1, 2, 4, 8, 16, 32),
    ranks: Sequence[int] = (1, 4, 16, 32, 64),
    rates: Sequence[float] = (0.03, 0.1, 0.3, 1.0),
    *,
    dim: int = 64,
    samples: int = 32,
    steps: int = 2000,
    momentum: float = 0.9,
    clip: float = 1.0,
    seeds: int = 3,
    dtype: torch.dtype = torch.float32,
    on_step: Callable[[int, int], None] | None = None,
) -> list[RankBias]:
    r"""Learn a linear map from too few samples by chains of several depths.

    .. math:: \min_{W_1, \ldots, W_L} \frac1{n \, \mathrm{dim}} \lVert X W_1 \cdots W_L - X W^* \rVert_F^2

    with X of n samples of standard normal inputs and W* a random matrix of the given rank with outputs of unit
    variance. With n below the dimension many maps fit; which of them is found shows the bias. Full-batch gradient
    descent with momentum, the rate divided by 10 after three quarters of the steps; entries start as N(0, 1 / dim).
    All ranks, rates and seeds of a depth are trained as one batch. For every depth and rank the rate with the lowest
    mean training error counts.

    Args:
        depths: L, each at least 1.
        ranks: of the targets, in 1 ... dim.
        rates: learning rates to try.
        dim: of inputs and outputs.
        samples: n, at least 1.
        steps: of gradient descent, at least 1; published: 24,000.
        momentum: in [0, 1).
        clip: the most that the norm of a gradient counts, above 0: chains start with gradients that grow with 2^L.
        seeds: number of targets, data sets and starts, at least 1.
        dtype: of everything.
        on_step: called with (depth, step) after every hundredth step.

    Returns:
        a record per depth and rank.

    Raises:
        OptionError: an argument is out of range, or no rate of a depth ended with finite weights.

    Cost:
        steps * sum of depths * ranks * rates * seeds * 6 * n * dim^2 operations.

    Source:
        Huh, Mobahi, Zhang, Cheung, Agrawal, Isola 2023, The Low-Rank Simplicity Bias in Deep Networks, section 4,
        https://arxiv.org/abs/2103.10427.

    Example:
        >>> found = rank_bias((1, 4), (2,), (0.1,), dim=8, samples=4, steps=50, seeds=1)
        >>> [(each.depth, each.rank) for each in found]
        [(1, 2), (4, 2)]
    """
    check(depths, ranks, rates, dim=dim, samples=samples, steps=steps, momentum=momentum, clip=clip, seeds=seeds)
    cases = list(itertools.product(range(len(ranks)), range(len(rates)), range(seeds)))
    x, targets = _problems(ranks, seeds, dim, samples, dtype)
    inputs = torch.stack([x[seed] for _, _, seed in cases])
    wanted = torch.stack([targets[seed][rank] for rank, _, seed in cases])
    lr = torch.tensor([rates[rate] for _, rate, _ in cases], dtype=dtype)[:, None, None]
    found = []
    for depth in depths:
        start = _chain(depth, seeds, dim, dtype)
        factors = torch.stack([start[seed] for _, _, seed in cases]).unbind(1)
        before = [float(effective_rank(_product(start[seed].unbind(0)))) for seed in range(seeds)]
        product = _train(list(factors), inputs, wanted, lr, steps, momentum, clip, depth, on_step)
        error = (product - wanted).square().sum((1, 2)) / dim
        residual = (inputs @ (product - wanted)).square().mean((1, 2))
        for index, rank in enumerate(ranks):
            rows = {
                rate: [k for k, case in enumerate(cases) if case[:2] == (index, rate)] for rate in range(len(rates))
            }
            finite = {rate: own for rate, own in rows.items() if bool(product[own].isfinite().all())}
            if not finite:
                raise OptionError(
                    f"rates: none of {list(rates)} ended with finite weights at depth {depth}; try lower ones"
                )
            rate = min(finite, key=lambda each: float(residual[rows[each]].mean()))
            own = rows[rate]
            found.append(RankBias(
                depth, rank, rates[rate], sum(before) / seeds,
                sum(float(effective_rank(product[k])) for k in own) / seeds,
                sum(float(effective_rank(wanted[k])) for k in own) / seeds,
                float(residual[own].mean()), float(error[own].mean()), seeds,
            ))  # fmt: skip
    return found


def _problems(
    ranks: Sequence[int], seeds: int, dim: int, samples: int, dtype: torch.dtype
) -> tuple[list[Tensor], list[list[Tensor]]]:
    """Inputs per seed, (n, dim); targets per seed and rank, (dim, dim)."""
    inputs, targets = [], []
    for seed in range(seeds):
        generator = torch.Generator().manual_seed(seed)
        inputs.append(torch.randn(samples, dim, generator=generator, dtype=dtype))
        own = []
        for rank in ranks:
            left, right = (torch.randn(dim, rank, generator=generator, dtype=dtype) for _ in range(2))
            own.append(left @ right.T / math.sqrt(dim * rank))
        targets.append(own)
    return inputs, targets


def _chain(depth: int, seeds: int, dim: int, dtype: torch.dtype) -> Tensor:
    """Factors of every seed, (seeds, depth, dim, dim)."""
    made = []
    for seed in range(seeds):
        generator = torch.Generator().manual_seed(1000 * (seed + 1) + depth)
        made.append(torch.randn(depth, dim, dim, generator=generator, dtype=dtype) / math.sqrt(dim))
    return torch.stack(made)


def _product(factors: Sequence[Tensor]) -> Tensor:
    product = factors[0]
    for each in factors[1:]:
        product = product @ each
    return product


def _train(
    factors: list[Tensor],
    inputs: Tensor,
    wanted: Tensor,
    lr: Tensor,
    steps: int,
    momentum: float,
    clip: float,
    depth: int,
    on_step: Callable[[int, int], None] | None,
) -> Tensor:
    """The products after training, every member of the batch at its own rate."""
    parameters = [nn.Parameter(each.clone()) for each in factors]
    speeds = [torch.zeros_like(each) for each in parameters]
    outputs = inputs @ wanted
    for step in range(steps):
        y = inputs
        for each in parameters:
            y = y @ each
        # the sum over the batch: every member has its own loss
        loss = (y - outputs).square().mean((1, 2)).sum()
        gradients = torch.autograd.grad(loss, parameters)
        rate = lr * (0.1 if step >= 0.75 * steps else 1.0)
        with torch.no_grad():
            norm = torch.stack([each.square().sum((1, 2)) for each in gradients]).sum(0).sqrt()
            scale = (clip / norm.clamp_min(1e-30)).clamp(max=1)[:, None, None]
            for parameter, speed, gradient in zip(parameters, speeds, gradients, strict=True):
                speed.mul_(momentum).add_(scale * gradient)
                parameter.sub_(rate * speed)
        if on_step is not None and (step + 1) % 100 == 0:
            on_step(depth, step + 1)
    with torch.no_grad():
        return _product(parameters).detach()
