"""RNN, GRU and LSTM: torch's own results with the members' matrices, whatever the options."""

import pytest
import torch
from tests.cases import CASES, PHM
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import weft
from weft.errors import ConversionError, OptionError, SizeError
from weft.parametrizations import Kronecker, Stacked
from weft.testing import assert_same

GEOMETRIES = {
    "RNN": (weft.RNN, {"nonlinearity": "relu", "bias": False}),
    "GRU": (weft.GRU, {"num_layers": 2, "bidirectional": True}),
    "LSTM": (weft.LSTM, {"num_layers": 2, "proj_size": 4}),
    "LSTM both ways": (weft.LSTM, {"bidirectional": True, "batch_first": True}),
}
#: Cases that can take every shape of the geometries.
SQUARE = [case for case in CASES if case.shapes[0] == (8, 12) and case.record.name != "psm"]
geometries = pytest.mark.parametrize(("cls", "options"), GEOMETRIES.values(), ids=GEOMETRIES)


def make(cls, options, case=PHM, dtype=torch.float64):
    return cls(12, 8, **options, parametrization=case.make, dtype=dtype)


def by_hand(layer):
    """torch's module with the matrices of the members, put there one by one."""
    plain = layer.torch_class(**layer._arguments(), dtype=torch.float64)
    with torch.no_grad():
        for name, value in plain.named_parameters():
            if name.startswith("bias"):
                value.copy_(getattr(layer, name))
            else:
                gates = getattr(layer, name.removeprefix("weight_")).parametrization.members
                value.copy_(torch.cat([gate.dense() for gate in gates]))
    return plain


def leaves(output):
    return [leaf for leaf in torch.utils._pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor)]


def assert_same_outputs(got, want, tolerance=1e-11):
    got, want = leaves(got), leaves(want)
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        assert_same(a, b, tolerance)


def step_of_gru(w_ih, w_hh, b_ih, b_hh, x, h):
    """One step from the definition (Cho et al. 2014, torch's variant), gate by gate."""
    (r_x, z_x, n_x), (r_h, z_h, n_h) = (w_ih @ x + b_ih).chunk(3), (w_hh @ h + b_hh).chunk(3)
    r, z = torch.sigmoid(r_x + r_h), torch.sigmoid(z_x + z_h)
    return (1 - z) * torch.tanh(n_x + r * n_h) + z * h


def test_gru_from_the_definition():
    layer, x = make(weft.GRU, {}), torch.randn(5, 12, dtype=torch.float64)
    h = torch.zeros(8, dtype=torch.float64)
    w_ih, w_hh = (
        torch.cat([PHM.dense(gate) for gate in m.parametrization.parts()]) for m in (layer.ih_l0, layer.hh_l0)
    )
    for t in range(5):
        h = step_of_gru(w_ih, w_hh, layer.bias_ih_l0, layer.bias_hh_l0, x[t], h)
    assert_same(layer(x)[1][0], h, 1e-12)


@geometries
@pytest.mark.parametrize("case", SQUARE, ids=repr)
def test_outputs_are_torchs(case, cls, options):
    layer = make(cls, options, case)
    plain, x = by_hand(layer), torch.randn(5, 3, 12, dtype=torch.float64)
    assert_same_outputs(layer(x), plain(x))
    with torch.no_grad():
        assert_same_outputs(layer.eval()(x), plain(x))
        assert_same_outputs(layer(x), plain(x))
        for parameter in layer.parameters():
            parameter.mul_(0.5)
        assert_same_outputs(layer(x), by_hand(layer)(x))
    fold = layer.fold()
    assert type(fold) is cls.torch_class
    assert_same_outputs(fold(x), layer(x))


