"""The contract: what every family of weight matrices promises.

A parametrization is one matrix W of shape (out, in), described by its own parameters. It knows no bias, stride,
layer or model; layers know no family. Two methods must be written, everything else follows from them and may be
overridden for speed, never for meaning.

Letters: O, I = rows and columns of W; B = rows of the input; K = positions (kernel positions of one input channel).
"""

from __future__ import annotations

import abc
import math
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft.errors import BudgetError, FitError, OptionError, SizeError
from weft.parametrizations.memory import check_memory
from weft.parametrizations.partition import Block


class Stage(NamedTuple):
    """One step of a product: a block-diagonal matrix, each entry repeated along ``inner`` untouched columns.

    The input is read as (groups, in, inner), the output as (groups, out, inner), and

        y[g, o, t] = sum_i matrix[g, o, i] x[g, i, t].

    ``inner=1`` is a plain grouped matrix; ``inner>1`` is ``matrix (x) identity``, which mixes components and leaves the
    channels inside a component (and so the kernel positions of a convolution) alone.
    """

    matrix: Tensor  # (groups, out, in)
    inner: int = 1


class StageShape(NamedTuple):
    """Sizes of a stage: the matrix is (groups, out, in)."""

    groups: int
    rows: int
    columns: int
    inner: int = 1


