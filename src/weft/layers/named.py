"""The names of the literature: each a choice of family, and nothing else."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from weft.errors import OptionError, SizeError, UnknownNameError, nearest_name
from weft.layers.base import Layer
from weft.layers.conv import Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d
from weft.layers.linear import Linear
from weft.parametrizations import Parametrization
from weft.parametrizations.quaternion import pure_input_table


class _Named(Layer):
    """Mixin that fixes the family of the layer class after it."""

    _family: ClassVar[str]
    _options: ClassVar[dict[str, Any]] = {}

    def __init__(self, *args: Any, parametrization: str | Parametrization | None = None, **kwargs: Any) -> None:
        if parametrization is None:
            parametrization = self._family
        if parametrization == self._family:
            kwargs = {**self._options, **kwargs}
        super().__init__(*args, parametrization=parametrization, **kwargs)

    @classmethod
    def from_dense(cls, module: nn.Module, family: str | Parametrization | None = None, **options: Any) -> Self:
        return super().from_dense(module, cls._family if family is None else family, **options)


class _Hypercomplex(_Named):
    _family = "kronecker"


class _Quaternion(_Named):
    """The options of the quaternion school, translated into a family and its options.

    Args:
        *args: of the layer.
        parametrization: None for the quaternions.
        criterion: "glorot" or "he": ``init`` under the name of the school.
        rotation: whether the weight rotates instead of multiplying, family ``quaternion_rotation``.
        pure_input: whether the real part of the input is ignored.
        **kwargs: of the layer and the family.
    """

    _family, _options = "kronecker", {"algebra": "quaternion"}

    def __init__(
        self,
        *args: Any,
        parametrization: str | Parametrization | None = None,
        criterion: str | None = None,
        rotation: bool = False,
        pure_input: bool = False,
        **kwargs: Any,
    ) -> None:
        if criterion is not None:
            if criterion not in _CRITERIA:
                hint = nearest_name(str(criterion), _CRITERIA)
                raise UnknownNameError(f"criterion must be one of {', '.join(_CRITERIA)}; got {criterion!r}{hint}")
            if "init" in kwargs:
                raise OptionError("criterion is another name of init: give one of them")
            kwargs["init"] = criterion
        given = [name for name, value in (("rotation", rotation), ("pure_input", pure_input)) if value]
        if given and parametrization not in {None, self._family}:
            raise OptionError(f"parametrization says what the weight is, and so does {' and '.join(given)}; drop one")
        if len(given) == 2:
            raise OptionError("rotation ignores the real part of the input already: drop pure_input")
        misplaced = [name for name in ("scale", "quaternion_format") if kwargs.get(name) is not None]
        if misplaced and not rotation and parametrization in {None, self._family}:
            raise OptionError(
                f"{' and '.join(misplaced)} concern rotations only: give rotation=True too, or leave it out"
            )
        if rotation:
            parametrization = "quaternion_rotation"
        elif pure_input:
            kwargs["algebra"] = pure_input_table()
        super().__init__(*args, parametrization=parametrization, **kwargs)


_CRITERIA = ("glorot", "he")


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

    Features are component major: the first quarter is the real parts, then those of i, j and k. All layers named
    ``Quaternion...`` take these options by name, besides those of ``weft.Linear`` or the convolution:

    - ``criterion``: ``"glorot"`` or ``"he"``, the variance of the initial weight; the same as ``init``. Left out, it is
      that of ``torch.nn``.
    - ``weight_init``: ``"quaternion"`` (polar form), ``"unitary"`` (all of the same modulus) or ``"random"``, the law
      of the initial weight, see ``weft.parametrizations.quaternion``. Left out, the components are uniform.
    - ``pure_input=True``: for a first layer whose inputs are purely imaginary, such as (0, R, G, B): the real part of
      the input is ignored. (For weights that have no real part either, give a table with ``table[0] = 0`` as
      ``algebra``.)
    - ``rotation=True``: the weight w acts as the rotation w v w* on the imaginary part v of the input, and the real
      part comes out as 0. With ``scale=True`` every rotation has a learned scale; with ``quaternion_format=False``
      features are (x, y, z) without a real part.

    Example:
        >>> QuaternionLinear(512, 256).parametrization.num_parameters
        32768
        >>> QuaternionLinear(512, 256, criterion="he", weight_init="unitary").parametrization.weight_init
        'unitary'
        >>> QuaternionLinear(512, 256, rotation=True, scale=True).parametrization.family
        'quaternion_rotation'
    """


class QuaternionConv1d(_Quaternion, Conv1d):
    """``Conv1d`` over the quaternions; channels are component major, options as ``QuaternionLinear``.

    Example:
        >>> QuaternionConv1d(8, 16, 3).parametrization.num_parameters
        96
    """


class QuaternionConv2d(_Quaternion, Conv2d):
    """``Conv2d`` over the quaternions; channels are component major, options as ``QuaternionLinear``.

    Example:
        >>> QuaternionConv2d(8, 16, 3).parametrization.num_parameters
        288
    """


class QuaternionConv3d(_Quaternion, Conv3d):
    """``Conv3d`` over the quaternions; channels are component major, options as ``QuaternionLinear``.

    Example:
        >>> QuaternionConv3d(8, 16, 3).parametrization.num_parameters
        864
    """


