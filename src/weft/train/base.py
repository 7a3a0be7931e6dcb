"""What all training modules share: evaluation steps, optimizer and schedule, and what a resumed run needs."""

from __future__ import annotations

import abc
from typing import Any, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

import weft
from weft.errors import OptionError
from weft.train.schedules import make_optimizer, make_schedule


class TrainingModule(pl.LightningModule, abc.ABC):
    """A Lightning module whose hyper-parameters say ``optimizer``, ``lr``, ``weight_decay`` and ``schedule``.

    The optimizer's groups come from ``weft.parameter_groups``. A run that is interrupted and resumed from a checkpoint
    draws the same random numbers as one that was not, and is refused where a schedule would span another length.
    """

    def __init__(self) -> None:
        super().__init__()
        self._resumed: dict[str, Any] | None = None
        self._steps: float = 0

    # ------------------------------------------------------------------ what a module says of itself

    @abc.abstractmethod
    def _evaluate(self, stage: str, batch: Any) -> Any:
        """Add one batch to the metrics of "val" or "test"."""

    @abc.abstractmethod
    def _sizes(self) -> dict[str, Any]:
        """What the data module must agree on, by the name of its attribute; None agrees with everything."""

    # ------------------------------------------------------------------ steps

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Adds one batch to the validation metrics.

        Args:
            batch: as in training.
            batch_idx: not used.
        """
        self._evaluate("val", batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Adds one batch to the test metrics.

        Args:
            batch: as in training.
            batch_idx: not used.
        """
        self._evaluate("test", batch)

    # ------------------------------------------------------------------ setting up

    def setup(self, stage: str) -> None:
        """Refuses a model that does not fit the data, before any work.

        Args:
            stage: not used.
        """
        data = getattr(self.trainer, "datamodule", None)
        for name, have in self._sizes().items():
            want = getattr(data, name, None)
            if have is not None and want is not None and have != want:
                raise OptionError(f"model has {name}={have}, the data have {want}: build the model with {name}={want}")

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Optimizer and schedule.

        Returns:
            in Lightning's form.
        """
        options: Any = self.hparams
        groups = weft.parameter_groups(
            self,
            lr=options.lr,
            weight_decay=options.weight_decay,
            optimizer="sgd" if options.optimizer == "sgd" else "adam",
        )
        momentum, betas = options.get("momentum", 0.9), options.get("betas", (0.9, 0.999))
        optimizer = make_optimizer(options.optimizer, groups, options.lr, momentum, betas)
        self._steps = steps = self.trainer.estimated_stepping_batches
        milestones, gamma = options.get("milestones", ()), options.get("gamma", 1.0)
        schedule = make_schedule(options.schedule, optimizer, steps, milestones, gamma)
        if schedule is None:
            return {"optimizer": optimizer}
        if self._resumed is not None and self._resumed["steps"] != steps:
            raise OptionError(
                f"the run to resume was to take {self._resumed['steps']} steps, this one takes {steps}, but "
                f"schedule={options.schedule!r} spans a whole run: give the same data, batch size and max_epochs, or "
                "start a new run from the weights alone"
            )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # ------------------------------------------------------------------ checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what a resumed run needs beyond the weights: the random state of every process, the run's length.

        Args:
            checkpoint: is extended.
        """
        states = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self.device)
        for name, state in states.items():
            gathered = cast(Tensor, self.all_gather(state.to(self.device)))
            states[name] = gathered.cpu().reshape(-1, len(state))  # a row per process
        checkpoint["weft"] = {"random": states, "steps": self._steps}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps what `on_save_checkpoint` added until training starts.

        Args:
            checkpoint: as saved.
        """
        self._resumed = checkpoint.get("weft")

    def on_train_start(self) -> None:
        """Restores the random state of the run that is resumed."""
        if self._resumed is None:
            return
        for name, states in self._resumed["random"].items():
            # A run may go on with another number of processes. A copy: torch crashes on a view into a tensor.
            state = states[self.global_rank % len(states)].clone()
            if name == "cpu":
                torch.set_rng_state(state)
            elif self.device.type == "cuda":
                torch.cuda.set_rng_state(state, self.device)

    def teardown(self, stage: str) -> None:
        """Forgets the checkpoint: the next run of this module starts afresh.

        Args:
            stage: not used.
        """
        self._resumed = None
