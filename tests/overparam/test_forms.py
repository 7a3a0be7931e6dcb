"""Over-parametrised layers are one function in every form: expanded, collapsed, folded, and as the definition says."""

import itertools
import random

import pytest
import torch
from tests.overparam.helpers import CONVOLUTIONS, assert_all_forms_agree, oracle, with_random_norms
from torch import nn

import weft
from weft.errors import OptionError, SizeError
from weft.overparam.compose import skip_pairs
from weft.testing import assert_same

INTERVALS = (None, 1, 2, 3, -1, [1, 2, 3])
DOUBLE = {"dtype": torch.float64}


def odd(depth):
    return ([3, 1] * 4)[:depth]


def even(depth):
    return [2, *odd(depth)[1:]] if depth % 2 else [1, 4, *odd(depth)[2:]]


def combinations(depth, stride):
    """The part of the grid for one depth and stride: keyword arguments of EPConv2d with 4 channels."""
    axes = itertools.product(
        (0.5, 1, 4), (False, True), (False, True), INTERVALS, (odd, even), (1, 2, 4), (1, 2)
    )  # fmt: skip
    for width, norm, bias, intervals, kernels, groups, dilation in axes:
        if depth > 1 and int(4 * width) % groups:
            continue  # the groups do not divide what is between
        lengths = intervals if isinstance(intervals, list) else [intervals]
        if intervals is not None and not skip_pairs(lengths, depth):
            continue
        sizes = kernels(depth)
        span = dilation * (sum(sizes) - depth)
        unequal = width != 1 and intervals != -1 and intervals is not None
        yield {
            "kernel_sizes": sizes, "padding": (span + 1) // 2, "stride": stride, "width": width, "dilation": dilation,
            "groups": groups, "bias": bias, "batch_norm": norm, "residual": intervals is not None,
            "residual_intervals": 2 if intervals is None else intervals,
            "residual_mode": "learn" if unequal else "none",
        }  # fmt: skip


def check(options, sizes=(30, 31, 32, 33)):
    layer = with_random_norms(weft.EPConv2d(4, 4, **options, **DOUBLE))
    assert_all_forms_agree(layer, [torch.randn(1, 4, size, 43 - size, **DOUBLE) for size in sizes])


@pytest.mark.slow
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("depth", range(1, 9))
def test_all_forms_agree_on_the_grid(depth, stride):
    for options in combinations(depth, stride):
        check(options)


@pytest.mark.parametrize("depth", range(1, 9))
def test_all_forms_agree_on_a_sample_of_the_grid(depth):
    draw = random.Random(depth)
    for stride in (1, 2, 3):
        for options in draw.sample(list(combinations(depth, stride)), 8):
            check(options, draw.sample((30, 31, 32, 33), 2))


@pytest.mark.parametrize("depth", range(1, 9))
def test_all_forms_of_linear_layers_agree(depth):
    for width, norm, bias, intervals in itertools.product((0.5, 1, 4), (False, True), (False, True), INTERVALS):
        lengths = intervals if isinstance(intervals, list) else [intervals]
        if intervals is not None and not skip_pairs(lengths, depth):
            continue
        layer = weft.EPLinear(
            6, 6, width, depth, bias, norm, intervals is not None, intervals or 2,
            "none" if width == 1 or intervals in (None, -1) else "learn", **DOUBLE,
        )  # fmt: skip
        x = torch.randn(2, 3, 6, **DOUBLE)
        assert_all_forms_agree(with_random_norms(layer), [x])
        with torch.no_grad():
            assert_same(layer(x).flatten(0, 1), oracle(layer, x), 1e-10, "the output")


