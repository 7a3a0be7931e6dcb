"""What the runs of a study left: gathered, tabulated and drawn."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from weft.cli.files import save_figure, write
from weft.cli.study.plan import Run, Study
from weft.errors import OptionError

FILE, ASKED = "result.json", "asked.json"


@dataclass(frozen=True)
class Result:
    """Of one run.

    Attributes:
        arm: name of the arm.
        seed: of the run.
        value: of the key under selection.
        arguments: of the run, after the recipe's name.
        parameters: trainable numbers of the network.
        seconds: of training, of the last start.
        steps: taken in that time.
        metrics: name to value, at the end of training and of the test.
    """

    arm: str
    seed: int
    value: Any
    arguments: list[str]
    parameters: int
    seconds: float
    steps: int
    metrics: dict[str, float]


def stored(folder: Path, run: Run) -> Result | None:
    """The result of a run, if it is finished.

    Args:
        folder: of the study.
        run: the run.

    Returns:
        its result, or None.

    Raises:
        OptionError: the folder holds a run with other settings, finished or not, or a damaged file.
    """
    asked = folder / run.folder / ASKED
    if asked.is_file():
        _compare(asked, run)
    path = folder / run.folder / FILE
    if not path.is_file():
        return None
    try:
        result = Result(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise OptionError(f"{path} is damaged ({error}); delete it, and the run is tested again") from None
    return result


def _compare(asked: Path, run: Run) -> None:
    try:
        before = dict(json.loads(asked.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise OptionError(f"{asked} is damaged ({error}); delete the folder {asked.parent}") from None
    now = json.loads(json.dumps(run.settings, default=str))
    for key in {**before, **now}:
        old, new = before.get(key, "absent"), now.get(key, "absent")
        if old != new:
            raise OptionError(
                f"{asked.parent} holds a run of another study: {key} was {old}, now {new}; write elsewhere with "
                "--run_dir FOLDER, or delete that folder"
            )


def claim(folder: Path, run: Run) -> None:
    """Note what a run is asked for, before it begins.

    Args:
        folder: of the study.
        run: the run.
    """
    path = folder / run.folder / ASKED
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, json.dumps(run.settings, indent=1, default=str).encode())


def fitted(folder: Path, run: Run) -> bool:
    """Whether ``weft fit`` has ended, which writes its metrics last of all.

    Args:
        folder: of the study.
        run: the run.

    Returns:
        whether there is anything left to train.
    """
    return any((folder / run.folder).glob("fit*.json"))


def gather(folder: Path, run: Run) -> Result:
    """Read what ``weft fit`` and ``weft test`` wrote, and keep it.

    Args:
        folder: of the study.
        run: the run, just finished.

    Returns:
        its result.
    """
    place = folder / run.folder
    fit, test = _latest(place, "fit"), _latest(place, "test")  # the test: a mapping per loader; none if it diverged
    metrics = dict(fit["metrics"])
    for each in test or ():
        metrics |= {name: value for name, value in each.items() if math.isfinite(value)}
    arguments = [run.recipe.name, *run.arguments]
    result = Result(run.arm, run.seed, run.value, arguments, fit["parameters"], fit["seconds"], fit["steps"], metrics)
    write(place / FILE, json.dumps(asdict(result), indent=1).encode())
    return result


def _latest(place: Path, name: str) -> Any:
    paths = sorted(place.glob(f"{name}*.json"), key=lambda each: each.stat().st_mtime_ns)
    return json.loads(paths[-1].read_text(encoding="utf-8")) if paths else None


def cells(study: Study, results: Sequence[Result]) -> list[list[str]]:
    """The table: a row per arm that has results.

    Args:
        study: the study.
        results: of the runs that count.

    Returns:
        the heading and the rows.
    """
    rows = [["arm", "parameters", *([study.select.key] if study.select else []), *study.metrics, "runs", "ms per step"]]
    for arm in study.arms:
        own = [each for each in results if each.arm == arm]
        if not own:
            continue
        middle = statistics.median(each.seconds / max(each.steps, 1) for each in own)
        rows.append([
            arm, f"{own[0].parameters:,}", *([str(own[0].value)] if study.select else []),
            *(spread([each.metrics[name] for each in own if name in each.metrics]) for name in study.metrics),
            str(len(own)), f"{middle * 1e3:.0f}",
        ])  # fmt: skip
    return rows


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation.

    Args:
        values: of the seeds.

    Returns:
        text such as ``0.9123 +- 0.0021``; the number itself for one, a dash for none.

    Example:
        >>> spread([0.5, 0.7]), spread([0.5]), spread([])
        ('0.6000 ± 0.1414', '0.5000', '-')
    """
    if len(values) < 2:
        return f"{values[0]:.4f}" if values else "-"
    return f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}"


