"""HyperNetwork: the parameters of any target come from another network.

    theta_b = H(e_b),    y_b = f(x_b; theta_b)

e_b: a learned embedding per task, or a condition of the row, encoded or as it is; H: a generator of one of five kinds;
f: the target. Each row of the batch runs through its own network.

Letters: B = rows, K = samples per row, E = size of the code.
"""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from weft.errors import FoldError, OptionError, SizeError, nearest_name
from weft.hypernet.generators import (
    Activation,
    Chunked,
    Full,
    Generator,
    Layerwise,
    LowRank,
    Scaling,
    chunk_cover,
)  # fmt: skip
from weft.hypernet.init import RULES
from weft.hypernet.program import Choice, run, with_samples, without_samples
from weft.hypernet.rows import DenseRows, RowWeights
from weft.hypernet.slots import Patterns, Slot, choose, set_parameters, stand_ins
from weft.layers.cache import WeightCache, count_sources
from weft.layers.foldable import Foldable
from weft.modes import in_transform, is_recording, plain_arithmetic

KINDS = ("full", "chunked", "scaling", "low_rank", "layerwise")
Kind = Literal["full", "chunked", "scaling", "low_rank", "layerwise"]
_OPTIONS = {  # option: (kinds that take it, default)
    "chunk_size": (("chunked",), None),
    "num_chunks": (("chunked",), None),
    "slot_embedding_dim": (("chunked", "layerwise"), 8),
    "rank": (("low_rank",), 4),
}


@dataclass(frozen=True)
class Explanation:
    """How a hypernetwork runs an input; ``str()`` is a table.

    Args:
        weights: how the tensors of the target come about.
        parts: path and reason of each part of the target, in the order in which they run.
    """

    weights: str
    parts: tuple[Choice, ...]

    def __str__(self) -> str:
        wide = [max(len(part[i]) for part in self.parts) for i in range(2)]
        rows = [f"{part.part:{wide[0]}}  {part.path:{wide[1]}}  {part.why}" for part in self.parts]
        return "\n".join([f"weights: {self.weights}", *rows])


