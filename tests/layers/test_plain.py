"""The ways from and to plain layers: from_dense, loading a plain checkpoint, fold."""

import copy
import warnings

import pytest
import torch
from tests.cases import CASES, LOW_RANK, PHM
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap

import weft
from weft.errors import FitError, FoldError, OptionError, SizeError
from weft.parametrizations import LowRank
from weft.testing import assert_same, kinds

KINDS = kinds()
#: Cases whose members a fit finds again.
FOUND = [case for case in CASES if "members_are_found_again" not in case.reasons]
FITTED = "of a plain layer was fitted"


def plain_member(case, kind):
    """A plain layer whose weight is a member of the family, and a Weft layer of that family with another weight."""
    return kind.layer(case).fold(), kind.layer(case)


# ---------------------------------------------------------------- from_dense


@pytest.mark.parametrize("kind", KINDS.values(), ids=repr)
@pytest.mark.parametrize("case", FOUND, ids=repr)
def test_from_dense_finds_members(case, kind):
    plain, layer = plain_member(case, kind)
    x = kind.example(case)
    got = kind.cls.from_dense(plain, layer.parametrization)
    assert got.fit_error < 1e-10
    assert_same(got(x), plain(x), 1e-9, "the output")
    assert repr(got.fold()) == repr(plain)


def test_from_dense_keeps_device_dtype_mode_bias_and_frozenness():
    plain = nn.Conv2d(8, 4, (3, 2), 2, (1, 0), groups=2, padding_mode="circular", dtype=torch.float64).eval()
    plain.weight.requires_grad_(False)
    before = copy.deepcopy(plain.state_dict())
    layer = weft.Conv2d.from_dense(plain, "low_rank", share=0.7, path="dense")
    assert not layer.training
    assert layer.path == "dense"
    assert layer.weight.dtype == torch.float64
    assert not any(p.requires_grad for p in layer.parametrization.parameters())
    assert layer.bias.requires_grad
    assert_same(layer.bias, plain.bias, 0, "bias")
    with torch.no_grad():
        layer.bias.add_(1)
    assert all(torch.equal(plain.state_dict()[name], value) for name, value in before.items())
    layer = weft.Linear.from_dense(nn.Linear(4, 4, bias=False, dtype=torch.bfloat16), "low_rank", rank=2)
    assert layer.bias is None
    assert layer.parametrization.left.dtype == torch.bfloat16
    assert layer.training


def test_from_dense_weighs_by_the_gram_matrix():
    x = torch.randn(200, 12, dtype=torch.float64) * torch.logspace(-3, 0, 12, dtype=torch.float64)
    plain = nn.Linear(12, 8, dtype=torch.float64)
    errors = []
    for gram in (None, x.T @ x):
        layer = weft.Linear.from_dense(plain, "low_rank", rank=2, gram=gram)
        errors.append(float(((layer(x) - plain(x)).norm() / (x @ plain.weight.T).norm()).detach()))
    assert layer.fit_error == pytest.approx(errors[1])
    assert errors[1] < 0.8 * errors[0]


def test_from_dense_refuses_other_modules():
    with pytest.raises(OptionError, match=r"torch\.nn\.Linear, got Conv1d"):
        weft.Linear.from_dense(nn.Conv1d(4, 4, 1), "dense")
    with pytest.raises(SizeError, match=r"\(4, 12\), got \(4, 4\)"):
        weft.Conv1d.from_dense(nn.Conv1d(4, 4, 3), LowRank((4, 4), rank=1))
    with pytest.raises(FitError, match="meta"):
        weft.Linear.from_dense(nn.Linear(4, 4, device="meta"), "low_rank", rank=1)


# ---------------------------------------------------------------- a checkpoint of the plain layer


@pytest.mark.parametrize("kind", KINDS.values(), ids=repr)
@pytest.mark.parametrize("case", FOUND, ids=repr)
def test_plain_checkpoint_is_fitted_with_a_warning(case, kind):
    plain, layer = plain_member(case, kind)
    x = kind.example(case)
    with torch.no_grad():
        layer.eval()(x)
    with pytest.warns(UserWarning, match=f"weight {FITTED} by family '{case.record.name}': relative error"):
        layer.load_state_dict(plain.state_dict(), strict=True)
    assert layer.fit_error < 1e-10
    with torch.no_grad():
        assert_same(layer(x), plain(x), 1e-9, "the output after loading")


