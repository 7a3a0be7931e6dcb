"""The names of the literature: each a choice of family, and nothing else."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from weft.errors import SizeError
from weft.layers.base import Layer
from weft.layers.conv import Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d
from weft.layers.linear import Linear
from weft.parametrizations import Parametrization


class _Named(Layer):
    """Mixin that fixes the family of the layer class after it."""

    _family: ClassVar[str]
    _options: ClassVar[dict[str, Any]] = {}

    def __init__(self, *args: Any, parametrization: str | Parametrization | None = None, **kwargs: Any) -> None:
        if parametrization is None:
            parametrization = self._family
        if isinstance(parametrization, str):
            kwargs = {**self._options, **kwargs}
        super().__init__(*args, parametrization=parametrization, **kwargs)

    @classmethod
    def from_dense(cls, module: nn.Module, family: str | Parametrization | None = None, **options: Any) -> Self:
        return super().from_dense(module, cls._family if family is None else family, **options)


class _Hypercomplex(_Named):
    _family = "kronecker"


class _Quaternion(_Named):
    _family, _options = "kronecker", {"algebra": "quaternion"}


class PHMLinear(_Hypercomplex, Linear):
    """Parameterised hypercomplex multiplication: ``Linear`` with a sum of n Kronecker products, n=4 by default.

    Example:
        >>> PHMLinear(512, 256, n=4).parametrization.num_parameters
        32832
    """


class PHConv1d(_Hypercomplex, Conv1d):
    """Parameterised hypercomplex 1-D convolution: ``Conv1d`` with a sum of n Kronecker products.

    Example:
        >>> PHConv1d(8, 16, 3, n=2, padding=1).parametrization.n
        2
    """


class PHConv2d(_Hypercomplex, Conv2d):
    """Parameterised hypercomplex 2-D convolution: ``Conv2d`` with a sum of n Kronecker products.

    Example:
        >>> PHConv2d(64, 128, 3, n=4, padding=1).parametrization.num_parameters
        18496
    """


class PHConv3d(_Hypercomplex, Conv3d):
    """Parameterised hypercomplex 3-D convolution: ``Conv3d`` with a sum of n Kronecker products.

    Example:
        >>> PHConv3d(4, 8, 3, n=4).parametrization.num_parameters
        280
    """


class PHConvTranspose1d(_Hypercomplex, ConvTranspose1d):
    """Parameterised hypercomplex 1-D transposed convolution.

    Example:
        >>> tuple(PHConvTranspose1d(8, 4, 2, stride=2, n=2).weight.shape)
        (8, 4, 2)
    """


class PHConvTranspose2d(_Hypercomplex, ConvTranspose2d):
    """Parameterised hypercomplex 2-D transposed convolution.

    Example:
        >>> tuple(PHConvTranspose2d(8, 4, 2, stride=2, n=2).weight.shape)
        (8, 4, 2, 2)
    """


class PHConvTranspose3d(_Hypercomplex, ConvTranspose3d):
    """Parameterised hypercomplex 3-D transposed convolution.

    Example:
        >>> tuple(PHConvTranspose3d(8, 4, 2, stride=2, n=2).weight.shape)
        (8, 4, 2, 2, 2)
    """


class QuaternionLinear(_Quaternion, Linear):
    """``Linear`` over the quaternions: 4 blocks arranged by the Hamilton product, a quarter of the numbers.

    Example:
        >>> QuaternionLinear(512, 256).parametrization.num_parameters
        32768
    """


class QuaternionConv1d(_Quaternion, Conv1d):
    """``Conv1d`` over the quaternions; channels are component major (all real parts first).

    Example:
        >>> QuaternionConv1d(8, 16, 3).parametrization.num_parameters
        96
    """


class QuaternionConv2d(_Quaternion, Conv2d):
    """``Conv2d`` over the quaternions; channels are component major (all real parts first).

    Example:
        >>> QuaternionConv2d(8, 16, 3).parametrization.num_parameters
        288
    """


class QuaternionConv3d(_Quaternion, Conv3d):
    """``Conv3d`` over the quaternions; channels are component major (all real parts first).

    Example:
        >>> QuaternionConv3d(8, 16, 3).parametrization.num_parameters
        864
    """


class LRLinear(_Named, Linear):
    """``Linear`` of low rank, sized by a share, optionally fitted to a given weight.

    Args:
        in_features: size of each input row.
        out_features: size of each output row.
        share: stored over dense numbers, in (0, 1]; or give ``rank``.
        bias: whether to add a learned bias.
        initial_weight: (out, in) matrix to fit, None for a random start.
        initial_bias: (out,) values of the bias, None for a random start.
        **options: ``rank``, ``path``, ``init``, ``device``, ``dtype``, as ``weft.Linear``.

    Raises:
        SizeError: ``initial_bias`` of the wrong shape, or given without a bias.

    Example:
        >>> LRLinear(300, 200, share=0.1).parametrization.rank
        12
    """

    _family = "low_rank"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        share: float | None = None,
        bias: bool = True,
        initial_weight: Tensor | None = None,
        initial_bias: Tensor | None = None,
        **options: Any,
    ) -> None:
        super().__init__(in_features, out_features, bias, share=share, **options)
        if initial_weight is not None:
            self.parametrization.fit_(torch.as_tensor(initial_weight))
        if initial_bias is not None:
            if self.bias is None or tuple(initial_bias.shape) != (out_features,):
                raise SizeError(
                    f"initial_bias must have the shape ({out_features},) and needs bias=True; "
                    f"got {tuple(initial_bias.shape)} with bias={bias}"
                )
            with torch.no_grad():
                self.bias.copy_(initial_bias)
