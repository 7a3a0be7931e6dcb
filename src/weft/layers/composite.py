"""Modules of torch that hold several weights: recurrent layers and attention.

Every weight is a ``weft.Linear`` of its own inside, so that cache, path choice, folding and reports are those of any
other layer; what runs is torch's own kernel, or torch's own formula.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from weft.errors import FoldError, OptionError, WeftError
from weft.layers.base import Layer
from weft.layers.foldable import Foldable
from weft.layers.linear import Linear
from weft.modes import in_transform
from weft.parametrizations import Parametrization, Stacked, check_options, make
from weft.parametrizations.registry import refuse_device_and_dtype

#: Makes a member of a shape; what ``parametrization=`` may be beside the name of a family.
Maker = Callable[..., Parametrization]


class Composite(Foldable):
    """A module of torch whose weights are described by parametrizations of one family."""

    _version = 1
    torch_class: ClassVar[type[nn.Module]]
    _has_paths: ClassVar[bool]  # whether products run one by one, so that each may take its own path

    # ------------------------------------------------------------------ given by the kinds of composites

    @abc.abstractmethod
    def _arguments(self) -> dict[str, Any]:
        """Constructor arguments of the plain module, no device and dtype."""

    @classmethod
    @abc.abstractmethod
    def _arguments_of(cls, module: Any) -> dict[str, Any]:
        """The same, read off a plain module."""

    @abc.abstractmethod
    def _plain_parameters(self) -> dict[str, list[tuple[str, str]]]:
        """Names of the plain module's parameters to the places here: (child, its "weight" or "bias"), by rows.

        An empty child means a parameter of the module itself.
        """

    @abc.abstractmethod
    def _reset_biases(self) -> None:
        """Draw the biases as the plain module does."""

    # ------------------------------------------------------------------ setting up

    @staticmethod
    def _maker(
        parametrization: str | Maker, device: torch.device | str | None, dtype: torch.dtype | None,
        options: dict[str, Any],
    ) -> Maker:  # fmt: skip
        """What makes the members; options are checked before anything is built."""
        if isinstance(parametrization, Parametrization):
            raise OptionError(
                "parametrization must be the name of a family or a function that makes a member, "
                "make(shape, variance=..., device=..., dtype=...), because there are several weights; got a member"
            )
        options = {name: value for name, value in options.items() if value is not None}
        common = {"device": device, "dtype": dtype}
        if not isinstance(parametrization, str):
            if options:
                raise OptionError(f"parametrization is a function, so these options have no effect: {list(options)}")
            function = parametrization
            return lambda shape, **more: function(shape, **{**common, **more})
        name = parametrization
        check_options(name, options)
        return lambda shape, **more: make(name, shape, **{**common, **options, **more})

    def reset_parameters(self) -> None:
        """Draw new parameters: weights by the family's initial law, biases as the plain module's."""
        for layer in self._layers().values():
            layer.reset_parameters()
        with torch.no_grad():
            self._reset_biases()

    # ------------------------------------------------------------------ the weights

    def _layers(self) -> dict[str, Linear]:
        """The weights, by the names of the children that hold them."""
        return {name: child for name, child in self.named_children() if isinstance(child, Linear)}

    @property
    def fit_error(self) -> float | None:
        """The largest relative error of the weights' last fit to given ones, None for a random start."""
        errors = [layer.fit_error for layer in self._layers().values() if layer.fit_error is not None]
        return max(errors, default=None)

    def clear_cache(self) -> None:
        """Forget what was built in evaluation."""
        for layer in self._layers().values():
            layer.clear_cache()

    def _plain_value(self, places: list[tuple[str, str]]) -> Tensor | None:
        """The value of a plain module's parameter, None where there is none."""
        values = []
        for child, name in places:
            holder: Any = self._modules[child] if child else self
            values.append(holder._effective_weight() if child and name == "weight" else getattr(holder, name))
        return None if values[0] is None else values[0] if len(values) == 1 else torch.cat(values)

    def _origins(self) -> Iterator[tuple[str, tuple[nn.Parameter, ...]]]:
        for name, places in self._plain_parameters().items():
            if self._plain_value(places) is not None:
                yield name, tuple(self._sources(places))

    def _sources(self, places: list[tuple[str, str]]) -> Iterator[nn.Parameter]:
        """The parameters that a plain module's parameter is made of."""
        for child, name in places:
            holder: Any = self._modules[child] if child else self
            if child and name == "weight":
                yield from holder.parametrization.parameters()
            else:
                yield getattr(holder, name)

    @abc.abstractmethod
    def _kernel_macs(self, *args: Any, **kwargs: Any) -> int:
        """Multiply-adds with the weights, for the arguments of a call that ran on whole weights."""

    # ------------------------------------------------------------------ from and to plain modules

    @classmethod
    def from_dense(cls, module: nn.Module, family: str | Maker, *, path: str = "auto", **options: Any) -> Self:
        """The same module with weights that are the nearest members of a family.

        A weight whose sizes the family cannot take stays dense, and ``kept_dense`` says why.

        Args:
            module: the plain module; it is left as it is.
            family: family name, or a function that makes a member.
            path: as in ``weft.Linear``; without effect on recurrent layers, which run on whole weights.
            **options: of the family.

        Returns:
            the module, on the same device, with the same dtype, mode and biases.

        Raises:
            OptionError: ``module`` is not of the plain class, or the family takes no such option.
            WeftError: the family can take none of the weights.
            FitError: the family cannot be fitted to a given weight.
        """
        if type(module) is not cls.torch_class:
            raise OptionError(f"module must be a torch.nn.{cls.torch_class.__name__}, got {type(module).__name__}")
        refuse_device_and_dtype(options)
        plain: dict[str, Tensor] = dict(module.named_parameters())
        like = next(iter(plain.values()))
        make_member = cls._maker(family, like.device, like.dtype, options)
        refusals: list[WeftError] = []
        taken = 0

        def make_or_keep(shape: tuple[int, int], **common: Any) -> Parametrization:
            nonlocal taken
            try:
                member = make_member(shape, **common)
            except WeftError as error:
                refusals.append(error)
                return make("dense", shape, **common)
            taken += 1
            return member

        arguments = {**cls._arguments_of(module), "device": like.device, "dtype": like.dtype}
        if cls._has_paths:
            arguments["path"] = path
        new = cls(**arguments, parametrization=make_or_keep)
        if not taken:
            raise refusals[0]
        new.kept_dense = tuple(dict.fromkeys(str(refusal) for refusal in refusals))

        def suited(member: Parametrization, target: Tensor) -> Parametrization:
            """The member, or one whose sizes within the share suit what it will be fitted to."""
            if isinstance(member, Stacked):
                targets = target.split([part.shape[0] for part in member.parts()])
                return Stacked([suited(part, t) for part, t in zip(member.parts(), targets, strict=True)])
            if options.get("share") is None or member.family != family:
                return member
            return make_member(member.shape, variance=member.variance, target=target)

        with torch.no_grad():
            for name, places in new._plain_parameters().items():
                new._take(places, plain.get(name), suited)
        new._count_sources()
        return new.train(module.training)

    def _count_sources(self) -> None:
        """Note how many tensors the weights are made of, where a cache of the whole module wants to know."""

    #: Why some weights stayed dense when the module was converted.
    kept_dense: tuple[str, ...] = ()

    def _take(
        self,
        places: list[tuple[str, str]],
        value: Tensor | None,
        suited: Callable[[Parametrization, Tensor], Parametrization],
    ) -> None:
        """Fit or copy a plain module's parameter; ``suited`` may exchange a member for one of better sizes first."""
        if value is None:
            return
        for (child, name), part in zip(places, value.chunk(len(places)), strict=True):
            holder: Any = self._modules[child] if child else self
            if child and name == "weight":
                holder.parametrization = suited(holder.parametrization, part.detach())
                holder.parametrization.fit_(part)
                for parameter in holder.parametrization.parameters():
                    parameter.requires_grad_(value.requires_grad)
            else:
                getattr(holder, name).copy_(part)
                getattr(holder, name).requires_grad_(value.requires_grad)

    def fold(self) -> nn.Module:
        """A plain module of torch.nn that computes the same function.

        Returns:
            the plain module, with its own copies of the weights and biases, in the same mode.

        Raises:
            FoldError: inside vmap, grad or another transform, where there is no one weight to fold to.
        """
        if in_transform():
            raise FoldError("fold was called inside torch.func.vmap, grad or another transform; fold the module before")
        plain = self.torch_class(**self._arguments(), device="meta")
        for name, places in self._plain_parameters().items():
            with torch.no_grad():
                value = self._plain_value(places)
            if value is not None:
                trained = any(source.requires_grad for source in self._sources(places))
                owner, _, last = name.rpartition(".")
                copy = value.detach().clone(memory_format=torch.contiguous_format)
                setattr(plain.get_submodule(owner), last, nn.Parameter(copy, requires_grad=trained))
        return plain.train(self.training)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: Any, strict: bool,
        missing_keys: list[str], unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        # A checkpoint of the plain module: hand every child its part, which it then loads or fits.
        for name, places in self._plain_parameters().items():
            value = state_dict.get(prefix + name)
            own = [prefix + (f"{child}.{last}" if child else last) for child, last in places]
            if value is not None and own != [prefix + name] and value.shape[:1].numel() % len(places) == 0:
                del state_dict[prefix + name]
                state_dict.update(zip(own, value.chunk(len(places)), strict=True))
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def extra_repr(self) -> str:
        return ", ".join(f"{k}={v!r}" for k, v in self._arguments().items())


