"""Toeplitz-like matrices: of low displacement rank, a short sum of circulant times skew-circulant matrices.

    Z_1 W - W Z_-1 = sum_j g_j h_j^T,      W = 1/2 sum_j C(g_j) S(h_j reversed)

Z_f is the shift down whose last place comes back at the top times f; C(v) and S(v) have the columns v, Z_f v, Z_f^2 v,
... with f = 1 and f = -1. A rectangular W is the top left part of a square one.

Letters: O, I = rows and columns of W; B = rows of the input; N = max(O, I); R = displacement rank.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft.errors import OptionError
from weft.modes import is_autocast, is_plain, is_recording
from weft.parametrizations.base import Parametrization, relative_error, too_small
from weft.parametrizations.refine import refine
from weft.parametrizations.registry import Family, register
from weft.parametrizations.toeplitz_fit import bounded_steps, closed_form
from weft.parametrizations.toeplitz_products import toeplitz_like_matrix, toeplitz_like_product, transform_cost

#: Steps of the descent after the closed form, which alone is worth little on a matrix without structure.
_STEPS = 200
#: Rows that are transformed together where there are many, in training too: it keeps a row's 2R N numbers in the caches
#: and saves the memory of most temporaries, which makes a step at 4096 features and 1024 rows three times faster.
_CHUNK = 64


class ToeplitzLike(Parametrization):
    """A matrix of low displacement rank: what is left when it is shifted down the diagonal and taken off itself.

    Rank 2 holds every Toeplitz matrix, so every convolution along the features; sums, products and inverses of such
    matrices have small ranks too, Cauchy and Vandermonde matrices approximately. It has full rank with as few as 2N
    numbers and a product in N log N. Choose it for features in an order whose interactions depend on their distance
    (time series, spectra), for the smallest budgets, and for large layers; up to about 1000 features one dense product
    is faster in evaluation, and ``weft.Linear`` takes it.

    Args:
        shape: (out, in) of the matrix.
        rank: R, in 1..min(out, in); or use ``share``.
        positions: accepted and of no effect: no column is treated apart from its neighbours.
        variance: of the entries after ``reset_parameters``, None for 1/(3*in).
        device: as in torch.
        dtype: as in torch.

    Shape:
        dense(): (O, I)          linear(x): (..., I) -> (..., O)

    Parameters stored:
        left (R, N) with the rows g_j, right (R, N) with the rows h_j; both take weight decay.

    Initial law:
        both uniform with the same variance 2 (v / (R N))^(1/2), for v the wanted one: every entry of W is half a sum
        of R N products of two of their numbers.

    Cost:
        2 R N numbers; per row 2R + 2 real Fourier transforms of length N, and 2R more for the parameters, once per
        call. In half precision these run in fp32. Where a program is recorded (``torch.compile``, export, ONNX,
        tracing, ``vmap``) W is built in real arithmetic instead, as nothing there takes complex numbers: N^2 (2R + 33)
        multiply-adds, and more time than these for moving numbers; convolutions build it in training, too. A length
        with a prime factor above 7, or an odd one, is several times slower.

    Raises:
        OptionError: ``rank`` is missing or out of range.

    Source:
        Kailath, Kung and Morf 1979, Displacement ranks of matrices and linear equations,
        https://doi.org/10.1016/0022-247X(79)90124-0; the formula for W in Pan 2001, Structured Matrices and
        Polynomials, chapter 4; as a layer Sindhwani, Sainath and Kumar 2015, Structured Transforms for Small-Footprint
        Deep Learning, https://arxiv.org/abs/1510.01722, and Kissel and Diepold 2023, Structured Matrices and Their
        Application in Neural Networks: A Survey, https://doi.org/10.1007/s00354-023-00226-1. Differs from them in
        rectangular shapes, and in a fit that goes on after the singular value decomposition.

    Example:
        >>> p = ToeplitzLike((8, 12), rank=2)
        >>> tuple(p.dense().shape), p.num_parameters
        ((8, 12), 48)
        >>> ToeplitzLike.within((300, 300), share=0.0134).rank
        2
    """

    family = "toeplitz_like"

    def __init__(
        self,
        shape: tuple[int, int],
        *,
        rank: int | None = None,
        positions: int = 1,
        variance: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(shape, positions=positions, variance=variance)
        self.rank, self.order = self._checked_rank(rank), max(self.shape)
        self.left = nn.Parameter(torch.empty((self.rank, self.order), device=device, dtype=dtype))
        self.right = nn.Parameter(torch.empty((self.rank, self.order), device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        # Var(W) = R N Var(left) Var(right) / 4; uniform on [-b, b] has variance b^2/3.
        bound = (6 * (self.variance / (self.rank * self.order)) ** 0.5) ** 0.5
        nn.init.uniform_(self.left, -bound, bound)
        nn.init.uniform_(self.right, -bound, bound)

    def dense(self) -> Tensor:
        return toeplitz_like_matrix(self.left, self.right, self.order, self.shape)

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        if is_recording() or not is_plain() or x.numel() == 0 or not x.is_floating_point():
            return F.linear(x, self.dense(), bias)
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if is_autocast(device) and x.dtype != torch.float64 else x.dtype
        working = torch.promote_types(x.dtype, torch.float32)  # there is no FFT in half precision
        rows, left, right = x.reshape(-1, self.shape[1]).to(working), self.left.to(working), self.right.to(working)
        parts = rows.split(_CHUNK if len(rows) > 2 * _CHUNK else len(rows))
        y = torch.cat([toeplitz_like_product(part, left, right, self.shape[0]) for part in parts])
        y = y.reshape(x.shape[:-1] + self.shape[:1]).to(dtype)
        return y if bias is None else y + bias.to(dtype)

    @property
    def macs_per_transform(self) -> int:
        """Multiply-adds of one Fourier transform of length N, 5/4 N log2 N where N is a smooth number."""
        return transform_cost(self.order)

    def cost(self, rows: int) -> int:
        transforms = rows * (2 * self.rank + 2) + 2 * self.rank
        return transforms * self.macs_per_transform + 4 * rows * self.rank * self.order

    @property
    def traffic(self) -> int:
        widened = 2 if self.left.element_size() < 4 else 1  # half precision is passed on as single
        return 4 * widened * (self.rank + 1) * self.order

    def build_cost(self) -> int:
        # The two shifts move twice N^2 numbers several times, which takes as long as some 400 multiply-adds each.
        return (2 * self.rank + 433) * self.order**2

    def _fit(self, target: Tensor, gram: Tensor | None) -> None:
        # In double precision: a displacement forgets most of the digits that its matrix has.
        worker = type(self)(self.shape, rank=self.rank, device=target.device, dtype=torch.float64)
        wanted = target.double()
        left, right = closed_form(wanted, self.rank)
        worker.left.copy_(left)
        worker.right.copy_(right)
        if relative_error(worker.dense(), wanted) > 1e-12:
            steps = bounded_steps(_STEPS, self.order)
            refine(worker, wanted, steps=steps)
            if gram is not None:
                refine(worker, wanted, gram.double(), steps=steps)
        self.left.copy_(worker.left)
        self.right.copy_(worker.right)

    @classmethod
    def _sized(cls, shape: tuple[int, int], budget: int, positions: int, options: dict[str, Any]) -> dict[str, Any]:
        if options.get("rank") is not None:
            raise OptionError(
                f"give rank or share to 'toeplitz_like', not both; got rank={options['rank']} beside a share"
            )
        rank = min(budget // (2 * max(shape)), *shape)
        if rank < 1:
            raise too_small("toeplitz_like", shape, 2 * max(shape))
        return {"rank": rank}

    def extra_repr(self) -> str:
        return f"shape={self.shape}, rank={self.rank}, share={self.share:.3g}"


register(
    Family(
        name="toeplitz_like",
        cls=ToeplitzLike,
        title="Toeplitz-like",
        summary="Low displacement rank: a short sum of circulant times skew-circulant matrices.",
        advice="For features in an order whose interactions depend on their distance, and for the smallest budgets.",
        source="Kailath, Kung and Morf 1979, https://doi.org/10.1016/0022-247X(79)90124-0; as a layer Sindhwani et al. "
        "2015, https://arxiv.org/abs/1510.01722",
        options={"rank": "displacement rank R, 1..min(out, in), 2 for Toeplitz matrices; or give share"},
        parameters="2*rank*max(out, in)",
        cost="(rows*(2*rank + 2) + 2*rank)*macs_per_transform + 4*rows*rank*max(out, in)",
        weight_decay={"left": True, "right": True},
        lr_multiplier=dict.fromkeys(("left", "right"), "0.03*(max(out, in)/rank)^0.5/gain^0.5"),
        sgd_multiplier=dict.fromkeys(("left", "right"), "0.05/rank^0.5/gain"),
        launches=45,
        efficiency=0.3,
        export_path="dense",  # the factored product builds the matrix there, too
    )
)
