"""Interoperability checks that take milliseconds: transforms of torch.func, recomputation, scaling, tracing."""

from __future__ import annotations

import copy
import warnings

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp, stack_module_state, vmap
from torch.utils.checkpoint import checkpoint

from weft.testing.case import Case, assert_same
from weft.testing.copies import evaluate, gradients
from weft.testing.kinds import Kind


def vmap_over_parameters(case: Case, kind: Kind) -> None:
    """An ensemble by ``stack_module_state`` and ``vmap`` computes what its members compute."""
    for mode in (True, False):
        layers, x = [kind.layer(case).train(mode) for _ in range(3)], kind.example(case)
        want = torch.stack([evaluate(layer, x) for layer in layers])
        base = layers[0].train(mode)
        state = stack_module_state([layer.train(mode) for layer in layers])
        got = vmap(lambda parameters, buffers: functional_call(base, (parameters, buffers), (x,)))(*state)  # noqa: B023
        assert_same(got, want, 1e-11, f"the ensemble, training={mode}")
        with torch.no_grad():
            got = vmap(lambda parameters, buffers: functional_call(base, (parameters, buffers), (x,)))(*state)  # noqa: B023
        assert_same(got, want, 1e-11, f"the ensemble without gradients, training={mode}")
        assert_same(evaluate(base, x), want[0], 1e-11, "the first member after the ensemble ran")


def double_backward(case: Case, kind: Kind) -> None:
    """The gradient of a gradient penalty agrees with finite differences."""
    layer, x = kind.layer(case), kind.example(case).requires_grad_()
    parameters = list(layer.parameters())[-1:] + list(layer.parametrization.parameters())
    directions = [torch.randn_like(p) for p in parameters]

    def penalty() -> Tensor:
        (slope,) = torch.autograd.grad(layer(x).pow(3).sum(), x, create_graph=True)
        return slope.square().sum()

    slopes = torch.autograd.grad(penalty(), parameters)
    got = sum(float((g * d).sum()) for g, d in zip(slopes, directions, strict=True))
    step, ends = 1e-6, []
    for sign in (1, -1):
        with torch.no_grad():
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter.add_(direction, alpha=sign * step)
        ends.append(float(penalty().detach()))
        with torch.no_grad():
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter.sub_(direction, alpha=sign * step)
    want = (ends[0] - ends[1]) / (2 * step)
    assert abs(got - want) <= 1e-5 * abs(want), (
        f"the second derivative is {got:.6g}, finite differences give {want:.6g}"
    )


def forward_mode(case: Case, kind: Kind) -> None:
    """Forward derivatives in the parameters agree with backward ones, in both modes."""
    for mode in (True, False):
        layer, x = kind.layer(case).train(mode), kind.example(case)
        evaluate(layer, x)
        layer.train(mode)
        values = {name: p.detach() for name, p in layer.named_parameters()}
        tangents = {name: torch.randn_like(p) for name, p in values.items()}
        y, slope, *_ = jvp(lambda values: functional_call(layer, values, (x,)), (values,), (tangents,))  # noqa: B023
        weights = torch.randn_like(y)
        backward = torch.autograd.grad(layer(x), list(layer.parameters()), weights)
        want = sum(float((g * tangents[n]).sum()) for (n, _), g in zip(layer.named_parameters(), backward, strict=True))
        assert abs(float((slope * weights).sum()) - want) <= 1e-9 * abs(want), "forward and backward derivatives differ"


def activation_checkpointing(case: Case, kind: Kind) -> None:
    """Recomputed activations give the same gradients, reentrant or not."""
    for mode in (True, False):
        layer, x = kind.layer(case).train(mode), kind.example(case).requires_grad_()
        evaluate(layer, x)
        want = gradients(layer.train(mode), x)
        for reentrant in (False, True):
            layer.zero_grad()
            checkpoint(layer, x, use_reentrant=reentrant).square().sum().backward()
            for parameter, slope in zip(layer.parameters(), want, strict=True):
                assert parameter.grad is not None, "a parameter got no gradient"
                assert_same(parameter.grad, slope, 1e-12, f"a gradient, reentrant={reentrant}")


def gradient_scaler(case: Case, kind: Kind) -> None:
    """A step of automatic mixed precision with a scaler is a step without, up to rounding."""
    scaled, x = kind.layer(case, dtype=torch.float32), kind.example(case, dtype=torch.float32)
    plain = copy.deepcopy(scaled)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = torch.optim.SGD(scaled.parameters(), lr=0.01)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = scaled(x).float().square().mean()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    other = torch.optim.SGD(plain.parameters(), lr=0.01)
    plain(x).square().mean().backward()
    other.step()
    assert scaler.get_scale() == 1024.0, "the scaler found infinite gradients"
    for (name, a), b in zip(scaled.named_parameters(), plain.parameters(), strict=True):
        assert_same(a, b, 5e-3, f"{name} after a scaled step")


def symbolic_trace(case: Case, kind: Kind) -> None:
    """The graph that torch.fx records is right for every batch size, and follows the parameters."""
    for mode in (True, False):
        layer = kind.layer(case).train(mode)
        traced = torch.fx.symbolic_trace(nn.Sequential(layer))
        for rows in (3, 200):
            x = kind.example(case, rows)
            before = layer(x)
            assert_same(traced(x), before, 1e-11, f"the traced output, {rows} rows, training={mode}")
        with torch.no_grad():
            next(layer.parametrization.parameters()).add_(1)
        assert not torch.allclose(traced(x), before), "the traced graph holds the weight as a constant"
        assert_same(traced(x), layer(x), 1e-11, "the traced output after a change of a parameter")


def jit_trace(case: Case, kind: Kind) -> None:
    """What torch.jit.trace records is right for every batch size, without warnings about data-dependent branches."""
    layer, x = kind.layer(case).eval(), kind.example(case)
    evaluate(layer, x)
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", category=DeprecationWarning
        )  # torch advises torch.export, which is tested too
        warnings.filterwarnings("error", category=torch.jit.TracerWarning)
        traced = torch.jit.trace(layer, x)
    for rows in (3, 200):
        x = kind.example(case, rows)
        assert_same(traced(x), layer(x), 1e-11, f"the traced output, {rows} rows")


CHECKS = (
    vmap_over_parameters,
    double_backward,
    forward_mode,
    activation_checkpointing,
    gradient_scaler,
    symbolic_trace,
    jit_trace,
)
