"""One frozen record per family, and the making of members by name.

``weft list``, the tables in the docs, the contract tests, ``parameter_groups`` and the path choice all read the record.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from numbers import Integral, Number, Real
from types import MappingProxyType
from typing import Any, Literal, get_args, get_type_hints

from torch import Tensor

from weft.errors import OptionError, UnknownNameError, nearest_name
from weft.parametrizations.base import Parametrization
from weft.parametrizations.formulas import evaluate, numbers_of

#: Constructor arguments that every family takes and the layer passes; they are not options of a family.
COMMON = frozenset({"shape", "positions", "variance", "device", "dtype"})

#: What the multipliers on learning rates differ by: "adam" for Adam and its kin, or "sgd".
OptimizerKind = Literal["adam", "sgd"]


@dataclass(frozen=True, kw_only=True)
class Family:
    """The facts about one family.

    Args:
        name: what a user writes, lower case.
        cls: the parametrization class.
        title: the name in prose.
        summary: one sentence on what the weight is.
        advice: one line on when to choose it.
        source: authors, year, title, section, link.
        options: option name to one line on its meaning, unit and range.
        sized_by: ``"share"``, or the option that sizes the family (it then refuses ``share``).
        parameters: formula of the stored numbers, in out, in and the options.
        cost: formula of the multiply-adds of the factored product, in rows, out, in and the options.
        weight_decay: parameter name to whether it takes weight decay; every parameter is named.
        lr_multiplier: parameter name to the factor on the learning rate of Adam and its kin, whose steps do not depend
            on the size of the gradient; 1 where not named. A number, or a formula in out, in, gain (see
            ``formulas.numbers_of``) and attributes of the member.
        sgd_multiplier: likewise for SGD, with or without momentum.
        has_fit: whether ``fit_`` exists.
        launches: kernels that the factored product starts, for the path choice.
        efficiency: speed of the factored product's multiply-adds relative to one large matrix product.
        export_path: what runs under export and tracing.
        expected_failures: contract check to the reason why this family cannot pass it; strict.
    """

    name: str
    cls: type[Parametrization]
    title: str
    summary: str
    advice: str
    source: str
    options: Mapping[str, str] = field(default_factory=dict)
    sized_by: str = "share"
    parameters: str
    cost: str
    weight_decay: Mapping[str, bool]
    lr_multiplier: Mapping[str, float | str] = field(default_factory=dict)
    sgd_multiplier: Mapping[str, float | str] = field(default_factory=dict)
    has_fit: bool = True
    launches: int = 1
    efficiency: float = 1.0
    export_path: Literal["factored", "dense"] = "factored"
    expected_failures: Mapping[str, str] = field(default_factory=dict)

    def multipliers(self, member: Parametrization, optimizer: OptimizerKind = "adam") -> dict[str, float]:
        """The factors on the learning rate of a member's parameters.

        Args:
            member: of this family.
            optimizer: "adam" for Adam and its kin, or "sgd".

        Returns:
            the factor of every parameter, by name.
        """
        rules = self.sgd_multiplier if optimizer == "sgd" else self.lr_multiplier
        factors, numbers = {}, numbers_of(member)
        for name, _ in member.named_parameters():
            rule = rules.get(name, 1.0)
            factors[name] = evaluate(rule, numbers) if isinstance(rule, str) else float(rule)
        return factors


_FAMILIES: dict[str, Family] = {}


def register(record: Family) -> Family:
    """Add a family, after checking its record against its class.

    Args:
        record: the facts; its name must be new and lower case, its options those of the constructor.

    Returns:
        the record.

    Raises:
        OptionError: the name is taken or not lower case, the class names itself differently, or the options of the
            record are not those of the constructor.
    """
    if record.name != record.name.lower() or record.name in _FAMILIES:
        raise OptionError(f"name of a family must be new and in lower case, got {record.name!r}")
    if record.cls.family != record.name:
        raise OptionError(f"{record.cls.__name__}.family must be {record.name!r}, got {record.cls.family!r}")
    arguments = inspect.signature(record.cls).parameters.values()
    options = {argument.name for argument in arguments if argument.kind != argument.VAR_KEYWORD} - COMMON
    if options != set(record.options):
        raise OptionError(
            f"record of {record.name!r} must list the options {sorted(options)}, got {sorted(record.options)}"
        )
    _FAMILIES[record.name] = record
    return record


def families() -> Mapping[str, Family]:
    """All families by name.

    Returns:
        name to record, read-only.

    Example:
        >>> import weft
        >>> "low_rank" in weft.families()
        True
    """
    return MappingProxyType(_FAMILIES)


def family(name: str) -> Family:
    """The record of one family.

    Args:
        name: as in ``families()``.

    Returns:
        the record.

    Raises:
        UnknownNameError: there is no such family; names the nearest one.
    """
    try:
        return _FAMILIES[name]
    except (KeyError, TypeError):
        names = ", ".join(_FAMILIES)
        raise UnknownNameError(
            f"parametrization must be one of {names}; got {name!r}{nearest_name(str(name), _FAMILIES)}"
        ) from None


def record_of(parametrization: Parametrization) -> Family | None:
    """The record of a member's family, None for a class that was never registered.

    Args:
        parametrization: any member.

    Returns:
        the record or None.
    """
    record = _FAMILIES.get(parametrization.family)
    return record if record is not None and isinstance(parametrization, record.cls) else None


def check_options(name: str, options: Mapping[str, Any]) -> Family:
    """Refuse options that a family does not take, before anything is built.

    Args:
        name: of the family.
        options: option name to value; a value of None says nothing.

    Returns:
        the record of the family.

    Raises:
        OptionError: an option is unknown, or of another type than the family's constructor says. Whether ``share`` goes
            with the other options is checked by ``within``.
    """
    record = family(name)
    known = {*record.options, "share"} | (COMMON - {"shape"})
    for option in options:
        if option not in known:
            takes = ", ".join(["share"] * (record.sized_by == "share") + list(record.options)) or "none"
            raise OptionError(
                f"family {name!r} has no option {option!r} (it takes: {takes}){nearest_name(option, known)}"
            )
    kinds = {**_annotations(record.cls), "share": float}
    for option, value in options.items():
        if (
            value is not None
            and option in {"share", *record.options}
            and (wanted := _mismatch(value, kinds.get(option, Any)))
        ):
            raise OptionError(f"{option} of family {name!r} must be {wanted}, got {value!r}")
    return record


def refuse_device_and_dtype(options: Mapping[str, Any]) -> None:
    """Refuse options that follow from what is replaced or approximated.

    Args:
        options: option name to value.

    Raises:
        OptionError: a device or a dtype is among them.
    """
    if taken := [option for option in ("device", "dtype") if option in options]:
        raise OptionError(
            f"{' and '.join(taken)} cannot be given: it is that of what is replaced or approximated; move that "
            f"first with .to()"
        )


@functools.cache
def _annotations(cls: type[Parametrization]) -> Mapping[str, Any]:
    """What the constructor says about the types of its arguments."""
    with contextlib.suppress(NameError):  # a name that only type checkers see
        return get_type_hints(cls.__init__)
    return {}


#: Kinds of options that are checked: how each is called, and what it is.
_KINDS: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    int: ("a whole number", lambda value: isinstance(value, Integral) and not isinstance(value, bool)),
    float: ("a number", lambda value: isinstance(value, Real) and not isinstance(value, bool)),
    bool: ("True or False", lambda value: isinstance(value, bool)),
    str: ("a name", lambda value: isinstance(value, str)),
}


def _mismatch(value: Any, annotation: Any) -> str | None:
    """What a value should be; None if it is, or if nobody can tell: only numbers and names are judged."""
    kinds = [kind for kind in get_args(annotation) or (annotation,) if kind is not type(None)]
    others = [kind for kind in kinds if kind not in _KINDS]
    if any(_KINDS[kind][1](value) for kind in kinds if kind in _KINDS):
        return None
    if others and (Any in others or not isinstance(value, Number | str)):
        return None
    names = [_KINDS[kind][0] for kind in kinds if kind in _KINDS]
    return " or ".join([*names, *(["a table"] if others else [])])


def make(name: str, shape: tuple[int, int], *, target: Tensor | None = None, **options: Any) -> Parametrization:
    """A member of a family, by name, with drawn parameters.

    Args:
        name: of the family.
        shape: (out, in).
        target: matrix that the member will be fitted to, which a choice of sizes within ``share`` may look at.
        **options: the family's own, or ``share`` in (0, 1] to take the largest member within that budget;
            ``positions``, ``variance``, ``device`` and ``dtype`` as in ``Parametrization``.

    Returns:
        a new parametrization.

    Raises:
        UnknownNameError: no such family.
        OptionError: an option the family does not take.

    Example:
        >>> make("low_rank", (300, 200), share=0.1).rank
        12
    """
    record = check_options(name, options)
    if options.get("share") is None:
        options.pop("share", None)
        return record.cls(shape, **options)
    return record.cls.within(shape, target=target, **options)
