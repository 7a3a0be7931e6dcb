"""Reading files that torch wrote, or something else did: nothing in them is run, and every fault is one line."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

from weft.errors import OptionError


def read(path: Path, *, trusted: bool = False, remedy: str = "") -> Any:
    """The content of a file that ``torch.save`` wrote, on the CPU.

    Args:
        path: of an existing file.
        trusted: whether it may hold more than tensors, numbers, text and collections of them, which may run code.
        remedy: end of the message about a file that cannot be read.

    Returns:
        what was saved.

    Raises:
        OptionError: it is damaged, another kind of file, or holds more than it may.
    """
    path.open("rb").close()  # a file that may not be read is the system's to explain
    try:
        with warnings.catch_warnings(action="ignore"):  # about odd protocols and old kinds of tensors
            return torch.load(path, map_location="cpu", weights_only=not trusted)
    except MemoryError:
        raise
    except Exception as error:  # foreign bytes are taken for instructions: whatever those lead to
        reason = str(error).strip().partition("\n")[0].partition(". ")[0]
        raise OptionError(
            f"{path} cannot be read as a torch file of plain tensors ({type(error).__name__}: {reason}); it may be "
            f"damaged, or hold more than tensors and numbers, which could run code{remedy}"
        ) from error
