"""fold and verify: only torch.nn left, the same function, and a loud end when it is not."""

import copy

import pytest
import torch
from torch import nn

import weft
from weft.errors import FoldError, WeftError


def model() -> nn.Sequential:
    torch.manual_seed(0)
    shared = weft.PHMLinear(8, 8)
    return nn.Sequential(
        weft.Conv2d(4, 8, 3, parametrization="low_rank", rank=2),
        nn.BatchNorm2d(8),
        nn.Dropout(0.5),
        nn.Flatten(),
        weft.Linear(8 * 16, 8, parametrization="kronecker", n=2),
        shared,
        nn.ReLU(),
        shared,
    )


X = torch.randn(3, 4, 6, 6, generator=torch.Generator().manual_seed(1))


def test_only_torch_is_left_and_the_function_is_the_same() -> None:
    net = model().eval()
    plain = weft.fold(net, check=X)
    assert all(type(module).__module__.startswith("torch.nn") for module in plain.modules())
    assert plain[5] is plain[7]
    torch.testing.assert_close(plain(X), net(X))
    assert isinstance(net[0], weft.Conv2d)


def test_folded_model_shares_nothing() -> None:
    net = model()
    plain = weft.fold(net)
    before = copy.deepcopy(net.state_dict())
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.add_(1)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


@pytest.mark.parametrize("mode", [True, False])
def test_modes_are_as_before_and_statistics_untouched(mode: bool) -> None:
    net = model().train(mode)
    mean = net[1].running_mean.clone()
    plain = weft.fold(net, check=X)
    assert all(module.training == mode for module in net.modules())
    assert all(module.training == mode for module in plain.modules())
    assert torch.equal(net[1].running_mean, mean)


def test_moved_output_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    net = model()
    right = weft.Linear.fold

    def wrong(self: weft.Linear) -> nn.Module:
        plain = right(self)
        with torch.no_grad():
            plain.weight[0, 0] += 0.1
        return plain

    monkeypatch.setattr(weft.Linear, "fold", wrong)
    with pytest.raises(FoldError, match="moved the output by"):
        weft.fold(net, check=X)
    report = weft.verify(net, weft.fold(net), X)
    assert report.layers["0"] < 1e-6 and report.layers["4"] > 1e-4 and report.output > 1e-4
    assert "output" in str(report)


def test_values_that_are_not_finite_raise() -> None:
    net = model()
    with torch.no_grad():
        net[4].bias[0] = float("nan")
    with pytest.raises(FoldError):
        weft.fold(net, check=X)


def test_examples_may_be_tuples_and_dicts() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = weft.PHMLinear(8, 8)

        def forward(self, a: torch.Tensor, b: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"sum": self.layer(a) + b}

    a, b = torch.randn(2, 8), torch.randn(2, 8)
    assert type(weft.fold(Two(), check=(a, b)).layer) is nn.Linear
    assert type(weft.fold(Two(), check={"b": b, "a": a}).layer) is nn.Linear


def test_folding_inside_vmap_is_refused() -> None:
    layer = weft.PHMLinear(8, 8)

    def inside(x: torch.Tensor) -> torch.Tensor:
        return layer.fold()(x)

    with pytest.raises(FoldError, match="before the transform"):
        torch.func.vmap(inside)(torch.randn(3, 8))


def test_verify_names_layers_without_a_partner() -> None:
    with pytest.raises(WeftError, match="missing"):
        weft.verify(model(), nn.Sequential(nn.ReLU()), X)


def test_verify_marks_layers_that_were_not_called() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = weft.PHMLinear(8, 8), weft.PHMLinear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x)

    both = Net()
    assert weft.verify(both, weft.fold(both), torch.randn(2, 8)).layers["idle"] is None


def test_hooks_are_kept() -> None:
    calls = []
    unfolded = model()
    unfolded[0].register_forward_hook(lambda *_: calls.append("after"))
    unfolded[4].register_forward_pre_hook(lambda *_, **__: calls.append("before"), with_kwargs=True)
    plain = weft.fold(unfolded)
    plain(X)
    assert calls == ["after", "before"]


def test_layers_that_share_a_parametrization_share_the_weight_afterwards() -> None:
    table = weft.Embedding(12, 8, parametrization="low_rank", rank=2)
    head = weft.Linear(8, 12, parametrization=table.parametrization)
    padded = weft.Embedding(12, 8, 3, parametrization=table.parametrization)
    other = weft.Linear(8, 12, parametrization="low_rank", rank=2)
    other.bias = head.bias
    plain = weft.fold(nn.ModuleList([table, head, padded, other]))
    assert plain[0].weight is plain[1].weight and plain[1].bias is plain[3].bias
    assert plain[2].weight is not plain[0].weight and plain[3].weight is not plain[1].weight
    for new, old in zip(plain, (table, head, padded, other), strict=True):
        torch.testing.assert_close(new.weight, old.weight)


def test_recurrent_layers_that_share_weights_share_them_afterwards() -> None:
    first, second = (weft.GRU(8, 8, parametrization="low_rank", rank=2) for _ in range(2))
    second.hh_l0.parametrization = first.hh_l0.parametrization
    plain = weft.fold(nn.ModuleList([first, second]), check=None)
    assert plain[0].weight_hh_l0 is plain[1].weight_hh_l0 and plain[0].weight_ih_l0 is not plain[1].weight_ih_l0
    x = torch.randn(4, 2, 8)
    torch.testing.assert_close(plain[1](x)[0], second(x)[0])
