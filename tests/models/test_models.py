import pytest
import torch
from torch import nn

import weft
from weft.errors import OptionError, SizeError
from weft.models import MLP, VGG, CifarResNet, ResNet, SmallCNN
from weft.models.factory import LayerFactory, PrependZeros
from weft.models.resnet import ResidualNet

FAMILIES = {
    "plain": {},
    "quaternion": {"parametrization": "kronecker", "options": {"algebra": "quaternion"}},
    "n2": {"parametrization": "kronecker", "options": {"n": 2}},
    "n3": {"parametrization": "kronecker", "options": {"n": 3}},
    "n4": {"parametrization": "kronecker", "options": {"n": 4}},
}

# Published counts, 10 classes, 3 image channels. The published PHC numbers of ResNets count a bias per convolution
# channel that is never used; those of the "dead" column are to be subtracted from them.
COUNTS = [
    # model, arguments, dead, plain, quaternion, n=2, n=3, n=4
    (ResNet, {"depth": 18, "widths": "large"}, 4680, 10_877_062, 2_730_298, 5_450_906, 3_640_594, 2_736_258),
    (ResNet, {"depth": 50, "widths": "large"}, 25692, 22_538_086, 5_688_682, 11_331_446, 7_587_841, 5_717_766),
    (ResNet, {"depth": 152, "widths": "large"}, 71772, None, 13_369_642, 26_648_102, 17_847_235, 13_451_334),
    (ResNet, {"depth": 18}, 4800, 11_173_962, 2_804_682, 5_599_594, None, 2_810_762),
    (ResNet, {"depth": 50}, 26560, 23_520_842, 5_935_562, 11_824_498, None, 5_965_514),
    (ResNet, {"depth": 152}, 75712, 58_156_618, None, None, None, None),
    (VGG, {"depth": 16}, 0, 15_253_578, 3_827_658, 7_636_610, None, 3_828_618),
    (VGG, {"depth": 19, "widths": "large"}, 0, 29_806_930, 7_470_478, 14_916_178, 9_952_744, 7_471_630),
    (CifarResNet, {"depth": 20}, 784, 272_474, 69_818, None, None, 71_946),
    (CifarResNet, {"depth": 20, "widths": "large"}, 2184, 2_543_890, 640_930, 1_277_674, 855_073, 644_458),
    (CifarResNet, {"depth": 110, "widths": "large"}, 11544, 16_714_930, None, None, None, None),
]
CASES = [
    pytest.param(cls, {**arguments, **FAMILIES[family]}, count - (dead if family.startswith("n") else 0),
                 id=f"{cls.__name__}-{'-'.join(map(str, arguments.values()))}-{family}")
    for cls, arguments, dead, *counts in COUNTS
    for family, count in zip(FAMILIES, counts, strict=True) if count is not None
]  # fmt: skip


def count(cls, **arguments):
    with torch.device("meta"):
        return sum(p.numel() for p in cls(**arguments).parameters())


@pytest.mark.parametrize(("cls", "arguments", "expected"), CASES)
def test_parameter_counts_are_the_published_ones(cls, arguments, expected):
    assert count(cls, **arguments) == expected


@pytest.mark.parametrize(
    ("cls", "arguments", "family", "expected"),
    [
        (ResNet, {"depth": 18, "widths": "large"}, "plain", 10_923_592),
        (ResNet, {"depth": 50, "widths": "large"}, "plain", 22_723_936),
        (ResNet, {"depth": 18, "widths": "large"}, "n4", 2_782_788 - 4680),
        (ResNet, {"depth": 50, "widths": "large"}, "n4", 5_903_616 - 25692),
        (ResNet, {"depth": 152, "widths": "large"}, "n4", 13_637_184 - 71772),
        (CifarResNet, {"depth": 110, "widths": "large"}, "n3", 5_622_553 - 11544),
    ],
)
def test_parameter_counts_for_100_classes_are_the_published_ones(cls, arguments, family, expected):
    assert count(cls, num_classes=100, **arguments, **FAMILIES[family]) == expected


