"""What data modules of tensors in memory share: loaders that know the trainer, and their place in a checkpoint."""

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from weft.data.batches import Batches
from weft.errors import OptionError


class InMemoryData(pl.LightningDataModule):
    """Serves pairs of tensors; a run that is resumed goes on after the last batch trained on.

    Args:
        batch_size: samples per step and process in training, at least 1.
        eval_batch_size: likewise in validation, test and prediction; None is ``batch_size``.

    Raises:
        OptionError: a size below 1.
    """

    def __init__(self, batch_size: int, eval_batch_size: int | None) -> None:
        super().__init__()
        for name, value in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if value is not None and value < 1:
                raise OptionError(f"{name} must be at least 1, got {value}")
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or batch_size
        self._train_loader: Any = None
        self._resumed: dict[str, int] = {}

    def state_dict(self) -> dict[str, Any]:
        """The seed of the training order and the place in it, for checkpoints.

        Returns:
            what `load_state_dict` takes.
        """
        # Lightning keeps the place of a loader as well, but does not restore it where the optimizer's set-up has
        # asked for the length of the run before.
        place = {"epoch": 0, "served": 0} if self._train_loader is None else self._train_loader.state_dict()
        return {"seed": self._seed(), **place}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over the training order of the run that is resumed, and the place in it.

        Args:
            state_dict: what `state_dict` returned.
        """
        self._resumed = dict(state_dict)

    def teardown(self, stage: str) -> None:
        """Forgets the run that was resumed: the next one on the same data shuffles by its own seed.

        Args:
            stage: the stage that ended.
        """
        if stage == "fit":
            self._resumed = {}

    # ------------------------------------------------------------------ for the modules

    def _seed(self) -> int:
        return self._resumed.get("seed", torch.initial_seed() % 2**32)

    def _training(self, inputs: Tensor, targets: Tensor, passes: int = 1) -> Any:
        """A loader that shuffles, in another order every epoch."""
        trainer = self.trainer
        seed, epoch, rank, world = self._seed(), None, 0, 1
        if trainer is not None:
            seed = trainer.strategy.broadcast(seed)  # shares of the processes must come from one permutation
            rank, world = trainer.global_rank, trainer.world_size

            def epoch() -> int:
                return trainer.current_epoch

        loader = self._shuffled(inputs, targets, passes, seed=seed, epoch=epoch, rank=rank, world_size=world)
        if self._resumed and (trainer is None or trainer.state.fn == TrainerFn.FITTING):
            loader.load_state_dict(self._resumed)
        self._train_loader = loader
        return loader

    def _shuffled(self, inputs: Tensor, targets: Tensor, passes: int, **order: Any) -> Any:
        return Batches(inputs, targets, self.batch_size, passes=passes, **order)

    def _evaluation(self, inputs: Tensor, targets: Tensor) -> Any:
        rank, world = (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
        return Batches(inputs, targets, self.eval_batch_size, rank=rank, world_size=world)
