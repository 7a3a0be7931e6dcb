"""The file of a study: which runs it asks for."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weft.cli.recipe import load
from weft.errors import OptionError, nearest_name

_KEYS = ("arms", "seeds", "metrics", "set", "select", "title")
_ARM_KEYS = ("recipe", "set")
_SELECT_KEYS = ("key", "values", "metric", "mode", "seed")


@dataclass(frozen=True)
class Run:
    """One training and its test.

    Attributes:
        arm: name of the arm.
        seed: of everything that is drawn.
        value: of the key under selection; None without one.
        recipe: path.
        arguments: that follow the recipe on the command line of ``weft fit``.
    """

    arm: str
    seed: int
    value: Any
    recipe: Path
    arguments: tuple[str, ...]

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
        return Run(arm, seed, value, recipe, tuple(arguments))

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
        OptionError: a key is unknown or missing, or a recipe is not there.
    """
    content = load(path)
    _known(content, _KEYS, path.name)
    arms = content.get("arms")
    if not isinstance(arms, dict) or not arms:
        raise OptionError(f"{path.name}: arms must name at least one arm, each with a recipe; got {arms!r}")
    common = content.get("set") or {}
    made = {}
    for name, arm in arms.items():
        if not isinstance(arm, Mapping) or "recipe" not in arm:
            raise OptionError(f"{path.name}: arms.{name} must be a mapping with a recipe, got {arm!r}")
        _known(arm, _ARM_KEYS, f"{path.name}: arms.{name}")
        recipe = path.parent / str(arm["recipe"])
        load(recipe)
        made[str(name)] = (recipe, {**common, **(arm.get("set") or {})})
    if len({_slug(name) for name in made}) < len(made):
        raise OptionError(f"{path.name}: the names of two arms differ in punctuation only, and would share a folder")
    seeds, metrics = content.get("seeds", [0]), content.get("metrics", ["test/acc"])
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int for seed in seeds):
        raise OptionError(f"{path.name}: seeds must be a list of integers, got {seeds!r}")
    if not isinstance(metrics, list) or not metrics:
        raise OptionError(f"{path.name}: metrics must be a list of names such as test/acc, got {metrics!r}")
    select = None if content.get("select") is None else _selection(content["select"], seeds, path.name)
    title = str(content.get("title", path.stem.replace("_", " ")))
    return Study(path.stem, title, made, tuple(seeds), tuple(map(str, metrics)), select)


def _selection(given: Any, seeds: list[int], name: str) -> Selection:
    if not isinstance(given, Mapping) or not {"key", "values"} <= given.keys():
        raise OptionError(f"{name}: select must give a key and its values, got {given!r}")
    _known(given, _SELECT_KEYS, f"{name}: select")
    mode = given.get("mode", "max")
    if mode not in ("max", "min"):
        raise OptionError(f"{name}: select.mode must be 'max' or 'min', got {mode!r}")
    if not isinstance(given["values"], list) or not given["values"]:
        raise OptionError(f"{name}: select.values must be a list, got {given['values']!r}")
    seed = int(given.get("seed", seeds[0]))
    return Selection(str(given["key"]), tuple(given["values"]), str(given.get("metric", "val/acc")), mode, seed)


def _known(content: Mapping[str, Any], keys: tuple[str, ...], where: str) -> None:
    for key in content:
        if key not in keys:
            raise OptionError(f"{where}: unknown key {key!r}{nearest_name(str(key), keys)} (keys: {', '.join(keys)})")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-") or "arm"