@pytest.mark.parametrize(
    ("classes", "family", "expected"),
    [(10, "plain", 52_578_694), (100, "plain", 52_625_224), (10, "quaternion", 13_184_074)],
)
def test_published_plain_resnet152_large_is_one_of_basic_blocks(classes, family, expected):
    """The published counts of these variants belong to two-convolution blocks, not to the bottlenecks of the others."""
    factory = LayerFactory(**FAMILIES[family])
    assert count(
        ResidualNet, blocks=(3, 8, 36, 3), widths=(60, 120, 240, 516), expansion=1, shortcut="conv", in_channels=3,
        num_classes=classes, factory=factory, family_stem=True,
    ) == expected  # fmt: skip


def test_plain_resnet152_large_has_bottlenecks():
    # by hand: stem, then per stage the first block with its shortcut and the others, then the head; 2 per norm channel
    expected, before = 3 * 60 * 9 + 2 * 60, 60
    for width, blocks in ((60, 3), (120, 8), (240, 36), (516, 3)):
        for block in range(blocks):
            expected += before * width + 9 * width**2 + 4 * width**2 + 2 * (width + width + 4 * width)
            if block == 0:
                expected += before * 4 * width + 2 * 4 * width
            before = 4 * width
    assert count(ResNet, depth=152, widths="large") == expected + before * 10 + 10


@pytest.mark.parametrize(("family", "expected"), [("plain", 21_504), ("quaternion", 5_604), ("n4", 5_796)])
def test_perceptron_counts_are_the_published_ones(family, expected):
    assert (
        count(MLP, in_features=4, hidden=(200, 100), out_features=4, family_head=True, **FAMILIES[family]) == expected
    )


@pytest.mark.parametrize("in_channels", [1, 3, 4, 5])
@pytest.mark.parametrize("family", ["plain", "n2", "n4", "quaternion"])
@pytest.mark.parametrize(
    ("cls", "arguments"),
    [
        (CifarResNet, {"depth": 8, "widths": (4, 8, 8)}),
        (CifarResNet, {"depth": 8, "widths": (4, 8, 8), "shortcut": "pad"}),
        (ResNet, {"depth": 18, "widths": (4, 4, 8, 8)}),
        (ResNet, {"depth": 50, "widths": (4, 4, 8, 8)}),
        (VGG, {"depth": 11, "widths": (4, 4, 8, 8)}),
        (VGG, {"depth": 13, "widths": (4, 4, 8, 8), "batch_norm": False}),
        (SmallCNN, {"widths": (4, 8, 8)}),
        (SmallCNN, {"widths": (4, 8, 8), "hidden": 16}),
    ],
)
def test_any_image_channels_give_scores_and_gradients_everywhere(cls, arguments, family, in_channels):
    net = cls(**arguments, in_channels=in_channels, num_classes=7, **FAMILIES[family])
    scores = net(torch.randn(3, in_channels, 28, 28))
    assert scores.shape == (3, 7)
    scores.square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())


def test_zero_channels_stand_in_front():
    image = torch.randn(2, 3, 5, 5)
    out = PrependZeros(3, 4)(image)
    assert torch.equal(out, torch.cat([torch.zeros(2, 1, 5, 5), image], dim=1))
    assert torch.equal(PrependZeros(4, 4)(image.repeat(1, 2, 1, 1)[:, :4]), image.repeat(1, 2, 1, 1)[:, :4])
    assert PrependZeros(1, 4).channels == PrependZeros(4, 4).channels == 4
    assert PrependZeros(5, 3).channels == 6


@pytest.mark.parametrize(
    ("parametrization", "options", "multiple"),
    [
        (None, {}, 1), ("dense", {}, 1), ("low_rank", {"share": 0.25}, 1), ("low_rank", {"rank": 2}, 1),
        ("kronecker", {}, 4), ("kronecker", {"n": 11}, 11), ("kronecker", {"algebra": "complex"}, 2),
    ],
)  # fmt: skip
def test_multiple_of_channels_is_that_of_the_family(parametrization, options, multiple):
    assert LayerFactory(parametrization, options).multiple == multiple


