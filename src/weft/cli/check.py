"""``weft check RECIPE...``: every key of recipes checked against signatures, without building anything."""

from __future__ import annotations

import argparse
import sys

from weft.cli.faults import check
from weft.cli.recipe import load
from weft.errors import OptionError


def run(command: str, argv: list[str]) -> int:
    """Check recipes and print every fault of each.

    Args:
        command: ``"check"``.
        argv: the arguments after it.

    Returns:
        0 if all recipes are good, else 2.
    """
    parser = argparse.ArgumentParser(
        prog=f"weft {command}",
        description="Check every key of recipes: sections, argument names, types, class paths, families and their "
        "options. Imports the classes named; builds no model and reads no data.",
    )
    parser.add_argument("recipes", nargs="+", metavar="RECIPE", help="a YAML file, as for weft fit --config")
    bad = False
    for path in parser.parse_args(argv).recipes:
        try:
            faults = check(load(path))
        except OptionError as error:
            faults = [str(error)]
        bad |= bool(faults)
        if faults:
            print("\n  ".join([f"{path}: {len(faults)} fault{'s' * (len(faults) > 1)}", *faults]), file=sys.stderr)
        else:
            print(f"{path}: good")
    return 2 if bad else 0