def drawn(dims, seed):
    """Random options of every kind."""
    draw = random.Random(seed)
    depth = draw.randint(1, 5)
    groups = draw.choice([1, 1, 2, 4])
    intervals = draw.choice([None, -1, 1, [1, 2, -1]])
    same_width = draw.random() < 0.5
    out = 4 if same_width or draw.random() < 0.5 else 8
    width = 1 if same_width else 2
    sizes = [tuple(draw.choice([1, 1, 2, 3]) for _ in range(dims)) for _ in range(depth)]
    dilation = draw.choice([1, 2])
    padding = draw.choice(["valid", "same", tuple(draw.randint(0, 2) for _ in range(dims)), 1])
    return {
        "out_channels": out, "kernel_sizes": sizes, "padding": padding, "groups": groups, "width": width,
        "stride": 1 if padding == "same" else tuple(draw.choice([1, 2, 3]) for _ in range(dims)),
        "dilation": dilation, "bias": draw.random() < 0.6, "batch_norm": draw.choice([False, True, "output"]),
        "padding_mode": draw.choice(["zeros", "zeros", "reflect", "replicate", "circular"]),
        "residual": intervals is not None, "residual_intervals": intervals or 2,
        "residual_mode": "none" if intervals is None or same_width else "learn",
    }  # fmt: skip


# torch's own convolution says so of asymmetric padding, once per process
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("seed", range(12))
def test_layers_compute_what_their_definition_says(dims, seed):
    layer = with_random_norms(CONVOLUTIONS[dims](4, **drawn(dims, seed), **DOUBLE))
    x = torch.randn(2, 4, *(random.Random(seed).randint(19, 22) for _ in range(dims)), **DOUBLE)
    x = x[..., :20] if dims < 3 else x[..., :19, :19, :19]
    want = oracle(layer, x)
    assert_all_forms_agree(layer, [x, x[:1]], 1e-10)
    with torch.no_grad():
        assert_same(layer(x), want, 1e-10, f"the output of {layer}")
        assert_same(layer(x[0]), want[0], 1e-10, "the output without a batch")
        assert_same(layer(x[0], expanded=True), want[0], 1e-10, "the expanded output without a batch")
    if not layer.batch_norm:
        assert_same(layer.train()(x), want, 1e-10, "the output in training")


def test_output_norm_trains_on_the_whole_layer():
    """In training the statistics are those of the composed convolution's output; both forms move them alike."""
    layer = weft.EPConv2d(3, 4, [1, 3, 1], 1, width=2, batch_norm="output", **DOUBLE)
    twin = weft.EPConv2d(3, 4, [1, 3, 1], 1, width=2, batch_norm="output", **DOUBLE)
    twin.load_state_dict(layer.state_dict())
    x = torch.randn(5, 3, 9, 9, **DOUBLE)
    composed = torch.nn.functional.conv2d(x, *layer._composed(), padding=1)
    mean, var = composed.mean((0, 2, 3), keepdim=True), composed.var((0, 2, 3), unbiased=False, keepdim=True)
    want = (composed - mean) / torch.sqrt(var + layer.norm.eps)
    assert_same(layer(x), want, 1e-10, "the output")
    assert_same(twin(x, expanded=True), want, 1e-10, "the expanded output")
    assert_same(layer.norm.running_mean, 0.1 * mean.flatten(), 1e-10, "the running mean")
    assert_same(twin.norm.running_var, layer.norm.running_var, 1e-10, "the running variance")


def test_norms_between_sublayers_train_one_by_one():
    layer = weft.EPLinear(5, 5, depth=3, batch_norm=True, residual=True, residual_intervals=[-1], **DOUBLE)
    x = y = torch.randn(11, 5, **DOUBLE)
    for sublayer in layer.layers:
        y = y @ sublayer.weight.T + sublayer.bias
        y = (y - y.mean(0)) / torch.sqrt(y.var(0, unbiased=False) + 1e-5)
    assert_same(layer(x), x + y, 1e-10, "the output")


