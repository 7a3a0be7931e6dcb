"""Which tensors of a target are generated, and the target without them.

A generated parameter is an empty place in the target (None under its name), so that it is in no state dict, optimizer
or bucket of DDP; what is shared stays an ordinary parameter of the target.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from weft.errors import OptionError, nearest_name
from weft.hypernet.init import CONSTANT_STD, Law

Patterns = str | Sequence[str]
_PLAIN = (nn.Linear, nn.modules.conv._ConvNd)
_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


@dataclass(frozen=True)
class Slot:
    """A parameter of the target that is generated.

    Args:
        names: the places where it stands in the target; more than one for a tied parameter.
        shape: of the parameter.
        law: of its entries at the start.
    """

    names: tuple[str, ...]
    shape: torch.Size
    law: Law

    @property
    def name(self) -> str:
        """The first of its places."""
        return self.names[0]

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return self.shape.numel()


def choose(target: nn.Module, generated: Patterns, shared: Patterns | None) -> list[Slot]:
    """The parameters of a target that are generated.

    Args:
        target: any module.
        generated: name patterns of what is generated.
        shared: name patterns of what is not, although it matches; None for nothing.

    Returns:
        the slots, in the order of the target's parameters.

    Raises:
        OptionError: a target without parameters, one that is not initialised or not of floating point, a pattern that
            matches nothing, or nothing left to generate.
    """
    places: dict[nn.Parameter, list[str]] = {}
    for name, parameter in target.named_parameters(remove_duplicate=False):
        places.setdefault(parameter, []).append(name)
    kind = type(target).__name__
    if not places:
        raise OptionError(f"target must have parameters that can be generated, {kind} has none")
    names = [name for group in places.values() for name in group]
    wanted = _matching("generated", generated, names)
    kept = set() if shared is None else _matching("shared", shared, names)
    chosen = {p: group for p, group in places.items() if wanted & set(group) and not kept & set(group)}
    for parameter, group in chosen.items():
        if is_lazy(parameter):
            raise OptionError(f"target.{group[0]} has no shape yet; run the target once on an example before")
        if not parameter.is_floating_point():
            raise OptionError(
                f"target.{group[0]} must be real floating point to be generated, got {parameter.dtype}; name it in "
                "shared="
            )
    chosen = {p: group for p, group in chosen.items() if p.numel()}  # of no numbers none need be made
    if not chosen:
        raise OptionError(
            f"generated={generated!r} with shared={shared!r} leaves no parameter of {kind} to generate; there are "
            f"{', '.join(names)}"
        )
    if len(types := {p.dtype for p in chosen}) > 1:
        raise OptionError(
            f"the generated parameters must have one type, {kind} has {', '.join(sorted(map(str, types)))}; convert "
            "it, or generate those of one type"
        )
    laws = _laws(target, {name for group in chosen.values() for name in group})
    return [Slot(tuple(group), p.shape, _law(p, laws.get(group[0]))) for p, group in chosen.items()]


def _matching(argument: str, patterns: Patterns, names: list[str]) -> set[str]:
    found: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        matches = {name for name in names if fnmatchcase(name, pattern)}
        if not matches:
            raise OptionError(
                f"{argument}={pattern!r} matches no parameter of the target{nearest_name(pattern, names)}; "
                f"there are {', '.join(names)}"
            )
        found |= matches
    return found


def _laws(target: nn.Module, chosen: set[str]) -> dict[str, Law]:
    """The laws of weights and biases of plain layers and norms, by their default of torch."""
    laws: dict[str, Law] = {}
    for prefix, module in target.named_modules():
        dot = f"{prefix}." if prefix else ""
        if isinstance(module, _NORMS):
            laws |= {f"{dot}weight": Law(1.0, CONSTANT_STD), f"{dot}bias": Law(0.0, CONSTANT_STD)}
        if not isinstance(module, _PLAIN) or not isinstance(module.weight, Tensor) or is_lazy(module.weight):
            continue
        fans = nn.init._calculate_fan_in_and_fan_out(module.weight)
        if 0 in fans:
            continue
        std = (3 * fans[0]) ** -0.5
        laws[f"{dot}weight"] = Law(0.0, std, fans, with_bias=f"{dot}bias" in chosen)
        laws[f"{dot}bias"] = Law(0.0, std, fans, is_bias=True)
    return laws


def _law(parameter: Tensor, default: Law | None) -> Law:
    """That of a plain layer; else mean and deviation of the values that the target came with, unless it has none yet.

    Constant values get a small deviation.
    """
    if (default is not None and default.fans is not None) or parameter.is_meta:
        return default or Law(0.0, CONSTANT_STD)
    values = parameter.detach().double()
    first = float(values.flatten()[0])
    if bool((values == first).all()):
        return Law(first, CONSTANT_STD)
    return Law(float(values.mean()), float(values.std(correction=0)))


def set_parameters(target: nn.Module, slots: Sequence[Slot], values: Sequence[nn.Parameter | None]) -> None:
    """Put parameters into their places in the target, or empty the places.

    Args:
        target: whose places they are.
        slots: which places.
        values: one per slot; None empties it.
    """
    for slot, value in zip(slots, values, strict=True):
        for name in slot.names:
            path, _, last = name.rpartition(".")
            target.get_submodule(path)._parameters[last] = value


@contextlib.contextmanager
def stand_ins(target: nn.Module, slots: Sequence[Slot], like: Tensor) -> Iterator[None]:
    """Something of the right shape, type and device in every empty place, of one number's size.

    Args:
        target: whose places they are.
        slots: which places.
        like: gives type and device.

    Yields:
        nothing.
    """
    fills: list[Any] = [nn.Parameter(like.detach().new_zeros(()).expand(slot.shape), False) for slot in slots]
    set_parameters(target, slots, fills)
    try:
        yield
    finally:
        set_parameters(target, slots, [None] * len(slots))
