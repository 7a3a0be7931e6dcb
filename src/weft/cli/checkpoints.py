"""Checkpoints that a run can always go on from: when they are written, how, and how a run stops in order."""

from __future__ import annotations

import os
import signal
import threading
import types
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.fabric.utilities.rank_zero import rank_zero_warn
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it: a kill leaves the old file or the new one, never a half.

    Lightning's own writer goes through the system's temporary folder, from where the last step may be a copy.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        if "://" in str(path):  # object stores replace in one step by themselves
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        partial = Path(f"{path}.partial")
        with partial.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)


class Interruptible(Callback):
    """Ctrl-C and SIGTERM stop a run between two steps, with ``last.ckpt`` written; a second Ctrl-C stops it at once.

    Lightning's own handler would break off in the middle of a step, or of a validation that a resumed run then skips.
    A signal that comes while validating saves at once and stops when the validation is done.
    """

    def __init__(self) -> None:
        self.by_hand = False
        self._signal: int | None = None
        self._saved = False
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():  # elsewhere signals cannot be handled
            self._before = {each: signal.signal(each, self._note) for each in (signal.SIGINT, signal.SIGTERM)}

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for each, handler in self._before.items():
            signal.signal(each, handler)
        self._before = {}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        validates_next = trainer.val_check_batch and (batch_idx + 1) % trainer.val_check_batch == 0
        if not (trainer.is_last_batch or validates_next):
            self._stop(trainer)

    def on_validation_batch_start(self, trainer: Trainer, *_: Any) -> None:
        # one process only: several would have to agree in every validation batch before they may save together
        if self._signal is not None and trainer.world_size == 1 and not (self._saved or trainer.sanity_checking):
            self._saved = True
            for writer in trainer.checkpoint_callbacks:
                if isinstance(writer, Last):
                    trainer.save_checkpoint(writer.path)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not (trainer.is_last_batch or trainer.sanity_checking):
            self._stop(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop(trainer)

    def _note(self, signum: int, frame: types.FrameType | None) -> None:
        if self._signal is not None and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self._signal = signum
        self.by_hand = signum == signal.SIGINT

    def _stop(self, trainer: Trainer) -> None:
        """Hand a noted signal to Lightning, in all processes alike; it leaves once this step or epoch is booked."""
        if trainer.strategy.reduce_boolean_decision(self._signal is not None, all=False) and self._before:
            self._before[signal.SIGTERM](signal.SIGTERM, None)


class Best(ModelCheckpoint):
    """``best.ckpt``: the highest ``val/acc`` so far; writes nothing where there is no validation.

    Args:
        run_dir: folder of the run.
    """

    def __init__(self, run_dir: Path) -> None:
        super().__init__(run_dir / "checkpoints", "best", monitor="val/acc", mode="max", enable_version_counter=False)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.monitor in trainer.callback_metrics and _finite(trainer):
            super().on_train_epoch_end(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.monitor in trainer.callback_metrics:
            super().on_validation_end(trainer, pl_module)


class Last(ModelCheckpoint):
    """``last.ckpt``: after every epoch or every n steps, and when the run is stopped between two steps.

    Args:
        run_dir: folder of the run.
        every_n_steps: in training steps, at least 1; None for every epoch.
    """

    def __init__(self, run_dir: Path, every_n_steps: int | None = None) -> None:
        super().__init__(
            run_dir / "checkpoints", "last", every_n_train_steps=every_n_steps, enable_version_counter=False,
            save_on_exception=every_n_steps is None,
        )  # fmt: skip

    @property
    def path(self) -> str:
        """The file it writes."""
        return self.format_checkpoint_name({})

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if _finite(trainer):
            super().on_train_epoch_end(trainer, pl_module)
        else:
            rank_zero_warn(
                f"the training loss of epoch {trainer.current_epoch} is not finite: {self.path} stays that of the "
                "last good epoch; lower the learning rate if this goes on"
            )

    def state_dict(self) -> dict[str, Any]:
        """Nothing: a resumed run may ask for other intervals.

        Returns:
            an empty mapping.
        """
        return {}

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # anything but an orderly stop may have left a step half done: the last whole checkpoint is the better one
        if isinstance(exception, SIGTERMException):
            super().on_exception(trainer, pl_module, exception)


def _finite(trainer: Trainer) -> bool:
    """Whether the epoch's training loss is a number worth keeping; True where none is logged."""
    loss = trainer.callback_metrics.get("train/loss")
    return loss is None or bool(torch.isfinite(loss))


def checkpoints(run_dir: Path, every_n_steps: int | None) -> list[Callback]:
    """The writers of ``best.ckpt`` and ``last.ckpt``.

    Args:
        run_dir: folder of the run.
        every_n_steps: write ``last.ckpt`` also every so many training steps, at least 1; None for every epoch only.

    Returns:
        callbacks for the trainer.
    """
    often = [] if every_n_steps is None else [Last(run_dir, every_n_steps)]
    return [Best(run_dir), *often, Last(run_dir)]
