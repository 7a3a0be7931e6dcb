"""From a code (a task embedding or a condition) to the tensors of a target: five kinds of generators.

All have hidden layers g = body(code) and linear heads on top of the last one, H_0 + sum_k g[k] H_k:

    full       one head per tensor, all on the same g
    layerwise  likewise, but g sees an embedding of the tensor too
    chunked    one small head, run once per chunk with the embedding of the chunk; the chunks in a row are all tensors
    scaling    heads for the scales of the rows and columns of shared matrices; vectors as in full
    low_rank   heads for two thin factors of each matrix; vectors as in full

Every generated tensor has a fixed scale (a buffer), so that the heads learn numbers of about size 1.

Letters: B = rows, E = size of the code, h = width of the last hidden layer, N = chunks, L = chunk size, P = numbers of
all tensors, r = rank.

Ha, Dai and Le 2017, HyperNetworks, ICLR, https://arxiv.org/abs/1609.09106 (layerwise with embeddings, scaling);
von Oswald et al. 2020, https://arxiv.org/abs/1906.00695 (chunks).
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from weft.errors import OptionError, SizeError, nearest_name
from weft.hypernet.init import chunk_embedding_variance, chunk_variances, draw_head
from weft.hypernet.rows import DenseRows, HeadRows, LowRankRows, RowWeights, ScaledRows
from weft.hypernet.slots import Slot

Activation = str | Callable[[], nn.Module]
_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU, "elu": nn.ELU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh, "identity": nn.Identity
}  # fmt: skip
_CODES = 4096  # drawn to measure how large the outputs are
#: Standard deviation of the scales of rows and columns about 1.
_SCALE_STD = 0.1


class Head(nn.Module):
    """A linear map from the last hidden layer to a tensor: H_0 + sum_k g[k] H_k.

    Args:
        hidden: h.
        shape: of the tensor.
        like: gives device and dtype.
    """

    def __init__(self, hidden: int, shape: Sequence[int], like: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(hidden, math.prod(shape), device=like.device, dtype=like.dtype))
        self.bias = nn.Parameter(torch.empty((*shape,), device=like.device, dtype=like.dtype))

    def draw(self, moment: Tensor, mean: float = 0.0) -> None:
        """Draw the weight for outputs of mean square 1 about a mean.

        Args:
            moment: (h, h), mean of g g^T.
            mean: of the outputs.
        """
        draw_head(self.weight, moment)
        nn.init.constant_(self.bias, mean)

    def rows(self, code: Tensor, scale: Tensor) -> HeadRows:
        """The tensors of some rows.

        Args:
            code: (B, h).
            scale: (), factor of the tensor.

        Returns:
            (B, *shape), not built yet.
        """
        return HeadRows(code, self.weight, self.bias, scale)


class Generator(nn.Module, abc.ABC):
    """What the kinds share: the hidden layers and the fixed scales.

    Args:
        slots: what is generated.
        code_size: E.
        hidden: widths of the hidden layers, possibly none.
        activation: after each of them: a name, or what makes a module.
        variances: of the entries of each slot at the start.
        like: gives device and dtype.
    """

    scale: Tensor

    def __init__(
        self,
        slots: Sequence[Slot],
        code_size: int,
        hidden: Sequence[int],
        activation: Activation,
        variances: Sequence[float],
        like: Tensor,
    ) -> None:
        super().__init__()
        self.slots, self.code_size, self.variances = tuple(slots), code_size, tuple(variances)
        self._rectifies = activation not in ("tanh", "identity")
        steps: list[nn.Module] = []
        width = code_size + self._extra_inputs()
        if not isinstance(hidden, Sequence) or any(size < 1 for size in hidden):
            raise SizeError(f"hidden must be a sequence of widths of at least 1, such as (16,), or (); got {hidden!r}")
        for size in hidden:
            steps += [nn.Linear(width, size, device=like.device, dtype=like.dtype), _make(activation)]
            width = size
        self.body, self.width = nn.Sequential(*steps), width
        self.register_buffer("scale", torch.ones(len(slots), device=like.device, dtype=like.dtype))

    def _extra_inputs(self) -> int:
        """Inputs of the hidden layers beside the code."""
        return 0

    @abc.abstractmethod
    def forward(self, codes: Tensor) -> list[RowWeights]:
        """The tensors of every row.

        Args:
            codes: (B, E).

        Returns:
            one per slot.
        """

    @abc.abstractmethod
    def _draw(self, codes: Tensor) -> None:
        """Draw what is not the hidden layers, and set the scales; codes are random ones, (many, E)."""

    def reset_parameters(self) -> None:
        """Draw everything anew by the initial law."""
        for module in self.body:
            if isinstance(module, nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu" if self._rectifies else "linear")
                nn.init.zeros_(module.bias)
        with torch.no_grad():
            self._draw(torch.randn(_CODES, self.code_size, device=self.scale.device, dtype=self.scale.dtype))

    def _set_scale(self, index: int, head: Head, moment: Tensor) -> None:
        """A head that makes a whole tensor: its weight, mean and scale."""
        law, variance = self.slots[index].law, self.variances[index]
        std = math.sqrt(variance) or law.std or 1.0
        self.scale[index] = std
        head.draw(moment, law.mean / std)
        if not variance:  # the rule says 0: start there, but be able to leave
            nn.init.zeros_(head.weight)

    @property
    def outputs(self) -> int:
        """How many numbers the heads make per row."""
        return sum(head.bias.numel() for head in self.modules() if isinstance(head, Head))

    def extra_repr(self) -> str:
        return f"{len(self.slots)} tensors, {sum(slot.size for slot in self.slots)} numbers"


def _moment(g: Tensor) -> Tensor:
    """(many, h) to the mean of g g^T."""
    return g.T @ g / max(len(g), 1)


class Full(Generator):
    """One head per tensor on the same hidden layer."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.heads = nn.ModuleList(Head(self.width, slot.shape, arguments[-1]) for slot in self.slots)

    def forward(self, codes: Tensor) -> list[RowWeights]:
        g = self.body(codes)
        heads: list[Any] = list(self.heads)
        return [head.rows(g, scale) for head, scale in zip(heads, self.scale.unbind(), strict=True)]

    def _draw(self, codes: Tensor) -> None:
        moment = _moment(self.body(codes))
        heads: list[Any] = list(self.heads)
        for index, head in enumerate(heads):
            self._set_scale(index, head, moment)


