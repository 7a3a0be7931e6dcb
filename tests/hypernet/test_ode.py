"""Differential equations with weights per row, against scipy, torchdiffeq, and row by row."""

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import nn
from torchdiffeq import odeint

import weft
from weft.errors import OptionError, SizeError
from weft.hypernet import solve_ode

TIMES = torch.tensor([0.0, 0.3, 0.5, 1.1, 1.6], dtype=torch.float64)
EXACT = {"rtol": 1e-9, "atol": 1e-9}


def problem(rows=4, time_input=True, **options):
    """A hypernetwork of random dynamics whose last bias is shared, states and conditions."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2 + time_input, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    hyper = weft.HyperNetwork(net, condition=3, **{"shared": "2.bias", **options})
    random = {"dtype": torch.float64, "requires_grad": True}
    return hyper, torch.randn(rows, 2, **random), torch.randn(rows, 3, **random)


def in_numpy(hyper, condition, row):
    """f of one row, from its generated weights alone."""
    w = {name: tensor[row].detach().numpy() for name, tensor in hyper.generate(condition=condition).items()}
    bias = hyper.target[2].bias.detach().numpy()
    return lambda t, y: w["2.weight"] @ np.tanh(w["0.weight"] @ np.append(y, t) + w["0.bias"]) + bias


@pytest.mark.parametrize("gradient", ["direct", "adjoint"])
@pytest.mark.parametrize("times", [TIMES, TIMES.flip(0)], ids=["forwards", "backwards"])
def test_solution_is_that_of_scipy(gradient, times):
    hyper, y0, c = problem()
    with torch.no_grad():
        found = solve_ode(hyper, y0, times, condition=c, time_input=True, gradient=gradient, **EXACT)
    for row in range(len(y0)):
        span, start = (float(times[0]), float(times[-1])), y0[row].detach().numpy()
        exact = solve_ivp(
            in_numpy(hyper, c, row), span, start, method="DOP853", t_eval=times.numpy(), rtol=1e-12, atol=1e-12
        )
        np.testing.assert_allclose(found[row].numpy(), exact.y.T, atol=1e-6)


def test_every_row_is_solved_as_if_it_were_alone():
    hyper, y0, c = problem(rows=5)
    times = TIMES * torch.rand(5, 1, dtype=torch.float64) + torch.randn(5, 1, dtype=torch.float64)
    together = solve_ode(hyper, y0, times, condition=c, time_input=True)  # loose tolerances: the steps must agree too
    for i in range(5):
        alone = solve_ode(hyper, y0[i : i + 1], times[i], condition=c[i : i + 1], time_input=True)
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-11, atol=1e-11)


def gradients(hyper, y0, c, solve):
    weights = torch.randn(len(y0), len(TIMES), 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return torch.autograd.grad((solve() * weights).sum(), [y0, c, *hyper.parameters()])


@pytest.mark.parametrize("options", [{}, {"kind": "low_rank", "rank": 2}], ids=["full", "low_rank"])
def test_adjoint_and_direct_gradients_are_those_of_torchdiffeq(options):
    hyper, y0, c = problem(rows=2, **options)
    weights = hyper.generate(condition=c)

    def f(t, y):
        seen = torch.cat([y, t.expand(len(y), 1)], 1)
        hidden = torch.tanh(torch.einsum("boi,bi->bo", weights["0.weight"], seen) + weights["0.bias"])
        return torch.einsum("boi,bi->bo", weights["2.weight"], hidden) + hyper.target[2].bias

    exact = gradients(
        hyper, y0, c, lambda: odeint(f, y0, TIMES, method="dopri5", rtol=1e-10, atol=1e-10).transpose(0, 1)
    )
    for gradient in ("direct", "adjoint"):
        found = gradients(
            hyper, y0, c,
            lambda g=gradient: solve_ode(
                hyper, y0, TIMES, condition=c, time_input=True, gradient=g, rtol=1e-7, atol=1e-7
            ),
        )  # fmt: skip
        for mine, theirs in zip(found, exact, strict=True):
            assert theirs.abs().max() > 1e-3
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_steps_backwards_follow_the_adjoint_where_the_state_rests():
    torch.manual_seed(0)
    hyper = weft.HyperNetwork(nn.Linear(2, 2, bias=False).double(), condition=3)
    y0, c = torch.zeros(3, 2, dtype=torch.float64, requires_grad=True), 3 * torch.randn(3, 3, dtype=torch.float64)
    times, weights = torch.tensor([0.0, 3.0], dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
    end = solve_ode(hyper, y0, times, condition=c, gradient="adjoint", rtol=1e-7, atol=1e-7)[:, -1]
    (found,) = torch.autograd.grad((end * weights).sum(), y0)
    flow = torch.matrix_exp(3 * hyper.generate(condition=c)["weight"].detach())
    assert end.abs().max() == 0
    torch.testing.assert_close(found, torch.einsum("bji,bj->bi", flow, weights), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "step", "error"),
    [("dopri5", 0.1, 1e-6), ("tsit5", None, 1e-4), ("heun", 0.02, 1e-3), ("euler", 0.02, 0.1)],
)
def test_methods_and_fixed_steps(method, step, error):
    hyper, y0, c = problem(rows=2)
    given = {"condition": c, "time_input": True}
    exact = solve_ode(hyper, y0, TIMES, **given, **EXACT)
    found = solve_ode(hyper, y0, TIMES, **given, method=method, step=step, rtol=1e-5, atol=1e-5)
    assert 0 < (found - exact).abs().max() < error
    back = solve_ode(hyper, found[:, -1], TIMES.flip(0), **given, method=method, step=step, rtol=1e-5, atol=1e-5)
    assert (back[:, -1] - y0).abs().max() < 2 * error


def test_one_task_serves_all_rows_and_tied_parameters_are_one():
    first, second = nn.Linear(2, 2, dtype=torch.float64), nn.Linear(2, 2, dtype=torch.float64)
    second.weight = first.weight
    hyper = weft.HyperNetwork(nn.Sequential(first, nn.Tanh(), second), num_tasks=3)
    y0 = torch.randn(4, 2, dtype=torch.float64)
    plain = hyper.fold(task=1)
    exact = odeint(lambda _, y: plain(y), y0, TIMES, rtol=1e-9, atol=1e-9).transpose(0, 1)
    for gradient in ("direct", "adjoint"):
        found = solve_ode(hyper, y0, TIMES, task=1, gradient=gradient, **EXACT)
        torch.testing.assert_close(found, exact, rtol=1e-6, atol=1e-6)


def test_rows_have_the_statistics_of_their_task():
    dynamics = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)).double()
    hyper = weft.HyperNetwork(dynamics, num_tasks=2, statistics="per_task")
    for _ in range(5):
        hyper(3 * torch.randn(20, 2, dtype=torch.float64) + 1, task=1)
    hyper.eval()
    y0, times = torch.randn(3, 2, dtype=torch.float64), torch.tensor([0.0, 1.0])
    for task in (1, torch.tensor([1, 0, 1])):
        moved = solve_ode(hyper, y0, times, task=task, method="euler", step=1.0)[:, 1] - y0
        torch.testing.assert_close(moved, hyper(y0, task=task), rtol=1e-8, atol=1e-8)
    with pytest.raises(OptionError, match="gradient='adjoint' knows no statistics='per_task'"):
        solve_ode(hyper, y0, times, task=1, gradient="adjoint")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "rk4"}, "method must be one of dopri5, tsit5, heun, euler; got 'rk4'"),
        ({"gradient": "adjiont"}, "did you mean 'adjoint'"),
        ({"method": "euler"}, "give step="),
        ({"atol": 0.0}, "atol must be finite and above 0, got 0.0"),
        ({"step": -0.1}, "step must be finite and above 0, or None, got -0.1"),
        ({"max_steps": 0}, "max_steps must be at least 1"),
        ({"max_steps": 2}, r"row \d took max_steps=2 steps and was not done.*raise max_steps"),
        ({"t": TIMES[:1]}, r"at least 2 times; got \(1,\)"),
        ({"t": TIMES[[0, 2, 1]]}, "t must grow from time to time"),
        ({"t": torch.tensor([1e17, 1e17 + 1], dtype=torch.int64)}, "be finite, in torch.float64"),
        ({"t": TIMES.expand(3, -1)}, r"t must be \(times,\) or \(2, times\)"),
        ({"condition": torch.ones(3, 3, dtype=torch.float64)}, "condition has 3 rows, y0 has 2"),
        ({"y0": torch.ones(2, 1, 2)}, r"y0 must be \(rows, size\)"),
        ({"time_input": False, "y0": torch.ones(2, 3, dtype=torch.float64)}, "must map 3 numbers to 3.*returned"),
    ],
)
def test_bad_input_is_refused(given, message):
    hyper, y0, c = problem(rows=2)
    call = {"y0": y0, "t": TIMES, "condition": c, "time_input": True, **given}
    with pytest.raises((OptionError, SizeError), match=message):
        solve_ode(hyper, call.pop("y0"), call.pop("t"), **call)


def test_what_is_not_finite_is_an_error_and_no_number():
    hyper, y0, c = problem(rows=2)
    bad = torch.where(torch.arange(2)[:, None] == 1, torch.nan, y0)
    with pytest.raises(OptionError, match="the solver of row 1"):
        solve_ode(hyper, bad, TIMES, condition=c, time_input=True)
