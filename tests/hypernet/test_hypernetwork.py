"""What is generated and what is shared, states and copies, the cache, errors."""

import copy
import pickle

import pytest
import safetensors.torch
import torch
from tests.hypernet.helpers import KINDS, conditional, loop, mlp, of_tasks
from torch import nn

import weft
from weft.errors import FoldError, OptionError, SizeError
from weft.hypernet.generators import chunk_cover
from weft.testing import assert_same
from weft.testing.copies import evaluate
from weft.testing.parallel import check_data_parallel

DOUBLE = {"dtype": torch.float64}


def conv_norm():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)
    ).double()


# ------------------------------------------------------------------------------------------------ choice of parameters


def test_patterns_choose():
    net = conv_norm()
    hyper = weft.HyperNetwork(net, condition=3, generated=["0.*", "4.bias"], shared="0.bias")
    assert [slot.name for slot in hyper.slots] == ["0.weight", "4.bias"]
    shared = {n for n, _ in hyper.target.named_parameters()}
    assert shared == {"0.bias", "1.weight", "1.bias", "4.weight"}
    assert shared <= {n.removeprefix("target.") for n, _ in hyper.named_parameters()}
    for name in shared:
        assert_same(hyper.target.get_parameter(name), net.get_parameter(name), 0, name)
    assert net[0].weight.requires_grad and isinstance(net[0].weight, nn.Parameter), "the user's module is left alone"
    x, c = torch.randn(4, 2, 3, 3, **DOUBLE), torch.randn(4, 3, **DOUBLE)
    hyper.target.eval()
    hyper(x, condition=c).sum().backward()
    assert all(p.grad is not None for p in hyper.parameters())


def test_a_shared_convolution_or_bias_only():
    """Layers of which only a part is generated."""
    net = nn.Sequential(nn.Conv1d(2, 3, 2), nn.Flatten(), nn.Linear(9, 4)).double()
    hyper = weft.HyperNetwork(net, condition=3, generated="*.bias")
    x, c = torch.randn(4, 2, 4, **DOUBLE), torch.randn(4, 3, **DOUBLE)
    got, made = hyper(x, condition=c), hyper.generate(condition=c)
    for b in range(4):
        want = torch.func.functional_call(net, {n: t[b] for n, t in made.items()}, (x[b : b + 1],))
        assert_same(got[b : b + 1], want, 1e-12, "a row")
    assert hyper.explain(x, condition=c).parts[0].why == "only the bias is generated"


def test_tied_parameters_are_generated_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
            self.second.weight = self.first.weight

        def forward(self, x):
            return self.second(torch.tanh(self.first(x)))

    hyper = weft.HyperNetwork(Tied().double(), num_tasks=2)
    assert [slot.names for slot in hyper.slots] == [("first.weight", "second.weight")]
    weight, x = hyper.generate(task=1)["first.weight"][0], torch.randn(3, 4, **DOUBLE)
    want = torch.tanh(x @ weight.T) @ weight.T
    assert_same(hyper(x, task=1), want, 1e-12, "one network")
    assert_same(hyper(x, task=torch.tensor([1, 1, 1])), want, 1e-12, "rows")
    folded = hyper.fold(1)
    assert folded.first.weight is folded.second.weight


@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU])
def test_recurrent_targets(cell):
    """Torch keeps their weights in a list of its own, too."""
    net = cell(3, 4, batch_first=True).double()
    hyper, x = weft.HyperNetwork(net, num_tasks=2), torch.randn(2, 5, 3, **DOUBLE)
    got = hyper(x, task=1)[0]
    with torch.no_grad():
        for name, tensor in hyper.generate(task=1).items():
            net.get_parameter(name).copy_(tensor[0])
    assert_same(got, net(x)[0], 1e-12, "the output")


# ------------------------------------------------------------------------------------------------ chunks


@pytest.mark.parametrize(
    ("total", "size", "number", "want"),
    [
        (10, 3, None, (4, 3)),
        (10, None, 4, (4, 3)),
        (12, 3, 4, (4, 3)),
        (7, 7, None, (1, 7)),
        (50816, None, 100, (100, 509)),
    ],
)
def test_chunks_cover_exactly(total, size, number, want):
    assert chunk_cover(total, size, number) == want
    number, size = want
    assert (number - 1) * size < total <= number * size


