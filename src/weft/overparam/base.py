"""What over-parametrised layers share: sub-layers in a row that run one by one, or as the one layer that they are.

A layer without batch norm between the sub-layers is linear whatever the mode, so it is put together before it runs
wherever that takes fewer multiply-adds; gradients reach every factor all the same. Batch norm in training depends on
the batch, so there the sub-layers run one by one. In evaluation the one layer is made once and kept.

Letters: I, O = channels (features) of input and output; H = of what is between; L = depth; G = groups.
"""

from __future__ import annotations

import abc
import contextlib
import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from weft.errors import FoldError, OptionError, SizeError, nearest_name
from weft.layers.cache import WeightCache, count_sources
from weft.layers.foldable import Foldable
from weft.layers.paths import FEW_ROWS, MANY_ROWS, MOST_ROWS
from weft.modes import in_transform, is_tracing, plain_arithmetic, plain_precision
from weft.overparam.compose import (
    Affine,
    collapse,
    collapse_macs,
    embed,
    fold_batch_norm,
    identity_kernel,
    segment_size,
    skip_pairs,
)
from weft.overparam.factor import balanced_factors

BatchNorm = bool | Literal["output"]
_MODES = ("none", "learn")
#: What putting a layer together takes over its multiply-adds: small products, and gradients taken apart again. At equal
#: multiply-adds it measured 1.07 of the sub-layers one by one (benchmarks/ep_layers.py).
_OVERHEAD = 1.25
_READ_ONLY = (
    "layer.{name} is computed from layer.layers and cannot be assigned or deleted; change the sub-layers, draw them "
    "anew with layer.reset_parameters(), or get a plain layer from layer.fold()"
)


