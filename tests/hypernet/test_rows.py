"""Every row of the batch runs through its own network, whatever is the fastest way."""

import pytest
import torch
from tests.hypernet.helpers import KINDS, conditional, generate, loop, mlp, of_tasks
from torch import nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import weft
from weft.errors import OptionError, SizeError
from weft.testing import assert_same

DOUBLE = {"dtype": torch.float64}


class Residual(nn.Module):
    """No sequence: nothing is known of its forward."""

    def __init__(self, width):
        super().__init__()
        self.inner, self.gain = nn.Linear(width, width, **DOUBLE), nn.Parameter(torch.tensor(0.7, **DOUBLE))

    def forward(self, x):
        return x + self.gain * torch.tanh(self.inner(x))


def conv_net(cls=nn.Conv2d, padding_mode="zeros"):
    pool = nn.AdaptiveAvgPool2d(1) if cls is nn.Conv2d else nn.AdaptiveAvgPool1d(1)
    return nn.Sequential(
        cls(4, 6, 3, stride=2, padding=2, dilation=2, groups=2, padding_mode=padding_mode), nn.GroupNorm(2, 6),
        nn.SiLU(),
        cls(6, 5, 1, bias=False), pool, nn.Flatten(), nn.Linear(5, 3),
    ).double()  # fmt: skip