class HyperNetwork(Foldable):
    """A network whose parameters another network makes, for each row of the batch anew.

        theta_b = H(e_b),    y_b = f(x_b; theta_b)

    Without ``condition`` there is a learned embedding per task: ``hyper(x, task=3)``, or ``task=`` a task id per row.
    With it, every row has a condition: ``hyper(x, condition=c)``. ``samples=K`` says that inputs are (B, K, ...) and
    each network sees K samples. Rows never meet, so any batch size gives the same.

    A linear layer of the target that a head of kind full, layerwise or low_rank generates is not built for every row:
    the head is linear, so the input meets it first. Convolutions run as the groups of one, other modules under
    ``torch.vmap``; ``explain`` tells.

    Choose it where one network must be many: per task, per user, per series, per input. A plain network with the
    condition as an input is cheaper where that is enough.

    Args:
        target: any module; a copy of it is used. Its generated parameters are no parameters of the hypernetwork; the
            others stay ordinary ones, under ``hyper.target``. Of Weft's structured layers the factors are generated.
        condition: size of a condition; or a module that makes a code of size ``embedding_dim`` from one (an encoder of
            images, of support sets); None for tasks.
        num_tasks: learned embeddings; None for 1 without a condition.
        embedding_dim: E, of the tasks (default 8; 0 for none, with one task and the kinds chunked and layerwise) or of
            what a condition module returns. Not with a condition given by its size, which is the code.
        kind: ``"full"``: a linear head per tensor; ``"layerwise"``: likewise, and the hidden layers see an embedding of
            the tensor; ``"chunked"``: one small head that makes all numbers chunk by chunk; ``"scaling"``: shared
            matrices, of which rows and columns are scaled; ``"low_rank"``: two thin factors. The last two generate
            vectors as full does.
        hidden: widths of the generator's hidden layers; () for a linear one.
        activation: of them: relu, elu, gelu, silu, tanh, identity, or a class of modules.
        generated: name patterns (``fnmatch``) of the parameters to generate.
        shared: name patterns of those not to, although they match; None for nothing.
        chunk_size: L, numbers per chunk; the surplus of the last one is dropped.
        num_chunks: N, instead of L, which is then ceil(P/N) for P numbers in all.
        slot_embedding_dim: size of the embedding per chunk (kind chunked) or per tensor (layerwise), 8 by default.
        rank: r of the factors (kind low_rank), 4 by default.
        init: variance of a generated entry at the start: ``"unit"`` as the target itself would start;
            ``"hyperfan_in"``, ``"hyperfan_out"`` or their ``"harmonic"`` mean. Reached by a unit-variance output times
            a fixed number per tensor; with kind chunked the hyperfan rules set the size of each chunk's embedding
            instead.
        gain: c of the hyperfan rules, above 0; None for 2 if the target has ReLUs, else 1.
        statistics: running statistics and other buffers of the target: ``"shared"``, one set; ``"per_task"``, one set
            per task, used and updated with it.

    Shape:
        inputs (B, ...) -> (B, ...) as the target; with ``samples`` (B, K, ...) -> (B, K, ...). The target sees its
        samples as the first dimension, so recurrent layers and attention want ``batch_first=True``.

    Parameters stored:
        embeddings (num_tasks, E); encoder.*, the condition module; generator.*; target.*, what is shared. State also
        has generator.scale, frozen and frozen_embeddings, target's buffers, and task_buffers.* with
        ``statistics="per_task"``.

    Batch norm:
        in evaluation running statistics are used for every row. In training they can be updated for one network per
        call (``task=`` an int), which then sees the whole batch; else that is an error that names the ways out.

    Initial law:
        over codes of variance 1 and their own entries, generated tensors have the mean and the variance of the rule
        (with kind chunked and a hyperfan rule the chunks, on average over draws, have the mean variance of their
        entries); tensors that the target starts constant (gains of norm layers) keep that mean and get a standard
        deviation of 0.1.

    Cost:
        full: (h + 1) P numbers, P = numbers generated, h the last width. Per row about (h + 1) P multiply-adds.
        Evaluation of one task without gradients makes the tensors once and keeps them, by the rules of the layers'
        cache.

    Raises:
        OptionError: contradicting options, a target without parameters to generate, patterns that match nothing.
        SizeError: sizes below 1, chunks that cannot cover or would not all be used.

    Source:
        Ha, Dai and Le 2017, HyperNetworks, https://arxiv.org/abs/1609.09106; von Oswald et al. 2020, Continual learning
        with hypernetworks, https://arxiv.org/abs/1906.00695; Chang, Flokas and Lipson 2020, Principled Weight
        Initialization for Hypernetworks, https://openreview.net/forum?id=H1lma24tPB.

    Example:
        >>> import torch, weft
        >>> net = torch.nn.Sequential(torch.nn.Linear(784, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
        >>> hyper = weft.HyperNetwork(net, condition=784)
        >>> x = torch.randn(64, 784)
        >>> tuple(hyper(x, condition=x).shape), tuple(hyper.generate(condition=x)["0.weight"].shape)
        ((64, 10), (64, 32, 784))
        >>> tasks = weft.HyperNetwork(net, num_tasks=10, embedding_dim=32, kind="chunked", num_chunks=20)
        >>> tuple(tasks(x, task=3).shape)
        (64, 10)
    """

    frozen: Tensor
    frozen_embeddings: Tensor
    encoder: nn.Module | None
    embeddings: nn.Parameter | None

    def __init__(
        self,
        target: nn.Module,
        condition: int | nn.Module | None = None,
        *,
        num_tasks: int | None = None,
        embedding_dim: int | None = None,
        kind: Kind = "full",
        hidden: Sequence[int] = (16,),
        activation: Activation = "relu",
        generated: Patterns = "*",
        shared: Patterns | None = None,
        chunk_size: int | None = None,
        num_chunks: int | None = None,
        slot_embedding_dim: int | None = None,
        rank: int | None = None,
        init: str = "unit",
        gain: float | None = None,
        statistics: Literal["shared", "per_task"] = "shared",
    ) -> None:
        super().__init__()
        _check_choice("kind", kind, KINDS)
        _check_choice("init", init, RULES)
        _check_choice("statistics", statistics, ("shared", "per_task"))
        if not isinstance(target, nn.Module):
            raise OptionError(f"target must be a module, got {type(target).__name__}")
        options = _options(
            kind, chunk_size=chunk_size, num_chunks=num_chunks, slot_embedding_dim=slot_embedding_dim, rank=rank
        )
        code_size = _code_size(condition, num_tasks, embedding_dim, kind)
        if statistics == "per_task" and condition is not None:
            raise OptionError("statistics='per_task' needs tasks, and with a condition there are none; use 'shared'")
        self.kind, self.init, self.statistics = kind, init, statistics
        self.num_tasks = None if condition is not None else num_tasks or 1
        target = copy.deepcopy(target)
        self.slots: tuple[Slot, ...] = tuple(choose(target, generated, shared))
        like = target.get_parameter(self.slots[0].name).detach()
        if gain is not None and not 0 < gain < math.inf:
            raise OptionError(f"gain must be finite and above 0, or None, got {gain}")
        gain = (2.0 if any(isinstance(m, nn.ReLU) for m in target.modules()) else 1.0) if gain is None else gain
        variances = [slot.law.variance(init, gain) for slot in self.slots]
        set_parameters(target, self.slots, [None] * len(self.slots))
        self.target = target
        self.encoder = condition if isinstance(condition, nn.Module) else None
        tasks = self.num_tasks or 0
        self.embeddings = None if self.num_tasks is None else nn.Parameter(like.new_empty(tasks, code_size))
        # no bool, so that averages of models (torch.optim.swa_utils) can subtract it
        self.register_buffer("frozen", torch.zeros(tasks, dtype=torch.long, device=like.device))
        self.register_buffer("frozen_embeddings", like.new_zeros(tasks, code_size))
        self.task_buffers = nn.Module()
        if statistics == "per_task":
            for index, (_, buffer) in enumerate(target.named_buffers()):
                self.task_buffers.register_buffer(str(index), buffer.detach().expand(tasks, *buffer.shape).clone())
        self.generator = self._generator(code_size, hidden, activation, variances, like, options)
        self._cache = WeightCache()
        self._num_sources = count_sources(self)
        self.reset_parameters()

    def _generator(
        self, code_size: int, hidden: Sequence[int], activation: Activation, variances: list[float], like: Tensor,
        options: dict[str, Any],
    ) -> Generator:  # fmt: skip
        common = self.slots, code_size, hidden, activation, variances, like
        if self.kind == "chunked":
            total = sum(slot.size for slot in self.slots)
            number, size = chunk_cover(total, options["chunk_size"], options["num_chunks"])
            return Chunked(number, size, options["slot_embedding_dim"], self.init != "unit", *common)
        if self.kind == "layerwise":
            return Layerwise(options["slot_embedding_dim"], *common)
        if self.kind == "low_rank":
            return LowRank(options["rank"], *common)
        return Scaling(*common) if self.kind == "scaling" else Full(*common)

    def reset_parameters(self) -> None:
        """Draw generator and embeddings anew; what is shared, and the condition module, stay as they are."""
        self.generator.reset_parameters()
        if self.embeddings is not None:
            nn.init.normal_(self.embeddings)
        self.frozen.zero_()
        self.clear_cache()

    # ------------------------------------------------------------------ codes and generated tensors

    def codes(self, condition: Any = None, task: int | Tensor | None = None) -> Tensor:
        """What the generator sees: embeddings of tasks, or encoded conditions.

        Args:
            condition: (B, size), or what the condition module takes.
            task: an id, or ids (B,).

        Returns:
            (B, E); (1, E) for one task.

        Raises:
            OptionError: both or neither, or the one that this hypernetwork does not have; a task out of range.
            SizeError: a condition of another size.
        """
        if self.embeddings is None:
            if task is not None or condition is None:
                raise OptionError(f"this hypernetwork is conditional: give condition=, {_got(condition, task)}")
            return self._encoded(condition)
        if condition is not None:
            raise OptionError(f"this hypernetwork knows tasks: give task= alone, {_got(condition, task)}")
        if task is None:
            if self.num_tasks != 1:
                raise OptionError(f"task must be given: an id in 0..{(self.num_tasks or 0) - 1}, or one per row")
            task = 0
        task = self._checked_task(task)
        table = torch.where(self.frozen.bool()[:, None], self.frozen_embeddings, self.embeddings)
        return table[task] if isinstance(task, Tensor) else table[task : task + 1]

    def _encoded(self, condition: Any) -> Tensor:
        if self.encoder is not None:
            code = self.encoder(condition)
            if not isinstance(code, Tensor) or code.dim() != 2 or code.shape[1] != self.generator.code_size:
                got = tuple(code.shape) if isinstance(code, Tensor) else type(code).__name__
                raise SizeError(
                    f"the condition module must return (rows, embedding_dim={self.generator.code_size}), got {got}"
                )
            return code
        if not isinstance(condition, Tensor) or condition.dim() != 2 or condition.shape[1] != self.generator.code_size:
            got = tuple(condition.shape) if isinstance(condition, Tensor) else type(condition).__name__
            raise SizeError(f"condition must be a tensor (rows, {self.generator.code_size}), got {got}")
        return condition

    def _checked_task(self, task: int | Tensor) -> int | Tensor:
        """An id as a number, or ids (B,), all in range."""
        number = self.num_tasks or 0
        if not hasattr(task, "__index__"):  # of a number, and of a tensor
            raise OptionError(f"task must be an id, or a tensor of ids (rows,); got {task!r}")
        if isinstance(task, Tensor) and (task.dim() > 1 or task.is_floating_point() or task.dtype == torch.bool):
            raise OptionError(
                f"task must be an id or ids (rows,), of integers; got {tuple(task.shape)} of {task.dtype}"
            )
        if isinstance(task, Tensor) and task.dim():
            task = task.long()  # as an index uint8 would be a mask
            if is_recording() or in_transform() or task.device.type != "cpu" or not task.numel():
                return task  # a look at the values would break the program, or wait for the device
            low, high = int(task.min()), int(task.max())
        else:
            low = high = task = operator.index(task)
        if low < 0 or high >= number:
            raise OptionError(f"task must be in 0..{number - 1}, got {low if low < 0 else high}")
        return task

    def generate(self, condition: Any = None, task: int | Tensor | None = None) -> dict[str, Tensor]:
        """The generated parameters of every row, with their graph.

        Args:
            condition: as in the call.
            task: as in the call.

        Returns:
            ``{name in the target: (B, *shape)}``; B = 1 for one task. Tied parameters come under their first name.
        """
        rows = self.generator(self.codes(condition, task))
        return {slot.name: row.dense() for slot, row in zip(self.slots, rows, strict=True)}

    # ------------------------------------------------------------------ running

    def forward(
        self,
        x: Tensor,
        *others: Tensor,
        condition: Any = None,
        task: int | Tensor | None = None,
        samples: int | None = None,
    ) -> Any:
        """Every row of the batch through its own network; with one task the whole batch through one.

        Args:
            x: input of the target, (B, ...), or (B, K, ...) with ``samples``.
            *others: further inputs, likewise.
            condition: (B, size), or what the condition module takes, of B rows.
            task: an id for all rows, or ids (B,).
            samples: K, None for one sample per row without a dimension of its own.

        Returns:
            what the target returns, (B, ...) or (B, K, ...).
        """
        return self._run((x, *others), condition, task, samples)

    def _run(
        self,
        inputs: tuple[Tensor, ...],
        condition: Any,
        task: Any,
        samples: int | None,
        log: list[Choice] | None = None,
    ) -> Any:
        inputs = with_samples(inputs, samples)
        if self._is_one_network(condition, task, samples):
            task = self._one_task(task)
            weights = self._named(self._one_network(task)) | self._task_buffers(task)
            inputs = tuple(x.transpose(0, 1) for x in inputs)
            out = run(self.target, weights, inputs, one_network=True, log=log)
            return _pytree.tree_map(lambda y: y[0], out)
        codes, rows = self.codes(condition, task), inputs[0].shape[0]
        if self.embeddings is not None and not isinstance(task, Tensor):  # one task, and samples per row
            codes, task = codes.expand(rows, -1), torch.full((rows,), self._one_task(task), device=codes.device)
        if codes.shape[0] != rows:
            raise SizeError(
                f"{'task' if condition is None else 'condition'} has {codes.shape[0]} rows, the input has {rows}; they "
                f"must be equal. For one condition and many samples give inputs (rows, K, ...) and samples=K"
            )
        weights = self._named(self.generator(codes)) | self._task_buffers(task)
        return without_samples(run(self.target, weights, inputs, log=log), samples)

    def _is_one_network(self, condition: Any, task: int | Tensor | None, samples: int | None) -> bool:
        """Whether one network sees the whole batch."""
        if self.embeddings is None or condition is not None or samples is not None:
            return False
        return not (isinstance(task, Tensor) and task.dim())

    def _one_task(self, task: int | Tensor | None) -> int:
        """The id of the only network of a call."""
        if task is None and self.num_tasks != 1:
            self.codes(None, task)  # says what is missing
        checked = self._checked_task(0 if task is None else task)
        assert isinstance(checked, int)
        return checked

    def _named(self, rows: Iterable[RowWeights]) -> dict[str, RowWeights]:
        return {name: row for slot, row in zip(self.slots, rows, strict=True) for name in slot.names}

    def _one_network(self, task: int) -> list[RowWeights]:
        """The tensors of one task: in evaluation without gradients made once and kept."""

        def build() -> tuple[Tensor, ...]:
            return tuple(row.dense() for row in self.generator(self.codes(None, task)))

        if not self.training and not self.generator.training and not torch.compiler.is_compiling():
            kept = self._cache.lookup(self, task, self._num_sources, build, cast=False)
            if kept is not None:
                return [DenseRows(tensor) for tensor in kept]
        return [row.settled() for row in self.generator(self.codes(None, task))]

    def _task_buffers(self, task: Any) -> dict[str, RowWeights]:
        """The buffers of tasks by all their names in the target; of one task they are views, which it may update."""
        if self.statistics != "per_task":
            return {}
        index = slice(task, task + 1) if isinstance(task, int) else task
        own = dict(zip((id(buffer) for buffer in self.target.buffers()), self.task_buffers.buffers(), strict=True))
        every = self.target.named_buffers(remove_duplicate=False)
        return {name: DenseRows(own[id(buffer)][index]) for name, buffer in every}

    def explain(
        self, *inputs: Tensor, condition: Any = None, task: int | Tensor | None = None, samples: int | None = None
    ) -> Explanation:
        """How a call with these arguments runs the target, and why: runs a copy once, in the mode that this one is in.

        Args:
            *inputs: as in the call.
            condition: as in the call.
            task: as in the call.
            samples: as in the call.

        Returns:
            the paths; print it.

        Example:
            >>> import torch, weft
            >>> hyper = weft.HyperNetwork(torch.nn.Linear(5, 3), condition=2)
            >>> print(hyper.explain(torch.randn(4, 5), condition=torch.randn(4, 2)))
            weights: full, 18 numbers per row from 18 outputs
            Linear  contraction  the head is linear: no weight is built; ...
        """
        log: list[Choice] = []
        twin = copy.deepcopy(self)
        with torch.random.fork_rng(devices=[]):
            twin._run(inputs, condition, task, samples, log)
        total = sum(slot.size for slot in self.slots)
        if self._is_one_network(condition, task, samples):
            kept = twin._cache.entry is not None
            made = "made once and kept: evaluation without gradients" if kept else "made in every call"
            return Explanation(f"{self.kind}, {total} numbers for one network, {made}", tuple(log))
        return Explanation(f"{self.kind}, {total} numbers per row from {self.generator.outputs} outputs", tuple(log))

    # ------------------------------------------------------------------ tasks

    def freeze_tasks(self, tasks: int | Iterable[int]) -> None:
        """Hold the embeddings of tasks at their present values, whatever an optimizer does from now on.

        Values and marks are buffers. The rows of ``embeddings`` get zero gradients; momentum and weight decay may still
        move them, but they are not read.

        Args:
            tasks: ids.
        """
        with torch.no_grad():
            for task in [tasks] if isinstance(tasks, int) else tasks:
                self.frozen_embeddings[task] = self.codes(None, task)[0]
                self.frozen[task] = 1

    def unfreeze_tasks(self, tasks: int | Iterable[int]) -> None:
        """Let the embeddings of tasks learn again, from the values at which they were held.

        Args:
            tasks: ids.
        """
        with torch.no_grad():
            for task in [tasks] if isinstance(tasks, int) else tasks:
                value = self.codes(None, task)[0]
                self.embeddings[task] = value  # type: ignore[index]
                self.frozen[task] = 0

    def fold(self, task: int | None = None) -> nn.Module:
        """The target of one task as a plain module with parameters of its own.

        Args:
            task: its id; may be left out if there is only one.

        Returns:
            a copy of the target, in the same mode.

        Raises:
            FoldError: a conditional hypernetwork, or no choice among several tasks: that is not one network.
        """
        if self.embeddings is None or (task is None and self.num_tasks != 1):
            what = "one network per condition" if self.embeddings is None else f"{self.num_tasks} networks"
            raise FoldError(
                f"a hypernetwork is {what} and cannot be folded to one; "
                f"{'it has no plain form' if self.embeddings is None else 'choose one with hyper.fold(task=...)'}"
            )
        if in_transform():
            raise FoldError("fold was called inside torch.func.vmap, grad or another transform; fold before")
        target = copy.deepcopy(self.target)
        with plain_arithmetic(self.frozen.device.type):
            tensors = self.generate(task=task).values()
            set_parameters(target, self.slots, [nn.Parameter(tensor[0].clone()) for tensor in tensors])
            for name, row in self._task_buffers(self._one_task(task)).items():
                target.get_buffer(name).copy_(row.dense()[0])
        return target

    # ------------------------------------------------------------------ nn.Module, with the cache kept right

    def clear_cache(self) -> None:
        """Forget what was made in evaluation."""
        self._cache.entry = None

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if "_cache" in self.__dict__:  # train() and eval() come by here too: they assign self.training
            self.clear_cache()

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        # Structured layers work out their paths anew from the shapes of their parameters, which are not there.
        with stand_ins(self.target, self.slots, self.generator.scale):
            super()._apply(fn, recurse)
        self.clear_cache()
        return self

    def extra_repr(self) -> str:
        who = "conditional" if self.embeddings is None else f"num_tasks={self.num_tasks}"
        return f"{who}, kind={self.kind!r}, generates {sum(slot.size for slot in self.slots)} numbers"


