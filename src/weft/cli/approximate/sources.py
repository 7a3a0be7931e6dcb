"""What is approximated: one matrix of a weight file, or one layer of a model with what is needed to run it."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from weft import torch_file
from weft.errors import OptionError, nearest_name
from weft.layers import Embedding, Layer
from weft.surgery.convert import layer_class

_SHOWN = 20  # names listed in an error


@dataclass(frozen=True)
class Source:
    """A matrix and where it comes from.

    Args:
        name: short, for the folder.
        words: what it is, for the title.
        matrix: (out, in).
        positions: length of the runs of columns that belong to one input channel.
        model: in evaluation mode, None for a matrix without a model.
        layer: name of the layer in it.
    """

    name: str
    words: str
    matrix: Tensor
    positions: int = 1
    model: nn.Module | None = None
    layer: str = ""

    @property
    def fingerprint(self) -> str:
        """Of the numbers of the matrix, so that results are not mixed up with those of other numbers."""
        numbers = self.matrix.detach().cpu().contiguous().view(torch.uint8).numpy()
        return hashlib.sha256(numbers.tobytes()).hexdigest()[:16]


def from_file(path: Path, wanted: str | None) -> Source:
    """A matrix of a weight file; tensors of more dimensions are read as (out, in * kernel).

    Args:
        path: ``.npy``, ``.safetensors``, or what ``torch.save`` wrote.
        wanted: name of the tensor, None where there is only one.

    Returns:
        the source.

    Raises:
        OptionError: the file cannot be read, or it is not clear which tensor is meant.
    """
    tensors = {name: tensor for name, tensor in read(path).items() if tensor.dim() >= 2}
    listed = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in list(tensors.items())[:_SHOWN])
    listed += f" and {len(tensors) - _SHOWN} more" if len(tensors) > _SHOWN else ""
    if not tensors:
        raise OptionError(f"{path} holds no tensor of two or more dimensions")
    if wanted is None and len(tensors) > 1:
        raise OptionError(f"{path} holds several matrices; choose one with --tensor NAME: {listed}")
    name = next(iter(tensors)) if wanted is None else wanted
    if name not in tensors:
        raise OptionError(f"--tensor: {path} holds no {name!r}{nearest_name(name, tensors)} (it holds: {listed})")
    tensor = tensors[name]
    if tensor.is_meta or tensor.is_quantized or tensor.layout is not torch.strided:
        kind = "on the device meta, without numbers" if tensor.is_meta else "quantized or sparse"
        raise OptionError(f"{name or path} is {kind}; save a dense tensor of numbers")
    if tensor.is_complex():
        raise OptionError(f"{name or path} is complex; approximate its real and imaginary parts one by one")
    matrix = tensor.flatten(1)
    short = f"{path.stem}-{name}" if len(tensors) > 1 else path.stem
    words = f"{path.name}, {name}" if name else path.name
    return Source(short, words, _at_least_single(matrix), math.prod(tensor.shape[2:]))


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, by name; nothing in it is run.

    Args:
        path: ``.npy``, ``.safetensors``, or what ``torch.save`` wrote: a tensor, a state dict, a Lightning checkpoint.

    Returns:
        name to tensor; the name of a lone one is empty.

    Raises:
        OptionError: it is not such a file.
    """
    try:
        if path.suffix == ".npy":
            return {"": torch.from_numpy(np.load(path, allow_pickle=False))}
        content: Any = load_file(path) if path.suffix == ".safetensors" else None
    except (ValueError, TypeError, EOFError, RuntimeError, safetensors.SafetensorError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise OptionError(
            f"{path} cannot be read as {path.suffix} of plain tensors ({reason}); it may be damaged, or hold more than "
            "tensors and numbers, which could run code"
        ) from None
    if content is None:
        content = torch_file.read(path)
    if isinstance(content, Tensor):
        return {"": content}
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, Mapping) else {}
    if not tensors:
        raise OptionError(f"{path} holds neither a tensor nor a state dict")
    return tensors


