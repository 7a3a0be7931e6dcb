"""Fine-tuning of one replaced layer: everything else is frozen, in evaluation mode, and computed once where possible.

Where the layer is followed by the later parts of ``nn.Sequential``s alone, or by nothing, the model is split there: the
layer's inputs are computed once, and the layer with what follows it is trained on them. Else the whole model runs in
every step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from rich.progress import Progress
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from weft.cli.approximate.sources import replacing
from weft.data import ImageData
from weft.data.batches import Batches
from weft.errors import OptionError
from weft.layers import Layer
from weft.parametrizations import Parametrization
from weft.surgery.walk import copy_with, evaluation
from weft.train.decreasing_lr import evaluate, train_with_decreasing_lr

_BATCH = 500
_LARGE = 2**26  # bytes; larger features are kept in the folder
_SPLITS = ("train", "val", "test")

Samples = tuple[Tensor, Tensor]


class Tuned(nn.Module):
    """A layer that can be trained, and a frozen rest that stays in evaluation mode.

    Args:
        layer: the one to train.
        run: the rest: what follows the layer, or the whole model with the layer in it.
        whole: whether ``run`` is the whole model.
    """

    def __init__(self, layer: nn.Module, run: nn.Module, whole: bool) -> None:
        super().__init__()
        self.layer, self.run, self.whole = layer, run.requires_grad_(False), whole
        layer.requires_grad_()  # after the freezing, since the whole model holds it too
        self.train(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x if self.whole else self.layer(x))

    def train(self, mode: bool = True) -> Tuned:
        super().train(False)
        self.layer.train(mode)
        return self


class Normalised(nn.Module):
    """A model that takes images as bytes.

    Args:
        data: knows their mean and deviation.
        model: takes floats.
    """

    def __init__(self, data: ImageData, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._normalise = data.normalise

    def forward(self, x: Tensor) -> Tensor:
        return self.model(self._normalise(x))


@dataclass(frozen=True)
class Bench:
    """Samples of every split, and how a layer is tried on them.

    Args:
        samples: by "train", "val" and "test": inputs of what is trained, and labels.
        wrap: from a layer to the module that maps the inputs to scores.
        plain: the layer that is replaced.
        how: what is trained on what, in words.
        split: whether the inputs are those of the layer, not of the model.
    """

    samples: dict[str, Samples]
    wrap: Callable[[nn.Module], nn.Module]
    plain: nn.Module
    how: str
    split: bool

    def accuracy(self, module: nn.Module) -> float:
        """On the test images.

        Args:
            module: from ``wrap``.

        Returns:
            share of right answers.
        """
        return evaluate(module, nn.CrossEntropyLoss(), *self.samples["test"], batch_size=_BATCH)[1]

    def gram(self) -> Tensor:
        """The second moments of the layer's inputs on the training images.

        Returns:
            (in, in).

        Raises:
            OptionError: the layer's inputs are not rows of its matrix, or are not known.
        """
        if not self.split or not isinstance(self.plain, nn.Linear):
            raise OptionError(
                "--weighted needs a linear layer whose inputs are stored: one at the end of the model, or followed by "
                "the later parts of an nn.Sequential alone"
            )
        gram = torch.zeros(2 * (self.plain.in_features,), dtype=torch.float64)
        for x in self.samples["train"][0].split(_BATCH):
            rows = x.flatten(0, -2).double()
            gram += rows.T @ rows
        return (gram / len(self.samples["train"][0])).to(self.plain.weight.device)

    def replacement(self, member: Parametrization) -> Layer:
        """The layer with another weight and the same bias.

        Args:
            member: of the shape of the layer's matrix.

        Returns:
            the layer.
        """
        cls, plain = cast("type[Layer]", replacing(self.plain)), cast(Any, self.plain)
        weight = plain.weight
        layer = cls(**cls._arguments_of(plain), parametrization=member, device=weight.device, dtype=weight.dtype)
        if layer.bias is not None:
            with torch.no_grad():
                layer.bias.copy_(plain.bias)
        return layer

    def train(self, module: nn.Module, **options: Any) -> None:
        """Train on the training images, keep the weights of the smallest validation loss.

        Args:
            module: from ``wrap``.
            **options: of ``train_with_decreasing_lr``.
        """
        train_with_decreasing_lr(module, *self.samples["train"], *self.samples["val"], **options)


def bench(model: nn.Module, name: str, data: ImageData, folder: Path, progress: Progress) -> Bench:
    """Make everything that fine-tuning a layer needs.

    Args:
        model: in evaluation mode.
        name: of the layer.
        data: of images.
        folder: where large features are kept.
        progress: shows how far their computation is.

    Returns:
        the bench.

    Raises:
        OptionError: the model and the data do not fit together.
    """
    data.setup()
    loaders = data.train_dataloader(), cast(Batches, data.val_dataloader()), data.test_dataloader()
    splits = {split: (loader.images, loader.labels) for split, loader in zip(_SPLITS, loaders, strict=True)}
    layer, device = model.get_submodule(name), next(model.parameters()).device
    example = data.normalise(splits["test"][0][:8].to(device))
    inputs, scores = _watch(model, layer, example)
    if scores.dim() != 2 or scores.shape[1] != data.num_classes:
        raise OptionError(
            f"the model must map images to (batch, {data.num_classes}) scores, one per class of {data.source}; "
            f"it gives {tuple(scores.shape)}"
        )
    rest = _rest(model, name)
    if _is_split(layer, rest, inputs, scores):
        features = _features(model, layer, data, splits, folder, progress)
        after = " and ".join(dict.fromkeys(type(module).__name__ for module in rest)) or "nothing"
        how = f"trained on stored inputs of the layer; what follows it ({after}) is frozen"
        samples = {split: (features[split], splits[split][1]) for split in _SPLITS}
        return Bench(samples, lambda new: Tuned(new, nn.Sequential(*rest), False), layer, how, split=True)
    how = "trained inside the whole model, everything else frozen, because the model cannot be split behind the layer"

    def inside(new: nn.Module) -> nn.Module:
        return Tuned(new, Normalised(data, copy_with(model, {layer: new})), True)

    return Bench(splits, inside, layer, how, split=False)


def _watch(model: nn.Module, layer: nn.Module, images: Tensor) -> tuple[list[Any], Tensor]:
    """What a layer was called with, call by call, and what the model gave."""
    inputs: list[Any] = []
    hook = layer.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments))
    try:
        with evaluation(model):
            return inputs, model(images)
    except RuntimeError as error:
        raise OptionError(f"the model cannot take images of shape {tuple(images.shape[1:])}: {error}") from error
    finally:
        hook.remove()


def _rest(model: nn.Module, name: str) -> list[nn.Module]:
    """What stands behind a layer in the ``nn.Sequential`` that holds it, in the one that holds that, and so on."""
    rest: list[nn.Module] = []
    while name:
        outer, _, last = name.rpartition(".")
        parent = model.get_submodule(outer)
        if type(parent).forward is not nn.Sequential.forward:
            break
        names = list(parent._modules)
        rest += [cast(nn.Module, parent._modules[each]) for each in names[names.index(last) + 1 :]]
        name = outer
    return rest


def _is_split(layer: nn.Module, rest: list[nn.Module], inputs: list[Any], scores: Tensor) -> bool:
    """Whether the model's scores are what the layer and the rest make of the one input that the layer was given."""
    if len(inputs) != 1 or len(inputs[0]) != 1 or len(inputs[0][0]) != len(scores):
        return False
    with evaluation(layer, *rest):
        again = nn.Sequential(layer, *rest)(inputs[0][0])
    return again.shape == scores.shape and torch.allclose(again, scores, rtol=1e-4, atol=1e-5)


def _features(
    model: nn.Module, layer: nn.Module, data: ImageData, splits: dict[str, Samples], folder: Path, progress: Progress
) -> dict[str, Tensor]:
    """The layer's inputs for all images, computed once."""
    path = folder / "features.safetensors"
    if path.is_file():
        return load_file(path)
    device, features = next(model.parameters()).device, {}
    total = sum(len(labels) for _, labels in splits.values())
    bar = progress.add_task("inputs of the layer", total=total)
    for split, (images, _) in splits.items():
        parts = []
        for batch in images.split(_BATCH):
            inputs, _ = _watch(model, layer, data.normalise(batch.to(device)))
            parts.append(inputs[0][0].cpu())
            progress.advance(bar, len(batch))
        features[split] = torch.cat(parts)
    progress.remove_task(bar)
    if sum(part.nbytes for part in features.values()) > _LARGE:
        folder.mkdir(parents=True, exist_ok=True)
        beside = folder / ".features.part"
        save_file({split: part.contiguous() for split, part in features.items()}, beside)
        beside.replace(path)
    return features