def test_every_chunk_is_used():
    """Gradients of all generated numbers reach every embedding, and of the head all but the surplus."""
    hyper = weft.HyperNetwork(mlp(), condition=3, kind="chunked", chunk_size=9)  # 58 numbers, 7 chunks, 5 to spare
    made = hyper.generate(condition=torch.randn(2, 3, **DOUBLE))
    sum(tensor.square().sum() for tensor in made.values()).backward()
    assert bool((hyper.generator.chunk_embeddings.grad.abs().max(1).values > 0).all())
    assert hyper.generator.num_chunks == 7
    numbers = 7 * 8 + (3 + 8) * 16 + 16 + 9 * 17
    assert sum(p.numel() for p in hyper.parameters()) == numbers


def test_parameter_counts_of_the_mnist_programs():
    """The three hypernetworks of the field's own examples, with the weights that their main networks have."""
    net = nn.Sequential(nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))
    count = lambda hyper: sum(p.numel() for p in hyper.parameters())
    full = weft.HyperNetwork(net, embedding_dim=5, shared="*.bias")
    assert count(full) == 5 + (5 * 16 + 16) + 17 * 50816 + 74
    chunked = weft.HyperNetwork(
        net, embedding_dim=0, kind="chunked", num_chunks=100, slot_embedding_dim=10, shared="*.bias"
    )
    assert count(chunked) == 1000 + (10 * 16 + 16) + 17 * 509 + 74
    small = nn.Sequential(nn.Linear(784, 32, bias=False), weft.hypernet.SlotSwish(), nn.Linear(32, 10, bias=False))
    parallel = weft.HyperNetwork(small, condition=784, shared="1.beta")
    assert count(parallel) == (784 * 16 + 16) + 17 * 25408 + 1
    scaling = weft.HyperNetwork(net, condition=8, kind="scaling", shared="*.bias")
    assert scaling.generator.outputs == 784 + 64 + 64 + 10


# ------------------------------------------------------------------------------------------------ states and copies


@pytest.mark.parametrize("kind", KINDS)
def test_states_and_copies(kind):
    hyper, x, c = conditional(conv_norm(), kind).eval(), torch.randn(3, 2, 3, 3, **DOUBLE), torch.randn(3, 4, **DOUBLE)
    want = evaluate_with(hyper, x, condition=c)
    state = hyper.state_dict()
    assert not [key for key in state if key.startswith("target.") and "running" not in key and "tracked" not in key]
    assert {name for name, _ in hyper.named_parameters()} <= set(state)
    for twin in (copy.deepcopy(hyper), pickle.loads(pickle.dumps(hyper))):
        assert_same(evaluate_with(twin, x, condition=c), want, 0, "the output of a copy")
        with torch.no_grad():
            next(twin.generator.parameters()).add_(1)
        assert not torch.allclose(evaluate_with(twin, x, condition=c), want)
        assert_same(evaluate_with(hyper, x, condition=c), want, 0, "the output of the original")
    other = weft.HyperNetwork(conv_norm(), condition=4, kind=kind, init="harmonic", **KINDS[kind]).eval()
    other.load_state_dict(safetensors.torch.load(safetensors.torch.save(state)))
    if kind != "chunked":  # whose rules differ in more than numbers
        assert_same(evaluate_with(other, x, condition=c), want, 0, "the output after loading")
    single = copy.deepcopy(hyper).float()
    assert {p.dtype for p in single.parameters()} == {torch.float32}
    assert evaluate_with(single, x.float(), condition=c.float()).dtype == torch.float32
    assert all(t is None for n, t in single.target[0]._parameters.items())


def evaluate_with(hyper, *inputs, **arguments):
    with torch.no_grad():
        return hyper.eval()(*inputs, **arguments)


def test_meta_device():
    with torch.device("meta"):
        hyper = weft.HyperNetwork(mlp(), num_tasks=2, kind="low_rank", rank=2)
    assert all(t.is_meta for t in hyper.state_dict().values())
    assert hyper(torch.empty(3, 7, device="meta", **DOUBLE), task=1).shape == (3, 3)
    hyper.to_empty(device="cpu").reset_parameters()
    assert bool(torch.isfinite(hyper(torch.randn(3, 7, **DOUBLE), task=1)).all())


