"""Product of sparse matrices: W = S_1 S_2 ... S_J, each with a fixed pattern of non-zeros.

    y = S_1 (S_2 (... (S_J x))),        (S_j x)[r] = sum_(e: row(e) = r) value(e) x[column(e)]

Letters: O, I = rows and columns of W; Q = max(O, I), the width between the factors; J = number of factors; T = stored
non-zeros of all factors together.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx._symbolic_trace import is_fx_symbolic_tracing

from weft.errors import OptionError
from weft.modes import is_autocast, is_plain, is_recording
from weft.parametrizations.base import Parametrization, too_small
from weft.parametrizations.psm_fit import best_start, found, rounds, sparse_factors
from weft.parametrizations.refine import refine
from weft.parametrizations.registry import Family, register
from weft.parametrizations.sparse_product import Pattern, product_by_rows, sparse_product

#: Numbers of a chunk between two factors.
_CACHED = 2**17


def _counts(nonzeros: int, factors: int, last_share: float | None) -> list[int]:
    """Numbers of every factor, linear in its place; about as many for all where no share of the last is given."""
    last = round((1 / factors if last_share is None else last_share) * nonzeros)
    first = 2 * nonzeros / factors - last
    step = (last - first) / (factors - 1)
    counts = [round(first + step * j) for j in range(factors - 1)]
    counts[0] += nonzeros - last - sum(counts)
    if min(*counts, last) < 1:
        raise OptionError(f"last_share={last_share} leaves no numbers for some of the {factors} factors; change it")
    return [*counts, last]


class PSM(Parametrization):
    """A product of sparse matrices with fixed patterns: W = S_1 S_2 ... S_J.

    The nearest of all families to a matrix without structure, number for number: positions are stored beside the values
    (see ``share_with_indices``; they are not counted in the share). Choose it where the error decides and the layer is
    large, on the CPU. Unstructured sparsity is slow: from a share of about 0.2, in small layers, and on accelerators, a
    dense layer is faster; ``monarch`` has the regular pattern that is fast everywhere.

    Args:
        shape: (out, in) of the matrix.
        nonzeros: T, stored numbers of all factors together, in factors..out*in; or use ``share``.
        factors: J, number of factors, at least 2.
        last_share: part of the numbers that the last factor S_J gets, in (0, 1); those of the others rise or fall
            linearly towards it. None starts from 1/J, and ``fit_`` moves numbers between the factors.
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
        sections III and IV, https://arxiv.org/abs/1506.07300; fitted with inertia, from more starts and with swaps of
        positions, see ``psm_fit``.

    Example:
        >>> p = PSM((8, 12), nonzeros=40)
        >>> tuple(p.dense().shape), p.num_parameters, p.counts
        ((8, 12), 40, [20, 20])
    """

    family = "psm"
    fit_copies = 35.0

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
        self.counts = _counts(self.nonzeros, self.factors, last_share)
        self.values = nn.Parameter(torch.empty(self.nonzeros, device=device, dtype=dtype))
        self.register_buffer("starts", torch.empty(sum(edges[:-1]) + self.factors, dtype=torch.int32, device=device))
        self.register_buffer("row_index", torch.empty(self.nonzeros, dtype=torch.int32, device=device))
        self.register_buffer("column_index", torch.empty(self.nonzeros, dtype=torch.int32, device=device))
        # The same pattern column by column, for gradients; it follows from the others.
        order, column_starts = torch.empty_like(self.row_index), torch.empty(sum(edges[1:]) + self.factors)
        self.register_buffer("column_order", order, persistent=False)
        self.register_buffer("column_starts", column_starts.to(self.starts), persistent=False)
        self.reset_parameters()

    starts: Tensor
    row_index: Tensor
    column_index: Tensor
    column_order: Tensor
    column_starts: Tensor

    def _set_pattern(self, places: list[Tensor]) -> None:
        """Take over the positions (row * columns + column, rising) of every factor."""
        rows = [place // columns for place, (_, columns) in zip(places, self.sides, strict=True)]
        columns = [place % columns for place, (_, columns) in zip(places, self.sides, strict=True)]
        self.row_index.copy_(torch.cat(rows))
        self.column_index.copy_(torch.cat(columns))
        self.starts.copy_(torch.cat([_starts(row, height) for row, (height, _) in zip(rows, self.sides, strict=True)]))
        self._take_pattern()

    def _take_pattern(self) -> None:
        """Find out what follows from the stored pattern."""
        ends = torch.tensor([height + 1 for height, _ in self.sides]).cumsum(0) - 1
        self.counts = self.starts[ends.to(self.starts.device)].tolist()
        columns = self.column_index.split(self.counts)
        orders = [column.argsort(stable=True) for column in columns]
        starts = [_starts(c[o], width) for c, o, (_, width) in zip(columns, orders, self.sides, strict=True)]
        self.column_order, self.column_starts = torch.cat(orders).int(), torch.cat(starts).int()

    def _spread(self) -> None:
        """Take the pattern of the start."""
        counts = _counts(self.nonzeros, self.factors, self.last_share)
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
            self._take_pattern()

    def _sparse(self) -> list[tuple[Tensor, Pattern]]:
        """Values and pattern of every factor."""
        heights, widths = ([side[axis] + 1 for side in self.sides] for axis in (0, 1))
        parts = zip(
            _cut(self.values, self.counts),
            _cut(self.row_index, self.counts),
            _cut(self.column_index, self.counts),
            _cut(self.starts, heights),
            _cut(self.column_order, self.counts),
            _cut(self.column_starts, widths),
            strict=True,
        )
        return [(values, Pattern(*pattern)) for values, *pattern in parts]

    @torch.no_grad()
    def reset_parameters(self) -> None:
        if self.values.is_meta:
            return
        self._spread()
        paths = torch.ones(self.shape[1], dtype=torch.float64, device=self.values.device)
        for (_, pattern), (rows, _) in zip(reversed(self._sparse()), reversed(self.sides), strict=True):
            paths = paths.new_zeros(rows).index_add(0, pattern.rows, paths[pattern.columns.long()])
        # Values are independent, so the squares of W's entries sum to (paths) * Var^J.
        wanted = self.variance * math.prod(self.shape) / max(float(paths.sum()), 1.0)
        bound = (3 * wanted ** (1 / self.factors)) ** 0.5
        nn.init.uniform_(self.values, -bound, bound)

    def dense(self) -> Tensor:
        matrix: Tensor | None = None
        for (values, pattern), (rows, columns) in zip(self._sparse(), self.sides, strict=True):
            places = pattern.rows.long() * columns + pattern.columns
            factor = values.new_zeros(rows * columns).index_add(0, places, values).reshape(rows, columns)
            matrix = factor if matrix is None else matrix @ factor
        assert matrix is not None, "there are two factors or more"
        return matrix

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        if self._takes_kernels(x):
            return self._by_kernels(x.reshape(-1, self.shape[1]), bias).reshape(*x.shape[:-1], self.shape[0])
        if not is_fx_symbolic_tracing() and is_autocast(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        for (values, pattern), (rows, _) in reversed(list(zip(self._sparse(), self.sides, strict=True))):
            terms = x.index_select(-1, pattern.columns.long()) * values.to(x.dtype)
            x = terms.new_zeros(terms.shape[:-1] + (rows,)).index_add(-1, pattern.rows.long(), terms)  # noqa: RUF005  torch.fx
        return x if bias is None else x + bias.to(x.dtype)

    def _by_kernels(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """The product of (B, I), the last factor first; without gradients in chunks that a core's own cache holds."""
        if torch.is_grad_enabled() and (x.requires_grad or self.values.requires_grad):
            y = x.T.contiguous()
            for values, pattern in reversed(self._sparse()):
                y = sparse_product(values, y, pattern)
            return (y.T if bias is None else y.T + bias).contiguous()
        numbers = [each.split(self.counts) for each in (self.values, self.column_index)]
        factors = list(zip(*numbers, self.starts.split([rows + 1 for rows, _ in self.sides]), strict=True))[::-1]
        result = x.new_empty(len(x), self.shape[0])
        chunk = max(_CACHED // max(self.shape), 16)
        for first in range(0, len(x), chunk):
            y = x[first : first + chunk].T.contiguous()
            for values, columns, starts in factors:
                y = product_by_rows(values, y, columns, starts)
            part = result[first : first + chunk]
            part.copy_(y.T) if bias is None else torch.add(y.T, bias, out=part)
        return result

    def _takes_kernels(self, x: Tensor) -> bool:
        """Whether tensors are plain ones that the processor's sparse kernels take."""
        if is_recording() or not is_plain():
            return False
        kinds = x.dtype == self.values.dtype and x.dtype in (torch.float32, torch.float64) and x.device.type == "cpu"
        return kinds and not is_autocast("cpu") and x.numel() > 0 and torch.backends.mkl.is_available()

    def cost(self, rows: int) -> int:
        return rows * self.nonzeros

    @property
    def traffic(self) -> int:
        return 2 * self.factors * max(self.shape)

    def build_cost(self) -> int:
        return self.shape[0] * sum(math.prod(side) for side in self.sides[1:])

    # ------------------------------------------------------------------ fitting

    def _fit(self, target: Tensor, gram: Tensor | None) -> None:
        size = float(target.norm())
        if size == 0:
            # All values zero would have no gradients, for ever: the first factor alone is zero, and learns first.
            self.reset_parameters()
            self.values[: self.counts[0]] = 0
            return
        shared, scaled = self.last_share is None, (target / size).float()
        counts = _counts(self.nonzeros, self.factors, self.last_share)
        if gram is None:
            result = sparse_factors(scaled, counts, shared=shared)
        else:  # patterns bear a scale for every column: what remains for the weighted rounds is what joins inputs
            weights = (gram / gram.diagonal().sum().clamp(min=torch.finfo(gram.dtype).tiny)).float()
            root = weights.diagonal().clamp(min=0).sqrt()
            root = root.clamp(min=max(1e-4 * float(root.max()), 1e-30))
            *factors, last = sparse_factors(scaled * root, counts, shared=shared).factors
            start = found(scaled, [*factors, last / root], weights)
            result = rounds(scaled, start, 90, gram=weights, shared=shared, parts=(0.1, 0.02))
        self._take(result.factors, size)
        refine(self, target, gram, steps=min(60, max(3, 10**11 // self.build_cost())))

    def _take(self, factors: list[Tensor], size: float) -> None:
        """Take over the non-zeros of factors, times a number; zeros where they are fewer than there is place for."""
        wide = [
            F.pad(factor, (0, columns - factor.shape[1], 0, rows - factor.shape[0])).flatten()
            for factor, (rows, columns) in zip(factors, self.sides, strict=True)
        ]
        counts = self.counts
        if self.last_share is None:
            counts = [max(1, int(factor.count_nonzero())) for factor in wide]
            counts[counts.index(max(counts))] += self.nonzeros - sum(counts)
        places = [factor.abs().topk(n).indices.sort().values for factor, n in zip(wide, counts, strict=True)]
        self._set_pattern(places)
        values = [factor[place] for factor, place in zip(wide, places, strict=True)]
        # Equal norms: descent would be lame with all of the scale in one factor.
        norms = torch.stack([value.norm() for value in values]).double().clamp(min=1e-30)
        even = (size * norms.prod()) ** (1 / self.factors)
        self.values.copy_(torch.cat([value * (even / norm) for value, norm in zip(values, norms, strict=True)]))

    @classmethod
    def _sized(cls, shape: tuple[int, int], budget: int, positions: int, options: dict[str, Any]) -> dict[str, Any]:
        if options.get("nonzeros") is not None:
            raise OptionError(f"give nonzeros or share to 'psm', not both; got nonzeros={options['nonzeros']}")
        factors = options.get("factors") or 2
        if budget < factors:
            raise too_small("psm", shape, factors)
        return {"nonzeros": budget}

    @classmethod
    def _sized_for(cls, target: Tensor, budget: int, positions: int, options: dict[str, Any]) -> dict[str, Any]:
        sized = cls._sized((target.shape[0], target.shape[1]), budget, positions, options)
        size, last_share = float(target.norm()), options.get("last_share")
        if options.get("factors") is not None or size == 0 or budget < 3:
            return sized

        def error(factors: int) -> float:
            try:
                counts = _counts(budget, factors, last_share)
            except OptionError:
                return math.inf
            return best_start((target / size).float(), counts, shared=last_share is None).error

        return {**sized, "factors": min((2, 3), key=error)}

    @property
    def share_with_indices(self) -> float:
        """As ``share``, but counting the indices too that a product reads: each number's column, each row's start.

        An index takes 4 bytes, a number of fp32 as well. The row of each number is stored beside them, for the products
        that no sparse kernel runs.
        """
        return (self.nonzeros + len(self.column_index) + len(self.starts)) / math.prod(self.shape)

    def extra_repr(self) -> str:
        shares = f"share={self.share:.3g}, share_with_indices={self.share_with_indices:.3g}"
        return f"shape={self.shape}, nonzeros={self.counts}, {shares}"


def _cut(tensor: Tensor, sizes: list[int]) -> list[Tensor]:
    """As ``split``, which torch.fx cannot trace."""
    return [tensor[first:last] for first, last in itertools.pairwise([0, *itertools.accumulate(sizes)])]


def _starts(rising: Tensor, count: int) -> Tensor:
    """Where each of the numbers 0..count-1 begins among rising ones, and how many there are."""
    return torch.searchsorted(rising.contiguous(), torch.arange(count + 1, device=rising.device, dtype=rising.dtype))


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
            "factors": "number of factors, from 2; default 2, or what suits a target better, 2 or 3",
            "last_share": "part of the numbers in the last factor, in (0, 1); default: what fit_ finds best",
        },
        parameters="nonzeros",
        cost="rows*nonzeros",
        weight_decay={"values": True},
        lr_multiplier={"values": "0.7*in*(out*max(out, in))^0.5/(nonzeros*gain^(1 - 1/factors))"},
        sgd_multiplier={"values": "0.45*in*(out*max(out, in))^0.5/(nonzeros*gain^(2 - 2/factors))"},
        launches=50,  # compressed tensors are made and checked anew in every call
        efficiency=0.17,
    )
)
