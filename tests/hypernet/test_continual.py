"""Learning tasks one after the other: the past is held, and found again."""

import copy

import pytest
import torch
from tests.hypernet.helpers import KINDS, conditional, mlp, of_tasks
from torch import nn
from torch.nn.functional import cross_entropy

import weft
from weft.errors import OptionError
from weft.hypernet import OutputRegularizer, infer_task
from weft.testing import assert_same

DOUBLE = {"dtype": torch.float64}


@pytest.mark.parametrize("store", ["targets", "generator"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_term_is_its_formula(kind, store):
    """Exactly 0 after a snapshot, then beta/n times the sum of squared changes of all that is generated."""
    hyper = of_tasks(mlp(), kind, tasks=4).float()
    regularizer = OutputRegularizer(hyper, beta=0.3, store=store)
    assert regularizer().item() == 0
    regularizer.snapshot(range(3))
    assert regularizer().item() == 0
    before = [hyper.generate(task=t) for t in range(3)]
    with torch.no_grad():
        for p in hyper.generator.parameters():
            p.add_(0.1 * torch.randn_like(p))
        hyper.embeddings.add_(1)  # frozen by the snapshot: not read
    want = 0.0
    for t in range(3):
        for name, now in hyper.generate(task=t).items():
            want += 0.3 / 3 * float((now.detach().double() - before[t][name].detach().double()).square().sum())
    term = regularizer()
    assert float(term.detach()) == pytest.approx(want, rel=1e-4)
    term.backward()
    assert all(p.grad is not None for p in hyper.generator.parameters())
    assert hyper.embeddings.grad is None or not hyper.embeddings.grad.any()
    assert regularizer().item() > 0
    other = OutputRegularizer(hyper, beta=0.3, store=store)
    other.load_state_dict(copy.deepcopy(regularizer.state_dict()))
    assert other().item() == regularizer().item()
    regularizer.snapshot(range(4))
    assert regularizer().item() == 0


def test_subsets_are_unbiased():
    hyper = of_tasks(mlp(), tasks=4)
    regularizer = OutputRegularizer(hyper, beta=1.0)
    regularizer.snapshot(range(3))
    with torch.no_grad():
        hyper.generator.body[0].weight.add_(torch.randn_like(hyper.generator.body[0].weight))
        whole = regularizer().item()
        regularizer.tasks_per_step = 1
        singles = [regularizer().item() for _ in range(60)]
    values = sorted({round(value, 9) for value in singles})
    assert len(values) == 3
    assert sum(values) / 3 == pytest.approx(whole)


def test_lookahead_is_taken_at_the_candidate_step():
    """The step of the optimizer is found and taken back, its state too; the term is that of the moved parameters."""
    hyper, x = of_tasks(mlp(), tasks=2), torch.randn(9, 7, **DOUBLE)
    optimizer = torch.optim.Adam(hyper.parameters(), lr=0.1)
    hyper(x, task=0).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    regularizer = OutputRegularizer(hyper, beta=2.0)
    regularizer.snapshot([0])
    hyper(x, task=1).square().mean().backward()
    twin, state = copy.deepcopy(hyper), copy.deepcopy(optimizer.state_dict())
    step = regularizer.candidate_step(optimizer)
    torch.testing.assert_close(hyper.state_dict(), twin.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(optimizer.state_dict()["state"], state["state"], rtol=0, atol=0)
    term = regularizer(step)
    before = twin.generate(task=0)
    optimizer.step()
    want = sum(float((now - before[name]).detach().square().sum()) for name, now in hyper.generate(task=0).items())
    assert float(term.detach()) == pytest.approx(2.0 * want, rel=1e-9) and want > 0
    assert not any(change.requires_grad for change in step.values())


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, lambda p: torch.optim.SGD(p, 0.1, 0.9, weight_decay=0.1)])
def test_past_embeddings_stay(optimizer):
    """Momentum and weight decay move the parameter, not the task."""
    hyper, x = of_tasks(mlp(), tasks=3), torch.randn(9, 7, **DOUBLE)
    optimizer = optimizer(hyper.parameters())
    for task in (0, 1):
        if task:
            code = hyper.codes(task=0).clone()
            hyper.freeze_tasks([0])
        for _ in range(3):
            optimizer.zero_grad()
            hyper(x, task=task).square().mean().backward()
            optimizer.step()
    assert_same(hyper.codes(task=0), code, 0, "the embedding of the past task")
    assert not hyper.codes(task=1).equal(hyper.codes(task=0))


def split_data(task, rows=200):
    """Four clusters in two classes; every task pairs them otherwise, so that classifiers contradict one another."""
    generator = torch.Generator().manual_seed(7)
    means = 3 * torch.randn(4, 10, generator=generator)
    cluster = torch.arange(rows) % 4
    labels = torch.tensor([[0, 0, 1, 1], [0, 1, 0, 1], [0, 1, 1, 0]])[task][cluster]
    return means[cluster] + torch.randn(rows, 10, generator=generator), labels


def accuracy_after_the_last_task(beta, steps=80):
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(10, 12), nn.ReLU(), nn.Linear(12, 2))
    hyper = weft.HyperNetwork(net, num_tasks=3, embedding_dim=6, kind="chunked", chunk_size=40, hidden=(16,))
    regularizer = OutputRegularizer(hyper, beta)
    optimizer = torch.optim.Adam(hyper.parameters(), lr=0.01)
    for task in range(3):
        regularizer.snapshot(range(task))
        x, labels = split_data(task)
        for _ in range(steps):
            optimizer.zero_grad()
            (cross_entropy(hyper(x, task=task), labels) + regularizer()).backward()
            optimizer.step()
    hyper.eval()
    with torch.no_grad():
        data = [split_data(task) for task in range(3)]
        return [float((hyper(x, task=t).argmax(1) == y).float().mean()) for t, (x, y) in enumerate(data)]