@pytest.mark.parametrize("expanded", [True, False])
def test_gradients_reach_every_factor(expanded):
    """The gradient of the collapsed form is that of the sub-layers."""
    layer = weft.EPConv2d(
        4, 4, [3, 2, 1], "same", groups=2, residual=True, residual_intervals=[1, -1], residual_mode="learn", **DOUBLE
    )
    x = torch.randn(2, 4, 6, 7, **DOUBLE, requires_grad=True)
    layer._rows_from = 0
    tensors = [x, *layer.parameters()]
    got = torch.autograd.grad(layer(x).pow(2).sum(), tensors)
    want = torch.autograd.grad(layer(x, expanded=True).pow(2).sum(), tensors)
    for one, other in zip(got, want, strict=True):
        assert float(one.abs().max()) > 0
        assert_same(one, other, 1e-10, "a gradient")
    assert torch.autograd.gradcheck(lambda x: layer(x, expanded=expanded), x)


def test_the_cheaper_form_runs(monkeypatch):
    """By multiply-adds: few rows through the sub-layers, many through what is put together once."""
    layer, calls = weft.EPLinear(16, 16, depth=4), []
    monkeypatch.setattr(weft.EPLinear, "_expanded", lambda self, x: calls.append(len(x)) or x)
    # 3 products of 16 x 16 matrices, and a quarter on top, against 3 more matrices per row: even at 20 rows
    for rows in (1, 19, 20, 21, 500):
        layer(torch.randn(rows, 16))
    assert calls == [1, 19]
    narrow = weft.EPLinear(16, 16, width=0.25, depth=2)  # fewer numbers than the weight itself
    narrow(torch.randn(500, 16))
    assert calls == [1, 19, 500]
    with torch.no_grad():
        narrow.eval()(torch.randn(500, 16))
    assert calls == [1, 19, 500]


@pytest.mark.parametrize(("depth", "width"), [(1, 1), (2, 1), (3, 2), (5, 0.5)])
def test_counts_are_those_of_the_formula(depth, width):
    i, o = 10, 6
    layer, h = weft.EPLinear(i, o, width, depth), int(o * width)
    weights = i * h + (depth - 2) * h**2 + h * o if depth > 1 else i * o
    assert sum(p.numel() for p in layer.parameters()) == weights + (depth - 1) * h + o
    assert sum(p.numel() for p in layer.fold().parameters()) == i * o + o


def test_arguments_are_in_the_documented_order():
    layer = weft.EPLinear(5, 4, 2, 3, False, True, True, [-1], "learn", 0.2)
    assert (layer.width, layer.depth, layer.batch_norm, layer.negative_slope) == (2, 3, True, 0.2)
    assert list(layer.skips) == ["0_3"]
    layer = weft.EPConv2d(2, 4, [5, 3, 1], 3, depth=9)
    assert (layer.depth, layer.padding, layer.stride, layer.kernel_size) == (3, (3, 3), (1, 1), (7, 7))
    assert weft.EPConv2d(2, 4, 3, 1, 2, depth=4).kernel_sizes == ((3, 3), (1, 1), (1, 1), (1, 1))
    assert weft.EPConv2d(2, 4).kernel_sizes == ((3, 3), (1, 1))


