"""Training of a classifier in Lightning: loss, optimizer, schedule, metrics, and what a resumed run needs."""

import math
from collections.abc import Sequence
from typing import Any, cast

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import MeanMetric

import weft
from weft.errors import OptionError
from weft.train.schedules import OptimizerName, ScheduleName, make_optimizer, make_schedule

Batch = tuple[Tensor, Tensor]


class Classifier(pl.LightningModule):
    """Trains any module that maps a batch of inputs to (batch, classes) scores, by cross-entropy.

    Logs ``train/loss``, ``train/acc``, ``val/loss``, ``val/acc``, ``test/loss``, ``test/acc``: means over the samples
    of an epoch, also when batches differ in size; and ``loss`` of every step. With label smoothing or mixup the
    training loss is the one that is minimised; validation and test use plain cross-entropy. With ``algebra_l1`` the
    penalty is minimised too, but logged apart, as ``train/penalty``.

    The optimizer's groups come from ``weft.parameter_groups``, so each family's own learning-rate multipliers and
    weight-decay rules hold. Precision, devices, gradient clipping and accumulation belong to the trainer. A run that
    is interrupted and resumed from a checkpoint draws the same random numbers as one that was not.

    Args:
        model: the network; (batch, ...) to (batch, classes).
        optimizer: "sgd", "adam" or "adamw".
        lr: learning rate, the highest of the schedule.
        momentum: of SGD, in [0, 1).
        betas: of Adam and AdamW.
        weight_decay: at least 0; applied where the families want it.
        schedule: "onecycle", "cosine", "multistep" or "constant"; stepped with every optimizer step over the whole run.
        milestones: of "multistep": shares of the run, in (0, 1), at which the learning rate is multiplied by ``gamma``.
        gamma: of "multistep", in (0, 1].
        label_smoothing: share of the target spread over all classes, in [0, 1).
        mixup_alpha: mixes pairs of samples with weights from Beta(alpha, alpha); 0 is off.
        ema_decay: evaluates and saves an exponential moving average of the weights that keeps this share per step,
            in (0, 1); None is off. Needs Lightning 2.6.
        algebra_l1: weight of ``weft.algebra_penalty``, which drives the learned algebras towards sparse tables: finite
            and at least 0; 0 is off.

    Raises:
        OptionError: an argument out of range; a model and a data module that do not fit together; a schedule
            without a known length, or a resumed run of another length.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> task = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), optimizer="adamw", lr=1e-3)
        >>> tuple(task(torch.randn(5, 1, 8, 8)).shape)
        (5, 10)
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        optimizer: OptimizerName = "sgd",
        lr: float = 0.1,
        momentum: float = 0.9,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 5e-4,
        schedule: ScheduleName = "onecycle",
        milestones: Sequence[float] = (0.5, 0.75),
        gamma: float = 0.1,
        label_smoothing: float = 0.0,
        mixup_alpha: float = 0.0,
        ema_decay: float | None = None,
        algebra_l1: float = 0.0,
    ) -> None:
        super().__init__()
        for name, value, fits, rule in (
            ("lr", lr, lr > 0, "above 0"),
            ("weight_decay", weight_decay, weight_decay >= 0, "at least 0"),
            ("momentum", momentum, 0 <= momentum < 1, "in [0, 1)"),
            ("gamma", gamma, 0 < gamma <= 1, "in (0, 1]"),
            ("label_smoothing", label_smoothing, 0 <= label_smoothing < 1, "in [0, 1)"),
            ("mixup_alpha", mixup_alpha, mixup_alpha >= 0, "at least 0"),
            ("ema_decay", ema_decay, ema_decay is None or 0 < ema_decay < 1, "in (0, 1), or None"),
            ("algebra_l1", algebra_l1, 0 <= algebra_l1 < math.inf, "finite and at least 0"),
        ):
            if not fits:
                raise OptionError(f"{name} must be {rule}, got {value}")
        self.save_hyperparameters(ignore=["model"])
        self.model = model
        # A NaN loss must show up in the log; looking for one, as the other strategies do, would wait for the device.
        self.means = nn.ModuleDict(
            {f"{stage}_{what}": MeanMetric(nan_strategy="disable") for stage in ("train", "val", "test")
             for what in ("loss", "acc")}
        )  # fmt: skip
        self._resumed: dict[str, Any] | None = None
        self._steps: float = 0

    def forward(self, inputs: Tensor) -> Tensor:
        """The model's scores.

        Args:
            inputs: (batch, ...).

        Returns:
            (batch, classes).
        """
        if inputs.is_floating_point():
            inputs = inputs.to(self.dtype)  # under precision "bf16-true" the model is bf16, the data fp32
        return self.model(inputs)

    # ------------------------------------------------------------------ steps

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one training batch.

        Args:
            batch: inputs and integer labels.
            batch_idx: not used.

        Returns:
            mean loss over the batch, plus the penalty on the learned algebras.
        """
        inputs, labels = batch
        options: Any = self.hparams
        weight, others = 1.0, labels
        if options.mixup_alpha > 0:
            alpha = torch.tensor(float(options.mixup_alpha))
            weight = float(torch.distributions.Beta(alpha, alpha).sample())
            partners = torch.randperm(len(labels), device=inputs.device)
            inputs, others = torch.lerp(inputs[partners], inputs, weight), labels[partners]
        scores = self(inputs)
        smoothing = options.label_smoothing
        loss = weight * F.cross_entropy(scores, labels, label_smoothing=smoothing)
        if weight < 1:
            loss = loss + (1 - weight) * F.cross_entropy(scores, others, label_smoothing=smoothing)
        guess = scores.detach().argmax(1)
        hits = weight * (guess == labels).float() + (1 - weight) * (guess == others).float()
        self._log("train", loss.detach(), hits)
        self.log("loss", loss.detach(), prog_bar=True)
        if options.algebra_l1 > 0:
            penalty = weft.algebra_penalty(self.model, options.algebra_l1)
            self.log("train/penalty", penalty.detach(), on_step=False, on_epoch=True, batch_size=len(labels))
            loss = loss + penalty
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Adds one batch to the validation metrics.

        Args:
            batch: inputs and integer labels.
            batch_idx: not used.
        """
        self._evaluate("val", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Adds one batch to the test metrics.

        Args:
            batch: inputs and integer labels.
            batch_idx: not used.
        """
        self._evaluate("test", batch)

    def predict_step(self, batch: Batch | Tensor, batch_idx: int) -> Tensor:
        """Probabilities of the classes.

        Args:
            batch: inputs, with or without labels.
            batch_idx: not used.

        Returns:
            (batch, classes), rows sum to 1.
        """
        inputs = batch if isinstance(batch, Tensor) else batch[0]
        return self(inputs).float().softmax(1)

    def _evaluate(self, stage: str, batch: Batch) -> None:
        inputs, labels = batch
        scores = self(inputs)
        self._log(stage, F.cross_entropy(scores, labels), (scores.argmax(1) == labels).float())

    def _log(self, stage: str, loss: Tensor, hits: Tensor) -> None:
        mean_loss, mean_hits = (cast(MeanMetric, self.means[f"{stage}_{what}"]) for what in ("loss", "acc"))
        # Once per sample, so that a small last batch counts for less: with "disable", torchmetrics ignores weight=.
        mean_loss.update(loss.float().expand(len(hits)))
        mean_hits.update(hits)
        self.log(f"{stage}/loss", mean_loss, on_step=False, on_epoch=True, prog_bar=stage != "train")
        self.log(f"{stage}/acc", mean_hits, on_step=False, on_epoch=True, prog_bar=True)

    # ------------------------------------------------------------------ setting up

    def setup(self, stage: str) -> None:
        """Refuses a model that does not fit the data, before any work.

        Args:
            stage: not used.
        """
        data = getattr(self.trainer, "datamodule", None)
        for name in ("num_classes", "in_channels"):
            have, want = getattr(self.model, name, None), getattr(data, name, None)
            if have is not None and want is not None and have != want:
                raise OptionError(f"model has {name}={have}, the data have {want}: build the model with {name}={want}")

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Optimizer and schedule.

        Returns:
            in Lightning's form.
        """
        options: Any = self.hparams
        groups = weft.parameter_groups(
            self.model,
            lr=options.lr,
            weight_decay=options.weight_decay,
            optimizer="sgd" if options.optimizer == "sgd" else "adam",
        )
        optimizer = make_optimizer(options.optimizer, groups, options.lr, options.momentum, options.betas)
        self._steps = steps = self.trainer.estimated_stepping_batches
        schedule = make_schedule(options.schedule, optimizer, steps, options.milestones, options.gamma)
        if schedule is None:
            return {"optimizer": optimizer}
        if self._resumed is not None and self._resumed["steps"] != steps:
            raise OptionError(
                f"the run to resume was to take {self._resumed['steps']} steps, this one takes {steps}, but "
                f"schedule={options.schedule!r} spans a whole run: give the same data, batch size and max_epochs, or "
                "start a new run from the weights alone"
            )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_callbacks(self) -> list[pl.Callback]:
        """The callback that averages the weights in training, where ``ema_decay`` asks for it.

        Returns:
            at most one callback.
        """
        options: Any = self.hparams
        if options.ema_decay is None or self.trainer.state.fn != TrainerFn.FITTING:
            return []
        from lightning.pytorch.callbacks import EMAWeightAveraging  # since Lightning 2.6

        return [EMAWeightAveraging(decay=options.ema_decay)]

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