def test_every_convolution_is_of_the_family_and_the_head_is_not():
    for cls in (CifarResNet, ResNet, SmallCNN):
        net = cls(parametrization="kronecker", options={"n": 4})
        assert not [m for m in net.modules() if isinstance(m, nn.Conv2d)]
        assert sum(isinstance(m, weft.Conv2d) for m in net.modules()) == sum(
            isinstance(m, nn.Conv2d) for m in cls().modules()
        )
        assert type(net.head) is nn.Linear
    classifier = VGG(11, parametrization="kronecker").classifier
    assert [type(m) for m in classifier if hasattr(m, "weight")] == [weft.Linear, weft.Linear, nn.Linear]


def test_hidden_layer_sees_four_by_four_pixels_and_is_of_the_family():
    net = SmallCNN((4, 8), hidden=12, in_channels=4, parametrization="kronecker", options={"n": 4})
    assert [type(m) for m in net.head] == [weft.Linear, nn.ReLU, nn.Linear] and net.head[0].in_features == 8 * 16
    x = torch.randn(2, 4, 16, 16)
    maps = net.eval().features(x)  # 8 x 8 pixels after the pooling
    means = maps.reshape(2, 8, 4, 2, 4, 2).mean((3, 5)).flatten(1)
    assert torch.allclose(net(x), net.head(means), atol=1e-6)


@pytest.mark.parametrize("cls", [CifarResNet, ResNet, SmallCNN, VGG])
def test_stem_can_stay_plain(cls):
    net = cls(in_channels=3, parametrization="low_rank", options={"share": 0.25}, family_stem=False)
    first, *others = [m for m in net.modules() if isinstance(m, nn.Conv2d | weft.Conv2d)]
    assert type(first) is nn.Conv2d
    assert first.in_channels == 3
    assert all(type(m) is weft.Conv2d for m in others)


@pytest.mark.parametrize("family", ["plain", "n4", "quaternion"])
@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_weights_start_with_the_variance_of_he(family, kind):
    factory = LayerFactory(**FAMILIES[family])
    layers = [factory.conv(16, 32, 3) if kind == "conv" else factory.linear(144, 32) for _ in range(100)]
    variance = torch.stack([layer.weight.detach() for layer in layers]).var().item()
    assert variance == pytest.approx(2 / 144, rel=0.05)


def test_network_with_dense_family_computes_what_torch_does():
    plain, dense = CifarResNet(8), CifarResNet(8, parametrization="dense")
    with torch.no_grad():
        ours = [m for m in dense.modules() if isinstance(m, weft.Conv2d)]
        theirs = [m for m in plain.modules() if isinstance(m, nn.Conv2d)]
        for mine, other in zip(ours, theirs, strict=True):
            mine.parametrization.fit_(other.weight.flatten(1))
        dense.head.load_state_dict(plain.head.state_dict())
    x = torch.randn(2, 3, 16, 16)
    assert torch.allclose(plain.eval()(x), dense.eval()(x), atol=1e-5)


def test_padded_shortcut_is_every_second_pixel_between_zeros():
    x = torch.randn(2, 4, 6, 6)
    shortcut = CifarResNet(8, widths=(4, 10, 12), shortcut="pad").stages[1][0].shortcut
    out = shortcut(x)
    assert out.shape == (2, 10, 3, 3)
    assert torch.equal(out[:, 3:7], x[:, :, [0, 2, 4]][:, :, :, [0, 2, 4]])
    assert out[:, :3].eq(0).all()
    assert out[:, 7:].eq(0).all()


def test_residual_block_adds_its_input():
    net = CifarResNet(8, widths=(4, 4, 4)).eval()
    block = net.stages[0][0]
    with torch.no_grad():
        for layer in block.body:
            if isinstance(layer, nn.Conv2d):
                layer.weight.zero_()
    x = torch.randn(2, 4, 6, 6)
    assert torch.equal(block(x), x.clamp(min=0))


GATED = [
    (CifarResNet, {"depth": 8, "widths": (4, 4, 8)}),
    (CifarResNet, {"depth": 14, "widths": (4, 8, 8), "shortcut": "pad"}),
    (ResNet, {"depth": 18, "widths": (4, 4, 8, 8)}),
    (ResNet, {"depth": 50, "widths": (4, 4, 8, 8)}),
]


