"""Modules that nothing is known of: whatever their forward does, rows are separate and the module stays as it was."""

import copy

import pytest
import torch
import torch.nn.functional as F
from tests.hypernet.helpers import conditional, loop, of_tasks
from torch import nn

import weft
from weft.errors import OptionError
from weft.hypernet import check_gradients, per_row_call
from weft.testing import assert_same

DOUBLE = {"dtype": torch.float64}


class Free(nn.Module):
    """A linear layer, and a forward of one's own."""

    def __init__(self, forward):
        super().__init__()
        self.layer, self.own = nn.Linear(3, 3, **DOUBLE), forward
        self.register_buffer("seen", torch.zeros(3, **DOUBLE))

    def forward(self, x):
        return self.own(self, x)


def writes(self, x):
    y = torch.zeros(len(x), 3, **DOUBLE)
    y[:, 0] = self.layer(x)[:, 0]
    return y


def adds_in_place(self, x):
    y = torch.zeros(len(x), 3, **DOUBLE)
    y += self.layer(x)
    return y


def masks(self, x):
    y = self.layer(x).clone()
    y[y > 0] = 0.5
    return y


def reads(self, x):
    return self.layer(x) * max(self.layer(x)[0].tolist())


def counts(self, x):
    return self.layer(x) + len(torch.nonzero(self.layer(x) > 0))


def cuts(self, x):
    return F.linear(x, self.layer.weight.data, self.layer.bias)


@pytest.mark.parametrize("forward", [writes, adds_in_place, masks, reads, counts, cuts], ids=lambda f: f.__name__)
def test_what_vmap_cannot_do_runs_row_by_row(forward):
    target, codes, x = Free(forward), torch.randn(5, 4, **DOUBLE), torch.randn(5, 3, **DOUBLE)
    hyper = conditional(target)
    assert_same(hyper(x, condition=codes), loop(hyper, target, codes, x), 1e-10, forward.__name__)
    assert hyper.explain(x, condition=codes).parts[0].path == "loop"


def test_a_fault_of_the_target_is_told_as_it_is():
    hyper = conditional(Free(lambda self, x: self.layer(x)[:, :2] @ torch.ones(3, 3, **DOUBLE)))
    with pytest.raises(RuntimeError, match=r"mat1 and mat2 shapes cannot be multiplied \(1x2 and 3x3\)"):
        hyper(torch.randn(5, 3, **DOUBLE), condition=torch.randn(5, 4, **DOUBLE))