class Layerwise(Full):
    """As ``Full``, with an embedding per tensor beside the code."""

    def __init__(self, embedding_dim: int, *arguments: Any) -> None:
        self._embedding_dim = embedding_dim
        super().__init__(*arguments)
        like = arguments[-1]
        self.slot_embeddings = nn.Parameter(
            torch.empty(len(self.slots), embedding_dim, device=like.device, dtype=like.dtype)
        )

    def _extra_inputs(self) -> int:
        return self._embedding_dim

    def forward(self, codes: Tensor) -> list[RowWeights]:
        hidden = self.body(_with_embeddings(codes, self.slot_embeddings)).unbind(1)
        heads: list[Any] = list(self.heads)
        parts = zip(heads, hidden, self.scale.unbind(), strict=True)
        return [head.rows(g, scale) for head, g, scale in parts]

    def _draw(self, codes: Tensor) -> None:
        nn.init.normal_(self.slot_embeddings)
        heads: list[Any] = list(self.heads)
        for index, head in enumerate(heads):
            g = self.body(_with_embeddings(codes, self.slot_embeddings[index : index + 1]))[:, 0]
            self._set_scale(index, head, _moment(g))


class Chunked(Generator):
    """One head for a chunk of all tensors in a row, run once per chunk."""

    mean: Tensor
    code_scale: Tensor

    def __init__(self, num_chunks: int, chunk_size: int, embedding_dim: int, by_chunk: bool, *arguments: Any) -> None:
        self._embedding_dim, self.num_chunks, self.chunk_size = embedding_dim, num_chunks, chunk_size
        self._by_chunk = by_chunk
        super().__init__(*arguments)
        like = arguments[-1]
        self.chunk_embeddings = nn.Parameter(
            torch.empty(num_chunks, embedding_dim, device=like.device, dtype=like.dtype)
        )
        self.head = Head(self.width, (chunk_size,), like)
        self.register_buffer("mean", torch.zeros_like(self.scale))
        self.register_buffer("code_scale", torch.ones_like(self.scale[0]))

    def _extra_inputs(self) -> int:
        return self._embedding_dim

    def forward(self, codes: Tensor) -> list[RowWeights]:
        g = self.body(_with_embeddings(codes * self.code_scale, self.chunk_embeddings))
        flat = (g @ self.head.weight + self.head.bias).to(self.scale.dtype).flatten(1)
        sizes = [slot.size for slot in self.slots]
        parts = flat[:, : sum(sizes)].split(sizes, 1)  # the surplus of the last chunk is dropped
        every = zip(self.slots, parts, self.scale.unbind(), self.mean.unbind(), strict=True)
        return [
            DenseRows((part * scale + mean).reshape(codes.shape[0], *slot.shape)) for slot, part, scale, mean in every
        ]

    def _draw(self, codes: Tensor) -> None:
        sizes = [slot.size for slot in self.slots]
        wanted = chunk_variances(self.variances, sizes, self.chunk_size)
        nn.init.normal_(self.chunk_embeddings)
        nn.init.ones_(self.code_scale)
        if self._by_chunk:
            smallest = min(v for v in wanted if v) if any(wanted) else 1.0
            self.code_scale.fill_(math.sqrt(smallest))
            sides = smallest, self.code_size, self._embedding_dim
            stds = [math.sqrt(chunk_embedding_variance(v, *sides)) for v in wanted]
            self.chunk_embeddings.mul_(self.scale.new_tensor(stds)[:, None])
        inputs = ((codes * self.code_scale, chunk[None]) for chunk in self.chunk_embeddings)  # one by one, for memory
        moments = torch.stack([_moment(self.body(_with_embeddings(*pair))[:, 0]) for pair in inputs])
        weigh = moments.new_tensor([1 / v if self._by_chunk and v else 1.0 for v in wanted])
        self.head.draw((weigh[:, None, None] * moments).mean(0))
        squares = [((moment @ self.head.weight) * self.head.weight).sum(0) for moment in moments]
        measured = torch.cat(squares)[: sum(sizes)].split(sizes)
        for index, (slot, variance, square) in enumerate(zip(self.slots, self.variances, measured, strict=True)):
            self.mean[index] = slot.law.mean
            self.scale[index] = 1.0
            if not self._by_chunk:
                # One chunk's embedding may be longer than another's: what a tensor got is measured.
                self.scale[index] = (math.sqrt(variance) or slot.law.std) / square.mean().sqrt()