def weft_modules(model: nn.Module) -> Iterator[tuple[str, Foldable]]:
    """The layers of Weft in a model, not the parts that a composite holds.

    Args:
        model: any module.

    Yields:
        name and layer; one that stands in several places once.
    """
    inner: set[nn.Module] = set()
    for name, module in model.named_modules():
        if isinstance(module, Foldable) and module not in inner:
            inner.update(module.modules())
            yield name, module


def parametrizations_of(module: Layer | Composite) -> list[Parametrization]:
    """The matrices of a layer of Weft.

    Args:
        module: a layer or a composite.

    Returns:
        one per weight, or per gate.
    """
    layers = module._layers().values() if isinstance(module, Composite) else (module,)
    weights = [layer.parametrization for layer in layers]
    return [part for w in weights for part in (w.parts() if isinstance(w, Stacked) else [w])]


def clear_cache(model: nn.Module) -> None:
    """Forget the weights that layers built in evaluation.

    Needed only after writes that the cache cannot see: through ``.data``, numpy or another process, in the middle of
    evaluation.

    Args:
        model: any module; its Weft layers are found.

    Example:
        >>> import torch, weft
        >>> model = torch.nn.Sequential(weft.Linear(8, 8, parametrization="kronecker"))
        >>> weft.clear_cache(model)
    """
    for module in model.modules():
        if isinstance(module, Foldable):
            module.clear_cache()
