"""Chain: W = W_L ... W_2 W_1, a product of dense matrices that stores more numbers than W has, to train better.

    y = W_L (... (W_2 (W_1 x))),        W_1 (H, I),  W_2 ... W_{L-1} (H, H),  W_L (O, H)

Letters: O, I = rows and columns of W; L = depth, number of matrices; H = width of what passes between them; B = rows of
the input.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft.errors import OptionError
from weft.parametrizations.base import Parametrization
from weft.parametrizations.low_rank import nearest_low_rank, negligible
from weft.parametrizations.registry import Family, register


class Chain(Parametrization):
    """A product of dense matrices: linear layers one after the other, with nothing in between.

    The set of matrices is the same as that of a dense layer, if H is not smaller than O and I; gradient descent on the
    factors is drawn to matrices of small effective rank, the more the deeper, which often generalises better. It costs
    in training only: ``fold`` multiplies the factors. Not a way to save numbers; that is ``low_rank``.

    Args:
        shape: (out, in) of the matrix.
        depth: L, at least 1; 1 is a dense matrix.
        width: H over out: H = int(out * width), at least 1. Below min(out, in)/out it limits the rank of W, which is
            no over-parametrization any more.
        positions: kernel positions per input channel, see ``Parametrization``.
        variance: of the entries after ``reset_parameters``, None for 1/(3*in).
        device: as in torch.
        dtype: as in torch.

    Shape:
        dense(): (O, I)          linear(x): (..., I) -> (..., O)

    Parameters stored:
        first (H, I); inner (L - 2, H, H), absent for L < 3; last (O, H), absent for L = 1. All take weight decay.

    Initial law:
        all normal: first with variance 1/I and inner with 1/H, so that the mean square of a signal is kept; the last
        one with the variance that gives the entries of W the wanted one.

    Cost:
        H*I + (L - 2)*H^2 + O*H numbers; as many multiply-adds per row by the factors, or O*I after the factors are
        multiplied: layers take what is cheaper.

    Raises:
        OptionError: ``depth`` or ``width`` is out of range.

    Source:
        Huh, Mobahi, Zhang, Cheung, Agrawal, Isola 2023, The Low-Rank Simplicity Bias in Deep Networks, TMLR, section 5,
        https://arxiv.org/abs/2103.10427; Arora, Cohen, Hazan 2018, On the Optimization of Deep Networks,
        https://arxiv.org/abs/1802.06509.

    Example:
        >>> p = Chain((8, 12), depth=3)
        >>> tuple(p.dense().shape), p.num_parameters
        ((8, 12), 224)
    """

    family = "chain"
    inner: Tensor | None
    last: Tensor | None

    def __init__(
        self,
        shape: tuple[int, int],
        *,
        depth: int = 2,
        width: float = 1.0,
        positions: int = 1,
        variance: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(shape, positions=positions, variance=variance)
        if depth < 1:
            raise OptionError(f"depth must be at least 1, got {depth}")
        out_features, in_features = self.shape
        hidden = int(out_features * width + 1e-9) if depth > 1 else out_features
        if hidden < 1:
            raise OptionError(
                f"width must be at least 1/out = {1 / out_features!r}, so that something passes; got {width}"
            )
        self.depth, self.width, self.hidden = int(depth), float(width), hidden

        def empty(*size: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(size, device=device, dtype=dtype))

        self.first = empty(hidden, in_features)
        self.inner = empty(depth - 2, hidden, hidden) if depth > 2 else None
        self.last = empty(out_features, hidden) if depth > 1 else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        in_features = self.shape[1]
        if self.last is None:
            nn.init.normal_(self.first, std=self.variance**0.5)
            return
        nn.init.normal_(self.first, std=in_features**-0.5)
        nn.init.normal_(self.last, std=(self.variance * in_features / self.hidden) ** 0.5)
        if self.inner is not None:
            nn.init.normal_(self.inner, std=self.hidden**-0.5)

    def _factors(self) -> list[Tensor]:
        """W_1, ..., W_L."""
        inner = [] if self.inner is None else [self.inner[l] for l in range(self.depth - 2)]
        return [self.first, *inner, *([] if self.last is None else [self.last])]

    def dense(self) -> Tensor:
        matrix, *others = self._factors() if self._from_the_right else self._factors()[::-1]
        for other in others:
            matrix = other @ matrix if self._from_the_right else matrix @ other
        return matrix

    @property
    def _from_the_right(self) -> bool:
        """Whether the product is cheaper from W_1 on: it drags I columns along, from W_L on O rows."""
        return self.shape[1] <= self.shape[0]

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        *factors, last = self._factors()
        for factor in factors:
            x = F.linear(x, factor)
        return F.linear(x, last, bias)

    def cost(self, rows: int) -> int:
        return rows * self.num_parameters

    def build_cost(self) -> int:
        if self.depth == 1:
            return 0
        return self.hidden * ((self.depth - 2) * self.hidden * min(self.shape) + self.shape[0] * self.shape[1])

    def _fit(self, target: Tensor, gram: Tensor | None) -> None:
        if self.last is None:
            self.first.copy_(target)
            return
        # Singular values in equal parts on all factors: then they are balanced, W_l W_l^T = W_(l+1)^T W_(l+1), as
        # gradient descent keeps them. Width beyond the rank of the target passes random numbers that the last factor
        # does not use yet, so that it can learn to.
        rank = min(self.hidden, *self.shape)
        left, right = nearest_low_rank(target.to(torch.promote_types(target.dtype, torch.float64)), rank, gram)
        u, s, vh = torch.linalg.svd(left @ right, full_matrices=False)
        rank = min(rank, int((s > negligible(target)).sum()))
        root = s[:rank] ** (1 / self.depth)
        nn.init.normal_(self.first, std=self.shape[1] ** -0.5)
        self.first[:rank] = root[:, None] * vh[:rank]
        if self.inner is not None:
            scale = torch.cat([root, root.new_ones(self.hidden - rank)])
            self.inner.copy_(torch.diag(scale).expand_as(self.inner))
        self.last.zero_()
        self.last[:, :rank] = u[:, :rank] * root

    @classmethod
    def _sized(cls, shape: tuple[int, int], budget: int, positions: int, options: dict[str, Any]) -> dict[str, Any]:
        raise OptionError("family 'chain' is sized by depth and width, not by share; give depth, and width if wanted")

    def extra_repr(self) -> str:
        return f"shape={self.shape}, depth={self.depth}, width={self.width:g}, share={self.share:.3g}"


register(
    Family(
        name="chain",
        cls=Chain,
        title="Linear chain",
        summary="A product of dense matrices with more numbers than the matrix itself.",
        advice="To train a layer better at no cost afterwards: more numbers in training, folded to one matrix.",
        source="Huh et al. 2023, https://arxiv.org/abs/2103.10427; Arora et al. 2018, https://arxiv.org/abs/1802.06509",
        options={
            "depth": "number L of matrices, from 1; default 2",
            "width": "of what passes between them, over out; default 1",
        },
        sized_by="depth",
        parameters="hidden*(in + out) + hidden^2*(depth - 2) (out*in for depth 1)",
        cost="rows*hidden*(in + out + hidden*(depth - 2)) (rows*out*in for depth 1)",
        weight_decay={"first": True, "inner": True, "last": True},
        launches=3,
        efficiency=0.85,
    )
)
