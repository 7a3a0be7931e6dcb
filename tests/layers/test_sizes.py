"""Layers that start from a given weight take, of the sizes that one share allows, those that suit the weight."""

import pytest
import torch
from torch import nn

import weft
from weft.errors import OptionError, SizeError
from weft.layers.cache import count_sources
from weft.parametrizations import HODLR, LowRank, make
from weft.testing import assert_same

SHARE = 0.35


@pytest.fixture
def asked(monkeypatch):
    """Low rank, for this test, takes rank 3 for a weight whose first entry is negative, and 2 for others."""
    seen = []

    def sized_for(cls, target, budget, positions, options):
        seen.append((target, positions))
        return {"rank": 3 if target[0, 0] < 0 else 2}

    monkeypatch.setattr(LowRank, "_sized_for", classmethod(sized_for))
    return seen


def weight(sign, *shape):
    """Random, with the first entry of a sign."""
    drawn = torch.randn(*shape)
    drawn.view(-1)[0] = sign * drawn.view(-1)[0].abs()
    return drawn


def holding(plain, value):
    with torch.no_grad():
        plain.weight.copy_(value)
    return plain


def test_named_layers_take_the_depth_that_suits_a_weight():
    place = torch.arange(64)
    smooth = torch.where(place[:, None] >= place, 1.0, -1.0) / (3.2 + (place[:, None] - place).abs())
    want = weft.approximate(smooth, "hodlr", SHARE)
    layer = weft.HODLRLinear(64, 64, SHARE, initial_weight=smooth)
    assert (layer.parametrization.depth, layer.fit_error) == (want.depth, pytest.approx(want.fit_error))
    assert want.depth != make("hodlr", (64, 64), share=SHARE).depth, "the test proves nothing"


@pytest.mark.parametrize(("sign", "rank"), [(-1, 3), (1, 2)])
def test_linear_embedding_and_convert(asked, sign, rank):
    value = weight(sign, 16, 24)
    linear, embedding = holding(nn.Linear(24, 16), value), holding(nn.Embedding(16, 24), value)
    assert weft.Linear.from_dense(linear, "low_rank", share=SHARE).parametrization.rank == rank
    assert weft.LRLinear.from_dense(linear, share=SHARE).parametrization.rank == rank
    assert weft.LRLinear(24, 16, SHARE, initial_weight=value).parametrization.rank == rank
    assert weft.Embedding.from_dense(embedding, "low_rank", share=SHARE).parametrization.rank == rank
    converted = weft.convert(nn.Sequential(linear, nn.ReLU()), "low_rank", share=SHARE)
    assert converted[0].parametrization.rank == rank
    assert weft.LRLinear(24, 16, rank=4, initial_weight=value).parametrization.rank == 4


@pytest.mark.parametrize("transposed", [False, True])
def test_convolutions_look_at_their_matrix(asked, transposed):
    kind = "ConvTranspose2d" if transposed else "Conv2d"
    plain = getattr(nn, kind)(8, 6, 3)
    layer = getattr(weft, kind).from_dense(plain, "low_rank", share=SHARE)
    ((target, positions),) = asked
    assert positions == 9
    assert_same(target, (plain.weight.transpose(0, 1) if transposed else plain.weight).reshape(6, 72), 0, "the target")
    assert layer.parametrization.rank == (3 if plain.weight.view(-1)[0] < 0 else 2)


def test_every_gate_and_projection_by_itself(asked):
    parts = [weight(sign, 12, 12) for sign in (-1, 1, -1)]
    gru = nn.GRU(12, 12)
    with torch.no_grad():
        gru.weight_ih_l0.copy_(torch.cat(parts))
    new = weft.GRU.from_dense(gru, "low_rank", share=0.6)
    assert [part.rank for part in new.ih_l0.parametrization.parts()] == [3, 2, 3]
    attention = nn.MultiheadAttention(12, 4).eval()
    with torch.no_grad():
        attention.in_proj_weight.copy_(torch.cat(parts))
    new = weft.MultiheadAttention.from_dense(attention, "low_rank", share=0.6)
    assert [layer.parametrization.rank for layer in (new.q_proj, new.k_proj, new.v_proj)] == [3, 2, 3]
    assert new.v_proj.parametrization.variance == weft.MultiheadAttention(12, 4).v_proj.parametrization.variance


def test_attention_counts_the_tensors_of_weights_that_were_exchanged(monkeypatch):
    """Its cache is right only if it knows how many tensors the weights are made of."""
    one_block = classmethod(lambda cls, *_: {"depth": 1, "rank": None})  # fewer tensors than a tree
    monkeypatch.setattr(HODLR, "_sized_for", one_block)
    new = weft.MultiheadAttention.from_dense(nn.MultiheadAttention(32, 4).eval(), "hodlr", share=0.9)
    assert count_sources(new) < count_sources(weft.MultiheadAttention(32, 4, parametrization="hodlr", share=0.9))
    assert new._num_sources == count_sources(new)
    with torch.no_grad():
        x = torch.randn(3, 2, 32)
        assert_same(new(x, x, x)[0], new.fold()(x, x, x)[0], 1e-5, "the output")
    assert new._cache.entry is not None


def test_weight_of_another_shape_is_refused_before_the_search():
    with pytest.raises(SizeError, match=r"\(48, 64\), got \(64, 48\)"):
        weft.HODLRLinear(64, 48, SHARE, initial_weight=torch.randn(64, 48))


def test_named_layers_start_from_a_parametrization_object():
    """Neither drawn anew nor fitted: the layer computes with the very object, and trains it."""
    for name, family in (("LRLinear", "low_rank"), ("SSSLinear", "sss"), ("HODLRLinear", "hodlr"),
                         ("MonarchLinear", "monarch"), ("PSMLinear", "psm")):  # fmt: skip
        member = make(family, (32, 48), share=0.4)
        dense = member.dense().detach().clone()
        layer = getattr(weft, name)(48, 32, parametrization=member, initial_bias=torch.zeros(32))
        assert layer.parametrization is member
        x = torch.randn(5, 48)
        assert_same(layer(x), x @ dense.T, 1e-5, "the output")
        with pytest.raises(OptionError, match=r"already built.*share"):
            getattr(weft, name)(48, 32, share=0.4, parametrization=member)
        with pytest.raises(SizeError, match=r"\(48, 32\)"):
            getattr(weft, name)(32, 48, parametrization=member)


def test_parametrization_object_can_be_fitted_to_a_weight_by_the_layer():
    weight = torch.randn(8, 2) @ torch.randn(2, 6)
    member = LowRank((8, 6), rank=2)
    layer = weft.LRLinear(6, 8, parametrization=member, initial_weight=weight)
    assert layer.parametrization is member and layer.fit_error < 1e-5
