"""The folder of a run: what may be written there, which checkpoint is meant, and how a run stops and goes on.

    runs/<recipe>/config.yaml                  what was run; config.2.yaml for the first resumption, and so on
    runs/<recipe>/checkpoints/last.ckpt        every epoch, every n steps where asked, and when the run is stopped
    runs/<recipe>/checkpoints/best.ckpt        of the highest ``val/acc``
    runs/<recipe>/logs/version_0/              metrics.csv and TensorBoard events, one folder per start

A run that was stopped and resumed ends with the very numbers of one that was not: checkpoints are replaced in one
step, the classifier keeps the random state in them, and the data module goes on after the last batch trained on.
"""

from __future__ import annotations

from pathlib import Path

from weft.errors import OptionError


def checkpoint_path(run_dir: Path, name: str) -> Path:
    """The file behind ``--ckpt_path``.

    Args:
        run_dir: folder of the run.
        name: ``last``, ``best`` or a path.

    Returns:
        an existing file.

    Raises:
        OptionError: there is no such checkpoint; says where it was looked for, what there is and how to get one.
    """
    path = run_dir / "checkpoints" / f"{name}.ckpt" if name in ("last", "best") else Path(name)
    if path.is_file():
        return path
    there = sorted(str(file) for file in (run_dir / "checkpoints").glob("*.ckpt"))
    remedy = f"there are: {', '.join(there)}" if there else "'weft fit' without --ckpt_path trains from the beginning"
    raise OptionError(f"ckpt_path {name}: there is no checkpoint {path}; {remedy}")


def claim(run_dir: Path, resumed: Path | None) -> None:
    """Refuse to train into a folder that holds a run, unless it is that run which goes on.

    Args:
        run_dir: where the run is to be written.
        resumed: checkpoint to start from, None for a new run.

    Raises:
        OptionError: the folder holds checkpoints of another run.
    """
    here = run_dir / "checkpoints"
    if resumed is not None and resumed.resolve().parent == here.resolve():
        return
    if any(here.glob("*.ckpt")):
        raise OptionError(
            f"{run_dir} already holds a run: resume it with --ckpt_path last, or write elsewhere with --run_dir FOLDER"
        )


def numbered(path: Path) -> Path:
    """The first of ``name.ext``, ``name.2.ext``, ``name.3.ext`` ... that does not exist.

    Args:
        path: the name wanted.

    Returns:
        a free path beside it.
    """
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_suffix(f".{number}{path.suffix}")
    return free