def test_whole_model_loads_its_plain_checkpoint_and_leaves_the_dict_alone():
    weft_model = nn.Sequential(weft.PHMLinear(16, 16), nn.Sequential(nn.ReLU(), weft.LRLinear(16, 4, rank=4)))
    plain = nn.Sequential(nn.Linear(16, 16), nn.Sequential(nn.ReLU(), nn.Linear(16, 4)))
    state = plain.state_dict()
    keys = list(state)
    with pytest.warns(UserWarning, match=FITTED) as warned:
        weft_model.load_state_dict(state)
    assert [str(w.message).split(" of ")[0] for w in warned] == ["0.weight", "1.1.weight"]
    assert list(state) == keys
    assert_same(weft_model[1][1].weight, plain[1][1].weight, 1e-5, "a weight of full rank")
    assert_same(weft_model[0].bias, plain[0].bias, 0, "a bias")
    assert weft_model[0].fit_error > 0.1


def test_own_checkpoint_loads_without_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for case in CASES:
            one, two = KINDS["Conv1d"].layer(case), KINDS["Conv1d"].layer(case)
            assert str(two.load_state_dict(one.state_dict())) == "<All keys matched successfully>"
            assert_same(two.weight, one.weight, 0, "weight")


def nan_weight(plain):
    return {**plain.state_dict(), "weight": torch.full_like(plain.weight, torch.nan)}


def other_layout(plain):  # as many numbers, another shape: reshaping would hide it
    return {**plain.state_dict(), "weight": plain.weight.detach().transpose(0, -1).contiguous()}


def other_size(plain):
    return {**plain.state_dict(), "weight": plain.weight.detach()[:-1]}


@pytest.mark.parametrize("spoil", [nan_weight, other_layout, other_size])
@pytest.mark.parametrize("kind", [KINDS["Linear"], KINDS["Conv2d"], KINDS["ConvTranspose2d"]], ids=repr)
@pytest.mark.parametrize("case", [LOW_RANK, PHM], ids=repr)
def test_failing_load_changes_nothing(case, kind, spoil):
    plain, layer = plain_member(case, kind)
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(RuntimeError, match="weight of a plain layer cannot be loaded into"):
        layer.load_state_dict(spoil(plain))
    assert layer.fit_error is None
    for name, value in before.items():
        assert torch.equal(layer.state_dict()[name], value), name


def test_plain_checkpoint_on_the_meta_device_says_what_to_do():
    layer = weft.Linear(4, 4, parametrization="low_rank", rank=2, device="meta")
    with pytest.raises(RuntimeError, match="to_empty"):
        layer.load_state_dict(nn.Linear(4, 4).state_dict())


def test_incomplete_and_foreign_checkpoints_are_loud():
    layer = weft.Linear(4, 4, parametrization="low_rank", rank=2)
    with pytest.raises(RuntimeError, match=r"Missing key.*bias"), pytest.warns(UserWarning, match=FITTED):
        layer.load_state_dict({"weight": torch.randn(4, 4)})
    with pytest.raises(RuntimeError, match=r"size mismatch for parametrization.left"):
        layer.load_state_dict(weft.Linear(4, 4, parametrization="low_rank", rank=3).state_dict())
    with pytest.raises(RuntimeError, match=r"Unexpected key.*weight"):
        layer.load_state_dict({**layer.state_dict(), "weight": torch.randn(4, 4)})


# ---------------------------------------------------------------- fold


@pytest.mark.parametrize("kind", KINDS.values(), ids=repr)
@pytest.mark.parametrize("case", CASES, ids=repr)
def test_fold_is_a_plain_layer_with_its_own_numbers(case, kind):
    for bias in (True, False):
        layer, x = kind.layer(case, bias=bias).eval(), kind.example(case)
        with torch.no_grad():
            want = layer(x)
        plain = layer.fold()
        assert type(plain) is kind.cls.torch_class
        assert not plain.training
        assert layer.train().fold().training
        assert set(plain.state_dict()) == ({"weight", "bias"} if bias else {"weight"})
        assert plain.weight.is_contiguous()
        assert plain.weight.requires_grad
        assert_same(plain(x), want, 1e-11, "the folded output")
        with torch.no_grad():
            for parameter in plain.parameters():
                parameter.zero_()
            assert_same(layer.eval()(x), want, 0, "the output after the folded layer was changed")


