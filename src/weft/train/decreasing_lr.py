"""Training with a learning rate that halves on every plateau of the validation loss, from the best weights so far.

Made for fine-tuning a layer that was replaced by a structured one: the first rate may be far too large, since a round
that diverges costs a few epochs and nothing else.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn
from torch.optim import Optimizer

from weft.errors import OptionError, SizeError
from weft.surgery import parameter_groups


@dataclass(frozen=True)
class Round:
    """One round of training at one learning rate; index 0 of every history is the start of the round.

    Args:
        lr: the learning rate.
        train_loss: mean loss over the training samples after every epoch.
        val_loss: the same over the validation samples.
        train_accuracy: share of right answers, or NaN where targets are no classes.
        val_accuracy: the same over the validation samples.
    """

    lr: float
    train_loss: list[float] = field(default_factory=list)
    val_loss: list[float] = field(default_factory=list)
    train_accuracy: list[float] = field(default_factory=list)
    val_accuracy: list[float] = field(default_factory=list)

    @property
    def epochs(self) -> int:
        """Number of epochs of the round."""
        return len(self.val_loss) - 1


def train_with_decreasing_lr(
    model: nn.Module,
    X_train: Tensor,
    y_train: Tensor,
    X_val: Tensor | None = None,
    y_val: Tensor | None = None,
    patience: int = 10,
    batch_size: int = 1000,
    verbose: bool = False,
    loss_function_class: type[nn.Module] = nn.CrossEntropyLoss,
    min_patience_improvement: float = 1e-10,
    optimizer_class: Callable[..., Optimizer] = torch.optim.SGD,
    *,
    lr: float = 1.0,
    rounds: int = 10,
    weight_decay: float = 0.0,
    max_epochs: int | None = None,
    seed: int = 0,
    **optimizer_options: Any,
) -> tuple[nn.Module, list[Round]]:
    """Train on tensors in memory; halve the rate on every plateau of the validation loss, from the best weights.

    A round ends when ``patience`` epochs have brought no validation loss below the best one by more than
    ``min_patience_improvement``, or when the loss is not finite. The model ends with the weights of the smallest
    validation loss of all rounds, never worse than those it came with. Learning rates and weight decay of the families
    come from ``weft.parameter_groups``.

    Args:
        model: trained in place, on the device it is on; left in the mode it was in.
        X_train: (samples, ...) inputs.
        y_train: (samples, ...) targets, as the loss wants them.
        X_val: inputs of the validation; None takes a random fifth of the training samples.
        y_val: their targets.
        patience: epochs without an improvement that end a round, at least 1.
        batch_size: at least 1; the last batch of an epoch may be smaller.
        verbose: whether to print a line per round; a progress bar is shown on a terminal in any case.
        loss_function_class: called without arguments; its loss must be a mean over the samples of a batch.
        min_patience_improvement: smallest improvement that counts, at least 0.
        optimizer_class: any optimizer of torch; made anew for every round.
        lr: learning rate of the first round, greater than 0.
        rounds: number of rounds, at least 1.
        weight_decay: at least 0; applied where the families want it.
        max_epochs: of each round; None for no limit.
        seed: of the split and of the order of the samples; the global generators are left alone.
        **optimizer_options: further arguments of the optimizer, such as ``momentum``.

    Returns:
        the model, and one ``Round`` of histories per learning rate.

    Raises:
        OptionError: a number out of range, or only one of ``X_val`` and ``y_val``.
        SizeError: inputs and targets of different lengths, or too few samples to split.

    Source:
        The training routine of the code of Kissel, Gronauer, Korte, Sacchetto, Diepold 2022, Exploiting Structures in
        Weight Matrices for Efficient Real-Time Drone Control with Neural Networks; there the validation loss was
        computed on training data.

    Example:
        >>> import torch, weft
        >>> from weft.train import train_with_decreasing_lr
        >>> x = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
        >>> model = weft.Linear(8, 2, parametrization="low_rank", rank=1)
        >>> model, rounds = train_with_decreasing_lr(model, x, (x[:, 0] > 0).long(), rounds=3, max_epochs=5)
        >>> rounds[-1].lr, min(rounds[-1].val_loss) <= rounds[0].val_loss[0]
        (0.25, True)
    """
    for name, value, least in (("patience", patience, 1), ("batch_size", batch_size, 1), ("rounds", rounds, 1)):
        if value < least:
            raise OptionError(f"{name} must be at least {least}, got {value}")
    if not lr > 0 or not min_patience_improvement >= 0 or (max_epochs is not None and max_epochs < 1):
        raise OptionError(
            f"lr must be greater than 0, min_patience_improvement at least 0 and max_epochs at least 1 or None; "
            f"got {lr}, {min_patience_improvement} and {max_epochs}"
        )
    generator = torch.Generator().manual_seed(seed)
    train, val = _split((X_train, y_train), (X_val, y_val), generator)
    loss_function, mode = loss_function_class(), model.training
    best = copy.deepcopy(model.state_dict())
    scores = _scores(model, loss_function, train, val, batch_size)
    best_loss = scores[1] if math.isfinite(scores[1]) else math.inf
    history: list[Round] = []
    is_sgd = isinstance(optimizer_class, type) and issubclass(optimizer_class, torch.optim.SGD)
    console = Console()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("", total=rounds)
        for number in range(rounds):
            record = Round(lr * 0.5**number)
            history.append(record)
            groups = parameter_groups(model, record.lr, weight_decay, optimizer="sgd" if is_sgd else "adam")
            optimizer = optimizer_class(groups, lr=record.lr, **optimizer_options)
            if number:
                scores = _scores(model, loss_function, train, val, batch_size)
            _note(record, scores)
            waited, bar_to_pass = 0, best_loss
            while waited < patience and (max_epochs is None or record.epochs < max_epochs):
                _epoch(model, loss_function, optimizer, train, batch_size, generator)
                scores = _scores(model, loss_function, train, val, batch_size)
                _note(record, scores)
                progress.update(bar, description=f"rate {record.lr:.3g}, validation loss {scores[1]:.4g}")
                if not math.isfinite(scores[1]):
                    break
                waited += 1
                if scores[1] < bar_to_pass - min_patience_improvement:  # small gains add up: the bar stays till passed
                    waited, bar_to_pass = 0, scores[1]
                if scores[1] < best_loss:
                    best_loss, best = scores[1], copy.deepcopy(model.state_dict())
            model.load_state_dict(best)
            progress.advance(bar)
            if verbose:
                console.print(
                    f"round {number + 1}/{rounds}: rate {record.lr:.3g}, {record.epochs} epochs, "
                    f"best validation loss {best_loss:.6g}"
                )
    model.train(mode)
    return model, history


def _split(
    train: tuple[Tensor, Tensor], val: tuple[Tensor | None, Tensor | None], generator: torch.Generator
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Training and validation samples, checked; a fifth of the first where there are none of the second."""
    x_val, y_val = val
    if (x_val is None) != (y_val is None):
        raise OptionError("X_val and y_val must both be given, or neither")
    for name, x, y in (("train", *train), ("val", x_val, y_val)):
        if x is not None and y is not None and len(x) != len(y):
            raise SizeError(f"X_{name} and y_{name} must have the same number of samples, got {len(x)} and {len(y)}")
    if x_val is not None and y_val is not None:
        if not len(train[0]) or not len(x_val):
            raise SizeError("X_train and X_val must hold at least one sample each")
        return train, (x_val, y_val)
    if len(train[0]) < 2:
        raise SizeError(
            f"X_train must hold at least 2 samples to be split, got {len(train[0])}; or give X_val and y_val"
        )
    order = torch.randperm(len(train[0]), generator=generator)
    held = max(1, len(order) // 5)
    x, y = train
    return (x[order[held:]], y[order[held:]]), (x[order[:held]], y[order[:held]])


def _epoch(
    model: nn.Module,
    loss_function: nn.Module,
    optimizer: Optimizer,
    samples: tuple[Tensor, Tensor],
    batch_size: int,
    generator: torch.Generator,
) -> None:
    model.train()
    x, y = samples
    device = next(model.parameters()).device
    for index in torch.randperm(len(x), generator=generator).split(batch_size):
        optimizer.zero_grad()
        loss_function(model(x[index].to(device)), y[index].to(device)).backward()
        optimizer.step()


def _scores(
    model: nn.Module, loss_function: nn.Module, train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor], size: int
) -> tuple[float, float, float, float]:
    """Losses of training and validation, then accuracies."""
    (loss, accuracy), (val_loss, val_accuracy) = (evaluate(model, loss_function, *part, size) for part in (train, val))
    return loss, val_loss, accuracy, val_accuracy