def keep(folder: Path, study: Study, results: Sequence[Result], trials: Sequence[Result], command: str) -> None:
    """Write ``results.json``.

    Args:
        folder: is made.
        study: the study.
        results: of the runs that count.
        trials: by which the arms chose.
        command: that makes them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = {"title": study.title, "command": command, "results": [asdict(each) for each in results],
               "trials": [asdict(each) for each in trials]}  # fmt: skip
    write(folder / "results.json", (json.dumps(content, indent=1) + "\n").encode())


def show(folder: Path, study: Study, results: Sequence[Result], command: str) -> None:
    """Write ``table.md``, ``results.csv`` and ``plot.png``.

    Args:
        folder: of the study.
        study: the study.
        results: of the runs that count.
        command: that makes them.
    """
    heading, *rows = cells(study, results)
    lines = [f"### {study.title}", "", f"`{command}`. Mean ± standard deviation over the seeds.", "",
             "| " + " | ".join(heading) + " |", "|" + "---|" * len(heading),
             *("| " + " | ".join(row) + " |" for row in rows)]  # fmt: skip
    write(folder / "table.md", ("\n".join(lines) + "\n").encode())
    table = io.StringIO()
    writer = csv.writer(table)
    names = sorted({name for each in results for name in each.metrics})
    writer.writerow(["arm", "seed", "value", "parameters", "seconds", "steps", *names])
    for each in results:
        writer.writerow([each.arm, each.seed, each.value, each.parameters, f"{each.seconds:.1f}", each.steps,
                         *(each.metrics.get(name, "") for name in names)])  # fmt: skip
    write(folder / "results.csv", table.getvalue().encode())
    _draw(folder / "plot.png", study, results)


def _draw(path: Path, study: Study, results: Sequence[Result]) -> None:
    """One row of dots per arm: every seed, and the mean."""
    import matplotlib
    from matplotlib.figure import Figure

    metric = study.metrics[0]
    values: Mapping[str, list[float]] = {
        arm: [each.metrics[metric] for each in results if each.arm == arm and metric in each.metrics]
        for arm in study.arms
    }
    shown = [arm for arm, own in values.items() if own]
    with matplotlib.rc_context({"font.size": 9}):
        figure = Figure(figsize=(7.2, 1.2 + 0.42 * len(shown)), layout="constrained")
        axes = figure.subplots()
        for row, arm in enumerate(shown):
            axes.plot(values[arm], [row] * len(values[arm]), "o", color="C0", alpha=0.45, markersize=6)
            axes.plot([statistics.mean(values[arm])], [row], "|", color="C0", markersize=20, markeredgewidth=2)
        axes.set(yticks=range(len(shown)), yticklabels=shown, xlabel=f"{metric} (dots: seeds, bars: means)")
        axes.set_ylim(len(shown) - 0.5, -0.5)
        axes.grid(axis="x", alpha=0.3)
        figure.suptitle(study.title, x=0.01, ha="left", fontsize=10)
        save_figure(figure, path)
