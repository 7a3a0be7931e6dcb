"""summary, parameter_groups, approximate."""

import numpy as np
import pytest
import torch
from torch import nn

import weft
from weft.errors import BudgetError, FitError, OptionError, SizeError
from weft.models.factory import LayerFactory
from weft.models.wide_resnet import WideBlock


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        weft.PHConv2d(4, 8, 3, n=4),
        nn.BatchNorm2d(8),
        nn.ConvTranspose2d(8, 6, 2, stride=2),
        nn.Flatten(),
        weft.Linear(6 * 64, 10, parametrization="low_rank", rank=3, path="factored"),
        nn.Linear(10, 5),
    )


def test_summary_counts_parameters_and_multiply_adds() -> None:
    model = net()
    x = torch.randn(2, 4, 6, 6)
    summary = weft.summary(model, x)
    assert summary.parameters == sum(p.numel() for p in model.parameters())
    assert summary.dense_parameters == sum(p.numel() for p in weft.fold(model).parameters())
    by_name = {row.name: row for row in summary.rows}
    # Output positions times the size of the kernel, counted by hand; batch 2.
    assert by_name["0"].macs == 2 * 4 * 4 * 8 * 4 * 9
    assert by_name["2"].macs == 2 * 4 * 4 * 8 * 6 * 4
    assert by_name["4"].macs == 2 * 3 * (384 + 10)
    assert by_name["5"].macs == 2 * 10 * 5
    assert by_name["1"].macs is None and by_name["1"].share is None
    assert by_name["0"].share == pytest.approx((64 + 8 * 4 * 9 / 4) / (8 * 4 * 9))
    assert summary.macs == sum(by_name[name].macs for name in "0245")


def test_summary_without_example_counts_one_row() -> None:
    summary = weft.summary(net())
    assert {row.name: row.macs for row in summary.rows}["4"] == 3 * (384 + 10)
    assert "multiply-adds per row" in str(summary) and "total" in str(summary)


def test_summary_shows_the_error_of_the_fit() -> None:
    model, report = weft.convert(nn.Sequential(nn.Linear(20, 30)), "low_rank", share=0.3, return_report=True)
    row = weft.summary(model).rows[0]
    assert row.error == report.converted[0].error and 0 < row.error < 1


def test_every_parameter_is_in_exactly_one_group_by_its_rule() -> None:
    model = net()
    model[5].weight.requires_grad_(False)
    groups = weft.parameter_groups(model, lr=0.3, weight_decay=0.01)
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    listed = [p for group in groups for p in group["params"]]
    trainable = [p for p in model.parameters() if p.requires_grad]
    assert len(listed) == len(trainable) and {id(p) for p in listed} == {id(p) for p in trainable}
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    faster = {  # the multipliers of the records, by hand
        id(model[0].parametrization.blocks): 2,
        id(model[4].parametrization.left): 0.3 * 384 / 3,
        id(model[4].parametrization.right): 0.5,
    }
    assert all(rates[id(p)] == pytest.approx(0.3 * faster.get(id(p), 1)) for p in trainable)
    for p in (model[0].parametrization.blocks, model[4].parametrization.left, model[2].weight):
        assert decay[id(p)] == 0.01
    for p in (model[0].parametrization.mixing, model[0].bias, model[1].weight, model[1].bias, model[5].bias):
        assert decay[id(p)] == 0.0
    torch.optim.AdamW(groups).step()


def test_learning_rate_multiplier_of_the_record_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses

    from weft.parametrizations import registry

    record = registry.family("low_rank")
    monkeypatch.setitem(registry._FAMILIES, "low_rank", dataclasses.replace(record, lr_multiplier={"left": 4.0}))
    model = net()
    rates = {id(p): g["lr"] for g in weft.parameter_groups(model, lr=0.1) for p in g["params"]}
    assert rates[id(model[4].parametrization.left)] == pytest.approx(0.4)
    assert rates[id(model[4].parametrization.right)] == pytest.approx(0.1)


def test_sgd_has_multipliers_of_its_own() -> None:
    model = net()
    groups = weft.parameter_groups(model, lr=0.3, optimizer="sgd")
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    low_rank = model[4].parametrization
    assert rates[id(low_rank.left)] == pytest.approx(0.3 * 0.5 * 384 / 3)
    assert rates[id(low_rank.right)] == pytest.approx(0.3 * 0.17 / (1 + 10 / 3) ** 0.5)
    assert rates[id(model[0].parametrization.blocks)] == rates[id(model[2].weight)] == 0.3


