"""Callbacks for Lightning's trainer."""

from __future__ import annotations

import copy
import math
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from weft.errors import OptionError


class DecreasingLR(pl.Callback):
    """On every plateau of a monitored loss the best weights return and all rates halve: ``train_with_decreasing_lr``.

    Stops the trainer after ``rounds`` plateaus; at the end the module has its best weights. Use it with a constant
    schedule. What it keeps is saved in checkpoints, so a resumed run goes on as it would have.

    Args:
        monitor: name of the logged loss; smaller is better.
        patience: validations without an improvement that end a round, at least 1.
        rounds: number of learning rates, at least 1.
        factor: on the rates after each round, in (0, 1).
        min_patience_improvement: smallest improvement that counts, at least 0.

    Raises:
        OptionError: a number out of range; no value of the name ``monitor`` was logged.

    Example:
        >>> from weft.train import DecreasingLR
        >>> callback = DecreasingLR(monitor="val/loss", patience=3, rounds=5)
    """

    def __init__(
        self,
        monitor: str = "val/loss",
        patience: int = 10,
        rounds: int = 10,
        factor: float = 0.5,
        min_patience_improvement: float = 1e-10,
    ) -> None:
        if patience < 1 or rounds < 1 or not 0 < factor < 1 or not min_patience_improvement >= 0:
            raise OptionError(
                "patience and rounds must be at least 1, factor in (0, 1), min_patience_improvement at least 0; "
                f"got {patience}, {rounds}, {factor} and {min_patience_improvement}"
            )
        self.monitor, self.patience, self.rounds, self.factor = monitor, patience, rounds, factor
        self.min_patience_improvement = min_patience_improvement
        self.best_loss, self.bar_to_pass, self.waited, self.finished = math.inf, math.inf, 0, 0
        self.best: dict[str, Tensor] | None = None

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("best_loss", "bar_to_pass", "waited", "finished", "best")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, value in state_dict.items():
            setattr(self, name, value)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        if self.monitor not in trainer.callback_metrics:
            known = ", ".join(sorted(trainer.callback_metrics)) or "nothing"
            raise OptionError(f"monitor={self.monitor!r} must be a logged loss; logged: {known}")
        loss = float(trainer.callback_metrics[self.monitor])
        self.waited += 1
        if loss < self.bar_to_pass - self.min_patience_improvement:
            self.waited, self.bar_to_pass = 0, loss
        if loss < self.best_loss:
            self.best_loss, self.best = loss, copy.deepcopy(pl_module.state_dict())
        if self.waited < self.patience and math.isfinite(loss):
            return
        self.waited, self.finished, self.bar_to_pass = 0, self.finished + 1, self.best_loss
        if self.best is not None:
            pl_module.load_state_dict(self.best)
        for optimizer in trainer.optimizers:
            optimizer.state.clear()  # momentum and moments belong to the weights that were left
            for group in optimizer.param_groups:
                group["lr"] *= self.factor
        trainer.should_stop = trainer.should_stop or self.finished >= self.rounds

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.best is not None:
            pl_module.load_state_dict(self.best)