class Branching(nn.Module):
    """Runs what its values say, which vmap refuses."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 2, **DOUBLE), nn.Linear(3, 2, **DOUBLE)

    def forward(self, x):
        return self.a(x) if bool(x.sum() > 0) else self.b(x)


class Last(nn.Module):
    """A recurrent layer, for which torch has no batching rule."""

    def __init__(self):
        super().__init__()
        self.cell = nn.LSTM(3, 4, batch_first=True, **DOUBLE)

    def forward(self, x):
        return self.cell(x)[0]


TARGETS = {
    "branching": (Branching, (3,)),
    "recurrent": (Last, (5, 3)),
    "linear": (lambda: nn.Linear(7, 3, **DOUBLE), (7,)),
    "wide": (lambda: nn.Sequential(nn.Linear(3, 9), nn.ELU(), nn.Linear(9, 9, bias=False)).double(), (3,)),
    "mlp": (mlp, (7,)),
    "words": (mlp, (2, 4, 7)),
    "conv1d": (lambda: conv_net(nn.Conv1d), (4, 11)),
    "conv2d": (conv_net, (4, 7, 8)),
    "circular": (lambda: conv_net(padding_mode="circular"), (4, 7, 8)),
    "same": (lambda: nn.Conv2d(2, 3, (3, 1), padding="same", **DOUBLE), (2, 5, 4)),
    "conv3d": (lambda: nn.Conv3d(2, 3, (1, 2, 3), padding=1, **DOUBLE), (2, 3, 4, 5)),
    "module": (lambda: Residual(4), (4,)),
    "mixed": (
        lambda: nn.Sequential(
            nn.Sequential(nn.Linear(5, 4), weft.hypernet.SlotSwish(4)), nn.LayerNorm(4), Residual(4), nn.PReLU(),
            nn.RMSNorm(4),
            nn.Linear(4, 2),
        ).double(),
        (5,),
    ),
    "transposed": (lambda: nn.Sequential(nn.ConvTranspose2d(2, 3, 2, stride=2), nn.ReLU()).double(), (2, 3, 4)),
    "structured": (
        lambda: nn.Sequential(
            weft.Linear(8, 6, parametrization="low_rank", rank=2), nn.ReLU(), weft.PHMLinear(6, 4, n=2)
        ).double(),
        (8,),
    ),
}  # fmt: skip


def randomised(target):
    with torch.no_grad():
        for p in target.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return target


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_separate_networks(name, kind):
    """Any batch, one row and an odd last batch included, with and without samples per row, is a loop over rows."""
    make, size = TARGETS[name]
    target = randomised(make())
    options = {"rank": 1} if kind == "low_rank" else {}
    hyper = conditional(target, kind, **options)
    codes, x = torch.randn(5, 4, **DOUBLE), torch.randn(5, *size, **DOUBLE)
    want = loop(hyper, target, codes, x)
    for part in (slice(0, 5), slice(0, 1), slice(2, 5), slice(0, 0)):
        got = hyper(x[part], condition=codes[part])
        assert got.shape == want[part].shape
        assert_same(got, want[part], 1e-10, f"the output of rows {part}")
    with torch.no_grad():
        assert_same(hyper.eval()(x, condition=codes), want, 1e-10, "the output without gradients")
    many = torch.randn(3, 4, *size, **DOUBLE)
    want = loop(hyper, target, codes[:3], many, samples=4)
    assert_same(hyper(many, condition=codes[:3], samples=4), want, 1e-10, "the output of 4 samples per row")


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_loop(kind):
    """Also of gradients of gradients, and of every parameter and input."""
    target = mlp()
    hyper, x = conditional(target, kind), torch.randn(5, 7, **DOUBLE, requires_grad=True)
    codes = torch.randn(5, 4, **DOUBLE, requires_grad=True)
    tensors = [x, codes, *hyper.parameters()]
    weights = hyper.generate(condition=codes)
    rows = [functional_call(target, {n: w[b] for n, w in weights.items()}, (x[b : b + 1],)) for b in range(5)]
    want = torch.autograd.grad(torch.cat(rows).pow(3).sum(), tensors)
    got = torch.autograd.grad(hyper(x, condition=codes).pow(3).sum(), tensors)
    for a, b in zip(got, want, strict=True):
        assert float(b.abs().max()) > 0
        assert_same(a, b, 1e-10, "a gradient")
    assert torch.autograd.gradgradcheck(lambda c: hyper(x, condition=c).sum(1), codes)


@pytest.mark.parametrize("kind", KINDS)
def test_generated_tensors_are_the_definition(kind):
    hyper, codes = conditional(conv_net(), kind, rank=1) if kind == "low_rank" else conditional(conv_net(), kind), None
    codes = torch.randn(3, 4, **DOUBLE)
    made = hyper.generate(condition=codes)
    assert list(made) == [slot.name for slot in hyper.slots] == [name for name, _ in conv_net().named_parameters()]
    for b in range(3):
        for name, want in generate(hyper, codes[b]).items():
            assert_same(made[name][b], want, 1e-10, name)


@pytest.mark.parametrize("kind", KINDS)
def test_tasks(kind):
    """One network for the whole batch, one per row, and samples of one task are the same thing."""
    target = mlp()
    hyper, x = of_tasks(target, kind), torch.randn(6, 7, **DOUBLE)
    ids = torch.tensor([2, 0, 1, 1, 2, 0])
    want = loop(hyper, target, hyper.embeddings[ids], x)
    assert_same(hyper(x, task=ids), want, 1e-10, "ids")
    for mode in (True, False):
        hyper.train(mode)
        for task in (0, 2):
            with torch.set_grad_enabled(mode):
                got = hyper(x, task=task)
            assert_same(got[ids == task], want[ids == task], 1e-10, f"task {task}, training={mode}")
            assert_same(hyper.fold(task)(x), got, 1e-10, "folded")
    assert_same(hyper(x[:, None], task=1, samples=1)[:, 0], hyper(x, task=1), 1e-10, "samples of one task")
    assert_same(hyper(x, task=torch.tensor(1)), hyper(x, task=1), 0, "an id in a tensor")


def test_condition_modules_and_several_inputs():
    """Support sets of any size make a code; a target may take and return several tensors."""

    class Pool(nn.Module):
        def __init__(self):
            super().__init__()
            self.map = nn.Linear(3, 6, **DOUBLE)

        def forward(self, support):
            return self.map(support).mean(1)

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 2, **DOUBLE), nn.Linear(5, 2, **DOUBLE)

        def forward(self, x, y):
            return {"sum": self.a(x) + self.b(y), "a": self.a(x)}

    hyper = weft.HyperNetwork(Two(), Pool(), embedding_dim=6)
    support, x, y = torch.randn(3, 8, 3, **DOUBLE), torch.randn(3, 4, **DOUBLE), torch.randn(3, 5, **DOUBLE)
    out, weights = hyper(x, y, condition=support), hyper.generate(condition=support)
    for b in range(3):
        one = functional_call(Two(), {n: w[b] for n, w in weights.items()}, (x[b : b + 1], y[b : b + 1]))
        for key, want in one.items():
            assert_same(out[key][b : b + 1], want, 1e-10, key)
    out["sum"].sum().backward()
    assert float(hyper.encoder.map.weight.grad.abs().max()) > 0


def test_dropout_differs_from_row_to_row():
    class Opaque(nn.Module):
        def forward(self, x):
            return nn.functional.dropout(x)

    for inner in (nn.Dropout(), Opaque()):
        hyper = weft.HyperNetwork(nn.Sequential(inner, nn.Linear(50, 50)), condition=2)
        y = hyper(torch.ones(2, 50), condition=torch.ones(2, 2))
        assert not torch.allclose(y[0], y[1])


def test_hooks_in_the_target_run():
    hyper, seen = conditional(mlp()), []
    hyper.target[0].register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    hyper(torch.randn(3, 7, **DOUBLE), condition=torch.randn(3, 4, **DOUBLE))
    assert len(seen) == 1


class Largest(TorchDispatchMode):
    """Records the largest tensor that any operation makes."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.numbers = max([self.numbers, *(t.numel() for t in tree_leaves(out) if isinstance(t, torch.Tensor))])
        return out


