"""Generated tensors start as large as the rule says, per tensor or per chunk."""

import pytest
import torch
from tests.hypernet.helpers import KINDS
from torch import nn

import weft
from weft.hypernet.init import Law, chunk_embedding_variance, chunk_variances, harmonic_mean

RULES = ("unit", "hyperfan_in", "hyperfan_out", "harmonic")


def wanted(rule, fan_in, fan_out, bias, biased=True, relu=2.0):
    """The formulas of the specification, for a network of ReLUs."""
    a = relu / ((2 if biased else 1) * fan_in) if not bias else relu / 2
    b = relu / fan_out if not bias else max(0.0, relu * (1 - fan_in / fan_out))
    both = 0.0 if a * b == 0 else 2 / (1 / a + 1 / b)
    return {"unit": 1 / (3 * fan_in), "hyperfan_in": a, "hyperfan_out": b, "harmonic": both}[rule]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", ["full", "layerwise", "scaling", "low_rank"])
def test_variance_of_every_tensor(rule, kind):
    """The mean over 2000 codes is within 10 % of the rule, of matrices, kernels and biases."""
    net = nn.Sequential(nn.Conv2d(4, 6, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(24, 40), nn.Linear(40, 10))
    hyper = weft.HyperNetwork(net, condition=5, kind=kind, init=rule, **KINDS[kind])
    with torch.no_grad():
        made = hyper.generate(condition=torch.randn(2000, 5))
    rules = {
        "0.weight": (36, 54, False, False), "3.weight": (24, 40, False), "3.bias": (24, 40, True),
        "4.weight": (40, 10, False), "4.bias": (40, 10, True),
    }  # fmt: skip
    assert set(made) == set(rules)
    for name, facts in rules.items():
        got, want = float(made[name].square().mean()), wanted(rule, *facts)
        assert abs(got - want) <= 0.1 * want, f"{name} has {got:.4g}, the rule says {want:.4g}"


@pytest.mark.parametrize(
    "options", [{"hidden": ()}, {"hidden": (30, 20), "activation": "tanh"}, {"activation": "silu"}]
)
def test_any_generator_starts_at_that_size(options):
    hyper = weft.HyperNetwork(nn.Linear(784, 64), num_tasks=1000, embedding_dim=12, **options)
    with torch.no_grad():
        made = hyper.generate(task=torch.arange(1000))["weight"]
    assert abs(float(made.std()) / 0.0206 - 1) < 0.05


def test_a_chunk_that_straddles_tensors_is_scaled_per_entry():
    net = nn.Sequential(nn.Linear(50, 30), nn.ReLU(), nn.Linear(30, 7))
    hyper = weft.HyperNetwork(net, condition=5, kind="chunked", chunk_size=400)
    with torch.no_grad():
        made = hyper.generate(condition=torch.randn(2000, 5))
    for name, fan in {"0.weight": 50, "0.bias": 50, "2.weight": 30, "2.bias": 30}.items():
        assert float(made[name].square().mean()) == pytest.approx(1 / (3 * fan), rel=0.1), name


@pytest.mark.parametrize("condition", [5, None])
def test_chunked_rule(condition):
    """Each chunk has the mean variance of its entries, by the size of its embedding; no fixed scales."""
    net = nn.Sequential(nn.Linear(50, 30), nn.ReLU(), nn.Linear(30, 7))
    hyper = weft.HyperNetwork(
        net, condition=condition, num_tasks=None if condition else 1, embedding_dim=None if condition else 5,
        kind="chunked", chunk_size=100, slot_embedding_dim=400, init="hyperfan_in", hidden=(100,),
    )  # fmt: skip
    entries = [wanted("hyperfan_in", 50, 30, False)] * 1500 + [1.0] * 30 + [wanted("hyperfan_in", 30, 7, False)] * 210
    entries += [1.0] * 7
    chunks = [entries[start : start + 100] for start in range(0, len(entries), 100)]
    goals = torch.tensor([sum(chunk) / len(chunk) for chunk in chunks])
    assert hyper.generator.scale.eq(1).all()
    assert float(hyper.generator.code_scale) ** 2 == pytest.approx(float(goals.min()), rel=1e-4)
    with torch.no_grad():
        codes = torch.randn(1000, 5)
        flat = torch.cat([row.dense().flatten(1) for row in hyper.generator(codes)], 1)
    got = torch.stack([part.square().mean() for part in flat.split(100, 1)])
    assert float((got / goals).mean()) == pytest.approx(1, rel=0.1)
    ratios = (got / goals).log().abs()  # one draw of one chunk's embedding may differ by more than the mean may
    assert float(ratios.max()) < torch.tensor(2.5).log()
    embedded = hyper.generator.chunk_embeddings.detach().square().mean(1)
    torch.testing.assert_close(embedded, (405 * goals - 5 * goals.min()) / 400, rtol=0.3, atol=0)


def test_constant_tensors_keep_their_value():
    """Gains of norm layers start about 1, and every kind can move them."""
    net = nn.Sequential(nn.Linear(6, 40), nn.LayerNorm(40), weft.hypernet.SlotSwish(40))
    for kind, options in {**KINDS, "chunked": {"num_chunks": 4}}.items():
        hyper = weft.HyperNetwork(net, condition=5, kind=kind, **options)
        with torch.no_grad():
            made = hyper.generate(condition=torch.randn(2000, 5))
        for name, mean in {"1.weight": 1.0, "1.bias": 0.0, "2.beta": 0.5}.items():
            assert float((made[name] - mean).square().mean().sqrt()) == pytest.approx(0.1, rel=0.1), (kind, name)


def test_factors_of_structured_layers_keep_their_law():
    layer = weft.Linear(60, 40, parametrization="low_rank", rank=4)
    hyper = weft.HyperNetwork(layer, condition=5, init="hyperfan_in")
    with torch.no_grad():
        made = hyper.generate(condition=torch.randn(2000, 5))
    for name, parameter in layer.parametrization.named_parameters():
        assert float(made[f"parametrization.{name}"].std()) == pytest.approx(float(parameter.detach().std()), rel=0.1)


@pytest.mark.parametrize("kind", ["scaling", "low_rank"])
def test_half_precision_is_measured_in_double(kind):
    """Sums of squares of a large matrix are beyond float16."""
    hyper = weft.HyperNetwork(nn.Linear(784, 32).half(), condition=4, kind=kind, **KINDS[kind])
    with torch.no_grad():
        made = hyper.generate(condition=torch.randn(500, 4).half())["weight"]
    assert float(made.float().std()) == pytest.approx((3 * 784) ** -0.5, rel=0.1)


def test_norms_without_values_yet():
    with torch.device("meta"):
        net = nn.Sequential(nn.LayerNorm(6), nn.GroupNorm(2, 6), nn.BatchNorm1d(6), nn.RMSNorm(6))
    hyper = weft.HyperNetwork(net, condition=4).to_empty(device="cpu")
    hyper.reset_parameters()
    with torch.no_grad():
        made = hyper.generate(condition=torch.randn(500, 4))
    for name, tensor in made.items():
        assert float(tensor.mean()) == pytest.approx(float(name.endswith("weight")), abs=0.1), name


def test_a_variance_of_zero_can_be_left():
    """Where the rule says 0, the tensor starts at 0 but its head learns."""
    hyper = weft.HyperNetwork(nn.Linear(9, 3), condition=2, init="hyperfan_out")
    bias = hyper.generate(condition=torch.randn(4, 2))["bias"]
    assert not bias.any()
    bias.sum().backward()
    assert hyper.generator.heads[1].weight.grad.abs().max() > 0


def test_gain_is_found_and_may_be_given():
    for last, gain, want in ((nn.ReLU(), None, 2 / 8), (nn.Tanh(), None, 1 / 8), (nn.Tanh(), 3.0, 3 / 8)):
        net = nn.Sequential(nn.Linear(4, 50), last)
        hyper = weft.HyperNetwork(net, condition=3, init="hyperfan_in", gain=gain)
        with torch.no_grad():
            got = hyper.generate(condition=torch.randn(3000, 3))["0.weight"].square().mean()
        assert float(got) == pytest.approx(want, rel=0.1)


def test_formulas():
    assert harmonic_mean(3.0, 6.0) == pytest.approx(2 / (1 / 3 + 1 / 6))
    assert harmonic_mean(0.0, 6.0) == 0
    assert chunk_variances([2.0, 5.0, 1.0], [3, 4, 2], 5) == pytest.approx([(6 + 10) / 5, (10 + 2) / 4])
    assert chunk_embedding_variance(0.1, 1.0, 4, 2) == 0
    assert Law(0.0, 0.3).variance("harmonic", 2.0) == pytest.approx(0.09)
