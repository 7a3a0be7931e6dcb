"""Nothing stale, nothing hidden: modes, states, copies, and the reports of whole models."""

import copy
import pickle

import pytest
import torch
from tests.overparam.helpers import oracle, with_random_norms
from torch import nn

import weft
from weft.errors import FoldError
from weft.testing import assert_same

MAKERS = {
    "linear": lambda: weft.EPLinear(5, 5, depth=3, residual=True, residual_intervals=-1, batch_norm=True),
    "conv": lambda: weft.EPConv2d(3, 4, [3, 1], 1, residual=True, residual_mode="learn", batch_norm=True),
    "output": lambda: weft.EPConv2d(3, 4, [3, 1], 1, batch_norm="output"),
    "plain": lambda: weft.EPLinear(5, 4, 2, 3),
}


@pytest.fixture(params=MAKERS)
def layer(request):
    return with_random_norms(MAKERS[request.param]().double()).eval()


@pytest.fixture
def x(layer):
    return (
        torch.randn(6, 5, dtype=torch.float64) if isinstance(layer, weft.EPLinear) else torch.randn(2, 3, 5, 6).double()
    )


def run(layer, x):
    with torch.no_grad():
        return layer(x)


def test_eps_of_a_norm_is_seen(layer, x):
    if not layer.batch_norm:
        assert not layer._all_norms()
        return
    before = run(layer, x)
    for norm in layer._all_norms():
        norm.eps = 0.5
    after = run(layer, x)
    assert not torch.allclose(after, before)
    with torch.no_grad():
        assert_same(layer(x, expanded=True), after, 1e-10, "the output with another eps")


def fill(layer, x):
    y = run(layer, x)
    assert layer._cache.entry is not None
    assert run(layer, x).equal(y)
    return y


def assert_fresh(layer, x, before):
    for _ in range(2):
        got = run(layer, x)
        assert_same(got, oracle(layer, x), 1e-10, "the output")
    assert not torch.allclose(got, before), "nothing changed, so this shows nothing"
    assert_same(layer.weight, layer.fold().weight, 1e-12, "the weight")


def test_eval_and_train_return_the_layer(layer):
    assert layer.eval() is layer
    assert layer.train() is layer


def test_state_holds_the_sublayers_only(layer, x):
    keys = set(layer.state_dict())
    fill(layer, x)
    assert set(layer.state_dict()) == keys
    assert {key.split(".")[0] for key in keys} <= {"layers", "norms", "norm", "skips"}
    assert {name for name, _ in layer.named_parameters()} | {name for name, _ in layer.named_buffers()} == keys


def test_load_state_dict_in_evaluation(layer, x):
    other = copy.deepcopy(layer)
    other.reset_parameters()
    with_random_norms(other)
    for assign in (False, True):
        before = fill(layer, x)
        layer.load_state_dict({name: value * (1 + assign) for name, value in other.state_dict().items()}, assign=assign)
        assert_fresh(layer, x, before)


def test_every_tensor_counts(layer, x):
    """A write to any parameter or buffer in evaluation is seen at once."""
    for name, tensor in layer.state_dict(keep_vars=True).items():
        if name.endswith("num_batches_tracked"):
            continue
        before = fill(layer, x)
        with torch.no_grad():
            tensor.mul_(1.5)
        assert_fresh(layer, x, before)


def test_training_moves_norms_and_the_next_evaluation_knows(layer, x):
    before = fill(layer, x)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer.train()(x).square().sum().backward()
    optimizer.step()
    assert_fresh(layer.eval(), x, before)


def test_statistics_moved_by_a_sublayer_alone(x):
    layer = with_random_norms(MAKERS["output"]().double()).eval()
    x = torch.randn(2, 3, 5, 6).double()
    before = fill(layer, x)
    layer.norm.train()
    with torch.no_grad():
        layer(x, expanded=True)
    layer.norm.eval()
    assert_fresh(layer, x, before)


def test_writes_to_what_is_read_do_no_harm(layer, x):
    want = fill(layer, x)
    with torch.no_grad():
        layer.weight.zero_()
        if layer.bias is not None:
            layer.bias.add_(3)
    assert_same(run(layer, x), want, 0, "the output after writing to a computed weight")


def test_weight_and_bias_are_read_only(layer):
    for name in ("weight", "bias"):
        with pytest.raises(AttributeError, match=r"reset_parameters\(\)"):
            setattr(layer, name, nn.Parameter(torch.zeros(3)))
        with pytest.raises(AttributeError, match=r"fold\(\)"):
            delattr(layer, name)


