"""Training of a network that computes on several inputs at once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from lightning.fabric.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import MeanMetric

from weft.errors import OptionError
from weft.models.wide_resnet import SReLU, WideBlock
from weft.superposition import MIMO, isometry_penalty, recalibrate
from weft.superposition.binding import check_num_superposed
from weft.torch_file import read
from weft.train.classifier import Batch, Classifier

_NORM_LIMIT = 1e3  # gradients are scaled down to it, as published


class SuperposedClassifier(Classifier):
    r"""Trains a ``weft.MIMO`` network: ``Classifier`` with the two penalties, dynamic mode and the gradient filter.

    .. math:: \mathcal L = \mathrm{CE} + \lambda_b R_b + \lambda_o R_o

    with R_b the penalty on the binding's keys and R_o ``weft.superposition.isometry_penalty`` of the trunk. A batch
    uses S = N inputs per superposition with probability ``sup_frequency``, else ``sup_low``.

    The gradient filter skips a step whose gradient norm is not finite, or not below ``gradient_filter`` times the mean
    norm of the accepted steps of the epoch before; the schedule goes on, the batch norms are set back, and the
    threshold is part of the checkpoint.

    Logs what ``Classifier`` logs, at the largest S trained with; ``val/acc_S1`` and the like for every S; and per epoch
    ``GradientNormTotal``, ``GradientNormIsometryRegularization``, ``GradientNonfiniteFraction``,
    ``GradientRejectedFraction``, ``Binding_Regularization``, ``Isometry_Regularization``, ``LearningRate``, and where
    the network has such parameters ``AbsoluteAlpha``, ``AverageReLUParam``, ``VarianceReLUParam``. Accuracy under
    mixup is weighted as the loss is.

    Args:
        model: a ``weft.MIMO`` network.
        sup_low: the other S of dynamic mode, a divisor of N; None is N.
        sup_frequency: probability that a batch uses S = N, in [0, 1].
        binding_regularization: weight of R_b, at least 0.
        orthogonal_regularization: weight of R_o, at least 0.
        gradient_filter: above 0; None is off.
        evaluate_at: further S that a test evaluates, beside those trained with. For an S that was not trained with,
            the batch norms are first calibrated on training images.
        calibration_batches: training batches for that, at least 1.
        transfer_from: checkpoint from which every tensor whose name and shape match is copied before training starts.
        **options: of ``Classifier``.

    Raises:
        OptionError: an argument out of range, or a model that is not a ``weft.MIMO``.
        SizeError: an S that does not divide N.

    Source:
        Menet et al. 2023, MIMONets, section 4 and appendix, https://arxiv.org/abs/2312.02829.

    Example:
        >>> import weft
        >>> net = weft.models.mimonet(10, 1, num_inputs=4, in_channels=1)
        >>> SuperposedClassifier(net, sup_low=1, sup_frequency=0.8, lr=0.2, weight_decay=1e-5).evaluated
        (1, 4)
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        sup_low: int | None = None,
        sup_frequency: float = 1.0,
        binding_regularization: float = 0.1,
        orthogonal_regularization: float = 1e-4,
        gradient_filter: float | None = 10.0,
        evaluate_at: Sequence[int] | None = None,
        calibration_batches: int = 50,
        transfer_from: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(model, **options)
        if not isinstance(model, MIMO):
            kind = type(model).__name__
            raise OptionError(f"model must be a weft.MIMO network, got {kind}, which is for weft.train.Classifier")
        for name, value, fits, rule in (
            ("sup_frequency", sup_frequency, 0 <= sup_frequency <= 1, "in [0, 1]"),
            ("binding_regularization", binding_regularization, 0 <= binding_regularization < math.inf, "at least 0"),
            ("orthogonal_regularization", orthogonal_regularization, 0 <= orthogonal_regularization < math.inf,
             "at least 0"),
            ("gradient_filter", gradient_filter, gradient_filter is None or gradient_filter > 0, "above 0, or None"),
            ("calibration_batches", calibration_batches, calibration_batches > 0, "at least 1"),
        ):  # fmt: skip
            if not fits:
                raise OptionError(f"{name} must be {rule}, got {value}")
        self.save_hyperparameters(ignore=["model"])
        capacity = model.num_inputs
        self.sup_low = capacity if sup_low is None else check_num_superposed(sup_low, capacity)
        trained = {*([capacity] if sup_frequency > 0 else []), *([self.sup_low] if sup_frequency < 1 else [])}
        #: the S that batches of training use; validation evaluates them
        self.trained = tuple(sorted(trained))
        wanted = [check_num_superposed(s, capacity) for s in evaluate_at or ()]
        #: the S that a test evaluates; the loss and the accuracy without an S in their names are of the largest trained
        self.evaluated = tuple(sorted({*self.trained, *wanted}))
        for stage, together in (("val", self.trained), ("test", self.evaluated)):
            self.means.update({f"{stage}_acc_S{s}": MeanMetric(nan_strategy="disable") for s in together})
        self._filter = _GradientFilter(gradient_filter)
        self._statistics: list[Tensor] = []

    @property
    def net(self) -> MIMO:
        """The network."""
        return cast(MIMO, self.model)

    # ------------------------------------------------------------------ training

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one training batch, at S = N or ``sup_low``.

        Args:
            batch: inputs and integer labels.
            batch_idx: not used.

        Returns:
            cross-entropy plus the penalty on the keys; the isometry penalty joins as a gradient.
        """
        options: Any = self.hparams
        if self._filter.on and not self._statistics:  # of the first of the batches that gradients are summed over
            self._statistics = [buffer.clone() for buffer in self._norm_buffers()]
        at_capacity = options.sup_frequency >= 1 or float(torch.rand(())) < options.sup_frequency
        self.net.num_superposed = self.net.num_inputs if at_capacity else self.sup_low
        try:
            loss = super().training_step(batch, batch_idx)
        finally:
            self.net.num_superposed = self.net.num_inputs
        if options.binding_regularization > 0:
            penalty = self.net.binding.penalty()
            self._log_epoch("Binding_Regularization", penalty.detach())
            if penalty.requires_grad:
                loss = loss + options.binding_regularization * penalty
        return loss

    def _isometry_gradients(self, weight: float) -> list[tuple[nn.Parameter, Tensor]]:
        """The gradient of the isometry penalty apart from the rest: its norm is worth a look, and it needs no batch."""
        with torch.enable_grad():
            penalty = isometry_penalty(self.net.trunk)
        self._log_epoch("Isometry_Regularization", penalty.detach().float())
        parameters = [each for each in self.net.trunk.parameters() if each.requires_grad]
        if not penalty.requires_grad:
            return []
        gradients = torch.autograd.grad(weight * penalty, parameters, allow_unused=True)
        pairs = [(p, g) for p, g in zip(parameters, gradients, strict=True) if g is not None]
        self._log_epoch("GradientNormIsometryRegularization", _limit_norm([g for _, g in pairs]))
        return pairs

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Add the isometry penalty's gradient; skip the step if the filter says so.

        Args:
            optimizer: whose step follows.
        """
        weight = self.hparams["orthogonal_regularization"]
        for parameter, gradient in self._isometry_gradients(weight) if weight > 0 else ():
            if parameter.grad is None:
                parameter.grad = gradient
            else:
                parameter.grad.add_(gradient)
        statistics, self._statistics = self._statistics, []
        parameters = [each for each in self.parameters() if each.grad is not None]
        norm = _limit_norm([cast(Tensor, each.grad) for each in parameters])
        self._log_epoch("GradientNonfiniteFraction", (~norm.isfinite()).float())
        self._log_epoch("GradientNormTotal", norm.nan_to_num(posinf=0))
        if not self._filter.on:
            return
        accepted = self._filter.accepts(float(norm))
        self._log_epoch("GradientRejectedFraction", torch.tensor(float(not accepted)))
        if not accepted:
            for each in parameters:
                each.grad = None  # optimizers pass over parameters without a gradient
            for buffer, before in zip(self._norm_buffers(), statistics, strict=True):
                buffer.copy_(before)

    def on_train_epoch_end(self) -> None:
        """Start a new epoch of the filter, and log what the network has learned about itself."""
        self._filter.end_epoch()
        self._log_epoch("LearningRate", self.optimizers().param_groups[0]["lr"])  # type: ignore[union-attr]
        with torch.no_grad():
            alphas: list[Tensor] = [
                m.alpha for m in self.net.modules() if isinstance(m, WideBlock) and m.alpha is not None
            ]
            if alphas:
                self._log_epoch("AbsoluteAlpha", torch.stack(alphas).abs().mean())
            corners = [p for m in self.net.trunk.modules() if isinstance(m, SReLU | nn.PReLU) for p in m.parameters()]
            if corners:
                together = torch.cat([each.flatten() for each in corners])
                self._log_epoch("AverageReLUParam", together.mean())
                self._log_epoch("VarianceReLUParam", together.var(correction=0))

    def on_train_end(self) -> None:
        """The hyper-parameters beside the last metrics, one entry per run, for TensorBoard's comparison of runs."""
        metrics = {name: float(value) for name, value in self.trainer.callback_metrics.items() if "/acc" in name}
        for logger in self.loggers:
            if hasattr(logger, "experiment") and hasattr(logger.experiment, "add_hparams"):
                logger.log_hyperparams(dict(self.hparams), metrics)

    # ------------------------------------------------------------------ evaluation

    def _evaluate(self, stage: str, batch: Batch) -> None:
        inputs, labels = batch
        for s in self.evaluated if stage == "test" else self.trained:
            scores = self._scores(inputs, s)
            hits = (scores.argmax(1) == labels).float()
            mean = cast(MeanMetric, self.means[f"{stage}_acc_S{s}"])
            mean.update(hits)
            self.log(f"{stage}/acc_S{s}", mean, on_step=False, on_epoch=True, prog_bar=s != self.trained[-1])
            if s == self.trained[-1]:
                self._log(stage, F.cross_entropy(scores, labels), hits)

    def _scores(self, inputs: Tensor, num_superposed: int) -> Tensor:
        self.net.num_superposed = num_superposed
        try:
            return self(inputs)
        finally:
            self.net.num_superposed = self.net.num_inputs

    def on_test_start(self) -> None:
        """Calibrate the batch norms for every S that was not trained with."""
        self.calibrate([s for s in self.evaluated if s not in self.trained])

    def calibrate(self, capacities: Sequence[int]) -> None:
        """Measure the batch-norm statistics of some S on training images.

        Args:
            capacities: numbers of superposed inputs.
        """
        data: Any = getattr(self.trainer, "datamodule", None)
        if not capacities or data is None:
            return
        batches: Any = self.hparams["calibration_batches"]
        for s in capacities:
            recalibrate(self.net, self._training_inputs(data), s, batches)

    def _training_inputs(self, data: Any) -> Iterator[Tensor]:
        data.setup("fit")
        for batch in data.train_dataloader():
            moved = data.transfer_batch_to_device(batch, self.device, 0)
            yield data.on_after_batch_transfer(moved, 0)[0].to(self.dtype)

    # ------------------------------------------------------------------ checkpoints

    def setup(self, stage: str) -> None:
        """Refuses a model that does not fit the data; takes over the weights of ``transfer_from``.

        Args:
            stage: "fit" transfers.
        """
        super().setup(stage)
        path = self.hparams["transfer_from"]
        if stage == "fit" and path is not None:
            copied, total = transfer(self, path)
            rank_zero_info(f"transfer_from {path}: {copied} of {total} tensors taken over, by name and shape")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the filter's threshold.

        Args:
            checkpoint: is extended.
        """
        super().on_save_checkpoint(checkpoint)
        checkpoint["weft"]["gradient_filter"] = self._filter.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes the filter's threshold over.

        Args:
            checkpoint: as saved.
        """
        super().on_load_checkpoint(checkpoint)
        self._filter.load(checkpoint.get("weft", {}).get("gradient_filter", {}))

    # ------------------------------------------------------------------ inner workings

    def _norm_buffers(self) -> list[Tensor]:
        norms = (each for each in self.net.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm))
        return [buffer for each in norms for buffer in each.buffers(recurse=False)]

    def _log_epoch(self, name: str, value: Any) -> None:
        self.log(name, value, on_step=False, on_epoch=True)


