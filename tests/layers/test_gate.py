"""Residual gates: closed at the start, opened by training, never decayed."""

import copy

import pytest
import torch
from torch import nn

import weft
from weft.errors import OptionError
from weft.testing import assert_same


def block(channels=None, shortcut=None, **options):
    branch = nn.Sequential(weft.PHConv2d(8, 8, 3, padding=1, n=4), nn.BatchNorm2d(8), nn.ReLU())
    return weft.ResidualGate(branch, shortcut, channels=channels, **options)


@pytest.mark.parametrize("channels", [None, 8])
def test_block_starts_as_its_shortcut(channels):
    x = torch.randn(2, 8, 5, 5)
    assert torch.equal(block(channels)(x), x)
    shortcut = nn.Conv2d(8, 8, 1)
    gated = block(channels, shortcut)
    assert torch.equal(gated(x), shortcut(x))
    assert gated.alpha.shape == (() if channels is None else (8,))


def test_deep_stacks_start_as_the_identity():
    stack = nn.Sequential(*(block() for _ in range(30)))
    x = torch.randn(2, 8, 5, 5)
    assert torch.equal(stack(x), x)


@pytest.mark.parametrize(
    ("channels", "dim", "shape"), [(None, 1, (2, 6)), (6, 1, (2, 6)), (6, 1, (2, 6, 3)), (4, -1, (2, 3, 4))]
)
def test_output_is_the_equation(channels, dim, shape):
    branch, shortcut = nn.Tanh(), nn.Softplus()
    gated = weft.ResidualGate(branch, shortcut, channels=channels, dim=dim)
    nn.init.normal_(gated.alpha)
    x = torch.randn(shape)
    want = shortcut(x)
    for index in range(shape[dim]):
        alpha = gated.alpha if channels is None else gated.alpha[index]
        want.select(dim, index).add_(alpha.detach() * branch(x).select(dim, index))
    assert_same(gated(x), want, 1e-6, "the output")


@pytest.mark.parametrize("channels", [None, 8])
def test_first_step_opens_the_gate_and_the_second_trains_the_branch(channels):
    gated, x = block(channels), torch.randn(4, 8, 5, 5)
    target = torch.randn(4, 8, 5, 5)
    optimizer = torch.optim.SGD(gated.parameters(), lr=0.1)

    def step():
        optimizer.zero_grad()
        (gated(x) - target).square().mean().backward()
        reached = {name for name, p in gated.named_parameters() if p.grad.any()}
        optimizer.step()
        return reached

    assert step() == {"alpha"}
    assert gated.alpha.all()
    assert {"branch.0.parametrization.mixing", "branch.0.parametrization.blocks", "alpha"} <= step()
    gated.reset_parameters()
    assert not gated.alpha.any()


@pytest.mark.parametrize("channels", [None, 8])
def test_alpha_is_never_decayed(channels):
    gated = block(channels)
    decays = {id(p): g["weight_decay"] for g in weft.parameter_groups(gated, 0.1, 0.01) for p in g["params"]}
    assert decays[id(gated.alpha)] == 0
    assert decays[id(gated.branch[0].parametrization.blocks)] == 0.01


def test_alpha_lives_with_the_branch():
    assert weft.ResidualGate(nn.Linear(2, 2, dtype=torch.float64)).alpha.dtype == torch.float64
    assert weft.ResidualGate(nn.Linear(2, 2, device="meta")).alpha.is_meta
    assert weft.ResidualGate(nn.Linear(2, 2), dtype=torch.bfloat16).alpha.dtype == torch.bfloat16
    assert weft.ResidualGate(nn.ReLU()).alpha.device.type == "cpu"


@pytest.mark.parametrize("channels", [None, 8])
def test_autocast_keeps_the_low_precision_of_the_branch(channels):
    gated = weft.ResidualGate(nn.Linear(8, 8), nn.Linear(8, 8), channels=channels, dim=-1)
    with torch.autocast("cpu", torch.bfloat16):
        assert gated(torch.randn(2, 3, 8)).dtype == torch.bfloat16


def test_surgery_reaches_into_gated_blocks():
    gated, x = block(), torch.randn(2, 8, 5, 5)
    nn.init.ones_(gated.alpha)
    plain = weft.fold(gated, check=x)
    assert type(plain.branch[0]) is nn.Conv2d
    with torch.no_grad():
        assert_same(plain.eval()(x), gated.eval()(x), 1e-5, "the output of the folded block")
    assert torch.equal(copy.deepcopy(gated)(x), gated(x))
    assert torch.compile(gated, backend="eager", fullgraph=True)(x).shape == x.shape


def test_bad_channels_are_refused():
    with pytest.raises(OptionError, match="channels must be at least 1, or None for one alpha for all, got 0"):
        weft.ResidualGate(nn.ReLU(), channels=0)
    assert "channels=3, dim=-1" in repr(weft.ResidualGate(nn.ReLU(), channels=3, dim=-1))
