"""Embedding: look-ups by rows and by the table, padding, from and to torch's layer."""

import pytest
import torch
from tests.cases import CASES
from torch import nn

import weft
from weft.errors import ConversionError, OptionError, SizeError
from weft.parametrizations import LowRank
from weft.testing import assert_same

INDEX = torch.tensor([[0, 5, 5, 7], [3, 1, 0, 2]])


def make(**options):
    return weft.Embedding(8, 12, **{"parametrization": "low_rank", "rank": 3, "dtype": torch.float64, **options})


@pytest.mark.parametrize("path", ["auto", "factored", "dense"])
@pytest.mark.parametrize("padding", [None, 0, -1])
@pytest.mark.parametrize("case", CASES, ids=repr)
def test_look_ups_and_gradients_are_those_of_torchs_table(case, padding, path):
    member = case.member((8, 12))
    layer = weft.Embedding(8, 12, padding, parametrization=member, path=path, dtype=torch.float64)
    table = nn.Embedding(8, 12, padding_idx=padding, dtype=torch.float64)
    zeroed = case.dense(member).detach().clone()
    if padding is not None:
        zeroed[padding] = 0
    table.weight.data.copy_(zeroed)
    assert_same(layer(INDEX), table(INDEX), 1e-12, "the output in training")
    assert_same(layer.weight, table.weight, 1e-12, "the table")
    with torch.no_grad():
        assert_same(layer.eval()(INDEX), table(INDEX), 1e-12, "the output in evaluation")
        assert layer(INDEX[:0]).shape == (0, 4, 12)
    # The chain rule by hand: the table's gradient, pulled back through the family.
    slopes = torch.randn(2, 4, 12, dtype=torch.float64)
    (table_slope,) = torch.autograd.grad((table(INDEX) * slopes).sum(), table.weight)
    want = torch.autograd.grad((member.dense() * table_slope).sum(), list(member.parameters()))
    got = torch.autograd.grad((layer.train()(INDEX) * slopes).sum(), list(member.parameters()))
    for slope, expected in zip(got, want, strict=True):
        assert_same(slope, expected, 1e-11, "a gradient")


def test_only_rows_are_computed_in_training_and_the_table_is_kept_in_evaluation(monkeypatch):
    layer, built = make(), []
    dense = LowRank.dense
    monkeypatch.setattr(LowRank, "dense", lambda self: built.append(1) or dense(self))
    layer(INDEX[:, :1])
    assert not built and layer.explain(INDEX[:, :1]).path == "factored"
    with torch.no_grad():
        layer.eval()(INDEX), layer(INDEX)
        assert len(built) == 1 and layer.explain(INDEX).path == "cached"
        layer.path = "factored"
        layer(INDEX)
    assert len(built) == 1
    assert layer.explain(INDEX).macs == INDEX.numel() * 3 * 12


def test_a_table_that_is_stored_is_looked_up_as_it_is():
    layer = make(parametrization="dense", rank=None)
    assert layer.explain(INDEX).path == "dense" and "stored as it is" in layer.explain(INDEX).why


def test_initial_law_is_torchs():
    torch.manual_seed(0)
    draws = torch.stack([weft.Embedding(40, 32, parametrization="kronecker", n=4).weight for _ in range(50)]).detach()
    assert abs(float(draws.var()) - 1) < 0.05 and abs(float(draws.mean())) < 0.02


def test_from_and_to_torch():
    plain = nn.Embedding(8, 12, padding_idx=2, dtype=torch.float64).eval()
    plain.weight.requires_grad_(False)
    layer = weft.Embedding.from_dense(plain, "low_rank", rank=8)
    assert layer.fit_error < 1e-12 and not layer.training and layer.padding_idx == 2
    assert not any(parameter.requires_grad for parameter in layer.parameters())
    folded = layer.fold()
    assert type(folded) is nn.Embedding and folded.padding_idx == 2
    assert_same(folded.weight, plain.weight, 1e-12)
    loaded = make(rank=8, padding_idx=2)
    with pytest.warns(UserWarning, match="was fitted by family 'low_rank'"):
        loaded.load_state_dict(plain.state_dict())
    assert_same(loaded.weight, plain.weight, 1e-12)


@pytest.mark.parametrize("option", [{"max_norm": 1.0}, {"scale_grad_by_freq": True}, {"sparse": True}])
def test_what_acts_on_stored_rows_is_refused(option):
    with pytest.raises(ConversionError, match=next(iter(option))):
        weft.convert(nn.Embedding(8, 12, **option), "low_rank", rank=3)
    with pytest.raises(OptionError, match=next(iter(option))):
        weft.Embedding.from_dense(nn.Embedding(8, 12, **option), "low_rank", rank=3)


def test_a_padding_row_that_is_not_zero_is_refused():
    plain = nn.Embedding.from_pretrained(torch.randn(8, 12), padding_idx=3)
    with pytest.raises(ConversionError, match="must be zero"):
        weft.convert(plain, "low_rank", rank=3)


def test_bad_sizes_are_refused():
    with pytest.raises(SizeError, match="num_embeddings and embedding_dim"):
        weft.Embedding(0, 12)
    with pytest.raises(SizeError, match=r"padding_idx must be in .*got 8"):
        make(padding_idx=8)
    with pytest.raises(SizeError, match="does not divide 12"):
        weft.Embedding(10, 12, parametrization="kronecker", n=5)


def test_autocast_leaves_rows_in_full_precision_as_torch_does():
    layer, plain = make(dtype=torch.float32), nn.Embedding(8, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(INDEX).dtype == plain(INDEX).dtype == layer.eval()(INDEX).dtype == torch.float32


@pytest.mark.parametrize(
    "options",
    [
        {"parametrization": "monarch", "blocks": 4, "rank": 1},
        {"parametrization": "kronecker", "n": 2, "rank": None},
        {},
    ],
)
@pytest.mark.parametrize("path", ["factored", "dense"])
def test_indices_outside_the_table_raise_as_torchs(options, path):
    layer = weft.Embedding(18, 8, path=path, **{"parametrization": "low_rank", "rank": 2, **options})
    for index in (-1, 18, 19):  # Monarch's blocks reach to 20
        with pytest.raises(IndexError):
            nn.Embedding(18, 8)(torch.tensor([index]))
        with pytest.raises(IndexError):
            layer(torch.tensor([index]))
