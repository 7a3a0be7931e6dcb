"""overparameterize keeps shapes and, with factored weights, the function; fold is the way back."""

import itertools

import pytest
import torch
from torch import nn

import weft
from weft.errors import ConversionError, OptionError
from weft.overparam.factor import balanced_factors
from weft.testing import assert_same


class Depthwise(nn.Module):
    """Depthwise-separable blocks, a rectangular, a dilated, a circular and a transposed convolution, and a head."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.ReLU6(), nn.Conv2d(8, 16, 1), nn.ReLU6(),
            nn.Conv2d(16, 32, (5, 3), (2, 1), "valid", dilation=(1, 2), groups=16), nn.Hardswish(),
            nn.Conv2d(32, 6, (1, 7), padding=(0, 3), padding_mode="circular"), nn.ReLU(),
            nn.Conv2d(6, 6, (3, 5), padding="same", groups=2), nn.ReLU(),
            nn.ConvTranspose2d(6, 4, 2, 2),
        )  # fmt: skip
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))


def shapes(model, x):
    seen = {}
    for name, module in model.named_modules():
        module.register_forward_hook(lambda _m, _i, y, name=name: seen.__setitem__(name, tuple(y.shape)))
    model(x)
    return seen


@pytest.mark.parametrize(("depth", "width"), [(1, 1), (2, 1), (3, 2)])
@pytest.mark.parametrize("make", [lambda: weft.models.CifarResNet(20, widths=(4, 8, 8)), Depthwise])
def test_shapes_and_function_are_kept(make, depth, width):
    model = make().double().eval()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    deep, report = weft.overparameterize(model, depth, width, return_report=True)
    want = model(x)
    assert_same(deep(x), want, 1e-10, "the output")
    assert all(row.error < 1e-12 for row in report.converted)
    assert {name: shape for name, shape in shapes(deep, x).items() if name in shapes(model, x)} == shapes(model, x)
    replaced = [m for m in model.modules() if type(m) in (nn.Conv2d, nn.Linear)]
    assert len(report.converted) == len(replaced) > 5
    assert sum(isinstance(m, weft.overparam.EPLayer) for m in deep.modules()) == len(replaced)
    plain = weft.fold(deep, check=x, rtol=1e-10)
    assert [type(m) for m in plain.modules()] == [type(m) for m in model.modules()]
    for (name, got), expected in zip(plain.named_parameters(), model.parameters(), strict=True):
        assert_same(got, expected, 1e-12, name)


def test_single_precision_keeps_the_function_too():
    model = weft.models.CifarResNet(20, widths=(4, 8, 8)).eval()
    x = torch.randn(2, 3, 32, 32)
    assert_same(weft.overparameterize(model, 4)(x), model(x), 1e-4, "the output")


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("hidden", [8, 12])
def test_factors_are_balanced_and_compose(groups, hidden):
    kernel = torch.randn(8, 8 // groups, 3, 2, dtype=torch.float64)
    first, *middle, last = balanced_factors(kernel, 4, hidden, groups)
    x = torch.randn(2, 8, 6, 6, dtype=torch.float64)
    y = nn.functional.conv2d(x, first, groups=groups)
    for factor in (*middle, last):
        y = nn.functional.conv2d(y, factor, groups=groups)
    assert_same(y, nn.functional.conv2d(x, kernel, groups=groups), 1e-12, "the composition")
    if hidden == 8:
        blocks = [f.reshape(groups, 8 // groups, -1) for f in (first, *middle, last)]
        for before, after in itertools.pairwise(blocks):
            assert_same(before @ before.mT, after.mT @ after, 1e-10, "the Gram matrix")


def test_skip_from_start_to_end_is_compensated():
    model = nn.Sequential(nn.Conv2d(4, 4, (2, 3), padding="valid", groups=2), nn.Conv2d(4, 4, 1)).double()
    x = torch.randn(2, 4, 7, 7, dtype=torch.float64)
    deep = weft.overparameterize(model, 3, 2, residual=True, residual_intervals=-1)
    assert deep[0].residual
    assert_same(deep(x), model(x), 1e-12, "the output")


def test_other_skips_and_norms_need_new_weights():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 5))
    for options in (
        {"batch_norm": True},
        {"batch_norm": "output"},
        {"residual": True, "residual_intervals": 1},
        {"residual": True, "residual_mode": "learn"},
    ):
        with pytest.raises(ConversionError, match="keep_function=False"):
            weft.overparameterize(model, 2, **options)
    deep, report = weft.overparameterize(
        model, 2, keep_function=False, residual=True, batch_norm=True, return_report=True
    )
    assert type(deep[0]) is weft.EPLinear and deep[0].batch_norm
    assert report.converted[0].error is None
    assert "adds 4 channels to 5" in report.skipped["1"] and type(deep[1]) is nn.Linear
    assert not torch.allclose(deep[0].weight, model[0].weight)


def test_reasons_are_reported():
    class Mine(nn.Linear):
        pass

    tied = nn.Linear(4, 4)
    model = nn.ModuleDict(
        {
            "mine": Mine(4, 4), "up": nn.ConvTranspose1d(4, 4, 2), "attention": nn.MultiheadAttention(4, 2),
            "conv": nn.Conv1d(4, 4, 2), "ours": weft.EPLinear(4, 4), "fine": nn.Linear(4, 8), "no": nn.Linear(4, 4),
            "narrow": nn.Linear(4, 3), "a": tied, "b": tied, "depthwise": nn.Conv1d(4, 4, 3, groups=4),
        }
    )  # fmt: skip
    where = lambda name, module: name != "no"
    deep, report = weft.overparameterize(model, which="linear", where=where, return_report=True)
    assert {row.name for row in report.converted} == {"fine", "narrow", "a"}
    assert deep["a"] is deep["b"] and type(model["fine"]) is nn.Linear
    for name, words in {
        "mine": "subclass", "up": "no over-parametrised form", "attention": "no over-parametrised form",
        "conv": "which='linear'", "ours": "already", "no": "said no",
    }.items():  # fmt: skip
        assert words in report.skipped[name], name
    assert not any(name.startswith(("ours.", "attention.")) for name in report.skipped)
    _, report = weft.overparameterize(model, width=0.5, which="all", return_report=True)
    assert "rank" in report.skipped["narrow"] and "multiple of groups=4" in report.skipped["depthwise"]
    assert {row.name for row in report.converted} == {"fine"}


def test_mode_device_dtype_hooks_and_frozen_weights_are_kept():
    model, calls = nn.Linear(4, 4, dtype=torch.float64).eval().requires_grad_(False), []
    model.register_forward_hook(lambda *_: calls.append(1))
    deep = weft.overparameterize(model)
    assert isinstance(deep, weft.EPLinear) and not deep.training and deep.weight.dtype == torch.float64
    assert not any(p.requires_grad for p in deep.parameters())
    deep(torch.randn(1, 4, dtype=torch.float64))
    assert calls == [1]


def test_bad_arguments():
    with pytest.raises(OptionError, match="did you mean 'linear'"):
        weft.overparameterize(nn.Linear(2, 2), which="liner")
    with pytest.raises(OptionError, match="did you mean 'residual'"):
        weft.overparameterize(nn.Linear(2, 2), residul=True)
    with pytest.raises(ConversionError, match="no layers"):
        weft.overparameterize(nn.ReLU())
    with pytest.raises(OptionError, match=r"must be a torch\.nn\.Linear"):
        weft.EPLinear.from_dense(nn.Conv1d(2, 2, 1))


@pytest.mark.parametrize("trained", ["weight", "bias"])
def test_what_was_frozen_stays_so_and_folds_so(trained):
    plain = nn.Conv2d(3, 4, 3)
    for name, parameter in plain.named_parameters():
        parameter.requires_grad_(name == trained)
    deep = weft.overparameterize(plain, depth=3)
    assert all(p.requires_grad == name.endswith(trained) for name, p in deep.named_parameters())
    assert {name: p.requires_grad for name, p in weft.fold(deep).named_parameters()} == {
        "weight": trained == "weight",
        "bias": trained == "bias",
    }


def test_layers_without_values_are_drawn_anew_where_none_are_asked_for():
    with torch.device("meta"):
        plain = nn.Sequential(nn.Linear(4, 6), nn.Conv1d(6, 6, 3))
    deep = weft.overparameterize(plain, depth=3, keep_function=False)
    assert all(p.is_meta for p in deep.parameters()) and len(deep[1].layers) == 3
    with pytest.raises(ConversionError, match="no values to fit"):
        weft.overparameterize(plain)
