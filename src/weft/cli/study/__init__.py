"""``weft study FILE``: several recipes, several seeds, one table and one plot.

A study is a YAML file of arms, each a recipe with some keys set. Every run is a ``weft fit`` and a ``weft test`` in a
folder of its own; the same command again skips what is finished and goes on where it stopped. With a selection, every
arm first tries some values of a key at one seed and keeps the one that is best on the validation set.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from weft.cli import lightning
from weft.cli.study import results
from weft.cli.study.plan import Run, Study, read
from weft.cli.study.results import Result
from weft.errors import OptionError, nearest_name

QUIET = ("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false")


class _Stopped(Exception):  # noqa: N818 - not an error
    """A run ended with another exit code than 0.

    Args:
        code: its exit code.
    """

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class _Enough(Exception):  # noqa: N818 - not an error
    """``--max_runs`` is reached."""


class Runner:
    """Makes the runs that are not finished yet.

    Args:
        study: the study.
        folder: of its runs.
        total: number of runs, for the progress lines.
        max_runs: the most that are made now; None for all.
        bar: whether the runs show their own progress bars.
    """

    def __init__(self, study: Study, folder: Path, total: int, max_runs: int | None, bar: bool) -> None:
        self.study, self.folder, self.total, self.left, self.bar = study, folder, total, max_runs, bar
        self.number = 0

    def result(self, run: Run) -> Result:
        """The result of a run, made now if need be.

        Args:
            run: the run.

        Returns:
            its result.
        """
        self.number += 1
        found = results.stored(self.folder, run)
        if found is None:
            if self.left == 0:
                raise _Enough
            self.left = None if self.left is None else self.left - 1
            found = self._make(run)
        value = found.metrics.get(self.study.metrics[0])
        shown = "" if value is None else f": {self.study.metrics[0]} {value:.4f}"
        print(f"[{min(self.number, self.total)}/{self.total}] {run}{shown} ({found.seconds:.0f} s)", flush=True)
        return found

    def _make(self, run: Run) -> Result:
        place = self.folder / run.folder
        common = ["--config", str(run.recipe), "--run_dir", str(place), *run.arguments, *(() if self.bar else QUIET)]
        resumed = ["--ckpt_path", "last"] if (place / "checkpoints" / "last.ckpt").is_file() else []
        print(f"[{self.number}/{self.total}] {run}{', resumed' if resumed else ''} ...", flush=True)
        if code := lightning.run("fit", [*common, *resumed]):
            raise _Stopped(code)
        # the last weights, as every arm has trained as long; the best ones would be chosen by the validation set
        if code := lightning.run("test", [*common, "--ckpt_path", "last"]):
            raise _Stopped(code)
        return results.gather(self.folder, run)


def run(command: str, argv: list[str]) -> int:
    """Make the runs of a study, then the table and the plot.

    Args:
        command: ``"study"``.
        argv: the arguments after it.

    Returns:
        the exit code.
    """
    args = _arguments(command, argv)
    study = read(args.file)
    arms, seeds = _chosen("only", args.only, list(study.arms)), args.seeds or list(study.seeds)
    folder = args.run_dir or Path("runs") / study.name
    trials = 0 if study.select is None else len(study.select.values)
    again = study.select is not None and study.select.seed in seeds
    runner = Runner(study, folder, len(arms) * (trials + len(seeds) - again), args.max_runs, args.progress)
    finished: list[Result] = []
    start, code = time.monotonic(), 0
    try:
        for arm in arms:
            value = _select(study, arm, runner)
            if again:
                runner.number -= 1  # the trial at that value is one of the runs
            finished += [runner.result(study.run(arm, seed, value)) for seed in seeds]
    except _Enough:
        print(f"weft: stopped after {args.max_runs} runs; the same command goes on")
    except _Stopped as stop:
        print("weft: the same command goes on where this one stopped")
        code = stop.code
    if finished:
        text = f"weft study {args.file}"
        results.save(folder, study, finished, text)
        _show(study, finished)
        print(f"written: {folder}/table.md, results.json, results.csv, plot.png ({time.monotonic() - start:.0f} s)")
        if args.results_dir is not None and not code:
            args.results_dir.mkdir(parents=True, exist_ok=True)
            for name, end in (("table.md", "md"), ("results.json", "json"), ("plot.png", "png")):
                shutil.copyfile(folder / name, args.results_dir / f"{study.name}.{end}")
    return code


def _select(study: Study, arm: str, runner: Runner) -> object:
    """The value that is best for an arm."""
    choice = study.select
    if choice is None:
        return None
    tried = [runner.result(each) for each in study.trials(arm)]
    for each in tried:
        if choice.metric not in each.metrics:
            raise OptionError(
                f"select.metric: no run logs {choice.metric!r}{nearest_name(choice.metric, each.metrics)} (logged: "
                f"{', '.join(sorted(each.metrics))})"
            )
    sign = 1 if choice.mode == "max" else -1
    best = max(tried, key=lambda each: sign * each.metrics[choice.metric])
    if best.value in (choice.values[0], choice.values[-1]) and len(choice.values) > 1:
        print(f"weft: {arm}: the best {choice.key}, {best.value}, is at the end of the values tried")
    return best.value


def _show(study: Study, finished: list[Result]) -> None:
    heading, *rows = results.cells(study, finished)
    table = Table(*heading, title=study.title, title_justify="left", box=box.SIMPLE)
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def _chosen(name: str, given: list[str] | None, known: list[str]) -> list[str]:
    for each in given or ():
        if each not in known:
            raise OptionError(
                f"{name}: no arm is called {each!r}{nearest_name(each, known)} (arms: {', '.join(known)})"
            )
    return given or known


def _arguments(command: str, argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"weft {command}", description=__doc__.partition("\n\n")[2],
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    add = parser.add_argument
    add("file", type=Path, help="YAML: arms, seeds, metrics, set, select, title")
    add("--run_dir", type=Path, default=None, help="folder of the runs; default: runs/NAME OF THE FILE")
    add("--only", nargs="+", metavar="ARM", default=None, help="only these arms")
    add("--seeds", nargs="+", type=int, default=None, help="only these seeds")
    add("--max_runs", type=int, default=None, help="stop after so many new runs")
    add("--results_dir", type=Path, default=None, help="copy table, plot and results there, under the study's name")
    add("--progress", action="store_true", help="show the progress bar of every run")
    return parser.parse_args(argv)
