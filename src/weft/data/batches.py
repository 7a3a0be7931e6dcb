"""Batches cut from tensors that lie in memory, as a loader that Lightning can shuffle, shard and resume.

A batch is one indexing operation on the whole tensor; a ``DataLoader`` would fetch and collate sample by sample.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor


class Batches:
    """Yields ``(images, labels)`` batches of tensors held in memory.

    Training order: a permutation drawn from ``seed`` and the epoch alone, so that it neither reads nor moves the
    global random state and a resumed run sees the batches the uninterrupted one would have seen. Training drops the
    remainder that fills no batch (another one every epoch); evaluation serves every sample exactly once, whatever
    the number of processes, in batches of nearly equal size.

    Args:
        images: (samples, channels, height, width).
        labels: (samples,).
        batch_size: samples per batch and process, at least 1; in evaluation the most a batch holds.
        seed: shuffles when given; None keeps the order of the tensors and drops nothing.
        epoch: tells the current epoch, asked whenever an iteration starts; None counts the iterations instead.
        rank: which of the ``world_size`` processes this is; each gets its own share of the samples.
        world_size: number of processes.
        passes: how often training serves the samples in one iteration, each time in another order.

    Example:
        >>> x, y = torch.arange(10).reshape(10, 1, 1, 1), torch.arange(10)
        >>> [labels.tolist() for _, labels in Batches(x, y, batch_size=4)]
        [[0, 1, 2, 3], [4, 5, 6], [7, 8, 9]]
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        batch_size: int,
        *,
        seed: int | None = None,
        epoch: Callable[[], int] | None = None,
        rank: int = 0,
        world_size: int = 1,
        passes: int = 1,
    ) -> None:
        self.images, self.labels = images, labels
        self.batch_size = batch_size
        self.seed = seed
        self.rank, self.world_size = rank, world_size
        self.passes = passes
        self._ask_epoch = epoch
        self._passes = 0
        self._position = {"epoch": 0, "served": 0}
        self._resumed: dict[str, int] = {}

    def __len__(self) -> int:
        smallest, largest = self._shares()
        if self.seed is not None:
            return self.passes * max(1, smallest // self.batch_size)
        # Every process makes the same number of steps, or the collective operations of the last one would hang.
        return min(math.ceil(largest / self.batch_size), max(1, smallest))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        epoch = self._passes if self._ask_epoch is None else self._ask_epoch()
        self._passes = epoch + 1
        cuts = self._cuts(epoch)
        resumed, self._resumed = self._resumed, {}
        start = resumed["served"] if resumed.get("epoch") == epoch else 0
        for number in range(start, len(self)):
            self._position = {"epoch": epoch, "served": number + 1}
            rows = cuts[number]
            yield self.images[rows], self.labels[rows]

    def state_dict(self) -> dict[str, int]:
        """The epoch, and the number of its batches already served.

        Returns:
            What `load_state_dict` takes.
        """
        return dict(self._position)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Makes the next iteration, if it is of the same epoch, start after the batches already served.

        Args:
            state: what `state_dict` returned.
        """
        self._resumed = dict(state)
        self._passes = state["epoch"]

    def _shares(self) -> tuple[int, int]:
        """The fewest and the most samples that one process gets."""
        return len(self.labels) // self.world_size, math.ceil(len(self.labels) / self.world_size)

    def _cuts(self, epoch: int) -> Sequence[Tensor]:
        """The rows of every batch."""
        if self.seed is None:
            return self._order(epoch).tensor_split(len(self))
        each = len(self) // self.passes
        orders = (self._order(epoch * self.passes + number) for number in range(self.passes))
        return [cut for order in orders for cut in order.split(self.batch_size)[:each]]

    def _order(self, epoch: int) -> Tensor:
        total = len(self.labels)
        if self.seed is None:
            return torch.arange(self.rank, total, self.world_size)
        # One 64-bit state per (seed, epoch): seed + epoch would repeat epoch 1 of seed 0 as epoch 0 of seed 1.
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
        order = torch.randperm(total, generator=generator)
        return order[self.rank :: self.world_size][: self._shares()[0]]