class QuaternionConvTranspose1d(_Quaternion, ConvTranspose1d):
    """``ConvTranspose1d`` over the quaternions; options as ``QuaternionLinear``.

    Example:
        >>> tuple(QuaternionConvTranspose1d(8, 4, 2, stride=2).weight.shape)
        (8, 4, 2)
    """


class QuaternionConvTranspose2d(_Quaternion, ConvTranspose2d):
    """``ConvTranspose2d`` over the quaternions; options as ``QuaternionLinear``.

    Example:
        >>> tuple(QuaternionConvTranspose2d(8, 4, 2, stride=2).weight.shape)
        (8, 4, 2, 2)
    """


class QuaternionConvTranspose3d(_Quaternion, ConvTranspose3d):
    """``ConvTranspose3d`` over the quaternions; options as ``QuaternionLinear``.

    Example:
        >>> tuple(QuaternionConvTranspose3d(8, 4, 2, stride=2).weight.shape)
        (8, 4, 2, 2, 2)
    """


class _Structured(_Named, Linear):
    """``Linear`` of a family that a share sizes, optionally fitted to a given weight.

    Args:
        in_features: size of each input row.
        out_features: size of each output row.
        share: stored over dense numbers, in (0, 1]; or give the family's own sizes.
        bias: whether to add a learned bias.
        initial_weight: (out, in) matrix to fit, None for a random start.
        initial_bias: (out,) values of the bias, None for a random start.
        **options: of the family; ``path``, ``init``, ``device``, ``dtype``, as ``weft.Linear``.

    Raises:
        SizeError: ``initial_bias`` of the wrong shape, or given without a bias.
    """

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
        if initial_weight is not None:
            options["target"] = initial_weight = torch.as_tensor(initial_weight).detach()
        super().__init__(in_features, out_features, bias, share=share, **options)
        if initial_weight is not None:
            self.parametrization.fit_(initial_weight)
        if initial_bias is not None:
            if self.bias is None or tuple(initial_bias.shape) != (out_features,):
                raise SizeError(
                    f"initial_bias must have the shape ({out_features},) and needs bias=True; "
                    f"got {tuple(initial_bias.shape)} with bias={bias}"
                )
            with torch.no_grad():
                self.bias.copy_(initial_bias)


class LRLinear(_Structured):
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


class SSSLinear(_Structured):
    """``Linear`` with a sequentially semiseparable matrix, sized by a share, optionally fitted to a given weight.

    Takes the arguments of ``LRLinear``, and ``stages`` and ``state`` of the family ``sss``.

    Example:
        >>> SSSLinear(1024, 512, stages=16, state=8).parametrization.num_parameters
        57600
        >>> SSSLinear(1024, 512, share=0.1).parametrization.share <= 0.1
        True
    """

    _family = "sss"


class LDRLinear(_Structured):
    """``Linear`` with a matrix of low displacement rank, sized by a share, optionally fitted to a given weight.

    Takes the arguments of ``LRLinear``, and ``rank`` of the family ``ldr``. Training it costs more than a dense layer.

    Example:
        >>> LDRLinear(100, 100, rank=2).parametrization.num_parameters
        1000
    """

    _family = "ldr"


class HODLRLinear(_Structured):
    """``Linear`` whose weight is dense on the diagonal and of low rank off it, at every scale; as ``LRLinear``.

    Sized by ``share``, or by ``depth`` and ``rank``, or by ``share`` and one of them.

    Example:
        >>> HODLRLinear(512, 512, share=0.2, depth=4).parametrization.rank
        6
    """

    _family = "hodlr"


class HEDLRLinear(_Structured):
    """``Linear`` with a grid of blocks, each of a low rank of its own; as ``LRLinear``, with ``numbers`` and ``depth``.

    Example:
        >>> HEDLRLinear(512, 512, share=0.1).parametrization.blocks
        64
    """

    _family = "hedlr"


class HMatLinear(_Structured):
    """``Linear`` with an H-matrix, sized by a share, optionally fitted to a given weight.

    Takes the arguments of ``LRLinear``, and ``numbers``, ``min_block`` and ``eta`` of the family ``hmat``.

    Example:
        >>> HMatLinear(512, 512, share=0.1, min_block=16).parametrization.blocks
        112
    """

    _family = "hmat"


class MonarchLinear(_Structured):
    """``Linear`` with a Monarch matrix, sized by a share or by blocks, optionally fitted to a given weight.

    Takes the arguments of ``LRLinear``, and ``blocks`` and ``rank`` of the family ``monarch``.

    Example:
        >>> MonarchLinear(1024, 512, blocks=16).parametrization.num_parameters
        24576
        >>> MonarchLinear(1024, 512, share=0.1).parametrization.share <= 0.1
        True
    """

    _family = "monarch"


class PSMLinear(_Structured):
    """``Linear`` with a product of sparse matrices, sized by a share, optionally fitted to a given weight.

    Takes the arguments of ``LRLinear``, and ``nonzeros``, ``factors`` and ``last_share`` of the family ``psm``.

    Example:
        >>> PSMLinear(64, 32, share=0.25, factors=3).parametrization.num_parameters
        512
    """

    _family = "psm"


class TLLinear(_Structured):
    """``Linear`` with a Toeplitz-like matrix, sized by a share or a rank, optionally fitted to a given weight.

    Takes the arguments of ``LRLinear``; ``rank`` is the displacement rank, 2 for Toeplitz matrices.

    Example:
        >>> TLLinear(300, 300, share=0.0134).parametrization.rank
        2
    """

    _family = "toeplitz_like"
