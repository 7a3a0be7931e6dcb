"""``weft study FILE``: several recipes, several seeds, one table and one plot.

A study is a YAML file of arms, each a recipe with some keys set. Every run is a ``weft fit`` and a ``weft test`` in a
folder of its own; the same command again skips what is finished and goes on where it stopped. Several processes may
share a study: each passes over the runs that another one is making. With a selection, every arm first tries some values
of a key at one seed and keeps the one that is best on the validation set.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from weft.cli import lightning
from weft.cli.faults import is_seed
from weft.cli.lock import exclusive
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
    """Makes the runs that are not finished yet and that no other process is making.

    Args:
        study: the study.
        folder: of its runs.
        total: number of runs, for the progress lines.
        max_runs: the most that are made now; None for all.
        bar: whether the runs show their own progress bars.
        keep: called after every run that was made.
    """

    def __init__(
        self, study: Study, folder: Path, total: int, max_runs: int | None, bar: bool, keep: Callable[[], object]
    ) -> None:
        self.study, self.folder, self.total, self.left, self.bar = study, folder, total, max_runs, bar
        self.keep, self.number, self.made = keep, 0, 0
        self.busy: list[Run] = []
        self._told: set[Path | str] = set()  # runs and arms that had their line

    def all(self, arms: Sequence[str], seeds: Sequence[int]) -> bool:
        """Make the runs of some arms, but those that another process is making to the end.

        Args:
            arms: names.
            seeds: of the runs; the trials of a selection come before them.

        Returns:
            whether all are made.
        """
        self._once(arms, seeds)
        while self.busy and self.made:  # in that time, another process may have ended what it was making
            self._once(arms, seeds)
        if self.busy:
            runs = "; ".join(map(str, self.busy))
            print(f"weft: another process is making: {runs}; when it has ended, the same command goes on")
        return not self.busy

    def _once(self, arms: Sequence[str], seeds: Sequence[int]) -> None:
        self.number, self.made, self.busy = 0, 0, []
        for arm in arms:
            tries = self.study.trials(arm)
            tried = [found for each in tries if (found := self.result(each)) is not None]
            if len(tried) < len(tries):
                continue  # another process is at a trial: what this arm will choose is open
            value = _best(self.study, arm, tried, quiet=arm in self._told)
            self._told.add(arm)
            for each in (self.study.run(arm, seed, value) for seed in seeds):
                if each not in tries:
                    self.result(each)

    def result(self, run: Run) -> Result | None:
        """The result of a run, made now if need be.

        Args:
            run: the run.

        Returns:
            its result; None while another process makes it.
        """
        self.number += 1
        found = results.stored(self.folder, run)
        if found is None:
            if self.left == 0:
                raise _Enough
            # of the processes that a launcher adds to a run, the first has the lock for all
            with exclusive(self.folder / run.folder) if lightning.first_process() else nullcontext(True) as ours:
                found = results.stored(self.folder, run)  # another process may have ended it a moment ago
                if found is None and ours:
                    self.left = None if self.left is None else self.left - 1
                    found = self._make(run)
                    self.made += 1
                    self.keep()
        if found is None:
            self.busy.append(run)
            shown = ": another process is making it"
        else:
            value = found.metrics.get(self.study.metrics[0])
            shown = "" if value is None else f": {self.study.metrics[0]} {value:.4f}"
            shown += f" ({found.seconds:.0f} s)"
        if run.folder not in self._told:
            print(f"[{self.number}/{self.total}] {run}{shown}", flush=True)
        if found is not None:
            self._told.add(run.folder)
        return found

    def _make(self, run: Run) -> Result:
        place = self.folder / run.folder
        last = place / "checkpoints" / "last.ckpt"
        common = ["--config", str(run.recipe), "--run_dir", str(place), *run.arguments, *(() if self.bar else QUIET)]
        resumed = ["--ckpt_path", "last"] if last.is_file() else []
        print(f"[{self.number}/{self.total}] {run}{', resumed' if resumed else ''} ...", flush=True)
        if not results.fitted(self.folder, run):
            if not resumed:  # the best of an epoch that was not finished is no place to go on from
                shutil.rmtree(last.parent, ignore_errors=True)
            results.claim(self.folder, run)
            if code := lightning.run("fit", [*common, *resumed]):
                raise _Stopped(code)
        # the last weights, as every arm has trained as long; the best ones would be chosen by the validation set
        if last.is_file():
            if code := lightning.run("test", [*common, "--ckpt_path", "last"]):
                raise _Stopped(code)
        else:
            print(f"weft: {run} left no last.ckpt, as runs do that diverged: it has no test result", flush=True)
        return results.gather(self.folder, run)


def run(command: str, argv: list[str]) -> int:
    """Make the runs of a study, then the table and the plot.

    Args:
        command: ``"study"``.
        argv: the arguments after it.

    Returns:
        the exit code.

    Raises:
        OptionError: an argument or the file is wrong, or the folder holds the runs of another study.
    """
    args = _arguments(command, argv)
    study = read(args.file)
    arms, seeds = _chosen("only", args.only, list(study.arms)), args.seeds or list(study.seeds)
    folder, text = args.run_dir or Path("runs") / study.name, f"weft study {args.file}"
    every = list(dict.fromkeys([*study.seeds, *seeds]))
    total = sum(len(study.trials(arm)) + len(seeds) for arm in arms)
    if study.select is not None and study.select.seed in seeds:
        total -= len(arms)  # one of the trials is one of the runs

    def keep(show: bool = False) -> list[Result]:
        with exclusive(folder, wait=True):  # or a process that has read less may write after one that has read more
            finished, trials = _finished(study, folder, every)
            if finished or not show:
                results.keep(folder, study, finished, trials, text)
            if finished and show:
                results.show(folder, study, finished, text)
        return finished

    runner = Runner(study, folder, total, args.max_runs, args.progress, keep)
    start, code, stopped = time.monotonic(), 0, True
    try:
        stopped = not runner.all(arms, seeds)
    except _Enough:
        print(f"weft: stopped after {args.max_runs} runs; the same command goes on")
    except _Stopped as stop:
        print("weft: the same command goes on where this one stopped")
        code = stop.code
    finished = keep(show=True)
    if finished:
        _show(study, finished)
        print(f"written: {folder}/table.md, results.json, results.csv, plot.png ({time.monotonic() - start:.0f} s)")
        if args.results_dir is not None and not stopped:
            args.results_dir.mkdir(parents=True, exist_ok=True)
            for name, end in (("table.md", "md"), ("results.json", "json"), ("plot.png", "png")):
                shutil.copyfile(folder / name, args.results_dir / f"{study.name}.{end}")
    return code


def _finished(study: Study, folder: Path, seeds: Iterable[int]) -> tuple[list[Result], list[Result]]:
    """What the folder holds: the runs of every arm that has chosen its value, and the trials of all."""
    found, tried = [], []
    for arm in study.arms:
        wanted = study.trials(arm)
        trials = [each for run in wanted if (each := results.stored(folder, run)) is not None]
        tried += trials
        if len(trials) == len(wanted):
            value = _best(study, arm, trials, quiet=True)
            stored = (results.stored(folder, study.run(arm, seed, value)) for seed in seeds)
            found += [each for each in stored if each is not None]
    return found, tried


def _best(study: Study, arm: str, tried: list[Result], quiet: bool = False) -> Any:
    """The value that is best for an arm; one without the metric has diverged."""
    choice = study.select
    if choice is None:
        return None
    sound = [each for each in tried if choice.metric in each.metrics]
    if not sound:
        logged = sorted({name for each in tried for name in each.metrics})
        raise OptionError(
            f"select.metric: no run of {arm!r} logs {choice.metric!r}{nearest_name(choice.metric, logged)} (logged: "
            f"{', '.join(logged)})"
        )
    best = (max if choice.mode == "max" else min)(sound, key=lambda each: each.metrics[choice.metric])
    numbers = [value for value in choice.values if not isinstance(value, str)]
    if not quiet and len(numbers) > 1 and best.value in (min(numbers), max(numbers)):
        print(f"weft: {arm}: the best {choice.key}, {best.value}, is at the end of the values tried")
    return best.value


def _show(study: Study, finished: list[Result]) -> None:
    heading, *rows = results.cells(study, finished)
    table = Table(*heading, title=study.title, title_justify="left", box=box.SIMPLE)
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    logged = sorted({name for each in finished for name in each.metrics})
    for name in set(study.metrics).difference(logged):
        print(f"weft: no run logs {name!r}{nearest_name(name, logged)} (logged: {', '.join(logged)})")


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
    args = parser.parse_args(argv)
    if args.max_runs is not None and args.max_runs < 0:
        raise OptionError(f"max_runs must be at least 0, got {args.max_runs}")
    for seed in args.seeds or ():
        if not is_seed(seed):
            raise OptionError(f"seeds must be in [0, 2**32), got {seed}")
    return args
