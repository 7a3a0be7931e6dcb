"""One process at a time in a folder."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

try:
    fcntl: Any = importlib.import_module("fcntl")
except ModuleNotFoundError:  # Windows: folders are used unlocked
    fcntl = None


@contextmanager
def exclusive(folder: Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold a folder until the end of the block; the system frees it when the process ends, however that happens.

    Args:
        folder: is made.
        wait: until the process that holds it lets it go.

    Yields:
        whether it is held now; False where another process holds it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as name, exclusive(Path(name)) as first, exclusive(Path(name)) as second:
        ...     first, second
        (True, False)
    """
    folder.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield True
        return
    # The file stays: where one process removes it, a second may hold the removed one and a third a new one.
    with (folder / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            ours = True
        except BlockingIOError:
            ours = False
        except OSError:  # a file system without locks
            ours = True
        try:
            yield ours
        finally:
            if ours:  # closing would not do where a worker of a data loader has inherited the file
                with suppress(OSError):
                    fcntl.flock(file, fcntl.LOCK_UN)
