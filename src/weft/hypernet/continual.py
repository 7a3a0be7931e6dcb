"""Continual learning with a hypernetwork of tasks: what it generates for the past stays as it was.

    loss = L_task + beta/n sum_t norm(H(e_t; Theta_0) - H(e_t; Theta + dTheta))^2        t: n of the past tasks

Theta_0: the generator before the present task; dTheta: the step that the task alone would take, or 0; e_t: embeddings.

von Oswald, Henning, Sacramento and Grewe 2020, Continual learning with hypernetworks, ICLR,
https://arxiv.org/abs/1906.00695, equation 2 and section 2.3 (task inference by predictive entropy, HNET+ENT).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from weft.errors import OptionError
from weft.hypernet.hypernetwork import HyperNetwork


class OutputRegularizer:
    """Holds what a hypernetwork generates for past tasks.

        beta/n sum_t norm(H(e_t; Theta_0) - H(e_t; Theta + dTheta))^2

    Before each new task call ``snapshot`` with the tasks learned so far; add ``regularizer()`` to the loss of every
    step. It is 0 right after a snapshot (to rounding where a subset is drawn). Only embeddings and the generated
    tensors (or one copy of the generator) are kept, no data. Cost per step: the n tasks are generated in one batch.

    Args:
        hyper: with tasks.
        beta: weight, at least 0.
        tasks_per_step: n, how many past tasks each call draws; None for all.
        store: ``"targets"`` keeps the generated tensors of every past task, ``"generator"`` one copy of the generator,
            which is smaller for many tasks and costs a second generation per step.

    Raises:
        OptionError: a conditional hypernetwork, or an option out of range.

    Source:
        von Oswald et al. 2020, https://arxiv.org/abs/1906.00695, equation 2; random subsets of the past tasks as in its
        appendix. Their beta/(T - 1) is the same mean over the past tasks.

    Example:
        >>> import torch, weft
        >>> hyper = weft.HyperNetwork(torch.nn.Linear(4, 2), num_tasks=3)
        >>> regularizer = weft.hypernet.OutputRegularizer(hyper, beta=0.01)
        >>> float(regularizer())  # no past yet
        0.0
        >>> regularizer.snapshot(range(1))  # task 0 is learned
        >>> loss = hyper(torch.randn(8, 4), task=1).square().mean() + regularizer()
    """

    def __init__(
        self,
        hyper: HyperNetwork,
        beta: float = 0.01,
        *,
        tasks_per_step: int | None = None,
        store: Literal["targets", "generator"] = "targets",
    ) -> None:
        if hyper.embeddings is None:
            raise OptionError("hyper must have tasks (num_tasks=...): the past of a conditional one has no embeddings")
        if beta < 0:
            raise OptionError(f"beta must be at least 0, got {beta}")
        if tasks_per_step is not None and tasks_per_step < 1:
            raise OptionError(f"tasks_per_step must be at least 1, or None for all; got {tasks_per_step}")
        if store not in ("targets", "generator"):
            raise OptionError(f"store must be 'targets' or 'generator', got {store!r}")
        self.hyper, self.beta, self.tasks_per_step, self.store = hyper, beta, tasks_per_step, store
        self.tasks: tuple[int, ...] = ()
        self._codes: Tensor | None = None  # (tasks, E)
        self._targets: list[Tensor] = []  # each (tasks, *shape)
        self._generator: Any = None

    def snapshot(self, tasks: Iterable[int], freeze: bool = True) -> None:
        """Take what is generated now for past tasks as what has to stay.

        Args:
            tasks: ids of all tasks learned so far.
            freeze: whether their embeddings are held from now on (``HyperNetwork.freeze_tasks``), so that neither a
                task's loss nor momentum moves them; else the regulariser may adapt them.
        """
        learned = tuple(tasks)
        with torch.no_grad():
            self._codes = self._present_codes(learned).clone()
            if freeze:
                self.hyper.freeze_tasks(learned)
            self.tasks = learned
            if not learned:
                return
            if self.store == "targets":
                self._targets = self._tensors(self.hyper.generator, self._codes)
            else:
                self._generator = copy.deepcopy(self.hyper.generator)

    def __call__(self, step: Mapping[str, Tensor] | None = None) -> Tensor:
        """The term to add to the loss.

        Args:
            step: dTheta by name of the generator's parameters, a constant (``candidate_step``); None for 0.

        Returns:
            (), 0 without past tasks.
        """
        total = self.hyper.generator.scale.new_zeros(())
        if not self.tasks:
            return total
        number = min(self.tasks_per_step or len(self.tasks), len(self.tasks))
        drawn = list(range(number)) if number == len(self.tasks) else torch.randperm(len(self.tasks))[:number].tolist()
        moved = {
            name: parameter + step[name]
            for name, parameter in self.hyper.generator.named_parameters()
            if step is not None and name in step
        }
        codes = self._present_codes([self.tasks[index] for index in drawn])
        now = self._tensors(self.hyper.generator, codes, moved)
        for a, b in zip(now, self._wanted(drawn), strict=True):
            total = total + F.mse_loss(a, b, reduction="sum")
        return total * (self.beta / number)

    def _wanted(self, drawn: list[int]) -> list[Tensor]:
        """What was generated for some of ``tasks``, by their places in it."""
        if self.store == "targets":
            return self._targets if len(drawn) == len(self.tasks) else [part[drawn] for part in self._targets]
        assert self._codes is not None
        with torch.no_grad():
            return self._tensors(self._generator, self._codes[drawn])

    def _present_codes(self, tasks: Sequence[int]) -> Tensor:
        assert self.hyper.embeddings is not None
        return self.hyper.codes(task=torch.tensor(tasks, dtype=torch.long, device=self.hyper.embeddings.device))

    @staticmethod
    def _tensors(generator: Any, codes: Tensor, moved: dict[str, Tensor] | None = None) -> list[Tensor]:
        return [rows.dense() for rows in functional_call(generator, moved or {}, (codes,))]

    def candidate_step(self, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """dTheta: what the next step of an optimizer would add to the generator's parameters, for the lookahead.

        Call it after the ``backward`` of the task's loss alone. The step is taken and taken back, with the state of the
        optimizer.

        Args:
            optimizer: any of torch's whose step needs no closure.

        Returns:
            change by name of the generator's parameters.

        Raises:
            OptionError: an optimizer that needs a closure.

        Example:
            >>> import torch, weft
            >>> hyper = weft.HyperNetwork(torch.nn.Linear(4, 2), num_tasks=2)
            >>> optimizer = torch.optim.Adam(hyper.parameters())
            >>> regularizer = weft.hypernet.OutputRegularizer(hyper)
            >>> regularizer.snapshot([0])
            >>> hyper(torch.randn(8, 4), task=1).square().mean().backward()
            >>> regularizer(regularizer.candidate_step(optimizer)).backward()
            >>> optimizer.step()
        """
        if isinstance(optimizer, torch.optim.LBFGS):
            raise OptionError("optimizer must take a step without a closure, which LBFGS does not; take another one")
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        before = [p.detach().clone() for p in parameters]
        state = copy.deepcopy(optimizer.state_dict())
        optimizer.step()
        steps = {}
        with torch.no_grad():
            after = {name: p.detach().clone() for name, p in self.hyper.generator.named_parameters()}
            for parameter, old in zip(parameters, before, strict=True):
                parameter.copy_(old)
            for name, parameter in self.hyper.generator.named_parameters():
                steps[name] = after[name] - parameter
        optimizer.load_state_dict(state)
        return steps

    def state_dict(self) -> dict[str, Any]:
        """What the past is, for a checkpoint beside the hypernetwork's own.

        Returns:
            tasks, their codes, and the targets or the generator's state.
        """
        generator = None if self._generator is None else self._generator.state_dict()
        return {"tasks": self.tasks, "codes": self._codes, "targets": self._targets, "generator": generator}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint.

        Args:
            state: from ``state_dict`` of a regulariser with the same ``store``.

        Raises:
            OptionError: it is of another ``store``.
        """
        store = "targets" if state["generator"] is None else "generator"
        if state["tasks"] and store != self.store:
            raise OptionError(f"the state was kept with store={store!r}, this regulariser has store={self.store!r}")
        self.tasks, self._codes, self._targets = tuple(state["tasks"]), state["codes"], list(state["targets"])
        if state["generator"] is not None:
            self._generator = copy.deepcopy(self.hyper.generator)
            self._generator.load_state_dict(state["generator"])


