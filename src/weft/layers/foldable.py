"""What surgery knows a layer of Weft by: it folds to a plain one, and forgets on demand what it built in evaluation."""

from __future__ import annotations

import abc

from torch import nn


class Foldable(nn.Module, abc.ABC):
    """A module in the place of a plain one of torch.nn that can become it."""

    @abc.abstractmethod
    def fold(self) -> nn.Module:
        """A plain module of torch.nn that computes the same function."""

    @abc.abstractmethod
    def clear_cache(self) -> None:
        """Forget what was built in evaluation."""