@pytest.mark.parametrize("kind", ["full", "layerwise", "low_rank", "scaling"])
@pytest.mark.parametrize("sides", [(40, 20), (20, 40)])
def test_no_weight_per_row_is_ever_built(kind, sides):
    """In forward and backward nothing is larger than rows * hidden * the smaller side, or the head."""
    hyper = weft.HyperNetwork(nn.Linear(*sides), condition=4, kind=kind, hidden=(6,))
    x, c = torch.randn(64, sides[0]), torch.randn(64, 4)
    with Largest() as largest:
        hyper(x, condition=c).sum().backward()
    assert largest.numbers <= 64 * 6 * 20 < 64 * 40 * 20


def test_explain_names_paths_and_reasons():
    x, c = torch.randn(5, 4, 7, 8, **DOUBLE), torch.randn(5, 4, **DOUBLE)
    parts = conditional(conv_net()).explain(x, condition=c).parts
    paths = [
        "grouped convolution",
        "one call",
        "one call",
        "grouped convolution",
        "one call",
        "one call",
        "contraction",
    ]
    assert [part.path for part in parts] == paths
    assert [part.part for part in parts] == list("0123456")
    scaling = conditional(conv_net(), "scaling").explain(x, condition=c)
    assert [scaling.parts[i].path for i in (0, 6)] == ["scaling", "scaling"]
    x, c = torch.randn(5, 7, **DOUBLE), torch.randn(5, 4, **DOUBLE)
    for kind, path in {"full": "contraction", "chunked": "batched matmul", "low_rank": "factors"}.items():
        text = str(conditional(mlp(), kind).train().explain(x, condition=c))
        assert text.splitlines()[1].startswith(f"0  {path}") and "58 numbers per row" in text
    many = conditional(mlp()).explain(x.expand(5, 5, 7).repeat(1, 20, 1), condition=c, samples=100)
    assert many.parts[0].path == "batched matmul" and "100 samples" in many.parts[0].why
    hyper = of_tasks(mlp())
    assert "made in every call" in hyper.explain(x, task=1).weights
    assert hyper.training and hyper.target.training
    norm = of_tasks(normed())
    assert [part.path for part in norm.explain(x[:, :4], task=1).parts] == [
        "matmul",
        "one network",
        "one call",
        "matmul",
    ]
    assert not norm.target[1].num_batches_tracked  # a copy was trained
    assert norm.eval().requires_grad_(False).explain(x[:, :4], task=1).weights.endswith("without gradients")
    with torch.no_grad():
        assert "made once and kept" in hyper.eval().explain(x, task=1).weights
    assert conditional(Residual(7)).explain(x, condition=c).parts[0].path == "vmap"
    assert conditional(Branching()).explain(x[:, :3], condition=c).parts[0].path == "loop"


def test_choice_by_samples_changes_nothing():
    """Where samples make it cheaper to build the weights, the result is the same."""
    target = nn.Linear(6, 4, **DOUBLE)
    hyper, codes = conditional(target), torch.randn(2, 4, **DOUBLE)
    x = torch.randn(2, 30, 6, **DOUBLE)
    assert hyper.explain(x, condition=codes, samples=30).parts[0].path == "batched matmul"
    assert_same(hyper(x, condition=codes, samples=30), loop(hyper, target, codes, x, 30), 1e-10, "30 samples")


def test_per_row_call():
    target = conv_net()
    weights = {n: torch.randn(3, *p.shape, **DOUBLE) for n, p in target.named_parameters() if n != "6.bias"}
    x = torch.randn(3, 4, 7, 8, **DOUBLE)
    got = weft.hypernet.per_row_call(target, weights, x)
    want = [functional_call(target, {n: w[b] for n, w in weights.items()}, (x[b : b + 1],)) for b in range(3)]
    assert_same(got, torch.cat(want), 1e-10, "the output")
    layer = nn.Linear(4, 4, **DOUBLE)
    twice, own, x2 = nn.Sequential(layer, nn.Tanh(), layer), torch.randn(3, 4, 4, **DOUBLE), torch.randn(3, 4, **DOUBLE)
    want = [functional_call(twice, {"0.weight": own[b]}, (x2[b : b + 1],)) for b in range(3)]
    got = weft.hypernet.per_row_call(twice, {"0.weight": own}, x2)
    assert_same(got, torch.cat(want), 1e-10, "a layer in two places")
    with pytest.raises(OptionError, match=r"weights has '0.wait'"):
        weft.hypernet.per_row_call(target, {"0.wait": x}, x)
    with pytest.raises(SizeError, match=r"\(rows, 6, 2, 3, 3\)"):
        weft.hypernet.per_row_call(target, {"0.weight": x}, x)
    with pytest.raises(SizeError, match="has 3 rows, the input has 2"):
        weft.hypernet.per_row_call(target, weights, x[:2])


