"""``layer.weight`` is computed and read-only; attempts to write it are loud; arguments of layers are checked."""

import pytest
import torch
from tests.cases import CASES, PHM
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

import weft
from weft.errors import BudgetError, OptionError, SizeError, UnknownNameError
from weft.parametrizations import LowRank
from weft.testing import assert_same, kinds

KINDS = kinds()


def layer(**options):
    return weft.Linear(8, 8, **{"parametrization": "kronecker", "n": 4, "dtype": torch.float64, **options})


@pytest.mark.parametrize("kind", KINDS.values(), ids=repr)
@pytest.mark.parametrize("case", CASES, ids=repr)
def test_weight_is_the_matrix_in_torchs_layout_and_carries_gradients(case, kind):
    built = kind.layer(case)
    plain = built.fold()
    assert_same(built.weight, plain.weight, 0, "weight in training")
    assert_same(built.eval().weight, plain.weight, 0, "weight in evaluation")
    with torch.no_grad():
        assert_same(built.weight, plain.weight, 0, "weight without gradients")
        assert_same(built._to_weight(built._to_matrix(built.weight)), plain.weight, 0, "weight there and back")
    slopes = torch.autograd.grad(built.train().weight.square().sum(), list(built.parametrization.parameters()))
    assert all(float(slope.abs().max()) > 0 for slope in slopes)


@pytest.mark.parametrize("value", [torch.zeros(8, 8), nn.Parameter(torch.zeros(8, 8)), None])
def test_assigning_and_deleting_raise_with_the_remedy(value):
    built = layer()
    with pytest.raises(AttributeError, match=r"fit_\(matrix\).*reset_parameters.*fold"):
        built.weight = value
    with pytest.raises(AttributeError, match=r"fit_\(matrix\).*reset_parameters.*fold"):
        del built.weight
    with pytest.raises(KeyError, match="weight"):
        built.register_parameter("weight", nn.Parameter(torch.zeros(8, 8)))


@pytest.mark.parametrize(
    "rewrite",
    [
        lambda m: parametrize.register_parametrization(m, "weight", nn.Identity()),
        parametrizations.spectral_norm,
        parametrizations.weight_norm,
        parametrizations.orthogonal,
        spectral_norm,
        lambda m: prune.l1_unstructured(m, "weight", 0.5),
    ],
)
def test_tools_that_rewrite_the_weight_are_loud_and_change_nothing(rewrite):
    built, x = layer(), torch.randn(3, 8, dtype=torch.float64)
    want = built(x)
    with pytest.raises((AttributeError, ValueError, KeyError, TypeError)):
        rewrite(built)
    assert_same(built(x), want, 0, "the output afterwards")


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_old_weight_norm_is_loud():
    with pytest.raises((AttributeError, ValueError, KeyError)):
        weight_norm(layer())


def test_tying_is_loud():
    plain = nn.Linear(8, 8)
    with pytest.raises(AttributeError, match=r"read-only|cannot be assigned"):
        layer().weight = plain.weight


def test_attribute_error_inside_dense_is_not_mistaken_for_a_missing_weight(monkeypatch):
    built = layer()
    monkeypatch.setattr(built.parametrization, "dense", lambda: built.parametrization.gone, raising=False)
    with pytest.raises(RuntimeError, match=r"Kronecker.dense\(\) failed: .*gone"):
        _ = built.weight


def test_weight_in_evaluation_is_detached_and_cannot_be_trained_by_accident():
    built = layer().eval()
    with torch.no_grad():
        first, second = built.weight, built.weight
    assert not first.requires_grad
    assert first is not second
    assert first.data_ptr() == second.data_ptr()  # one build for both
    assert built.weight.requires_grad  # with gradients on, it is part of the graph


def test_reset_parameters_draws_weight_and_bias_anew():
    for case in CASES:
        built, x = KINDS["Linear"].layer(case), KINDS["Linear"].example(case)
        weight, bias = built.weight.detach().clone(), built.bias.detach().clone()
        with torch.no_grad():
            built.eval()(x)
            built.reset_parameters()
            assert not torch.allclose(built.weight, weight)
            assert not torch.allclose(built.bias, bias)
            assert_same(built(x), built.fold()(x), 1e-12, "the output after a reset in evaluation")
        torch.manual_seed(5)
        built.reset_parameters()
        first = built.weight.detach().clone()
        torch.manual_seed(5)
        built.reset_parameters()
        assert_same(built.weight, first, 0, "the weight after the same seed")


def test_reset_forgets_the_fit_error():
    built = weft.Linear.from_dense(nn.Linear(8, 8), "low_rank", rank=2)
    assert built.fit_error > 0
    built.reset_parameters()
    assert built.fit_error is None


def test_a_member_may_be_given_in_place_of_a_name():
    member = LowRank((4, 12), rank=2, positions=2)
    built = weft.Conv1d(6, 4, 2, parametrization=member)
    assert built.parametrization is member
    with pytest.raises(SizeError, match=r"shape \(4, 12\), got \(4, 8\)"):
        weft.Conv1d(6, 4, 2, parametrization=LowRank((4, 8), rank=2))
    with pytest.raises(OptionError, match=r"already built.*rank"):
        weft.Conv1d(6, 4, 2, parametrization=member, rank=3)
    with pytest.raises(OptionError, match=r"already built.*init"):
        weft.Conv1d(6, 4, 2, parametrization=member, init="he")


