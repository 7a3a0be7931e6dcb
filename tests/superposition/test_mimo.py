"""The whole network: grouping, dynamic S, batch-norm statistics, measures."""

import copy

import pytest
import torch
from torch import nn

import weft
from weft.errors import OptionError, SizeError
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
    shifts = [s for s in range(-(k - 1), k) if (s + k - 1) % stride == 0]
    centre = (k - 1) // stride
    for row, dy in enumerate(shifts):
        for column, dx in enumerate(shifts):
            for a in range(size):
                for b in range(size):
                    value = sum(float(w[a, :, y + dy, x + dx] @ w[b, :, y, x]) for y in range(k) for x in range(k)
                                if 0 <= y + dy < k and 0 <= x + dx < k)  # fmt: skip
                    value -= float(a == b and row == column == centre)
                    total += value**2
    return total / 2


@pytest.mark.parametrize(
    ("inside", "outside", "kernel", "stride"), [(2, 3, 3, 1), (3, 2, 3, 2), (3, 3, 1, 2), (2, 2, 2, 1)]
)
def test_isometry_penalty_is_the_deviation_from_an_identity(inside, outside, kernel, stride):
    conv = nn.Conv2d(inside, outside, kernel, stride=stride).double()
    assert isometry_penalty(conv).item() == pytest.approx(gram_by_loops(conv.weight.detach(), stride), rel=1e-10)


def test_isometry_penalty_is_0_for_isometries_and_counts_groups_apart():
    dirac, orthogonal = nn.Conv2d(6, 6, 3).double(), nn.Conv2d(6, 4, 1).double()
    nn.init.dirac_(dirac.weight)
    nn.init.orthogonal_(orthogonal.weight)
    assert isometry_penalty(nn.Sequential(dirac, orthogonal)).item() < 1e-25
    grouped = nn.Conv2d(4, 6, 3, groups=2).double()
    parts = [nn.Conv2d(2, 3, 3).double() for _ in range(2)]
    for part, weight in zip(parts, grouped.weight.detach().chunk(2), strict=True):
        part.weight.data = weight
    torch.testing.assert_close(isometry_penalty(grouped), isometry_penalty(nn.ModuleList(parts)))
    assert isometry_penalty(nn.Linear(2, 2)).item() == 0
    assert isometry_penalty(weft.PHConv2d(4, 4, 3, n=2)).item() > 0
    with pytest.raises(OptionError, match="dilated"):
        isometry_penalty(nn.Conv2d(2, 2, 3, stride=2, dilation=2))