class Scaling(Generator):
    """Scales of the rows and columns of shared matrices."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        like = arguments[-1]
        self.heads, self.bases = nn.ModuleList(), nn.ParameterList()
        for slot in self.slots:
            if len(slot.shape) < 2:
                self.heads.append(Head(self.width, slot.shape, like))
                continue
            self.heads.append(nn.ModuleList(Head(self.width, (side,), like) for side in slot.shape[:2]))
            self.bases.append(torch.empty(slot.shape, device=like.device, dtype=like.dtype))

    def forward(self, codes: Tensor) -> list[RowWeights]:
        g, bases = self.body(codes), iter(self.bases)
        parts: list[Any] = list(self.heads)
        rows: list[RowWeights] = []
        for heads, scale in zip(parts, self.scale.unbind(), strict=True):
            if isinstance(heads, Head):
                rows.append(heads.rows(g, scale))
            else:
                scales = [head.rows(g, scale).dense() for head in heads]
                rows.append(ScaledRows(next(bases), *scales))
        return rows

    def _draw(self, codes: Tensor) -> None:
        g, bases = self.body(codes), iter(self.bases)
        moment = _moment(g)
        parts: list[Any] = list(self.heads)
        for index, heads in enumerate(parts):
            if isinstance(heads, Head):
                self._set_scale(index, heads, moment)
                continue
            self.scale[index] = _SCALE_STD
            for head in heads:
                head.draw(moment, 1 / _SCALE_STD)
            base = next(bases)
            nn.init.normal_(base)
            if base.is_meta:
                continue
            # The scales have mean 1 and add to the variance: what the product has is measured, and the base makes up.
            ones = self.scale.new_tensor(_SCALE_STD)
            rows, columns = (head.rows(g, ones).dense().double().square() for head in heads)
            squares = base.double().square().reshape(*base.shape[:2], -1).sum(2)
            square = float(((rows @ squares) * columns).sum())
            base.mul_(math.sqrt(self.variances[index] * len(g) * base.numel() / square))


class LowRank(Generator):
    """Two thin factors of every matrix."""

    def __init__(self, rank: int, *arguments: Any) -> None:
        super().__init__(*arguments)
        like = arguments[-1]
        self.heads = nn.ModuleList()
        for slot in self.slots:
            if len(slot.shape) < 2:
                self.heads.append(Head(self.width, slot.shape, like))
                continue
            out, columns = slot.shape[0], math.prod(slot.shape[1:])
            if rank > min(out, columns):
                raise OptionError(
                    f"rank must be at most {min(out, columns)} for {slot.name}, a matrix of {out} x {columns}; got "
                    f"{rank}. Take a smaller one, or shared={slot.name!r}"
                )
            self.heads.append(nn.ModuleList(Head(self.width, shape, like) for shape in ((out, rank), (rank, columns))))

    def forward(self, codes: Tensor) -> list[RowWeights]:
        g = self.body(codes)
        parts: list[Any] = list(self.heads)
        rows: list[RowWeights] = []
        for slot, heads, scale in zip(self.slots, parts, self.scale.unbind(), strict=True):
            if isinstance(heads, Head):
                rows.append(heads.rows(g, scale))
            else:
                left, right = (head.rows(g, scale) for head in heads)
                rows.append(LowRankRows(left, right, slot.shape))
        return rows

    def _draw(self, codes: Tensor) -> None:
        g = self.body(codes)
        moment = _moment(g)
        parts: list[Any] = list(self.heads)
        for index, heads in enumerate(parts):
            if isinstance(heads, Head):
                self._set_scale(index, heads, moment)
                continue
            for head in heads:
                head.draw(moment)
            if self.scale.is_meta:
                continue
            squares = 0.0
            for part in g.split(256):  # |A C|^2 = trace((A^T A) (C C^T)), without building the product
                left, right = (head.rows(part, self.scale.new_ones(())).dense().double() for head in heads)
                squares += float(((left.mT @ left) * (right @ right.mT)).sum())
            variance = self.variances[index] or self.slots[index].law.std ** 2
            self.scale[index] = (variance * len(g) * self.slots[index].size / squares) ** 0.25


def _with_embeddings(codes: Tensor, embeddings: Tensor) -> Tensor:
    """(B, E) and (N, d) to (B, N, E + d), every pair."""
    rows, number = codes.shape[0], embeddings.shape[0]
    return torch.cat([codes[:, None].expand(rows, number, -1), embeddings.expand(rows, number, -1)], -1)


def _make(activation: Activation) -> nn.Module:
    if isinstance(activation, nn.Module):
        raise OptionError(f"activation must be a name or what makes a module, such as its class; got {activation!r}")
    if not isinstance(activation, str):
        return activation()
    if activation not in _ACTIVATIONS:
        raise OptionError(
            f"activation must be one of {', '.join(_ACTIVATIONS)}, or a class of modules; got {activation!r}"
            f"{nearest_name(activation, _ACTIVATIONS)}"
        )
    return _ACTIVATIONS[activation]()


def chunk_cover(total: int, chunk_size: int | None, num_chunks: int | None) -> tuple[int, int]:
    """Number and size of the chunks that cover some numbers exactly: none too few, and none that nothing is taken from.

    Args:
        total: P.
        chunk_size: L, None for ceil(P/N).
        num_chunks: N, None for ceil(P/L).

    Returns:
        (N, L).

    Raises:
        SizeError: chunks that cannot cover, or of which some would not be used.

    Example:
        >>> chunk_cover(50816, None, 100)
        (100, 509)
    """
    given = {"chunk_size": chunk_size, "num_chunks": num_chunks}
    for name, value in given.items():
        if value is not None and not 1 <= value <= total:
            raise SizeError(f"{name} must be between 1 and {total}, the numbers to generate; got {value}")
    if chunk_size is None and num_chunks is None:
        raise OptionError("kind='chunked' needs chunk_size (numbers per chunk) or num_chunks")
    size = chunk_size or math.ceil(total / (num_chunks or 1))
    needed = math.ceil(total / size)
    number = num_chunks or needed
    if number < needed:
        raise SizeError(
            f"{number} chunks of {size} numbers cannot cover the {total} to generate; take num_chunks={needed}, or "
            f"chunk_size={math.ceil(total / number)}"
        )
    if number > needed:
        raise SizeError(
            f"{number} chunks of {size} numbers are more than the {total} to generate need: {number - needed} "
            f"embeddings would never be used; take num_chunks={needed}"
        )
    return number, size
