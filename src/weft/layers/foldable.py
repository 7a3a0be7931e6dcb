"""What surgery knows a layer of Weft by: it folds to a plain one, and forgets on demand what it built in evaluation."""

from __future__ import annotations

import abc
import copy
from collections.abc import Iterator
from typing import Any

from torch import nn


class Foldable(nn.Module, abc.ABC):
    """A module in the place of a plain one of torch.nn that can become it."""

    @abc.abstractmethod
    def fold(self) -> nn.Module:
        """A plain module of torch.nn that computes the same function."""

    def _origins(self) -> Iterator[tuple[str, tuple[nn.Parameter, ...]]]:
        """Names of the plain module's parameters, and the parameters here that each is made of, where that is known."""
        return iter(())

    @abc.abstractmethod
    def clear_cache(self) -> None:
        """Forget what was built in evaluation."""


#: Where torch.nn.Module keeps the hooks that a user puts on a module, and what belongs to them.
_HOOKS = (
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks"),
    *("_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks"),
)


def carry_hooks(old: nn.Module, new: nn.Module, copies: dict[int, Any] | None = None) -> None:
    """Let a replacement keep the hooks that a user put on the module that it replaces.

    Args:
        old: where the hooks are.
        new: where they go.
        copies: the memo of a deep copy of the model, where the replacement stands in that: hooks are then copied with
            it; None takes the hooks themselves.
    """
    for name in _HOOKS:
        hooks = getattr(old, name)
        getattr(new, name).update(hooks if copies is None else copy.deepcopy(hooks, copies))
    new._is_full_backward_hook = old._is_full_backward_hook
