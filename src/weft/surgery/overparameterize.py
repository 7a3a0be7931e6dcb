"""overparameterize: plain layers of a model become over-parametrised ones that compute the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, overload

from torch import nn

from weft.errors import ConversionError, OptionError, WeftError, nearest_name
from weft.layers import Foldable
from weft.overparam import EPConv1d, EPConv2d, EPConv3d, EPLayer, EPLinear
from weft.superposition import MIMO
from weft.superposition.statistics import make_switchable
from weft.surgery.convert import ConversionReport, Converted, check_where, obstacle, owners_of_parameters
from weft.surgery.walk import copy_with

_LINEAR: dict[type[nn.Module], type[EPLayer]] = {nn.Linear: EPLinear}
_CONV: dict[type[nn.Module], type[EPLayer]] = {nn.Conv1d: EPConv1d, nn.Conv2d: EPConv2d, nn.Conv3d: EPConv3d}
_WHICH = {"all": {**_LINEAR, **_CONV}, "conv": _CONV, "linear": _LINEAR}
_WEIGHTED = (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd, nn.RNNBase, nn.MultiheadAttention)


@overload
def overparameterize(
    model: nn.Module,
    depth: int = ...,
    width: float = ...,
    which: str = ...,
    where: Callable[[str, nn.Module], bool] | None = ...,
    keep_function: bool = ...,
    *,
    return_report: Literal[False] = ...,
    **options: Any,
) -> nn.Module: ...
@overload
def overparameterize(
    model: nn.Module,
    depth: int = ...,
    width: float = ...,
    which: str = ...,
    where: Callable[[str, nn.Module], bool] | None = ...,
    keep_function: bool = ...,
    *,
    return_report: Literal[True],
    **options: Any,
) -> tuple[nn.Module, ConversionReport]: ...
def overparameterize(
    model: nn.Module,
    depth: int = 2,
    width: float = 1,
    which: str = "all",
    where: Callable[[str, nn.Module], bool] | None = None,
    keep_function: bool = True,
    *,
    return_report: bool = False,
    **options: Any,
) -> nn.Module | tuple[nn.Module, ConversionReport]:
    """A copy of a model in which linear layers and convolutions are over-parametrised; ``weft.fold`` is the inverse.

    A convolution keeps its kernel in the first sub-layer and is followed by 1x1 ones; stride, padding and its mode,
    dilation, groups and rectangular kernels are kept. With ``keep_function`` the factors are a balanced split of the
    trained weight, so that the model computes what it did. Device, dtype, mode, hooks and ties of modules are kept.
    What cannot be replaced stays as it is, and the report says why.

    Args:
        model: the model; it is left as it is.
        depth: L, number of sub-layers of each layer.
        width: channels between them over output channels; with groups it must give a multiple of them.
        which: ``"all"``, ``"conv"`` or ``"linear"``.
        where: called with (name, module), says which layers to replace; None for all.
        keep_function: whether to factor the weights that are there; False draws new ones.
        return_report: whether to return a ``ConversionReport`` beside the model.
        **options: of the layers: ``batch_norm``, ``residual``, ``residual_intervals``, ``residual_mode``,
            ``negative_slope``. With ``keep_function`` only the skip from start to end is possible.

    Returns:
        the new model, or (model, report).

    Raises:
        OptionError: ``which`` or an option is unknown, or ``where`` is no function.
        ConversionError: nothing could be replaced; the message lists the reasons.

    Source:
        Huh et al. 2023, https://arxiv.org/abs/2103.10427, section 5; balanced factors: Arora et al. 2018,
        https://arxiv.org/abs/1802.06509.

    Example:
        >>> import torch, weft
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU())
        >>> deep = weft.overparameterize(model, depth=3, width=2)
        >>> x = torch.randn(1, 3, 9, 9)
        >>> len(deep[0].layers), torch.allclose(deep(x), model(x), atol=1e-5)
        (3, True)
        >>> type(weft.fold(deep)[0])
        <class 'torch.nn.modules.conv.Conv2d'>
    """
    if which not in _WHICH:
        raise OptionError(f"which must be one of {', '.join(_WHICH)}; got {which!r}{nearest_name(str(which), _WHICH)}")
    known = ("batch_norm", "residual", "residual_intervals", "residual_mode", "negative_slope")
    if unknown := [name for name in options if name not in known]:
        raise OptionError(f"unknown option {unknown[0]!r}{nearest_name(unknown[0], known)}")
    check_where(where)
    places: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        places.setdefault(module, []).append(name)
    owners = owners_of_parameters(places)
    replacements: dict[nn.Module, nn.Module] = {}
    converted: list[Converted] = []
    skipped: dict[str, str] = {}
    inner: set[nn.Module] = set()
    for module, names in places.items():
        if module in inner or not isinstance(module, (*_WEIGHTED, Foldable)):
            continue
        if isinstance(module, (nn.MultiheadAttention, Foldable)):
            inner.update(module.modules())
        reason = _reason(module, which, owners, keep_function)
        if reason is None and where is not None and not any(where(name, module) for name in names):
            reason = "where(name, module) said no"
        if reason is None:
            try:
                layer = _WHICH[which][type(module)].from_dense(
                    module, depth=depth, width=width, keep_function=keep_function, **options
                )
            except WeftError as error:
                reason = str(error)
        if reason is not None:
            skipped[names[0]] = reason
            continue
        replacements[module] = layer
        stored = sum(factor.numel() for factor in layer.factors())
        share = stored / layer.effective_size[0]
        converted.append(Converted(names[0], type(module).__name__, "chain", stored, share, layer.fit_error, ""))
    if not converted:
        reasons = "; ".join(f"{name or 'the model'}: {reason}" for name, reason in skipped.items())
        raise ConversionError(f"overparameterize found no layer that it could replace: {reasons or 'no layers'}")
    new = copy_with(model, replacements)
    _switch_norms(new)
    return (new, ConversionReport(tuple(converted), skipped)) if return_report else new


def _switch_norms(model: nn.Module) -> None:
    """The new batch norms of superposed networks keep statistics as their own do."""
    for module in model.modules():
        if isinstance(module, MIMO) and module.num_inputs > 1:
            module.trunk = make_switchable(module.trunk, module.capacities)
            module.head = make_switchable(module.head, module.capacities)


def _reason(module: nn.Module, which: str, owners: dict[int, list[str]], keep_function: bool) -> str | None:
    """Why a layer stays as it is, None if it can be replaced."""
    kinds = _WHICH[which]
    if type(module) in _WHICH["all"] and type(module) not in kinds:
        return f"which={which!r} leaves it out"
    if not isinstance(module, Foldable) and not isinstance(module, tuple(kinds)):
        return f"{type(module).__name__} has no over-parametrised form"
    return obstacle(module, owners, needs_values=keep_function)
