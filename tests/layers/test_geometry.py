"""Layers compute what torch's own layers compute with the same weight, whatever the geometry."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.cases import DENSE, LOW_RANK, PHM, QUATERNION
from tests.toys import CanonicalKronecker
from torch import nn

import weft
from weft.testing import Case, assert_same, oracles

TOY = Case("canonical", CanonicalKronecker, lambda p: p.dense().detach())
FAMILIES = (DENSE, LOW_RANK, PHM, QUATERNION, TOY)
PATHS = ("auto", "factored", "dense")
FORWARD = {1: weft.Conv1d, 2: weft.Conv2d, 3: weft.Conv3d}
TRANSPOSED = {1: weft.ConvTranspose1d, 2: weft.ConvTranspose2d, 3: weft.ConvTranspose3d}

repeatable = settings(derandomize=True, deadline=None, max_examples=120)
ignore_padding = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")


def torch_weight(matrix, layer):
    """The weight of torch's layer from the (out, in) matrix, number by number, as the module docstring defines it."""
    groups, kernel = layer.groups, layer.kernel_size
    rows, columns, positions = layer.out_channels // groups, layer.in_channels // groups, math.prod(kernel)
    shape = (groups * columns, rows, *kernel) if layer.transposed else (groups * rows, columns, *kernel)
    weight = torch.empty(shape, dtype=matrix.dtype)
    for g, o, c in itertools.product(range(groups), range(rows), range(columns)):
        numbers = matrix[g * rows + o, c * positions : (c + 1) * positions].reshape(kernel)
        if layer.transposed:
            weight[g * columns + c, o] = numbers
        else:
            weight[g * rows + o, c] = numbers
    return weight


def plain_with_weight(layer, matrix, arguments):
    plain = layer.torch_class(**arguments, dtype=torch.float64)
    with torch.no_grad():
        plain.weight.copy_(torch_weight(matrix, layer))
        if plain.bias is not None:
            plain.bias.copy_(layer.bias)
    return plain


