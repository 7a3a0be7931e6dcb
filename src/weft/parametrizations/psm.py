"""Product of sparse matrices: W = S_1 S_2 ... S_J, each with a fixed pattern of non-zeros.

    y = S_1 (S_2 (... (S_J x))),        (S_j x)[r] = sum_(e: row(e) = r) value(e) x[column(e)]

Letters: O, I = rows and columns of W; Q = max(O, I), the width between the factors; J = number of factors; T = stored
non-zeros of all factors together.
"""

from __future__ import annotations

import functools
import itertools
import math
import warnings
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.fx._symbolic_trace import is_fx_symbolic_tracing

from weft.errors import BudgetError, OptionError
from weft.parametrizations.base import Parametrization, smallest_share
from weft.parametrizations.refine import refine
from weft.parametrizations.registry import Family, register

_LAST_SHARES = (0.5, 0.4, 0.6, 0.3, 0.7, 0.2, 0.8, 0.1, 0.9)


@functools.cache
def _say_beta_once() -> None:
    """Let torch say that its compressed tensors are in beta, once per process, to nobody."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.eye(1).to_sparse_csr()
        torch.eye(1).to_sparse_csc()


class _SparseProduct(torch.autograd.Function):
    """S x by the sparse kernels of the processor, with its gradients in the same form, of any order.

    The pattern is that of compressed rows; the same three tensors read as compressed columns are S^T.
    """

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, x: Tensor, starts: Tensor, columns: Tensor, transposed: bool, rows: int
    ) -> Tensor:
        ctx.save_for_backward(values, x, starts, columns)
        ctx.transposed = transposed
        make = torch.sparse_csc_tensor if transposed else torch.sparse_csr_tensor
        return make(starts, columns, values, size=(rows, x.shape[0]), check_invariants=False) @ x

    @staticmethod
    def backward(ctx: Any, *slopes: Any) -> Any:
        values, x, starts, columns = ctx.saved_tensors
        slope = slopes[0].contiguous()
        to_x = _SparseProduct.apply(values, slope, starts, columns, not ctx.transposed, len(x))
        left, right = (x, slope) if ctx.transposed else (slope, x)
        return _SampledProduct.apply(left, right, starts, columns), to_x, None, None, None, None


class _SampledProduct(torch.autograd.Function):
    """The entries of left right^T at a pattern: left (R, B), right (C, B)."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, starts: Tensor, columns: Tensor) -> Tensor:
        ctx.save_for_backward(left, right, starts, columns)
        size = (len(left), len(right))
        zeros = torch.sparse_csr_tensor(
            starts, columns, left.new_zeros(len(columns)), size=size, check_invariants=False
        )
        return torch.sparse.sampled_addmm(zeros, left, right.T, beta=0.0).values()

    @staticmethod
    def backward(ctx: Any, *slopes: Any) -> Any:
        left, right, starts, columns = ctx.saved_tensors
        slope = slopes[0].contiguous()
        to_left = _SparseProduct.apply(slope, right, starts, columns, False, len(left))
        to_right = _SparseProduct.apply(slope, left, starts, columns, True, len(right))
        return to_left, to_right, None, None


def _largest(matrix: Tensor, count: int) -> Tensor:
    """The matrix with its ``count`` largest entries only, of Frobenius norm 1; zero stays zero."""
    flat = matrix.flatten()
    kept = flat.abs().topk(count).indices
    sparse = torch.zeros_like(flat).scatter(0, kept, flat[kept])
    return (sparse / sparse.norm().clamp(min=torch.finfo(flat.dtype).tiny)).view_as(matrix)


def _spectral_norm(matrix: Tensor) -> Tensor:
    """By twenty power steps, from below."""
    v = matrix.sum(0) + matrix.abs().sum(0)
    for _ in range(20):
        v = matrix.T @ (matrix @ v)
        v = v / v.norm().clamp(min=torch.finfo(v.dtype).tiny)
    return (matrix @ v).norm()


def _product(factors: list[Tensor], size: int, like: Tensor) -> Tensor:
    return torch.linalg.multi_dot(factors) if len(factors) > 1 else factors[0] if factors else torch.eye(size).to(like)


