"""convert: what it replaces, what it keeps, what it refuses."""

import types

import pytest
import torch
from torch import nn

import weft
from weft.errors import ConversionError, OptionError, UnknownNameError


class Net(nn.Module):
    """What convert must get right: a tie, a norm, odd channel counts, a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.body = nn.Conv2d(8, 8, 3, padding="same", padding_mode="circular", bias=False)
        self.again = self.body
        self.norm = nn.BatchNorm2d(8)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.head = nn.Linear(4, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.again(torch.relu(self.body(torch.relu(self.stem(x)))))
        return self.head(self.up(self.norm(x)).mean((2, 3)))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().double()


def test_members_are_recovered_and_the_function_kept(net: Net) -> None:
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    with torch.no_grad():  # make the weights members of the family, so that nothing may be lost
        for layer in (net.body, net.up, net.head):
            member = {nn.Conv2d: weft.PHConv2d, nn.ConvTranspose2d: weft.PHConvTranspose2d, nn.Linear: weft.PHMLinear}[
                type(layer)
            ]
            layer.weight.copy_(member.from_dense(layer, n=4).weight)
    converted, report = weft.convert(net, "kronecker", n=4, return_report=True)
    assert [row.name for row in report.converted] == ["body", "up", "head"]
    assert all(row.error < 1e-12 for row in report.converted)
    torch.testing.assert_close(converted(x), net(x), rtol=1e-10, atol=1e-10)


def test_argument_is_left_alone_and_ties_stay(net: Net) -> None:
    before = {name: value.clone() for name, value in net.state_dict().items()}
    converted = weft.convert(net, "low_rank", share=0.5)
    assert converted.body is converted.again and isinstance(converted.body, weft.Conv2d)
    assert type(net.body) is nn.Conv2d and net.body is net.again
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    with torch.no_grad():
        next(converted.head.parametrization.parameters()).add_(1)
        converted.norm.weight.add_(1)
    assert torch.equal(before["norm.weight"], net.norm.weight)


def test_geometry_mode_dtype_bias_and_freezing_are_kept(net: Net) -> None:
    net.eval()
    net.head.weight.requires_grad_(False)
    converted = weft.convert(net, "low_rank", share=0.5)
    assert (
        converted.body.padding_mode == "circular" and converted.body.padding == "same" and converted.body.bias is None
    )
    assert converted.up.stride == (2, 2) and not converted.training and not converted.up.training
    assert all(p.dtype == torch.float64 for p in converted.parameters())
    assert not any(p.requires_grad for p in converted.head.parametrization.parameters())
    assert converted.head.bias.requires_grad and torch.equal(converted.head.bias, net.head.bias)


def test_skipped_layers_are_named_with_the_reason(net: Net) -> None:
    _, report = weft.convert(net, "kronecker", n=4, where=lambda name, m: name != "head", return_report=True)
    assert "does not divide 3" in report.skipped["stem"] and "said no" in report.skipped["head"]
    assert "stem" in str(report) and "body" in str(report)


def test_shared_weights_subclasses_and_reparametrised_layers_are_left() -> None:
    class Special(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 2

    model = nn.ModuleDict(
        {
            "embedding": nn.Embedding(6, 8),
            "tied": nn.Linear(8, 6, bias=False),
            "special": Special(8, 8),
            "normed": nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)),
            "plain": nn.Linear(8, 8),
            "done": weft.Linear(8, 8),
        }
    )
    model["tied"].weight = model["embedding"].weight
    converted, report = weft.convert(model, "low_rank", rank=2, return_report=True)
    assert [row.name for row in report.converted] == ["plain"]
    assert "shared" in report.skipped["tied"] and "subclass" in report.skipped["special"]
    assert "subclass" in report.skipped["normed"] or "re-parametrised" in report.skipped["normed"]
    assert "already" in report.skipped["done"]
    assert converted["tied"].weight is converted["embedding"].weight


def test_root_layer_hooks_and_attention() -> None:
    calls = []
    layer = nn.Linear(8, 8)
    layer.register_forward_hook(lambda *_: calls.append(1))
    converted = weft.convert(layer, "low_rank", rank=3)
    assert isinstance(converted, weft.Linear)
    converted(torch.randn(2, 8))
    assert calls == [1]
    only_output = {"where": lambda name, module: name == "out_proj"}
    attention, report = weft.convert(nn.MultiheadAttention(8, 2), "low_rank", rank=3, return_report=True, **only_output)
    assert "may read .weight" in report.converted[0].note and "said no" in report.skipped[""]
    x = torch.randn(5, 2, 8)
    torch.testing.assert_close(attention(x, x, x)[0], weft.fold(attention)(x, x, x)[0])


def test_nothing_to_convert_is_refused(net: Net) -> None:
    with pytest.raises(ConversionError, match="no layers"):
        weft.convert(nn.ReLU(), "low_rank", share=0.5)
    with pytest.raises(ConversionError, match="stem: where"):
        weft.convert(net, "low_rank", share=0.5, where=lambda name, m: False)
    with pytest.raises(ConversionError, match="sized by n"):
        weft.convert(net, "kronecker", share=0.5)
    with pytest.raises(ConversionError, match="meta device"):
        weft.convert(nn.Linear(8, 8, device="meta"), "low_rank", rank=2)


def test_bad_names_are_refused_before_any_work(net: Net) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'low_rank'"):
        weft.convert(net, "lowrank", share=0.5)
    with pytest.raises(OptionError, match="did you mean 'rank'"):
        weft.convert(net, "low_rank", rnak=5)


def test_a_forward_of_its_own_is_not_replaced():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[0].forward = types.MethodType(lambda self, x: 2 * nn.Linear.forward(self, x), model[0])
    converted, report = weft.convert(model, "low_rank", rank=8, return_report=True)
    assert "forward of its own" in report.skipped["0"]
    x = torch.randn(2, 8)
    torch.testing.assert_close(converted(x), model(x))
    with pytest.raises(ConversionError, match="forward of its own"):
        weft.overparameterize(model[0])


def test_a_shared_bias_is_not_untied() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    model[0].bias = model[1].bias
    converted, report = weft.convert(model, "low_rank", rank=2, return_report=True)
    assert "its bias is shared by several modules (0, 1)" in report.skipped["0"] and len(report.skipped) == 2
    assert converted[0].bias is converted[1].bias
