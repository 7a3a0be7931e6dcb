"""Low rank: W = left right, two thin matrices instead of one.

    W[o, i] = sum_r left[o, r] right[r, i],        left (O, R), right (R, I)

Letters: O, I = rows and columns of W; R = rank.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft.errors import OptionError
from weft.parametrizations.base import Parametrization, Stage, StageShape, too_small
from weft.parametrizations.registry import Family, register


def nearest_low_rank(target: Tensor, rank: int, gram: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The factors of the nearest matrix of a given rank, balanced so that left^T left = right right^T.

    Without ``gram`` the truncated singular value decomposition. With it, the minimiser of ||(W - target) G^(1/2)||:
    truncate target G^(1/2) and take the whitening off again; directions that the inputs never use are kept as near as
    a tiny ridge allows. In that case the left factor is orthogonal and the scale is in the right one.

    Args:
        target: (O, I).
        rank: R, in 1..min(O, I).
        gram: (I, I), positive semidefinite, or None.

    Returns:
        left (O, R) and right (R, I).

    Source:
        Eckart and Young 1936, Psychometrika 1, 211; whitening as in Wang et al. 2024, SVD-LLM, section 3.1,
        https://arxiv.org/abs/2403.07378.
    """
    if gram is None:
        u, s, vh = torch.linalg.svd(target, full_matrices=False)
        root = s[:rank].sqrt()
        return u[:, :rank] * root, root[:, None] * vh[:rank]
    exact = torch.promote_types(target.dtype, torch.float64)
    values, vectors = torch.linalg.eigh(gram.to(exact))
    ridge = values.abs().max().clamp(min=torch.finfo(torch.float64).tiny) * 1e-12
    root = (values.clamp(min=0) + ridge).sqrt()
    u, s, vh = torch.linalg.svd((target.to(exact) @ vectors) * root, full_matrices=False)
    left, right = u[:, :rank], (s[:rank, None] * vh[:rank] / root) @ vectors.mH
    return left.to(target.dtype), right.to(target.dtype)


def negligible(target: Tensor) -> float:
    """Singular values that rounding alone makes.

    Args:
        target: (O, I).

    Returns:
        the largest of them.
    """
    return float(torch.linalg.vector_norm(target)) * torch.finfo(target.dtype).eps


def revived(left: Tensor, right: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """Factors of the same product in which every term can learn.

    Where both parts of a term are zero, so are the gradients of both, for ever. There the right part is drawn as at the
    start and the left one becomes zero: the next step then finds the left one.

    Args:
        left: (..., O, R).
        right: (..., R, I).
        tolerance: size of terms left[:, r] right[r] up to which they are taken for zero.

    Returns:
        both factors, changed where terms were zero.
    """
    zero = left.norm(dim=-2) * right.norm(dim=-1) <= tolerance
    if not zero.any():
        return left, right
    drawn = torch.empty_like(right).uniform_(-1, 1) * right.shape[-1] ** -0.5
    return left.masked_fill(zero.unsqueeze(-2), 0), torch.where(zero.unsqueeze(-1), drawn, right)


class LowRank(Parametrization):
    """A matrix of rank at most R: W = left right.

    Fewer numbers *and* fewer multiply-adds, both by the factor R*(O+I)/(O*I), at any number of rows. Choose it first
    when a trained layer must become smaller and its singular values decay; not when they are flat.

    Args:
        shape: (out, in) of the matrix.
        rank: R, in 1..min(out, in); or use ``share`` through ``make`` or a layer.
        positions: kernel positions per input channel, see ``Parametrization``.
        variance: of the entries after ``reset_parameters``, None for 1/(3*in).
        device: as in torch.
        dtype: as in torch.

    Shape:
        dense(): (O, I)          linear(x): (..., I) -> (..., O)

    Parameters stored:
        left (O, R), right (R, I); both take weight decay.

    Initial law:
        right is uniform with variance 1/(3 I), as an nn.Linear; left is uniform with variance 3 I/R times the wanted
        one.

    Cost:
        R*(O + I) numbers; R*(O + I) multiply-adds per row.

    Raises:
        OptionError: ``rank`` is missing or outside 1..min(out, in).

    Source:
        Eckart and Young 1936 for the nearest member; Denil et al. 2013, Predicting Parameters in Deep Learning,
        https://arxiv.org/abs/1306.0543 for its use as a layer.

    Example:
        >>> p = LowRank((8, 12), rank=2)
        >>> tuple(p.dense().shape), p.num_parameters
        ((8, 12), 40)
    """

    family = "low_rank"

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
        self.rank = self._checked_rank(rank)
        self.left = nn.Parameter(torch.empty((self.shape[0], self.rank), device=device, dtype=dtype))
        self.right = nn.Parameter(torch.empty((self.rank, self.shape[1]), device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        # Var(W) = R Var(left) Var(right); uniform on [-b, b] has variance b^2/3.
        right_bound = self.shape[1] ** -0.5
        left_bound = 3 * (self.variance * self.shape[1] / self.rank) ** 0.5
        nn.init.uniform_(self.right, -right_bound, right_bound)
        nn.init.uniform_(self.left, -left_bound, left_bound)

    def dense(self) -> Tensor:
        return self.left @ self.right

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.linear(F.linear(x, self.right), self.left, bias)

    def rows(self, index: Tensor) -> Tensor:
        return self.left[index] @ self.right

    def rows_cost(self, count: int) -> int:
        return count * self.rank * self.shape[1]

    def stages(self) -> list[Stage]:
        return [Stage(self.right.unsqueeze(0)), Stage(self.left.unsqueeze(0))]

    def stage_shapes(self, evaluation: bool = False) -> list[StageShape]:
        return [StageShape(1, self.rank, self.shape[1]), StageShape(1, self.shape[0], self.rank)]

    def cost(self, rows: int) -> int:
        return rows * self.rank * sum(self.shape)

    def build_cost(self) -> int:
        return self.rank * self.shape[0] * self.shape[1]

    def _fit(self, target: Tensor, gram: Tensor | None) -> None:
        left, right = revived(*nearest_low_rank(target, self.rank, gram), negligible(target))
        self.left.copy_(left)
        self.right.copy_(right)

    @classmethod
    def _sized(cls, shape: tuple[int, int], budget: int, positions: int, options: dict[str, Any]) -> dict[str, Any]:
        if options.get("rank") is not None:
            raise OptionError(f"give rank or share to 'low_rank', not both; got rank={options['rank']} beside a share")
        rank = min(budget // sum(shape), *shape)
        if rank < 1:
            raise too_small("low_rank", shape, sum(shape))
        return {"rank": rank}

    def extra_repr(self) -> str:
        return f"shape={self.shape}, rank={self.rank}, share={self.share:.3g}"


register(
    Family(
        name="low_rank",
        cls=LowRank,
        title="Low rank",
        summary="A product of two thin matrices.",
        advice="First choice for shrinking a trained layer: the nearest member is exact, and faster at any batch size.",
        source="Eckart and Young 1936; Denil et al. 2013, https://arxiv.org/abs/1306.0543",
        options={"rank": "inner size R of the product, 1..min(out, in); or give share"},
        parameters="rank*(out + in)",
        cost="rows*rank*(out + in)",
        weight_decay={"left": True, "right": True},
        lr_multiplier={"left": "0.3*in/rank", "right": "0.5/gain"},
        sgd_multiplier={"left": "0.5*in/rank", "right": "0.17/(1 + out/rank)^0.5/gain^2"},
        launches=2,
    )
)