class Parametrization(nn.Module, abc.ABC):
    """A (out, in) matrix described by its own parameters.

    Args:
        shape: (out, in) of the matrix, each at least 1.
        positions: columns come in runs of this length, one run per input channel (the kernel positions of a
            convolution); families that split columns never cut a run. Divides ``in``.
        variance: wanted variance of the entries of ``dense()`` after ``reset_parameters``; None takes that of
            ``torch.nn.Linear``, 1/(3*in).

    Raises:
        SizeError: a side is smaller than 1, or ``positions`` does not divide ``in``.

    Source:
        The split into "what a weight is" and "who uses it" follows tensorly-torch's factorised tensors and geotorch.
    """

    shape: tuple[int, int]
    family: ClassVar[str] = ""  # the name in the registry
    fit_copies: ClassVar[float] = 10.0  # matrices of the target's size that _fit holds at once, at its largest

    def __init__(self, shape: tuple[int, int], *, positions: int = 1, variance: float | None = None) -> None:
        super().__init__()
        out_features, in_features = (int(side) for side in shape)
        if min(out_features, in_features, positions) < 1 or in_features % positions:
            raise SizeError(
                f"shape and positions must be at least 1, and positions must divide the columns; "
                f"got shape={tuple(shape)}, positions={positions}"
            )
        self.shape = (out_features, in_features)
        self.positions = positions
        self.variance = 1 / (3 * in_features) if variance is None else float(variance)
        self.fit_error: float | None = None  # of the last fit_
        self.stage_error = 0.0  # relative error of what ``stages`` decomposed numerically the last time

    # ------------------------------------------------------------------ must be written

    @abc.abstractmethod
    def dense(self) -> Tensor:
        """The matrix itself, differentiable.

        Returns:
            (O, I), in the dtype and on the device of the parameters.
        """

    @abc.abstractmethod
    def reset_parameters(self) -> None:
        """Draw new parameters, so that entries of ``dense()`` have mean 0 and variance ``self.variance``."""

    # ------------------------------------------------------------------ may be overridden, for speed

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """The product ``x W^T + bias`` by the family's own factors.

        Args:
            x: (..., I).
            bias: (O,) or None.

        Returns:
            (..., O).
        """
        return F.linear(x, self.dense(), bias)

    def rows(self, index: Tensor) -> Tensor:
        """Some rows of the matrix, such as an embedding looks up, without the others where the family can.

        Args:
            index: integers in 0..O-1, of any shape.

        Returns:
            (..., I), with the dimensions of the index in front.
        """
        return self.dense()[index]

    def rows_cost(self, count: int) -> int:
        """Multiply-adds of ``rows``.

        Args:
            count: number of rows asked for.

        Returns:
            multiply-adds; by default those of building W.
        """
        return self.build_cost()

    def stages(self) -> list[Stage] | None:
        """The same map as a short product of stages, first applied first; None where there is no such form.

        Exactly one stage sees kernel positions: the first whose ``inner`` is no multiple of ``positions``.
        Stages before it act on input channels, stages after it on output channels, so any convolution can run the
        product as convolutions.

        Returns:
            the stages, or None.
        """
        return None

    def stage_shapes(self, evaluation: bool = False) -> list[StageShape] | None:
        """Sizes of the stages, known without computing anything.

        Args:
            evaluation: whether stages count that are found by analysing the values, without gradients. They are made
                once per evaluation and kept by the layer.

        Returns:
            the sizes, None where ``stages`` gives nothing. The number of stages found may differ a little from it.
        """
        return None

    def stage_build_cost(self) -> int:
        """Multiply-adds of ``stages()``.

        Returns:
            multiply-adds; 0 where the stages are views of the parameters.
        """
        return 0

    def cost(self, rows: int) -> int:
        """Multiply-adds of ``linear`` for this many rows.

        Args:
            rows: number of rows of the input, at least 0.

        Returns:
            multiply-adds; by default those of building W once and of the dense product.
        """
        return self.build_cost() + rows * math.prod(self.shape)

    @property
    def traffic(self) -> int:
        """Numbers that ``linear`` passes on between its factors for one row, each time one is written and read again.

        Layers run many rows in chunks that keep them in the caches, and count with the time they take. 0 by default.
        """
        return 0

    def build_cost(self) -> int:
        """Multiply-adds of ``dense()``.

        Returns:
            multiply-adds, by default one per entry; 0 where the matrix is stored as it is and nothing is to be cached.
        """
        return math.prod(self.shape)

    def learned_algebra(self) -> Tensor | None:
        """The learned numbers that say how components mix, which an L1 penalty or a picture may want.

        Returns:
            (n, n, n), differentiable; None where there are none, or where they are fixed.
        """
        return None

    def partition(self) -> list[Block] | None:
        """The blocks that tile the matrix, which a picture may want.

        Returns:
            where each lies, its rank, and whether it is stored dense; None where the matrix has no blocks.
        """
        return None

    def _checked_rank(self, rank: int | None) -> int:
        """The rank of a family whose size it is."""
        most = min(self.shape)
        if rank is None:
            raise OptionError(f"family {self.family!r} needs a size: give rank=1..min(out, in), or share in (0, 1]")
        if not 1 <= rank <= most:
            raise OptionError(f"rank must be in 1..min(out, in) = 1..{most} for shape {self.shape}, got {rank}")
        return int(rank)

    def _fit(self, target: Tensor, gram: Tensor | None) -> None:
        """Become the nearest member. Arguments are checked: finite, on the right device, at least fp32."""
        raise FitError(
            f"family {self.family or type(self).__name__!r} cannot be fitted to a given matrix; "
            f"choose one with has_fit in weft.families(), or train it from its random start"
        )

    @classmethod
    def _sized(cls, shape: tuple[int, int], budget: int, positions: int, options: dict[str, Any]) -> dict[str, Any]:
        """Options of the largest member that stores at most ``budget`` numbers."""
        raise OptionError(f"family {cls.family or cls.__name__!r} has no size option that a share could choose")

    @classmethod
    def _sized_for(cls, target: Tensor, budget: int, positions: int, options: dict[str, Any]) -> dict[str, Any]:
        """Options of the member of at most ``budget`` numbers that suits a target; by default those of the largest."""
        return cls._sized((target.shape[0], target.shape[1]), budget, positions, options)

    # ------------------------------------------------------------------ free

    @torch.no_grad()
    def fit_(self, target: Tensor, gram: Tensor | None = None) -> float:
        """Become the nearest member of the family that it knows how to find, in place.

        Args:
            target: (O, I), finite.
            gram: (I, I) Gram matrix X^T X of the inputs, symmetric positive semidefinite; the error is then that of
                the outputs, ||(W - target) G^(1/2)||. None weighs all inputs alike.

        Returns:
            ||W - target|| / ||target||, weighted by ``gram`` where one is given; 0 for a zero target met exactly.

        Raises:
            SizeError: wrong shapes.
            FitError: values that are not finite, parameters on the meta device, a complex target of real parameters,
                a family that cannot be fitted, or more memory needed than is free.
        """
        if tuple(target.shape) != self.shape:
            raise SizeError(f"target of fit_ must have the shape (out, in) = {self.shape}, got {tuple(target.shape)}")
        if gram is not None and tuple(gram.shape) != (self.shape[1], self.shape[1]):
            raise SizeError(f"gram must have the shape (in, in) = {(self.shape[1],) * 2}, got {tuple(gram.shape)}")
        first = next(self.parameters(), None)
        if target.is_meta or (first is not None and first.is_meta):
            raise FitError("fit_ needs values: target or parameters are on the meta device; call to_empty first")
        if not torch.isfinite(target).all() or (gram is not None and not torch.isfinite(gram).all()):
            raise FitError("target and gram of fit_ must be finite, got NaN or infinity; clean the checkpoint first")
        if target.is_complex() and first is not None and not first.is_complex():
            raise FitError(
                f"target of fit_ is complex ({target.dtype}) and the parameters are real ({first.dtype}), which would "
                f"lose its imaginary part; fit target.real, or make the parameters complex with dtype="
            )
        device = target.device if first is None else first.device
        work = torch.promote_types(target.dtype, torch.float32 if first is None else first.dtype)
        work = torch.promote_types(work, torch.float32)
        check_memory(self.family, self.shape, self.fit_copies, device, work)
        target = target.detach().to(device, work)
        gram = None if gram is None else gram.detach().to(device, work)
        with torch.autocast(device.type, enabled=False):
            self._fit(target, gram if gram is not None and gram.any() else None)  # all zero, it prefers no member
            self.fit_error = relative_error(self.dense().to(work), target, gram)
        return self.fit_error

    @classmethod
    def within(
        cls, shape: tuple[int, int], share: float, *, target: Tensor | None = None, **options: Any
    ) -> Parametrization:
        """The largest member of the family that stores at most ``int(share * out * in)`` numbers.

        Args:
            shape: (out, in).
            share: stored numbers of the weight per number of the dense weight, in (0, 1]. Bias, index and constant
                buffers are not counted.
            target: matrix of that shape that the member will be fitted to: families with several sizes of one
                budget then take the one that suits it, instead of the largest.
            **options: passed to the constructor.

        Returns:
            a new member with drawn parameters.

        Raises:
            BudgetError: ``share`` is outside (0, 1] or smaller than the smallest member; names the smallest share.
            FitError: fitting to ``target`` would need more memory than is free.

        Example:
            >>> from weft.parametrizations import LowRank
            >>> LowRank.within((300, 300), share=0.1).rank
            15
        """
        if not 0 < share <= 1:
            raise BudgetError(f"share must be in (0, 1] (stored numbers / dense numbers), got {share}")
        budget, positions = int(share * math.prod(shape)), options.get("positions", 1)
        if target is None or target.is_meta or not torch.isfinite(target).all():  # which fit_ refuses
            sized = cls._sized(shape, budget, positions, options)
        else:
            work = torch.promote_types(target.dtype, torch.float32)
            check_memory(cls.family, (shape[0], shape[1]), cls.fit_copies, target.device, work)
            working = target.detach().to(work)
            sized = cls._sized_for(working, budget, positions, options)
        return cls(shape, **{**options, **sized})

    @property
    def num_parameters(self) -> int:
        """Stored numbers of the weight; index and constant buffers are not counted."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def share(self) -> float:
        """Stored numbers over those of the dense matrix."""
        return self.num_parameters / math.prod(self.shape)

    def forward(self) -> Tensor:
        """``dense()``, so that ``torch.nn.utils.parametrize`` and the module call give the matrix.

        Returns:
            (O, I).
        """
        return self.dense()

    def extra_repr(self) -> str:
        return f"shape={self.shape}, share={self.share:.3g}"


def relative_error(matrix: Tensor, target: Tensor, gram: Tensor | None = None) -> float:
    """||matrix - target|| / ||target||, in the norm weighted by ``gram`` where one is given.

    Args:
        matrix: (O, I).
        target: (O, I).
        gram: (I, I), positive semidefinite, or None.

    Returns:
        the error; 0 if both are zero, infinity if only the target is.
    """

    def square(w: Tensor) -> float:
        w = w.detach().to(torch.promote_types(w.dtype, torch.float64))
        return float((w.conj() * (w @ gram.to(w.dtype) if gram is not None else w)).sum().real.clamp(min=0))

    error, size = square(matrix - target), square(target)
    return math.sqrt(error / size) if size > 0 else (0.0 if error == 0 else math.inf)


def smallest_share(numbers: int, shape: tuple[int, int]) -> float:
    """The smallest share whose budget holds ``numbers``, rounded up to six digits so that it really works.

    Args:
        numbers: stored numbers of the smallest member.
        shape: (out, in).

    Returns:
        a share with ``int(share * out * in) >= numbers``; may exceed 1.
    """
    size = shape[0] * shape[1]
    share = math.ceil(numbers / size * 1e6) / 1e6
    return share if int(share * size) >= numbers else share + 1e-6


def too_small(family: str, shape: tuple[int, int], numbers: int | None, otherwise: str = "use 'dense'") -> BudgetError:
    """The error for a share that not even the smallest member meets.

    Args:
        family: name.
        shape: (out, in).
        numbers: stored numbers of the smallest member; None if there is none.
        otherwise: what to do where no share would work.

    Returns:
        the error; names the smallest share that works.
    """
    share = None if numbers is None else smallest_share(numbers, shape)
    share = None if share is None or share > 1 else share
    remedy = f"no share works: {otherwise}" if share is None else f"the smallest share that works is {share:.6f}"
    return BudgetError(f"share is too small for {family!r} of shape {tuple(shape)}: {remedy}", share)
