"""Files that are whole or as they were: written beside their place, then renamed."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write(path: Path, content: bytes) -> None:
    """Write a file so that it is whole or as it was.

    Args:
        path: of the file.
        content: of it.
    """
    beside = path.with_name(f".{path.name}.part")
    beside.write_bytes(content)
    beside.replace(path)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, likewise.

    Args:
        figure: to draw.
        path: of the file.
    """
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=150, format="png")
    write(path, drawn.getvalue())
