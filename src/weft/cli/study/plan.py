"""The file of a study: which runs it asks for."""

from __future__ import annotations

import copy
import inspect
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weft.cli.faults import check, is_seed, locate
from weft.cli.recipe import load
from weft.errors import OptionError, nearest_name

_KEYS = ("arms", "seeds", "metrics", "set", "select", "title")
_ARM_KEYS = ("recipe", "set")
_SELECT_KEYS = ("key", "values", "metric", "mode", "seed")
#: What the study itself decides, run by run.
_OWN = {"seed_everything": "written as seeds", "run_dir": "chosen by the study", "ckpt_path": "chosen by the study"}


@dataclass(frozen=True)
class Run:
    """One training and its test.

    Attributes:
        arm: name of the arm.
        seed: of everything that is drawn.
        value: of the key under selection; None without one.
        recipe: path.
        arguments: that follow the recipe on the command line of ``weft fit``.
        settings: what recipe and arguments say together, dotted keys to values; a run with others is another run.
    """

    arm: str
    seed: int
    value: Any
    recipe: Path
    arguments: tuple[str, ...]
    settings: dict[str, Any]

    @property
    def folder(self) -> Path:
        """Of the run, below that of the study."""
        chosen = [] if self.value is None else [_slug(str(self.value))]
        return Path(_slug(self.arm), *chosen, f"seed-{self.seed}")

    def __str__(self) -> str:
        return f"{self.arm}{'' if self.value is None else f', {self.value}'}, seed {self.seed}"


@dataclass(frozen=True)
class Selection:
    """A value that every arm chooses for itself by a validation metric.

    Attributes:
        key: dotted, as on the command line.
        values: to try.
        metric: that decides.
        mode: "max" or "min".
        seed: of the trials.
    """

    key: str
    values: tuple[Any, ...]
    metric: str
    mode: str
    seed: int


@dataclass(frozen=True)
class Study:
    """What a study file says.

    Attributes:
        name: of the file.
        title: of table and plot.
        arms: name to (recipe, keys that are set).
        seeds: of every arm.
        metrics: to gather; the first one is drawn.
        select: how an arm chooses a value, or None.
    """

    name: str
    title: str
    arms: dict[str, tuple[Path, dict[str, Any]]]
    seeds: tuple[int, ...]
    metrics: tuple[str, ...]
    select: Selection | None

    def run(self, arm: str, seed: int, value: Any = None) -> Run:
        """One run.

        Args:
            arm: name.
            seed: of the run.
            value: of the selected key.

        Returns:
            the run.
        """
        recipe, keys = self.arms[arm]
        if self.select is not None:
            keys = {**keys, self.select.key: value}
        arguments = [f"--seed_everything={seed}", *(f"--{key}={_text(each)}" for key, each in keys.items())]
        settings = _flat(merged(load(recipe), {**keys, "seed_everything": seed}))
        return Run(arm, seed, value, recipe, tuple(arguments), settings)

    def trials(self, arm: str) -> list[Run]:
        """The runs that choose a value.

        Args:
            arm: name.

        Returns:
            one per value; empty without a selection.
        """
        return [] if self.select is None else [self.run(arm, self.select.seed, each) for each in self.select.values]


def read(path: Path) -> Study:
    """Read a study file.

    Args:
        path: of YAML.

    Returns:
        the study.

    Raises:
        OptionError: a key is unknown or missing, a recipe is not there, or an arm sets what its recipe does not know.
    """
    if not path.is_file():
        beside = [file.name for file in path.parent.glob("*.yaml")]
        raise OptionError(f"study {path} does not exist{nearest_name(path.name, beside)}")
    content = load(path)
    _known(content, _KEYS, path.name)
    arms = content.get("arms")
    if not isinstance(arms, dict) or not arms:
        raise OptionError(f"{path.name}: arms must name at least one arm, each with a recipe; got {arms!r}")
    common = _set(content, path.name)
    made = {}
    for name, arm in arms.items():
        if not isinstance(arm, Mapping) or "recipe" not in arm:
            raise OptionError(f"{path.name}: arms.{name} must be a mapping with a recipe, got {arm!r}")
        _known(arm, _ARM_KEYS, f"{path.name}: arms.{name}")
        recipe = path.parent / str(arm["recipe"])
        load(recipe)
        made[str(name)] = (recipe, {**common, **_set(arm, f"{path.name}: arms.{name}")})
    _apart(made, f"{path.name}: arms")
    seeds, metrics = content.get("seeds", [0]), content.get("metrics", ["test/acc"])
    whole = isinstance(seeds, list) and all(map(is_seed, seeds))
    if not whole or not seeds or len(set(seeds)) < len(seeds):
        raise OptionError(f"{path.name}: seeds must be a list of different integers in [0, 2**32), got {seeds!r}")
    if not isinstance(metrics, list) or not metrics:
        raise OptionError(f"{path.name}: metrics must be a list of names such as test/acc, got {metrics!r}")
    select = None if content.get("select") is None else _selection(content["select"], seeds, path.name)
    title = str(content.get("title", path.stem.replace("_", " ")))
    study = Study(path.stem, title, made, tuple(seeds), tuple(map(str, metrics)), select)
    _check(study, path.name)
    return study


