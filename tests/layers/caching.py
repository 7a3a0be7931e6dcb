"""A layer that caches, and what it must compute."""

import torch

import weft
from weft.testing import assert_same, oracles


def make_layer(dtype=torch.float64, **options):
    """A layer that runs its dense weight, cached in evaluation."""
    layer = weft.PHMLinear(12, 8, n=4, path="dense", dtype=dtype, **options)
    return layer.eval()


def truth(layer, x):
    """What the layer must compute, by the oracle and nothing that the layer may have cached."""
    member = layer.parametrization
    return x @ oracles.sum_of_kroneckers(member.mixing, member.blocks).T.to(x) + layer.bias


def run(layer, x):
    with torch.no_grad():
        return layer(x)


def fill(layer, x):
    """Evaluate, and make sure that the weight is cached."""
    y = run(layer, x)
    assert layer._cache.entry is not None
    return y


def assert_fresh(layer, x, before=None):
    for _ in range(2):  # the first call may rebuild, the second must not return something older
        got = run(layer, x)
        assert_same(got, truth(layer, x), 1e-11, "the output")
    if before is not None:
        assert not torch.allclose(got, before), "nothing changed, so this shows nothing"


def count_builds(layer, monkeypatch):
    builds = []
    member = layer.parametrization
    monkeypatch.setattr(member, "dense", lambda: builds.append(1) or type(member).dense(member), raising=False)
    return builds
