"""Any module once per row of the batch, by ``torch.func``: what has no form of its own in ``program``.

``functional_call`` puts a row's tensors into their places for one call; ``torch.vmap`` makes that one call for all
rows, and where it cannot (recurrent kernels, branches on values, writes into tensors) the rows run one by one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree

from weft.errors import OptionError

_ATTENTION = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)


def call_by_func(
    module: nn.Module, tensors: Mapping[str, Tensor], inputs: tuple[Any, ...], *, one_network: bool
) -> tuple[Any, str, str]:
    """Call a module once per row.

    Args:
        module: any; it is left as it was.
        tensors: (B, *shape) by name of a parameter or buffer.
        inputs: tensors (B, ...), or structures of them.
        one_network: whether the one row stands for the network that sees the whole batch, and may update its buffers.

    Returns:
        what the module returns, its tensors (B, ...); the path that was taken, and why.

    Raises:
        OptionError: a buffer of the module would be updated, and there are several networks.
    """
    kind = type(module).__name__
    rows = _pytree.tree_leaves(inputs)[0].shape[0]
    own = _one_name_per_place(module, tensors)
    if rows == 0:  # a row of zeros, joined so that its result has a graph
        own, inputs = _pytree.tree_map(lambda t: torch.cat([t, t.new_zeros(1, *t.shape[1:])]), (own, inputs))
    with contextlib.nullcontext() if torch.compiler.is_compiling() else _left_as_it_was(module, rows):
        if rows == 1:
            alone, inputs = _pytree.tree_map(lambda t: t[0], (own, inputs))
            with _buffers_stay(module, copies=True) if not one_network else contextlib.nullcontext():
                out = functional_call(module, alone, inputs)
            return _on_tensors(lambda y: y.unsqueeze(0), out), "one network", f"{kind} runs as it is, once"
        if not _masks_one_row(module, own):
            with contextlib.suppress(RuntimeError, ValueError):  # a fault of the module itself comes again below
                with _buffers_stay(module, copies=False):
                    out = _batched(module, own, inputs)
                why = f"{kind} has no form of its own here: torch.func runs it with a batch of parameters"
                return _on_tensors(lambda y: y[:rows], out), "vmap", why
        every = [_pytree.tree_map(lambda t, b=b: t[b], (own, inputs)) for b in range(max(rows, 1))]
        with _buffers_stay(module, copies=True):
            outs = [functional_call(module, *each) for each in every]
    leaves, specs = zip(*map(_pytree.tree_flatten, outs), strict=True)
    merged = [torch.stack(ys)[:rows] if isinstance(ys[0], Tensor) else ys[0] for ys in zip(*leaves, strict=True)]
    why = f"{kind} does what torch.vmap cannot batch, so rows run one by one"
    return _pytree.tree_unflatten(merged, specs[0]), "loop", why


def _batched(module: nn.Module, own: Mapping[str, Tensor], inputs: tuple[Any, ...]) -> Any:
    """All rows in one call; what is no tensor in the output, such as None, is taken as it is."""
    form: list[Any] = []

    def one(own: Mapping[str, Tensor], inputs: tuple[Any, ...]) -> list[Tensor]:
        leaves, spec = _pytree.tree_flatten(functional_call(module, dict(own), inputs))
        form[:] = [None if isinstance(leaf, Tensor) else (leaf,) for leaf in leaves], spec
        return [leaf for leaf in leaves if isinstance(leaf, Tensor)]

    on_cpu = _pytree.tree_leaves(inputs)[0].device.type == "cpu" and not torch.compiler.is_compiling()
    # The fused attention of the CPU has no batching rule: vmap would run it row by row, and warn.
    with sdpa_kernel(SDPBackend.MATH) if on_cpu else contextlib.nullcontext():
        made = iter(vmap(one, randomness="different")(own, inputs))
    others, spec = form
    return _pytree.tree_unflatten([next(made) if other is None else other[0] for other in others], spec)


def _on_tensors(change: Any, out: Any) -> Any:
    return _pytree.tree_map(lambda y: change(y) if isinstance(y, Tensor) else y, out)


def _one_name_per_place(module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One name where a module stands under several: functional_call would put back the wrong tensor at the end."""
    kept: dict[tuple[int, str], str] = {}
    for name in tensors:
        path, _, last = name.rpartition(".")
        kept.setdefault((id(module.get_submodule(path)), last), name)
    return {name: tensors[name] for name in kept.values()}