def build(cls, case, arguments, path):
    positions = math.prod(arguments["kernel_size"])
    shape = (arguments["out_channels"], arguments["in_channels"] // arguments["groups"] * positions)
    member = case.member(shape, positions=positions)
    layer = cls(**arguments, parametrization=member, path=path, dtype=torch.float64)
    return layer, plain_with_weight(layer, case.dense(member), arguments)


def check(layer, plain, x, *more):
    want = plain(x, *more)
    assert_same(layer.weight, plain.weight, 1e-12, "weight")
    assert_same(layer.train()(x, *more), want, 1e-11, "the output in training")
    with torch.no_grad():
        assert_same(layer.eval()(x, *more), want, 1e-11, "the output in evaluation")


@st.composite
def geometries(draw, dims):
    each = lambda low, high: draw(st.tuples(*[st.integers(low, high)] * dims))
    kernel, dilation = each(1, 3), each(1, 2)
    return {
        "in_channels": 8,
        "out_channels": draw(st.sampled_from([4, 12])),
        "kernel_size": kernel,
        "dilation": dilation,
        "groups": draw(st.sampled_from([1, 1, 2])),
        "bias": draw(st.booleans()),
        "stride": each(1, 2),
    }


@ignore_padding
@repeatable
@given(st.data(), st.sampled_from((1, 1, 2, 2, 3)), st.sampled_from(FAMILIES), st.sampled_from(PATHS))
def test_convolution(data, dims, case, path):
    arguments = data.draw(geometries(dims))
    padding = data.draw(st.sampled_from(["number", "tuple", "same", "valid"]))
    if padding == "same":
        arguments["stride"] = 1
    sizes = data.draw(st.tuples(*[st.integers(0, 2)] * dims))
    arguments["padding"] = {"number": sizes[0], "tuple": sizes}.get(padding, padding)
    arguments["padding_mode"] = data.draw(st.sampled_from(["zeros", "zeros", "reflect", "replicate", "circular"]))
    layer, plain = build(FORWARD[dims], case, arguments, path)
    lead = data.draw(st.sampled_from([(), (1,), (3,)]))
    check(layer, plain, torch.randn(*lead, 8, *(7, 6, 5)[:dims], dtype=torch.float64))


@repeatable
@given(st.data(), st.sampled_from((1, 1, 2, 2, 3)), st.sampled_from(FAMILIES), st.sampled_from(PATHS))
def test_transposed_convolution(data, dims, case, path):
    arguments = data.draw(geometries(dims))
    arguments["padding"] = data.draw(st.tuples(*[st.integers(0, 1)] * dims))
    room = [max(s, d) for s, d in zip(arguments["stride"], arguments["dilation"], strict=True)]
    arguments["output_padding"] = data.draw(st.tuples(*[st.integers(0, r - 1) for r in room]))
    layer, plain = build(TRANSPOSED[dims], case, arguments, path)
    lead = data.draw(st.sampled_from([(), (1,), (2,)]))
    x = torch.randn(*lead, 8, *(4, 3, 3)[:dims], dtype=torch.float64)
    check(layer, plain, x)
    size = list(plain(x).shape[1 + len(lead) :])
    largest = [n + s - 1 - p for n, s, p in zip(size, arguments["stride"], arguments["output_padding"], strict=True)]
    check(layer, plain, x, largest)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("case", FAMILIES, ids=repr)
def test_output_size_may_hold_batch_and_channels(case, path):
    arguments = {"in_channels": 8, "out_channels": 4, "kernel_size": (3, 2), "groups": 1, "stride": 2}
    layer, plain = build(weft.ConvTranspose2d, case, arguments, path)
    batch = torch.randn(2, 8, 4, 3, dtype=torch.float64)
    check(layer, plain, batch, [2, 4, 10, 7])
    check(layer, plain, batch[0], [10, 7])
    check(layer, plain, batch[0], [4, 10, 7])
    with pytest.raises(ValueError, match="requested an output size of"):
        layer(batch, [20, 7])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("case", FAMILIES, ids=repr)
def test_empty_batch(case, path):
    for cls in (weft.Conv2d, weft.ConvTranspose2d):
        arguments = {"in_channels": 8, "out_channels": 4, "kernel_size": (3, 2), "groups": 1}
        layer, plain = build(cls, case, arguments, path)
        check(layer, plain, torch.randn(0, 8, 5, 4, dtype=torch.float64))


def test_bad_inputs_are_refused_as_by_torch():
    layer = weft.Conv2d(8, 4, 3, parametrization="low_rank", rank=2)
    for x in (torch.randn(2, 7, 5, 5), torch.randn(8, 5), torch.randn(2, 2, 8, 5, 5), torch.randn(1, 8, 2, 2)):
        with pytest.raises(RuntimeError):
            layer(x)
    with pytest.raises(RuntimeError):
        weft.Linear(8, 4, parametrization="low_rank", rank=2)(torch.randn(3, 7))


@pytest.mark.parametrize("case", FAMILIES, ids=repr)
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_convolution_is_the_definition(dims, case):
    kernel, stride, padding, dilation = (2, 3, 1)[:dims], (2, 1, 2)[:dims], (1, 0, 2)[:dims], (1, 2, 1)[:dims]
    arguments = {"in_channels": 4, "out_channels": 8, "kernel_size": kernel, "groups": 1, "stride": stride}
    arguments |= {"padding": padding, "dilation": dilation}
    x = torch.randn(2, 4, *(5, 6, 3)[:dims], dtype=torch.float64)
    for cls, oracle in ((FORWARD[dims], oracles.convolution), (TRANSPOSED[dims], oracles.transposed_convolution)):
        layer, _ = build(cls, case, arguments, "auto")
        weight = torch_weight(case.dense(layer.parametrization), layer)
        assert_same(layer(x), oracle(x, weight, layer.bias, stride, padding, dilation), 1e-11, cls.__name__)


@repeatable
@given(
    st.sampled_from((DENSE, LOW_RANK, PHM, QUATERNION)),
    st.sampled_from(PATHS),
    st.sampled_from([(12, 8), (8, 12), (4, 4)]),
    st.lists(st.integers(0, 3), max_size=3),
    st.booleans(),
)
def test_linear(case, path, shape, lead, bias):
    member = case.member(shape)
    layer = weft.Linear(shape[1], shape[0], bias, parametrization=member, path=path, dtype=torch.float64)
    plain = nn.Linear(shape[1], shape[0], bias, dtype=torch.float64)
    with torch.no_grad():
        plain.weight.copy_(case.dense(member))
        if bias:
            plain.bias.copy_(layer.bias)
    check(layer, plain, torch.randn(*lead, shape[1], dtype=torch.float64))


@pytest.mark.parametrize("arguments", [{}, {"stride": 2, "padding": 1}, {"groups": 2, "bias": False, "dilation": 2}])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_attributes_are_those_of_torch(dims, arguments):
    for cls, more in (
        (FORWARD[dims], {"padding_mode": "reflect"}),
        (TRANSPOSED[dims], {"output_padding": 1, "stride": 2}),
    ):
        layer = cls(8, 4, 3, **{**arguments, **more}, parametrization="low_rank", rank=2)
        plain = cls.torch_class(8, 4, 3, **{**arguments, **more})
        names = [
            "in_channels",
            "out_channels",
            "kernel_size",
            "stride",
            "padding",
            "dilation",
            "groups",
            "padding_mode",
        ]
        for name in [*names, "output_padding", "transposed", "training"]:
            assert getattr(layer, name) == getattr(plain, name), name
        assert layer.weight.shape == plain.weight.shape
        assert layer.weight.dtype == plain.weight.dtype
        assert (layer.bias is None) == (plain.bias is None)
        for name in names:
            assert f"{name}={getattr(plain, name)!r}" in repr(layer)


def test_linear_attributes_are_those_of_torch():
    layer, plain = weft.Linear(6, 4, False, parametrization="low_rank", rank=2), nn.Linear(6, 4, False)
    assert (layer.in_features, layer.out_features, layer.bias) == (plain.in_features, plain.out_features, plain.bias)
    assert layer.weight.shape == plain.weight.shape
    assert "in_features=6, out_features=4, bias=False" in repr(layer)
    assert "path='dense'" in repr(weft.Linear(6, 4, path="dense"))


def test_positional_arguments_have_the_order_of_torch():
    got = weft.Conv2d(8, 4, 3, 2, 1, 2, 4, False, "circular", parametrization="low_rank", rank=1)
    want = nn.Conv2d(8, 4, 3, 2, 1, 2, 4, False, "circular")
    turned = weft.ConvTranspose2d(8, 4, 3, 3, 1, 2, 4, False, 2, parametrization="low_rank", rank=1)
    plain = nn.ConvTranspose2d(8, 4, 3, 3, 1, 2, 4, False, 2)
    for layer, other in ((got, want), (turned, plain)):
        assert type(layer.fold()).__name__ == type(other).__name__
        assert repr(layer.fold()) == repr(other)