def from_model(
    spec: str, options: Mapping[str, Any], checkpoint: Path | None, wanted: str | None, device: torch.device
) -> Source:
    """A layer of a model.

    Args:
        spec: ``module:callable`` that returns the model.
        options: arguments of the callable.
        checkpoint: state dict or Lightning checkpoint to load, None for the weights that the callable gives.
        wanted: name of the layer; None for the last linear or convolutional one.
        device: to put the model on.

    Returns:
        the source.

    Raises:
        OptionError: no such callable, arguments or layer, a model without numbers, or a checkpoint that does not fit.
    """
    model = _build(spec, options)
    if checkpoint is not None:
        load_checkpoint(model, checkpoint)
    if any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()]):
        raise OptionError(f"{spec} returns a model on the device meta, without numbers; build it on the CPU")
    model = model.to(device).eval()
    layers = {name: module for name, module in model.named_modules() if replacing(module) is not None}
    if not layers:
        raise OptionError(f"{spec} has no linear or convolutional layer of torch.nn to approximate")
    name = list(layers)[-1] if wanted is None else wanted
    if name not in layers:
        raise OptionError(f"--layer: no {name!r}{nearest_name(name, layers)} (layers of {spec}: {', '.join(layers)})")
    layer = layers[name]
    if cast(Tensor, layer.weight).element_size() < 4:
        model = model.float()
    plain = cast("type[Layer]", replacing(layer)).from_dense(layer, "dense")
    matrix = plain.parametrization.dense().detach()
    function = spec.partition(":")[2]
    words = f"{spec}, {name or 'the model itself'}: {type(layer).__name__}"
    return Source(
        f"{function}-{name}" if name else function, words, matrix, plain.parametrization.positions, model, name
    )


def _build(spec: str, options: Mapping[str, Any]) -> nn.Module:
    module_name, _, attribute = spec.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), attribute]):
        raise OptionError(f"a model is given as module:callable, such as torchvision.models:resnet18; got {spec!r}")
    here = str(Path.cwd())
    sys.path.insert(0, here)  # as `python -m` does: the user's own module may lie in this folder
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise OptionError(f"there is no module {error.name!r} to take {spec} from; is it in this folder?") from None
    finally:
        sys.path.remove(here)
    function = getattr(module, attribute, None)
    if isinstance(function, nn.Module):
        return function
    if not callable(function):
        raise OptionError(f"module {module_name} has no callable {attribute!r}{nearest_name(attribute, dir(module))}")
    try:
        inspect.signature(function).bind(**options)
    except ValueError:  # a builtin, whose call will say what it takes
        pass
    except TypeError as error:
        raise OptionError(f"{spec} cannot be called with --model_options {dict(options)}: {error}") from None
    model = function(**options)
    if not isinstance(model, nn.Module):
        raise OptionError(f"{spec} must return a torch.nn.Module, got {type(model).__name__}")
    return model


def load_checkpoint(model: nn.Module, path: Path) -> None:
    """Load a state dict; of a Lightning checkpoint the part that belongs to the model.

    Args:
        model: changed in place.
        path: of the file.

    Raises:
        OptionError: names or shapes differ; lists them.
    """
    if not path.is_file():
        raise OptionError(f"--checkpoint: there is no file {path}")
    state, own = read(path), model.state_dict()
    inside = {name.removeprefix("model."): tensor for name, tensor in state.items() if name.startswith("model.")}
    if not own.keys() & state.keys() and own.keys() & inside.keys():
        state = inside  # of a LightningModule such as weft.train.Classifier, beside its metrics
    faults = [f"it lacks {name}" for name in own if name not in state]
    faults += [f"the model has no {name}{nearest_name(name, own)}" for name in state if name not in own]
    faults += [
        f"{name} has the shape {tuple(state[name].shape)}, the model's {tuple(value.shape)}"
        for name, value in own.items() if name in state and state[name].shape != value.shape
    ]  # fmt: skip
    if faults:
        more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise OptionError(f"--checkpoint: {path} does not fit the model: {'; '.join(faults[:_SHOWN])}{more}")
    model.load_state_dict(state)


def replacing(module: nn.Module) -> type[Layer] | None:
    """The class that takes the place of a plain layer with one weight and floating-point inputs.

    Args:
        module: any module.

    Returns:
        the class, None where there is none.
    """
    cls = layer_class(module)
    return cls if cls is not None and issubclass(cls, Layer) and cls is not Embedding else None


def _at_least_single(matrix: Tensor) -> Tensor:
    """In single precision at least, which fits need."""
    return matrix if matrix.is_floating_point() and matrix.element_size() >= 4 else matrix.float()