def test_structured_targets_move_and_are_no_layers_of_the_model():
    """Weft's own layers inside work out their paths from shapes that are not there."""
    net = nn.Sequential(weft.Linear(8, 8, parametrization="monarch", blocks=2), weft.QuaternionLinear(8, 4))
    hyper, x = weft.HyperNetwork(net, num_tasks=2).double().eval(), torch.randn(3, 8, **DOUBLE)
    plain = hyper.fold(1)
    for _ in range(2):
        assert_same(evaluate_with(hyper, x, task=1), plain(x), 1e-12, "the output")
        assert_same(evaluate_with(hyper, x, task=0), hyper.fold(0)(x), 1e-12, "the output of another task")
    model = nn.Sequential(hyper)
    numbers = sum(p.numel() for p in hyper.parameters())
    assert sum(p.numel() for group in weft.parameter_groups(model, lr=0.1) for p in group["params"]) == numbers
    (row,) = weft.summary(model).rows
    assert (row.type, row.family, row.parameters) == ("HyperNetwork", "full", numbers)
    rows = weft.hypernet.HyperNetwork(net, condition=3)
    batch = {"x": x.float(), "condition": torch.randn(3, 3)}
    assert [row.type for row in weft.summary(rows, batch).rows] == ["HyperNetwork"]
    weft.clear_cache(model)
    assert hyper._cache.entry is None
    with pytest.raises(weft.WeftError, match="Weft layer already"):
        weft.convert(model, "low_rank", share=0.5)


# ------------------------------------------------------------------------------------------------ cache


def test_evaluation_of_a_task_is_cached_and_never_stale():
    hyper, x = of_tasks(mlp()).eval(), torch.randn(3, 7, **DOUBLE)

    def run(x, task):
        with torch.no_grad():
            return hyper(x, task=task)

    first = run(x, 1)
    entry = hyper._cache.entry
    assert run(x, 1).equal(first)
    assert hyper._cache.entry is entry is not None
    assert not run(x, 2).equal(first)
    assert run(x, 1).equal(first)
    for parameter in hyper.parameters():
        before = run(x, 1)
        with torch.no_grad():
            parameter.mul_(1.5)
        after = run(x, 1)
        assert not torch.allclose(after, before)
        assert_same(after, hyper.fold(1)(x), 1e-12, "the output after a write")
    hyper.freeze_tasks([1])
    before = run(x, 1)
    with torch.no_grad():
        hyper.embeddings.add_(1)
    assert_same(run(x, 1), before, 0, "the output of a frozen task")
    hyper(x, task=1).sum().backward()
    assert hyper.embeddings.grad[1].eq(0).all()
    hyper.unfreeze_tasks(1)
    assert_same(run(x, 1), before, 0, "the output right after")
    with torch.no_grad():
        hyper.embeddings.add_(1)
    assert not torch.allclose(run(x, 1), before)
    task = torch.tensor(0)
    run(x, task)
    task += 1  # the id that the kept tensors belong to is a number of its own
    assert_same(run(x, task), run(x, 1), 0, "the output of a task that was counted up")
    random = of_tasks(mlp(), activation=nn.Dropout).eval()
    random.generator.train()  # draws in the generator are no constants to keep
    with torch.no_grad():
        assert not random(x, task=1).equal(random(x, task=1))


def test_averages_of_models():
    """Every buffer can be averaged, the marks of frozen tasks too."""
    hyper = of_tasks(mlp())
    hyper.freeze_tasks([1])
    average = torch.optim.swa_utils.AveragedModel(hyper, use_buffers=True)
    for _ in range(3):
        average.update_parameters(hyper)
    assert average.module.frozen.tolist() == [0, 1, 0]


def test_memory_format():
    hyper = conditional(nn.Conv2d(2, 3, 3)).float().to(memory_format=torch.channels_last)
    assert hyper(torch.randn(2, 2, 5, 5), condition=torch.randn(2, 4)).shape == (2, 3, 3, 3)


# ------------------------------------------------------------------------------------------------ compile, export, DDP