@geometries
def test_states_unbatched_and_packed_inputs(cls, options):
    layer = make(cls, options)
    plain, batch_first = by_hand(layer), options.get("batch_first", False)
    x = torch.randn(4, 3, 12, dtype=torch.float64)
    _, state = layer(x)
    state = torch.utils._pytree.tree_map(torch.randn_like, state)
    assert_same_outputs(layer(x, state), plain(x, state))
    assert_same_outputs(layer(x[0]), plain(x[0]))
    lengths = [2, 3, 3, 1][: 4 if batch_first else 3]
    packed = pack_padded_sequence(x, lengths, batch_first=batch_first, enforce_sorted=False)
    got, want = layer(packed), plain(packed)
    assert_same_outputs(got[1], want[1])
    assert_same_outputs(pad_packed_sequence(got[0])[0], pad_packed_sequence(want[0])[0])
    with pytest.raises(SizeError, match="input_size=12; got shape"):
        layer(torch.randn(4, 3, 11, dtype=torch.float64))


def test_every_gate_is_a_member_and_weights_read_like_torchs():
    layer = make(weft.GRU, {"num_layers": 2})
    assert isinstance(layer.ih_l0.parametrization, Stacked)
    assert [part.shape for part in layer.hh_l1.parametrization.parts()] == [(8, 8)] * 3
    assert all(isinstance(part, Kronecker) for part in layer.hh_l1.parametrization.parts())
    assert tuple(layer.weight_ih_l0.shape) == (24, 12)
    assert_same(layer.weight_hh_l1, by_hand(layer).weight_hh_l1, 1e-12)
    layer.flatten_parameters()
    with pytest.raises(AttributeError, match="weight_hh_l2"):
        _ = layer.weight_hh_l2


def test_weights_are_built_once_per_evaluation_and_dropped_in_training(monkeypatch):
    layer, x, built = make(weft.GRU, {}), torch.randn(5, 3, 12, dtype=torch.float64), []
    dense = Stacked.dense
    monkeypatch.setattr(Stacked, "dense", lambda self: built.append(1) or dense(self))
    with torch.no_grad():
        layer.eval()
        for _ in range(3):
            layer(x)
    assert len(built) == 2
    layer.train()(x)
    assert len(built) == 4


def test_dropout_between_layers_is_torchs():
    layer = make(weft.LSTM, {"num_layers": 2, "dropout": 0.5})
    plain, x = by_hand(layer), torch.randn(5, 3, 12, dtype=torch.float64)
    torch.manual_seed(3)
    got = layer(x)
    torch.manual_seed(3)
    assert_same_outputs(got, plain(x))
    assert_same_outputs(layer.eval()(x), plain.eval()(x))


def test_initial_law_is_torchs():
    torch.manual_seed(0)
    layers = [weft.LSTM(16, 64, parametrization="kronecker", n=4) for _ in range(5)]
    for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0"):
        values = torch.cat([getattr(layer, name).flatten() for layer in layers])
        assert abs(float(values.detach().var()) * 3 * 64 - 1) < 0.08
    before = layers[0].weight_hh_l0.detach().clone()
    layers[0].reset_parameters()
    assert not torch.allclose(layers[0].weight_hh_l0, before)


def test_convert_keeps_what_the_family_cannot_take_and_says_so():
    model = nn.ModuleDict({"rnn": nn.GRU(3, 16, num_layers=2, dtype=torch.float64), "head": nn.Linear(16, 16).double()})
    model["rnn"].bias_hh_l0.requires_grad_(False)
    converted, report = weft.convert(model.eval(), "kronecker", n=4, return_report=True)
    (row, _) = report.converted
    assert row.kind == "GRU" and row.family == "kronecker" and "kept dense: n must divide" in row.note
    rnn, plain, x = converted["rnn"], model["rnn"], torch.randn(5, 2, 3, dtype=torch.float64)
    assert_same(rnn.weight_ih_l0, plain.weight_ih_l0, 0)
    assert_same(rnn.bias_ih_l1, plain.bias_ih_l1, 0)
    assert rnn.fit_error > 0.1 and not rnn.training and not rnn.bias_hh_l0.requires_grad
    assert rnn.ih_l0.parametrization.members[0].family == "dense"
    assert rnn.hh_l1.parametrization.members[2].family == "kronecker"
    assert_same_outputs(weft.fold(converted)["rnn"](x), rnn(x))
    with pytest.raises(ConversionError, match="n must divide"):
        weft.convert(nn.GRU(3, 9), "kronecker", n=4)


