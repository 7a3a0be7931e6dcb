"""Optimizers and learning-rate schedules by name. A schedule always spans the whole run, whatever its length."""

import math
from collections.abc import Sequence
from typing import Any, Literal

from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR, OneCycleLR

from weft.errors import OptionError

OptimizerName = Literal["sgd", "adam", "adamw"]
ScheduleName = Literal["onecycle", "cosine", "multistep", "constant"]


def make_optimizer(
    name: OptimizerName, groups: list[dict[str, Any]], lr: float, momentum: float, betas: tuple[float, float]
) -> Optimizer:
    """The optimizer of a name.

    Args:
        name: "sgd", "adam" or "adamw".
        groups: parameter groups; they bring their own learning rate and weight decay.
        lr: for groups that bring none.
        momentum: of SGD, in [0, 1).
        betas: of Adam and AdamW.

    Returns:
        the optimizer.
    """
    if name == "sgd":
        return SGD(groups, lr=lr, momentum=momentum)
    return (Adam if name == "adam" else AdamW)(groups, lr=lr, betas=betas)


def make_schedule(
    name: ScheduleName, optimizer: Optimizer, total_steps: float, milestones: Sequence[float], gamma: float
) -> LRScheduler | None:
    """The schedule of a name, to be stepped after every optimizer step.

    Args:
        name: "onecycle" (up to the learning rate over 30 % of the run, then down to 0), "cosine" (down to 0),
            "multistep" (times ``gamma`` at every milestone) or "constant".
        optimizer: its groups' learning rates are the peaks.
        total_steps: optimizer steps of the whole run.
        milestones: of "multistep", shares of the run in (0, 1).
        gamma: of "multistep", in (0, 1].

    Returns:
        the schedule, or None for "constant".

    Raises:
        OptionError: the run has no known end, or a milestone lies outside it.
    """
    if name == "constant":
        return None
    if not math.isfinite(total_steps):
        raise OptionError(
            f"schedule={name!r} spans the whole run, so its length must be known: set trainer.max_epochs or "
            "trainer.max_steps, or choose schedule='constant'"
        )
    steps = max(1, int(total_steps))
    if name == "onecycle":
        return OneCycleLR(optimizer, [group["lr"] for group in optimizer.param_groups], total_steps=steps)
    if name == "cosine":
        return CosineAnnealingLR(optimizer, T_max=steps)
    if not all(0 < share < 1 for share in milestones):
        raise OptionError(f"milestones are shares of the run in (0, 1), such as (0.5, 0.75); got {list(milestones)}")
    return MultiStepLR(optimizer, sorted(round(share * steps) for share in milestones), gamma=gamma)