def proximal_sweeps(
    target: Tensor, factors: list[Tensor], counts: list[int], sweeps: int
) -> tuple[list[Tensor], Tensor]:
    """Proximal alternating linearised minimisation of ||lambda S_1 ... S_J - target||, a factor at a time.

    Args:
        target: (O, I).
        factors: starts, dense tensors with zeros.
        counts: non-zeros of every factor.
        sweeps: how often each factor takes a step.

    Returns:
        the factors, of Frobenius norm 1, and lambda.

    Source:
        Le Magoarou and Gribonval 2016, Flexible multi-layer sparse approximations of matrices, figure 4,
        https://arxiv.org/abs/1506.07300.
    """
    factors, scale = list(factors), torch.ones((), dtype=target.dtype, device=target.device)
    for _ in range(sweeps):
        for j, count in enumerate(counts):
            left = _product(factors[:j], factors[j].shape[0], target)
            right = _product(factors[j + 1 :], factors[j].shape[1], target)
            steepness = 1.01 * (scale * _spectral_norm(left) * _spectral_norm(right)) ** 2
            slope = left.T @ (scale * (left @ factors[j] @ right) - target) @ right.T
            step = scale / steepness.clamp(min=1e-30)
            factors[j] = _largest(factors[j] - step * slope, count)
        matrix = _product(factors, 0, target)
        scale = (matrix * target).sum() / matrix.square().sum().clamp(min=torch.finfo(target.dtype).tiny)
    return factors, scale


def hierarchical_factors(target: Tensor, counts: list[int], sweeps: int) -> list[Tensor]:
    """Sparse factors whose product is near the target: split one off the rest, adjust all, go on.

    Args:
        target: (O, I).
        counts: non-zeros of every factor, the leftmost first.
        sweeps: of every split and every adjustment.

    Returns:
        the factors as dense tensors with zeros: (O, Q), (Q, Q), ..., (Q, I).

    Source:
        Le Magoarou and Gribonval 2016, figure 5.
    """
    width = max(target.shape)
    done: list[Tensor] = []
    rest, scale = target, torch.ones((), dtype=target.dtype, device=target.device)
    for j in range(1, len(counts)):
        start = [torch.eye(len(rest), width).to(target), target.new_zeros(width, rest.shape[1])]
        pair, scale = proximal_sweeps(rest, start, counts[j - 1 : j + 1], sweeps)
        done = [*done, *pair]
        if j > 1:
            done, scale = proximal_sweeps(target, done, counts[: j + 1], sweeps)
        rest = done.pop() if j + 1 < len(counts) else rest
    return [*done[:-1], done[-1] * scale]


