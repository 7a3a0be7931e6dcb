"""Training of a classifier in Lightning: loss and metrics."""

import math
from collections.abc import Sequence
from typing import Any, cast

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torchmetrics import MeanMetric

import weft
from weft.errors import OptionError
from weft.train.base import TrainingModule
from weft.train.schedules import OptimizerName, ScheduleName

Batch = tuple[Tensor, Tensor]


class Classifier(TrainingModule):
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
        betas: of Adam and AdamW, each in [0, 1).
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
            ("betas", betas, len(betas) == 2 and all(0 <= beta < 1 for beta in betas), "two numbers in [0, 1)"),
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

    def _sizes(self) -> dict[str, Any]:
        return {name: getattr(self.model, name, None) for name in ("num_classes", "in_channels")}

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
