"""The L1 penalty on learned algebras: what is counted, once, and where its gradient goes."""

import pytest
import torch
from torch import nn

import weft
from weft.errors import OptionError
from weft.parametrizations import Kronecker
from weft.testing import assert_same


def total(*members):
    """sum |A| over members, entry by entry of the composed A."""
    sums = 0.0
    for member in members:
        if member.rank is None:
            sums += float(member.mixing.detach().abs().sum())
            continue
        a, b, c = member.block_mix, member.output_mix, member.input_mix
        products = [torch.einsum("i,p,q->ipq", a[:, r], b[:, r], c[:, r]) for r in range(member.rank)]
        sums += float(sum(products).detach().abs().sum())
    return sums


def test_penalty_is_the_weighted_sum_over_learned_algebras():
    model = nn.Sequential(
        weft.PHConv2d(8, 8, 3, n=2),
        weft.QuaternionConv2d(8, 8, 3),  # fixed
        nn.Sequential(weft.PHMLinear(8, 8, n=4, rank=5), nn.Linear(8, 8)),
        weft.Linear(8, 8, parametrization="low_rank", rank=2),
    ).double()
    want = total(model[0].parametrization, model[2][0].parametrization)
    penalty = weft.algebra_penalty(model, weight=0.25)
    assert penalty.shape == ()
    assert float(penalty.detach()) == pytest.approx(0.25 * want)
    assert float(weft.algebra_penalty(model).detach()) == pytest.approx(1e-3 * want)
    alone = model[0].parametrization
    assert float(weft.algebra_penalty(alone, 1.0).detach()) == pytest.approx(total(alone))


def test_gradient_is_the_sign_of_the_algebra_and_reaches_nothing_else():
    model = nn.Sequential(weft.PHMLinear(8, 8, n=2), nn.Linear(8, 8), weft.PHMLinear(8, 8, n=2, rank=3))
    weft.algebra_penalty(model, weight=0.5).backward()
    mixing = model[0].parametrization.mixing
    assert_same(mixing.grad, 0.5 * mixing.sign(), 1e-6, "the gradient")
    reached = {name for name, p in model.named_parameters() if p.grad is not None}
    factors = {f"2.parametrization.{name}_mix" for name in ("block", "output", "input")}
    assert reached == {"0.parametrization.mixing"} | factors


@pytest.mark.parametrize("rank", [None, 3])
def test_what_is_shared_counts_once(rank):
    layer = weft.PHMLinear(8, 8, n=2, rank=rank)
    once = weft.algebra_penalty(layer, 1.0)
    other = weft.PHMLinear(8, 8, parametrization=layer.parametrization)
    assert torch.equal(weft.algebra_penalty(nn.Sequential(layer, nn.ReLU(), layer, other), 1.0), once)


def test_a_shared_tensor_counts_once():
    first, second = weft.PHMLinear(8, 8, n=2), weft.PHMLinear(8, 12, n=2)
    second.parametrization.mixing = first.parametrization.mixing
    assert torch.equal(weft.algebra_penalty(nn.Sequential(first, second), 1.0), weft.algebra_penalty(first, 1.0))


def test_equal_but_separate_algebras_both_count():
    first, second = weft.PHMLinear(8, 8, n=2), weft.PHMLinear(8, 8, n=2)
    second.load_state_dict(first.state_dict())
    assert_same(weft.algebra_penalty(nn.Sequential(first, second), 1.0), 2 * weft.algebra_penalty(first, 1.0), 1e-6)


@pytest.mark.parametrize("model", [nn.Linear(2, 2), nn.ReLU(), weft.QuaternionLinear(4, 4)], ids=repr)
def test_without_learned_algebras_it_is_zero_and_still_a_term(model):
    penalty = weft.algebra_penalty(model)
    assert penalty.shape == ()
    assert penalty == 0
    weight = torch.ones((), requires_grad=True)
    (weight + penalty).backward()
    assert weight.grad == 1


def test_penalty_lives_where_the_model_lives():
    for model in (weft.PHMLinear(8, 8, n=2, device="meta"), nn.Linear(2, 2, device="meta")):
        assert weft.algebra_penalty(model).device.type == "meta"


def test_half_precision_is_summed_in_single():
    layer = weft.PHMLinear(8, 8, n=4, dtype=torch.bfloat16)
    penalty = weft.algebra_penalty(layer, 1.0)
    assert penalty.dtype == torch.float32
    assert_same(penalty, layer.parametrization.mixing.float().abs().sum(), 1e-6, "the penalty")


def test_penalty_drives_an_algebra_to_sparse_entries():
    torch.manual_seed(0)
    member = Kronecker((8, 8), n=2)
    target = torch.randn(8, 8)
    optimizer = torch.optim.Adam(member.parameters(), lr=0.02)
    for _ in range(300):
        optimizer.zero_grad()
        ((member.dense() - target).square().sum() + weft.algebra_penalty(member, weight=30.0)).backward()
        optimizer.step()
    assert (member.mixing.abs() < 0.05).all()


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_bad_weights_are_refused(weight):
    with pytest.raises(OptionError, match="weight of the penalty must be finite and at least 0"):
        weft.algebra_penalty(nn.Linear(2, 2), weight)