def test_groups_refuse_nonsense() -> None:
    with pytest.raises(OptionError, match="at least 0"):
        weft.parameter_groups(net(), lr=-1)
    with pytest.raises(OptionError, match="no trainable"):
        weft.parameter_groups(nn.ReLU(), lr=0.1)
    with pytest.raises(OptionError, match=r"'adam'.* or 'sgd', got 'lion'"):
        weft.parameter_groups(net(), lr=0.1, optimizer="lion")


def test_approximate_takes_tensors_and_arrays() -> None:
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((12, 3)) @ rng.standard_normal((3, 20))
    member = weft.approximate(matrix, "low_rank", share=0.5)
    assert member.left.dtype == torch.float64 and member.fit_error < 1e-12
    np.testing.assert_allclose(member.dense().detach().numpy(), matrix, atol=1e-12)


def test_approximate_refuses_bad_input() -> None:
    with pytest.raises(SizeError, match="two dimensions"):
        weft.approximate(torch.randn(2, 3, 4), "low_rank", rank=1)
    with pytest.raises(FitError, match="finite"):
        weft.approximate(torch.full((4, 4), float("inf")), "low_rank", rank=1)
    with pytest.raises(BudgetError, match="smallest share") as caught:
        weft.approximate(torch.randn(30, 40), "low_rank", share=0.01)
    assert weft.approximate(torch.randn(30, 40), "low_rank", share=caught.value.smallest_share).rank == 1


def test_shared_numbers_are_counted_once() -> None:
    class Tied(nn.Module):
        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(50, 8), nn.Linear(8, 50, bias=False)
            self.head.weight = self.table.weight
            self.layer = layer

    first = weft.Linear(8, 8, parametrization="low_rank", rank=2)
    pair = nn.Sequential(first, weft.Linear(8, 8, False, parametrization=first.parametrization))
    summary = weft.summary(Tied(pair))
    assert summary.parameters == 50 * 8 + 2 * 16 + 8 and summary.dense_parameters == 50 * 8 + 64 + 8
    assert [row.parameters for row in summary.rows] == [400, 400, 40, 32]
    assert weft.summary(Tied(nn.Linear(8, 8))).share == 1


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_plain_recurrent_layers_multiply_as_much_as_converted_ones(kind, packed) -> None:
    plain, x = kind(8, 8, num_layers=2, bidirectional=True), torch.randn(5, 3, 8)
    x = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([5, 4, 2])) if packed else x
    gates = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}[kind]
    per_step = 2 * gates * 8 * (8 + 8 + 16 + 8)  # both layers see both directions
    for model in (plain, weft.convert(plain, "dense")):
        assert weft.summary(model, {"input": x}).macs == per_step * (11 if packed else 15)
        assert weft.summary(model).macs == per_step
    assert weft.summary(plain, (x,)).share == 1


def test_plain_attention_multiplies_as_much_as_a_converted_one() -> None:
    model = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
    x = torch.randn(3, 5, 8)
    wanted = 8 * (3 * 8) + 8 * 8 + 2 * 8 * 12
    rows = {row.name: row.macs for row in weft.summary(model, x).rows}
    assert rows["self_attn"] == 15 * 8 * 24 and rows["self_attn.out_proj"] == 15 * 64
    for net in (model, weft.convert(model, "dense")):
        assert weft.summary(net, x).macs == 15 * wanted and weft.summary(net).macs == wanted
    cross = nn.MultiheadAttention(8, 2, kdim=4, vdim=6)
    call = {"query": x, "key": torch.randn(7, 5, 4), "value": torch.randn(7, 5, 6)}
    for net in (cross, weft.convert(cross, "dense")):
        assert weft.summary(net, call).macs == 8 * (15 * 8 + 35 * 4 + 35 * 6 + 15 * 8)


def test_inputs_may_be_given_by_name() -> None:
    for layer, x in ((weft.PHMLinear(8, 8), torch.randn(3, 8)), (nn.ConvTranspose1d(2, 4, 3), torch.randn(1, 2, 5))):
        assert weft.summary(layer, {"input": x}).macs == weft.summary(layer, x).macs > 0


def test_angles_and_single_numbers_take_no_decay() -> None:
    model = nn.ModuleList(
        [
            weft.superposition.FHRR(3, 8),
            weft.superposition.HRR(3, 8, unitary=True),
            weft.superposition.HRR(3, 8),
            WideBlock(4, 4, 1, lambda _: nn.ReLU(), nn.BatchNorm2d, LayerFactory(), skip_init=True),
        ]
    )
    groups = weft.parameter_groups(model, lr=0.1, weight_decay=0.01)
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert [decay[id(key.vectors)] for key in model[:3]] == [0, 0, 0.01]
    assert decay[id(model[3].alpha)] == 0
