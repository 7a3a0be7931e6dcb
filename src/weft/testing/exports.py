"""Interoperability checks that take seconds: torch.compile, torch.export, ONNX."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim

from weft.testing.case import Case, assert_same
from weft.testing.copies import evaluate
from weft.testing.kinds import Kind

#: Batch sizes on both sides of the thresholds of ``path="auto"``.
_BATCHES = (3, 5, 130)


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporters log and warn about their own affairs."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def compiles_in_one_graph(case: Case, kind: Kind, backend: str = "aot_eager") -> None:
    """``torch.compile(fullgraph=True)``: same outputs and gradients, static and dynamic batch, training and evaluation.

    Args:
        case: the family.
        kind: the layer.
        backend: of torch.compile.
    """
    for dynamic in (False, True):
        torch.compiler.reset()
        layer = kind.layer(case)
        compiled: Any = torch.compile(layer, fullgraph=True, dynamic=dynamic, backend=backend)
        parameters = list(layer.parameters())
        for rows in _BATCHES[: 3 if dynamic else 1]:
            x = kind.example(case, rows)
            want = layer(x)
            slopes = torch.autograd.grad(want.square().sum(), parameters)
            got = compiled(x)
            assert_same(got, want, 1e-10, f"the compiled output, {rows} rows, dynamic={dynamic}")
            for slope, expected in zip(torch.autograd.grad(got.square().sum(), parameters), slopes, strict=True):
                assert_same(slope, expected, 1e-9, f"a compiled gradient, {rows} rows")
        x = kind.example(case)
        want = evaluate(layer, x)
        assert_same(evaluate(compiled, x), want, 1e-10, f"the compiled output in evaluation, dynamic={dynamic}")
        with torch.no_grad():
            for parameter in parameters:
                parameter.mul_(2)
        assert_same(
            evaluate(compiled, x), evaluate(layer, x), 1e-10, "the compiled output after a change of parameters"
        )
    torch.compiler.reset()


def exports_with_any_batch(case: Case, kind: Kind) -> None:
    """``torch.export``, strict or not, static batch or dynamic; a dynamic one is not restricted."""
    layer = kind.layer(case).eval()
    evaluate(layer, kind.example(case))  # what is cached must not be exported as a constant
    names = {f"p_{name.replace('.', '_')}" for name, _ in layer.named_parameters()}
    for strict in (False, True):
        for dynamic in (False, True):
            x = kind.example(case)
            shapes = ({0: Dim.DYNAMIC},) if dynamic else None
            with _quiet():
                program = torch.export.export(layer, (x,), dynamic_shapes=shapes, strict=strict)
            used = {node.name for node in program.graph.nodes if node.op == "placeholder" and node.users}
            assert names <= used, f"the exported program does not use {names - used}"
            exported = program.module()
            for rows in (3, 2, 200) if dynamic else (3,):
                x = kind.example(case, rows)
                assert_same(
                    exported(x), evaluate(layer, x), 1e-10, f"the exported output, {rows} rows, strict={strict}"
                )


def onnx_runs_the_same(case: Case, kind: Kind) -> None:
    """Exported by ``torch.onnx.export(dynamo=True)`` and run by onnxruntime, two batch sizes give the same."""
    import onnxruntime

    layer = kind.layer(case, dtype=torch.float32).eval()
    x = kind.example(case, dtype=torch.float32)
    evaluate(layer, x)
    with _quiet():
        program = torch.onnx.export(layer, (x,), dynamo=True, dynamic_shapes=({0: Dim.DYNAMIC},), verbose=False)
    assert program is not None
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    for rows in (3, 7):
        x = kind.example(case, rows, torch.float32)
        (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        got: Tensor = torch.from_numpy(y)
        assert_same(got, evaluate(layer, x), 1e-5, f"the output of onnxruntime, {rows} rows")


CHECKS = (compiles_in_one_graph, exports_with_any_batch, onnx_runs_the_same)
