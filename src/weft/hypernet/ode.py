"""Ordinary differential equations whose right-hand side a hypernetwork makes, one per row of the batch.

    dy_b/dt = f(y_b, t; theta_b),    theta_b = H(e_b)

The weights do not depend on the time, so they are made once per solve. torchode steps every row by itself: a row's
steps, and so its solution, do not depend on the others. It is imported by the call that solves (extra ``ode``).

Letters: B = rows, D = size of a state, T = times, P = numbers generated per row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from weft.errors import OptionError, SizeError, nearest_name
from weft.hypernet.hypernetwork import HyperNetwork
from weft.hypernet.program import run
from weft.hypernet.rows import DenseRows, RowWeights

Method = Literal["dopri5", "tsit5", "heun", "euler"]
Gradient = Literal["direct", "adjoint"]
_CHOICES = {"method": ("dopri5", "tsit5", "heun", "euler"), "gradient": ("direct", "adjoint")}
_STATUS = {
    1: "failed",
    2: "needs steps below the smallest one",
    3: "took max_steps={max_steps} steps and was not done",
    4: "met a state that is not finite",
}


def solve_ode(
    hyper: HyperNetwork,
    y0: Tensor,
    t: Tensor,
    *,
    condition: Any = None,
    task: int | Tensor | None = None,
    time_input: bool = False,
    gradient: Gradient = "direct",
    method: Method = "dopri5",
    rtol: float = 1e-3,
    atol: float = 1e-3,
    step: float | None = None,
    max_steps: int = 10_000,
) -> Tensor:
    """Solve ``dy_b/dt = f(y_b, t; theta_b)`` for every row of a batch, f being the target of a hypernetwork.

    All rows advance in one call, each with steps of its own size. Differentiable in ``y0``, the condition, and the
    parameters of the hypernetwork, in one of two ways:

    - ``"direct"``: back through the steps that the solver took; exact for these steps, memory grows with their number.
      The sizes of the steps are taken as constants.
    - ``"adjoint"``: the adjoint equation is solved backwards from time to time, with the state put right at each t;
      memory does not depend on the number of steps, the error is of the size of the tolerances. Its steps are
      controlled by the state and its adjoint, not by the integral that is the gradient of theta.

    Args:
        hyper: its target maps (B, D) to (B, D), or (B, D + 1) with ``time_input``.
        y0: (B, D), states at the first time.
        t: (T,) for all rows or (B, T), times strictly growing or falling, T >= 2; the first one is that of ``y0``.
        condition: (B, size), or what the condition module takes; as in ``hyper(x, condition=...)``.
        task: an id for all rows, or ids (B,), instead.
        time_input: whether the target sees the time, as the last input.
        gradient: "direct" or "adjoint".
        method: "dopri5" or "tsit5", of order 5; "heun", of order 2; "euler", which needs ``step``.
        rtol: relative tolerance of the error of a step, at least 0.
        atol: absolute one, above 0.
        step: fixed size of a step, above 0, in units of t; None adapts every row's steps to the tolerances.
        max_steps: per row and solve (with the adjoint, per interval backwards); more is an error.

    Returns:
        (B, T, D); the first time holds ``y0``.

    Raises:
        OptionError: an argument out of range, or a row that cannot be solved within ``max_steps``.
        SizeError: shapes that do not fit.

    Cost:
        per step and row 6 calls of the target (dopri5, tsit5), of 2 (heun) or 1 (euler). The adjoint carries P more
        numbers per row.

    Source:
        Chen, Rubanova, Bettencourt and Duvenaud 2018, Neural ordinary differential equations,
        https://arxiv.org/abs/1806.07366; the control of the adjoint's steps: Kidger, Chen and Lyons 2021, "Hey, that's
        not an ODE", https://arxiv.org/abs/2009.09457; the solver: Lienen and Günnemann 2022, torchode: a parallel ODE
        solver for PyTorch, https://arxiv.org/abs/2210.12375.

    Example:
        >>> import torch, weft
        >>> dynamics = torch.nn.Sequential(torch.nn.Linear(2, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2))
        >>> hyper = weft.HyperNetwork(dynamics, condition=3)
        >>> y0, c, t = torch.randn(5, 2), torch.randn(5, 3), torch.linspace(0, 1, 11)
        >>> tuple(weft.hypernet.solve_ode(hyper, y0, t, condition=c).shape)
        (5, 11, 2)
    """
    check_solver(method=method, gradient=gradient, rtol=rtol, atol=atol, step=step, max_steps=max_steps)
    times = _checked_times(y0, t)
    rows, size = y0.shape
    weights = hyper.generate(condition, task)
    for name, tensor in weights.items():
        if len(tensor) not in (1, rows):
            raise SizeError(
                f"{'task' if condition is None else 'condition'} has {len(tensor)} rows, y0 has {rows}; they must be "
                "equal"
            )
        weights[name] = tensor.expand(rows, *tensor.shape[1:])
    if hyper.statistics == "per_task" and gradient == "adjoint":
        raise OptionError("gradient='adjoint' knows no statistics='per_task': take 'direct', or one set for all tasks")
    dynamics = Dynamics(hyper, size, time_input)
    options = _Options(method, rtol, atol, step, max_steps)
    if gradient == "adjoint":
        # The weights are part of the state and do not move: so the adjoint of a row's state has the gradient of its
        # weights, which torchode's adjoint of parameters, summed over the rows, would not tell apart.
        flat = torch.cat([tensor.flatten(1) for tensor in weights.values()], 1)
        solver = _adjoint_solver(dynamics, flat.shape[1], options)
        return _states(solver, dynamics, torch.cat([y0, flat], 1), times, step)[:, :, :size]
    buffers = hyper._task_buffers(torch.as_tensor(0 if task is None else task, device=y0.device).expand(rows))
    return _states(_loop(options, _rms), dynamics.of(weights, buffers), y0, times, step)


def check_solver(*, method: str, gradient: str, rtol: float, atol: float, step: float | None, max_steps: int) -> None:
    """Refuse options of the solver that are out of range.

    Args:
        method: as in `solve_ode`, and so are the others.
        gradient: see there.
        rtol: see there.
        atol: see there.
        step: see there.
        max_steps: see there.

    Raises:
        OptionError: one is.
    """
    for argument, value in (("method", method), ("gradient", gradient)):
        if value not in _CHOICES[argument]:
            choices = _CHOICES[argument]
            raise OptionError(
                f"{argument} must be one of {', '.join(choices)}; got {value!r}{nearest_name(str(value), choices)}"
            )
    for argument, number, fits, rule in (
        ("rtol", rtol, 0 <= rtol < math.inf, "finite and at least 0"),
        ("atol", atol, 0 < atol < math.inf, "finite and above 0"),
        ("step", step, step is None or 0 < step < math.inf, "finite and above 0, or None"),
        ("max_steps", max_steps, max_steps >= 1, "at least 1"),
    ):
        if not fits:
            raise OptionError(f"{argument} must be {rule}, got {number}")
    if method == "euler" and step is None:
        raise OptionError("method='euler' has no estimate of its error to adapt steps by: give step=, or take 'heun'")


class Dynamics(nn.Module):
    """The right-hand side of a state that holds a row's weights behind its own D numbers; the weights do not move.

    Args:
        hyper: whose target it is.
        size: D.
        time_input: whether the target sees the time.
    """

    def __init__(self, hyper: HyperNetwork, size: int, time_input: bool) -> None:
        super().__init__()
        self.target = hyper.target
        self.size, self.time_input = size, time_input
        self._slots = hyper.slots

    def of(
        self, weights: dict[str, Tensor], buffers: Mapping[str, RowWeights] | None = None
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """The right-hand side with given weights, of the state alone.

        Args:
            weights: (B, *shape) by the first name of each generated parameter.
            buffers: those of the rows' tasks, by name.

        Returns:
            a function of times (B,) and states (B, D).
        """
        named: Any = {name: DenseRows(weights[slot.name]) for slot in self._slots for name in slot.names} | dict(
            buffers or {}
        )  # tied parameters have several names

        def f(t: Tensor, y: Tensor) -> Tensor:
            inputs = torch.cat([y, t[:, None].to(y.dtype)], 1) if self.time_input else y
            out = run(self.target, named, (inputs.unsqueeze(1),))
            if not isinstance(out, Tensor) or out.shape != (len(y), 1, self.size):
                got = f"{tuple(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
                raise SizeError(
                    f"the target must map {inputs.shape[1]} numbers to {self.size}, those of a state; it returned {got}"
                )
            return out.squeeze(1)

        return f

    def forward(self, t: Tensor, state: Tensor) -> Tensor:
        """The derivative.

        Args:
            t: (B,), or one time.
            state: (B, D + P), or one state.

        Returns:
            as ``state``.
        """
        if state.dim() == 1:  # torchode's adjoint takes row by row, under vmap
            return self.forward(t[None], state[None])[0]
        y, flat = state.split([self.size, state.shape[1] - self.size], 1)
        parts = flat.split([slot.size for slot in self._slots], 1)
        weights = {slot.name: part.reshape(-1, *slot.shape) for slot, part in zip(self._slots, parts, strict=True)}
        return torch.cat([self.of(weights)(t, y), torch.zeros_like(flat)], 1)


def _checked_times(y0: Tensor, t: Tensor) -> Tensor:
    """Times (B, T)."""
    if y0.dim() != 2 or not y0.is_floating_point():
        raise SizeError(f"y0 must be (rows, size) of floating point, got {tuple(y0.shape)} of {y0.dtype}")
    rows = len(y0)
    if t.dim() not in (1, 2) or t.shape[-1] < 2 or (t.dim() == 2 and len(t) != rows):
        raise SizeError(f"t must be (times,) or ({rows}, times), with at least 2 times; got {tuple(t.shape)}")
    t = t.to(y0)  # what differs in another type may coincide in this one
    differences = t.diff(dim=-1).reshape(-1, t.shape[-1] - 1)
    if not bool((differences > 0).all(1).logical_or((differences < 0).all(1)).all()):
        raise OptionError(f"t must grow from time to time, or fall, and be finite, in {y0.dtype}; got {t}")
    return t.expand(rows, -1)


class _Options(NamedTuple):
    method: Method
    rtol: float
    atol: float
    step: float | None
    max_steps: int


class _Checked(nn.Module):
    """A solver of torchode that raises where it would return what it did not reach, as memory without meaning.

    Args:
        solver: of torchode.
        max_steps: its limit.
    """

    def __init__(self, solver: nn.Module, max_steps: int) -> None:
        super().__init__()
        self.solver, self.max_steps = solver, max_steps

    def solve(self, problem: Any, term: Any = None, dt0: Tensor | None = None, args: Any = None) -> Any:
        solution = self.solver.solve(problem, term=term, dt0=dt0, args=args)  # type: ignore[operator]
        if bool(solution.status.any()):
            row = int(solution.status.ne(0).nonzero()[0])
            what = _STATUS.get(int(solution.status[row]), "failed").format(max_steps=self.max_steps)
            raise OptionError(
                f"the solver of row {row} {what}. Its dynamics may be stiff or have run away: bound them (tanh before "
                "the last layer, a lower learning rate, gradient clipping), loosen rtol and atol, or raise max_steps"
            )
        return solution


def _adjoint_solver(dynamics: Dynamics, weights: int, options: _Options) -> nn.Module:
    """Differentiable by the adjoint equation; the error of a step is that of the state and of its adjoint."""
    torchode = _torchode()
    size = dynamics.size
    width = size + weights
    term = torchode.ODETerm(dynamics, with_stats=False)
    forward = _loop(options, lambda error: _rms(error[:, :size]))
    # backwards the state is: adjoint of the time, state, adjoint of the state, adjoint of shared parameters
    state, adjoint = slice(1, 1 + size), slice(1 + width, 1 + width + size)
    backward = _loop(options, lambda error: _rms(torch.cat([error[:, state], error[:, adjoint]], 1)))
    solver = torchode.BacksolveAdjoint(term, forward.solver.step_method, forward.solver.step_size_controller)
    solver.forward_adjoint, solver.backward_adjoint = forward, backward  # with norms and a check of their own
    return solver


def _loop(options: _Options, norm: Callable[[Tensor], Tensor]) -> _Checked:
    """torchode's loop over steps, differentiable through them."""
    torchode = _torchode()
    methods = {
        "dopri5": torchode.Dopri5, "tsit5": torchode.Tsit5, "heun": torchode.Heun, "euler": torchode.Euler
    }  # fmt: skip
    controller = (
        torchode.FixedStepController()
        if options.step is not None
        else torchode.IntegralController(options.atol, options.rtol, norm=norm)
    )
    # Through the choice of a step's size there is no gradient of the solution, only one of its error.
    loop = torchode.AutoDiffAdjoint(
        methods[options.method](None), controller, max_steps=options.max_steps, backprop_through_step_size_control=False
    )
    return _Checked(loop, options.max_steps)


def _states(solver: Any, f: Any, y0: Tensor, times: Tensor, step: float | None) -> Tensor:
    """The solution at all times."""
    torchode = _torchode()
    problem = torchode.InitialValueProblem(y0, times[:, 0], times[:, -1], times)
    first = None if step is None else step * (times[:, -1] - times[:, 0]).sign()
    return solver.solve(problem, term=torchode.ODETerm(f, with_stats=False), dt0=first).ys


def _rms(error: Tensor) -> Tensor:
    return error.square().mean(1).sqrt()


def _torchode() -> Any:
    try:
        import torchode
    except ModuleNotFoundError as error:
        if error.name != "torchode":
            raise
        raise ModuleNotFoundError("solve_ode needs torchode: pip install 'weft[ode]'", name="torchode") from None
    return torchode
