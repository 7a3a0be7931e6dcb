"""Sums of Kronecker products: parameterised hypercomplex multiplication (PHM, PHC) and fixed algebras.

    W = sum_{i=1..n} A[i] (x) S[i],        A (n, n, n), S (n, O/n, I/n)
    W[p*O/n + o, q*I/n + c] = sum_i A[i, p, q] S[i, o, c]

A says how the n components of a hypercomplex number mix; it is learned, or fixed to the table of an algebra.

Multiplying by W takes n^2 block products. If A is a sum of R rank-one tensors (see ``cp``), R of them are enough:

    A[i, p, q] = sum_{r=1..R} a[i, r] b[p, r] c[q, r]
    y_p = sum_r b[p, r] (sum_i a[i, r] S_i) (sum_q c[q, r] x_q)

Rows and columns are component major: the first O/n rows are component 0. On the matrix of a convolution, whose columns
are channels times kernel positions with the channel major, this *is* the PHC convolution.

Letters: O, I = rows and columns of W; n = dimension of the algebra; i, p, q = its components; o, c = row and column
inside a component; B = rows of the input.
"""

from __future__ import annotations

import math
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft.errors import OptionError, SizeError
from weft.parametrizations.algebra import (
    FIXED_TOLERANCE,
    LARGEST_AMPLIFICATION,
    LEARNED_TOLERANCE,
    Table,
    decompose,
    dimension,
    expected_rank,
    fast_product,
    multiplication_table,
)
from weft.parametrizations.base import Parametrization, Stage, StageShape
from weft.parametrizations.cp import Factors, amplification, compose
from weft.parametrizations.kronecker_fit import (
    alternate,
    best_blocks,
    kronecker_sum,
    nearest_kronecker_sum,
    nearest_of_rank,
)
from weft.parametrizations.quaternion import INITIAL_LAWS, check_weight_init
from weft.parametrizations.registry import Family, register

_FACTORS = ("block_mix", "output_mix", "input_mix")
_WORTHWHILE = 5 / 8  # of the n^2 block products: three for n = 2, as a complex A needs, are no faster than four


