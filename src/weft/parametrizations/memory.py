"""Whether a fit will find the memory that it needs: asked before it starts, since a system kills who asks too late."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from weft.errors import FitError

_WORTH_ASKING = 2**28  # bytes; below, nobody is asked


def check_memory(family: str, shape: tuple[int, int], copies: float, device: torch.device, dtype: torch.dtype) -> None:
    """Refuse a fit that would need more memory than is free.

    Args:
        family: name.
        shape: (out, in) of the matrix to fit.
        copies: matrices of that size that the fit holds at once, at its largest.
        device: where it runs.
        dtype: that it works in.

    Raises:
        FitError: says what it needs and what is free.
    """
    needed = copies * math.prod(shape) * dtype.itemsize
    if needed < _WORTH_ASKING:
        return
    free = free_bytes(device)
    if free is not None and needed > free:
        raise FitError(
            f"fitting {family!r} to a matrix of shape {tuple(shape)} needs about {needed / 2**30:.3g} GiB "
            f"({copies:g} matrices of {dtype}), and {free / 2**30:.3g} GiB are free on {device.type}: free memory, fit "
            "on another machine, or cut the matrix into blocks"
        )


def free_bytes(device: torch.device) -> int | None:
    """Memory that could be had now.

    Args:
        device: of torch.

    Returns:
        bytes; None where it cannot be told.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu":
        return None
    free = [_kilobytes("/proc/meminfo", "MemAvailable:")]
    limit, used = (_number(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
    free.append(None if limit is None or used is None else limit - used)
    return min((number for number in free if number is not None), default=None)


def _kilobytes(path: str, name: str) -> int | None:
    """The number behind a name, in bytes; None without such a file (other systems than Linux)."""
    lines = Path(path).read_text(encoding="ascii").splitlines() if Path(path).is_file() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(name)), None)


def _number(path: str) -> int | None:
    text = Path(path).read_text(encoding="ascii").strip() if Path(path).is_file() else ""
    return int(text) if text.isdigit() else None
