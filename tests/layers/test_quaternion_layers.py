"""The quaternion school as layers: options by name, every geometry, and what contradicts itself."""

import copy
import pickle

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import nn

import weft
from weft.errors import OptionError, SizeError, UnknownNameError
from weft.parametrizations import Kronecker, LowRank, QuaternionRotation
from weft.testing import assert_same, oracles

SIZES = {"Linear": (), "Conv1d": (3,), "Conv2d": ((3, 2),), "Conv3d": (2,)}
SIZES |= {"ConvTranspose1d": (3,), "ConvTranspose2d": ((3, 2),), "ConvTranspose3d": (2,)}
SPACE = {"1": (7,), "2": (6, 5), "3": (4, 3, 5)}


def make(kind, *sizes, **options):
    return getattr(weft, f"Quaternion{kind}")(*sizes, *SIZES[kind], dtype=torch.float64, **options)


def example(kind, channels, rows=2):
    return torch.randn(rows, channels, *SPACE.get(kind[-2], ()), dtype=torch.float64)


def matrix_of(layer):
    member = layer.parametrization
    if isinstance(member, QuaternionRotation):
        return oracles.rotation_blocks(member.quaternions, member.scale, member.n)
    return oracles.sum_of_kroneckers(member.mixing, member.blocks)


VARIANTS = {
    "plain": {},
    "polar": {"weight_init": "quaternion", "criterion": "glorot"},
    "pure": {"pure_input": True},
    "rotation": {"rotation": True},
    "scaled": {"rotation": True, "scale": True, "weight_init": "random"},
}


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("kind", SIZES)
def test_every_variant_runs_in_every_layer(kind, options):
    """Against torch's own layer with the matrix of the definition; also folded, copied and pickled."""
    layer = make(kind, 8, 12, **options)
    assert type(layer).__name__ == f"Quaternion{kind}"
    assert isinstance(layer, getattr(weft, kind))
    x, plain = example(kind, 8), getattr(nn, kind)(8, 12, *SIZES[kind], dtype=torch.float64)
    with torch.no_grad():
        plain.weight.copy_(layer._to_weight(matrix_of(layer)))
        plain.bias.copy_(layer.bias)
    want = plain(x)
    assert_same(layer(x), want, 1e-12, "the output in training")
    with torch.no_grad():
        assert_same(layer.eval()(x), want, 1e-12, "the output in evaluation")
    assert type(layer.fold()) is getattr(nn, kind)
    for twin in (layer.fold(), copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert_same(twin(x), want, 1e-12, f"the output of {type(twin).__name__}")


@pytest.mark.parametrize("kind", [kind for kind in SIZES if "Transpose" in kind])
def test_transposed_convolutions_multiply_from_the_left_too(kind):
    """One quaternion in, one out, kernel of one position: y = w x."""
    dims = int(kind[-2])
    layer = getattr(weft, f"Quaternion{kind}")(4, 4, 1, bias=False, dtype=torch.float64)
    w, x = layer.parametrization.blocks.detach().flatten(), torch.randn(4, dtype=torch.float64)
    got = layer(x.reshape(1, 4, *(1,) * dims)).flatten().detach()
    np.testing.assert_allclose(got, oracles.hamilton_product(w.tolist(), x.tolist()), atol=1e-13)


@pytest.mark.parametrize("kind", SIZES)
def test_rotating_layers_rotate(kind):
    """The transposed ones as well; with a real part that comes out as 0, or without one."""
    positions = {"kernel_size": 1} if kind != "Linear" else {}
    dims = int(kind[-2]) if positions else 0
    for real in (True, False):
        n = 4 if real else 3
        cls = getattr(weft, f"Quaternion{kind}")
        layer = cls(n, n, bias=False, rotation=True, quaternion_format=real, dtype=torch.float64, **positions)
        quaternion = layer.parametrization.quaternions.detach().flatten().numpy()
        x = torch.randn(n, dtype=torch.float64)
        got = layer(x.reshape(1, n, *(1,) * dims)).detach().flatten().numpy()
        want = Rotation.from_quat(quaternion, scalar_first=True).apply(x[n - 3 :].numpy())
        np.testing.assert_allclose(got[n - 3 :], want, atol=1e-13)
        assert not got[: n - 3].any()


def test_scale_is_learned_with_the_rotation():
    layer = weft.QuaternionConv2d(8, 4, 3, rotation=True, scale=True)
    layer(torch.randn(2, 8, 5, 5)).square().sum().backward()
    names = {name for name, p in layer.named_parameters() if p.grad is not None and p.grad.any()}
    assert names == {"bias", "parametrization.quaternions", "parametrization.scale"}
    decays = {id(p): g["weight_decay"] for g in weft.parameter_groups(layer, 0.1, 0.01) for p in g["params"]}
    assert decays[id(layer.parametrization.quaternions)] == 0
    assert decays[id(layer.parametrization.scale)] == 0.01


def test_groups_and_padding_modes_work_in_every_variant():
    for options in VARIANTS.values():
        layer = weft.QuaternionConv2d(16, 8, 3, groups=2, padding=1, padding_mode="circular", **options)
        x = torch.randn(2, 16, 6, 6)
        assert_same(layer(x), layer.fold()(x), 1e-5, "the output")


def test_pure_inputs_look_at_the_imaginary_part_only():
    layer = weft.QuaternionConv2d(4, 8, 3, pure_input=True, weight_init="unitary", criterion="he")
    x, other = torch.randn(2, 2, 4, 6, 6)
    other[:, 1:] = x[:, 1:]
    assert torch.equal(layer(x), layer(other))
    assert float(layer.weight[:, 1:].detach().square().mean()) == pytest.approx(4 / 3 * 2 / 36, rel=1e-5)
    other[:, 3] += 1
    assert not torch.allclose(layer(x), layer(other))


def test_fixed_real_matrix_as_an_own_table():
    """KroneckerConv's first layer: weights without a real part too."""
    table = weft.parametrizations.multiplication_table("quaternion")
    table[0] = 0
    layer = weft.QuaternionConv2d(4, 8, 3, algebra=table)
    blocks = layer.parametrization.blocks.detach().clone()
    blocks[0] = 0
    assert_same(layer.weight.reshape(8, -1), oracles.quaternion_matrix(blocks), 1e-6, "the weight")


@pytest.mark.parametrize("criterion", ["he", "glorot"])
def test_criterion_is_init(criterion):
    torch.manual_seed(0)
    first = weft.QuaternionConv1d(64, 64, 3, criterion=criterion)
    torch.manual_seed(0)
    second = weft.QuaternionConv1d(64, 64, 3, init=criterion)
    assert torch.equal(first.weight, second.weight)
    variance = {"he": 2 / 192, "glorot": 2 / 384}[criterion]
    assert float(first.weight.detach().square().mean()) == pytest.approx(variance, rel=0.05)


def test_plain_layers_are_fitted_by_every_variant():
    for options in VARIANTS.values():
        source = weft.QuaternionConv2d(8, 12, 3, **options)
        plain = source.fold()
        fitted = weft.QuaternionConv2d.from_dense(plain, **options)
        assert fitted.fit_error < 1e-5
        assert type(fitted.parametrization) is type(source.parametrization)


def test_conversion_takes_the_options():
    model = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8))
    rotating = weft.convert(model, "quaternion_rotation", scale=True)
    assert all(isinstance(m.parametrization, QuaternionRotation) for m in rotating[::2])
    drawn = weft.convert(model, "kronecker", algebra="quaternion", weight_init="unitary")
    drawn[0].reset_parameters()
    moduli = drawn[0].parametrization.blocks.detach().norm(dim=0)
    assert_same(moduli, moduli[:1, :1].expand_as(moduli), 1e-5, "the moduli")


