"""The folder of a run: what may be written there, which checkpoint is meant, and how a run stops and goes on.

    runs/<recipe>/config.yaml                  what was run; config.2.yaml for the first resumption, and so on
    runs/<recipe>/checkpoints/last.ckpt        every epoch, every n steps where asked, and when the run is stopped
    runs/<recipe>/checkpoints/best.ckpt        of the highest ``val/acc``
    runs/<recipe>/logs/version_0/              metrics.csv and TensorBoard events, one folder per start

A run that was stopped and resumed ends with the very numbers of one that was not: checkpoints are replaced in one
step, the classifier keeps the random state in them, and the data module goes on after the last batch trained on.
"""

from __future__ import annotations

import os
import signal
import types
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from weft.errors import OptionError


def checkpoint_path(run_dir: Path, name: str) -> Path:
    """The file behind ``--ckpt_path``.

    Args:
        run_dir: folder of the run.
        name: ``last``, ``best`` or a path.

    Returns:
        an existing file.

    Raises:
        OptionError: there is no such checkpoint; says where it was looked for, what there is and how to get one.
    """
    path = run_dir / "checkpoints" / f"{name}.ckpt" if name in ("last", "best") else Path(name)
    if path.is_file():
        return path
    there = sorted(str(file) for file in (run_dir / "checkpoints").glob("*.ckpt"))
    remedy = f"there are: {', '.join(there)}" if there else "'weft fit' without --ckpt_path starts this run"
    raise OptionError(f"--ckpt_path {name}: no checkpoint at {path}; {remedy}")


def claim(run_dir: Path, resumed: Path | None) -> None:
    """Refuse to train into a folder that holds a run, unless it is that run which goes on.

    Args:
        run_dir: where the run is to be written.
        resumed: checkpoint to start from, None for a new run.

    Raises:
        OptionError: the folder holds checkpoints of another run.
    """
    here = run_dir / "checkpoints"
    if resumed is not None and resumed.resolve().parent == here.resolve():
        return
    if any(here.glob("*.ckpt")):
        raise OptionError(
            f"{run_dir} already holds a run: resume it with --ckpt_path last, or write elsewhere with --run_dir FOLDER"
        )


def numbered(path: Path) -> Path:
    """The first of ``name.ext``, ``name.2.ext``, ``name.3.ext`` ... that does not exist.

    Args:
        path: the name wanted.

    Returns:
        a free path beside it.
    """
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_suffix(f".{number}{path.suffix}")
    return free


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it: a kill leaves the old file or the new one, never a half.

    Lightning's own writer goes through the system's temporary folder, from where the last step may be a copy.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        if "://" in str(path):  # object stores replace in one step by themselves
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        partial = f"{path}.partial"
        with open(partial, "wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)


class Interruptible(Callback):
    """Ctrl-C stops like SIGTERM does: after the step that is running, with a checkpoint. A second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self._before: Any = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._before = signal.signal(signal.SIGINT, self._handle)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._before = None

    def _handle(self, signum: int, frame: types.FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.kill(os.getpid(), signal.SIGTERM)  # Lightning notes it and leaves at the end of the step


class Best(ModelCheckpoint):
    """``best.ckpt``: the highest ``val/acc`` so far; writes nothing where there is no validation.

    Args:
        run_dir: folder of the run.
    """

    def __init__(self, run_dir: Path) -> None:
        super().__init__(run_dir / "checkpoints", "best", monitor="val/acc", mode="max", enable_version_counter=False)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.monitor in trainer.callback_metrics:
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

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # anything but an orderly stop may have left a step half done: the last whole checkpoint is the better one
        if isinstance(exception, SIGTERMException):
            super().on_exception(trainer, pl_module, exception)


def callbacks(run_dir: Path, every_n_steps: int | None) -> list[Callback]:
    """What makes a run resumable.

    Args:
        run_dir: folder of the run.
        every_n_steps: write ``last.ckpt`` also every so many training steps, at least 1; None for every epoch only.

    Returns:
        callbacks for the trainer.
    """
    often = [] if every_n_steps is None else [Last(run_dir, every_n_steps)]
    return [Interruptible(), Best(run_dir), *often, Last(run_dir)]
