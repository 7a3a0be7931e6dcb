"""Trains and measures the demo's variants: one network, data, epochs and seed; only the weights' family differs."""

from __future__ import annotations

import copy
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from torch import Tensor, nn

import weft
from weft.cli.demo.results import Result
from weft.cli.quiet import quiet
from weft.data import ImageData
from weft.layers import Layer
from weft.models import SmallCNN
from weft.train import Classifier

BATCH = 64
LATENCY_BATCH = 64
TURNS = (100, 20)  # how often the forward pass and the training step are timed


@dataclass(frozen=True)
class Variant:
    """One way to describe the weights.

    Args:
        label: in words.
        color: of its point and curves.
        parametrization: family of all convolutions but the first; None for torch's own layers.
        options: of the family.
    """

    label: str
    color: str
    parametrization: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


VARIANTS = {
    "plain": Variant("Plain torch", "#3b4252"),
    "phc2": Variant("PHC n=2", "#1d5fd0", "kronecker", {"n": 2}),
    "phc4": Variant("PHC n=4", "#0f7f91", "kronecker", {"n": 4}),
    "quaternion": Variant("Quaternion", "#a4458f", "kronecker", {"algebra": "quaternion"}),
    "low_rank_25": Variant("Low rank, share 0.25", "#c2500a", "low_rank", {"share": 0.25}),
    "low_rank_10": Variant("Low rank, share 0.1", "#4a7c0f", "low_rank", {"share": 0.1}),
}


def network(variant: Variant) -> SmallCNN:
    """The network of a variant. The first convolution, of 1 channel, is torch's own in all of them.

    Args:
        variant: says the family.

    Returns:
        with newly drawn weights.
    """
    return SmallCNN(parametrization=variant.parametrization, options=variant.options, family_stem=False)


class Monitor(pl.Callback):
    """Keeps the curves and moves the bars.

    Args:
        progress: where the bars are.
        bars: of this variant and of all.
    """

    def __init__(self, progress: Progress, bars: tuple[TaskID, TaskID]) -> None:
        self.progress, self.bars = progress, bars
        self.losses: list[float] = []
        self.accuracies: list[float] = []

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, *_: Any) -> None:
        self.progress.update(self.bars[0], advance=1, loss=f"{float(outputs['loss']):.3f}")
        self.progress.advance(self.bars[1])

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        metrics = trainer.callback_metrics
        self.losses.append(float(metrics["train/loss"]))
        self.accuracies.append(float(metrics["val/acc"]))
        self.progress.update(self.bars[0], accuracy=f"{100 * self.accuracies[-1]:.1f} %")


def train_all(variants: list[Variant], epochs: int, seed: int, console: Console) -> list[Result]:
    """Train, fold and measure every variant.

    Args:
        variants: in the order of the table.
        epochs: passes over the training images, at least 1.
        seed: of the initial weights and of the order of the images.
        console: shows the bars.

    Returns:
        one result per variant.
    """
    quiet()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # layers this small gain nothing from more, and lose much where others use the machine
    try:
        return _train_all(variants, epochs, seed, console)
    finally:
        torch.set_num_threads(threads)


def _train_all(variants: list[Variant], epochs: int, seed: int, console: Console) -> list[Result]:
    data = ImageData("digits", batch_size=BATCH)
    data.setup()
    images, labels = (torch.cat(parts) for parts in zip(*data.test_dataloader(), strict=True))
    images = data.normalise(images)
    plain_parameters = _count(network(VARIANTS["plain"]))
    length = epochs * len(data.train_dataloader())
    trained: list[tuple[Variant, nn.Module, Monitor]] = []
    columns = (
        TextColumn("{task.description}"), BarColumn(bar_width=28), MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}"), TextColumn("accuracy {task.fields[accuracy]}"), TimeElapsedColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console) as progress:
        overall = progress.add_task("[bold]all variants", total=length * len(variants), loss="-", accuracy="-")
        bars = [progress.add_task(each.label, total=length, start=False, loss="-", accuracy="-") for each in variants]
        for variant, bar in zip(variants, bars, strict=True):
            progress.start_task(bar)
            monitor = Monitor(progress, (bar, overall))
            trained.append((variant, _train(variant, data, epochs, seed, monitor), monitor))
            progress.stop_task(bar)
    folded = [weft.fold(model, check=images) for _, model, _ in trained]
    forward = in_turns([_forward(plain, images[:LATENCY_BATCH]) for plain in folded], TURNS[0])
    steps = in_turns([_step(model, images[:BATCH], labels[:BATCH]) for _, model, _ in trained], TURNS[1])
    return [
        Result(
            label=variant.label, color=variant.color, parameters=_count(model), share=_count(model) / plain_parameters,
            accuracy=float((_scores(plain, images).argmax(1) == labels).float().mean()),
            step_ms=step_ms, latency_ms=latency_ms,
            difference=float((_scores(plain, images) - _scores(_factored(model), images)).abs().max()),
            losses=monitor.losses, accuracies=monitor.accuracies,
        )
        for (variant, model, monitor), plain, step_ms, latency_ms in zip(trained, folded, steps, forward, strict=True)
    ]  # fmt: skip


def in_turns(calls: list[Callable[[], object]], rounds: int) -> list[float]:
    """Median time of each call; every round makes all of them, in another order, so that all meet the machine's moods.

    Args:
        calls: what to time.
        rounds: that count, after three to warm up.

    Returns:
        milliseconds, one per call.
    """
    times: list[list[float]] = [[] for _ in calls]
    order = list(zip(calls, times, strict=True))
    for turn in range(rounds + 3):
        random.shuffle(order)
        for call, taken in order:
            begun = time.perf_counter()
            call()
            if turn >= 3:
                taken.append(1e3 * (time.perf_counter() - begun))
    return [statistics.median(taken) for taken in times]


def _forward(model: nn.Module, images: Tensor) -> Callable[[], object]:
    return lambda: _scores(model, images)


def _step(model: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], object]:
    """One training step of a copy of a model: forward, backward, update."""
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(weft.parameter_groups(model, lr=1e-5, optimizer="sgd"), momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step


def _train(variant: Variant, data: ImageData, epochs: int, seed: int, monitor: Monitor) -> nn.Module:
    pl.seed_everything(seed, verbose=False)
    task = Classifier(network(variant))
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, max_epochs=epochs, callbacks=[monitor], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(task, datamodule=data)
    return task.model.eval()


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _factored(model: nn.Module) -> nn.Module:
    """A copy that computes from the family's own parameters, never from the dense matrix that folding makes too."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, Layer):
            module.path = "factored"
    return model


@torch.inference_mode()
def _scores(model: nn.Module, images: Tensor) -> Tensor:
    return model(images)