def test_other_families_may_still_be_chosen():
    assert isinstance(weft.QuaternionLinear(8, 8, parametrization="low_rank", rank=2).parametrization, LowRank)
    member = Kronecker((8, 8), algebra="split_quaternion")
    assert weft.QuaternionLinear(8, 8, parametrization=member).parametrization is member
    assert weft.QuaternionLinear(8, 8, algebra="split_quaternion").parametrization.algebra == "split_quaternion"


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"criterion": "glorrot"}, UnknownNameError, "glorot, he; got 'glorrot'; did you mean 'glorot'"),
        ({"criterion": "he", "init": "he"}, OptionError, "another name of init"),
        ({"rotation": True, "pure_input": True}, OptionError, "ignores the real part of the input already"),
        ({"scale": True}, OptionError, "scale concern rotations only: give rotation=True"),
        ({"quaternion_format": False}, OptionError, "quaternion_format concern rotations only"),
        (
            {"rotation": True, "parametrization": "low_rank", "rank": 2},
            OptionError,
            "parametrization.*rotation; drop one",
        ),
        ({"pure_input": True, "parametrization": "low_rank"}, OptionError, "pure_input; drop one"),
        ({"rotation": True, "algebra": "dual"}, OptionError, "no option 'algebra'"),
        ({"weight_init": "polar"}, UnknownNameError, "quaternion, unitary, random"),
    ],
)
def test_what_contradicts_itself_is_refused(options, error, match):
    with pytest.raises(error, match=match):
        weft.QuaternionLinear(8, 8, **options)


def test_channels_must_be_whole_numbers_of_quaternions():
    with pytest.raises(SizeError, match=r"in_features \(in_channels\): 4 does not divide 6"):
        weft.QuaternionConv2d(6, 8, 3)
    with pytest.raises(SizeError, match=r"out_features \(out_channels\) must be divisible by 3"):
        weft.QuaternionConv2d(6, 8, 3, rotation=True, quaternion_format=False)