# ------------------------------------------------------------------------------------------------ batch norm


def normed():
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2)).double()
    with torch.no_grad():
        net[1].running_mean.normal_()
        net[1].running_var.uniform_(0.5, 2)
        net[1].weight.uniform_(0.5, 2)
    return net


def test_batch_norm_in_evaluation_uses_running_statistics():
    target = normed()
    hyper = conditional(target).eval()
    x, c = torch.randn(5, 4, **DOUBLE), torch.randn(5, 4, **DOUBLE)
    assert_same(hyper(x, condition=c), loop(hyper, target.eval(), c, x), 1e-10, "the output")
    hyper.train()
    hyper.target.eval()  # the remedy that the error names
    assert_same(hyper(x, condition=c), loop(hyper, target.eval(), c, x), 1e-10, "the output in training")


@pytest.mark.parametrize("pattern", ["*.weight", "*.bias"])
def test_half_a_norm_may_be_shared(pattern):
    net = nn.Sequential(
        nn.Conv2d(4, 6, 2), nn.GroupNorm(3, 6), nn.BatchNorm2d(6), nn.Flatten(2), nn.LayerNorm((6, 4)),
        nn.BatchNorm1d(6),
    )  # fmt: skip
    net = randomised(net.double()).eval()
    with torch.no_grad():
        net[2].running_var.uniform_(0.5, 2)
    hyper = conditional(net, generated=pattern).eval()
    x, c = torch.randn(5, 4, 3, 3, **DOUBLE), torch.randn(5, 4, **DOUBLE)
    assert_same(hyper(x, condition=c), loop(hyper, net, c, x), 1e-10, "the output")
    assert "vmap" not in {part.path for part in hyper.explain(x, condition=c).parts}


def test_batch_norm_refuses_to_train_on_rows():
    hyper, x, c = conditional(normed()), torch.randn(5, 4, **DOUBLE), torch.randn(5, 4, **DOUBLE)
    for rows in (1, 5):
        with pytest.raises(OptionError, match=r"target.1 \(BatchNorm1d\).*hyper.target.eval\(\).*GroupNorm"):
            hyper(x[:rows], condition=c[:rows])
    with pytest.raises(OptionError, match="one task per call"):
        of_tasks(normed())(x, task=torch.tensor([0, 1, 2, 0, 1]))
    with pytest.raises(OptionError, match="without samples"):
        of_tasks(normed())(x[:, None], task=1, samples=1)
    with pytest.raises(ValueError, match="expected 4D input"):
        conditional(nn.BatchNorm2d(4)).double().eval()(x, condition=c)


def test_a_norm_in_two_places_has_the_statistics_of_the_task_in_both():
    norm = nn.BatchNorm1d(4, dtype=torch.float64)
    hyper = of_tasks(nn.Sequential(nn.Linear(4, 4, **DOUBLE), norm, nn.Tanh(), norm), statistics="per_task")
    x, plain = torch.randn(9, 4, **DOUBLE), hyper.fold(1)
    for _ in range(3):
        assert_same(hyper(x, task=1), plain(x), 1e-10, "the output in training")
    assert_same(hyper.eval()(x, task=1), plain.eval()(x), 1e-10, "the output in evaluation")
    assert not hyper.target[1].running_mean.any()


@pytest.mark.parametrize("statistics", ["shared", "per_task"])
def test_batch_norm_trains_on_one_task_per_call(statistics):
    """Statistics of the task, or the shared ones, move as in a plain network; in evaluation rows find theirs."""
    target = normed()
    start = target[1].running_mean.clone()
    hyper = of_tasks(target, statistics=statistics)
    x, moved = torch.randn(9, 4, **DOUBLE), {}
    for task in (2, 0):
        plain = hyper.fold(task)
        assert_same(hyper(x, task=task), plain(x), 1e-10, "the output in training")
        moved[task] = plain[1].running_mean
    hyper.eval()
    if statistics == "shared":
        assert_same(hyper.target[1].running_mean, moved[0], 1e-10, "the mean")
        return
    means = hyper.task_buffers.get_buffer("0")
    assert_same(means, torch.stack([moved[0], start, moved[2]]), 1e-10, "the means")
    assert not torch.allclose(moved[0], moved[2])
    ids = torch.tensor([2, 0, 1, 0, 2, 1, 0, 2, 1])
    got = hyper(x, task=ids)
    for b, task in enumerate(ids.tolist()):
        assert_same(got[b : b + 1], hyper.fold(task)(x[b : b + 1]), 1e-10, "a row in evaluation")
    assert_same(hyper(x[:, None], task=2, samples=1)[:, 0], hyper(x, task=2), 1e-10, "samples of one task")
    assert hyper.task_buffers.get_buffer("2").tolist() == [1, 0, 1]