@pytest.mark.parametrize("kind", ["full", pytest.param("chunked", marks=pytest.mark.slow)])
def test_export_of_a_task(kind):
    """Any batch size, also of a target that runs by functional_call."""
    torch.compiler.reset()
    net = nn.Sequential(nn.Linear(7, 5), nn.LayerNorm(5), nn.ReLU(), nn.Linear(5, 3)).double()
    hyper, x = of_tasks(net, kind).eval(), torch.randn(4, 7, **DOUBLE)
    dynamic = {"x": {0: torch.export.Dim.DYNAMIC}, "task": None}
    program = torch.export.export(hyper, (x,), {"task": 1}, dynamic_shapes=dynamic).module()
    for rows in (4, 9):
        x = torch.randn(rows, 7, **DOUBLE)
        assert_same(program(x, task=1), hyper(x, task=1), 1e-12, "the output of the program")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_export_of_rows(kind):
    """Any batch size, of sequences without parts that run under vmap."""
    torch.compiler.reset()
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)).double()
    hyper, x, c = conditional(net, kind), torch.randn(5, 2, 4, 4, **DOUBLE), torch.randn(5, 4, **DOUBLE)
    rows = {0: torch.export.Dim("rows", min=2)}
    program = torch.export.export(hyper, (x,), {"condition": c}, dynamic_shapes={"x": rows, "condition": rows}).module()
    x, c = torch.randn(8, 2, 4, 4, **DOUBLE), torch.randn(8, 4, **DOUBLE)
    assert_same(program(x, condition=c), hyper(x, condition=c), 1e-12, "the output of the program")


@pytest.mark.parametrize("kind", ["full", pytest.param("scaling", marks=pytest.mark.slow)])
def test_compiles_in_one_graph(kind):
    torch.compiler.reset()
    hyper = conditional(mlp(), kind)
    compiled = torch.compile(hyper, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (2, 5):
        x, c = torch.randn(rows, 7, **DOUBLE), torch.randn(rows, 4, **DOUBLE)
        assert_same(compiled(x, condition=c), hyper(x, condition=c), 1e-12, "the output")
    parameters = list(hyper.parameters())
    got = torch.autograd.grad(compiled(x, condition=c).square().sum(), parameters)
    want = torch.autograd.grad(hyper(x, condition=c).square().sum(), parameters)
    for a, b in zip(got, want, strict=True):
        assert_same(a, b, 1e-12, "a gradient")
    torch.compiler.reset()


def test_autocast():
    hyper, x, c = weft.HyperNetwork(mlp().float(), condition=4), torch.randn(6, 7), torch.randn(6, 4)
    for kind in KINDS:
        hyper = weft.HyperNetwork(mlp().float(), condition=4, kind=kind, **KINDS[kind])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = hyper(x, condition=c)
        torch.testing.assert_close(y.float(), hyper(x, condition=c), rtol=0.1, atol=0.05)
        y.float().sum().backward()
        assert {p.grad.dtype for p in hyper.parameters()} == {torch.float32}


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_gets_a_gradient(kind):
    """As DDP wants it: of all parameters in every step, whichever task it is."""
    hyper = of_tasks(mlp(), kind)
    hyper(torch.randn(4, 7, **DOUBLE), task=1).pow(2).sum().backward()
    assert all(p.grad is not None for p in hyper.parameters())


# ------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: weft.HyperNetwork(nn.ReLU(), condition=3), OptionError, "ReLU has none"),
        (lambda: weft.HyperNetwork(mlp, condition=3), OptionError, "target must be a module"),
        (lambda: weft.HyperNetwork(nn.LazyLinear(3), condition=3), OptionError, "run the target once"),
        (lambda: weft.HyperNetwork(mlp(), condition=3, generated="0.wieght"), OptionError, "mean '0.weight'"),
        (lambda: weft.HyperNetwork(mlp(), condition=3, shared=["1.*"]), OptionError, "shared='1.\\*' matches no"),
        (lambda: weft.HyperNetwork(mlp(), condition=3, shared="*"), OptionError, "leaves no parameter"),
        (lambda: weft.HyperNetwork(mlp(), condition=3, num_tasks=2), OptionError, "exclude one another"),
        (lambda: weft.HyperNetwork(mlp(), condition=0), OptionError, "size of at least 1 or a module"),
        (lambda: weft.HyperNetwork(mlp(), condition=3, embedding_dim=4), OptionError, "is the code itself"),
        (lambda: weft.HyperNetwork(mlp(), condition=nn.Linear(3, 4)), OptionError, "needs embedding_dim"),
        (lambda: weft.HyperNetwork(mlp(), num_tasks=0), OptionError, "num_tasks must be at least 1"),
        (lambda: weft.HyperNetwork(mlp(), embedding_dim=0), OptionError, "embedding_dim must be at least 1"),
        (lambda: weft.HyperNetwork(mlp(), kind="ful"), OptionError, "did you mean 'full'"),
        (lambda: weft.HyperNetwork(mlp(), init="hyperfan"), OptionError, "did you mean 'hyperfan_in'"),
        (lambda: weft.HyperNetwork(mlp(), activation="rely"), OptionError, "did you mean 'relu'"),
        (lambda: weft.HyperNetwork(mlp(), hidden=(8, 0)), SizeError, "widths of at least 1"),
        (lambda: weft.HyperNetwork(mlp(), hidden=8), SizeError, "sequence of widths.*got 8"),
        (lambda: weft.HyperNetwork(mlp(), activation=nn.ReLU()), OptionError, r"such as its class; got ReLU\(\)"),
        (lambda: weft.HyperNetwork(mlp(), num_tasks=2.0), OptionError, "a whole number; got 2.0"),
        (lambda: weft.HyperNetwork(mlp(), gain=-1.0), OptionError, "gain must be finite and above 0"),
        (lambda: weft.HyperNetwork(mlp(), generated=()), OptionError, r"generated=\(\) with shared=None leaves no"),
        (
            lambda: weft.HyperNetwork(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double())),
            OptionError,
            "must have one type, Sequential has torch.float32, torch.float64",
        ),
        (lambda: weft.HyperNetwork(mlp(), rank=3), OptionError, "option of kind 'low_rank', not of 'full'"),
        (lambda: weft.HyperNetwork(mlp(), kind="low_rank", rank=4), OptionError, "at most 3 for 2.weight"),
        (lambda: weft.HyperNetwork(mlp(), kind="chunked"), OptionError, "needs chunk_size"),
        (lambda: weft.HyperNetwork(mlp(), kind="chunked", chunk_size=59), SizeError, "between 1 and 58"),
        (lambda: weft.HyperNetwork(mlp(), kind="chunked", num_chunks=5, chunk_size=11), SizeError, "cannot cover"),
        (lambda: weft.HyperNetwork(mlp(), kind="chunked", num_chunks=40), SizeError, "take num_chunks=29"),
        (lambda: weft.HyperNetwork(mlp(), condition=2, statistics="per_task"), OptionError, "needs tasks"),
        (lambda: weft.hypernet.SlotSwish(0), SizeError, "at least 1"),
        (lambda: weft.hypernet.SlotSwish(3)(torch.randn(2, 4)), SizeError, "must have 3 slots, got 4"),
    ],
)
def test_bad_arguments_are_refused_with_a_remedy(make, error, words):
    with pytest.raises(error, match=words):
        make()