def _check(study: Study, name: str) -> None:
    """Every key of every arm, before the first one has trained for hours."""
    choice, faults = study.select, []
    for arm, (recipe, keys) in study.arms.items():
        for value in [None] if choice is None else choice.values:
            chosen = {} if choice is None else {choice.key: value}
            found = check(merged(load(recipe), {**keys, **chosen}))
            faults += [text for each in found if (text := f"{arm!r}: {each}") not in faults]
    if faults:
        raise OptionError("\n  ".join([f"{name} has faults, nothing was run:", *faults]))


def merged(recipe: Mapping[str, Any], keys: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe with some keys set, by the rules of the command line.

    Below a class, a key is one of its arguments, whether ``init_args`` is written or not; another class keeps the
    arguments that it knows too.

    Args:
        recipe: its content; left as it is.
        keys: dotted, as on the command line, to values.

    Returns:
        the content of a recipe.

    Raises:
        OptionError: a key goes into something that has no keys.

    Example:
        >>> merged({"model": {"lr": 0.1, "momentum": 0.9}}, {"model.lr": 0.2, "trainer.max_epochs": 1})
        {'model': {'lr': 0.2, 'momentum': 0.9}, 'trainer': {'max_epochs': 1}}
    """
    content = copy.deepcopy(dict(recipe))
    for key, value in keys.items():
        *sections, last = key.split(".")
        inner = content
        for section in sections:
            inner = _arguments(inner, section)
            if inner.get(section) is None:
                inner[section] = {}
            inner = inner[section]
            if not isinstance(inner, dict):
                raise OptionError(f"{key}: {section} is {inner!r}, which has no keys to set")
        inner = _arguments(inner, last)
        # a class without a module, and what is no class at all, are left to the check of the whole
        if last == "class_path" and inner.get("init_args") and isinstance(value, str) and "." in value:
            known = inspect.signature(locate(value)).parameters
            inner["init_args"] = {name: each for name, each in inner["init_args"].items() if name in known}
        inner[last] = copy.deepcopy(value)  # checking turns what is nested into other types, in place
    return content


def _arguments(section: dict[str, Any], key: str) -> dict[str, Any]:
    """Where a key of a section belongs: itself, or the arguments of the class that it names."""
    if "class_path" not in section or key in ("class_path", "init_args", "dict_kwargs"):
        return section
    if section.get("init_args") is None:
        section["init_args"] = {}
    inner: dict[str, Any] = section["init_args"]
    return inner


def _flat(content: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= _flat(value, f"{above}{key}.") if isinstance(value, Mapping) and value else {f"{above}{key}": value}
    return flat


def _set(content: Mapping[str, Any], where: str) -> dict[str, Any]:
    given = content.get("set") or {}
    if not isinstance(given, Mapping):
        raise OptionError(f"{where}: set must map dotted keys to values, got {given!r}")
    keys = {str(key): value for key, value in given.items()}
    for key in _OWN.keys() & keys.keys():
        raise OptionError(f"{where}: {key} is not set but {_OWN[key]}")
    return keys


def _apart(names: Iterable[Any], where: str) -> None:
    by: dict[str, Any] = {}
    for name in names:
        if (other := by.setdefault(_slug(str(name)), name)) != name:
            raise OptionError(f"{where}: {other!r} and {name!r} differ in punctuation only, and would share a folder")


def _selection(given: Any, seeds: list[int], name: str) -> Selection:
    if not isinstance(given, Mapping) or not {"key", "values"} <= given.keys():
        raise OptionError(f"{name}: select must give a key and its values, got {given!r}")
    _known(given, _SELECT_KEYS, f"{name}: select")
    mode = given.get("mode", "max")
    if mode not in ("max", "min"):
        raise OptionError(f"{name}: select.mode must be 'max' or 'min', got {mode!r}")
    values, seed = given["values"], given.get("seed", seeds[0])
    plain = isinstance(values, list) and all(isinstance(value, int | float | str) for value in values)
    if not plain or not values or len(set(values)) < len(values):
        raise OptionError(f"{name}: select.values must be a list of different numbers or words, got {values!r}")
    _apart(values, f"{name}: select.values")
    if not is_seed(seed):
        raise OptionError(f"{name}: select.seed must be an integer in [0, 2**32), got {seed!r}")
    if given["key"] in _OWN:
        raise OptionError(f"{name}: select.key: {given['key']} is {_OWN[given['key']]}")
    return Selection(str(given["key"]), tuple(values), str(given.get("metric", "val/acc")), mode, seed)


def _known(content: Mapping[str, Any], keys: tuple[str, ...], where: str) -> None:
    for key in content:
        if key not in keys:
            raise OptionError(f"{where}: unknown key {key!r}{nearest_name(str(key), keys)} (keys: {', '.join(keys)})")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _slug(name: str) -> str:
    slug = re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-")
    return slug if slug.strip(".") else "arm"  # a folder of dots alone is another place
