"""Interoperability checks that take milliseconds: copies, precisions, transforms, tracing."""

from __future__ import annotations

import copy
import gc
import pickle
import warnings
import weakref
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp, stack_module_state, vmap
from torch.utils.checkpoint import checkpoint

from weft.layers import Layer
from weft.testing.case import Case, assert_same
from weft.testing.kinds import Kind


def evaluate(layer: nn.Module, x: Tensor) -> Tensor:
    """The output in evaluation mode, without gradients.

    Args:
        layer: any module; stays in evaluation mode.
        x: its input.

    Returns:
        the output.
    """
    with torch.no_grad():
        return layer.eval()(x)


def _gradients(layer: Layer, x: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(layer(x).square().sum(), list(layer.parameters()))


def every_path_is_the_folded_layer(case: Case, kind: Kind) -> None:
    """Training, evaluation and every ``path`` compute what the plain layer computes."""
    for path in ("auto", "factored", "dense"):
        layer = kind.layer(case, path=path)
        plain = layer.fold()
        for rows in (0, 1, 9):
            x = kind.example(case, rows)
            want = plain(x)
            assert_same(layer.train()(x), want, 1e-11, f"the output in training, path {path}, {rows} rows")
            assert_same(layer.eval()(x), want, 1e-11, f"the output in evaluation with gradients, path {path}")
            assert_same(evaluate(layer, x), want, 1e-11, f"the output in evaluation, path {path}, {rows} rows")
            assert_same(evaluate(layer, x), want, 1e-11, f"the output of a second evaluation, path {path}")


def deepcopy_keeps_no_graph(case: Case, kind: Kind) -> None:
    """A layer keeps no graph alive; its copy computes the same and is independent, also of the cache."""
    layer, x = kind.layer(case), kind.example(case)
    y = layer(x)
    node = weakref.ref(y)
    y.sum().backward()
    del y
    gc.collect()
    assert node() is None, "the layer keeps its output alive"
    want = evaluate(layer, x)
    twin = copy.deepcopy(layer)
    assert_same(evaluate(twin, x), want, 0, "the output of the copy")
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(2)
    assert not torch.allclose(evaluate(twin, x), want), "the copy still shows the old weight"
    assert_same(evaluate(layer, x), want, 0, "the output after the copy was changed")


def pickle_round_trip(case: Case, kind: Kind) -> None:
    """A pickled layer computes the same, and does not carry what evaluation cached."""
    layer, x = kind.layer(case).eval(), kind.example(case)
    before = len(pickle.dumps(layer))
    want = evaluate(layer, x)
    stored = pickle.dumps(layer)
    assert len(stored) == before, f"evaluation adds {len(stored) - before} bytes to the pickle"
    assert_same(evaluate(pickle.loads(stored), x), want, 0, "the output of the unpickled layer")  # noqa: S301, our own


def safetensors_round_trip(case: Case, kind: Kind) -> None:
    """The state goes through a safetensors file, also after evaluation, and into a layer built on the meta device."""
    layer, x = kind.layer(case), kind.example(case)
    keys = set(layer.state_dict())
    want = evaluate(layer, x)
    assert set(layer.state_dict()) == keys, "evaluation changed the state dict"
    stored = safetensors.torch.save(layer.state_dict())
    for other in (kind.layer(case), kind.layer(case, device="meta").to_empty(device="cpu")):
        evaluate(other, x)  # fills the cache with another weight
        other.load_state_dict(safetensors.torch.load(stored), strict=True)
        assert_same(evaluate(other, x), want, 0, "the output after loading")
    assigned = kind.layer(case, device="meta")
    assigned.load_state_dict(safetensors.torch.load(stored), strict=True, assign=True)
    assert_same(evaluate(assigned, x), want, 0, "the output after loading by assignment")


def meta_device(case: Case, kind: Kind) -> None:
    """Built on the meta device, every tensor is there, and shapes come out right."""
    layer, x = kind.layer(case, device="meta"), kind.example(case)
    for name, tensor in layer.state_dict().items():
        assert tensor.is_meta, f"{name} is on {tensor.device}"
    want = kind.layer(case)(x).shape
    assert layer(x.to("meta")).shape == want
    assert evaluate(layer, x.to("meta")).shape == want
    with torch.device("meta"):
        assert kind.layer(case)(x.to("meta")).is_meta


def autocast_bfloat16(case: Case, kind: Kind) -> None:
    """Under autocast the output is bf16 in both modes and on every path, gradients stay fp32; outside all is fp32."""
    for path in ("auto", "factored", "dense"):
        layer, x = kind.layer(case, dtype=torch.float32, path=path), kind.example(case, dtype=torch.float32)
        full = evaluate(layer, x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            low = evaluate(layer, x)
            trained = layer.train()(x)
        assert low.dtype == trained.dtype == torch.bfloat16, (
            f"autocast gives {low.dtype} and {trained.dtype}, path {path}"
        )
        assert_same(low, full, 0.05, "the output in evaluation under autocast")
        assert_same(trained, full, 0.05, "the output in training under autocast")
        for gradient in torch.autograd.grad(trained.float().sum(), list(layer.parameters())):
            assert gradient.dtype == torch.float32
        assert_same(evaluate(layer, x), full, 1e-6, "the output after autocast")
        assert evaluate(layer, x).dtype == torch.float32
    double, x = kind.layer(case), kind.example(case)
    want = evaluate(double, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same(evaluate(double, x), want, 0.05, "the output in double precision under autocast")


def change_of_dtype(case: Case, kind: Kind) -> None:
    """``.to(dtype)`` changes every parameter and the output, also after evaluation."""
    layer, x = kind.layer(case, dtype=torch.float32), kind.example(case, dtype=torch.float32)
    full = evaluate(layer, x)
    low = evaluate(layer.to(torch.bfloat16), x.bfloat16())
    assert low.dtype == torch.bfloat16
    assert_same(low, full, 0.1, "the output in bf16")
    assert evaluate(layer.double(), x.double()).dtype == torch.float64
    assert layer.weight.dtype == torch.float64


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


def channels_last(case: Case, kind: Kind) -> None:
    """Memory formats change no value, forward or backward."""
    layer, x = kind.layer(case), kind.example(case)
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    want, slopes = evaluate(layer, x), _gradients(layer.train(), x)
    if x.dim() in formats:
        moved: Any = layer  # torch's annotations of Module.to know no memory_format
        layer, x = moved.to(memory_format=formats[x.dim()]), x.to(memory_format=formats[x.dim()])
    else:
        x = x.transpose(0, -1).contiguous().transpose(0, -1)
    assert_same(evaluate(layer, x), want, 1e-12, "the output in another memory format")
    for got, slope in zip(_gradients(layer.train(), x), slopes, strict=True):
        assert_same(got, slope, 1e-11, "a gradient in another memory format")


def activation_checkpointing(case: Case, kind: Kind) -> None:
    """Recomputed activations give the same gradients, reentrant or not."""
    for mode in (True, False):
        layer, x = kind.layer(case).train(mode), kind.example(case).requires_grad_()
        evaluate(layer, x)
        want = _gradients(layer.train(mode), x)
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
            next(layer.parametrization.parameters()).mul_(2)
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


def inference_mode(case: Case, kind: Kind) -> None:
    """Inference mode computes the same, and what it leaves behind can be trained and evaluated."""
    layer, x = kind.layer(case).eval(), kind.example(case)
    want = layer(x).detach()
    with torch.inference_mode():
        assert_same(layer(x), want, 1e-12, "the output in inference mode")
        born_inside = kind.layer(case).eval()
        assert_same(born_inside(x), born_inside.fold()(x), 1e-11, "the output of a layer made in inference mode")
    assert_same(evaluate(layer, x), want, 1e-12, "the output after inference mode")
    frozen = x.clone().requires_grad_()
    for parameter in layer.parameters():
        parameter.requires_grad_(False)
    (slope,) = torch.autograd.grad(layer(frozen).square().sum(), frozen)
    plain = layer.fold()
    (expected,) = torch.autograd.grad(plain(frozen).square().sum(), frozen)
    assert_same(slope, expected, 1e-11, "the gradient in the input of a frozen layer after inference mode")


CHECKS = (
    every_path_is_the_folded_layer,
    deepcopy_keeps_no_graph,
    pickle_round_trip,
    safetensors_round_trip,
    meta_device,
    autocast_bfloat16,
    change_of_dtype,
    vmap_over_parameters,
    double_backward,
    forward_mode,
    channels_last,
    activation_checkpointing,
    gradient_scaler,
    symbolic_trace,
    jit_trace,
    inference_mode,
)
