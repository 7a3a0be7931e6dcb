import pytest
import torch
import torch.nn.functional as F
from torch import nn

import weft
from weft.errors import OptionError
from weft.models import mimonet, wide_isonet, wide_isorelunet, wide_network, wide_resnet
from weft.models.wide_resnet import SReLU, WideBlock


def count(net):
    return sum(p.numel() for p in net.parameters())


# Published counts; they hold one unused multiplier per block, which ours leave out.
@pytest.mark.parametrize(
    ("make", "options", "published", "blocks"),
    [
        (wide_resnet, {"depth": 28}, 36_480_198, 12),
        (wide_isorelunet, {"depth": 28}, 36_480_198, 12),
        (wide_isonet, {"depth": 28}, 36_488_534, 12),
        (mimonet, {"depth": 28, "num_inputs": 1}, 36_977_174, 12),
        (mimonet, {"depth": 28, "num_inputs": 2}, 37_387_478, 12),
        (mimonet, {"depth": 28, "num_inputs": 4}, 38_208_086, 12),
        (mimonet, {"depth": 28, "num_inputs": 4, "binding": "mbat"}, 38_224_214, 12),
        (mimonet, {"depth": 28, "num_inputs": 1, "num_classes": 100}, 37_034_864, 12),
        (mimonet, {"depth": 28, "num_inputs": 2, "num_classes": 100}, 37_445_168, 12),
        (mimonet, {"depth": 28, "num_inputs": 4, "num_classes": 100}, 38_265_776, 12),
        (mimonet, {"depth": 28, "width": 1, "num_inputs": 4}, 396_854, 12),
        (mimonet, {"depth": 16, "width": 1, "num_inputs": 4}, 201_968, 6),
        (mimonet, {"depth": 10, "width": 1, "num_inputs": 4}, 104_525, 3),
    ],
)
def test_parameter_counts_are_the_published_ones(make, options, published, blocks):
    with torch.device("meta"):
        assert count(make(**options)) == published - blocks


def test_multiply_adds_per_image_are_the_published_ones():
    from torch.utils.flop_counter import FlopCounterMode

    for options, published in (
        ({"num_inputs": 1}, 5.3280e9),
        ({"num_inputs": 2}, 2.6672e9),
        ({"num_inputs": 4}, 1.3368e9),
    ):
        with torch.device("meta"):
            net, x = mimonet(28, 10, **options).eval(), torch.randn(4, 3, 32, 32)
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                net(x)
        assert counter.get_total_flops() / 2 / 4 == pytest.approx(published, rel=2e-4)


def plain_wide_resnet(net, x):
    """The network written out, on the weights of ``net``, in evaluation mode."""

    def norm(x, m):
        return F.batch_norm(x, m.running_mean, m.running_var, m.weight, m.bias, False, 0.0, m.eps)

    x = F.relu(norm(F.conv2d(x, net.stem[0].weight, padding=1), net.stem[1]))
    for block in net.trunk:
        if isinstance(block, WideBlock):
            n1, _, c1, n2, _, c2 = block.branch
            side = x
            if not isinstance(block.shortcut, nn.Identity):
                side = norm(F.conv2d(x, block.shortcut[0].weight, stride=c1.stride), block.shortcut[1])
            x = F.conv2d(F.relu(norm(x, n1)), c1.weight, stride=c1.stride, padding=1)
            x = side + F.conv2d(F.relu(norm(x, n2)), c2.weight, padding=1)
    return net.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


def test_one_input_without_binding_is_a_wide_resnet_to_the_bit():
    net = wide_resnet(16, 1)
    net(torch.randn(4, 3, 16, 16))  # statistics that are not 0 and 1
    x = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(net.eval()(x), plain_wide_resnet(net, x))


def test_activations():
    x = torch.randn(2, 3, 4, 4)
    srelu = SReLU(3)
    with torch.no_grad():
        srelu.bias.copy_(torch.tensor([-0.5, 0.1, 0.7]))
    b = srelu.bias[:, None, None]
    torch.testing.assert_close(srelu(x), F.relu(x - b) + b)
    kinds = {type(m) for m in mimonet(10, 1).trunk.modules()}
    assert nn.PReLU in kinds
    assert nn.ReLU not in kinds
    assert any(isinstance(m, nn.ReLU) for m in wide_isonet(10, 1).stem), "the stem keeps ReLU"
    assert all((m.weight == 0.3).all() for m in mimonet(10, 1, relu_parameter=0.3).modules() if isinstance(m, nn.PReLU))


def test_switches():
    gated = mimonet(10, 1, num_inputs=2, skip_init=True)
    assert all(m.alpha == 0 for m in gated.modules() if isinstance(m, WideBlock))
    bare = mimonet(10, 1, num_inputs=2, batch_norm=False)
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in bare.modules())
    dirac = mimonet(10, 1, num_inputs=2, dirac_init=True)
    assert dirac.trunk[0].branch[5].weight.sum() == 16
    assert weft.superposition.isometry_penalty(dirac.trunk[0].branch[5]).item() == 0
    frozen = mimonet(10, 1, num_inputs=2, trainable_keys=False)
    assert not list(frozen.binding.parameters())
    assert mimonet(10, 1, num_inputs=2, binding_options={"unitary": True}).binding.unitary


def test_initial_gain_follows_the_activation_or_the_published_run():
    for init, gain in (("activation", 2 / (1 + 0.5**2)), ("relu", 2.0)):
        weight = mimonet(10, 4, init=init).trunk[2].branch[5].weight
        assert weight.var().item() == pytest.approx(gain / (256 * 9), rel=0.02)


@pytest.mark.parametrize(("blocks", "side"), [((1, 1), 16), ((1, 1, 1), 16), ((1, 1, 1, 1), 64)])
def test_stems_and_stages(blocks, side):
    net = wide_network(blocks=blocks, width=0.25, num_inputs=2, binding="hrr").eval()
    assert net(torch.randn(2, 3, side, side)).shape == (2, 10)


def test_any_family():
    net = mimonet(10, 1, num_inputs=2, parametrization="kronecker", options={"n": 4}).eval()
    assert count(net) < count(mimonet(10, 1, num_inputs=2))
    assert net(torch.randn(4, 3, 16, 16)).shape == (4, 10)


def test_bad_input_is_named():
    for call, words in (
        (lambda: mimonet(12), "depth must be 6k"),
        (lambda: wide_network(blocks=(1,)), "blocks must be"),
        (lambda: mimonet(10, 0.01), "at least one channel"),
        (lambda: mimonet(10, init="x"), "init must"),
        (lambda: wide_network(10, activation="gelu"), "activation must be one of"),
    ):
        with pytest.raises(OptionError, match=words):
            call()