def test_members_are_recovered():
    plain = by_hand(make(weft.LSTM, {"num_layers": 2, "bidirectional": True}))
    converted, report = weft.convert(plain, "kronecker", n=4, return_report=True)
    x = torch.randn(5, 2, 12, dtype=torch.float64)
    assert report.converted[0].error < 1e-12 and report.converted[0].note == ""
    assert_same_outputs(converted(x), plain(x), 1e-10)


def test_checkpoint_of_the_plain_module_is_fitted():
    plain = by_hand(make(weft.GRU, {"num_layers": 2}))
    layer = make(weft.GRU, {"num_layers": 2})
    with pytest.warns(UserWarning, match="weight of a plain layer was fitted"):
        layer.load_state_dict(plain.state_dict())
    x = torch.randn(5, 2, 12, dtype=torch.float64)
    assert_same_outputs(layer(x), plain(x), 1e-10)
    again = make(weft.GRU, {"num_layers": 2})
    again.load_state_dict(layer.state_dict())
    assert_same_outputs(again(x), layer(x), 0)


def test_training_lowers_the_loss_and_reaches_every_parameter():
    torch.manual_seed(1)
    layer = make(weft.LSTM, {"num_layers": 2})
    x, target = torch.randn(6, 4, 12, dtype=torch.float64), torch.randn(6, 4, 8, dtype=torch.float64) / 2
    optimizer = torch.optim.Adam(weft.parameter_groups(layer, lr=0.02, weight_decay=0.01))
    losses = []
    for _ in range(30):
        loss = (layer(x)[0] - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert all(parameter.grad is not None for parameter in layer.parameters())


def test_parameter_groups_follow_the_family_inside_stacks():
    layer = make(weft.GRU, {})
    groups = weft.parameter_groups(layer, lr=0.1, weight_decay=0.5)
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    for name, parameter in layer.named_parameters():
        assert (id(parameter) in decayed) == name.endswith("blocks"), name


def test_summary_and_verify_count_whole_modules():
    model = nn.Sequential(make(weft.GRU, {}, dtype=torch.float64))
    x = torch.randn(5, 3, 12, dtype=torch.float64)
    (row,) = weft.summary(model, x).rows
    assert row.family == "kronecker" and row.macs == 15 * 3 * 8 * (12 + 8)
    assert row.parameters == sum(p.numel() for p in model.parameters())
    assert weft.summary(model).dense_parameters == sum(p.numel() for p in by_hand(model[0]).parameters())
    report = weft.verify(model, weft.fold(model), x)
    assert list(report.layers) == ["0"] and report.layers["0"] < 1e-12 and report.output < 1e-12


def test_bad_arguments_are_refused():
    with pytest.raises(SizeError, match="n must divide"):
        weft.GRU(12, 9, parametrization="kronecker", n=4)
    with pytest.raises(OptionError, match="did you mean 'rank'"):
        weft.GRU(12, 8, parametrization="low_rank", rnak=3)
    with pytest.raises(OptionError, match="several weights"):
        weft.LSTM(12, 8, parametrization=Kronecker((8, 12)))
    with pytest.raises(OptionError, match="no effect"):
        weft.LSTM(12, 8, parametrization=PHM.make, n=4)
    with pytest.raises(ValueError, match="proj_size"):
        weft.LSTM(12, 8, proj_size=8)
    with pytest.raises(OptionError, match=r"must be a torch.nn.GRU"):
        weft.GRU.from_dense(nn.LSTM(12, 8), "low_rank", rank=2)
