"""The interoperability protocol of all layers, for over-parametrised ones."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

import weft
from weft.testing import assert_same, copies, exports, transforms
from weft.testing.copies import evaluate


class _Linear(weft.EPLinear):
    parametrization = property(lambda self: self.layers)  # where the protocol changes and differentiates parameters


class _Conv1d(weft.EPConv1d):
    parametrization = property(lambda self: self.layers)


class _Conv2d(weft.EPConv2d):
    parametrization = property(lambda self: self.layers)


class _Conv3d(weft.EPConv3d):
    parametrization = property(lambda self: self.layers)


LEARNED = {"residual": True, "residual_mode": "learn"}


@dataclass(frozen=True)
class Kind:
    """As ``weft.testing.Kind``, without a family."""

    cls: type
    arguments: dict
    size: tuple[int, ...] = ()

    def layer(self, case, *, dtype=torch.float64, device=None, path=None):
        return self.cls(4, 6, **self.arguments, dtype=dtype, device=device)

    def example(self, case, rows=3, dtype=torch.float64):
        return torch.randn(rows, 4, *self.size, dtype=dtype)

    def __repr__(self):
        return self.cls.__name__


LINEAR = Kind(_Linear, {"depth": 3, "width": 2, **LEARNED, "residual_intervals": [1, -1]})
CONV1D = Kind(_Conv1d, {"kernel_sizes": [2, 2], "padding": "same", **LEARNED}, (7,))
CONV2D = Kind(
    _Conv2d,
    {"kernel_sizes": [1, (3, 2), 2], "padding": 1, "stride": 2, "groups": 2, **LEARNED, "residual_intervals": [2, -1]},
    (6, 7),
)
CONV3D = Kind(_Conv3d, {"kernel_sizes": [3, 1], "padding": 1, "padding_mode": "circular", **LEARNED}, (4, 3, 5))
CHECKS = [*copies.CHECKS, *transforms.CHECKS]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("kind", [LINEAR, CONV1D, CONV2D, CONV3D], ids=repr)
def test_protocol(kind, check):
    check(None, kind)


@pytest.mark.parametrize("check", exports.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("kind", [LINEAR, CONV2D], ids=repr)
def test_exports(kind, check):
    check(None, kind)


@pytest.mark.parametrize("norm", [True, "output"])
def test_batch_norm_compiles_exports_and_traces(norm):
    """In evaluation from running statistics; in training the compiled layer moves them as the layer does."""
    make = lambda: weft.EPConv2d(4, 4, [3, 1], 1, residual=True, batch_norm=norm, dtype=torch.float64)
    layer, twin = make(), make()
    twin.load_state_dict(layer.state_dict())
    torch.compiler.reset()
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    x = torch.randn(3, 4, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(compiled(x), layer(x))
    torch.testing.assert_close(twin.state_dict(), layer.state_dict())
    want = evaluate(layer, x)
    torch.testing.assert_close(evaluate(compiled, x), want)
    torch.compiler.reset()
    program = torch.export.export(layer, (x,), dynamic_shapes={"input": {0: torch.export.Dim.DYNAMIC}})
    torch.testing.assert_close(program.module()(x), layer(x))
    torch.testing.assert_close(torch.fx.symbolic_trace(torch.nn.Sequential(layer))(x), layer(x))


def test_many_layers_share_their_thresholds():
    """Layers that break even at different rows do not make torch.compile build a program for each."""
    torch.compiler.reset()
    model = torch.nn.Sequential(*(weft.EPLinear(8, 8, depth=2 + n % 3, width=1 + n) for n in range(12)))
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (2, 3, 9, 50, 140, 2000):
        x = torch.randn(rows, 8)
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-3, atol=1e-3)
    torch.compiler.reset()


def test_channels_and_dtypes_of_norms_follow():
    layer = weft.EPLinear(4, 6, batch_norm=True, dtype=torch.float64, device="meta")
    assert layer.norms[0].running_mean.dtype == torch.float64
    assert layer.norms[0].running_mean.is_meta


def test_factors_of_a_weight_of_low_rank_learn_where_it_is_zero():
    plain = nn.Linear(6, 8)
    nn.init.zeros_(plain.weight)
    plain.weight.data[0, 0] = 1
    layer = weft.overparameterize(plain, depth=3)
    assert_same(layer.weight, plain.weight, 1e-6, "the weight")
    (slope,) = torch.autograd.grad((layer.weight * torch.randn(8, 6)).sum(), layer.layers[-1].weight)
    assert (slope.abs() > 1e-6).all()