def test_a_failing_sublayer_is_reported_as_such(layer):
    del layer.layers[0].weight
    with pytest.raises(RuntimeError, match="cannot be put together"):
        _ = layer.weight


def test_copies(layer, x):
    before = fill(layer, x)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert twin._cache.entry is None
        with torch.no_grad():
            twin.layers[0].weight.add_(1)
        assert_fresh(twin, x, before)
        assert_same(run(layer, x), before, 0, "the output of the original")
    fill(layer, x)
    weft.clear_cache(nn.Sequential(layer))
    assert layer._cache.entry is None


def test_the_model_around_it(layer, x):
    """fold, verify, summary and parameter_groups know the layer."""
    model = nn.Sequential(layer, nn.ReLU())
    plain = weft.fold(model, check=x)
    assert type(plain[0]) is type(layer).torch_class
    assert not plain[0].training
    report = weft.verify(model, plain, x)
    assert list(report.layers) == ["0"] and report.output < 1e-10
    (row,) = weft.summary(model, x).rows
    numbers = sum(p.numel() for p in layer.parameters())
    weights = sum(p.numel() for n, p in layer.named_parameters() if p.dim() > 1)
    size = plain[0].weight.numel()
    assert (row.name, row.type, row.family, row.parameters) == ("0", type(layer).__name__, "chain", numbers)
    assert row.share == pytest.approx(weights / size)
    assert row.macs == plain(x).numel() * size // len(plain[0].weight)
    assert weft.summary(model).rows[0].macs == size
    undecayed, decayed = weft.parameter_groups(model, lr=1.0, weight_decay=0.1)
    assert {id(p) for p in decayed["params"]} == {id(p) for p in layer.parameters() if p.dim() > 1}
    assert len(undecayed["params"]) + len(decayed["params"]) == len(list(layer.parameters()))


def test_convert_leaves_it_whole(layer):
    model = nn.Sequential(nn.Linear(8, 8), layer)
    converted, report = weft.convert(model, "low_rank", share=0.5, return_report=True)
    assert type(converted[1]) is type(layer)
    assert list(report.skipped) == ["1"] and "Weft layer already" in report.skipped["1"]


def test_folding_in_training_with_batch_norm_is_refused():
    for name in ("linear", "output"):
        with pytest.raises(FoldError, match=r"eval\(\) first"):
            MAKERS[name]().fold()
    assert MAKERS["plain"]().fold().training


def test_folding_inside_a_transform_is_refused():
    layer = MAKERS["plain"]()

    def inside(x):
        return layer.fold()(x)

    with pytest.raises(FoldError, match="before"):
        torch.func.vmap(inside)(torch.randn(2, 5))


def test_folded_layer_shares_nothing(layer):
    plain = layer.fold()
    addresses = {tensor.untyped_storage().data_ptr() for tensor in layer.state_dict().values()}
    assert addresses.isdisjoint(p.untyped_storage().data_ptr() for p in plain.parameters())
    assert all(p.requires_grad for p in plain.parameters())
    layer.requires_grad_(False)
    assert not any(p.requires_grad for p in layer.fold().parameters())


def test_synchronised_batch_norm_folds():
    layer = with_random_norms(MAKERS["conv"]())
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(layer)).eval()
    assert_same(converted.weight, layer.eval().weight, 1e-6, "the weight")


def test_initial_law():
    """Kernels are normal: 1/fan, of the last one 2/(1 + slope^2) times that; linear layers count what comes in."""
    linear = weft.EPLinear(300, 200, depth=3, width=1.5, negative_slope=0.5).requires_grad_(False)
    stds = [float(layer.weight.std()) for layer in linear.layers]
    assert stds == pytest.approx([300**-0.5, 300**-0.5, (1.6 / 300) ** 0.5], rel=0.02)
    bound = float(linear.layers[0].bias.abs().max())
    assert 0.95 * 300**-0.5 < bound <= 300**-0.5
    conv = weft.EPConv2d(64, 128, [3, 1, (1, 3)], 1, groups=4).requires_grad_(False)  # fan_out in a group: 32
    stds = [float(layer.weight.std()) for layer in conv.layers]
    assert stds == pytest.approx([(9 * 32) ** -0.5, 32**-0.5, (2 / 96) ** 0.5], rel=0.03)
    learned = weft.EPLinear(300, 200, residual=True, residual_mode="learn")
    assert float(learned.skips["0_2"].weight.detach().std()) == pytest.approx(300**-0.5, rel=0.02)
