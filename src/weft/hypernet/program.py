"""Running a target once per row of the batch, each row with parameters of its own.

A sequence is run step by step, each in its cheapest form; what has no form of its own runs by ``torch.func``.

Letters: B = rows, each with a network of its own; K = samples that each network sees.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree

from weft.errors import OptionError, SizeError
from weft.hypernet.activations import SlotSwish
from weft.hypernet.by_func import call_by_func
from weft.hypernet.rows import DenseRows, RowWeights, padded
from weft.layers import Layer

#: Modules that treat every sample by itself, whatever the batch.
_SAMPLEWISE = (
    nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout,
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softsign, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.LogSigmoid, SlotSwish,
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.Linear,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d,
    nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.Conv1d, nn.Conv2d, nn.Conv3d,
)  # fmt: skip
_CONVOLUTIONS = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}
_NORMS = nn.modules.batchnorm._NormBase  # batch and instance norm


class Step(NamedTuple):
    """One part of a target: ``"linear"``, ``"conv"``, ``"norm"``, ``"shared"`` (one for all rows) or ``"module"``."""

    kind: str
    prefix: str
    module: nn.Module


class Choice(NamedTuple):
    """What runs one part of the target, and why."""

    part: str
    path: str
    why: str


def steps_of(module: nn.Module, generated: set[str], prefix: str = "") -> Iterator[Step]:
    """The parts of a target, in the order in which they run.

    Args:
        module: the target, or a part of it.
        generated: names of the parameters and buffers that rows have of their own.
        prefix: of the names in this part.

    Yields:
        the steps.
    """
    hooked = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    kind = type(module)
    if isinstance(module, nn.Sequential) and kind.forward is nn.Sequential.forward and not hooked:
        for name, child in module._modules.items():
            if child is not None:
                yield from steps_of(child, generated, f"{prefix}{name}.")
        return
    own = any(name.startswith(prefix) for name in generated)
    if hooked:
        yield Step("module", prefix, module)
    elif own and kind is nn.Linear:
        yield Step("linear", prefix, module)
    elif own and kind in _CONVOLUTIONS:
        yield Step("conv", prefix, module)
    elif own and _normalises(module) and {name for name in generated if name.startswith(prefix)} <= {
        f"{prefix}weight", f"{prefix}bias"
    }:  # fmt: skip
        yield Step("norm", prefix, module)
    elif not own and (kind in _SAMPLEWISE or isinstance(module, Layer) or _flattens(module)):
        yield Step("shared", prefix, module)
    else:
        yield Step("module", prefix, module)


def _normalises(module: nn.Module) -> bool:
    """Whether it is a norm whose statistics do not depend on the other rows."""
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return not module.training and module.running_mean is not None
    return type(module) in (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)


def _flattens(module: nn.Module) -> bool:
    return type(module) is nn.Flatten and module.start_dim >= 1


def run(
    target: nn.Module,
    weights: Mapping[str, RowWeights],
    inputs: tuple[Tensor, ...],
    *,
    one_network: bool = False,
    log: list[Choice] | None = None,
) -> Any:
    """Every row of the batch through its own network.

    Args:
        target: the network.
        weights: parameters and buffers of every row by name.
        inputs: tensors (B, K, ...), as many as the target takes.
        one_network: whether the one row stands for a network that sees the whole batch, and may update its buffers.
        log: takes what ran each part.

    Returns:
        as the target, (B, K, ...).
    """
    if not one_network:
        _check_statistics(target)
    if len(inputs) > 1:
        return _by_func(Step("module", "", target), weights, inputs, log, one_network)
    x: Any = inputs[0]
    for step in steps_of(target, set(weights)):
        own = {name.removeprefix(step.prefix): w for name, w in weights.items() if name.startswith(step.prefix)}
        if step.kind in ("linear", "conv"):
            x = _product(step, own, x, log)
        elif step.kind == "norm":
            x = _norm(step, own, x, log)
        elif step.kind == "shared":
            x = step.module(x.flatten(0, 1)).unflatten(0, x.shape[:2])
            _note(log, step, "one call", "nothing of it is generated, and it treats every sample by itself")
        else:
            x = _by_func(step, own, (x,), log, one_network)
    return x


def _note(log: list[Choice] | None, step: Step, path: str, why: str) -> None:
    if log is not None:
        log.append(Choice(step.prefix.rstrip(".") or type(step.module).__name__, path, why))


def _product(step: Step, own: dict[str, RowWeights], x: Tensor, log: list[Choice] | None) -> Tensor:
    """A linear layer or a convolution with a weight per row, a bias per row, or both."""
    module: Any = step.module
    dims = _CONVOLUTIONS.get(type(module), 0)
    place, wanted, what = (2, module.in_channels, "channels") if dims else (-1, module.in_features, "features")
    needs = dims + 3 if dims else max(3, x.dim())
    if x.dim() != needs or x.shape[place] != wanted:
        raise SizeError(
            f"the input of {step.prefix}{type(module).__name__} must have {wanted} {what}"
            f"{f' and {dims} dimension(s) of space' if dims else ''} per sample, got samples of {tuple(x.shape[2:])}"
        )
    weight = own.get("weight")
    if weight is None:
        merged = x.flatten(0, 1)
        y = module._conv_forward(merged, module.weight, None) if dims else F.linear(merged, module.weight)
        y = y.unflatten(0, x.shape[:2])
        _note(log, step, "one call", "only the bias is generated")
    elif dims:
        y = weight.convolve(padded(x, module), module)
        _note(log, step, *weight.convolution_way)
    else:
        merged = x.flatten(1, -2)  # all that one network sees
        y = weight.linear(merged).reshape(*x.shape[:-1], module.out_features)
        if log is not None:  # a program that is recorded must not be asked for its sizes
            _note(log, step, *weight.way(merged.shape[1]))
    if "bias" in own:
        bias = own["bias"].dense()
        before = 1 if dims else y.dim() - 2
        return y + bias.reshape(bias.shape[0], *(1,) * before, bias.shape[1], *(1,) * dims).to(y.dtype)
    return y if module.bias is None else y + module.bias.reshape(-1, *(1,) * dims).to(y.dtype)


def _norm(step: Step, own: dict[str, RowWeights], x: Tensor, log: list[Choice] | None) -> Tensor:
    """A norm layer with a gain per row, a shift per row, or both."""
    module: Any = step.module
    merged, last = x.flatten(0, 1), isinstance(module, nn.LayerNorm | nn.RMSNorm)
    if isinstance(module, _NORMS):
        module._check_input_dim(merged)
    if isinstance(module, nn.LayerNorm):
        y = F.layer_norm(merged, module.normalized_shape, None, None, module.eps)
    elif isinstance(module, nn.RMSNorm):
        y = F.rms_norm(merged, module.normalized_shape, None, module.eps)
    elif isinstance(module, nn.GroupNorm):
        y = F.group_norm(merged, module.num_groups, None, None, module.eps)
    else:
        y = F.batch_norm(merged, module.running_mean, module.running_var, eps=module.eps)
    y = y.unflatten(0, x.shape[:2])
    _note(log, step, "one call", "normalised together, then scaled and shifted per row")

    def aligned(name: str) -> Tensor | None:
        """Gain or shift with the dimensions of y: of its last ones, or of the channels."""
        shared = getattr(module, name, None)
        if name not in own:
            return shared if shared is None or last else shared.reshape(-1, *(1,) * (y.dim() - 3))
        tensor = own[name].dense()
        rows, *sides = tensor.shape
        before = y.dim() - 1 - len(sides) if last else 1
        return tensor.reshape(rows, *(1,) * before, *sides, *(1,) * (y.dim() - 1 - before - len(sides)))

    gain, shift = aligned("weight"), aligned("bias")
    y = y if gain is None else y * gain.to(y.dtype)
    return y if shift is None else y + shift.to(y.dtype)


def _by_func(
    step: Step, own: Mapping[str, RowWeights], inputs: tuple[Any, ...], log: list[Choice] | None, one_network: bool
) -> Any:
    tensors = {name: w.dense() for name, w in own.items()}
    out, path, why = call_by_func(step.module, tensors, inputs, one_network=one_network)
    _note(log, step, path, why)
    return out


def _check_statistics(target: nn.Module) -> None:
    for name, module in target.named_modules():
        if isinstance(module, _NORMS) and module.training and module.running_mean is not None:
            raise OptionError(
                f"target.{name} ({type(module).__name__}) keeps one running mean, but here every row is a network of "
                f"its own; use running statistics only (hyper.target.eval() after hyper.train()), one task per call "
                f"(task=an int, without samples), track_running_stats=False, or GroupNorm or LayerNorm"
            )


def per_row_call(module: nn.Module, weights: Mapping[str, Tensor], *inputs: Tensor, samples: int | None = None) -> Any:
    """Call a module once per row of the batch, each row with its own parameters, at the speed of one call.

    Products of ``nn.Linear`` and convolutions of a sequence run as batches, everything else under ``torch.vmap``.

    Args:
        module: any module; it is not changed.
        weights: ``(B, *shape)`` by name of a parameter or buffer; what is missing is the module's own, for all rows.
        *inputs: (B, ...), one sample per row, or (B, K, ...) with ``samples``.
        samples: K, None for one sample without a dimension of its own.

    Returns:
        what the module returns for a batch of one, or of K, for every row: (B, ...) or (B, K, ...).

    Raises:
        OptionError: a name that the module does not have, or batch norm that would train on single rows.
        SizeError: shapes or numbers of rows that do not fit.

    Source:
        the batch of weight sets that users of hypernetworks ask for,
        https://github.com/chrhenning/hypnettorch/issues/4.

    Example:
        >>> import torch, weft
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> weights = {name: torch.randn(5, *p.shape) for name, p in net.named_parameters()}
        >>> tuple(weft.hypernet.per_row_call(net, weights, torch.randn(5, 4)).shape)
        (5, 2)
    """
    state = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))
    for name, tensor in weights.items():
        if name not in state:
            raise OptionError(f"weights has {name!r}, which is no parameter or buffer of {type(module).__name__}")
        if tensor.shape[1:] != state[name].shape:
            raise SizeError(
                f"weights[{name!r}] must have the shape (rows, {str(tuple(state[name].shape))[1:-1]}), "
                f"got {tuple(tensor.shape)}"
            )
    places: dict[int, list[str]] = {}  # a module or a parameter may stand in several
    for name, tensor in state.items():
        places.setdefault(id(tensor), []).append(name)
    everywhere = {place: tensor for name, tensor in weights.items() for place in places[id(state[name])]}
    weights = everywhere | dict(weights)
    inputs = with_samples(inputs, samples)
    rows = inputs[0].shape[0]
    for name, tensor in weights.items():
        if len(tensor) != rows:
            raise SizeError(f"weights[{name!r}] has {len(tensor)} rows, the input has {rows}; they must be equal")
    out = run(module, {name: DenseRows(tensor) for name, tensor in weights.items()}, inputs)
    return without_samples(out, samples)


def with_samples(inputs: tuple[Tensor, ...], samples: int | None) -> tuple[Tensor, ...]:
    """Inputs with a dimension for the samples of each row.

    Args:
        inputs: (B, ...) or (B, K, ...).
        samples: K or None.

    Returns:
        (B, K, ...).

    Raises:
        SizeError: no inputs, or other numbers of rows or samples.
    """
    if not inputs:
        raise SizeError("there must be an input for the target")
    if samples is None:
        inputs = tuple(x.unsqueeze(1) for x in inputs)
    for x in inputs:
        if x.shape[0] != inputs[0].shape[0]:
            raise SizeError(f"the inputs have {inputs[0].shape[0]} and {x.shape[0]} rows; they must be equal")
        if samples is not None and (x.dim() < 2 or x.shape[1] != samples):
            raise SizeError(f"with samples={samples} inputs must be (rows, {samples}, ...), got {tuple(x.shape)}")
    return inputs


def without_samples(out: Any, samples: int | None) -> Any:
    """The inverse for outputs.

    Args:
        out: a tensor or a structure of tensors, (B, K, ...).
        samples: K or None.

    Returns:
        (B, ...) for None; what has no dimension of one sample there stays as it is.
    """
    if samples is not None:
        return out
    return _pytree.tree_map(lambda y: y.squeeze(1) if isinstance(y, Tensor) and y.dim() > 1 else y, out)
