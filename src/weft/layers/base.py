"""What all layers share: the read-only weight, the way a product runs, the cache, fitting, folding, loading.

A layer knows bias and geometry and how to run; its parametrization knows what the weight is. Neither looks into the
other.
"""

from __future__ import annotations

import abc
import copy
import warnings
from collections.abc import Iterator
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from weft.errors import FoldError, OptionError, SizeError, nearest_name
from weft.layers.cache import WeightCache, count_sources
from weft.layers.foldable import Foldable
from weft.layers.paths import Explanation, explain, plan
from weft.modes import in_transform, is_autocast, is_tracing, plain_arithmetic
from weft.parametrizations import Parametrization, Stage, make, record_of
from weft.parametrizations.registry import refuse_device_and_dtype

PATHS = ("auto", "factored", "dense")
INITS = ("default", "he", "glorot")


class Layer(Foldable):
    """A layer of torch whose weight is described by a parametrization.

    Subclasses give the plain class, its geometry and the forward pass. They set up through ``_set_up``.
    """

    _version = 1  # of the state_dict keys: "bias" and "parametrization.*"
    torch_class: ClassVar[type[nn.Module]]
    #: Seconds that starting one product costs on top of a plain kernel; convolutions have more to set up.
    _floor_s: ClassVar[float] = 0.0
    #: Variance of an initial entry where it does not depend on the sizes; None for 1/(3*in), as torch's products.
    _default_variance: ClassVar[float | None] = None
    parametrization: Parametrization
    bias: nn.Parameter | None

    def _set_up(
        self,
        template: Any,
        matrix_shape: tuple[int, int],
        positions: int,
        parametrization: str | Parametrization,
        path: str,
        init: str,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        options: dict[str, Any],
    ) -> None:
        """Check the arguments, make or take the parametrization, allocate the bias.

        Args:
            template: the plain layer on the meta device; its weight gives the fans, its bias whether there is one.
            matrix_shape: (out, in) of the matrix.
            positions: kernel positions per input channel.
            parametrization: family name or a member of the right shape.
            path: ``"auto"``, ``"factored"`` or ``"dense"``.
            init: ``"default"``, ``"he"`` or ``"glorot"``.
            device: as in torch.
            dtype: as in torch.
            options: of the family; and ``target``, a weight in torch's layout that the layer will be fitted to, which
                a choice of sizes within ``share`` may look at.
        """
        _check_choice("path", path, PATHS)
        _check_choice("init", init, INITS)
        options = {name: value for name, value in options.items() if value is not None}
        target = options.pop("target", None)
        fan_in, fan_out = nn.init._calculate_fan_in_and_fan_out(template.weight)
        self._bias_bound = fan_in**-0.5 if fan_in else 0.0
        default = 1 / (3 * fan_in) if self._default_variance is None else self._default_variance
        variance = {"default": default, "he": 2 / fan_in, "glorot": 2 / (fan_in + fan_out)}[init]
        if isinstance(parametrization, Parametrization):
            if options or init != "default":
                names = ", ".join([*options, *(["init"] if init != "default" else [])])
                raise OptionError(
                    f"parametrization is already built, so these options have no effect: {names}; drop them"
                )
            if parametrization.shape != matrix_shape:
                raise SizeError(f"parametrization must have the shape {matrix_shape}, got {parametrization.shape}")
        else:
            if taken := {"positions", "variance"} & set(options):
                raise OptionError(
                    f"{', '.join(sorted(taken))} follows from the geometry and init= of the layer; drop it"
                )
            if target is not None:
                target = self._to_matrix(target)
                if tuple(target.shape) != matrix_shape:
                    raise SizeError(f"the weight to fit must have the shape {matrix_shape}, got {tuple(target.shape)}")
            parametrization = make(
                parametrization,
                matrix_shape,
                target=target,
                positions=positions,
                variance=variance,
                device=device,
                dtype=dtype,
                **options,
            )
        self.path = path
        self._cache = WeightCache()
        self._stage_cache = WeightCache()
        if getattr(template, "bias", None) is None:
            self.register_parameter("bias", None)
        else:
            self.bias = nn.Parameter(torch.empty(template.bias.shape, device=device, dtype=dtype))
            nn.init.uniform_(self.bias, -self._bias_bound, self._bias_bound)
        self.parametrization = parametrization

    # ------------------------------------------------------------------ given by the kinds of layers

    @abc.abstractmethod
    def _to_weight(self, matrix: Tensor) -> Tensor:
        """The (out, in) matrix in the layout of the plain layer's weight."""

    @abc.abstractmethod
    def _to_matrix(self, weight: Tensor) -> Tensor:
        """The inverse of ``_to_weight``."""

    @abc.abstractmethod
    def _arguments(self) -> dict[str, Any]:
        """Constructor arguments shared with the plain layer: geometry and bias, no device and dtype."""

    @classmethod
    @abc.abstractmethod
    def _arguments_of(cls, module: Any) -> dict[str, Any]:
        """The same, read off a plain layer."""

    @abc.abstractmethod
    def _rows(self, x: Tensor) -> int:
        """Rows of the matrix product that an input stands for."""

    # ------------------------------------------------------------------ the weight

    @property
    def weight(self) -> Tensor:
        """The effective dense weight in torch's layout, read-only; in training it carries gradients."""
        try:
            return self._effective_weight(detach=True)
        except AttributeError as error:  # else nn.Module would report a missing attribute 'weight'
            raise RuntimeError(f"{type(self.parametrization).__name__}.dense() failed: {error}") from error

    def _effective_weight(self, detach: bool = False) -> Tensor:
        """The dense weight, from the cache where that is allowed."""
        parametrization: Parametrization = self._modules["parametrization"]  # type: ignore[assignment]
        if not self.training and self._caches and not torch.compiler.is_compiling():
            weight = self._cache.lookup(parametrization, type(self), self._num_sources, self._build_weight)
            if weight is not None:
                return weight.detach() if detach else weight
        return self._build_weight()

    def _build_weight(self) -> Tensor:
        return self._to_weight(self.parametrization.dense())

    @property
    def fit_error(self) -> float | None:
        """Relative error of the last fit to a given weight, None for a random start."""
        return self.parametrization.fit_error

    def _way(self, x: Tensor) -> str:
        """How this call runs: "factored", "stages", "cached stages", "dense" or "cached"."""
        if torch.compiler.is_compiling():
            if torch.compiler.is_exporting():
                return self._export_way
            plan = self._plan
        elif is_tracing():
            return self._export_way  # a branch on rows would be frozen into the trace
        elif self.training or torch.is_grad_enabled():
            plan = self._plan
        else:
            plan = self._cached_plan
        way = plan.few if plan.few is plan.some is plan.many is plan.most else plan.way(self._rows(x))
        if self._sensitive and way.endswith("stages") and is_autocast(x.device.type):
            return "cached"  # sums and differences of blocks lose too much in half precision
        return way

    def _current_stages(self, way: str) -> list[Stage] | None:
        """The stages, kept in evaluation where making them takes time; None if there turn out to be none."""
        parametrization: Parametrization = self._modules["parametrization"]  # type: ignore[assignment]
        if way == "cached stages":
            stages = self._stage_cache.lookup(parametrization, "stages", self._num_sources, self._build_stages)
            return stages or None
        return parametrization.stages()

    def _build_stages(self) -> list[Stage]:
        stages = self.parametrization.stages() or []
        return [Stage(stage.matrix.detach(), stage.inner) for stage in stages]

    def reset_parameters(self) -> None:
        """Draw new parameters by the family's initial law, and a bias as the plain layer's."""
        self.parametrization.reset_parameters()
        self.parametrization.fit_error = None
        if self.bias is not None:
            nn.init.uniform_(self.bias, -self._bias_bound, self._bias_bound)
        self.clear_cache()

    def clear_cache(self) -> None:
        """Forget what was built in evaluation."""
        self._cache.entry = self._stage_cache.entry = None

    def explain(self, x: Tensor) -> Explanation:
        """What a forward pass of this input would do now, and why. Computes no output.

        Args:
            x: an input, only its shape matters.

        Returns:
            path, multiply-adds, bytes, predicted times, reason.
        """
        rows, first = self._rows(x), next(self.parametrization.parameters())
        way = self._way(x)
        stages = self._current_stages(way) if "stages" in way else None
        if "stages" in way and stages is None:
            way = "cached"
        if way in ("cached", "dense"):  # both build the weight; whether it is kept is the cache's rule
            way = "cached" if self._caches_now() else "dense"
        if way == "stages" and not self._sensitive:
            way = "factored"  # views of the parameters: the convolution's form of the factored product
        kind = type(self.parametrization).__name__
        limit = (
            f"{kind} has no factored product for this geometry; "
            if not self._has_factors and self.path != "dense"
            else ""
        )
        if stages is not None and len(stages) == 3:
            limit = f"{len(stages[1].matrix)} products of blocks (error {self.parametrization.stage_error:.1g}); "
        if self.path != "auto":
            why = limit + f"path={self.path!r} was asked for"
        elif way in ("cached", "dense") and not self._caches:
            why = "the weight is stored as it is"
        elif way in ("dense", "stages"):
            why = limit + "built in every call, because gradients may be needed"
        elif way == "cached":
            why = limit + "evaluation without gradients: the weight is built once and kept"
        else:
            why = limit + f"predicted to be the fastest for {rows} rows on {first.device.type}"
        stage_macs = 0 if stages is None else self._stage_macs(stages, x)
        device, itemsize = first.device, first.element_size()
        return explain(self.parametrization, way, why, rows, stages, stage_macs, device, itemsize, self._floor_s)

    def _caches_now(self) -> bool:
        """Whether a weight built now would be kept."""
        wants_gradients = torch.is_grad_enabled() and any(p.requires_grad for p in self.parametrization.parameters())
        return not self.training and self._caches and not wants_gradients

    # ------------------------------------------------------------------ from and to plain layers

    @classmethod
    def from_dense(
        cls,
        module: nn.Module,
        family: str | Parametrization,
        *,
        gram: Tensor | None = None,
        path: str = "auto",
        **options: Any,
    ) -> Self:
        """A layer of the same geometry whose weight is the nearest member of a family.

        Args:
            module: the plain layer; it is left as it is.
            family: family name, or a member of the right shape (fitted in place).
            gram: (in, in) Gram matrix of the matrix's inputs, to weigh the error by; None weighs all inputs alike.
            path: as in the constructor.
            **options: of the family.

        Returns:
            the layer, on the same device, with the same dtype, mode and bias; ``fit_error`` holds the relative error.

        Raises:
            OptionError: ``module`` is not of the plain class, or a device or dtype is given.
            FitError: the family cannot be fitted to a given weight.
        """
        if not isinstance(module, cls.torch_class):
            raise OptionError(f"module must be a torch.nn.{cls.torch_class.__name__}, got {type(module).__name__}")
        refuse_device_and_dtype(options)
        weight: Any = module.weight
        bias: Any = getattr(module, "bias", None)
        layer = cls(
            **cls._arguments_of(module),
            parametrization=family,
            path=path,
            device=weight.device,
            dtype=weight.dtype,
            target=weight.detach(),
            **options,
        )
        layer.parametrization.fit_(layer._to_matrix(weight.detach()), gram)
        for parameter in layer.parametrization.parameters():
            parameter.requires_grad_(weight.requires_grad)
        if layer.bias is not None:
            with torch.no_grad():
                layer.bias.copy_(bias)
            layer.bias.requires_grad_(bias.requires_grad)
        return layer.train(module.training)

    def fold(self) -> nn.Module:
        """A plain layer of torch.nn that computes the same function.

        Returns:
            the plain layer, with its own copy of the weight and the bias, in the same mode.

        Raises:
            FoldError: inside vmap, grad or another transform, where there is no one weight to fold to.
        """
        if in_transform():
            raise FoldError(
                "fold was called inside torch.func.vmap, grad or another transform, where the weight is not one "
                "tensor; fold the layer before the transform"
            )
        plain = self.torch_class(**self._arguments(), device="meta")
        with plain_arithmetic(next(self.parameters()).device.type):
            weight = self._build_weight().detach().clone(memory_format=torch.contiguous_format)
            plain.weight = nn.Parameter(
                weight, requires_grad=any(p.requires_grad for p in self.parametrization.parameters())
            )
            if self.bias is not None:
                plain.bias = nn.Parameter(self.bias.detach().clone(), requires_grad=self.bias.requires_grad)
        return plain.train(self.training)

    def _origins(self) -> Iterator[tuple[str, tuple[nn.Parameter, ...]]]:
        yield "weight", tuple(self.parametrization.parameters())
        if self.bias is not None:
            yield "bias", (self.bias,)

    # ------------------------------------------------------------------ nn.Module, with the cache kept right

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight":
            raise AttributeError(_READ_ONLY)
        super().__setattr__(name, value)
        if name in ("parametrization", "path") and "_stage_cache" in self.__dict__:
            self._replan()
        if "_stage_cache" in self.__dict__:  # train() and eval() come by here too: they assign self.training
            self.clear_cache()

    def __delattr__(self, name: str) -> None:
        if name == "weight":
            raise AttributeError(_READ_ONLY)
        super().__delattr__(name)

    def _replan(self) -> None:
        """Work out the choices that depend on shapes and device only."""
        parametrization = self.parametrization
        record = record_of(parametrization)
        first = next(parametrization.parameters(), None)
        device = torch.device("cpu") if first is None else first.device
        self._device_type = device.type
        itemsize = 4 if first is None else first.element_size()
        self._num_sources = count_sources(parametrization)
        self._caches = parametrization.build_cost() > 0
        self._traffic = parametrization.traffic
        ways, cached_ways = self._ways(False), self._ways(True)
        self._has_factors = bool(ways or cached_ways)
        self._sensitive = parametrization.stage_build_cost() > 0
        if self.path == "dense":
            ways = cached_ways = []
        if self.path != "factored" or not ways:
            ways = [*ways, "dense"]
        if self.path != "factored" or not cached_ways:
            cached_ways = [*cached_ways, "cached" if self._caches else "dense"]
        self._plan, self._cached_plan = (
            plan(parametrization, choice, device, itemsize, self._floor_s) for choice in (ways, cached_ways)
        )
        prefers_dense = self.path == "auto" and record is not None and record.export_path == "dense"
        self._export_way = "dense" if prefers_dense else ways[0]

    def _stage_macs(self, stages: list[Stage], x: Tensor) -> int:
        """Multiply-adds of running the stages on an input."""
        return self._rows(x) * sum(stage.matrix.numel() * stage.inner for stage in stages)

    @abc.abstractmethod
    def _ways(self, evaluation: bool) -> list[str]:
        """The ways other than a dense matrix that there are: "factored", "stages", "cached stages"."""

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self._replan()  # assigns, so it forgets the cached weight too
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: Any, strict: bool,
        missing_keys: list[str], unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        self.clear_cache()
        inner = prefix + "parametrization."
        weight = state_dict.get(prefix + "weight")
        if weight is not None and not any(key.startswith(inner) for key in state_dict):
            # A checkpoint of the plain layer: fit a copy, and load that instead, so that a failure changes nothing.
            del state_dict[prefix + "weight"]
            fitted, assigns = copy.deepcopy(self.parametrization), local_metadata.get("assign_to_params_buffers")
            if assigns:  # what is assigned has the device and dtype of the checkpoint
                _move(fitted, weight)
            try:
                wanted = self._to_weight(torch.empty(fitted.shape, device="meta")).shape
                if weight.shape != wanted:
                    raise SizeError(f"it must have the shape {tuple(wanted)}, got {tuple(weight.shape)}")
                error = fitted.fit_(self._to_matrix(weight))
            except (ValueError, RuntimeError) as problem:
                error_msgs.append(
                    f"{prefix}weight of a plain layer cannot be loaded into {type(self).__name__}: {problem}"
                )
                state_dict.update(self.state_dict(prefix=prefix))
            else:
                warnings.warn(
                    f"{prefix}weight of a plain layer was fitted by family {fitted.family!r}: "
                    f"relative error {error:.3g}",
                    stacklevel=2,
                )
                if assigns:  # buffers that no state holds come along
                    _move(self.parametrization, weight)
                    self._replan()
                self.parametrization.fit_error = error
                state_dict.update(fitted.state_dict(prefix=inner))
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def extra_repr(self) -> str:
        arguments = ", ".join(f"{k}={v!r}" for k, v in self._arguments().items())
        return arguments if self.path == "auto" else f"{arguments}, path={self.path!r}"


_READ_ONLY = (
    "layer.weight is computed from layer.parametrization and cannot be assigned or deleted; to set it use "
    "layer.parametrization.fit_(matrix), to draw it anew layer.reset_parameters(), for a plain layer layer.fold()"
)


def _move(parametrization: Parametrization, like: Tensor) -> None:
    """Bring a parametrization to the device and dtype of a tensor, from the meta device too."""
    if any(parameter.is_meta for parameter in parametrization.parameters()):
        parametrization.to_empty(device=like.device).to(like.dtype).reset_parameters()
    else:
        parametrization.to(like.device, like.dtype)


def _check_choice(argument: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise OptionError(
            f"{argument} must be one of {', '.join(choices)}; got {value!r}{nearest_name(str(value), choices)}"
        )