def test_fold_keeps_frozenness():
    layer = weft.PHMLinear(8, 8)
    layer.parametrization.requires_grad_(False)
    assert not layer.fold().weight.requires_grad
    assert layer.fold().bias.requires_grad
    layer.parametrization.blocks.requires_grad_()
    layer.bias.requires_grad_(False)
    assert layer.fold().weight.requires_grad
    assert not layer.fold().bias.requires_grad


def test_fold_in_inference_mode_can_be_trained():
    layer, x = weft.PHMLinear(8, 8), torch.randn(2, 8)
    with torch.inference_mode():
        plain = layer.fold()
    plain(x).sum().backward()
    assert plain.weight.grad is not None


def test_fold_under_autocast_keeps_the_dtype():
    layer = weft.PHMLinear(8, 8).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same(layer.fold().weight, layer.fold().weight, 0, "the folded weight")
        got = layer.fold().weight
    assert got.dtype == torch.float32
    assert_same(got, layer.fold().weight, 1e-6, "the folded weight under autocast")


@pytest.mark.parametrize("kind", [KINDS["Linear"], KINDS["ConvTranspose1d"]], ids=repr)
def test_fold_inside_a_transform_is_refused(kind):
    layers, x = [kind.layer(PHM) for _ in range(2)], kind.example(PHM)

    def folded(parameters, buffers):
        layers[0].fold()
        return functional_call(layers[0], (parameters, buffers), (x,))

    with pytest.raises(FoldError, match="before the transform"):
        vmap(folded)(*stack_module_state(layers))
    with pytest.raises(FoldError, match="before the transform"):
        grad(lambda x: layers[0].fold()(x).sum())(x)


@pytest.mark.parametrize(
    "plain", [nn.Linear(8, 8), nn.Conv2d(8, 8, 1), nn.ConvTranspose1d(8, 8, 1), nn.Embedding(8, 8)]
)
def test_arguments_have_torchs_names(plain):
    x = {nn.Conv2d: torch.randn(2, 8, 1, 1), nn.ConvTranspose1d: torch.randn(2, 8, 1), nn.Embedding: torch.arange(8)}
    x = x.get(type(plain), torch.randn(2, 8))
    layer = weft.convert(plain, "dense")
    torch.testing.assert_close(layer(input=x), plain(input=x))


def test_over_parametrised_layers_take_torchs_names_too():
    x = torch.randn(2, 8)
    layer = weft.EPLinear(8, 8)
    torch.testing.assert_close(layer(input=x), layer(x))


@pytest.mark.parametrize("family", ["low_rank", "monarch", "hedlr", "psm", "kronecker"])
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_assigned_checkpoints_of_plain_layers_bring_device_and_dtype(family, device, dtype):
    size = {"algebra": "quaternion"} if family == "kronecker" else {"share": 0.9}
    layer = weft.Linear(8, 8, parametrization=family, **size, device=device)
    plain = nn.Linear(8, 8, dtype=dtype)
    with pytest.warns(UserWarning, match="was fitted"):
        layer.load_state_dict(plain.state_dict(), assign=True)
    x = torch.randn(2, 8, dtype=dtype)
    assert {p.dtype for p in layer.parameters()} == {dtype} and layer.explain(x).path
    assert {t.device.type for t in (*layer.parameters(), *layer.buffers())} == {"cpu"}
    assert {t.dtype for t in layer.buffers() if t.is_floating_point()} <= {dtype}
    weight = layer.weight.detach().double()
    error = float((weight - plain.weight.detach()).norm() / plain.weight.detach().double().norm())
    assert error == pytest.approx(layer.fit_error, rel=0.02) and error < 1
    assert layer(x).dtype == dtype


def test_assigned_checkpoints_that_do_not_fit_change_nothing():
    layer = weft.Linear(8, 8, parametrization="low_rank", rank=2, device="meta")
    with pytest.raises(RuntimeError, match="must have the shape"):
        layer.load_state_dict(nn.Linear(6, 8).state_dict(), assign=True)
    assert layer.parametrization.left.is_meta