@torch.no_grad()
def evaluate(model: nn.Module, loss_function: nn.Module, x: Tensor, y: Tensor, batch_size: int) -> tuple[float, float]:
    """Loss and accuracy over samples, in evaluation mode; batches count by their size.

    Args:
        model: stays in evaluation mode.
        loss_function: a mean over the samples of a batch.
        x: (samples, ...) inputs, at least one.
        y: (samples, ...) targets.
        batch_size: at least 1.

    Returns:
        the loss, and the share of right answers; NaN where targets are no classes.
    """
    model.eval()
    device = next(model.parameters()).device
    loss, right = 0.0, 0.0
    for inputs, targets in zip(x.split(batch_size), y.split(batch_size), strict=True):
        outputs, targets = model(inputs.to(device)), targets.to(device)
        loss += loss_function(outputs, targets).item() * len(inputs)
        classes = not targets.is_floating_point() and outputs.dim() == targets.dim() + 1
        right += (outputs.argmax(1) == targets).float().mean().item() * len(inputs) if classes else math.nan
    return loss / len(x), right / len(x)


def _note(record: Round, scores: tuple[float, float, float, float]) -> None:
    histories = (record.train_loss, record.val_loss, record.train_accuracy, record.val_accuracy)
    for values, score in zip(histories, scores, strict=True):
        values.append(score)
