"""``weft list [NAME] [--json]``: the families of weight matrices, read from their records."""

from __future__ import annotations

import argparse
import json
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from weft.parametrizations.registry import Family, families, family


def as_dict(record: Family) -> dict[str, Any]:
    """A record in types that JSON knows.

    Args:
        record: of one family.

    Returns:
        field name to value; the class as its import path.
    """
    facts = {name: getattr(record, name) for name in record.__dataclass_fields__}
    facts["cls"] = f"{record.cls.__module__}.{record.cls.__qualname__}"
    return {name: dict(value) if hasattr(value, "items") else value for name, value in facts.items()}


def overview() -> Table:
    """All families, one row each.

    Returns:
        a rich table.
    """
    table = Table(title="Families of weight matrices", caption="weft list NAME shows one in full", title_justify="left")
    for heading, ratio in (
        ("name", None),
        ("what the weight is", 4),
        ("options", 2),
        ("numbers", 3),
        ("multiply-adds", 3),
    ):
        table.add_column(heading, overflow="fold", ratio=ratio, no_wrap=heading == "name")
    for name, record in families().items():
        options = ", ".join([*record.options, *(["share"] if record.sized_by == "share" else [])])
        cells = (record.summary, options, record.parameters, record.cost)
        table.add_row(Text(name, style="bold"), *map(Text, cells))
    return table


def details(record: Family) -> Table:
    """One family, one row per fact.

    Args:
        record: of the family.

    Returns:
        a rich table.
    """
    table = Table(title=f"{record.name}: {record.title}", show_header=False, title_justify="left")
    table.add_column("fact", style="bold", no_wrap=True)
    table.add_column("value", overflow="fold")
    for name, value in as_dict(record).items():
        if isinstance(value, dict):
            text = "\n".join(f"{key}: {_plain(entry)}" for key, entry in value.items()) or "none"
        else:
            text = _plain(value)
        table.add_row(name.replace("_", " "), Text(text))
    return table


def _plain(value: object) -> str:
    return ("no", "yes")[value] if isinstance(value, bool) else str(value)


def run(command: str, argv: list[str]) -> int:
    """Print the families.

    Args:
        command: ``"list"``.
        argv: the arguments after it.

    Returns:
        the exit code.

    Raises:
        UnknownNameError: NAME is not a family; names the nearest one.
    """
    parser = argparse.ArgumentParser(prog=f"weft {command}", description="The families of weight matrices.")
    parser.add_argument("name", nargs="?", help="show this family in full")
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    args = parser.parse_args(argv)
    chosen = families() if args.name is None else {args.name: family(args.name)}
    if args.json:
        print(json.dumps({name: as_dict(record) for name, record in chosen.items()}, indent=2))
    else:
        Console().print(overview() if args.name is None else details(chosen[args.name]))
    return 0
