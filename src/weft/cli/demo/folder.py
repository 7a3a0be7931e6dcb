"""Where a demo's files go: written beside their place and renamed, so that a folder is whole or not there."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from weft.cli.demo import figures
from weft.cli.demo.report import report
from weft.cli.demo.results import Result, as_csv, as_markdown
from weft.cli.demo.training import LATENCY_BATCH
from weft.errors import OptionError

FILES = ("results.csv", "results.md", "pareto.png", "report.html")


def claim(out: Path, overwrite: bool) -> tuple[Path, str]:
    """The folder to write, settled before any work.

    Args:
        out: the folder wanted.
        overwrite: replace it if it is there.

    Returns:
        a folder that does not exist, or one that may be replaced; and what to tell the user, or nothing.

    Raises:
        OptionError: ``out`` is to be overwritten but is not a demo's folder.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    if not out.exists():
        return out, ""
    if overwrite:
        strangers = [path.name for path in out.iterdir() if path.name not in FILES] if out.is_dir() else [out.name]
        if strangers:
            raise OptionError(
                f"--overwrite: {out} holds {strangers[0]!r}, which no demo wrote; name another folder with --out"
            )
        return out, f"{out} was replaced."
    number = 2
    while (free := out.with_name(f"{out.name}-{number}")).exists():
        number += 1
    return free, f"{out} holds an earlier demo and was left alone; --overwrite replaces it."


def publish(target: Path, results: list[Result], command: str, epochs: int, seed: int, seconds: float) -> None:
    """Write a demo's files and put the folder in its place in one step.

    Args:
        target: from ``claim``.
        results: one per variant.
        command: that was run.
        epochs: trained.
        seed: used.
        seconds: that the run took.
    """
    images = {
        (name, theme): draw(results, colors)
        for name, draw in (("pareto", figures.pareto), ("curves", figures.curves))
        for theme, colors in (("light", figures.LIGHT), ("dark", figures.DARK))
    }
    fresh = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        (fresh / "results.csv").write_text(as_csv(results, LATENCY_BATCH), encoding="utf-8")
        (fresh / "results.md").write_text(as_markdown(results, LATENCY_BATCH), encoding="utf-8")
        (fresh / "pareto.png").write_bytes(images["pareto", "light"])
        page = report(results, images, LATENCY_BATCH, command, epochs, seed, seconds)
        (fresh / "report.html").write_text(page, encoding="utf-8")
        fresh.chmod(0o755)  # mkdtemp's folders are closed to others
        if target.exists():
            shutil.rmtree(target)
        fresh.rename(target)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
