"""Checking every key of a recipe against signatures, without building anything.

A class is imported to read its signature; no model, no data and no trainer is made. All faults are collected.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from weft.errors import OptionError, WeftError, nearest_name
from weft.parametrizations.registry import COMMON, check_options

#: Sections that hold the arguments of a class, and the class where the section names none.
SECTIONS = {
    "trainer": "lightning.pytorch.Trainer",
    "model": "weft.train.Classifier",
    "data": "weft.data.ImageData",
}
#: Sections that may name another class, and what it must be.
BASES = {"model": "lightning.pytorch.LightningModule", "data": "lightning.pytorch.LightningDataModule"}
#: Other keys of a recipe, with their types as jsonargparse checks them.
SETTINGS: dict[str, Any] = {
    "seed_everything": bool | int,
    "run_dir": str | None,
    "checkpoint_every_n_steps": int | None,
    "ckpt_path": str | None,
    "weights_only": bool | None,
}


def check(recipe: Mapping[str, Any]) -> list[str]:
    """Every fault of a recipe.

    Args:
        recipe: what ``load`` returned.

    Returns:
        one message per fault, each beginning with the key; empty for a good recipe.

    Example:
        >>> check({"trainer": {"max_epoch": 3}})
        ["trainer.max_epoch: unknown argument of Trainer; did you mean 'max_epochs'?"]
    """
    faults: list[str] = []
    known = [*SECTIONS, *SETTINGS]
    for key, value in recipe.items():
        if key in SECTIONS:
            faults += _check_section(key, value)
        elif key in SETTINGS:
            parser = ArgumentParser(exit_on_error=False)
            parser.add_argument(f"--{key}", type=SETTINGS[key])
            faults += _check_value(parser, key, value, key)
            if key == "seed_everything" and type(value) is int and not is_seed(value):
                faults.append(f"{key}: must be in [0, 2**32), got {value}")
        else:
            faults.append(f"{key}: unknown section{nearest_name(str(key), known)} (sections: {', '.join(known)})")
    return faults


def is_seed(value: Any) -> bool:
    """Whether every generator takes a number as its seed.

    Args:
        value: any.

    Returns:
        whether it is an integer in [0, 2**32), and not a truth value.

    Example:
        >>> is_seed(7), is_seed(-1), is_seed(2**32), is_seed(True)
        (True, False, False, False)
    """
    return type(value) is int and 0 <= value < 2**32


def _check_section(key: str, value: Any) -> list[str]:
    default = locate(SECTIONS[key])
    if not isinstance(value, Mapping):
        remedy = "; give them, or leave the section out" if value is None else ""
        return [f"{key}: must hold the arguments of {default.__name__}, got {value!r}{remedy}"]
    if key not in BASES or "class_path" not in value:
        return _check_call(default, value, key)
    if faults := _check_spec(value, key):
        return faults
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments((locate(BASES[key]),), key)  # type: ignore[arg-type]
    return _check_value(parser, key, value, key)


def locate(path: str) -> Callable[..., Any]:
    """The class or function that an import path names.

    Args:
        path: dotted, such as ``torch.nn.Linear``.

    Returns:
        the class or function.

    Raises:
        OptionError: there is no such module or name; says what is nearest.
    """
    module_name, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module_name), name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise  # the module is there, but needs something that is not installed
        raise OptionError(f"there is no module {error.name!r}") from None
    except AttributeError:
        names = [each for each in dir(importlib.import_module(module_name)) if not each.startswith("_")]
        raise OptionError(f"{module_name!r} has no {name!r}{nearest_name(name, names)}") from None
    if not callable(found):
        raise OptionError(f"{path!r} is neither a class nor a function")
    return found


def _check_spec(spec: Mapping[str, Any], key: str) -> list[str]:
    """Faults of a ``{class_path, init_args}`` mapping."""
    allowed = ("class_path", "init_args", "dict_kwargs")
    faults = [f"{key}.{name}: unknown key{nearest_name(str(name), allowed)} (beside class_path: init_args)"
              for name in spec if name not in allowed]  # fmt: skip
    path, args = spec["class_path"], spec.get("init_args") or {}
    if not isinstance(path, str):
        return [*faults, f"{key}.class_path: must be an import path, got {path!r}"]
    if not isinstance(args, Mapping):
        return [*faults, f"{key}.init_args: must hold arguments by name, got {args!r}"]
    if "." not in path:
        return faults  # a short name, which jsonargparse resolves from the type that is wanted
    try:
        return faults + _check_call(locate(path), args, f"{key}.init_args", spec.get("dict_kwargs") or {})
    except OptionError as error:
        return [*faults, f"{key}.class_path: {error}"]


def _check_call(
    target: Callable[..., Any], args: Mapping[str, Any], key: str, extra: Mapping[str, Any] = MappingProxyType({})
) -> list[str]:
    """Faults of the arguments by name of a class or function; ``extra`` goes to its ``**kwargs``."""
    faults: list[str] = []
    signature = inspect.signature(target)
    names = _add(ArgumentParser(exit_on_error=False), target)
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values())
    for name in args:
        if name not in names:
            hint = "; if it is for **kwargs, write it under dict_kwargs" if open_ended else ""
            faults.append(f"{key}.{name}: unknown argument of {target.__name__}{nearest_name(str(name), names)}{hint}")
    for name, value in args.items():
        if name in names:
            inner = list(_check_inside(value, f"{key}.{name}"))
            if not inner:
                parser = ArgumentParser(exit_on_error=False)
                _add(parser, target, skip=set(names) - {name})
                inner = _check_value(parser, name, value, f"{key}.{name}")
            faults += inner
    for name, parameter in signature.parameters.items():
        if parameter.default is parameter.empty and name in names and name not in args:
            faults.append(f"{key}.{name}: missing; {target.__name__} needs it")
    return faults + _check_family(args, extra, key)


def _check_inside(value: Any, key: str) -> Iterator[str]:
    """Faults of the classes named somewhere inside a value."""
    if isinstance(value, Mapping) and "class_path" in value:
        yield from _check_spec(value, key)
    elif isinstance(value, Mapping):
        for name, each in value.items():
            yield from _check_inside(each, f"{key}.{name}")
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield from _check_inside(each, f"{key}[{index}]")


def check_families(value: Any, key: str) -> list[str]:
    """Faults of the families named anywhere in a configuration, and of their options.

    Args:
        value: mappings and lists, with classes as ``class_path`` and ``init_args``.
        key: of the value.

    Returns:
        one message per fault.

    Example:
        >>> model = {"class_path": "weft.Linear", "init_args": {"parametrization": "kronecker", "options": {"n": "x"}}}
        >>> check_families(model, "model")
        ["model.init_args.options.n: expected int, null, got 'x'"]
    """
    if isinstance(value, list | tuple):
        return [fault for index, each in enumerate(value) for fault in check_families(each, f"{key}[{index}]")]
    if not isinstance(value, Mapping):
        return []
    faults: list[str] = []
    if "class_path" in value:
        args, extra = value.get("init_args") or {}, value.get("dict_kwargs") or {}
        faults = _check_family(args, extra, f"{key}.init_args")
    return faults + [fault for name, each in value.items() for fault in check_families(each, f"{key}.{name}")]


def _check_family(args: Mapping[str, Any], extra: Mapping[str, Any], key: str) -> list[str]:
    """Faults of a family's name and options, wherever ``parametrization`` names one."""
    name, options = args.get("parametrization"), args.get("options") or {}
    if not isinstance(name, str) or not isinstance(options, Mapping):
        return []
    options = {**extra, **options}
    try:
        record = check_options(name, dict.fromkeys(options))  # the values are looked at one by one below
    except WeftError as error:
        return [f"{key}: {error}"]
    faults = []
    for option in options.keys() & record.options.keys():
        parser = ArgumentParser(exit_on_error=False)
        _add(parser, record.cls, skip=set(COMMON) | (record.options.keys() - {option}))
        faults += _check_value(parser, option, options[option], f"{key}.options.{option}")
    share = options.get("share")
    if share is not None and record.sized_by != "share":
        faults.append(f"{key}.options.share: family {name!r} is not sized by share, but by {record.sized_by!r}")
    elif share is not None and not (isinstance(share, int | float) and 0 < share <= 1):
        faults.append(f"{key}.options.share: must be in (0, 1], got {share!r}")
    return sorted(faults)


