"""The whole network: grouping, dynamic S, batch-norm statistics, measures."""

import copy

import pytest
import torch
from torch import nn

import weft
from weft.errors import FoldError, OptionError, SizeError
from weft.superposition import (
    HRR,
    SwitchableBatchNorm,
    isometry_penalty,
    recalibrate,
    regrouping_spread,
    seconds_per_input,
)

F64 = torch.float64


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def network(num_inputs=4, **options):
    stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    trunk = nn.Sequential(nn.Conv2d(8, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return weft.MIMO(stem, trunk, nn.Linear(12, 5), num_inputs, **options).double()


def images(count=8):
    return torch.randn(count, 3, 6, 6, dtype=F64)


def by_definition(net, x, inputs):
    """Repeat every input over its slots, bind slot by slot, add, unbind slot by slot, average: in evaluation."""
    matrices = net.binding.matrices(net.binding.keys)
    size, copies = net.unbinding.features, net.num_inputs // inputs
    answers = []
    for group in x.split(inputs):
        z = net.stem(group)
        bound = sum(torch.einsum("ij,jhw->ihw", matrices[r * inputs + s], z[s])
                    for r in range(copies) for s in range(inputs))  # fmt: skip
        u = net.trunk(bound[None])[0]
        for s in range(inputs):
            rows = [slice(i * size, (i + 1) * size) for i in range(s, net.num_inputs, inputs)]
            parts = [(net.unbinding.weight[r] @ u + net.unbinding.bias[r]).relu() for r in rows]
            answers.append(net.head(torch.stack(parts).mean(0)))
    return torch.stack(answers)


@pytest.mark.parametrize("binding", ["hrr", "mbat", "map", "fhrr", "none"])
@pytest.mark.parametrize("inputs", [1, 2, 4])
def test_answers_are_those_of_the_definition(binding, inputs):
    net = network(binding=binding).eval()
    x = images(8)
    net.num_superposed = inputs
    torch.testing.assert_close(net(x), by_definition(net, x, inputs))
    assert net(x, num_superposed=4).shape == (8, 5)
    assert net.num_superposed == inputs, "S of one call is not that of the network"


@pytest.mark.parametrize("count", [1, 2, 3, 5, 7, 9])
def test_any_batch_size_answers_every_input_once(count):
    net = network().eval()
    x = images(count)
    filled = torch.cat([x, x[torch.arange(-count % 4) % count]])
    torch.testing.assert_close(net(x), by_definition(net, filled, 4)[:count])


def test_one_input_without_binding_is_the_plain_network_to_the_bit():
    net = network(1, binding="none").eval()
    x = images(5)
    assert torch.equal(net(x), net.head(net.trunk(net.stem(x))))
    assert net.unbinding is None
    assert not any(isinstance(m, SwitchableBatchNorm) for m in net.modules())


def test_answers_depend_on_the_group_and_on_nothing_else_of_the_batch():
    net = network().eval()
    x = images(8)
    alone, together = net(x[4:]), net(x)
    torch.testing.assert_close(alone, together[4:])
    assert not torch.allclose(net(x[[0, 1, 2, 7]])[0], together[0])


def test_evaluation_leaves_statistics_alone_and_training_moves_those_of_its_s_only():
    net = network()
    before = copy.deepcopy(net.state_dict())
    net.eval()(images())
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    net.train()(images(), num_superposed=2)
    norm = net.trunk[1]
    assert norm.num_batches_tracked.tolist() == [0, 1, 0]
    moved = [not torch.equal(row, torch.zeros(12, dtype=F64)) for row in norm.running_mean]
    assert moved == [False, True, False]
    assert net.uncalibrated() == [1, 4]
    assert net.uncalibrated(2) == []


def test_switchable_batch_norm_is_a_plain_one_for_each_s():
    net = network()
    singles = {s: nn.BatchNorm2d(12).double() for s in (1, 4)}
    for s in (1, 4, 1, 4, 4):
        x = torch.randn(3, 12, 4, 4, dtype=F64)
        weft.superposition.mimo.switch(net.trunk, s)
        torch.testing.assert_close(net.trunk[1].train()(x), singles[s].train()(x))
    for s in (1, 4):
        weft.superposition.mimo.switch(net.trunk, s)
        x = torch.randn(3, 12, 4, 4, dtype=F64)
        torch.testing.assert_close(net.trunk[1].eval()(x), singles[s].eval()(x))


def test_a_plain_checkpoint_gives_its_statistics_to_every_s():
    net = network()
    norm = nn.BatchNorm2d(12).double()
    norm(torch.randn(5, 12, 3, 3, dtype=F64))
    net.trunk[1].load_state_dict(norm.state_dict())
    assert torch.equal(net.trunk[1].running_var, norm.running_var.expand(3, 12))
    assert net.uncalibrated() == [1, 2, 4]  # a start, and the statistics of none of them
    trained = nn.Sequential(nn.Conv2d(8, 12, 3), norm, nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()
    net = weft.MIMO(nn.Conv2d(3, 8, 3).double(), trained, nn.Linear(12, 5).double(), 4)
    assert net.uncalibrated() == [1, 2, 4] and net.uncalibrated(2) == [2]
    recalibrate(net, [images()], 2)
    assert net.uncalibrated() == [1, 4]


def test_a_norm_in_two_places_stays_one_with_its_hooks():
    seen, norm = [], nn.BatchNorm2d(12)
    norm.register_forward_hook(lambda *_: seen.append(1))
    trunk = nn.Sequential(
        nn.Conv2d(8, 12, 3), norm, nn.Sequential(nn.ReLU(), norm), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    net = weft.MIMO(nn.Conv2d(3, 8, 3, padding=1), trunk, nn.Linear(12, 5), 2)
    assert net.trunk[1] is net.trunk[2][1] and isinstance(net.trunk[1], SwitchableBatchNorm)
    seen.clear()  # of the dry run
    net(images().float())
    assert len(seen) == 2
    with pytest.raises(OptionError, match="SyncBatchNorm, whose running statistics cannot be kept for every number"):
        weft.MIMO(nn.Conv2d(3, 8, 3), nn.Sequential(nn.Conv2d(8, 12, 3), nn.SyncBatchNorm(12)), nn.Linear(12, 5), 2)
    with pytest.raises(OptionError, match="SwitchableBatchNorm"):  # a trunk of two networks with other S
        weft.MIMO(nn.Conv2d(3, 8, 3), net.trunk, nn.Linear(12, 5), 3)


@pytest.mark.parametrize("batch_norm", [True, "output"])
@pytest.mark.parametrize("way", ["built", "made"])
def test_overparametrised_layers_use_the_statistics_of_their_s(batch_norm, way):
    """Collapsed and kept, they compute at every S what their sub-layers compute one by one."""
    if way == "built":
        layer = weft.EPConv2d(8, 12, 3, 1, depth=2, batch_norm=batch_norm)
        trunk = nn.Sequential(layer, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        net = weft.MIMO(nn.Conv2d(3, 8, 3, padding=1), trunk, nn.Linear(12, 5), 4).double()
    else:
        net = network()
        net.trunk[1] = nn.Identity()
        net = weft.overparameterize(net, which="conv", where=lambda name, _: name.startswith("trunk"),
                                    keep_function=False, batch_norm=batch_norm)  # fmt: skip
    layer = net.trunk[0]
    for s in (1, 2, 4):
        for _ in range(3):
            net(s * images(), num_superposed=s)
    assert net.uncalibrated() == []
    net.eval()
    x, sequence = images(), (1, 2, 4, 1)
    with torch.no_grad():
        got = [net(x, num_superposed=s) for s in sequence]
        layer.forward = lambda z: type(layer).forward(layer, z, expanded=True)
        want = [net(x, num_superposed=s) for s in sequence]
        del layer.forward
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    found = {}
    for s in (1, 4):
        net.num_superposed = s
        found[s] = layer.weight.clone()
    assert not torch.allclose(found[1], found[4])
    with pytest.raises(FoldError, match="statistics for every number of superposed inputs"):
        weft.fold(net)


def test_the_setter_chooses_the_statistics_too():
    net = network()
    for s in (1, 2, 4):
        net(images() * s, num_superposed=s)
    net.eval()
    net.num_superposed, x = 2, images()
    u = net.trunk(net.binding(net.stem(x).unflatten(0, (-1, 2))))
    torch.testing.assert_close(net.head(net.unbinding(u, 2).flatten(0, 1)), net(x))


@pytest.mark.parametrize("place", [{"dtype": F64}, {"dtype": torch.bfloat16}, {"device": "meta"}])
@pytest.mark.parametrize("binding", ["hrr", "mbat", "map", "fhrr", "none"])
def test_what_is_made_by_name_stands_where_the_trunk_does(binding, place):
    net = weft.MIMO(nn.Linear(8, 6, **place), nn.Linear(6, 3, **place), nn.Linear(3, 2, **place), 2, binding)
    y = net(torch.randn(4, 8, **place))
    assert (y.dtype, y.device.type) == (place.get("dtype", torch.float32), place.get("device", "cpu"))


def test_values_after_a_start_without_memory():
    net = weft.models.wide_isonet(10, 0.5, num_inputs=2, binding="none", skip_init=True)
    with torch.device("meta"):
        empty = weft.models.wide_isonet(10, 0.5, num_inputs=2, binding="none", skip_init=True)
    empty.to_empty(device="cpu")
    for tensor in (*empty.parameters(), *empty.buffers()):
        tensor.fill_(7) if not tensor.requires_grad else tensor.data.fill_(7)
    for module in empty.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    for name, value in net.state_dict().items():
        if name.endswith("alpha") or ("bias" in name and value.unique().numel() == 1):
            assert torch.equal(empty.state_dict()[name], value), name
    assert torch.equal(empty.binding.ones, torch.ones(2, 16))


def test_recalibration_is_the_mean_over_batches_and_touches_nothing_else():
    net = network().eval()
    batches = [images(8) for _ in range(3)]
    weights = {n: p.clone() for n, p in net.named_parameters()}
    assert recalibrate(net, iter(batches), 2) == 3
    inputs = []
    hook = net.trunk[1].register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    for batch in batches:
        net(batch, num_superposed=2)
    hook.remove()
    means = torch.stack([x.mean((0, 2, 3)) for x in inputs]).mean(0)
    torch.testing.assert_close(net.trunk[1].running_mean[1], means)
    assert not net.training
    assert not net.trunk[1].training
    assert all(torch.equal(weights[n], p) for n, p in net.named_parameters())
    with pytest.raises(OptionError, match="batches is empty"):
        recalibrate(net, [], 2)


def test_tokens_and_sequences():
    tokens = weft.MIMO(nn.Linear(6, 8), nn.Linear(8, 10), nn.Linear(10, 3), 2, channel_dim=-1)
    assert tokens(torch.randn(4, 7, 6)).shape == (4, 7, 3)
    stem, trunk = nn.Conv1d(2, 8, 3), nn.Sequential(nn.Conv1d(8, 10, 3), nn.AdaptiveAvgPool1d(1), nn.Flatten())
    assert weft.MIMO(stem, trunk, nn.Linear(10, 3), 2, "mbat")(torch.randn(3, 2, 20)).shape == (3, 3)


def test_widths_are_found_by_a_dry_run_that_leaves_no_trace():
    stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    trunk = nn.Sequential(nn.Conv2d(8, 9, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net = weft.MIMO(stem, trunk, nn.Linear(9, 2), 2)
    assert (net.binding.channels, net.unbinding.features) == (8, 9)
    assert stem[1].num_batches_tracked == 0
    odd = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(2), nn.Linear(16, 4))  # wants 6 x 6 pixels
    with pytest.raises(OptionError, match=r"give channels= and features=, or a batch of inputs as example="):
        weft.MIMO(odd, nn.Identity(), nn.Identity(), 2)
    assert weft.MIMO(odd, nn.Identity(), nn.Identity(), 2, example=torch.randn(2, 3, 6, 6)).binding.channels == 8


def test_widths_of_tokens_are_found():
    class Mean(nn.Module):
        def forward(self, x):
            return x.mean(1)

    net = weft.MIMO(nn.Linear(5, 6), nn.Sequential(nn.Linear(6, 8), Mean()), nn.Linear(8, 3), 2, channel_dim=-1)
    assert net.unbinding.features == 8 and net(torch.randn(4, 7, 5)).shape == (4, 3)


def test_bad_options_are_named():
    net, x = network(), images()
    for call, error, words in (
        (lambda: recalibrate(net, [x], 3), SizeError, "num_superposed must divide num_inputs=4"),
        (lambda: recalibrate(net, [x], 2, max_batches=0), OptionError, "max_batches must be at least 1, got 0"),
        (lambda: recalibrate(net, [(x, 1)], 2), OptionError, "tensors of inputs, without labels; got tuple"),
        (lambda: net.uncalibrated(3), SizeError, "got 3"),
        (lambda: regrouping_spread(net.eval(), x, num_superposed=0), SizeError, "got 0"),
        (lambda: net.unbinding(torch.ones(2, 12, dtype=F64), 0), SizeError, "got 0"),
        (lambda: network(2.0), OptionError, "a whole number; got 2.0"),
        (lambda: network(binding=None), OptionError, "a name or a weft.superposition.Binding, got NoneType"),
        (lambda: network(binding_options={"unitry": True}), OptionError, "did you mean 'unitary'"),
        (lambda: weft.models.wide_resnet(10, 1, relu_parameter=0.5), OptionError, "the ReLU has none"),
        (
            lambda: weft.models.wide_resnet(10, 1, dirac_init=True, parametrization="kronecker", options={"n": 4}),
            OptionError, "dirac_init sets the kernels of plain convolutions",
        ),
    ):  # fmt: skip
        with pytest.raises(error, match=words):
            call()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(OptionError, match="batches is empty"):
        recalibrate(net, [], 2)
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)


def test_bad_input_is_named():
    net = network()
    for wrong in (3, 0, 8):
        with pytest.raises(SizeError, match="must divide num_inputs=4: one of 1, 2, 4"):
            net.num_superposed = wrong
    with pytest.raises(SizeError, match="must divide"):
        net(images(), num_superposed=3)
    with pytest.raises(SizeError, match="binding is for 2 inputs of 8 channels"):
        network(binding=HRR(2, 8))
    with pytest.raises(OptionError, match="num_inputs must be at least 1"):
        network(0)
    with pytest.raises(OptionError, match="channel_dim must be 1"):
        network(channel_dim=2)


def test_regrouping_and_timing():
    net = network().eval()
    x, labels = images(16), torch.randint(5, (16,))
    alone = regrouping_spread(net, x, labels, num_superposed=1)
    assert alone.changed == 0
    assert alone.spread < 1e-12
    assert len(set(alone.accuracies)) == 1
    with torch.no_grad():
        net.head.weight.mul_(30)
    mixed = regrouping_spread(net, x, labels)
    assert 0 < mixed.changed <= 1
    assert mixed.spread > 0
    assert seconds_per_input(net, x, repeats=2) > 0
    for call in (lambda: regrouping_spread(net, x, groupings=1), lambda: regrouping_spread(net.train(), x),
                 lambda: seconds_per_input(net, x, repeats=0)):  # fmt: skip
        with pytest.raises(OptionError):
            call()


# ------------------------------------------------------------------------------------------------ isometry penalty


def gram_by_loops(weight, stride):
    """Inner products of a kernel with its own shifts, tap by tap."""
    w = weight.transpose(0, 1) if weight.shape[1] < weight.shape[0] else weight
    size, k = w.shape[0], w.shape[2]
    total = 0.0
    shifts = [s for s in range(-(k - 1), k) if s % stride == 0]
    for dy in shifts:
        for dx in shifts:
            for a in range(size):
                for b in range(size):
                    value = sum(float(w[a, :, y + dy, x + dx] @ w[b, :, y, x]) for y in range(k) for x in range(k)
                                if 0 <= y + dy < k and 0 <= x + dx < k)  # fmt: skip
                    value -= float(a == b and dy == dx == 0)
                    total += value**2
    return total / 2


@pytest.mark.parametrize(
    ("inside", "outside", "kernel", "stride"),
    [(2, 3, 3, 1), (3, 2, 3, 2), (3, 3, 1, 2), (2, 2, 2, 1), (3, 2, 2, 2), (2, 2, 3, 3), (2, 2, 4, 2)],
)
def test_isometry_penalty_is_the_deviation_from_an_identity(inside, outside, kernel, stride):
    conv = nn.Conv2d(inside, outside, kernel, stride=stride).double()
    assert isometry_penalty(conv).item() == pytest.approx(gram_by_loops(conv.weight.detach(), stride), rel=1e-10)


def test_isometry_penalty_is_0_for_isometries_and_counts_groups_apart():
    dirac, orthogonal = nn.Conv2d(6, 6, 3).double(), nn.Conv2d(6, 4, 1).double()
    nn.init.dirac_(dirac.weight)
    nn.init.orthogonal_(orthogonal.weight)
    assert isometry_penalty(nn.Sequential(dirac, orthogonal)).item() < 1e-25
    for side in (2, 3):  # patches that do not overlap: the shift of 0 is the only one
        patches = nn.Conv2d(6, 4, side, stride=side).double()
        patches.weight.data = nn.init.orthogonal_(torch.empty(4, 6 * side**2, dtype=F64)).reshape(4, 6, side, side)
        assert isometry_penalty(patches).item() < 1e-25
    near = nn.Conv2d(64, 64, 1, bias=False)
    near.weight.data = nn.init.orthogonal_(torch.empty(64, 64)).reshape(64, 64, 1, 1) + 1e-4 * torch.randn(64, 64, 1, 1)
    with torch.autocast("cpu", torch.bfloat16):
        assert isometry_penalty(near).item() == pytest.approx(isometry_penalty(near.double()).item(), rel=1e-3)
    grouped = nn.Conv2d(4, 6, 3, groups=2).double()
    parts = [nn.Conv2d(2, 3, 3).double() for _ in range(2)]
    for part, weight in zip(parts, grouped.weight.detach().chunk(2), strict=True):
        part.weight.data = weight
    torch.testing.assert_close(isometry_penalty(grouped), isometry_penalty(nn.ModuleList(parts)))
    assert isometry_penalty(nn.Linear(2, 2)).item() == 0
    assert isometry_penalty(weft.PHConv2d(4, 4, 3, n=2)).item() > 0
    with pytest.raises(OptionError, match="dilated"):
        isometry_penalty(nn.Conv2d(2, 2, 3, stride=2, dilation=2))