def test_the_first_task_is_kept():
    kept, lost = accuracy_after_the_last_task(beta=1.0), accuracy_after_the_last_task(beta=0.0)
    assert min(kept) > 0.95, kept
    assert lost[-1] > 0.95
    assert lost[0] < 0.85, f"without the term nothing would be forgotten, so this shows nothing: {lost}"


def test_inference_takes_the_lowest_entropy():
    hyper, x = of_tasks(mlp(), tasks=5).eval(), torch.randn(6, 7, **DOUBLE)
    found = infer_task(hyper, x, tasks=[4, 1, 2])
    for row in range(6):
        entropies = []
        for task in (4, 1, 2):
            p = torch.softmax(hyper(x, task=task)[row].detach(), 0)
            entropies.append(-float((p * p.log()).sum()))
        assert found.entropies[:, row].tolist() == pytest.approx(entropies)
        best = (4, 1, 2)[min(range(3), key=entropies.__getitem__)]
        assert int(found.tasks[row]) == best
        assert_same(found.outputs[row], hyper(x, task=best)[row], 1e-12, "the logits")


def _step(optimizer):
    hyper = of_tasks(mlp())
    OutputRegularizer(hyper).candidate_step(optimizer(hyper.parameters()))


def _other_store():
    hyper = of_tasks(mlp())
    kept = OutputRegularizer(hyper)
    kept.snapshot([0])
    OutputRegularizer(hyper, store="generator").load_state_dict(kept.state_dict())


def test_a_snapshot_that_fails_leaves_the_one_before():
    hyper = of_tasks(mlp())
    regularizer = OutputRegularizer(hyper)
    regularizer.snapshot([0])
    with pytest.raises(OptionError, match=r"must be in 0\.\.2, got 5"):
        regularizer.snapshot([0, 5])
    assert regularizer.tasks == (0,) and regularizer().item() == 0


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: OutputRegularizer(conditional(mlp())), "must have tasks"),
        (lambda: OutputRegularizer(of_tasks(mlp()), beta=-1), "beta must be at least 0"),
        (lambda: OutputRegularizer(of_tasks(mlp()), tasks_per_step=0), "at least 1, or None"),
        (lambda: OutputRegularizer(of_tasks(mlp()), store="weights"), "'targets' or 'generator'"),
        (lambda: OutputRegularizer(of_tasks(mlp())).snapshot([3]), "must be in 0..2"),
        (lambda: _step(torch.optim.LBFGS), "without a closure, which LBFGS does not"),
        (_other_store, "was kept with store='targets', this regulariser has store='generator'"),
        (lambda: infer_task(conditional(mlp()), torch.ones(2, 7)), "conditional"),
        (lambda: infer_task(of_tasks(mlp()), torch.ones(2, 7), tasks=[]), "at least one candidate"),
    ],
)
def test_bad_arguments_are_refused(make, words):
    with pytest.raises(OptionError, match=words):
        make()