def _masks_one_row(module: nn.Module, own: Mapping[str, Tensor]) -> bool:
    """Whether gradients under vmap would be wrong: of an embedding it masks the padding of the first row alone."""
    return any(
        isinstance(part, nn.Embedding)
        and (part.padding_idx is not None or part.scale_grad_by_freq or part.max_norm is not None)
        and (f"{path}.weight" if path else "weight") in own
        for path, part in module.named_modules(remove_duplicate=False)
    )


@contextlib.contextmanager
def _left_as_it_was(module: nn.Module, rows: int) -> Iterator[None]:
    """Whatever a call leaves behind in a module that belongs to one row is taken out again."""
    parts = list(module.modules())
    flat = [
        (part, list(part._flat_weights), part._flat_weight_refs) for part in parts if isinstance(part, nn.RNNBase)
    ]  # lists of their own of what is generated
    attributes = [(part, dict(vars(part))) for part in parts] if rows != 1 else []  # one row needs no vmap
    fast = torch.backends.mha.get_fastpath_enabled()
    slow = fast and (rows > 1 or torch.is_grad_enabled()) and any(isinstance(part, _ATTENTION) for part in parts)
    if slow:  # it has no gradients and no batching rule, and under vmap does not see that gradients are wanted
        torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        if slow:
            torch.backends.mha.set_fastpath_enabled(fast)
        for rnn, weights, references in flat:
            rnn.__dict__.update(_flat_weights=weights, _flat_weight_refs=references)
        for part, before in attributes:
            _drop_dead(part, before)


@contextlib.contextmanager
def _buffers_stay(module: nn.Module, copies: bool) -> Iterator[None]:
    """Puts back the buffers that a call has moved, and says so; without copies it sees those that were replaced."""
    kept = [
        (part, name, buffer, buffer._version, buffer.clone() if copies else None)
        for part in module.modules()
        for name, buffer in part._buffers.items()
        if buffer is not None and buffer.is_floating_point() and not buffer.is_inference()
    ]
    moved = []
    try:
        yield
    finally:
        for part, name, buffer, version, copy in kept:
            if part._buffers[name] is not buffer or (copy is not None and buffer._version != version):
                moved.append((part, name))
                part._buffers[name] = buffer
                if copy is not None:
                    with torch.no_grad():
                        buffer.copy_(copy)
    if moved:
        part, name = moved[0]
        raise OptionError(
            f"{type(part).__name__} updates its buffer {name!r} in forward, which belongs to one network, but here "
            f"every row is a network of its own; put the target into evaluation mode (hyper.target.eval() after "
            f"hyper.train()), or run one task per call (task=an int)"
        )


def _drop_dead(part: nn.Module, before: dict[str, Any]) -> None:
    """Take out attributes that hold tensors of a vmap that is over, such as attention maps kept for a look."""
    for name, value in list(vars(part).items()):
        if name in ("_parameters", "_buffers", "_modules") or value is before.get(name):
            continue
        if any(isinstance(leaf, Tensor) and _is_dead(leaf) for leaf in _pytree.tree_leaves(value)):
            if name in before:
                part.__dict__[name] = before[name]
            else:
                del part.__dict__[name]


def _is_dead(tensor: Tensor) -> bool:
    functorch = torch._C._functorch
    if not functorch.is_functorch_wrapped_tensor(tensor):
        return False
    level = functorch.maybe_get_level(tensor)
    return level < 0 or level > (functorch.maybe_current_level() or 0)
