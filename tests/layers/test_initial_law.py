"""Fresh layers have the variance of the layers of torch that they replace, and He's or Glorot's by argument."""

import pytest
import torch
from torch import nn

import weft
from weft.testing import assert_same

SEEDS = 150
FAMILIES = {
    "dense": {},
    "low_rank": {"rank": 6},
    "kronecker": {"n": 4},
    "complex": {"parametrization": "kronecker", "algebra": "complex"},
    "quaternion": {"parametrization": "kronecker", "algebra": "quaternion"},
}
GEOMETRIES = {
    "Linear": ((32, 48), {}),
    "Conv1d": ((16, 32, 3), {}),
    "Conv2d": ((16, 24, 3), {"groups": 2}),
    "Conv3d": ((8, 12, 2), {}),
    "ConvTranspose1d": ((32, 16, 4), {}),  # fans that differ: torch takes the output channels
    "ConvTranspose2d": ((16, 32, 3), {"groups": 2}),
    "ConvTranspose3d": ((12, 8, 2), {}),
}
INITS = {"he": nn.init.kaiming_normal_, "glorot": nn.init.xavier_uniform_}


def measured(draw, seeds=SEEDS):
    """Variance over entries and seeds."""
    values = []
    for seed in range(seeds):
        torch.manual_seed(seed)
        values.append(draw().detach().clone())
    entries = torch.stack(values)
    assert abs(float(entries.mean())) < 0.05 * float(entries.std())
    return float(entries.var())


def build(kind, family, **options):
    sizes, arguments = GEOMETRIES[kind]
    return getattr(weft, kind)(*sizes, **{**arguments, "parametrization": family, **FAMILIES[family], **options})


def plain(kind):
    sizes, arguments = GEOMETRIES[kind]
    return getattr(nn, kind)(*sizes, **arguments)


def drawn(layer, tensor):
    def draw():
        layer.reset_parameters()
        return getattr(layer, tensor)

    return draw


@pytest.mark.parametrize("kind", GEOMETRIES)
@pytest.mark.parametrize("family", FAMILIES)
def test_variance_is_that_of_torchs_layer(family, kind):
    assert measured(drawn(build(kind, family), "weight")) == pytest.approx(
        measured(drawn(plain(kind), "weight")), rel=0.05
    )


@pytest.mark.parametrize("kind", ["Linear", "Conv2d", "ConvTranspose2d"])
@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("family", ["low_rank", "kronecker", "quaternion"])
def test_variance_by_argument(family, init, kind):
    want = measured(lambda: INITS[init](plain(kind).weight))
    assert measured(drawn(build(kind, family, init=init), "weight")) == pytest.approx(want, rel=0.05)


@pytest.mark.parametrize("kind", GEOMETRIES)
def test_bias_is_that_of_torchs_layer(kind):
    layer, other = build(kind, "low_rank"), plain(kind)
    wanted = measured(drawn(other, "bias"), 5 * SEEDS)  # a bias has few entries
    assert measured(drawn(layer, "bias"), 5 * SEEDS) == pytest.approx(wanted, rel=0.05)
    bound = max(float(drawn(other, "bias")().detach().abs().max()) for _ in range(100))
    assert float(drawn(layer, "bias")().detach().abs().max()) <= bound * 1.05


def test_construction_draws_by_the_same_law_as_reset():
    for family in FAMILIES:
        torch.manual_seed(3)
        layer = build("Conv1d", family)
        first = layer.weight.detach().clone()
        torch.manual_seed(3)
        assert_same(build("Conv1d", family).weight, first, 0, "the weight for the same seed")
        layer.reset_parameters()
        assert not torch.allclose(layer.weight, first)