@pytest.mark.parametrize(("cls", "arguments"), GATED)
@pytest.mark.parametrize("family", ["plain", "n4"])
def test_gated_blocks_start_as_their_shortcuts(cls, arguments, family):
    """Those whose sizes stay are the identity, also of negative numbers: no activation follows the sum."""
    net = cls(**arguments, residual_gate=True, **FAMILIES[family])
    x = net.stem(net.pad(torch.randn(2, 3, 16, 16)))
    identities = 0
    for block in (block for stage in net.stages for block in stage):
        assert isinstance(block, weft.ResidualGate)
        assert isinstance(block.branch[-1], nn.ReLU)
        x = x - 0.5
        same = isinstance(block.shortcut, nn.Identity)
        torch.testing.assert_close(block(x), x if same else block.shortcut(x), rtol=0, atol=0)
        x, identities = block(x), identities + same
    assert identities > 0


@pytest.mark.parametrize(("cls", "arguments"), GATED)
def test_a_gate_adds_one_number_a_block_and_nothing_without_it(cls, arguments):
    plain, gated = cls(**arguments), cls(**arguments, residual_gate=True)
    blocks = sum(len(stage) for stage in plain.stages)
    gates = [p for name, p in gated.named_parameters() if name.endswith("alpha")]
    assert len(gates) == blocks
    assert sum(p.numel() for p in gated.parameters()) == sum(p.numel() for p in plain.parameters()) + blocks
    assert not [key for key in plain.state_dict() if "alpha" in key or "branch" in key]
    assert {key.split(".")[3] for key in plain.state_dict() if key.startswith("stages")} <= {"body", "shortcut"}
    decays = {id(p): g["weight_decay"] for g in weft.parameter_groups(gated, 0.1, 0.01) for p in g["params"]}
    assert {decays[id(gate)] for gate in gates} == {0}
    assert 0.01 in decays.values()


def test_an_open_gate_adds_the_branch():
    block = CifarResNet(8, widths=(4, 4, 4), residual_gate=True).eval().stages[0][0]
    nn.init.constant_(block.alpha, -0.7)
    first, norm, relu, second, other_norm, _ = block.branch
    x = torch.randn(2, 4, 6, 6)
    want = x - 0.7 * other_norm(second(relu(norm(first(x))))).clamp(min=0)
    torch.testing.assert_close(block(x), want)


def test_a_deep_gated_network_trains():
    torch.manual_seed(0)
    net = CifarResNet(26, widths=(4, 8, 8), residual_gate=True, **FAMILIES["n4"])
    images, labels = torch.randn(40, 3, 12, 12), torch.randint(10, (40,))
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(p.item() != 0 for name, p in net.named_parameters() if name.endswith("alpha"))
    assert all(p.grad.any() for name, p in net.named_parameters() if name.endswith("blocks"))


def test_resnet_halves_the_image_three_times():
    net = ResNet(18, widths=(4, 4, 4, 4))
    x = net.stem(net.pad(torch.randn(1, 3, 32, 32)))
    sizes = []
    for stage in net.stages:
        x = stage(x)
        sizes.append(x.shape[-1])
    assert sizes == [32, 16, 8, 4]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CifarResNet(21), "depth must be 6k"),
        (lambda: ResNet(20), "depth must be one of 18, 34, 50, 101, 152, got 20"),
        (lambda: VGG(12), "depth must be one of 11, 13, 16, 19"),
        (lambda: CifarResNet(20, widths="huge"), "widths must be one of standard, large"),
        (lambda: CifarResNet(20, widths=(1, 2)), "widths must give 3 numbers"),
        (lambda: VGG(11, widths=(1, 2)), "widths must give 4 numbers"),
        (lambda: CifarResNet(20, parametrization="kroneker"), "did you mean 'kronecker'"),
        (lambda: CifarResNet(20, parametrization="kronecker", options={"m": 4}), "m"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(OptionError, match=message):
        make()


def test_widths_that_n_does_not_divide_are_refused():
    with pytest.raises(SizeError, match="3 does not divide 16"):
        CifarResNet(20, parametrization="kronecker", options={"n": 3})
