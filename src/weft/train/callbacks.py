"""Callbacks for Lightning's trainer."""

from __future__ import annotations

import copy
import csv
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

import weft
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


class ParameterLog(pl.Callback):
    """Writes which parameters are trained, and the embeddings that hypernetworks learn.

    At the start of training ``parameters.md``, a table of all trained and all generated tensors, which TensorBoard
    shows too; after every epoch the embeddings of tasks, chunks and tensors are appended to ``embeddings.csv``. Both
    stand in the folder of the log, and nothing is written without a logger.

    Example:
        >>> from weft.models import HyperMLP
        >>> from weft.train import ParameterLog
        >>> print(ParameterLog.table(HyperMLP((4, 2), hidden=(), embedding_dim=3)))
        | tensor | shape | numbers |
        |---|---|---|
        | hyper.embeddings | 1 x 3 | 3 |
        | hyper.generator.heads.0.weight | 3 x 8 | 24 |
        | hyper.generator.heads.0.bias | 2 x 4 | 8 |
        | hyper.generator.heads.1.weight | 3 x 2 | 6 |
        | hyper.generator.heads.1.bias | 2 | 2 |
        | trained | | 43 |
        | hyper.target.1.weight | 2 x 4 | 8 generated |
        | hyper.target.1.bias | 2 | 2 generated |
    """

    @staticmethod
    def table(model: nn.Module) -> str:
        """All trained tensors of a model, then those that its hypernetworks generate.

        Args:
            model: any.

        Returns:
            Markdown.
        """
        trained = [(name, p.shape, f"{p.numel():,}") for name, p in model.named_parameters() if p.requires_grad]
        total = sum(p.numel() for p in model.parameters() if p.requires_grad)
        generated = [
            (f"{path}target.{slot.name}", slot.shape, f"{slot.size:,} generated")
            for path, hyper in _hypernetworks(model)
            for slot in hyper.slots
        ]
        rows = [*trained, ("trained", (), f"{total:,}"), *generated]
        lines = [f"| {name} | {' x '.join(map(str, shape))} | {size} |" for name, shape, size in rows]
        return "\n".join(["| tensor | shape | numbers |", "|---|---|---|", *lines]).replace("|  |", "| |")

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        folder = self._folder(trainer)
        if folder is None:
            return
        table = self.table(getattr(pl_module, "model", pl_module))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "parameters.md").write_text(f"{table}\n", encoding="utf-8")
        for logger in trainer.loggers:
            if hasattr(logger, "experiment") and hasattr(logger.experiment, "add_text"):
                logger.experiment.add_text("parameters", table)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        folder = self._folder(trainer)
        tables = list(self._embeddings(getattr(pl_module, "model", pl_module)))
        if folder is None or not tables:
            return
        path = folder / "embeddings.csv"
        fresh = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if fresh:
                writer.writerow(["epoch", "embedding", "row", "values"])
            for name, table in tables:
                for row, values in enumerate(table.tolist()):
                    writer.writerow([trainer.current_epoch, name, row, *(f"{value:.6g}" for value in values)])

    @staticmethod
    def _embeddings(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
        for path, hyper in _hypernetworks(model):
            if hyper.embeddings is not None:
                tasks = range(hyper.num_tasks or 0)
                yield f"{path}embeddings", hyper.embeddings.new_tensor([hyper.codes(task=t)[0].tolist() for t in tasks])
            for name, parameter in hyper.generator.named_parameters():
                if name in ("chunk_embeddings", "slot_embeddings"):
                    yield f"{path}generator.{name}", parameter.detach()

    @staticmethod
    def _folder(trainer: pl.Trainer) -> Path | None:
        return Path(trainer.log_dir) if trainer.loggers and trainer.log_dir and trainer.is_global_zero else None


def _hypernetworks(model: nn.Module) -> list[tuple[str, weft.HyperNetwork]]:
    found = [(name, each) for name, each in model.named_modules() if isinstance(each, weft.HyperNetwork)]
    return [(f"{name}." if name else "", each) for name, each in found]