def test_without_biases_there_is_none():
    for layer in (weft.EPLinear(4, 4, bias=False), weft.EPConv1d(4, 4, bias=False, residual=True)):
        for mode in (True, False):
            assert layer.train(mode).bias is None
            assert layer.fold().bias is None
    layer = weft.EPConv1d(4, 4, bias=False, batch_norm=True)
    assert layer.eval().bias.shape == (4,)
    assert layer.fold().bias is not None


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: weft.EPLinear(4, 0), SizeError, "at least 1"),
        (lambda: weft.EPLinear(4, 4, depth=0), OptionError, "depth must be at least 1"),
        (lambda: weft.EPLinear(4, 4, width=0.1), SizeError, "at least 1"),
        (lambda: weft.EPLinear(4, 4, batch_norm="inside"), OptionError, "'output'"),
        (lambda: weft.EPLinear(4, 5, residual=True, depth=4), SizeError, "adds 4 channels to 5"),
        (lambda: weft.EPLinear(4, 4, residual=True, depth=4, width=2), SizeError, "residual_mode='learn'"),
        (lambda: weft.EPLinear(4, 4, residual=True, residual_intervals=5), OptionError, "make no skip at depth 2"),
        (lambda: weft.EPLinear(4, 4, residual=True, residual_intervals=[0]), OptionError, "from 1, or -1"),
        (lambda: weft.EPLinear(4, 4, residual_mode="learn"), OptionError, "residual=True"),
        (lambda: weft.EPLinear(4, 4, residual=True, residual_mode="lern"), OptionError, "did you mean 'learn'"),
        (lambda: weft.EPConv2d(4, 0), SizeError, "at least 1"),
        (lambda: weft.EPConv2d(4, 4, []), SizeError, "at least one size"),
        (lambda: weft.EPConv2d(4, 4, 3, depth=0), OptionError, "depth must be at least 1"),
        (lambda: weft.EPConv2d(4, 4, [3, (1, 2, 3)]), SizeError, "one per dimension"),
        (lambda: weft.EPConv2d(4, 4, 3, 1, groups=3), SizeError, "divisible by groups"),
        (lambda: weft.EPConv2d(4, 8, 3, 1, groups=4, width=0.25), SizeError, "multiple of groups=4"),
        (lambda: weft.EPConv2d(4, 4, 3, "same", 2), SizeError, "strided"),
        (lambda: weft.EPConv2d(4, 4, padding_mode="mirror"), SizeError, "padding_mode"),
        (lambda: weft.overparam.same_padding([4, 1]), SizeError, "padding='same'"),
    ],
)
def test_bad_arguments_are_refused_with_a_remedy(make, error, words):
    with pytest.raises(error, match=words):
        make()


@pytest.mark.parametrize("sizes", [[3], [5, 3, 1], [(1, 7), 3], [2, 2]])
def test_same_padding_keeps_the_size(sizes):
    padding = weft.overparam.same_padding(sizes, 2)
    layer = weft.EPConv2d(3, 4, sizes, padding, dilation=2)
    assert layer(torch.randn(1, 3, 20, 21)).shape == (1, 4, 20, 21)


def test_complex_weights_keep_their_function():
    layer = nn.Linear(7, 5, dtype=torch.complex128)
    x = torch.randn(3, 7, dtype=torch.complex128)
    for made in (weft.overparameterize(layer, depth=3, width=2), weft.convert(layer, "chain", depth=3, width=2)):
        torch.testing.assert_close(made(x), layer(x), rtol=1e-10, atol=1e-10)
    small = weft.convert(layer, "low_rank", rank=2)
    want = torch.linalg.svdvals(layer.weight.detach())
    assert small.fit_error == pytest.approx(float(want[2:].norm() / want.norm()))  # Eckart and Young


@pytest.mark.parametrize("out", [12, 29, 100, 49])
def test_the_width_of_a_whole_number_of_channels_gives_that_number(out):
    """int(O * (H/O)) would be H - 1 for some; a width that is too small is answered with one that works."""
    for hidden in range(1, out + 1):
        assert weft.EPLinear(3, out, width=hidden / out).layers[0].out_features == hidden
        assert weft.Linear(3, out, parametrization="chain", width=hidden / out).parametrization.hidden == hidden
    with pytest.raises(OptionError, match="width must be at least") as caught:
        weft.EPLinear.from_dense(nn.Linear(out, out), width=0.5)
    width = float(str(caught.value).partition("at least ")[2].partition(",")[0])
    assert weft.EPLinear.from_dense(nn.Linear(out, out), width=width).fit_error < 1e-6
    with pytest.raises(OptionError, match=r"1/out = \S+, so") as caught:
        weft.Linear(3, out, parametrization="chain", width=0.5 / out)
    width = float(str(caught.value).partition("1/out = ")[2].partition(",")[0])
    assert weft.Linear(3, out, parametrization="chain", width=width).parametrization.hidden == 1


@pytest.mark.parametrize("options", [{"batch_norm": 1}, {"width": float("nan")}, {"width": 0.0}])
def test_options_of_another_kind_are_refused(options):
    with pytest.raises(OptionError, match=next(iter(options))):
        weft.EPLinear(4, 4, **options)
