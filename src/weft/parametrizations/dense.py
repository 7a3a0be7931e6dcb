"""The plain matrix, as a family like any other: the baseline that all others are measured against."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft.errors import BudgetError
from weft.parametrizations.base import Parametrization, Stage, StageShape
from weft.parametrizations.registry import Family, register


class Dense(Parametrization):
    """The matrix itself, entry by entry: W = weight.

    Choose it as the baseline, or where a layer should stay as it is while its neighbours change.

    Args:
        shape: (out, in) of the matrix.
        positions: kernel positions per input channel, see ``Parametrization``.
        variance: of the entries after ``reset_parameters``, None for 1/(3*in).
        device: as in torch.
        dtype: as in torch.

    Parameters stored:
        weight (O, I); takes weight decay.

    Initial law:
        entries uniform with mean 0 and the wanted variance, as ``torch.nn.Linear``.

    Example:
        >>> p = Dense((8, 12))
        >>> tuple(p.dense().shape), p.share
        ((8, 12), 1.0)
    """

    family = "dense"
    fit_copies = 3.0

    def __init__(
        self,
        shape: tuple[int, int],
        *,
        positions: int = 1,
        variance: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(shape, positions=positions, variance=variance)
        self.weight = nn.Parameter(torch.empty(self.shape, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        bound = (3 * self.variance) ** 0.5
        nn.init.uniform_(self.weight, -bound, bound)

    def dense(self) -> Tensor:
        return self.weight

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.linear(x, self.weight, bias)

    def stages(self) -> list[Stage]:
        return [Stage(self.weight.unsqueeze(0))]

    def build_cost(self) -> int:
        return 0

    def stage_shapes(self, evaluation: bool = False) -> list[StageShape]:
        return [StageShape(1, *self.shape)]

    def _fit(self, target: Tensor, gram: Tensor | None) -> None:
        self.weight.copy_(target)

    @classmethod
    def _sized(cls, shape: tuple[int, int], budget: int, positions: int, options: dict[str, Any]) -> dict[str, Any]:
        if budget < shape[0] * shape[1]:
            raise BudgetError("family 'dense' stores every number: share must be 1; choose another family", 1.0)
        return {}


register(
    Family(
        name="dense",
        cls=Dense,
        title="Dense matrix",
        summary="The matrix itself, entry by entry.",
        advice="The baseline; also what to name for layers that should stay as they are.",
        source="torch.nn.Linear",
        options={},
        sized_by="share",
        parameters="out*in",
        cost="rows*out*in",
        weight_decay={"weight": True},
        launches=1,
    )
)
