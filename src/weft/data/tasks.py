"""Image classification tasks that come one after the other: the classes split into groups, or the pixels permuted."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from weft.data.batches import Batches
from weft.data.images import ImageData
from weft.errors import OptionError

TaskBatch = tuple[Tensor, Tensor, int]


class TaskSequence(ImageData):
    """A sequence of tasks from one set of images, for continual learning; an epoch of the trainer is a task.

    ``tasks="split"``: the classes in their order, in groups of equal size; labels count from 0 within a task.
    ``tasks="permuted"``: all classes, the pixels of all images of a task in one order of its own; task 0 has them as
    they are.

    In epoch t training sees ``steps_per_task`` batches of task t alone, in a new random order whenever all its images
    have been served; validation and test see all tasks, batch by batch. Batches are (images, labels, task id). A run
    goes on from a checkpoint within a task as ``ImageData`` does.

    Args:
        source: as in ``ImageData``.
        data_dir: as in ``ImageData``.
        tasks: "split" or "permuted".
        num_tasks: T; for "split" a divisor of the number of classes. The trainer's ``max_epochs`` for the whole
            sequence.
        steps_per_task: batches of training per task, at least 1.
        padding: black pixels on every side before pixels are permuted.
        task_seed: seed of the permutations.
        **options: of ``ImageData``; ``passes`` has no effect.

    Raises:
        OptionError: an argument out of range, classes that T does not divide, or more epochs than tasks.

    Source:
        Zenke, Poole and Ganguli 2017, https://arxiv.org/abs/1703.04200 (split); Goodfellow et al. 2013,
        https://arxiv.org/abs/1312.6211 (permuted); as used by von Oswald et al. 2020,
        https://arxiv.org/abs/1906.00695, section 4.

    Example:
        >>> data = TaskSequence("digits", num_tasks=5, steps_per_task=20, batch_size=32)
        >>> data.setup()
        >>> images, labels, task = next(iter(data.train_dataloader()))
        >>> tuple(images.shape), sorted(set(labels.tolist())), task
        ((32, 1, 8, 8), [0, 1], 0)
    """

    def __init__(
        self,
        source: str = "mnist",
        data_dir: str | None = None,
        *,
        tasks: Literal["split", "permuted"] = "split",
        num_tasks: int = 5,
        steps_per_task: int = 2000,
        padding: int = 0,
        task_seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(source, data_dir, **options)
        for name, value, least in (
            ("num_tasks", num_tasks, 1), ("steps_per_task", steps_per_task, 1), ("padding", padding, 0)
        ):  # fmt: skip
            if value < least:
                raise OptionError(f"{name} must be at least {least}, got {value}")
        if tasks not in ("split", "permuted"):
            raise OptionError(f"tasks must be 'split' or 'permuted', got {tasks!r}")
        self.tasks, self.num_tasks, self.steps_per_task = tasks, num_tasks, steps_per_task
        self.padding, self.task_seed = padding, task_seed
        self._orders: Tensor | None = None

    @property
    def num_classes(self) -> int:
        """Number of classes of a task."""
        total = len(self.class_names)
        if self.tasks == "permuted":
            return total
        if total % self.num_tasks:
            raise OptionError(
                f"num_tasks must divide the {total} classes for tasks='split', got {self.num_tasks}; take one of "
                f"{[t for t in range(1, total + 1) if total % t == 0]}"
            )
        return total // self.num_tasks

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of a padded image, in pixels."""
        height, width = super().image_size
        return height + 2 * self.padding, width + 2 * self.padding

    def setup(self, stage: str | None = None) -> None:
        """As ``ImageData``; draws the permutations, and refuses a run longer than the sequence.

        Args:
            stage: "fit", "validate", "test", "predict", or None for all.
        """
        super().setup(stage)
        _ = self.num_classes
        trainer = self.trainer
        if trainer is not None and trainer.state.fn == TrainerFn.FITTING:
            epochs = trainer.max_epochs
            if epochs is None or not 0 <= epochs <= self.num_tasks:
                raise OptionError(
                    f"trainer.max_epochs must be at most num_tasks={self.num_tasks}, as an epoch is a task; "
                    f"got {epochs}"
                )
        if self.tasks == "permuted" and self._orders is None:
            generator = torch.Generator().manual_seed(self.task_seed)
            height, width = self.image_size
            later = [torch.randperm(height * width, generator=generator) for _ in range(1, self.num_tasks)]
            self._orders = torch.stack([torch.arange(height * width), *later])

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Makes a batch of floats on the device: padded, augmented while training, normalised, permuted.

        Args:
            batch: uint8 images, labels and the task's id.
            dataloader_idx: not used.

        Returns:
            fp32 images, labels and the id.
        """
        images, labels, task = batch
        if images.dtype != torch.uint8:
            return batch
        if self.padding:
            images = F.pad(images, [self.padding] * 4)
        images, labels = super().on_after_batch_transfer((images, labels), dataloader_idx)
        if self._orders is not None:
            if self._orders.device != images.device:  # kept there
                self._orders = self._orders.to(images.device)
            images = images.flatten(2).index_select(2, self._orders[task]).unflatten(2, images.shape[2:])
        return images, labels, task

    # ------------------------------------------------------------------ inner workings

    def _rows(self, images: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """The images and labels of every task, in order."""
        for task in range(self.num_tasks):
            if self.tasks == "permuted":
                yield images, labels
            else:
                own = labels // self.num_classes == task
                yield images[own], labels[own] % self.num_classes

    def _shuffled(self, inputs: Tensor, targets: Tensor, passes: int, **order: Any) -> Any:
        epoch, loaders = order.pop("epoch"), []
        for task, (images, labels) in enumerate(self._rows(inputs, targets)):
            order["epoch"] = partial(int, task)
            passes = -(-self.steps_per_task // len(Batches(images, labels, self.batch_size, **order)))
            loaders.append(Batches(images, labels, self.batch_size, passes=passes, **order))
        return TaskTraining(loaders, self.steps_per_task, epoch)

    def _evaluation(self, inputs: Tensor, targets: Tensor) -> Any:
        return TaskEvaluation([super(TaskSequence, self)._evaluation(*rows) for rows in self._rows(inputs, targets)])


class TaskTraining:
    """Batches of the task whose number is the epoch.

    Args:
        loaders: of every task, with at least ``steps`` batches each.
        steps: batches per epoch.
        epoch: tells the current one; None counts the iterations instead.
    """

    def __init__(self, loaders: Sequence[Batches], steps: int, epoch: Callable[[], int] | None) -> None:
        self.loaders, self.steps, self._ask_epoch = loaders, steps, epoch
        self._next = self._task = 0

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[TaskBatch]:
        self._task = task = self._next if self._ask_epoch is None else self._ask_epoch()
        self._next = task + 1
        loader = self.loaders[task]
        for images, labels in loader:
            if loader.state_dict()["served"] > self.steps:
                return
            yield images, labels, task

    def state_dict(self) -> dict[str, int]:
        """The task, and the number of its batches already served.

        Returns:
            what `load_state_dict` takes.
        """
        return {"epoch": self._task, "served": self.loaders[self._task].state_dict()["served"]}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Makes the next iteration, if it is of the same task, start after the batches already served.

        Args:
            state: what `state_dict` returned.
        """
        self._task = self._next = state["epoch"]
        self.loaders[self._task].load_state_dict(state)


class TaskEvaluation:
    """Batches of all tasks, one task after the other.

    Args:
        loaders: of every task.
    """

    def __init__(self, loaders: Sequence[Batches]) -> None:
        self.loaders = loaders

    def __len__(self) -> int:
        return sum(map(len, self.loaders))

    def __iter__(self) -> Iterator[TaskBatch]:
        for task, loader in enumerate(self.loaders):
            for images, labels in loader:
                yield images, labels, task