def _check_choice(argument: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise OptionError(
            f"{argument} must be one of {', '.join(choices)}; got {value!r}{nearest_name(str(value), choices)}"
        )


def _options(kind: str, **given: int | None) -> dict[str, int | None]:
    """The options of the kind with their defaults, after refusing those of others."""
    for name, value in given.items():
        kinds = _OPTIONS[name][0]
        if value is not None and kind not in kinds:
            raise OptionError(f"{name} is an option of kind {' and '.join(map(repr, kinds))}, not of {kind!r}; drop it")
        if value is not None and value < 1:
            raise SizeError(f"{name} must be at least 1, got {value}")
    return {name: _OPTIONS[name][1] if value is None else value for name, value in given.items()}


def _code_size(condition: Any, num_tasks: int | None, embedding_dim: int | None, kind: str) -> int:
    """E, after checking what it depends on."""
    if condition is not None and num_tasks is not None:
        raise OptionError("condition and num_tasks exclude one another: rows have conditions, or tasks; drop one")
    if isinstance(condition, nn.Module):
        if embedding_dim is None or embedding_dim < 1:
            raise OptionError("a condition module needs embedding_dim, the size of the code that it returns")
        return embedding_dim
    if condition is not None:
        if isinstance(condition, bool) or not hasattr(condition, "__index__") or condition < 1:
            raise OptionError(f"condition must be a size of at least 1 or a module, got {condition!r}")
        if embedding_dim is not None:
            raise OptionError(
                "embedding_dim is for tasks and condition modules; a condition of a given size is the code itself"
            )
        return operator.index(condition)
    if num_tasks is not None and (not hasattr(num_tasks, "__index__") or num_tasks < 1):
        raise OptionError(f"num_tasks must be at least 1, a whole number; got {num_tasks}")
    if embedding_dim is None:
        return 8
    if embedding_dim < 0 or (embedding_dim == 0 and ((num_tasks or 1) > 1 or kind not in ("chunked", "layerwise"))):
        raise OptionError(
            f"embedding_dim must be at least 1, got {embedding_dim}; 0 is for one task and the kinds 'chunked' and "
            f"'layerwise', whose chunks or tensors have embeddings"
        )
    return embedding_dim


def _got(condition: Any, task: Any) -> str:
    given = [name for name, value in (("condition", condition), ("task", task)) if value is not None]
    return f"got {' and '.join(given) if given else 'neither condition nor task'}"
