"""check_gradients: where gradients get lost on their way from the loss to the parameters of a hypernetwork.

Two halves are looked at: from the output to every generated tensor (what the target does with it), and from the output
to every parameter. Where no gradient arrives, the tensor is changed: an output that changes with it proves a broken
graph.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

from weft.hypernet.hypernetwork import HyperNetwork
from weft.hypernet.program import run, with_samples, without_samples
from weft.hypernet.rows import DenseRows

#: Parameters whose rows are looked at one by one.
_TABLES = ("embeddings", "generator.chunk_embeddings", "generator.slot_embeddings")
_WAYS = "nn.Parameter(...) around it (a new leaf), .data, detach() or no_grad"


@dataclass(frozen=True)
class Finding:
    """One thing that gets no gradient.

    Args:
        what: ``"slot"`` (a generated tensor), ``"parameter"`` or ``"embedding"``.
        name: of the tensor, with the row for embeddings.
        problem: ``"broken"``, ``"unused"``, ``"zero"`` or ``"not finite"``.
        words: the same in a sentence, with what to look for.
    """

    what: str
    name: str
    problem: str
    words: str


@dataclass(frozen=True)
class GradientReport:
    """What ``check_gradients`` found; ``str()`` says it in words.

    Args:
        findings: what gets no gradient.
        checked: how many tensors were looked at.
        frozen: names of parameters that do not ask for gradients, and of tasks that are frozen.
    """

    findings: tuple[Finding, ...]
    checked: int
    frozen: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether everything that asks for a gradient got one."""
        return not self.findings

    def __str__(self) -> str:
        lines = [f"{f.what} {f.name}: {f.words}" for f in self.findings]
        if not lines:
            lines = [f"gradients reach all of the {self.checked} tensors that ask for them"]
        if self.frozen:
            lines.append(f"frozen, so without gradients: {', '.join(self.frozen)}")
        return "\n".join(lines)


def check_gradients(
    hyper: HyperNetwork, batch: Tensor | Mapping[str, Any], loss: Callable[[Any], Tensor] | None = None
) -> GradientReport:
    """Tell which generated tensors, generator parameters and embeddings get no gradient, and why.

    Runs on a copy, in the mode that ``hyper`` is in; nothing is changed.

    Args:
        hyper: the hypernetwork.
        batch: an input, or the arguments of the call by name, with the input (or a tuple of inputs) under ``"x"``:
            ``{"x": x, "condition": c}``.
        loss: of the output, a number; None for a random linear one.

    Returns:
        the report; print it.

    Example:
        >>> import torch, weft
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2))
        >>> hyper = weft.HyperNetwork(net, condition=5)
        >>> batch = {"x": torch.randn(8, 4), "condition": torch.randn(8, 5)}
        >>> print(weft.hypernet.check_gradients(hyper, batch))
        gradients reach all of the 14 tensors that ask for them
    """
    arguments: dict[str, Any] = dict(batch) if isinstance(batch, Mapping) else {"x": batch}
    with torch.inference_mode(False), torch.enable_grad():
        hyper = copy.deepcopy(hyper)
        arguments = _pytree.tree_map(lambda t: t.clone() if _is_inference(t) else t, arguments)
        inputs = arguments.pop("x")
        inputs = inputs if isinstance(inputs, tuple) else (inputs,)
        call = _Call(hyper, inputs, arguments, loss or _random_projection)
        slots = _check_slots(call)
        parameters, number = _check_parameters(call)
    frozen = [name for name, p in hyper.named_parameters() if not p.requires_grad]
    frozen += [f"task {task}" for task in torch.nonzero(hyper.frozen).flatten().tolist()]
    return GradientReport((*slots, *parameters), len(hyper.slots) + number, tuple(frozen))