class TaskInference(NamedTuple):
    """Which task every row seems to belong to.

    ``tasks`` (B,): the ids; ``outputs`` (B, classes): of these tasks; ``entropies`` (tasks, B): in nats.
    """

    tasks: Tensor
    outputs: Tensor
    entropies: Tensor


def infer_task(hyper: HyperNetwork, *inputs: Tensor, tasks: Iterable[int] | None = None) -> TaskInference:
    """The task whose network is the most certain about a row, for inputs whose task nobody tells.

    Args:
        hyper: with tasks, its target a classifier that gives logits (B, classes). Put it in evaluation mode.
        *inputs: of the target, (B, ...).
        tasks: the candidates; None for all.

    Returns:
        the ids, the logits under them, and the entropies of all candidates.

    Raises:
        OptionError: a conditional hypernetwork, or no candidates.

    Source:
        von Oswald et al. 2020, https://arxiv.org/abs/1906.00695, section 2.3, HNET+ENT.

    Example:
        >>> import torch, weft
        >>> hyper = weft.HyperNetwork(torch.nn.Linear(4, 3), num_tasks=5).eval()
        >>> tuple(weft.hypernet.infer_task(hyper, torch.randn(7, 4)).tasks.shape)
        (7,)
    """
    if hyper.num_tasks is None:
        raise OptionError("hyper must have tasks (num_tasks=...) to tell them apart, this one is conditional")
    ids = list(range(hyper.num_tasks) if tasks is None else tasks)
    if not ids:
        raise OptionError("tasks must name at least one candidate")
    with torch.no_grad():
        logits = torch.stack([hyper(*inputs, task=task) for task in ids])
        entropies = torch.special.entr(logits.softmax(-1)).sum(-1)
        best = entropies.argmin(0)
        chosen = logits[best, torch.arange(len(best), device=best.device)]
    return TaskInference(torch.tensor(ids, device=best.device)[best], chosen, entropies)