X, C = torch.ones(4, 7, **DOUBLE), torch.ones(4, 4, **DOUBLE)


@pytest.mark.parametrize(
    ("make", "call", "error", "words"),
    [
        (conditional, lambda h: h(X), OptionError, "got neither condition nor task"),
        (conditional, lambda h: h(X, condition=C, task=1), OptionError, "got condition and task"),
        (conditional, lambda h: h(X, condition=C[:3]), SizeError, "condition has 3 rows, the input has 4"),
        (conditional, lambda h: h(X, condition=C[:1]), SizeError, "samples=K"),
        (conditional, lambda h: h(X, condition=C[:, :3]), SizeError, r"tensor \(rows, 4\), got \(4, 3\)"),
        (conditional, lambda h: h(X, condition=3), SizeError, "got int"),
        (conditional, lambda h: h.explain(condition=C), SizeError, "an input"),
        (conditional, lambda h: h(X[:, :6], condition=C), SizeError, "must have 7 features per sample"),
        (conditional, lambda h: h(X, condition=C, samples=2), SizeError, r"must be \(rows, 2, ...\)"),
        (conditional, lambda h: h.fold(), FoldError, "one network per condition"),
        (of_tasks, lambda h: h(X), OptionError, "an id in 0..2, or one per row"),
        (of_tasks, lambda h: h(X, task=3), OptionError, "must be in 0..2, got 3"),
        (of_tasks, lambda h: h(X, task=-1), OptionError, "must be in 0..2, got -1"),
        (of_tasks, lambda h: h(X, task=torch.tensor([0, 1, 5, 2])), OptionError, "must be in 0..2, got 5"),
        (of_tasks, lambda h: h(X, task=torch.ones(4)), OptionError, "of integers"),
        (of_tasks, lambda h: h(X, task=[0, 1, 2, 0]), OptionError, r"a tensor of ids \(rows,\); got \[0, 1"),
        (of_tasks, lambda h: h(X, task=torch.tensor([0, 1])), SizeError, "task has 2 rows, the input has 4"),
        (of_tasks, lambda h: h(X, condition=C, task=1), OptionError, "give task= alone"),
        (of_tasks, lambda h: h.fold(), FoldError, r"fold\(task=...\)"),
    ],
)
def test_bad_calls_are_refused_with_a_remedy(make, call, error, words):
    with pytest.raises(error, match=words):
        call(make(mlp()))


