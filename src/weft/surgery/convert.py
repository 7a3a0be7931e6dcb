"""convert: plain layers of a model become Weft layers that compute nearly the same."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, overload

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from weft.errors import ConversionError, OptionError, WeftError
from weft.layers import (
    GRU,
    LSTM,
    RNN,
    Composite,
    Conv1d,
    Conv2d,
    Conv3d,
    ConvTranspose1d,
    ConvTranspose2d,
    ConvTranspose3d,
    Embedding,
    Foldable,
    Layer,
    Linear,
    MultiheadAttention,
)
from weft.layers.composite import parametrizations_of
from weft.parametrizations import check_options
from weft.parametrizations.registry import refuse_device_and_dtype
from weft.surgery.tables import format_table
from weft.surgery.walk import copy_with

#: Exact types only: a subclass may compute something else. The last one is nn.MultiheadAttention's output projection.
_REPLACEMENTS: dict[type[nn.Module], type[Layer | Composite]] = {
    nn.Linear: Linear,
    nn.Conv1d: Conv1d,
    nn.Conv2d: Conv2d,
    nn.Conv3d: Conv3d,
    nn.ConvTranspose1d: ConvTranspose1d,
    nn.ConvTranspose2d: ConvTranspose2d,
    nn.ConvTranspose3d: ConvTranspose3d,
    nn.Embedding: Embedding,
    nn.RNN: RNN,
    nn.GRU: GRU,
    nn.LSTM: LSTM,
    nn.MultiheadAttention: MultiheadAttention,
    NonDynamicallyQuantizableLinear: Linear,
}

_CANDIDATES = tuple(_REPLACEMENTS)
_READS_WEIGHT = (nn.MultiheadAttention, nn.TransformerEncoderLayer)


def layer_class(module: nn.Module) -> type[Layer | Composite] | None:
    """The class of Weft that takes the place of a plain module.

    Args:
        module: any module.

    Returns:
        the class; None where there is none, as for subclasses, which may compute something else.
    """
    return _REPLACEMENTS.get(type(module))


@dataclass(frozen=True)
class Converted:
    """One replaced layer.

    Args:
        name: its place in the model; the first one if it stands in several.
        kind: class of the plain layer.
        family: name of the family.
        parameters: stored numbers of the new weights.
        share: stored over dense numbers.
        error: relative error of the weight; the largest where there are several.
        note: what to know about it, or "".
    """

    name: str
    kind: str
    family: str
    parameters: int
    share: float
    error: float | None
    note: str


@dataclass(frozen=True)
class ConversionReport:
    """What ``convert`` did; ``str()`` is a table.

    Args:
        converted: the replaced layers.
        skipped: name to the reason why a layer with a weight was left as it is.
    """

    converted: tuple[Converted, ...]
    skipped: dict[str, str]

    def __str__(self) -> str:
        rows = [[c.name, c.kind, c.family, c.parameters, c.share, c.error, c.note] for c in self.converted]
        text = format_table(["layer", "was", "family", "parameters", "share", "relative error", "note"], rows)
        skipped = [f"skipped {name}: {reason}" for name, reason in self.skipped.items()]
        return "\n".join([text, *skipped])


@overload
def convert(
    model: nn.Module,
    family: str,
    *,
    where: Callable[[str, nn.Module], bool] | None = ...,
    path: str = ...,
    return_report: Literal[False] = ...,
    **options: Any,
) -> nn.Module: ...
@overload
def convert(
    model: nn.Module,
    family: str,
    *,
    where: Callable[[str, nn.Module], bool] | None = ...,
    path: str = ...,
    return_report: Literal[True],
    **options: Any,
) -> tuple[nn.Module, ConversionReport]: ...
def convert(
    model: nn.Module,
    family: str,
    *,
    where: Callable[[str, nn.Module], bool] | None = None,
    path: str = "auto",
    return_report: bool = False,
    **options: Any,
) -> nn.Module | tuple[nn.Module, ConversionReport]:
    """A copy of a model in which plain layers are replaced by the nearest members of a family.

    Linear, convolution, transposed convolution, embedding, recurrent and attention layers are replaced; every other
    module, and every layer whose sizes the family cannot take, stays as it is and is named in the report with the
    reason. Of a recurrent or attention layer, the weights whose sizes the family cannot take stay dense. Device,
    dtype, mode, hooks, biases and ties are kept: a module that stands in several places is replaced by one module in
    all of them.

    Args:
        model: the model; it is left as it is.
        family: family name, see ``weft.families()``.
        where: called with (name, module), says which layers to replace; None for all.
        path: of the new layers: ``"auto"``, ``"factored"`` or ``"dense"``.
        return_report: whether to return a ``ConversionReport`` beside the model.
        **options: of the family, such as ``share``, ``rank`` or ``n``.

    Returns:
        the new model, or (model, report).

    Raises:
        UnknownNameError: no such family.
        OptionError: an option that the family does not take, or ``where`` is no function.
        ConversionError: nothing could be replaced; the message lists the reasons.

    Example:
        >>> import torch, weft
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
        >>> small = weft.convert(model, "low_rank", share=0.25, where=lambda name, m: name != "2")
        >>> type(small[0]).__name__, small[0].parametrization.rank, type(small[2]).__name__
        ('Linear', 5, 'Linear')
    """
    check_where(where)
    refuse_device_and_dtype(options)
    record = check_options(family, options)
    if not record.has_fit:
        raise ConversionError(f"family {family!r} cannot be fitted to trained weights; choose one with has_fit")
    places: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        places.setdefault(module, []).append(name)
    owners = owners_of_parameters(places)
    replacements: dict[nn.Module, nn.Module] = {}
    converted: list[Converted] = []
    skipped: dict[str, str] = {}
    done: set[nn.Module] = set()  # parts of what was replaced as a whole
    for module, names in places.items():
        if not isinstance(module, (*_CANDIDATES, Foldable)) or module in done:
            continue
        reason = obstacle(module, owners)
        if reason is None and where is not None and not any(where(name, module) for name in names):
            reason = "where(name, module) said no"
        if reason is None:
            try:
                layer = _REPLACEMENTS[type(module)].from_dense(module, family, path=path, **options)
            except WeftError as error:
                reason = str(error)
        if reason is not None:
            skipped[names[0]] = reason
            if isinstance(module, Foldable):
                done.update(module.modules())
            continue
        replacements[module] = layer
        done.update(module.modules())
        weights = parametrizations_of(layer)
        stored, size = sum(w.num_parameters for w in weights), sum(math.prod(w.shape) for w in weights)
        note = _note(layer, names, model)
        converted.append(
            Converted(names[0], type(module).__name__, family, stored, stored / size, layer.fit_error, note)
        )
    if not converted:
        reasons = "; ".join(f"{name or 'the model'}: {reason}" for name, reason in skipped.items())
        raise ConversionError(f"convert found no layer that it could replace by {family!r}: {reasons or 'no layers'}")
    new = copy_with(model, replacements)
    return (new, ConversionReport(tuple(converted), skipped)) if return_report else new


def check_where(where: Any) -> None:
    """Refuse names in the place of a function.

    Args:
        where: what a user gave.

    Raises:
        OptionError: it is neither a function nor None.
    """
    if where is not None and not callable(where):
        raise OptionError(
            f"where must be a function of (name, module) or None, got {where!r}; for names use "
            f"where=lambda name, module: name in [...]"
        )


def owners_of_parameters(places: dict[nn.Module, list[str]]) -> dict[int, list[str]]:
    """Which modules hold a parameter.

    Args:
        places: module to the names under which it stands in the model.

    Returns:
        identity of a parameter to the first names of its modules.
    """
    owners: dict[int, list[str]] = {}
    for module, names in places.items():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append(names[0])
    return owners


def obstacle(module: nn.Module, owners: dict[int, list[str]], needs_values: bool = True) -> str | None:
    """Why a layer cannot be replaced whatever the new weight is.

    Args:
        module: a layer of torch or of Weft.
        owners: as ``owners_of_parameters`` gives them.
        needs_values: whether its weight will be fitted.

    Returns:
        the reason, None if it can be replaced.
    """
    if isinstance(module, Foldable):
        return "it is a Weft layer already; fold the model first to convert it anew"
    if type(module) not in _REPLACEMENTS:
        return f"{type(module).__name__} is a subclass of a plain layer and may compute something else"
    if "forward" in module.__dict__:
        return "it has a forward of its own (module.forward was assigned) and may compute something else"
    if any(isinstance(parameter, nn.UninitializedParameter) for parameter in module.parameters()):
        return "it is lazy and has no weight yet; run the model once first"
    try:
        plain = type(module)(**_REPLACEMENTS[type(module)]._arguments_of(module), device="meta")
    except WeftError as error:
        return str(error)
    if {name for name, _ in module.named_parameters()} != {name for name, _ in plain.named_parameters()}:
        return "its weight is already re-parametrised (weight norm, pruning or another); remove that first"
    for name, parameter in module.named_parameters():
        if parameter.is_meta and needs_values:
            return "its weight is on the meta device, so there are no values to fit"
        sharing = owners[id(parameter)]
        if len(sharing) > 1:
            return f"its {name} is shared by several modules ({', '.join(sharing)}), and replacing one would untie them"
    return None


def _note(layer: Layer | Composite, names: list[str], model: nn.Module) -> str:
    """What stayed dense inside, or that the surrounding module reads ``.weight`` instead of calling the layer."""
    if isinstance(layer, Composite):
        return "; ".join(f"kept dense: {reason}" for reason in layer.kept_dense)
    for name in names:
        parent = model.get_submodule(name.rpartition(".")[0])
        if isinstance(parent, _READS_WEIGHT):
            return f"{type(parent).__name__} may read .weight: dense path there"
    return ""