def _add(parser: ArgumentParser, target: Callable[..., Any], **options: Any) -> list[str]:
    add = parser.add_class_arguments if inspect.isclass(target) else parser.add_function_arguments
    return list(add(target, fail_untyped=False, **options))


def _check_value(parser: ArgumentParser, name: str, value: Any, key: str) -> list[str]:
    """The fault of one value against the only argument of a parser."""
    try:
        parser.parse_object({name: value})
    except ArgumentError as error:
        return [f"{key}: {explain(str(error), value)}"]
    return []


def explain(text: str, value: Any) -> str:
    """jsonargparse's page about a wrong value, in one line.

    Args:
        text: its message.
        value: that was refused.

    Returns:
        what was expected and what was given.

    Example:
        >>> explain("Parser key 'lr': Expected a <class 'float'>. Got value: abc", "abc")
        "expected float, got 'abc'"
    """
    named, refused = re.search(r"class_path '([\w.]+)'", text), re.search(r"Option '(\w+)' is not accepted", text)
    if named and refused:
        names = _add(ArgumentParser(exit_on_error=False), locate(named[1]))
        return f"unknown argument {refused[1]!r} of {named[1]}{nearest_name(refused[1], names)}"
    if named and "has no attribute" in text:
        try:
            locate(named[1])
        except OptionError as error:
            return str(error)
    union, single = re.search(r"Subtypes: \[(.*)\]", text), re.search(r"Expected an? (.*?)\. Got value: (.*)", text)
    if not (union or single):
        return " ".join(text.partition(":\n")[2].split()) or text
    wanted = (union or single)[1]  # type: ignore[index]
    choices = re.findall(r"'([\w.-]+)'", re.sub(r"<class '.*?'>", "", wanted))
    wanted = re.sub(r"<class '(?:[\w.]*\.)?(\w+)'>", r"\1", wanted).replace("NoneType", "null").replace("typing.", "")
    wanted = re.sub(r"\b(?:[a-z_]\w*\.)+(\w+)", r"\1", wanted)
    inner = single[2] if single else str(value)
    got = repr(value) if inner == str(value) else f"{inner!r} in {value!r}"
    return f"expected {wanted.replace('Literal', 'one of ')}, got {got}{nearest_name(inner, choices)}"
