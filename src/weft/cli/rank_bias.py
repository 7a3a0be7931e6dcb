"""``weft rank-bias``: the toy experiment on depth and effective rank, with a table and a plot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from weft.cli.files import save_figure, write
from weft.errors import OptionError
from weft.train.rank_experiment import RankBias, check, rank_bias


def run(command: str, argv: list[str]) -> int:
    """Run the experiment, write table, plot and numbers.

    Args:
        command: ``"rank-bias"``.
        argv: the arguments after it.

    Returns:
        the exit code.

    Raises:
        OptionError: an argument is wrong, or the folder holds another experiment.
    """
    parser = ArgumentParser(prog=f"weft {command}", description=__doc__, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action=ActionConfigFile, help="YAML with the arguments below")
    parser.add_argument("--run_dir", type=str, default="runs/rank_bias", help="where the results are written")
    parser.add_function_arguments(rank_bias, skip={"on_step", "dtype"})
    try:
        given = parser.parse_args(argv).as_dict()
    except ArgumentError as error:
        raise OptionError(" ".join(str(error).split())) from None
    given.pop("config")
    folder = Path(given.pop("run_dir"))
    arguments = json.loads(json.dumps(given))
    check(**given)
    path = folder / "results.json"
    if path.is_file() and _arguments_of(path) != arguments:
        raise OptionError(f"{folder} holds an experiment with other arguments; write elsewhere with --run_dir FOLDER")
    folder.mkdir(parents=True, exist_ok=True)  # now, not after an hour of work for a folder that cannot be made
    columns = (TextColumn("depth {task.fields[depth]}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True) as progress:
        bar = progress.add_task("", total=sum(given["depths"]) * given["steps"], depth=given["depths"][0])
        found = rank_bias(**given, on_step=lambda depth, _: progress.update(bar, advance=100 * depth, depth=depth))
    table = "\n".join(_table(found)) + "\n"
    print(table)
    write(path, json.dumps({"arguments": arguments, "results": [asdict(each) for each in found]}, indent=1).encode())
    write(folder / "table.md", table.encode())
    _draw(folder / "plot.png", found, given)
    print(f"written: {folder}/results.json, table.md, plot.png")
    return 0


def _arguments_of(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))["arguments"]
    except (ValueError, KeyError, TypeError):
        return None  # damaged, or of something else: not to be written over


def _table(found: Sequence[RankBias]) -> list[str]:
    """Markdown: a row per depth, a column per rank: effective rank after training, test error."""
    ranks, depths = sorted({each.rank for each in found}), sorted({each.depth for each in found})
    by = {(each.depth, each.rank): each for each in found}
    target = ", ".join(f"{by[depths[0], rank].target:.2f}" for rank in ranks)
    caption = "Effective rank after training / test error over the variance of the outputs, by the rank of the target"
    lines = [
        f"{caption} (of effective rank {target}).",
        "",
        "| depth | at the start | " + " | ".join(f"rank {rank}" for rank in ranks) + " |",
        "|" + "---|" * (2 + len(ranks)),
    ]
    for depth in depths:
        cells = [f"{by[depth, rank].at_end:.2f} / {by[depth, rank].test_error:.2f}" for rank in ranks]
        lines.append(f"| {depth} | {by[depth, ranks[0]].at_start:.2f} | " + " | ".join(cells) + " |")
    return lines


def _draw(path: Path, found: Sequence[RankBias], given: dict[str, Any]) -> None:
    """Effective rank and test error against depth, a line per rank of the target."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    ranks = sorted({each.rank for each in found})
    for number, rank in enumerate(ranks):
        own = sorted((each for each in found if each.rank == rank), key=lambda each: each.depth)
        depths, color = [each.depth for each in own], colormaps["viridis"](0.9 * number / max(len(ranks) - 1, 1))
        left.plot(depths, [each.at_end for each in own], "o-", color=color, label=f"target of rank {rank}")
        right.plot(depths, [each.test_error for each in own], "o-", color=color)
    left.plot(depths, [each.at_start for each in own], "k--", label="at the start")
    left.set(ylabel="effective rank of the product", title="after training")
    right.set(ylabel="test error / variance", title=f"{given['samples']} samples of {given['dim']} inputs")
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set(xlabel="depth", xticks=depths, xticklabels=depths)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    left.legend(fontsize=8)
    save_figure(figure, path)