class Kronecker(Parametrization):
    """A sum of n Kronecker products, with learned or fixed first factors: 1/n of the numbers.

    Choose it to cut the numbers of a layer n-fold while it stays of full rank, and where channels come in groups of n
    that belong together (colours, microphone channels). Multiply-adds fall too, to R/n^2 of a dense layer's, where A
    has a decomposition in R products: for every named algebra of n up to 8, for ``rank``, and in evaluation for a
    learned A, where the products are not so much larger than their sum that single precision would err by 1e-5.

    Args:
        shape: (out, in) of the matrix; n divides out and the input channels, in/positions.
        n: dimension of the algebra, at least 1; default 4, or that of ``algebra``.
        algebra: None for learned A (PHM, PHC); a name (see ``algebras()``), ``"cl(p,q)"``, ``"cl(p,q,r)"``; or a
            table of your own, (n, n, n).
        rank: None; or, for a learned A, the number R of products to keep it in from the start: R = n is a learned
            diagonalisable algebra with 1/n of a dense layer's multiply-adds. For a table of your own, the number of
            products to decompose it into.
        weight_init: for n = 4, law of the blocks as quaternions: "quaternion", "unitary" or "random", see
            ``weft.parametrizations.quaternion``; None for the law below.
        positions: kernel positions per input channel, see ``Parametrization``.
        variance: of the entries after ``reset_parameters``, None for 1/(3*in).
        device: as in torch.
        dtype: as in torch.

    Shape:
        dense(): (O, I)          linear(x): (..., I) -> (..., O)

    Parameters stored:
        mixing A (n, n, n): no weight decay (it is a direction, the scale is in S); a constant buffer if fixed;
        with ``rank``, block_mix, output_mix and input_mix, the factors a, b and c (n, R) instead.
        blocks S (n, O/n, I/n): weight decay.

    Initial law:
        S is uniform with the wanted variance; A is normal, scaled so that sum_i A[i, p, q]^2 = 1 for every (p, q):
        every entry of W then has exactly the wanted variance, for every draw of A. With ``rank`` the columns of the
        factors are random directions, scaled so that this holds on average over (p, q). A table is scaled the same way
        by S. A law of ``weight_init`` gives S the same variance, on average over its four components.

    Cost:
        n^3 + O*I/n numbers (3*n*R + O*I/n with ``rank``); n*O*I multiply-adds to build W; O*I + n^2*O per row by the
        factors, R/n^2*O*I + R*(O + I) by a decomposition.

    Raises:
        SizeError: n does not divide out or the input channels; a table that is not finite or not (n, n, n).
        OptionError: n contradicts ``algebra``, ``rank`` is out of range, given beside a named algebra, or cannot
            represent the table (the message names the error and the smallest rank found).
        UnknownNameError: there is no such algebra or law of the blocks.

    Source:
        Zhang et al. 2021, Beyond Fully-Connected Layers with Quaternions: Parameterization of Hypercomplex
        Multiplications with 1/n Parameters, https://arxiv.org/abs/2102.08597; Grassucci, Zhang, Comminiello 2022,
        PHNNs: Lightweight Neural Networks via Parameterized Hypercomplex Convolutions, https://arxiv.org/abs/2110.04176.
        Differs from them in the initial law, which there leaves W 4 to 24 times too small.

    Example:
        >>> p = Kronecker((8, 12), n=4)
        >>> tuple(p.dense().shape), p.mixing.numel() + p.blocks.numel()
        ((8, 12), 88)
        >>> [tuple(stage.matrix.shape) for stage in Kronecker((8, 12), algebra="quaternion").stages()]
        [(1, 8, 4), (8, 2, 3), (1, 4, 8)]
    """

    family = "kronecker"
    mixing: Tensor
    block_mix: Tensor
    output_mix: Tensor
    input_mix: Tensor

    def __init__(
        self,
        shape: tuple[int, int],
        *,
        n: int | None = None,
        algebra: str | Table | None = None,
        rank: int | None = None,
        weight_init: str | None = None,
        positions: int = 1,
        variance: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(shape, positions=positions, variance=variance)
        fixed = None if algebra is None else dimension(algebra)
        if n is not None and (n < 1 or fixed not in (None, n)):
            raise OptionError(f"n must be at least 1 and that of the algebra ({fixed}), got {n}")
        self.n = int(n or fixed or 4)
        self.rank = rank
        self.algebra = algebra if algebra is None or isinstance(algebra, str) else "table"
        self.weight_init = weight_init
        check_weight_init(weight_init, self.n)
        _check_divides(self.n, self.shape[0], self.shape[1] // positions)
        self._constant = None if algebra is None else multiplication_table(algebra, "cpu", torch.float64)
        self._constant_factors = self._find_products()
        self._last_factors: Factors | None = None  # only a start for the next decomposition: A moves little
        kwargs: dict[str, Any] = {"device": device, "dtype": dtype}
        if self._constant is not None:
            self.register_buffer("mixing", torch.empty((self.n,) * 3, **kwargs))
            for name, factor in zip(_FACTORS, self._constant_factors or (), strict=False):
                self.register_buffer(name, torch.empty(factor.shape, **kwargs), persistent=False)
        elif rank is None:
            self.mixing = nn.Parameter(torch.empty((self.n,) * 3, **kwargs))
        else:
            for name in _FACTORS:
                setattr(self, name, nn.Parameter(torch.empty((self.n, rank), **kwargs)))
        size = (self.n, self.shape[0] // self.n, self.shape[1] // self.n)
        self.blocks = nn.Parameter(torch.empty(size, **kwargs))
        self.reset_parameters()

    def _find_products(self) -> Factors | None:
        """The decomposition of a fixed algebra, None where there is none to be had; refuse ranks that make no sense."""
        if self.rank is not None and not 1 <= self.rank <= self.n**2:
            raise OptionError(f"rank must be in 1..n^2 = 1..{self.n**2} products, got {self.rank}")
        if self._constant is None:
            return None
        if self.rank is None:
            known = isinstance(self.algebra, str) and expected_rank(self.algebra, self.n) is not None
            if not known or not isinstance(self.algebra, str):
                return None
            product = fast_product(self.algebra)
            self.stage_error = float((compose(product) - self._constant).norm() / self._constant.norm())
            return product
        factors, error = decompose(self._constant, self.rank)
        if error > FIXED_TOLERANCE * 10:
            least, found = decompose(self._constant)
            fewest = least[0].shape[1] if found <= LEARNED_TOLERANCE else self.n**2
            raise OptionError(
                f"rank={self.rank} cannot represent algebra {self.algebra!r}: relative error {error:.2g}; the smallest "
                f"rank found is {fewest}; leave rank out to use it"
            )
        self.stage_error = error
        return factors

    @torch.no_grad()
    def reset_parameters(self) -> None:
        std = self.variance**0.5
        if self._constant is not None:
            # sum_i T[i, p, q]^2 is 1 for a division algebra; in others, such as the dual numbers, some entries are 0.
            std *= self.n / float(self._constant.norm())
            self._restore_constants()
        elif self.rank is None:
            self.mixing.normal_()
            self.mixing.div_(self.mixing.norm(dim=0, keepdim=True))
        else:
            for factor in self._products():  # signs would do, but for small n the products often cancel
                factor.normal_()
                factor.div_(factor.norm(dim=0, keepdim=True))
            scale = (self.n / compose(self._products()).norm().clamp(min=1e-6)) ** (1 / 3)
            for factor in self._products():
                factor.mul_(scale)
        draw = INITIAL_LAWS.get(self.weight_init or "")
        if draw is None:
            nn.init.uniform_(self.blocks, -std * 3**0.5, std * 3**0.5)
        else:
            self.blocks.copy_(draw(self.blocks.shape[1:], std, device=self.blocks.device, dtype=self.blocks.dtype))

    @torch.no_grad()
    def _restore_constants(self) -> None:
        """The table and its decomposition as they are in full precision, whatever dtype they passed through."""
        if self._constant is not None and not self.mixing.is_meta:
            self.mixing.copy_(self._constant)
            if self._constant_factors is not None:
                for buffer, factor in zip(self._products(), self._constant_factors, strict=True):
                    buffer.copy_(factor)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self._restore_constants()
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        if self._constant_factors is not None and self.block_mix.is_meta and not self.mixing.is_meta:
            for name, factor in zip(_FACTORS, self._constant_factors, strict=True):  # assigned: no state holds them
                setattr(self, name, factor.to(self.mixing))

    def _products(self) -> Factors:
        """The factors a, b and c that are stored."""
        return self.block_mix, self.output_mix, self.input_mix

    def _mixing(self) -> Tensor:
        learned_products = self.rank is not None and self._constant is None
        return compose(self._products()) if learned_products else self.mixing

    def dense(self) -> Tensor:
        return kronecker_sum(self._mixing(), self.blocks)

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        n, rows, columns = self.blocks.shape
        # First S on every component of x, then A mixes the n^2 results: z[b, q, i, o], y[b, p, o].
        z = F.linear(x.reshape(*x.shape[:-1], n, columns), self.blocks.reshape(n * rows, columns))
        z = z.reshape(*x.shape[:-1], n * n, rows)
        mixing = self._mixing().permute(1, 2, 0).reshape(n, n * n)
        y = (mixing.to(z.dtype) @ z).reshape(*x.shape[:-1], n * rows)
        return y if bias is None else y + bias.to(y.dtype)

    def rows(self, index: Tensor) -> Tensor:
        rows = self.shape[0] // self.n
        mixing = self._mixing()[:, index // rows].movedim(0, -1)  # (..., q, i)
        blocks = self.blocks[:, index % rows].movedim(0, -2)  # (..., i, c)
        return (mixing @ blocks).flatten(-2)

    def rows_cost(self, count: int) -> int:
        return count * self.n * self.shape[1]

    # ------------------------------------------------------------------ R products instead of n^2

    def _expected_rank(self, evaluation: bool) -> int | None:
        """R, known without looking at values; None where there is no decomposition to be had."""
        if self.n == 1 or self.blocks.dtype not in (torch.float32, torch.float64):
            return None  # in half precision the sums of products lose 3 to 10 times more than they win
        if self.rank is not None or self._constant_factors is not None:
            return len(self.block_mix[0])
        return expected_rank(None, self.n) if evaluation and self._constant is None else None

    def _factors(self) -> Factors | None:
        """a, b and c of the decomposition of A, stored or found now."""
        if self.rank is not None or self._constant_factors is not None:
            return self._products()
        if self._constant is not None:
            return None
        factors, error = decompose(self.mixing, start=self._last_factors, most=int(_WORTHWHILE * self.n**2))
        if error > LEARNED_TOLERANCE or amplification(factors) > LARGEST_AMPLIFICATION:
            self._last_factors = None  # what led here is no start for the next search
            return None
        self._last_factors, self.stage_error = factors, error
        return tuple(factor.to(self.blocks) for factor in factors)  # type: ignore[return-value]

    def stages(self) -> list[Stage] | None:
        factors = self._factors()
        if factors is None:
            return None
        a, b, c = factors
        n, rows, columns = self.blocks.shape
        products = (a.T @ self.blocks.reshape(n, rows * columns)).reshape(-1, rows, columns)
        return [Stage(c.T.unsqueeze(0), columns), Stage(products), Stage(b.unsqueeze(0), rows)]

    def stage_shapes(self, evaluation: bool = False) -> list[StageShape] | None:
        rank = self._expected_rank(evaluation)
        if rank is None:
            return None
        n, rows, columns = self.blocks.shape
        return [StageShape(1, rank, n, columns), StageShape(rank, rows, columns, 1), StageShape(1, n, rank, rows)]

    def stage_build_cost(self) -> int:
        return (self._expected_rank(True) or 0) * self.blocks.numel()

    def learned_algebra(self) -> Tensor | None:
        return self._mixing() if self._constant is None else None

    def cost(self, rows: int) -> int:
        return rows * (math.prod(self.shape) + self.n**2 * self.shape[0])

    def build_cost(self) -> int:
        composing = 0 if self.rank is None or self._constant is not None else self.rank * self.n**3
        return self.n * math.prod(self.shape) + composing

    # ------------------------------------------------------------------ fitting

    def _fit(self, target: Tensor, gram: Tensor | None) -> None:
        if self._constant is not None:
            self.blocks.copy_(best_blocks(self._constant.to(target), target, gram))
            return
        if not target.any():  # all factors zero would have no gradients, for ever
            self.reset_parameters()
            self.blocks.zero_()
            return
        if self.rank is not None:  # rounding errors of A, which has no small rank, would be decomposed too
            target, gram = target.double(), None if gram is None else gram.double()
        mixing, blocks = nearest_kronecker_sum(target, self.n)
        if gram is not None:
            mixing, blocks = alternate(mixing, blocks, target, gram)
        if self.rank is None:
            self.mixing.copy_(mixing)
        else:
            factors, blocks = nearest_of_rank(mixing, blocks, target, gram, self.rank)
            for parameter, factor in zip(self._products(), factors, strict=True):
                parameter.copy_(factor)
        self.blocks.copy_(blocks)

    @classmethod
    def _sized(cls, shape: tuple[int, int], budget: int, positions: int, options: dict[str, Any]) -> dict[str, Any]:
        sides = math.gcd(shape[0], shape[1] // positions)
        fits = [n for n in range(1, sides + 1) if sides % n == 0 and n**3 + math.prod(shape) // n <= budget]
        remedy = f"n={fits[0]} is the smallest that fits this share" if fits else "no n fits this share"
        raise OptionError(f"family 'kronecker' is sized by n, not by share, for shape {tuple(shape)}: {remedy}")

    def extra_repr(self) -> str:
        kind = "learned" if self.algebra is None else self.algebra
        rank = "" if self.rank is None else f", rank={self.rank}"
        return f"shape={self.shape}, n={self.n}, algebra={kind}{rank}, share={self.share:.3g}"


def _check_divides(n: int, rows: int, channels: int) -> None:
    for side, size in (("out_features (out_channels)", rows), ("in_features (in_channels)", channels)):
        if size % n:
            divisors = [d for d in range(1, size + 1) if size % d == 0]
            near = sorted(sorted(divisors, key=lambda d: abs(d - n))[:3])
            lower, upper = size // n * n, (size // n + 1) * n
            sizes = f"{lower} or {upper}" if lower else f"{upper}"
            raise SizeError(
                f"n must divide {side}: {n} does not divide {size}; "
                f"nearest sizes for n={n}: {sizes}; nearest n for {size}: {', '.join(map(str, near))}"
            )


register(
    Family(
        name="kronecker",
        cls=Kronecker,
        title="Sum of Kronecker products (PHM, PHC, quaternion)",
        summary="n Kronecker products of a small mixing matrix and a block, with a learned or a fixed algebra.",
        advice="1/n of the numbers at full rank, faster from 1024 wide; for channels in groups that belong together.",
        source="Zhang et al. 2021, https://arxiv.org/abs/2102.08597; Grassucci et al. 2022, https://arxiv.org/abs/2110.04176",
        options={
            "n": "dimension of the algebra; divides out and the input channels; default 4",
            "algebra": "None for a learned one; a name such as 'quaternion', 'octonion', 'cl(3,0)'; or a table",
            "rank": "number of products to keep a learned algebra in: R/n^2 of the multiply-adds",
            "weight_init": "for n = 4, law of the blocks: None, 'quaternion', 'unitary' or 'random'",
        },
        sized_by="n",
        parameters="n^3 + out*in/n (out*in/n for a fixed algebra; 3*n*rank + out*in/n for a learned one with rank)",
        cost="rows*(out*in + n^2*out)",
        weight_decay={"mixing": False, "block_mix": False, "output_mix": False, "input_mix": False, "blocks": True},
        lr_multiplier={"blocks": "n^0.5"},
        launches=8,  # two products, and reshapes and permutations that cost as much as small kernels
        export_path="dense",
    )
)
