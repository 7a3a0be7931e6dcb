"""The evaluation cache: what a layer made of its parametrization once, never stale, never saved.

Version counters alone do not tell whether a parameter changed: fused optimizer steps, ``.data`` writes and numpy
aliases leave them alone, and ``p.data = new`` may reuse an address. So a hit needs everything at once: the same
tensor objects, versions and addresses, the same optimizer epoch, the same layout tag and autocast type, and a cached
tensor that nobody wrote to. Outside plain evaluation the cache is not even asked.

What it cannot see: writes through ``.data``, numpy or another process in the middle of evaluation, with no
``train()``/``eval()``, optimizer step or forward with gradients in between. ``weft.clear_cache(model)`` is for that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from weft.modes import is_plain, plain_arithmetic

_PLAIN_TYPES = (Tensor, nn.Parameter, nn.Buffer)
_epoch = 0  # raised by every optimizer step in the process
_watching = False


def _count_step(*_: Any) -> None:
    global _epoch
    _epoch += 1


def _watch_optimizers() -> None:
    """Count optimizer steps, from the first cached weight on: importing weft registers nothing."""
    global _watching
    if not _watching:
        _watching = True
        register_optimizer_step_post_hook(_count_step)


class WeightCache:
    """Holder of at most one built weight, tuple of weights or list of stages; copies and pickles of it are empty."""

    __slots__ = ("entry",)

    def __init__(self) -> None:
        self.entry: tuple[Any, ...] | None = None

    def __copy__(self) -> WeightCache:
        return WeightCache()

    def __deepcopy__(self, memo: dict[int, Any]) -> WeightCache:
        return WeightCache()

    def __reduce__(self) -> tuple[type[WeightCache], tuple[()]]:
        return WeightCache, ()

    def lookup(
        self, owner: nn.Module, tag: object, num_sources: int, build: Callable[[], Any], *, cast: bool = True
    ) -> Any:
        """What was built, from the cache if that is certainly right, None if caching is not allowed here.

        Args:
            owner: the parametrization.
            tag: distinguishes layouts of the same matrix.
            num_sources: number of tensors the owner had when it was registered; fewer means that something
                (FSDP's flat parameters) took them away.
            build: makes the weight, a tuple of weights (None among them) or the stages; called without gradients and
                autocast.
            cast: whether weights are kept in the autocast type of the moment.

        Returns:
            what ``build`` gave; or None.
        """
        if not is_plain():
            return None
        grad = torch.is_grad_enabled()
        entry = self.entry
        if entry is not None:
            owner_, tag_, epoch, device, kept_as, built, version, tensors, modules, wants_gradients, _ = entry
            autocast = torch.get_autocast_dtype(device) if cast and torch.is_autocast_enabled(device) else None
            if (
                owner_ is owner
                and tag_ == tag
                and epoch == _epoch
                and kept_as is autocast
                and _version(built) == version
                and not (grad and wants_gradients)  # of sources that were trained then and are frozen now
            ):
                for names, name, source, source_version, address in tensors:
                    if (
                        names.get(name) is not source
                        or source._version != source_version
                        or source.data_ptr() != address
                        or (grad and source.requires_grad)
                    ):
                        break
                else:
                    for names, name, child in modules:
                        if names.get(name) is not child:
                            break
                    else:
                        return built
            self.entry = None
        return self._build(owner, tag, num_sources, grad, build, cast)

    def _build(
        self, owner: nn.Module, tag: object, num_sources: int, grad: bool, build: Callable[[], Any], cast: bool
    ) -> Any:
        tensors, modules = _sources(owner)
        if not tensors or len(tensors) != num_sources:
            return None
        for _, _, source in tensors:
            if type(source) not in _PLAIN_TYPES or source.is_inference() or source.is_meta:
                return None
            if grad and source.requires_grad:
                return None
        _watch_optimizers()
        device = tensors[0][2].device.type
        kept_as = torch.get_autocast_dtype(device) if cast and torch.is_autocast_enabled(device) else None
        epoch, wants_gradients = _epoch, any(t.requires_grad for _, _, t in tensors)
        stamps = tuple((names, name, t, t._version, t.data_ptr()) for names, name, t in tensors)
        alive = tuple(t.detach() for _, _, t in tensors)  # keeps the storages, so that no address is used twice
        with plain_arithmetic(device):
            built = build()
            if isinstance(built, Tensor):
                built = _finished(built, kept_as, wants_gradients)
            elif isinstance(built, tuple):
                built = tuple(None if part is None else _finished(part, kept_as, wants_gradients) for part in built)
        version = _version(built)
        self.entry = (
            owner, tag, epoch, device, kept_as, built, version, stamps, tuple(modules), wants_gradients, alive
        )  # fmt: skip
        return built


def _finished(weight: Tensor, cast: torch.dtype | None, wants_gradients: bool) -> Tensor:
    """A built weight as it is kept."""
    weight = weight.detach()
    if cast is not None and weight.dtype != torch.float64:  # autocast leaves double precision alone
        weight = weight.to(cast)
    # As the plain layer's weight: torch takes faster kernels for weights that ask for gradients.
    return weight.requires_grad_(wants_gradients)


def _version(built: Any) -> int:
    """Version of what a user may have got hold of and written to; stages (lists) are never handed out."""
    if isinstance(built, Tensor):
        return built._version
    return sum(part._version for part in built if part is not None) if isinstance(built, tuple) else 0


def _sources(
    module: nn.Module,
) -> tuple[list[tuple[dict[str, Any], str, Tensor]], list[tuple[dict[str, Any], str, Any]]]:
    """Every tensor and every child that the matrix may depend on, with the dictionary that names it."""
    tensors = [
        (names, name, tensor)
        for names in (module._parameters, module._buffers)
        for name, tensor in names.items()
        if tensor is not None
    ]
    modules = [(module._modules, name, child) for name, child in module._modules.items()]
    for child in module._modules.values():
        if child is not None:
            more_tensors, more_modules = _sources(child)
            tensors += more_tensors
            modules += more_modules
    return tensors, modules


def count_sources(module: nn.Module) -> int:
    """Number of parameters and buffers of a parametrization, the shared ones counted at every place.

    Args:
        module: the parametrization.

    Returns:
        the number.
    """
    return len(_sources(module)[0])