class EPLayer(Foldable):
    """A plain layer of torch in the form of several linear ones; subclasses give the geometry.

    ``layers`` are the sub-layers, ``norms`` their batch norms, ``skips`` the learned skips by ``"start_end"``, and
    ``norm`` the batch norm of the whole layer; the keys of the state_dict follow.
    """

    _version = 1  # of the keys of the state_dict
    torch_class: ClassVar[type[nn.Module]]
    _norm_class: ClassVar[type[nn.modules.batchnorm._NormBase]]
    #: What the law of the first kernels keeps: the mean square of the signal, or that of the gradient.
    _keeps_gradient: ClassVar[bool]
    family = "chain"  # for reports
    fit_error: float | None = None  # of the weight that it was made from, if any
    channels: tuple[int, ...]
    groups = 1
    layers: nn.ModuleList
    norms: nn.ModuleList
    skips: nn.ModuleDict
    norm: nn.modules.batchnorm._NormBase | None

    def _set_up(
        self,
        layers: Sequence[nn.Module],
        channels: Sequence[int],
        batch_norm: BatchNorm,
        residual: bool,
        residual_intervals: int | Sequence[int],
        residual_mode: str,
        negative_slope: float,
    ) -> None:
        """Check the options that all kinds have, make norms and skips, draw the parameters.

        Args:
            layers: the sub-layers.
            channels: I, H, ..., H, O.
            batch_norm: False, True or ``"output"``.
            residual: whether there are skips.
            residual_intervals: their lengths.
            residual_mode: ``"none"`` or ``"learn"``.
            negative_slope: of the activation that follows.
        """
        self.depth, self.batch_norm, self.negative_slope = len(layers), batch_norm, float(negative_slope)
        self._pairs = _checked_pairs(self.depth, channels, residual, residual_intervals, residual_mode)
        self.residual, self.residual_intervals = residual, residual_intervals
        self.residual_mode = residual_mode
        if not isinstance(batch_norm, bool) and batch_norm != "output":
            raise OptionError(f"batch_norm must be True, False or 'output', got {batch_norm!r}")
        like: Any = layers[0].weight
        common: dict[str, Any] = {"device": like.device, "dtype": like.dtype}
        self._has_bias = "bias" in dict(layers[0].named_parameters()) or bool(batch_norm)
        self._cache = WeightCache()
        self.layers = nn.ModuleList(layers)
        self.norms = nn.ModuleList(self._norm_class(width, **common) for width in channels[1:] if batch_norm is True)
        self.norm = self._norm_class(channels[-1], **common) if batch_norm == "output" else None
        learned = self._pairs if residual_mode == "learn" else []
        self.skips = nn.ModuleDict(
            {f"{start}_{end}": self._make_skip(channels[start], channels[end], common) for start, end in learned}
        )
        self.channels = tuple(channels)  # of the nodes
        shapes = [tuple(self._kernel(layer).shape) for layer in layers]
        self._rows_from = _break_even(shapes, self._strides(), [self._kernel(skip) for skip in self.skips.values()])
        self._shared_rows_from = _shared_threshold(self._rows_from)
        self._num_sources = count_sources(self)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new parameters: normal kernels that keep the signal, the last one with the gain of what follows."""
        for module in (*self.layers, *self.skips.values()):
            kernel, bias = self._kernel(module), module.bias
            rows, columns, positions = len(kernel) // self.groups, kernel.shape[1], math.prod(kernel.shape[2:])
            gain = math.sqrt(2 / (1 + self.negative_slope**2)) if module is self.layers[-1] else 1.0
            fan = positions * (rows if self._keeps_gradient else columns)
            nn.init.normal_(kernel, std=gain * fan**-0.5)
            if isinstance(bias, Tensor):
                bound = (columns * positions) ** -0.5
                nn.init.uniform_(bias, -bound, bound)
        for norm in self._all_norms():
            norm.reset_parameters()
        self.fit_error = None  # assigning forgets the cached weight too

    # ------------------------------------------------------------------ given by the kinds of layers

    @abc.abstractmethod
    def _make_skip(self, start_channels: int, end_channels: int, common: dict[str, Any]) -> nn.Module:
        """A learned skip: one plain layer without bias, with kernel 1."""

    @abc.abstractmethod
    def _strides(self) -> int:
        """Number of input positions per output position."""

    @abc.abstractmethod
    def _arguments(self) -> dict[str, Any]:
        """Constructor arguments of the plain layer, no device and dtype."""

    @abc.abstractmethod
    def _rows(self, x: Tensor) -> int:
        """Rows of the matrix product that an input stands for: output positions."""

    @abc.abstractmethod
    def _run(self, x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
        """The plain layer with this kernel and bias."""

    @abc.abstractmethod
    def _padded(self, x: Tensor, always: bool) -> Tensor:
        """Node 0 as the sub-layers see it, ``always`` or only where the first one cannot pad by itself."""

    @abc.abstractmethod
    def _cropped(self, x: Tensor, like: Tensor, start: int, end: int) -> Tensor:
        """A node where a Dirac kernel of the size of the sub-layers from start to end leaves it."""

    @abc.abstractmethod
    def _normalised(self, x: Tensor, norm: nn.Module) -> Tensor:
        """Batch norm over the channels."""

    def _biases(self) -> list[nn.Parameter]:
        """What the bias of the effective layer is made of: those of the sub-layers and of their batch norms."""
        holders: list[Any] = [*self.layers, *self._all_norms()]
        return [holder.bias for holder in holders if holder.bias is not None]

    def factors(self) -> list[Tensor]:
        """The kernels of the sub-layers and of the learned skips."""
        return [self._kernel(layer) for layer in (*self.layers, *self.skips.values())]

    # ------------------------------------------------------------------ the effective layer

    @property
    def effective_size(self) -> tuple[int, int]:
        """Numbers of the effective layer's weight and of its bias."""
        shapes = [tuple(self._kernel(layer).shape) for layer in self.layers]
        positions = math.prod(segment_size([shape[2:] for shape in shapes]))
        return shapes[-1][0] * shapes[0][1] * positions, shapes[-1][0] if self._has_bias else 0

    @property
    def weight(self) -> Tensor:
        """The weight of the effective layer in torch's layout, read-only; in training it carries gradients."""
        return self._effective()[0]

    @property
    def bias(self) -> Tensor | None:
        """The bias of the effective layer, read-only; None without biases and batch norm."""
        return self._effective()[1]

    def _effective(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias, from the cache where that is allowed."""
        try:
            cached = self._cached()
            if cached is not None:
                return cached[0].detach(), None if cached[1] is None else cached[1].detach()
            return self._collapsed()
        except AttributeError as error:  # else nn.Module would report that 'weight' is missing
            raise RuntimeError(f"the weight of {type(self).__name__} cannot be put together: {error}") from error

    def _cached(self) -> tuple[Tensor, Tensor | None] | None:
        if self.training or torch.compiler.is_compiling():
            return None
        return self._cache.lookup(self, self._statistics(), self._num_sources, self._collapsed)

    def _statistics(self) -> tuple[tuple[float, int], ...]:
        """What a collapsed layer depends on beside tensors: of every norm its eps, and the set of statistics in use."""
        return tuple((norm.eps, getattr(norm, "row", 0)) for norm in self._all_norms())

    def _all_norms(self) -> list[Any]:
        return [*self.norms, *([] if self.norm is None else [self.norm])]

    def _collapsed(self) -> tuple[Tensor, Tensor | None]:
        """Kernel and bias of everything, batch norms with their running statistics."""
        kernel, bias = self._composed()
        if self.norm is not None:
            with self._full_precision():
                kernel, bias = fold_batch_norm(kernel, bias, self.norm)
        return kernel.contiguous(), bias

    def _composed(self) -> tuple[Tensor, Tensor | None]:
        """Kernel and bias of the sub-layers, their norms and skips."""
        sublayers = [Affine(self._kernel(layer), layer.bias) for layer in self.layers]  # type: ignore[arg-type]
        skips = {(a, b): self._kernel(self.skips[f"{a}_{b}"]) if self.skips else None for a, b in self._pairs}
        with self._full_precision():
            kernel, bias = collapse(sublayers, list(self.norms), skips, self.groups)  # type: ignore[arg-type]
        assert kernel is not None, "there is at least one sub-layer"
        return kernel, bias

    def _full_precision(self) -> contextlib.AbstractContextManager[Any]:
        """Autocast would round every composition; the one product that follows is what it is for."""
        return plain_precision(self._kernel(self.layers[0]).device.type)

    @staticmethod
    def _kernel(layer: nn.Module) -> Tensor:
        return layer.weight  # type: ignore[return-value]

    # ------------------------------------------------------------------ running

    def forward(self, input: Tensor, expanded: bool = False) -> Tensor:
        """Apply the layer.

        Args:
            input: as the plain layer's.
            expanded: whether the sub-layers must run one by one, whatever is cheaper; the result is the same.

        Returns:
            as the plain layer's.
        """
        if expanded or (self.training and len(self.norms)):
            return self._expanded(input)
        cached = self._cached()
        if cached is not None:
            return self._run(input, *cached)
        if not self._collapses(input):
            return self._expanded(input)
        if self.norm is not None and self.training:
            return self._normalised(self._run(input, *self._composed()), self.norm)
        return self._run(input, *self._collapsed())

    def _collapses(self, x: Tensor) -> bool:
        """Whether to put the layer together in this call."""
        if torch.compiler.is_compiling():
            # One set of thresholds for all layers: torch.compile would make a program for each. None restricts exports.
            return torch.compiler.is_exporting() or self._rows(x) >= self._shared_rows_from
        return not is_tracing() and self._rows(x) >= self._rows_from

    def _expanded(self, x: Tensor) -> Tensor:
        nodes = [self._padded(x, always=False)]
        for end, layer in enumerate(self.layers, start=1):
            y = layer(nodes[-1])
            if len(self.norms):
                y = self._normalised(y, self.norms[end - 1])
            for start, stop in self._pairs:
                if stop != end:
                    continue
                way = self._cropped(nodes[start] if start else self._padded(x, always=True), y, start, end)
                if self.skips:
                    way = self.skips[f"{start}_{end}"](way)
                y = y + way.to(y.dtype)  # under autocast the input may be wider
            nodes.append(y)
        return nodes[-1] if self.norm is None else self._normalised(nodes[-1], self.norm)

    # ------------------------------------------------------------------ from and to a plain layer

    @classmethod
    @abc.abstractmethod
    def _arguments_of(cls, module: Any, depth: int) -> dict[str, Any]:
        """The geometry of a plain layer as constructor arguments of this class."""

    @classmethod
    def from_dense(
        cls, module: nn.Module, *, depth: int = 2, width: float = 1, keep_function: bool = True, **options: Any
    ) -> Self:
        """A layer of the same geometry: the whole kernel in the first sub-layer, 1x1 kernels after it.

        Args:
            module: the plain layer; it is left as it is.
            depth: L.
            width: H over O.
            keep_function: whether the factors must compose to the module's weight; else they are drawn anew.
            **options: ``batch_norm``, ``residual`` and the others of the class. With ``keep_function`` only a single
                skip from start to end by the identity: the factors then compose to the weight minus that.

        Returns:
            the layer, on the same device, with the same dtype and mode; ``fit_error`` is the relative error of its
            weight, None if it is drawn anew.

        Raises:
            OptionError: ``module`` is not of the plain class, the width is smaller than the rank, or an option cannot
                keep the function.
        """
        if not isinstance(module, cls.torch_class):
            raise OptionError(f"module must be a torch.nn.{cls.torch_class.__name__}, got {type(module).__name__}")
        weight, bias = module.weight, getattr(module, "bias", None)
        assert isinstance(weight, Tensor), "plain layers have a weight"
        arguments = cls._arguments_of(module, depth)
        layer = cls(**arguments, width=width, **options, device=weight.device, dtype=weight.dtype)
        if keep_function:
            with torch.no_grad():
                layer._take(weight.detach(), bias)
        for parameter in layer.parameters():
            parameter.requires_grad_(weight.requires_grad)
        for shift in layer._biases():
            shift.requires_grad_(weight.requires_grad if bias is None else bias.requires_grad)
        return layer.train(module.training)

    def _take(self, weight: Tensor, bias: Tensor | None) -> None:
        """Set the sub-layers so that the effective layer has this weight and bias."""
        if self.batch_norm or self.residual_mode == "learn" or self._pairs not in ([], [(0, self.depth)]):
            raise OptionError(
                "keep_function=True allows no batch norm, which changes the function in training, and of the skips "
                "only one from start to end (residual_intervals=-1, residual_mode='none'); use keep_function=False"
            )
        wanted = weight
        if self._pairs:
            skip = identity_kernel(len(weight), self.groups, weight)
            wanted = weight - embed(skip, tuple(weight.shape[2:]))
        hidden = self.channels[-2] if self.depth > 1 else self.channels[-1]
        for layer, factor in zip(self.layers, balanced_factors(wanted, self.depth, hidden, self.groups), strict=True):
            self._kernel(layer).copy_(factor)
            if isinstance(layer.bias, Tensor):
                layer.bias.zero_()
        last = self.layers[-1].bias
        if isinstance(last, Tensor) and bias is not None:
            last.copy_(bias)
        exact = torch.promote_types(weight.dtype, torch.float64)
        error, size = (torch.linalg.vector_norm(w.to(exact)) for w in (self._collapsed()[0] - weight, weight))
        self.fit_error = float(error / size.clamp_min(1e-300))

    def fold(self) -> nn.Module:
        """The plain layer that computes the same in evaluation.

        Returns:
            the plain layer, with its own copies of weight and bias, in the same mode.

        Raises:
            FoldError: in training mode with batch norm, whose outputs there depend on the batch; or inside vmap, grad
                or another transform.
        """
        if in_transform():
            raise FoldError("fold was called inside torch.func.vmap, grad or another transform; fold the layer before")
        if self.training and self.batch_norm:
            raise FoldError(
                f"{type(self).__name__} with batch norm is in training mode, where its output depends on the batch; "
                f"call eval() first, then fold uses the running statistics"
            )
        if any(hasattr(norm, "row") for norm in self._all_norms()):
            raise FoldError(
                f"{type(self).__name__} has batch norms with statistics for every number of superposed inputs, a plain "
                "layer has none; keep the layer as it is, it runs collapsed in evaluation"
            )
        plain = self.torch_class(**self._arguments(), device="meta")
        biases = self._biases()
        shifts = any(parameter.requires_grad for parameter in biases)
        trained = any(parameter.requires_grad for parameter in self.parameters() if parameter not in set(biases))
        with plain_arithmetic(self._kernel(self.layers[0]).device.type):
            weight, bias = self._collapsed()
            plain.weight = nn.Parameter(weight.detach().clone(), requires_grad=trained)
            if bias is not None:
                plain.bias = nn.Parameter(bias.detach().clone(), requires_grad=shifts)
        return plain.train(self.training)

    # ------------------------------------------------------------------ nn.Module, with the cache kept right

    def clear_cache(self) -> None:
        """Forget what was built in evaluation."""
        self._cache.entry = None

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("weight", "bias"):
            raise AttributeError(_READ_ONLY.format(name=name))
        super().__setattr__(name, value)
        if "_cache" in self.__dict__:  # train() and eval() come by here too: they assign self.training
            self.clear_cache()

    def __delattr__(self, name: str) -> None:
        if name in ("weight", "bias"):
            raise AttributeError(_READ_ONLY.format(name=name))
        super().__delattr__(name)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self.clear_cache()
        return self

    def extra_repr(self) -> str:
        options: dict[str, Any] = {"depth": self.depth, "batch_norm": self.batch_norm}
        if self.residual:
            options |= {"residual_intervals": self.residual_intervals, "residual_mode": self.residual_mode}
        return ", ".join(f"{k}={v!r}" for k, v in {**self._arguments(), **options}.items())


def hidden_channels(channels: int, width: float, depth: int, groups: int = 1) -> int:
    """H = int(O * width), but for rounding: 12 * (1/12) is 1.

    Args:
        channels: O.
        width: factor.
        depth: L, at least 1.
        groups: G, divides H.

    Returns:
        H.

    Raises:
        OptionError: depth below 1.
        SizeError: H below 1 or not divisible.
    """
    if depth < 1:
        raise OptionError(f"depth must be at least 1, got {depth}")
    if not 0 < width < math.inf:
        raise OptionError(f"width must be finite and above 0, got {width}")
    hidden = int(channels * width + 1e-9)
    if depth > 1 and (hidden < 1 or hidden % groups):
        raise SizeError(
            f"width gives int({channels} * {width:g}) = {hidden} channels between the sub-layers; it must give at "
            f"least 1 and a multiple of groups={groups}"
        )
    return hidden


def _checked_pairs(
    depth: int, channels: Sequence[int], residual: bool, intervals: int | Sequence[int], mode: str
) -> list[tuple[int, int]]:
    """The skips as pairs of nodes, after all checks."""
    if mode not in _MODES:
        raise OptionError(f"residual_mode must be 'none' or 'learn', got {mode!r}{nearest_name(str(mode), _MODES)}")
    if not residual:
        if mode == "learn":
            raise OptionError("residual_mode='learn' says how skips are made and needs residual=True")
        return []
    lengths = [intervals] if isinstance(intervals, int) else list(intervals)
    if wrong := [n for n in lengths if not isinstance(n, int) or (n < 1 and n != -1)]:
        raise OptionError(f"residual_intervals must be numbers from 1, or -1 for start to end; got {wrong}")
    pairs = skip_pairs(lengths, depth)
    if not pairs:
        raise OptionError(
            f"residual_intervals {lengths} make no skip at depth {depth}; give numbers up to {depth}, or -1 for start "
            f"to end"
        )
    for start, end in pairs:
        if mode == "none" and channels[start] != channels[end]:
            raise SizeError(
                f"the skip from node {start} to node {end} adds {channels[start]} channels to {channels[end]}; make "
                f"them equal (in = out and width=1, or in = out and residual_intervals=-1), or let "
                f"residual_mode='learn' map one to the other"
            )
    return pairs


def _break_even(shapes: Sequence[Sequence[int]], strides: int, skips: Sequence[Tensor]) -> float:
    """The number of rows from which putting the layer together takes less work than its sub-layers.

    Counted for one row: sub-layers before the last one run once per input position, of which there are ``strides``
    for every output position.
    """
    composed = shapes[-1][0] * shapes[0][1] * math.prod(segment_size([shape[2:] for shape in shapes]))
    own = [math.prod(shape) for shape in shapes]
    one_by_one = strides * sum(own[:-1]) + own[-1] + sum(skip.numel() for skip in skips)
    saved = one_by_one - composed
    if saved <= 0:
        return 0 if len(shapes) == 1 else math.inf
    return _OVERHEAD * collapse_macs(shapes) / saved


def _shared_threshold(rows: float) -> float:
    """The nearest of the numbers of rows at which all layers may change their way, by ratio."""
    if rows in (0, math.inf):
        return rows
    return min((1, FEW_ROWS, MANY_ROWS, MOST_ROWS), key=lambda cut: abs(math.log(rows / cut)))
