"""Interoperability checks that take milliseconds: copies, states, precisions, devices, memory formats."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

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


def gradients(layer: Layer, x: Tensor) -> tuple[Tensor, ...]:
    """The gradients of the parameters for one input.

    Args:
        layer: in any mode.
        x: its input.

    Returns:
        one tensor per parameter.
    """
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
            parameter.add_(1)
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


def channels_last(case: Case, kind: Kind) -> None:
    """Memory formats change no value, forward or backward."""
    layer, x = kind.layer(case), kind.example(case)
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    want, slopes = evaluate(layer, x), gradients(layer.train(), x)
    if x.dim() in formats:
        moved: Any = layer  # torch's annotations of Module.to know no memory_format
        layer, x = moved.to(memory_format=formats[x.dim()]), x.to(memory_format=formats[x.dim()])
    else:
        x = x.transpose(0, -1).contiguous().transpose(0, -1)
    assert_same(evaluate(layer, x), want, 1e-12, "the output in another memory format")
    for got, slope in zip(gradients(layer.train(), x), slopes, strict=True):
        assert_same(got, slope, 1e-11, "a gradient in another memory format")


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
    channels_last,
    inference_mode,
)
