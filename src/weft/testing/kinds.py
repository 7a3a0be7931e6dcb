"""Layers of every kind around a member of any family, with an example input."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from weft.layers import Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d, Layer, Linear
from weft.testing.case import Case


@dataclass(frozen=True)
class Kind:
    """A class of layers with a geometry.

    Args:
        cls: the class.
        arguments: its geometry; ``kernel_size`` as a tuple.
        size: of the example input after its channels.
        heavy: whether the checks that take seconds (compile, export, ONNX) run for it.
    """

    cls: type[Layer]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    size: tuple[int, ...] = ()
    heavy: bool = False

    def layer(
        self, case: Case, *, dtype: torch.dtype = torch.float64, device: str | None = None, **options: Any
    ) -> Layer:
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