class Shared(nn.Module):
    """One layer under two names."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 4, **DOUBLE)
        self.b = self.a

    def forward(self, x):
        return self.b(self.a(x).tanh())


def test_a_layer_of_two_names_is_one():
    hyper, target, x = conditional(Shared()), Shared(), torch.randn(5, 4, **DOUBLE)
    codes = torch.randn(5, 4, **DOUBLE)
    for part in (slice(0, 5), slice(0, 1), slice(0, 5)):  # again: nothing was left in the target
        got = hyper(x[part], condition=codes[part])
        assert_same(got, loop(hyper, target, codes[part], x[part]), 1e-10, "the output")
    assert not list(hyper.target.parameters())


@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("call", [{"task": 0}, {"task": torch.tensor([0, 1, 1])}])
def test_recurrent_layers_forget_the_call(cell, call):
    hyper = of_tasks(cell(3, 4, batch_first=True, **DOUBLE))
    x = torch.randn(3, 5, 3, **DOUBLE)
    first = hyper(x, **call)[0]
    assert copy.deepcopy(hyper)(x, **call)[0].equal(first)
    assert check_gradients(hyper, {"x": x, **call}).checked
    assert_same(hyper.fold(0)(x)[0], hyper(x, task=0)[0], 1e-10, "the folded layer")
    with torch.no_grad():
        hyper.generator.heads[0].bias.add_(1)
    assert not hyper(x, **call)[0].equal(first)


def test_attention_in_evaluation_has_gradients():
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, dropout=0.0, **DOUBLE)
    hyper, x, codes = conditional(layer), torch.randn(3, 5, 4, **DOUBLE), torch.randn(3, 4, **DOUBLE)
    slopes = []
    for mode in (True, False):
        hyper.train(mode).zero_grad()
        hyper(x, condition=codes).square().sum().backward()
        slopes.append(hyper.generator.heads[0].weight.grad.clone())
    assert_same(slopes[1], slopes[0], 1e-10, "the gradient")
    assert torch.backends.mha.get_fastpath_enabled()


def test_outputs_may_hold_what_is_no_tensor():
    class Several(Free):
        def forward(self, x):
            y = self.layer(x)
            return {"y": y, "none": None, "sum": y.sum()}

    hyper, target = conditional(Several(None)), nn.Linear(3, 3, **DOUBLE)
    x, codes = torch.randn(4, 3, **DOUBLE), torch.randn(4, 4, **DOUBLE)
    made = {name.removeprefix("layer."): t for name, t in hyper.generate(condition=codes).items()}
    want = per_row_call(target, made, x)
    for rows in (4, 1):
        got = hyper(x[:rows], condition=codes[:rows])
        assert got["none"] is None
        assert_same(got["y"], want[:rows], 1e-10, "y")
        assert_same(got["sum"], want[:rows].sum(1), 1e-10, "a number per row")


def test_padding_of_embeddings_gets_no_gradient_in_any_row():
    weight = torch.randn(3, 4, 2, **DOUBLE, requires_grad=True)
    ids = torch.tensor([[1, 3], [0, 3], [2, 2]])
    per_row_call(nn.Embedding(4, 2, padding_idx=3, **DOUBLE), {"weight": weight}, ids).sum().backward()
    want = torch.zeros(3, 4, 2, **DOUBLE)
    want[0, 1] = want[1, 0] = 1
    want[2, 2] = 2
    assert weight.grad.equal(want)


def test_an_empty_batch_keeps_its_graph():
    hyper = conditional(nn.Sequential(nn.ConvTranspose1d(3, 2, 2), nn.ReLU()).double())
    y = hyper(torch.randn(0, 3, 5, **DOUBLE), condition=torch.randn(0, 4, **DOUBLE))
    assert y.shape == (0, 2, 6)
    y.sum().backward()
    assert all(not p.grad.any() for p in hyper.generator.parameters())


def test_kept_activations_do_not_outlive_a_call_by_rows():
    class Keeps(Free):
        last = None

        def forward(self, x):
            self.last = self.layer(x)
            self.calls = getattr(self, "calls", 0) + 1
            return self.last

    hyper, x = conditional(Keeps(None)), torch.randn(4, 3, **DOUBLE)
    hyper(x, condition=torch.randn(4, 4, **DOUBLE))
    assert hyper.target.last is None
    assert hyper.target.calls == 1  # a number is nothing of one row's
    copy.deepcopy(hyper)
    one = of_tasks(Keeps(None))
    y = one(x, task=1)
    assert one.target.last.equal(y)


def moves(self, x):
    self.seen += self.layer(x).sum(0).detach()
    return self.layer(x)


def replaces(self, x):
    self.seen = self.seen + self.layer(x).sum(0).detach()
    return self.layer(x)


@pytest.mark.parametrize("forward", [moves, replaces])
@pytest.mark.parametrize("rows", [4, 1])
def test_buffers_move_for_one_network_alone(forward, rows):
    hyper, x = conditional(Free(forward)), torch.randn(rows, 3, **DOUBLE)
    with pytest.raises(OptionError, match=r"Free updates its buffer 'seen' in forward, which belongs to one network"):
        hyper(x, condition=torch.randn(rows, 4, **DOUBLE))
    assert not hyper.target.seen.any()
    one = of_tasks(Free(forward))
    y = one(x, task=0)
    assert_same(one.target.seen, y.sum(0), 1e-10, "the buffer")


@pytest.mark.parametrize("kind", ["full", "chunked", "scaling", "low_rank"])
def test_generated_parameters_are_fp32_under_autocast(kind):
    """As a plain module's are: norms, attention and embeddings mix them with what autocast leaves alone."""
    options = {"chunked": {"num_chunks": 3}, "low_rank": {"rank": 1}}.get(kind, {})
    rows = torch.tensor([0, 1, 1])
    cases = {
        "norm": (nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)), torch.randn(3, 4)),
        "attention": (nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), torch.randn(3, 5, 4)),
        "transposed": (nn.Sequential(nn.Conv2d(1, 2, 1), nn.ConvTranspose2d(2, 1, 2)), torch.randn(3, 1, 3, 3)),
        "embedding": (nn.Embedding(5, 3), torch.randint(5, (3,))),
    }
    for name, (target, x) in cases.items():
        hyper = weft.HyperNetwork(target, num_tasks=2, kind=kind, **options)
        for mode in (True, False):
            with torch.autocast("cpu", torch.bfloat16):
                want = target.train(mode)(x).dtype
                assert hyper.train(mode)(x, task=0).dtype == want, name
                assert mode or hyper(x, task=rows).dtype == want, name
                with torch.no_grad():
                    assert hyper(x, task=0).dtype == target(x).dtype, name
                assert all(t.dtype == torch.float32 for t in hyper.generate(task=0).values())