def test_two_layers_may_share_a_member():
    member = LowRank((8, 8), rank=3)
    model = nn.Sequential(weft.Linear(8, 8, parametrization=member), weft.Linear(8, 8, parametrization=member))
    assert sum(p.numel() for p in model.parameters()) == 2 * 8 + 48
    model.eval()
    x = torch.randn(2, 8)
    with torch.no_grad():
        before = model(x)
        member.left.mul_(2)
        assert not torch.allclose(model(x), before)
        assert_same(model(x), nn.Sequential(*[m.fold() for m in model])(x), 1e-6, "the output")


@pytest.mark.parametrize(
    ("error", "match", "build"),
    [
        (SizeError, "at least 1, got 0 and 4", lambda: weft.Linear(0, 4)),
        (SizeError, "at least 1, got 4 and -1", lambda: weft.Linear(4, -1)),
        (SizeError, "Conv2d: in_channels must be divisible by groups", lambda: weft.Conv2d(6, 4, 3, groups=4)),
        (SizeError, "ConvTranspose1d: out_channels", lambda: weft.ConvTranspose1d(8, 6, 3, groups=4)),
        (SizeError, "Conv1d: .*padding='same'", lambda: weft.Conv1d(4, 4, 3, stride=2, padding="same")),
        (SizeError, "Conv1d: .*padding_mode", lambda: weft.Conv1d(4, 4, 3, padding_mode="mirror")),
        (SizeError, 'Only "zeros"|zeros', lambda: weft.ConvTranspose2d(4, 4, 3, padding_mode="reflect")),
        (SizeError, "at least 1", lambda: weft.Conv2d(4, 0, 3)),
        (UnknownNameError, "did you mean 'kronecker'", lambda: weft.Linear(4, 4, parametrization="kroneker")),
        (UnknownNameError, "did you mean 'quaternion'", lambda: layer(n=None, algebra="quaternions")),
        (
            OptionError,
            "no option 'rnak'.*did you mean 'rank'",
            lambda: weft.Linear(4, 4, parametrization="low_rank", rnak=1),
        ),
        (OptionError, "needs a size", lambda: weft.Linear(4, 4, parametrization="low_rank")),
        (OptionError, "not both", lambda: weft.Linear(40, 40, parametrization="low_rank", rank=1, share=0.5)),
        (OptionError, r"1\.\.4.*got 5", lambda: weft.Linear(4, 4, parametrization="low_rank", rank=5)),
        (OptionError, "sized by n.*n=2 is the smallest", lambda: layer(n=None, share=0.7)),
        (OptionError, "at least 1.*got 0", lambda: layer(n=0)),
        (OptionError, "got 2", lambda: layer(n=2, algebra="quaternion")),
        (OptionError, "variance", lambda: layer(variance=0.1)),
        (OptionError, "positions", lambda: layer(positions=2)),
        (
            BudgetError,
            "smallest share that works is 0.5",
            lambda: weft.Linear(4, 4, parametrization="low_rank", share=0.4),
        ),
        (BudgetError, r"\(0, 1\]", lambda: weft.Linear(4, 4, parametrization="low_rank", share=2)),
        (SizeError, "4 does not divide 10.*8 or 12.*2, 5", lambda: weft.PHMLinear(8, 10)),
        (
            SizeError,
            r"in_channels.*4 does not divide 6; .*4 or 8",
            lambda: weft.PHConv2d(6, 8, 2),
        ),  # 6*2*2 would divide
        (SizeError, r"4 does not divide 2; .*: 4; ", lambda: weft.PHConv2d(8, 8, 2, groups=4)),
    ],
)
def test_bad_arguments_are_refused_by_name(error, match, build):
    with pytest.raises(error, match=match):
        build()


def test_none_options_are_as_if_not_given():
    assert weft.Linear(8, 8, parametrization="low_rank", rank=2, share=None).parametrization.rank == 2


def test_state_dict_has_the_documented_keys_only():
    keys = {
        "dense": {"weight"},
        "low_rank": {"left", "right"},
        "kronecker": {"mixing", "blocks"},
        "kronecker_rank5": {"block_mix", "output_mix", "input_mix", "blocks"},
        "quaternion_rotation": {"quaternions", "scale"},
        "sss": {"diagonal", *(f"{way}_{part}" for way in ("lower", "upper") for part in ("input", "output", "state"))},
        "hodlr": {"left", "right", "sources"},
        "ldr": {"row_operator", "column_operator", "left", "right"},
        "hedlr": {"values", "ranks"},
        "hmat": {"values", "ranks"},
        "monarch": {"left", "right"},
        "butterfly": {"factors"},
        "chain": {"first", "inner", "last"},
        "toeplitz_like": {"left", "right"},
        "psm": {"values", "row_index", "column_index", "starts"},
    }
    for case in CASES:
        for kind in KINDS.values():
            built = kind.layer(case).eval()
            with torch.no_grad():
                built(kind.example(case))
            names = {f"parametrization.{name}" for name in keys.get(case.name, keys[case.record.name])}
            assert set(built.state_dict()) == names | {"bias"}
            assert set(kind.layer(case, bias=False).state_dict()) == names


def test_device_and_dtype_reach_weight_and_bias():
    built = weft.PHConv2d(8, 8, 3, n=2, device="meta", dtype=torch.float16)
    assert built.weight.is_meta
    assert built.bias.is_meta
    assert built.bias.dtype == built.weight.dtype == torch.float16


def test_every_error_is_a_value_error():
    for error in (SizeError, BudgetError, OptionError, UnknownNameError):
        assert issubclass(error, weft.WeftError)
        assert issubclass(error, ValueError)


def test_options_of_the_case_reach_the_member():
    assert PHM.member().n == 4
    assert layer(n=2).parametrization.n == 2
    assert layer(n=None, algebra="complex").parametrization.algebra == "complex"
