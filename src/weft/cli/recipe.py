"""Reading recipes: YAML files, one or several over each other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from weft.errors import OptionError, nearest_name


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key written twice, which the standard would let the last one win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.MarkedYAMLError(problem=f"key {key!r} is written twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


def load(path: str | Path) -> dict[str, Any]:
    """Read one recipe.

    Args:
        path: of a YAML file.

    Returns:
        its content.

    Raises:
        OptionError: there is no such file, it is not YAML, contains itself, or is not a mapping.
    """
    path = Path(path)
    if not path.is_file():
        beside = [file.name for file in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        raise OptionError(f"recipe {path} does not exist{nearest_name(path.name, beside)}")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 - it is a SafeLoader
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise OptionError(f"recipe {path}{where}: not valid YAML: {getattr(error, 'problem', None) or error}") from None
    if _contains_itself(content):
        raise OptionError(f"recipe {path}: an anchor (&NAME) is used (*NAME) inside of what it stands for")
    if not isinstance(content, dict):
        raise OptionError(f"recipe {path} must hold sections such as 'trainer', 'model' and 'data', got {content!r}")
    return content


def _contains_itself(value: Any, above: tuple[Any, ...] = ()) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(value is each for each in above) or any(_contains_itself(each, (*above, value)) for each in inner)


def load_all(paths: Iterable[str | Path]) -> dict[str, Any]:
    """Read recipes one over the other, as ``--config A --config B`` does.

    Args:
        paths: of YAML files; a later one wins.

    Returns:
        their content, sections merged.

    Raises:
        OptionError: as ``load``.
    """
    together: dict[str, Any] = {}
    for path in paths:
        _merge(together, load(path))
    return together


def _merge(into: dict[str, Any], other: Mapping[str, Any]) -> None:
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict) and "class_path" not in value:
            _merge(into[key], value)
        else:
            into[key] = value
