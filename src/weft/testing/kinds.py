"""Layers of every kind around a member of any family, with an example input."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

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
    Layer,
    Linear,
    MultiheadAttention,
)
from weft.parametrizations import Parametrization
from weft.testing.case import Case


@dataclass(frozen=True)
class Kind:
    """A class of layers with a geometry.

    Args:
        cls: the class.
        arguments: its geometry; ``kernel_size`` as a tuple.
        size: of the example input after its channels.
        heavy: whether the checks that take seconds (compile, export, ONNX) run for it.
        expected_failures: check to the reason why no layer of this kind can pass it.
    """

    cls: type[Layer | Composite]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    size: tuple[int, ...] = ()
    heavy: bool = False
    expected_failures: Mapping[str, str] = field(default_factory=dict)

    def layer(
        self, case: Case, *, dtype: torch.dtype = torch.float64, device: str | None = None, **options: Any
    ) -> Any:
        """A layer of this kind with a fresh member.

        Args:
            case: gives the member; its first shape is that of the channels.
            dtype: of the parameters.
            device: of the parameters.
            **options: of the layer, such as ``path``.

        Returns:
            the layer, in training mode.
        """
        rows, channels = case.shapes[0]
        positions = math.prod(self.arguments.get("kernel_size", ()))
        member = case.member((rows, channels * positions), positions=positions, dtype=dtype, device=device)
        arguments = {**self.arguments, **options, "parametrization": member, "dtype": dtype, "device": device}
        return self.cls(channels, rows, **arguments)

    def example(self, case: Case, rows: int = 3, dtype: torch.dtype = torch.float64) -> Tensor:
        """A random input.

        Args:
            case: gives the channels.
            rows: size of the batch.
            dtype: of the input.

        Returns:
            ``(rows, channels, *size)``.
        """
        return torch.randn(rows, case.shapes[0][1], *self.size, dtype=dtype)

    def __repr__(self) -> str:
        return self.cls.__name__


class OneToOne(nn.Module):
    """A module of several inputs or outputs as one of a single input and a single output, as the checks want it.

    Args:
        module: a layer or a composite, or its folded form.
        call: ``call(module, x)`` gives the output.
    """

    def __init__(self, module: nn.Module, call: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.module, self.call = module, call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.module, x)

    def fold(self) -> OneToOne:
        """The same around the folded module.

        Returns:
            a module of torch only.
        """
        module: Any = self.module
        return OneToOne(module.fold(), self.call).train(self.training)

    @property
    def _first(self) -> Layer:
        return next(module for module in self.modules() if isinstance(module, Layer))

    @property
    def weight(self) -> Tensor:
        """The first weight."""
        return self._first.weight

    @property
    def parametrization(self) -> Parametrization:
        """What describes the first weight."""
        return self._first.parametrization


@dataclass(frozen=True)
class WrappedKind(Kind):
    """A class of layers that does not map one tensor of features to another, with a way to make it so.

    Args:
        call: ``call(module, x)`` gives one output for one input (rows, *size, channels).
        sides: which sides of the case's first shape are the first two sizes of the module: 0 for out, 1 for in.
    """

    call: Callable[[Any, Tensor], Tensor] = lambda module, x: module(x)
    sides: tuple[int, ...] = (1, 0)

    def layer(
        self, case: Case, *, dtype: torch.dtype = torch.float64, device: str | None = None, **options: Any
    ) -> OneToOne:
        """A wrapped module of this kind with fresh members.

        Args:
            case: makes the members.
            dtype: of the parameters.
            device: of the parameters.
            **options: of the layer, such as ``path``.

        Returns:
            the wrapped module, in training mode.
        """
        sizes = [case.shapes[0][side] for side in self.sides]
        maker: Any = case.make
        if self.cls is Embedding:
            maker = case.member((sizes[0], sizes[1]), dtype=dtype, device=device)
        elif self.cls is not MultiheadAttention:
            options.pop("path", None)  # recurrent kernels run on whole weights
        arguments = {**self.arguments, **options, "parametrization": maker, "dtype": dtype, "device": device}
        return OneToOne(self.cls(*sizes, **arguments), self.call)

    def example(self, case: Case, rows: int = 3, dtype: torch.dtype = torch.float64) -> Tensor:
        """A random input.

        Args:
            case: gives the channels.
            rows: size of the batch.
            dtype: of the input.

        Returns:
            ``(rows, *size, channels)``.
        """
        channels = case.shapes[0][self.sides[-1] if self.cls is Embedding else self.sides[0]]
        return torch.randn(rows, *self.size, channels, dtype=dtype)

    __repr__ = Kind.__repr__


def _sequence(module: Any, x: Tensor) -> Tensor:
    return module(x)[0]


def _self_attention(module: Any, x: Tensor) -> Tensor:
    return module(x, x, x)[0]  # with weights: torch's fused kernel has no second derivative


def _looked_up(module: Any, x: Tensor) -> Tensor:
    """Rows looked up one after the other, as weights of the input: differentiable in it, and a product at the end."""
    rows = module(torch.arange(x.shape[0], device=x.device) % module.num_embeddings)
    return (x * rows) @ torch.eye(x.shape[1], dtype=x.dtype, device=x.device)


def wrapped_kinds() -> dict[str, Kind]:
    """One geometry of every module that is no product: embedding, recurrent layers, attention.

    Returns:
        class name to kind.
    """
    recurrent = {
        "vmap_over_parameters": "torch has no batching rule for its recurrent kernels",
        "symbolic_trace": "torch's forward pass branches on the input's rank; torch.fx must take the module as a leaf",
        "jit_trace": "torch's own forward pass warns about branches on sizes",
    }
    full = {**recurrent, "autocast_bfloat16": "torch's GRU stays in single precision under autocast on the CPU"}
    attention = {"symbolic_trace": "it branches on the input's rank; torch.fx must take the module as a leaf"}
    both = {"bidirectional": True, "batch_first": True}
    every = (
        WrappedKind(Embedding, {"padding_idx": 1}, (), True, call=_looked_up, sides=(0, 1)),
        WrappedKind(RNN, {"batch_first": True, "nonlinearity": "relu"}, (4,), False, recurrent, _sequence),
        WrappedKind(GRU, both, (2,), True, full, _sequence),
        WrappedKind(LSTM, {"num_layers": 2, "batch_first": True}, (4,), False, recurrent, _sequence),
        # Without biases: that of the keys has no effect, so its gradient is nothing but rounding.
        WrappedKind(
            MultiheadAttention, {"num_heads": 2, "bias": False, "batch_first": True}, (5,), True, attention,
            _self_attention, (0,),
        ),
    )  # fmt: skip
    return {kind.cls.__name__: kind for kind in every}


def kinds() -> dict[str, Kind]:
    """One geometry, not the default one, of every kind of layer.

    Returns:
        class name to kind.
    """
    transposed = {"kernel_size": (2, 3), "stride": (2, 1), "padding": (0, 1)}
    every = (
        Kind(Linear, heavy=True),
        Kind(Conv1d, {"kernel_size": (3,), "stride": 2, "padding": 1}, (9,)),
        Kind(Conv2d, {"kernel_size": (3, 2), "padding": (1, 0)}, (5, 4), heavy=True),
        Kind(Conv3d, {"kernel_size": (1, 2, 2), "dilation": (1, 1, 2)}, (2, 4, 5)),
        Kind(ConvTranspose1d, {"kernel_size": (4,), "stride": 2, "padding": 1}, (5,)),
        Kind(ConvTranspose2d, transposed, (3, 4), heavy=True),
        Kind(ConvTranspose3d, {"kernel_size": (2, 1, 2), "stride": (2, 1, 1)}, (2, 3, 3)),
    )
    return {kind.cls.__name__: kind for kind in every}
