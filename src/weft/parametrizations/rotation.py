"""Quaternions that act as rotations: every block of the weight turns a vector of space.

    W[p*O/n + o, q*I/n + c] = s[o, c] R(w[:, o, c])[p', q'],        R(w) v = w v w* / |w|^2

The n components of a number are (x, y, z), or (real, x, y, z) with a row and a column of zeros for the real part; R is
the 3x3 rotation matrix of the quaternion w, whatever its length. The scale s is 1, or learned.

Letters: O, I = rows and columns of W; n = components of one number; p, q = components; o, c = row and column inside
a component.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft.errors import FitError, OptionError, SizeError
from weft.parametrizations.base import Parametrization, relative_error
from weft.parametrizations.quaternion import INITIAL_LAWS, check_weight_init
from weft.parametrizations.registry import Family, register
from weft.quaternion import rotation_of_parts


def nearest_rotation(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The rotation R that is nearest to a multiple of a 3x3 matrix M: the largest |<R, M>|, in closed form.

    <R(w), M> is a quadratic form of the unit quaternion w, so w is an eigenvector of a symmetric 4x4 matrix.

    Args:
        matrix: (..., 3, 3).

    Returns:
        all four eigenvectors as unit quaternions, (..., 4, 4), the last two dimensions (component, eigenvalue), and
        the values of <R, M> that belong to them, (..., 4), ascending. The last is the nearest rotation; the first
        that of -M.

    Source:
        Davenport 1968, NASA TN D-4696; Horn 1987, Closed-form solution of absolute orientation using unit quaternions.
    """
    trace = matrix.diagonal(dim1=-2, dim2=-1).sum(-1)
    skew = torch.stack([matrix[..., a, b] - matrix[..., b, a] for a, b in ((2, 1), (0, 2), (1, 0))], -1)
    inner = matrix + matrix.mT - trace[..., None, None] * torch.eye(3, dtype=matrix.dtype, device=matrix.device)
    first = torch.cat([trace[..., None], skew], -1).unsqueeze(-2)
    form = torch.cat([first, torch.cat([skew.unsqueeze(-1), inner], -1)], -2)
    values, vectors = torch.linalg.eigh(form)
    return vectors, values


