"""The evaluation cache is never stale: every way in which parameters change behind its back."""

import copy
import pickle

import pytest
import torch
from tests.cases import PHM
from tests.layers.caching import assert_fresh, fill, make_layer, run, truth
from tests.toys import Nested
from torch import nn

import weft
from weft.testing import assert_same, oracles

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1),
    "fused sgd": lambda p: torch.optim.SGD(p, lr=0.1, fused=True),
    "fused adam": lambda p: torch.optim.Adam(p, lr=0.1, fused=True),
    "fused adamw": lambda p: torch.optim.AdamW(p, lr=0.1, fused=True),
    "foreach adam": lambda p: torch.optim.Adam(p, lr=0.1, foreach=True),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_optimizer_step_while_in_evaluation_mode(layer, x, optimizer):
    stepper = OPTIMIZERS[optimizer](layer.parameters())
    for parameter in layer.parameters():
        parameter.grad = torch.randn_like(parameter)
    before = fill(layer, x)
    stepper.step()
    assert_fresh(layer, x, before)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_between_evaluations(layer, x, optimizer):
    stepper = OPTIMIZERS[optimizer](layer.parameters())
    for _ in range(3):
        before = fill(layer.eval(), x)
        stepper.zero_grad()
        layer.train()(x).square().sum().backward()
        stepper.step()
        assert_fresh(layer.eval(), x, before)


def test_step_hidden_from_version_counters(layer, x):
    """What a fused step does on some devices: new values, same version, same address."""

    class Hidden(torch.optim.Optimizer):
        def __init__(self, parameters):
            super().__init__(parameters, {})

        def step(self):
            for parameter in self.param_groups[0]["params"]:
                parameter.data.mul_(3)

    before = fill(layer, x)
    Hidden(layer.parameters()).step()
    assert_fresh(layer, x, before)


@pytest.mark.parametrize("name", ["mixing", "blocks"])
def test_edit_without_gradients(layer, x, name):
    before = fill(layer, x)
    with torch.no_grad():
        getattr(layer.parametrization, name).mul_(2)
    assert_fresh(layer, x, before)
    before = fill(layer, x)
    with torch.no_grad():
        getattr(layer.parametrization, name)[0, 0, 0] = 7.0
    assert_fresh(layer, x, before)


def test_load_state_dict(layer, x):
    for assign in (False, True):
        before = fill(layer, x)
        layer.load_state_dict(make_layer().state_dict(), assign=assign)
        assert_fresh(layer, x, before)
    before = fill(layer, x)
    layer.parametrization.load_state_dict(make_layer().parametrization.state_dict())  # not through the layer
    assert_fresh(layer, x, before)


def test_plain_checkpoint(layer, x):
    before = fill(layer, x)
    with pytest.warns(UserWarning, match="fitted"):
        layer.load_state_dict(nn.Linear(12, 8, dtype=torch.float64).state_dict())
    assert_fresh(layer, x, before)


def test_fit_and_reset(layer, x):
    before = fill(layer, x)
    layer.parametrization.fit_(torch.randn(8, 12))
    assert_fresh(layer, x, before)
    before = fill(layer, x)
    layer.parametrization.reset_parameters()
    assert_fresh(layer, x, before)


def test_dtype(layer, x):
    fill(layer, x)
    layer.float()
    assert run(layer, x.float()).dtype == torch.float32
    assert_same(run(layer, x.float()), truth(layer, x.float()), 1e-5, "the output in fp32")
    layer.double()
    assert_fresh(layer, x)


def test_parametrization_moved_without_the_layer(layer, x):
    fill(layer, x)
    layer.parametrization.float()
    layer.bias.data = layer.bias.data.float()
    assert run(layer, x.float()).dtype == torch.float32


def test_copies(layer, x):
    before = fill(layer, x)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), copy.copy(layer)):
        with torch.no_grad():
            twin.parametrization.blocks.add_(1)
        assert_fresh(twin, x, before)
        assert_fresh(layer, x)
    assert copy.deepcopy(layer._cache).entry is None
    assert copy.copy(layer._cache).entry is None


def test_new_data(layer, x):
    for _ in range(20):  # a freed storage is likely to come back at the same address
        before = fill(layer, x)
        layer.parametrization.blocks.data = torch.randn(4, 2, 3, dtype=torch.float64)
        assert_fresh(layer, x, before)


def test_other_storage(layer, x):
    before = fill(layer, x)
    other = torch.randn(4, 2, 3, dtype=torch.float64)
    with torch.no_grad():
        layer.parametrization.blocks.set_(other)
    assert_fresh(layer, x, before)


def test_replaced_parameter(layer, x):
    before = fill(layer, x)
    layer.parametrization.blocks = nn.Parameter(torch.randn(4, 2, 3, dtype=torch.float64))
    assert_fresh(layer, x, before)
    before = fill(layer, x)
    layer.parametrization._parameters["mixing"] = nn.Parameter(torch.randn(4, 4, 4, dtype=torch.float64))
    assert_fresh(layer, x, before)


def test_replaced_parametrization(layer, x):
    before = fill(layer, x)
    layer.parametrization = PHM.member((8, 12))
    assert_fresh(layer, x, before)
    before = fill(layer, x)
    layer._modules["parametrization"] = PHM.member((8, 12))
    assert_fresh(layer, x, before)


def test_parts_of_a_nested_parametrization(x):
    member = Nested(PHM.member((8, 12)))
    layer = weft.Linear(12, 8, parametrization=member, dtype=torch.float64).eval()

    def assert_nested_fresh(before):
        inner = member.inner
        want = x @ (member.scale * oracles.sum_of_kroneckers(inner.mixing, inner.blocks)).T + layer.bias
        assert_same(run(layer, x), want, 1e-11, "the output")
        assert not torch.allclose(want, before)

    before = fill(layer, x)
    member.inner.blocks.data = torch.randn(4, 2, 3, dtype=torch.float64)
    assert_nested_fresh(before)
    before = fill(layer, x)
    member.inner = PHM.member((8, 12))
    assert_nested_fresh(before)
    before = fill(layer, x)
    with torch.no_grad():
        member.scale.mul_(2)  # a buffer
    assert_nested_fresh(before)
    before = fill(layer, x)
    member.scale = torch.full((), 0.5, dtype=torch.float64)
    assert_nested_fresh(before)


def test_edit_of_the_returned_weight(layer, x):
    before = fill(layer, x)
    with torch.no_grad():
        weight = layer.weight
        weight.zero_()
    assert_fresh(layer, x)
    assert_same(run(layer, x), before, 1e-12, "the output")
    with torch.inference_mode():
        layer.weight.mul_(2)
    assert_same(run(layer, x), before, 1e-12, "the output")


def test_unseen_write_needs_clear_cache(layer, x):
    """The documented limit: a write through ``.data`` in the middle of evaluation."""
    model = nn.Sequential(nn.Identity(), layer)
    before = fill(layer, x)
    layer.parametrization.blocks.data.mul_(2)
    assert_same(run(layer, x), before, 0, "the output before clear_cache")
    weft.clear_cache(model)
    assert_fresh(layer, x, before)
    for notice in (layer.eval, layer.train, lambda: layer(x), layer.clear_cache):
        before = fill(layer.eval(), x)
        layer.parametrization.blocks.data.mul_(2)
        notice()
        vars(layer)["training"] = False  # past __setattr__, so that only `notice` is seen
        assert_fresh(layer, x, before)