class _Call:
    """A call that can be repeated with the same random numbers."""

    def __init__(
        self, hyper: HyperNetwork, inputs: tuple[Tensor, ...], arguments: dict[str, Any], loss: Callable[[Any], Tensor]
    ) -> None:
        self.hyper, self.inputs, self.arguments, self.loss = hyper, inputs, arguments, loss
        self.task = arguments.get("task")
        self.one = hyper._is_one_network(arguments.get("condition"), self.task, arguments.get("samples"))

    def whole(self) -> Any:
        """The output of the hypernetwork."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.hyper(*self.inputs, **self.arguments)

    def tensors(self) -> dict[str, Tensor]:
        """What is generated for this call."""
        return self.hyper.generate(**{k: v for k, v in self.arguments.items() if k != "samples"})

    def target(self, tensors: dict[str, Tensor]) -> Any:
        """The output of the target with given tensors."""
        hyper, samples = self.hyper, self.arguments.get("samples")
        inputs = with_samples(self.inputs, samples)
        if self.one:
            inputs = tuple(x.transpose(0, 1) for x in inputs)
        elif len(next(iter(tensors.values()))) == 1:  # one task, and samples per row
            tensors = {name: t.expand(len(inputs[0]), *t.shape[1:]) for name, t in tensors.items()}
        weights = hyper._named(DenseRows(tensor) for tensor in tensors.values())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            out = run(hyper.target, weights, inputs, one_network=self.one)
        return _pytree.tree_map(lambda y: y[0], out) if self.one else without_samples(out, samples)


def _random_projection(out: Any) -> Tensor:
    """A loss that no symmetry of the output makes constant."""
    total: Any = 0
    for y in _tensors(out):
        weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        total = total + (y * weights.to(y.device, y.dtype)).sum()
    return total


def _check_slots(call: _Call) -> list[Finding]:
    """Generated tensors: is there a graph behind them, and does the target hand gradients to them?"""
    found = []
    tensors = call.tensors()
    for name, tensor in tensors.items():
        if tensor.grad_fn is None:
            how = "it is a leaf: nn.Parameter(...) starts a new graph" if tensor.requires_grad else f"look for {_WAYS}"
            found.append(Finding("slot", name, "broken", f"no graph leads back to the generator; {how}"))
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}
    out = call.target(leaves)
    slopes = _slopes(call.loss(out), list(leaves.values()))
    for (name, leaf), slope in zip(leaves.items(), slopes, strict=True):

        def moves(name: str = name, leaf: Tensor = leaf) -> bool:
            with torch.no_grad():
                return _moved(out, call.target({**leaves, name: _changed(leaf)}))

        found += _judge("slot", name, slope, moves, "in the target's forward")
    return found


def _check_parameters(call: _Call) -> tuple[list[Finding], int]:
    """Parameters of generator, condition module, embeddings and what the target shares."""
    found: list[Finding] = []
    named = [(name, p) for name, p in call.hyper.named_parameters() if p.requires_grad and p.numel()]
    out = call.whole()
    slopes = _slopes(call.loss(out), [p for _, p in named])
    for (name, parameter), slope in zip(named, slopes, strict=True):

        def moves(parameter: Tensor = parameter) -> bool:
            kept = parameter.detach().clone()
            with torch.no_grad():
                parameter.copy_(_changed(parameter))
                changed = call.whole()
                parameter.copy_(kept)
            return _moved(out, changed)

        if slope is not None and name in _TABLES:
            found += _judge_rows(call, name, slope)
        else:
            found += _judge("parameter", name, slope, moves, "between it and the output")
    return found, len(named)


def _judge_rows(call: _Call, name: str, slope: Tensor) -> list[Finding]:
    """Embeddings row by row: of the tasks in the batch, of every chunk or tensor."""
    rows = list(range(len(slope)))
    if name == "embeddings":
        used = call.task if isinstance(call.task, Tensor) else torch.tensor([call.task or 0])
        rows = sorted(set(used.flatten().tolist()) - set(torch.nonzero(call.hyper.frozen).flatten().tolist()))
    return [f for row in rows for f in _judge("embedding", f"{name}[{row}]", slope[row], lambda: False, "")]


def _judge(what: str, name: str, slope: Tensor | None, moves: Callable[[], bool], place: str) -> list[Finding]:
    if slope is not None and not bool(torch.isfinite(slope).all()):
        return [Finding(what, name, "not finite", "its gradient is not finite; look for overflow, log(0) or sqrt(0)")]
    if slope is not None and bool((slope != 0).any()):
        return []
    if moves() and slope is None:
        words = f"it changes the output but gets no gradient: the graph is broken {place}; look for {_WAYS}"
        return [Finding(what, name, "broken", words)]
    if slope is None:
        return [Finding(what, name, "unused", "it gets no gradient, and changing it does not change the output")]
    words = (
        "its gradient is zero everywhere; look for dead units, a factor of zero, or a loss that does not depend on it"
    )
    return [Finding(what, name, "zero", words)]


def _slopes(loss: Tensor, tensors: list[Tensor]) -> tuple[Tensor | None, ...]:
    if loss.grad_fn is None or not tensors:
        return (None,) * len(tensors)
    return torch.autograd.grad(loss, tensors, allow_unused=True)


def _changed(tensor: Tensor) -> Tensor:
    noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return tensor.detach() + noise.to(tensor.device, tensor.dtype)


def _moved(before: Any, after: Any) -> bool:
    """Whether any number differs; NaN is like NaN."""
    pairs = zip(_tensors(before), _tensors(after), strict=True)
    return any(bool(((a != b) & ~(a.isnan() & b.isnan())).any()) for a, b in pairs)


def _tensors(out: Any) -> list[Tensor]:
    """The tensors of floating point in an output."""
    return [y for y in _pytree.tree_leaves(out) if isinstance(y, Tensor) and y.is_floating_point()]


def _is_inference(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_inference()