class QuaternionRotation(Parametrization):
    """Blocks that rotate: the weight w of a quaternion layer acts on a vector v as w v w* instead of w v.

    Choose it where channels are vectors of space (or colours) whose lengths should survive; a rotation cannot scale.
    Sums over many inputs still grow, so in wide layers take ``scale=True``, which starts with the variance of other
    layers. It saves numbers, not multiply-adds: the matrix is built and multiplied as a dense one.

    Args:
        shape: (out, in) of the matrix; n divides out and the input channels, in/positions.
        scale: whether every rotation has a learned scale, which may become negative.
        quaternion_format: whether numbers are (real, x, y, z), n = 4, of which the real part is ignored and comes out
            as 0; else (x, y, z), n = 3.
        weight_init: law of the quaternions, of which only the directions matter: None and "unitary" draw rotations
            uniformly, "random" nearly so; those of "quaternion" have a third of the identity as their mean.
        positions: kernel positions per input channel, see ``Parametrization``.
        variance: of the entries after ``reset_parameters`` if ``scale=True``, None for 1/(3*in).
        device: as in torch.
        dtype: as in torch.

    Shape:
        dense(): (O, I)          linear(x): (..., I) -> (..., O)

    Parameters stored:
        quaternions w (4, O/n, I/n): no weight decay (length does nothing);
        scale s (O/n, I/n): weight decay; without ``scale`` a constant 1.

    Initial law:
        rotations have entries of mean 0 and mean square 1/3, uniform for the default law; with ``scale`` all scales
        start equal, so that the mean square over all entries, zeros included, is the wanted variance.

    Cost:
        4*O*I/n^2 numbers, 5*O*I/n^2 with ``scale``; about 2*O*I multiply-adds to build W.

    Raises:
        SizeError: n does not divide out or the input channels.
        UnknownNameError: there is no such law.

    Source:
        Parcollet et al. 2019, pytorch-qnn, the ``rotation`` mode of its layers. Differs from it where that is broken
        (transposed convolutions; every side without ``quaternion_format``), and normalises exactly, there with 1e-4
        under the root.

    Example:
        >>> p = QuaternionRotation((4, 4))
        >>> _ = p.quaternions.data.copy_(torch.tensor([1.0, 0.0, 0.0, 1.0]).reshape(4, 1, 1))  # a quarter turn about z
        >>> p.dense().tolist()
        [[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, -1.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
    """

    family = "quaternion_rotation"
    scale: Tensor

    def __init__(
        self,
        shape: tuple[int, int],
        *,
        scale: bool = False,
        quaternion_format: bool = True,
        weight_init: str | None = None,
        positions: int = 1,
        variance: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(shape, positions=positions, variance=variance)
        self.n = 4 if quaternion_format else 3
        sizes = (
            ("out_features (out_channels)", self.shape[0]),
            ("in_features (in_channels)", self.shape[1] // positions),
        )
        for side, size in sizes:
            if size % self.n:
                raise SizeError(
                    f"{side} must be divisible by {self.n} with quaternion_format={quaternion_format}, got {size}; "
                    f"nearest sizes: {max(size // self.n, 1) * self.n} and {(size // self.n + 1) * self.n}"
                )
        check_weight_init(weight_init, 4)
        self.weight_init = weight_init
        blocks = (self.shape[0] // self.n, self.shape[1] // self.n)
        self.quaternions = nn.Parameter(torch.empty((4, *blocks), device=device, dtype=dtype))
        if scale:
            self.scale = nn.Parameter(torch.empty(blocks, device=device, dtype=dtype))
        else:
            self.register_buffer("scale", torch.empty((), device=device, dtype=dtype))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        weight = self.quaternions
        draw = INITIAL_LAWS[self.weight_init or "unitary"]
        weight.copy_(draw(weight.shape[1:], std=0.5, device=weight.device, dtype=weight.dtype))
        # 9 of n^2 entries are those of a rotation, whose mean square is 1/3.
        self.scale.fill_(self.n * (self.variance / 3) ** 0.5 if self._scales() else 1.0)

    def _scales(self) -> bool:
        """Whether the scale is learned."""
        return isinstance(self.scale, nn.Parameter)

    def dense(self) -> Tensor:
        w = self.quaternions  # by indices, because tracers cannot follow a loop over a tensor
        rotations = rotation_of_parts(w[0], w[1], w[2], w[3])  # (o, c, p, q)
        blocks = (self.scale[..., None, None] * rotations).permute(2, 0, 3, 1)
        real = self.n - 3
        return F.pad(blocks, (0, 0, real, 0, 0, 0, real, 0)).reshape(self.shape)

    def build_cost(self) -> int:
        return 2 * self.shape[0] * self.shape[1]  # about 20 for the 9 entries of a rotation

    # ------------------------------------------------------------------ fitting

    def _fit(self, target: Tensor, gram: Tensor | None) -> None:
        rows, columns = self.quaternions.shape[1:]
        if not self._scales() and not target.any():
            raise FitError(
                "target of fit_ is zero, and rotations have a fixed size, so none is near it; use scale=True, or leave "
                "this layer as it is"
            )
        real = self.n - 3
        blocks = target.double().reshape(self.n, rows, self.n, columns)[real:, :, real:].permute(1, 3, 0, 2)
        self._take(slice(None), blocks, blocks.new_full((), 3.0))
        if gram is not None:
            self._refine(target.double(), gram.double())

    def _take(self, columns: slice | int, wanted: Tensor, size: Tensor) -> None:
        """Set blocks to the rotations, or scaled ones, that maximise <R, wanted>; ``size`` is ||R||^2, weighted."""
        vectors, values = nearest_rotation(wanted)
        best, value = vectors[..., -1], values[..., -1]
        if self._scales():  # a negative scale may be nearer
            negative = values[..., 0].abs() > value
            best = torch.where(negative[..., None], vectors[..., 0], best)
            value = torch.where(negative, values[..., 0], value)
            self.scale[:, columns] = (value / size.clamp(min=torch.finfo(size.dtype).tiny)).to(self.scale)
        self.quaternions[:, :, columns] = best.movedim(-1, 0).to(self.quaternions)

    def _refine(self, target: Tensor, gram: Tensor, sweeps: int = 20, tolerance: float = 1e-4) -> None:
        """Weighted fit: for one column of blocks after the other the best rotations given all others, exactly.

        <R G R^T> does not depend on R where G is the Gram matrix of the three inputs, so the best rotation is again
        that of one 3x3 matrix.
        """
        rows, columns = self.quaternions.shape[1:]
        real = self.n - 3
        best = relative_error(self.dense(), target, gram)
        for _ in range(sweeps):
            before = [tensor.clone() for tensor in (self.quaternions, self.scale)]
            pull = (self.dense().double() - target) @ gram  # half the gradient of the squared error
            for column in range(columns):
                inputs = torch.arange(real, self.n, device=gram.device) * columns + column
                own = gram[inputs][:, inputs]
                old = self._column(column)
                wanted = old @ own - pull.reshape(self.n, rows, -1)[real:][:, :, inputs].permute(1, 0, 2)
                self._take(column, wanted, own.trace())
                change = (self._column(column) - old).permute(1, 0, 2).reshape(3 * rows, 3)
                pull[real * rows :] += change @ gram[inputs]
            error = relative_error(self.dense(), target, gram)
            if not error < best:
                self.quaternions.copy_(before[0])
                self.scale.copy_(before[1])
                break
            gain, best = best - error, error
            if gain < tolerance * best:
                break

    def _column(self, column: int) -> Tensor:
        """The blocks of one column, (o, 3, 3), in double precision."""
        scale = self.scale[:, column, None, None] if self._scales() else self.scale
        return scale.double() * rotation_of_parts(*self.quaternions[:, :, column].double())

    @classmethod
    def _sized(cls, shape: tuple[int, int], budget: int, positions: int, options: dict[str, Any]) -> dict[str, Any]:
        raise OptionError(
            "family 'quaternion_rotation' has no size that a share could choose: it stores 1/4 of the dense numbers, "
            "4/9 with quaternion_format=False, and a quarter more with scale=True; leave share out"
        )

    def extra_repr(self) -> str:
        law = "" if self.weight_init is None else f", weight_init={self.weight_init!r}"
        return (
            f"shape={self.shape}, n={self.n}, scale={'learned' if self._scales() else 1}{law}, share={self.share:.3g}"
        )


register(
    Family(
        name="quaternion_rotation",
        cls=QuaternionRotation,
        title="Quaternion rotations",
        summary="Every block of 3x3 entries is the rotation of a quaternion, with or without a learned scale.",
        advice="Where channels are vectors of space whose lengths should survive; in wide layers with scale=True.",
        source="Parcollet et al. 2019, https://arxiv.org/abs/1806.04418 and pytorch-qnn",
        options={
            "scale": "whether every rotation has a learned scale, default False",
            "quaternion_format": "numbers are (real, x, y, z) with the real part ignored, default; else (x, y, z)",
            "weight_init": "law of the directions: 'unitary' (default: uniform rotations), 'quaternion' or 'random'",
        },
        sized_by="quaternion_format",
        parameters="4*out*in/n^2 (5*out*in/n^2 for scale=True)",
        cost="(rows + 2)*out*in",
        weight_decay={"quaternions": False, "scale": True},
        export_path="dense",
        expected_failures={
            "initial_law": "a rotation without scale has entries of mean square 1/3, whatever the width",
            "errors_are_true": "rotations have a fixed norm, so none is near the zero matrix",
        },
    )
)
