"""Embedding: ``torch.nn.Embedding`` with a table of any family."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from weft.errors import OptionError, SizeError
from weft.layers.base import Layer
from weft.layers.paths import MANY_ROWS, MOST_ROWS, Explanation, Plan
from weft.modes import is_autocast, is_recording
from weft.parametrizations import Parametrization

_LARGE_BATCH = 4096  # look-ups at which the last range of rows is judged


class Embedding(Layer):
    """``y = W[index]``, with the table W (num_embeddings, embedding_dim) described by a parametrization.

    In training only the rows that are asked for are computed, where the family can (``Parametrization.rows``) and that
    is less work than building the table. In evaluation the table is built once and kept, so a look-up costs what it
    costs in torch; ``path="factored"`` never builds it, which is slower and saves its memory.

    Args:
        num_embeddings: number of rows of the table.
        embedding_dim: length of each row.
        padding_idx: index whose row is zero and gets no gradient, negative ones count from the end; None for none.
        parametrization: family name (``weft.families()``), or a ``Parametrization`` of shape
            (num_embeddings, embedding_dim).
        path: ``"auto"``, ``"factored"`` (only the rows asked for) or ``"dense"`` (the table).
        init: variance of an initial entry: ``"default"`` 1, as nn.Embedding; ``"he"`` or ``"glorot"`` as in
            ``weft.Linear``.
        device: as in torch.
        dtype: as in torch.
        **options: of the family, such as ``rank`` or ``n``; or ``share``, stored over dense numbers, in (0, 1].

    Raises:
        SizeError: sizes smaller than 1, or not as the family needs them; a ``padding_idx`` outside the table.
        OptionError: an unknown name or option; the message gives the nearest.

    Source:
        Low rank: Lan et al. 2020, ALBERT, section 3.1, https://arxiv.org/abs/1909.11942. Kronecker products:
        Panahi et al. 2020, word2ket, https://arxiv.org/abs/1911.04975.

    Example:
        >>> import torch, weft
        >>> layer = weft.Embedding(1000, 64, padding_idx=0, parametrization="low_rank", rank=8)
        >>> y = layer(torch.tensor([[0, 3, 999]]))
        >>> tuple(y.shape), y[0, 0].any().item()
        ((1, 3, 64), False)
    """

    torch_class = nn.Embedding
    _default_variance = 1.0

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        parametrization: str | Parametrization = "dense",
        path: str = "auto",
        init: str = "default",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if min(num_embeddings, embedding_dim) < 1:
            raise SizeError(
                f"num_embeddings and embedding_dim must be at least 1, got {num_embeddings} and {embedding_dim}"
            )
        if padding_idx is not None and not -num_embeddings <= padding_idx < num_embeddings:
            raise SizeError(
                f"padding_idx must be in -num_embeddings..num_embeddings-1 = {-num_embeddings}..{num_embeddings - 1}, "
                f"got {padding_idx}"
            )
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.padding_idx = None if padding_idx is None else padding_idx % num_embeddings
        template = nn.Embedding(num_embeddings, embedding_dim, device="meta")
        shape = (num_embeddings, embedding_dim)
        self._set_up(template, shape, 1, parametrization, path, init, device, dtype, options)

    def forward(self, input: Tensor) -> Tensor:
        if is_autocast(self._device_type):  # a look-up is no product: torch leaves it in full precision
            with torch.autocast(self._device_type, enabled=False):
                return self.forward(input)
        if self._way(input) != "factored":
            padding = -1 if self.padding_idx is None else self.padding_idx
            return torch.embedding(self._effective_weight(), input, padding)  # F.embedding's checks upset jit.trace
        if not is_recording():
            # Families count on indices in 0..O-1, and some would give another row for others: torch's own check.
            torch.embedding(input.new_zeros(1, 1).expand(self.num_embeddings, 1), input)
        y = self.parametrization.rows(input)
        return y if self.padding_idx is None else y.masked_fill((input == self.padding_idx)[..., None], 0)

    def _to_weight(self, matrix: Tensor) -> Tensor:
        if self.padding_idx is None:
            return matrix
        padding = torch.arange(self.num_embeddings, device=matrix.device) == self.padding_idx
        return matrix.masked_fill(padding[:, None], 0)

    def _to_matrix(self, weight: Tensor) -> Tensor:
        return weight

    def _ways(self, evaluation: bool) -> list[str]:
        return ["factored"] if type(self.parametrization).rows is not Parametrization.rows else []

    def _replan(self) -> None:
        super()._replan()
        self._caches = self._caches or self.padding_idx is not None
        kept = "cached" if self._caches else "dense"
        only_rows = self.path == "factored" and self._has_factors
        self._cached_plan = Plan.always("factored" if only_rows else kept)
        building = self.parametrization.build_cost()

        def way(count: int) -> str:
            worth_it = self.path == "auto" and self.parametrization.rows_cost(count) < building
            return "factored" if self._has_factors and (only_rows or worth_it) else "dense"

        self._plan = Plan(way(1), way(MANY_ROWS), way(MOST_ROWS), way(_LARGE_BATCH))

    def _rows(self, x: Tensor) -> int:
        return x.numel()

    def explain(self, x: Tensor) -> Explanation:
        """What a look-up of these indices would do now, and why. Computes no output.

        Args:
            x: indices, only their shape matters.

        Returns:
            path, multiply-adds, bytes, reason; no times are predicted.
        """
        count, weight = self._rows(x), self.parametrization
        way, itemsize = self._way(x), next(weight.parameters()).element_size()
        if way == "factored":
            why, macs, numbers = "only the rows that are asked for", weight.rows_cost(count), weight.num_parameters
        else:
            way = "cached" if self._caches_now() else "dense"
            macs, numbers = (0 if way == "cached" else weight.build_cost()), count * self.embedding_dim
            why = "the table is built once and kept" if way == "cached" else "the table is built in every call"
            why = why if self._caches else "the table is stored as it is"
        why = why if self.path == "auto" else f"path={self.path!r} was asked for"
        return Explanation(way, why, count, macs, 0, numbers * itemsize, {})

    def _arguments(self) -> dict[str, Any]:
        return {
            "num_embeddings": self.num_embeddings,
            "embedding_dim": self.embedding_dim,
            "padding_idx": self.padding_idx,
        }

    @classmethod
    def _arguments_of(cls, module: nn.Embedding) -> dict[str, Any]:
        changed = {
            "max_norm": module.max_norm,
            "scale_grad_by_freq": module.scale_grad_by_freq,
            "sparse": module.sparse,
        }
        if used := [name for name, value in changed.items() if value]:
            raise OptionError(f"{', '.join(used)} of an nn.Embedding act on single stored rows, which a family has not")
        padding = module.padding_idx
        if padding is not None and not module.weight.is_meta and bool(module.weight[padding].any()):
            raise OptionError(
                f"row {padding} of an nn.Embedding with padding_idx={padding} must be zero; zero it first"
            )
        return {
            "num_embeddings": module.num_embeddings,
            "embedding_dim": module.embedding_dim,
            "padding_idx": padding,
        }
