"""``weft demo``: one small CNN on real handwritten digits, in several families, with a table, a plot and a report."""

from __future__ import annotations

import argparse
import shlex
import time
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from weft.cli.demo.folder import claim, publish
from weft.cli.demo.results import Result, cells, columns
from weft.cli.demo.training import LATENCY_BATCH, VARIANTS, train_all
from weft.errors import OptionError, nearest_name


def run(command: str, argv: list[str]) -> int:
    """Train, print the table and write the report.

    Args:
        command: ``"demo"``.
        argv: the arguments after it.

    Returns:
        the exit code.

    Raises:
        OptionError: an argument is out of range, or the folder to overwrite is not one of the demo's.
    """
    args = _arguments(command, argv)
    started = time.perf_counter()
    target, note = claim(args.out, args.overwrite)
    console = Console()
    results = train_all([VARIANTS[name] for name in args.variants], args.epochs, args.seed, console)
    seconds = time.perf_counter() - started
    publish(target, results, shlex.join(["weft", command, *argv]), args.epochs, args.seed, seconds)
    console.print(table(results))
    if note:
        console.print(Text(note))
    console.print(Text(f"{seconds:.0f} s in all. Open {target / 'report.html'}"))
    return 0


def table(results: list[Result]) -> Table:
    """The final table for the terminal.

    Args:
        results: one per variant.

    Returns:
        a rich table.
    """
    title = "Digits: one small CNN in several families"
    shown = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0)
    for index, heading in enumerate(columns(LATENCY_BATCH)):
        shown.add_column(heading, justify="right" if index else "left", no_wrap=not index)
    for result in results:
        first, *rest = cells(result)
        shown.add_row(Text(first, style=f"bold {result.color}"), *rest)
    return shown


def _arguments(command: str, argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=f"weft {command}",
        description="Train one small CNN on scikit-learn's handwritten digits, as plain torch and in several families, "
        "at equal epochs and seeds; write a table, a plot and a report.",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder of the report; default runs/demo")
    parser.add_argument("--epochs", type=int, default=15, help="passes over the training images; default 15")
    parser.add_argument("--seed", type=int, default=0, help="of the initial weights and the order of the images")
    names = ", ".join(VARIANTS)
    parser.add_argument(
        "--variants", nargs="+", metavar="NAME", default=list(VARIANTS), help=f"any of {names}; default all"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier demo instead of writing beside it")
    args = parser.parse_args(argv)
    if args.epochs < 1:
        raise OptionError(f"--epochs must be at least 1, got {args.epochs}")
    if not 0 <= args.seed < 2**32:
        raise OptionError(f"--seed must be in [0, 2**32), got {args.seed}")
    for name in args.variants:
        if name not in VARIANTS:
            raise OptionError(f"--variants: unknown {name!r}{nearest_name(name, VARIANTS)} (there are: {names})")
    args.variants = list(dict.fromkeys(args.variants))
    return args
