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


def carry_hooks(old: nn.Module, new: nn.Module) -> None:
    """Let a replacement keep the hooks that a user put on the module that it replaces.

    Args:
        old: where the hooks are.
        new: where they go.
    """
    for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
        getattr(new, name).update(getattr(old, name))
    for name in ("_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs", "_forward_hooks_always_called"):
        getattr(new, name).update(getattr(old, name))
