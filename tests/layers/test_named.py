"""The names of the literature are a choice of family, nothing else."""

import pytest
import torch
from tests.cases import QUATERNION
from torch import nn

import weft
from weft.errors import FitError, OptionError, SizeError
from weft.parametrizations import Kronecker, LowRank, multiplication_table
from weft.testing import assert_same, oracles

SIZES = {"Linear": (), "Conv1d": (3,), "Conv2d": (3,), "Conv3d": (2,)}
SIZES |= {"ConvTranspose1d": (3,), "ConvTranspose2d": (3,), "ConvTranspose3d": (2,)}
PH = {"PHMLinear": "Linear", **{f"PH{kind}": kind for kind in SIZES if kind != "Linear"}}
QUATERNIONS = {f"Quaternion{kind}": kind for kind in ("Linear", "Conv1d", "Conv2d", "Conv3d")}


@pytest.mark.parametrize(("name", "kind"), PH.items())
def test_hypercomplex_names(name, kind):
    layer = getattr(weft, name)(8, 12, *SIZES[kind], n=2, bias=False)
    assert isinstance(layer, getattr(weft, kind))
    assert type(layer.fold()) is getattr(nn, kind)
    member = layer.parametrization
    assert (type(member), member.n, member.algebra, layer.bias) == (Kronecker, 2, None, None)
    positions = layer.weight.numel() // 96
    assert member.positions == positions
    assert member.num_parameters == 8 + 8 * 12 * positions // 2
    assert getattr(weft, name)(8, 12, *SIZES[kind]).parametrization.n == 4
    with pytest.raises(OptionError, match="sized by n"):
        getattr(weft, name)(8, 12, *SIZES[kind], share=0.5)


@pytest.mark.parametrize(("name", "kind"), QUATERNIONS.items())
def test_quaternion_names(name, kind):
    layer = getattr(weft, name)(8, 12, *SIZES[kind])
    assert isinstance(layer, getattr(weft, kind))
    assert layer.parametrization.algebra == "quaternion"
    assert layer.parametrization.num_parameters == layer.weight.numel() // 4
    assert_same(layer.weight.reshape(12, -1).double(), oracles.quaternion_matrix(layer.parametrization.blocks), 1e-6)


def test_hypercomplex_layer_with_hamiltons_matrices_is_the_quaternion_layer():
    learned, fixed = weft.PHConv2d(8, 4, 3, n=4), weft.QuaternionConv2d(8, 4, 3)
    with torch.no_grad():
        learned.parametrization.mixing.copy_(multiplication_table("quaternion"))
        learned.parametrization.blocks.copy_(fixed.parametrization.blocks)
    assert_same(learned.weight, fixed.weight, 1e-6, "the weight")


def test_hypercomplex_layer_of_one_component_is_the_ordinary_layer():
    layer = weft.PHConv1d(3, 5, 2, n=1)
    with torch.no_grad():
        layer.parametrization.mixing.fill_(1.0)
    assert_same(layer.weight, layer.parametrization.blocks.reshape(5, 3, 2), 0, "the weight")


def test_phc_convolution_is_the_sum_over_components():
    """W[p*O/n + o, q*I/n + c, ...] = sum_i A[i, p, q] F[i, o, c, ...], entry by entry."""
    for cls, transposed in ((weft.PHConv2d, False), (weft.PHConvTranspose2d, True)):
        layer = cls(4, 6, (2, 3), n=2, dtype=torch.float64)
        mixing, filters = layer.parametrization.mixing, layer.parametrization.blocks.reshape(2, 3, 2, 2, 3)
        for p in range(2):
            for o in range(3):
                for q in range(2):
                    for c in range(2):
                        want = sum(mixing[i, p, q] * filters[i, o, c] for i in range(2))
                        at = (q * 2 + c, p * 3 + o) if transposed else (p * 3 + o, q * 2 + c)
                        assert_same(layer.weight[at], want, 1e-12, "a kernel")


def test_names_take_the_arguments_of_torch_in_their_order():
    layer = weft.PHConv2d(8, 4, 3, 2, 1, 1, 2, False, "circular", n=2)
    assert (layer.stride, layer.padding, layer.groups, layer.bias, layer.padding_mode) == (
        (2, 2),
        (1, 1),
        2,
        None,
        "circular",
    )
    assert weft.QuaternionLinear(8, 4, False, dtype=torch.float64).weight.dtype == torch.float64


def test_names_fit_plain_layers_by_their_own_family():
    plain = weft.QuaternionConv2d(8, 4, 3, padding=1).fold()
    assert weft.QuaternionConv2d.from_dense(plain).fit_error < 1e-5
    assert weft.PHConv2d.from_dense(plain, n=4).fit_error < 1e-5
    assert weft.PHConv2d.from_dense(plain, n=2).parametrization.n == 2
    member = QUATERNION.member((4, 72), positions=9, dtype=torch.float32)
    assert weft.QuaternionConv2d.from_dense(plain, member).parametrization is member
    low = weft.LRLinear.from_dense(nn.Linear(20, 10), share=0.5)
    assert low.parametrization.rank == 3


def test_low_rank_linear():
    assert weft.LRLinear(300, 200, 0.1).parametrization.rank == 12
    assert weft.LRLinear(30, 20, rank=4, bias=False).bias is None
    weight, bias = torch.randn(4, 2) @ torch.randn(2, 6), torch.randn(4)
    layer = weft.LRLinear(6, 4, rank=2, initial_weight=weight, initial_bias=bias)
    assert isinstance(layer.parametrization, LowRank)
    assert layer.fit_error < 1e-5
    x = torch.randn(3, 6)
    assert_same(layer(x), x @ weight.T + bias, 1e-5, "the output")
    assert isinstance(layer.bias, nn.Parameter)
    with pytest.raises(SizeError, match=r"initial_bias must have the shape \(4,\).*\(5,\)"):
        weft.LRLinear(6, 4, rank=2, initial_bias=torch.randn(5))
    with pytest.raises(SizeError, match="bias=False"):
        weft.LRLinear(6, 4, rank=2, bias=False, initial_bias=bias)
    with pytest.raises(SizeError, match=r"\(4, 6\)"):
        weft.LRLinear(6, 4, rank=2, initial_weight=torch.randn(6, 4))
    with pytest.raises(FitError, match="finite"):
        weft.LRLinear(6, 4, rank=2, initial_weight=torch.full((4, 6), torch.nan))
    assert weft.LRLinear(6, 4, rank=2, initial_weight=weight.numpy()).fit_error < 1e-5