def test_only_what_is_generated_must_be_able_to():
    target = nn.Sequential(nn.Linear(2, 3), nn.LazyLinear(2), nn.Linear(2, 2).bfloat16())
    assert len(weft.HyperNetwork(target, shared=["1.*", "2.*"]).slots) == 2


def test_hypernetworks_make_hypernetworks():
    """The inner one's generator is generated; folded, only torch.nn is left."""
    inner = of_tasks(mlp(), tasks=1)
    hyper, x, c = conditional(inner), torch.randn(5, 7, **DOUBLE), torch.randn(5, 4, **DOUBLE)
    made = hyper.generate(condition=c)
    for b in range(5):
        alone = copy.deepcopy(inner)
        with torch.no_grad():
            for name, tensor in made.items():
                alone.get_parameter(name).copy_(tensor[b])
        assert_same(hyper(x[b : b + 1], condition=c[b : b + 1]), alone(x[b : b + 1]), 1e-10, "a row by itself")
        assert_same(hyper(x, condition=c)[b : b + 1], alone(x[b : b + 1]), 1e-10, "a row")
    model = nn.Sequential(weft.HyperNetwork(inner), of_tasks(weft.PHMLinear(3, 6, n=3, dtype=torch.float64), tasks=1))
    plain = weft.fold(model, check=x)
    assert [type(m) for m in plain.modules() if isinstance(m, weft.layers.foldable.Foldable)] == []


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_without_numbers_are_left_alone(kind):
    layer = weft.Linear(8, 8, parametrization="sss", share=0.8, dtype=torch.float64)
    assert any(p.numel() == 0 for p in layer.parameters())
    hyper = conditional(layer, kind, **({"rank": 1} if kind == "low_rank" else {}))
    x, codes = torch.randn(3, 8, **DOUBLE), torch.randn(3, 4, **DOUBLE)
    assert_same(hyper(x, condition=codes), loop(hyper, layer, codes, x), 1e-10, "the output")


def test_small_integers_are_ids_and_no_mask():
    hyper, x = of_tasks(mlp()), torch.randn(4, 7, **DOUBLE)
    ids = torch.tensor([1, 1, 2, 1])
    assert_same(hyper(x, task=ids.to(torch.uint8)), hyper(x, task=ids), 0, "the output")


def test_a_condition_module_of_another_size_is_refused():
    hyper = weft.HyperNetwork(mlp(), nn.Linear(2, 5, **DOUBLE), embedding_dim=4)
    with pytest.raises(SizeError, match=r"\(rows, embedding_dim=4\), got \(4, 5\)"):
        hyper(X, condition=C[:, :2])


def test_slot_swish():
    """The formula, and no dependence on the place in the batch."""
    swish = weft.hypernet.SlotSwish(3, dim=1, **DOUBLE)
    with torch.no_grad():
        swish.beta.normal_()
    x = torch.randn(4, 3, 5, **DOUBLE)
    want = x * torch.special.expit(x * torch.log1p(swish.beta.exp()).reshape(1, 3, 1)) / 1.1
    assert_same(swish(x), want, 1e-12, "the output")
    assert_same(swish(x.flip(0)).flip(0), swish(x), 0, "the output in another order")
    assert float(weft.hypernet.SlotSwish().beta.detach()) == 0.5
    assert evaluate(swish, x).shape == x.shape


@pytest.mark.slow
def test_two_processes_train_like_one():
    """DDP and FSDP2, with the cache of evaluation between the steps."""
    layers = [module for kind in KINDS for module in (nn.Linear(3, 7).double(), of_tasks(mlp(), kind, tasks=1))]
    check_data_parallel(nn.Sequential(nn.Linear(5, 3).double(), *layers), torch.randn(8, 5, **DOUBLE))