class _GradientFilter:
    """Accepts norms below a multiple of the mean accepted norm of the epoch before."""

    def __init__(self, factor: float | None) -> None:
        self.on = factor is not None
        self.factor = factor or math.inf
        self.previous, self.total, self.count = math.inf, 0.0, 0

    def accepts(self, norm: float) -> bool:
        accepted = math.isfinite(norm) and norm < self.factor * self.previous
        if accepted:
            self.total, self.count = self.total + norm, self.count + 1
        return accepted

    def end_epoch(self) -> None:
        if self.count:
            self.previous, self.total, self.count = self.total / self.count, 0.0, 0

    def state(self) -> dict[str, float]:
        return {"previous": self.previous, "total": self.total, "count": self.count}

    def load(self, state: dict[str, float]) -> None:
        self.previous, self.total = state.get("previous", math.inf), state.get("total", 0.0)
        self.count = int(state.get("count", 0))


def transfer(module: nn.Module, path: str | Path) -> tuple[int, int]:
    """Copy every tensor of a checkpoint whose name and shape match.

    Args:
        module: is changed.
        path: of a checkpoint of Lightning, or of a state dict.

    Returns:
        (tensors copied, tensors of the module).

    Raises:
        OptionError: there is no such file, it cannot be read, or nothing in it matches.
    """
    path = Path(path)
    if not path.is_file():
        raise OptionError(f"transfer_from: there is no checkpoint {path}")
    content = read(path)
    given = content.get("state_dict", content) if isinstance(content, dict) else {}
    shapes = {name: each.shape for name, each in given.items() if isinstance(each, Tensor)}
    own = module.state_dict()
    same = {name: given[name] for name, tensor in own.items() if shapes.get(name) == tensor.shape}
    if not same:
        raise OptionError(f"transfer_from {path}: no tensor has the name and shape of one of this network")
    module.load_state_dict(same, strict=False)
    return len(same), len(own)


def _limit_norm(gradients: list[Tensor]) -> Tensor:
    """The norm of gradients before they are scaled down, in place, to at most 1e3."""
    norm = torch.nn.utils.get_total_norm(gradients)
    if bool(norm > _NORM_LIMIT):
        torch._foreach_mul_(gradients, float(_NORM_LIMIT / norm))
    return norm