class PSM(Parametrization):
    """A product of sparse matrices with fixed patterns: W = S_1 S_2 ... S_J.

    The nearest of all families to a matrix without structure, number for number: positions are stored beside the values
    (one index of 4 bytes per number, not counted in the share). Choose it where the error decides and the layer is
    large, on the CPU. Unstructured sparsity is slow: from a share of about 0.2, or on accelerators, or in training, a
    dense layer is faster; ``monarch`` has the regular pattern that is fast everywhere.

    Args:
        shape: (out, in) of the matrix.
        nonzeros: T, stored numbers of all factors together, in factors..out*in; or use ``share``.
        factors: J, number of factors, at least 2.
        last_share: part of the numbers that the last factor S_J gets, in (0, 1); those of the others rise or fall
            linearly towards it. None tries nine values in ``fit_`` (fewer for large matrices) and starts from 1/J.
        positions: kernel positions per input channel, see ``Parametrization``.
        variance: of the entries after ``reset_parameters``, None for 1/(3*in).
        device: as in torch.
        dtype: as in torch.

    Shape:
        dense(): (O, I)          linear(x): (..., I) -> (..., O)

    Parameters stored:
        values (T): the non-zeros of S_1, then S_2, ..., row by row; takes weight decay. Buffers of the pattern: row and
        column of each, and where rows start.

    Initial law:
        positions are spread evenly over rows and columns; values are uniform, with the variance that gives the entries
        of W the wanted one, counted over the paths through the factors.

    Cost:
        T numbers; T multiply-adds per row.

    Raises:
        OptionError: ``nonzeros``, ``factors`` or ``last_share`` is missing or outside its range.

    Source:
        Le Magoarou and Gribonval 2016, Flexible multi-layer sparse approximations of matrices and applications,
        sections III and IV, https://arxiv.org/abs/1506.07300.

    Example:
        >>> p = PSM((8, 12), nonzeros=40)
        >>> tuple(p.dense().shape), p.num_parameters, p.counts
        ((8, 12), 40, [20, 20])
    """

    family = "psm"

    def __init__(
        self,
        shape: tuple[int, int],
        *,
        nonzeros: int | None = None,
        factors: int = 2,
        last_share: float | None = None,
        positions: int = 1,
        variance: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(shape, positions=positions, variance=variance)
        if factors < 2:
            raise OptionError(f"factors must be at least 2, got {factors}")
        most = math.prod(self.shape)
        if nonzeros is None:
            raise OptionError(f"family 'psm' needs a size: give nonzeros={factors}..{most}, or share in (0, 1]")
        if not factors <= nonzeros <= most:
            raise OptionError(f"nonzeros must be in factors..out*in = {factors}..{most}, got {nonzeros}")
        if last_share is not None and not 0 < last_share < 1:
            raise OptionError(f"last_share must be in (0, 1), got {last_share}")
        self.nonzeros, self.factors, self.last_share = int(nonzeros), int(factors), last_share
        width = max(self.shape)
        edges = [self.shape[0], *[width] * (self.factors - 1), self.shape[1]]
        self.sides = list(itertools.pairwise(edges))
        counts = self._counts(1 / self.factors if last_share is None else last_share)
        if counts is None:
            raise OptionError(f"last_share={last_share} leaves no numbers for some of the {factors} factors; change it")
        self.counts = counts
        self.values = nn.Parameter(torch.empty(self.nonzeros, device=device, dtype=dtype))
        self.register_buffer("starts", torch.empty(sum(edges[:-1]) + self.factors, dtype=torch.int32, device=device))
        self.register_buffer("row_index", torch.empty(self.nonzeros, dtype=torch.int32, device=device))
        self.register_buffer("column_index", torch.empty(self.nonzeros, dtype=torch.int32, device=device))
        self.reset_parameters()

    starts: Tensor
    row_index: Tensor
    column_index: Tensor

    def _counts(self, last_share: float) -> list[int] | None:
        """Numbers of every factor, linear in its place; None where one would get none."""
        last = round(last_share * self.nonzeros)
        first = 2 * self.nonzeros / self.factors - last
        step = (last - first) / (self.factors - 1)
        counts = [round(first + step * j) for j in range(self.factors - 1)]
        counts[0] += self.nonzeros - last - sum(counts)
        return [*counts, last] if min(*counts, last) >= 1 else None

    def _set_pattern(self, places: list[Tensor]) -> None:
        """Take over the positions (row * columns + column, rising) of every factor."""
        rows = [place // columns for place, (_, columns) in zip(places, self.sides, strict=True)]
        starts = [
            torch.searchsorted(row, torch.arange(height + 1, device=row.device))
            for row, (height, _) in zip(rows, self.sides, strict=True)
        ]
        self.starts.copy_(torch.cat(starts))
        self.row_index.copy_(torch.cat(rows))
        self.column_index.copy_(
            torch.cat([place % columns for place, (_, columns) in zip(places, self.sides, strict=True)])
        )
        self.counts = [len(place) for place in places]

    def _spread(self) -> None:
        """Take the pattern of the start."""
        counts = self._counts(1 / self.factors if self.last_share is None else self.last_share)
        assert counts is not None, "the constructor has checked last_share"
        self._set_pattern([_even_pattern(side, counts[j], j) for j, side in enumerate(self.sides)])

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        was_meta = self.starts.is_meta
        super()._apply(fn, recurse)
        if was_meta and not self.starts.is_meta:
            self._spread()  # memory as it was found holds no positions
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        if not self.starts.is_meta:  # a fit may have shared the numbers out otherwise
            ends = torch.tensor([height + 1 for height, _ in self.sides]).cumsum(0) - 1
            self.counts = self.starts[ends.to(self.starts.device)].tolist()

    def _sparse(self) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Values, rows, columns and starts of every factor."""
        ends = [0, *itertools.accumulate(self.counts)]
        rows = [0, *itertools.accumulate(height + 1 for height, _ in self.sides)]
        return [
            (
                self.values[ends[j] : ends[j + 1]],
                self.row_index[ends[j] : ends[j + 1]],
                self.column_index[ends[j] : ends[j + 1]],
                self.starts[rows[j] : rows[j + 1]],
            )
            for j in range(self.factors)
        ]

    @torch.no_grad()
    def reset_parameters(self) -> None:
        if self.values.is_meta:
            return
        self._spread()
        paths = torch.ones(self.shape[1], dtype=torch.float64, device=self.values.device)
        for (_, row, column, _), (height, _) in zip(reversed(self._sparse()), reversed(self.sides), strict=True):
            paths = paths.new_zeros(height).index_add(0, row, paths[column.long()])
        # Values are independent, so the squares of W's entries sum to (paths) * Var^J.
        wanted = self.variance * math.prod(self.shape) / max(float(paths.sum()), 1.0)
        bound = (3 * wanted ** (1 / self.factors)) ** 0.5
        nn.init.uniform_(self.values, -bound, bound)

    def _filled(self) -> list[Tensor]:
        """The factors as dense tensors."""
        return [
            values.new_zeros(height * columns)
            .index_add(0, row.long() * columns + column, values)
            .reshape(height, columns)
            for (values, row, column, _), (height, columns) in zip(self._sparse(), self.sides, strict=True)
        ]

    def dense(self) -> Tensor:
        matrix, *others = self._filled()
        for other in others:
            matrix = matrix @ other
        return matrix

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        factors = list(zip(self._sparse(), self.sides, strict=True))[::-1]  # the last factor first
        if self._takes_kernels(x):
            _say_beta_once()
            size, y = (*x.shape[:-1], self.shape[0]), x.reshape(-1, self.shape[1]).T.contiguous()
            for (values, _, column, starts), (height, _) in factors:
                y = _SparseProduct.apply(values, y, starts, column, False, height)
            y = y.T.reshape(size)
        else:
            known = not is_fx_symbolic_tracing() and x.device.type != "meta"  # autocast knows neither
            if known and torch.is_autocast_enabled(x.device.type):
                x = x.to(torch.get_autocast_dtype(x.device.type))
            y = x
            for (values, row, column, _), (height, _) in factors:
                terms = y.index_select(-1, column.long()) * values.to(y.dtype)
                y = terms.new_zeros(terms.shape[:-1] + (height,)).index_add(-1, row.long(), terms)  # noqa: RUF005  torch.fx
        return y if bias is None else y + bias.to(y.dtype)

    def _takes_kernels(self, x: Tensor) -> bool:
        """Whether tensors are plain ones that the processor's sparse kernels take."""
        recorded = (
            torch.compiler.is_compiling() or is_fx_symbolic_tracing() or torch._C._get_tracing_state() is not None
        )
        if recorded or torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0:
            return False
        kinds = x.dtype == self.values.dtype and x.dtype in (torch.float32, torch.float64) and x.device.type == "cpu"
        plain = torch._C._len_torch_dispatch_stack() == 0 and not torch.is_autocast_enabled("cpu")
        return kinds and plain and x.numel() > 0 and torch.backends.mkl.is_available()

    def cost(self, rows: int) -> int:
        return rows * self.nonzeros

    def build_cost(self) -> int:
        return self.shape[0] * sum(math.prod(side) for side in self.sides[1:])

    # ------------------------------------------------------------------ fitting

    def _fit(self, target: Tensor, gram: Tensor | None) -> None:
        # Ten products of the width squared and cubed for every step: bounded to some 10^12 multiply-adds in all.
        width, size = max(self.shape), float(target.norm())
        affordable = 10**12 // (10 * self.factors**2 * width**3) + 1
        sweeps = max(5, min(60, affordable))
        shares = _LAST_SHARES[: max(1, min(9, affordable // sweeps))] if self.last_share is None else (self.last_share,)
        if size == 0:
            self.values.zero_()
            return
        tried = []
        for share in shares:
            counts = self._counts(share)
            if counts is not None:
                tried.append((*self._tried(target / size, counts, sweeps), counts))
        longer = min(5 * sweeps, affordable)
        if len(tried) > 1 and longer > sweeps:  # the three best, five times as long
            finalists = sorted(tried, key=lambda found: found[0])[:3]
            tried = [(*self._tried(target / size, counts, longer), counts) for _, _, counts in finalists]
        best = min(tried, key=lambda found: found[0])[1:]
        places = [factor.flatten().abs().topk(n).indices.sort().values for factor, n in zip(*best, strict=True)]
        self._set_pattern(places)
        even = size ** (1 / self.factors)  # equal norms: descent would be lame with all of the scale in one factor
        norms = [factor.norm().clamp(min=torch.finfo(target.dtype).tiny) for factor in best[0]]
        even *= float(torch.stack(norms).prod()) ** (1 / self.factors)
        values = [f.flatten()[place] / norm * even for f, place, norm in zip(best[0], places, norms, strict=True)]
        self.values.copy_(torch.cat(values))
        steps = min(100, max(5, 10**12 // (12 * self.build_cost())))
        refine(self, target, steps=steps)
        if gram is not None:
            refine(self, target, gram, steps=steps)

    @staticmethod
    def _tried(target: Tensor, counts: list[int], sweeps: int) -> tuple[float, list[Tensor]]:
        factors = hierarchical_factors(target, counts, sweeps)
        return float((_product(factors, 0, target) - target).norm()), factors

    @classmethod
    def _sized(cls, shape: tuple[int, int], budget: int, positions: int, options: dict[str, Any]) -> dict[str, Any]:
        if options.get("nonzeros") is not None:
            raise OptionError(f"give nonzeros or share to 'psm', not both; got nonzeros={options['nonzeros']}")
        factors = options.get("factors") or 2
        if budget < factors:
            least = smallest_share(factors, shape)
            remedy = f"the smallest share that works is {least:.6f}" if least <= 1 else "no share works: use 'dense'"
            raise BudgetError(
                f"share is too small for 'psm' of shape {tuple(shape)}: {remedy}", least if least <= 1 else None
            )
        return {"nonzeros": budget}

    def extra_repr(self) -> str:
        return f"shape={self.shape}, nonzeros={self.counts}, share={self.share:.3g}"


def _even_pattern(side: tuple[int, int], count: int, seed: int) -> Tensor:
    """Positions spread evenly over rows and columns: whole wrapped diagonals at random, and a part of one more."""
    rows, columns = side
    whole, rest = divmod(count, rows)
    generator = torch.Generator().manual_seed(seed)  # the draw of the values shall not depend on that of the pattern
    shift = torch.randperm(columns, generator=generator)[: whole + 1]
    row = torch.arange(rows)
    place = row.unsqueeze(1) * columns + (row.unsqueeze(1) * columns // rows + shift) % columns
    kept = torch.randperm(rows, generator=generator)[:rest] if rest else row[:0]
    parts = [place[:, :whole].flatten(), place[kept, whole] if rest else row[:0]]
    return torch.cat(parts).sort().values


register(
    Family(
        name="psm",
        cls=PSM,
        title="Product of sparse matrices",
        summary="A product of sparse matrices with fixed patterns.",
        advice="Nearest to a matrix without structure; faster than dense in large layers on the CPU only, see monarch.",
        source="Le Magoarou and Gribonval 2016, https://arxiv.org/abs/1506.07300",
        options={
            "nonzeros": "stored numbers of all factors, factors..out*in; or give share",
            "factors": "number of factors, from 2; default 2",
            "last_share": "part of the numbers in the last factor, in (0, 1); default: the best that fit_ finds",
        },
        parameters="nonzeros",
        cost="rows*nonzeros",
        weight_decay={"values": True},
        launches=40,  # compressed tensors are made and checked anew in every call
        efficiency=0.15,
    )
)
