"""Training of one task after the other with a hypernetwork that holds what it generates for the past."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import MeanMetric, Metric

import weft
from weft.errors import OptionError
from weft.hypernet import OutputRegularizer, infer_task
from weft.train.classifier import Classifier
from weft.train.schedules import OptimizerName, ScheduleName

TaskBatch = tuple[Tensor, Tensor, int]


class ContinualClassifier(Classifier):
    r"""Learns tasks one after the other, each by a network of its own from one hypernetwork that holds the past.

    .. math:: \mathcal L = \mathrm{CE}(f(x; H(e_T)), y)
              + \frac{\beta}{T} \sum_{t<T} \lVert H_0(e_t) - H(e_t) \rVert^2

    T: the present task, from 0, without the second term for the first; H_0: the generator before it. At the first batch
    of a task the regulariser takes its snapshot, which freezes the embeddings of the past, and the optimizer starts
    anew. The data are a ``weft.data.TaskSequence``: an epoch is a task, and every validation shows all tasks.

    Logs per validation the accuracies ``val/acc_task0`` ..., their mean over the tasks learned so far
    ``val/acc_learned``, the mean over all tasks, those still to come included, ``val/acc`` (so that ``best.ckpt`` is of
    the end), and ``val/forgetting_task0`` ..., ``val/forgetting`` of ``forgetting``. A test logs ``test/acc`` and
    ``test/acc_task0`` ... with every image's task given; with tasks inferred by lowest entropy ``test/task_acc``, the
    share of images whose task is found, ``test/acc_CL2``, the label right by whichever network, and ``test/acc_CL3``,
    task and label right. At the end of training ``accuracies.csv`` and ``accuracies.png`` in the folder of the log hold
    the validation accuracy of every task after every task.

    Args:
        model: called as ``model(inputs, task=t)``, with ``num_tasks`` and one ``weft.HyperNetwork`` of so many tasks in
            it, such as ``weft.models.HyperMLP``; or that hypernetwork.
        beta: weight of the regulariser, at least 0.
        tasks_per_step: how many past tasks a step draws; None for all.
        store: ``"targets"`` or ``"generator"``, as ``weft.hypernet.OutputRegularizer`` keeps the past.
        lookahead: evaluate the regulariser where the step of the task's loss alone would lead; costs a step more.
        optimizer: as in ``Classifier``.
        lr: likewise.
        weight_decay: likewise; it would pull at what is generated for the past.
        schedule: likewise; all but "constant" span the whole sequence.
        **options: of ``Classifier``.

    Raises:
        OptionError: an argument out of range, a model without one hypernetwork of tasks, or data of another kind or
            number of tasks.

    Source:
        von Oswald, Henning, Sacramento and Grewe 2020, Continual learning with hypernetworks,
        https://arxiv.org/abs/1906.00695, equation 2, section 4 and appendix.

    Example:
        >>> from weft.models import HyperMLP
        >>> net = HyperMLP((64, 20, 2), num_tasks=5, kind="chunked", num_chunks=4)
        >>> ContinualClassifier(net, beta=0.01, lr=3e-3).num_tasks
        5
    """

    accuracies: Tensor

    def __init__(
        self,
        model: nn.Module,
        *,
        beta: float = 0.01,
        tasks_per_step: int | None = None,
        store: Literal["targets", "generator"] = "targets",
        lookahead: bool = False,
        optimizer: OptimizerName = "adam",
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        schedule: ScheduleName = "constant",
        **options: Any,
    ) -> None:
        super().__init__(model, optimizer=optimizer, lr=lr, weight_decay=weight_decay, schedule=schedule, **options)
        found = [each for each in model.modules() if isinstance(each, weft.HyperNetwork)]
        number = getattr(model, "num_tasks", None)
        if len(found) != 1 or number is None:
            raise OptionError(
                f"model must hold one weft.HyperNetwork and have its num_tasks, as weft.models.HyperMLP does with "
                f"num_tasks=...; {type(model).__name__} holds {len(found)} and has num_tasks={number}"
            )
        self.save_hyperparameters(ignore=["model"])
        #: the number of tasks
        self.num_tasks: int = number
        #: what holds the past
        self.regularizer = OutputRegularizer(found[0], beta, tasks_per_step=tasks_per_step, store=store)
        #: the task whose network is used
        self.task = 0
        self.by_task = nn.ModuleDict({stage: TaskMeans(self.num_tasks) for stage in ("val", "test")})
        self.means.update({f"test_{name}": MeanMetric(nan_strategy="disable") for name in ("task_acc", "CL2", "CL3")})
        self.register_buffer("accuracies", torch.full((self.num_tasks, self.num_tasks), torch.nan))

    def forward(self, inputs: Tensor) -> Tensor:
        """Scores by the network of ``self.task``.

        Args:
            inputs: (batch, ...).

        Returns:
            (batch, classes).
        """
        return self.model(inputs.to(self.dtype), task=self.task)

    # ------------------------------------------------------------------ training

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Loss of one batch of the present task.

        Args:
            batch: inputs, integer labels and the task's id.
            batch_idx: not used.

        Returns:
            cross-entropy plus the regulariser; with ``lookahead`` the latter joins as a gradient.
        """
        *rows, self.task = batch
        past = tuple(range(self.task))
        if self.regularizer.tasks != past:  # not where a run goes on within a task
            self.regularizer.snapshot(past)
            self.optimizers().optimizer.state.clear()  # type: ignore[union-attr]
        loss = super().training_step((rows[0], rows[1]), batch_idx)
        if self.hparams["lookahead"] or not past or self.regularizer.beta == 0:
            return loss
        term = self.regularizer()
        self._log_term(term)
        return loss + term

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """With ``lookahead``: add the regulariser's gradient at the place where the task's own step leads.

        Args:
            optimizer: whose step follows.
        """
        if self.hparams["lookahead"] and self.regularizer.tasks and self.regularizer.beta > 0:
            term = self.regularizer(self.regularizer.candidate_step(optimizer))
            self._log_term(term)
            term.backward()

    def _log_term(self, term: Tensor) -> None:
        self.log("train/regularizer", term.detach(), on_step=False, on_epoch=True, batch_size=1)

    # ------------------------------------------------------------------ evaluation

    def _evaluate(self, stage: str, batch: Any) -> None:
        inputs, labels, self.task = batch
        scores = self(inputs)
        hits = (scores.argmax(1) == labels).float()
        loss: Any = self.means[f"{stage}_loss"]
        loss.update(F.cross_entropy(scores, labels).float().expand(len(labels)))
        self.log(f"{stage}/loss", loss, on_step=False, on_epoch=True)
        means: Any = self.by_task[stage]
        means.update(hits, self.task)
        if stage == "test":
            found = infer_task(self.model, inputs.to(self.dtype), tasks=range(self.num_tasks))  # type: ignore[arg-type]
            task, label = found.tasks == self.task, found.outputs.argmax(1) == labels
            for name, right in (("task_acc", task), ("CL2", label), ("CL3", task & label)):
                mean: Any = self.means[f"test_{name}"]
                mean.update(right.float())
                self.log(f"test/{name if name == 'task_acc' else f'acc_{name}'}", mean, on_step=False, on_epoch=True)

    def on_validation_epoch_end(self) -> None:
        """Accuracies and forgetting after the present task."""
        now = self._log_tasks("val")
        if self.trainer.sanity_checking or self.trainer.state.fn != TrainerFn.FITTING:
            return
        task = self.trainer.current_epoch
        self.accuracies[task] = now
        self.log("val/acc_learned", now[: task + 1].nanmean())
        lost = forgetting(self.accuracies[: task + 1])
        for past, value in enumerate(lost):
            self.log(f"val/forgetting_task{past}", value)
        if len(lost):
            self.log("val/forgetting", lost.mean())

    def on_test_epoch_end(self) -> None:
        """Accuracies of the tasks."""
        self._log_tasks("test")

    def _log_tasks(self, stage: str) -> Tensor:
        means: Any = self.by_task[stage]
        now = means.compute().to(self.accuracies.dtype)
        means.reset()
        for task, value in enumerate(now):
            if bool(value.isfinite()):
                self.log(f"{stage}/acc_task{task}", value)
        self.log(f"{stage}/acc", now.nanmean(), prog_bar=True)
        return now

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Probabilities of the classes of the task.

        Args:
            batch: inputs, labels and the task's id; or inputs alone, whose tasks are then inferred.
            batch_idx: not used.

        Returns:
            (batch, classes), rows sum to 1.
        """
        if isinstance(batch, Tensor):
            return infer_task(self.model, batch.to(self.dtype), tasks=range(self.num_tasks)).outputs.float().softmax(1)  # type: ignore[arg-type]
        self.task = batch[2]
        return super().predict_step(batch[0], batch_idx)

    # ------------------------------------------------------------------ setting up, ends, checkpoints

    def setup(self, stage: str) -> None:
        """Refuses data that are no sequence of as many tasks.

        Args:
            stage: not used.
        """
        super().setup(stage)
        data = getattr(self.trainer, "datamodule", None)
        have = getattr(data, "num_tasks", None)
        if data is not None and have != self.num_tasks:
            raise OptionError(
                f"the data must be a weft.data.TaskSequence with num_tasks={self.num_tasks}, as the hypernetwork has; "
                f"{type(data).__name__} has {'no tasks' if have is None else f'num_tasks={have}'}"
            )

    def on_train_end(self) -> None:
        """Write table and plot of the accuracies beside the log."""
        rows = int((~self.accuracies.isnan()).any(1).sum())
        if not self.trainer.loggers or not self.trainer.log_dir or not self.trainer.is_global_zero or not rows:
            return
        folder = Path(self.trainer.log_dir)
        folder.mkdir(parents=True, exist_ok=True)
        table = self.accuracies[:rows].cpu()
        with (folder / "accuracies.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["after task", *(f"task {t}" for t in range(self.num_tasks))])
            writer.writerows([t, *(f"{value:.6f}" for value in row.tolist())] for t, row in enumerate(table))
        _draw(table, folder / "accuracies.png")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what the regulariser holds.

        Args:
            checkpoint: is extended.
        """
        super().on_save_checkpoint(checkpoint)
        checkpoint["weft"]["regularizer"] = self.regularizer.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes over what the regulariser held.

        Args:
            checkpoint: as saved.
        """
        super().on_load_checkpoint(checkpoint)
        if "regularizer" in checkpoint.get("weft", {}):
            self.regularizer.load_state_dict(checkpoint["weft"]["regularizer"])


class TaskMeans(Metric):
    """The mean of every task's values; NaN for tasks without any.

    Args:
        num_tasks: T.
    """

    total: Tensor
    count: Tensor

    def __init__(self, num_tasks: int) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(num_tasks), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(num_tasks), dist_reduce_fx="sum")

    def update(self, values: Tensor, task: int) -> None:
        """Add values of one task.

        Args:
            values: (B,).
            task: its id.
        """
        self.total[task] += values.sum()
        self.count[task] += len(values)

    def compute(self) -> Tensor:
        """The means.

        Returns:
            (T,).
        """
        return self.total / self.count


def forgetting(accuracies: Tensor) -> Tensor:
    r"""How much of the accuracy that past tasks had right after they were learned is gone now.

    .. math:: F_t = a_{tt} - a_{Tt}, \qquad t = 0 \ldots T - 1

    with a_{kt} the accuracy of task t after task k, and T the last task learned. Negative where a task has become
    better.

    Args:
        accuracies: (T + 1, at least T + 1), rows: after which task.

    Returns:
        (T,).

    Source:
        Lopez-Paz and Ranzato 2017, Gradient Episodic Memory for Continual Learning, https://arxiv.org/abs/1706.08840,
        section 2: minus the terms of their backward transfer.

    Example:
        >>> forgetting(torch.tensor([[0.75, 0.5], [0.5, 0.875]])).tolist()
        [0.25]
    """
    last = len(accuracies) - 1
    return accuracies.diagonal()[:last] - accuracies[last, :last]


def _draw(table: Tensor, path: Path) -> None:
    """A line per task, from when it is learned on."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"font.size": 9}):
        figure = Figure(figsize=(6.4, 3.2), layout="constrained")
        axes = figure.subplots()
        colours = matplotlib.colormaps["viridis"].resampled(max(len(table), 2))
        for task in range(len(table)):
            after = range(task, len(table))
            axes.plot(after, table[task:, task], "o-", color=colours(task), markersize=4, label=f"task {task}")
        axes.set(xlabel="after task", ylabel="validation accuracy", xticks=range(len(table)))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7, ncols=2, loc="center left", bbox_to_anchor=(1.0, 0.5))
        figure.savefig(path, dpi=150)
