"""Low displacement rank with learned operators: powers of two tridiagonal operators, summed around a low-rank matrix.

    W = sum_(j<q) A^j G H^T B^j = sum_(i<=r) K(A, g_i) K(B^T, h_i)^T,      K(A, g) = [g, A g, ..., A^(q-1) g]
    W - A W B = G H^T - A^q G H^T B^q, of rank at most 2r: the displacement of W

A (O, O) and B (I, I) are tridiagonal with two corners: three diagonals each, that go around.

Letters: O, I = rows and columns of W; R = rank r; q = min(O, I) terms; s = powers taken in one step.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx._symbolic_trace import is_fx_symbolic_tracing

from weft.errors import OptionError
from weft.modes import is_autocast
from weft.parametrizations import ldr_krylov as krylov
from weft.parametrizations.base import Parametrization, too_small
from weft.parametrizations.ldr_fit import corners, fit, shift
from weft.parametrizations.registry import Family, register


class LDR(Parametrization):
    """Low displacement rank with learned operators: W = sum_(j<q) A^j G H^T B^j, A and B tridiagonal with corners.

    With shifts for A and B these are sums of products of Toeplitz matrices; with diagonal ones, Cauchy- and
    Vandermonde-like matrices; with zeros, low rank. All but the last have full rank in a few numbers per feature, and
    here the structure itself is learned. Choose it where numbers are dear: from a rank of a few on it is nearer to most
    matrices than ``low_rank`` with as many numbers. It is not fast: in training the powers cost more than a dense
    layer. In evaluation the weight is built once and kept, and the layer is as fast as a dense one.

    Args:
        shape: (out, in) of the matrix; of two sides A or B of 1 or 2, where the three diagonals meet, their sum counts.
        rank: R of the sum, in 1..min(out, in); or use ``share``.
        positions: kernel positions per input channel, see ``Parametrization``.
        variance: of the entries after ``reset_parameters``, None for 1/(3*in).
        device: as in torch.
        dtype: as in torch.

    Shape:
        dense(): (O, I)          linear(x): (..., I) -> (..., O)

    Parameters stored:
        left (O, R): G; right (I, R): H; both take weight decay. row_operator (3, O): A, the entries of row i at the
        columns i - 1, i and i + 1, which go around; column_operator (3, I): B likewise. The operators take none, which
        would shrink A^j more and more, and a small part of the learning rate: their change is felt in all powers. (With
        Adam at 1e-2, the loss of a layer of 1024 first grows tenfold at the full rate, and not at three tenths of it.)

    Initial law:
        A and B are shifts of which one changes the sign of what goes around: orthogonal, so no power grows or vanishes.
        G and H are uniform, of equal variance. Every entry of W is then a sum of R*q products of independent numbers.

    Cost:
        R*(O + I) + 3*(O + I) numbers. Some 2*q*(O + I)*(R + 3) multiply-adds per row, or R*q*O*I to build W (from R = 9
        on 6*q*O*I), and products of small matrices for the powers.

    Raises:
        OptionError: ``rank`` is missing or outside 1..min(out, in).

    Source:
        Thomas et al. 2018, Learning Compressed Transforms with Low Displacement Rank, section 3 and proposition 2,
        https://arxiv.org/abs/1810.02309, there for square matrices with as many terms as rows. The shorter side is
        enough for any rank, and makes rectangular Toeplitz matrices members too. Terms are summed in long steps of
        powers, see ``ldr_krylov.py``.

    Example:
        >>> p = LDR((8, 12), rank=1)
        >>> tuple(p.dense().shape), p.num_parameters
        ((8, 12), 80)
    """

    family = "ldr"

    #: Up to this side an operator is one matrix; longer ones are cut into stretches.
    _whole: ClassVar[int] = 128
    #: Up to this rank W is the product of two Krylov blocks, of r*q columns; beyond, the steps are taken by W itself.
    _few: ClassVar[int] = 8
    #: Most steps of descent in ``fit_``.
    _descent: ClassVar[int] = 600

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
        self.rank, self.terms = self._checked_rank(rank), min(self.shape)
        out_features, in_features = self.shape
        self.row_operator = nn.Parameter(torch.empty((3, out_features), device=device, dtype=dtype))
        self.column_operator = nn.Parameter(torch.empty((3, in_features), device=device, dtype=dtype))
        self.left = nn.Parameter(torch.empty((out_features, self.rank), device=device, dtype=dtype))
        self.right = nn.Parameter(torch.empty((in_features, self.rank), device=device, dtype=dtype))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        row, column = corners(self.shape)
        self.row_operator.copy_(shift(self.shape[0], row))
        self.column_operator.copy_(krylov.transposed(shift(self.shape[1], column)))
        # Var(W) = R q Var(G) Var(H); uniform on [-b, b] has variance b^2/3.
        bound = (9 * self.variance / (self.rank * self.terms)) ** 0.25
        nn.init.uniform_(self.left, -bound, bound)
        nn.init.uniform_(self.right, -bound, bound)

    # ------------------------------------------------------------------ products

    def _is_whole(self) -> bool:
        return max(self.shape) <= self._whole or self.terms == 1

    def _sides(self, longer: int = 1) -> tuple[krylov.Stretches, krylov.Stretches]:
        reach = krylov.reach_for(self.terms, longer)
        return krylov.stretches(self.shape[0], reach), krylov.stretches(self.shape[1], reach)

    def _factors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """A, B, G and H, at least in single precision: powers of rounded numbers are far from the rounded power."""
        factors = self.row_operator, self.column_operator, self.left, self.right
        if is_fx_symbolic_tracing() or self.left.dtype not in (torch.bfloat16, torch.float16):
            return factors
        a, b, g, h = factors
        return a.float(), b.float(), g.float(), h.float()

    def dense(self) -> Tensor:
        if is_fx_symbolic_tracing():
            return self._matrix()
        with _full_precision(self.left.device.type):
            return self._matrix().to(self.left.dtype)

    def _matrix(self) -> Tensor:
        a, b, g, h = self._factors()
        b = krylov.transposed(b)
        if self._is_whole():
            rows = krylov.whole_block(a, g, self.terms, self.rank)
            return rows @ krylov.whole_block(b, h, self.terms, self.rank).T
        if self.rank <= self._few:
            row_side, column_side = self._sides()
            rows = krylov.stepped_block(a, g, row_side, self.terms, self.rank)
            return rows @ krylov.stepped_block(b, h, column_side, self.terms, self.rank).T
        # Horner's rule for W = W_s + A^s (W_s + A^s (...) B^s) B^s, where W_s has the first s terms.
        row_side, column_side = self._sides(_LONGER)
        rows, row_power = krylov.local_block(a, g, row_side, self.rank)
        columns, column_power = krylov.local_block(b, h, column_side, self.rank)
        steps, rest = divmod(self.terms, row_side.reach)
        few = rows @ columns.T
        matrix = rows[:, : rest * self.rank] @ columns[:, : rest * self.rank].T if rest else few
        for _ in range(steps if rest else steps - 1):
            half = krylov.step(row_power, matrix, row_side)
            matrix = few + krylov.step(column_power, half.T, column_side).T
        return matrix

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        if is_fx_symbolic_tracing():
            y = self._product(x)
            return y if bias is None else y + bias
        dtype = x.dtype
        if is_autocast(x.device.type) and dtype != torch.float64:
            dtype = torch.get_autocast_dtype(x.device.type)
        if dtype in (torch.bfloat16, torch.float16):
            x = x.to(torch.promote_types(self.left.dtype, torch.float32))
        with _full_precision(x.device.type):
            y = self._product(x).to(dtype)
        return y if bias is None else y + bias.to(dtype)

    def _product(self, x: Tensor) -> Tensor:
        """x W^T: coefficients c_j = H^T B^j x, and y = sum_j A^j G c_j by Horner's rule, s powers at a time."""
        a, b, g, h = self._factors()
        if self._is_whole():
            rows = krylov.whole_block(a, g, self.terms, self.rank)
            columns = krylov.whole_block(krylov.transposed(b), h, self.terms, self.rank)
            return F.linear(x @ columns, rows)
        row_side, column_side = self._sides()
        rows, row_power = krylov.local_block(a, g, row_side, self.rank)
        columns, _ = krylov.local_block(krylov.transposed(b), h, column_side, self.rank)
        column_power = krylov.local_power(b, column_side)
        z, coefficients, left = x.reshape(-1, self.shape[1]).T, [], self.terms
        while left > 0:
            width = min(left, row_side.reach) * self.rank
            coefficients.append(columns[:, :width].T @ z)
            left -= row_side.reach
            if left > 0:
                z = krylov.step(column_power, z, column_side)
        y = rows[:, :width] @ coefficients.pop()
        for c in reversed(coefficients):
            y = torch.addmm(krylov.step(row_power, y, row_side), rows, c)
        return y.T.reshape(x.shape[:-1] + (self.shape[0],))  # noqa: RUF005  torch.fx cannot unpack a shape

    @property
    def step_cost(self) -> int:
        """Multiply-adds per row of the steps of a product."""
        if self._is_whole():
            return 0
        row_side, column_side = self._sides()
        return (-(-self.terms // row_side.reach) - 1) * (row_side.step_cost + column_side.step_cost)

    @property
    def power_cost(self) -> int:
        """Multiply-adds of the powers that a product needs, for any number of rows."""
        if self._is_whole():
            return sum(krylov.whole_cost(side, self.terms, self.rank) for side in self.shape)
        row_side, column_side = self._sides()
        # What takes the input B^s further is a power of its own: that of B^T comes with the Krylov block, unused.
        return row_side.block_cost(self.rank) + column_side.block_cost(self.rank) + column_side.power_cost

    def cost(self, rows: int) -> int:
        return rows * (self.rank * self.terms * sum(self.shape) + self.step_cost) + self.power_cost

    def build_cost(self) -> int:
        size = math.prod(self.shape)
        if self._is_whole():
            return self.power_cost + self.rank * self.terms * size
        if self.rank <= self._few:
            blocks = sum(krylov.stepped_cost(side, self.terms, self.rank) for side in self._sides())
            return blocks + self.rank * self.terms * size
        row_side, column_side = self._sides(_LONGER)
        steps, rest = divmod(self.terms, row_side.reach)
        each = row_side.step_cost * self.shape[1] + column_side.step_cost * self.shape[0]
        prepared = row_side.block_cost(self.rank) + column_side.block_cost(self.rank)
        return prepared + (row_side.reach + rest) * self.rank * size + (steps if rest else steps - 1) * each

    # ------------------------------------------------------------------ fitting

    def _fit(self, target: Tensor, gram: Tensor | None) -> None:
        fit(self, target, gram, self._descent)

    @classmethod
    def _sized(cls, shape: tuple[int, int], budget: int, positions: int, options: dict[str, Any]) -> dict[str, Any]:
        if options.get("rank") is not None:
            raise OptionError(f"give rank or share to 'ldr', not both; got rank={options['rank']} beside a share")
        operators = 3 * sum(shape)
        rank = min((budget - operators) // sum(shape), *shape)
        if rank < 1:
            raise too_small("ldr", shape, operators + sum(shape))
        return {"rank": rank}

    def extra_repr(self) -> str:
        return f"shape={self.shape}, rank={self.rank}, share={self.share:.3g}"


#: W in place of a few vectors makes steps dear: they are longer by this factor.
_LONGER = 4


def _full_precision(device: str) -> contextlib.AbstractContextManager[Any]:
    """No autocast: its half precision would be raised to the q-th power."""
    return torch.autocast(device, enabled=False) if is_autocast(device) else contextlib.nullcontext()


register(
    Family(
        name="ldr",
        cls=LDR,
        title="Low displacement rank",
        summary="Powers of two learned tridiagonal operators, summed around a low-rank matrix.",
        advice="A full-rank matrix in a few numbers per feature; slow to train, as fast as dense in evaluation.",
        source="Thomas et al. 2018, section 3, https://arxiv.org/abs/1810.02309",
        options={"rank": "of the displacement's half, 1..min(out, in); or give share"},
        parameters="(rank + 3)*(out + in)",
        cost="rows*(rank*terms*(out + in) + step_cost) + power_cost",
        weight_decay={"row_operator": False, "column_operator": False, "left": True, "right": True},
        lr_multiplier={  # a step on an operator acts in all of its powers
            **dict.fromkeys(("row_operator", "column_operator"), "0.2/gain"),
            **dict.fromkeys(("left", "right"), "0.03*(max(out, in)/(2*rank))^0.5/gain^0.5"),
        },
        sgd_multiplier={
            **dict.fromkeys(("row_operator", "column_operator"), "0.02/gain^2"),
            **dict.fromkeys(("left", "right"), "0.02/rank^0.5/gain"),
        },
        launches=100,  # a chain of small products
        efficiency=0.25,
        export_path="dense",
        expected_failures={"residual_is_orthogonal": "not convex: refined by a bounded number of steps"},
    )
)
