"""What goes on around a call: recording, transforms, autocast; torch has no public word for most of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch.autograd import forward_ad
from torch.fx._symbolic_trace import is_fx_symbolic_tracing


def is_tracing() -> bool:
    """Whether jit or fx is recording the program, so that Python branches on sizes must not depend on the data.

    Returns:
        True under ``torch.jit.trace`` and ``torch.fx.symbolic_trace``.
    """
    return torch._C._get_tracing_state() is not None or is_fx_symbolic_tracing()


def is_recording() -> bool:
    """Whether a compiler or a tracer records the program, which a branch on sizes of the input would restrict.

    Returns:
        True under ``torch.compile`` and ``torch.export`` too.
    """
    return torch.compiler.is_compiling() or is_tracing()


def is_plain() -> bool:
    """Whether tensors are just tensors: no dispatch mode, functorch level, forward AD, jit or fx tracing is active.

    Returns:
        True if so.
    """
    return (
        torch._C._len_torch_dispatch_stack() == 0
        and not in_transform()
        and forward_ad._current_level < 0
        and not is_tracing()
    )


def in_transform() -> bool:
    """Whether a functorch transform (vmap, grad, jvp, ...) is active.

    Returns:
        True if so.
    """
    return torch._C._functorch.peek_interpreter_stack() is not None


def is_autocast(device: str) -> bool:
    """Whether autocast is on.

    Args:
        device: type of the device that is meant; the meta device knows no autocast.

    Returns:
        True if so.
    """
    return device != "meta" and torch.is_autocast_enabled(device)


def plain_precision(device: str) -> contextlib.AbstractContextManager[object]:
    """No autocast, whatever is on outside.

    Args:
        device: type of the device, whose autocast is meant.

    Returns:
        the context.
    """
    return torch.autocast(device, enabled=False) if is_autocast(device) else contextlib.nullcontext()


@contextlib.contextmanager
def plain_arithmetic(device: str) -> Iterator[None]:
    """No gradients, no inference mode, no autocast, whatever is on outside.

    Args:
        device: type of the device, whose autocast is meant.

    Yields:
        nothing.
    """
    autocast = contextlib.nullcontext() if device == "meta" else torch.autocast(device, enabled=False)
    with torch.inference_mode(False), torch.no_grad(), autocast:
        yield
