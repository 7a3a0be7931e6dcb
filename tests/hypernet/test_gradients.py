"""check_gradients finds every known way to lose gradients, and nothing where all is well."""

import pytest
import torch
from tests.hypernet.helpers import KINDS, conditional, mlp, of_tasks
from torch import nn

import weft
from weft.hypernet import HyperNetwork, check_gradients

DOUBLE = {"dtype": torch.float64}
X, C = torch.randn(8, 7, **DOUBLE), torch.randn(8, 4, **DOUBLE)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_wrong(kind):
    hyper = conditional(mlp(), kind)
    before = {name: value.clone() for name, value in hyper.state_dict().items()}
    report = check_gradients(hyper, {"x": X, "condition": C})
    assert report.ok, str(report)
    assert report.checked == 4 + len(list(hyper.parameters()))
    assert str(report) == f"gradients reach all of the {report.checked} tensors that ask for them"
    assert all(p.grad is None for p in hyper.parameters())
    torch.testing.assert_close(hyper.state_dict(), before, rtol=0, atol=0)
    for batch in (
        {"x": X, "task": 1},
        {"x": X, "task": torch.arange(8) % 3},
        {"x": X[:, None], "task": 1, "samples": 1},
    ):
        assert check_gradients(of_tasks(mlp(), kind), batch).ok
    assert check_gradients(of_tasks(mlp(), kind, tasks=1), X).ok


class Wrong(nn.Module):
    """A target that treats its weight wrongly in one of the known ways."""

    def __init__(self, way):
        super().__init__()
        self.inner, self.spare, self.way = nn.Linear(7, 3), nn.Linear(2, 2), way

    def forward(self, x):
        weight = self.inner.weight
        if self.way == "parameter":
            weight = nn.Parameter(weight)
        elif self.way == "data":
            weight = weight.data
        elif self.way == "assigned":
            held = nn.Parameter(torch.zeros_like(weight))
            held.data = weight.data
            weight = held
        return nn.functional.linear(x, weight, self.inner.bias)


@pytest.mark.parametrize("way", ["parameter", "data", "assigned"])
def test_a_target_that_cuts_its_weight_off(way):
    """Named slot by slot; what is merely not used is told apart."""
    hyper = HyperNetwork(Wrong(way).double(), num_tasks=2, shared="spare.bias")
    report = check_gradients(hyper, {"x": X, "task": 0})
    found = {finding.name: (finding.what, finding.problem) for finding in report.findings}
    assert found["inner.weight"] == ("slot", "broken")
    assert found["spare.weight"] == ("slot", "unused")
    assert found["target.spare.bias"] == ("parameter", "unused")
    assert "inner.bias" not in found
    weight_heads = {name for name, what in found.items() if name.startswith("generator.heads.0")}
    assert {found[name] for name in weight_heads} == {("parameter", "broken")}
    assert "slot inner.weight: it changes the output but gets no gradient" in str(report)
    assert "nn.Parameter(...)" in str(report) and not report.ok


def test_a_generator_or_condition_that_is_detached():
    class Detached(nn.Module):
        def __init__(self):
            super().__init__()
            self.map = nn.Linear(4, 4, **DOUBLE)

        def forward(self, c):
            return self.map(c).detach()

    hyper = HyperNetwork(mlp(), Detached(), embedding_dim=4)
    found = {f.name: f.problem for f in check_gradients(hyper, {"x": X, "condition": C}).findings}
    assert found == {"encoder.map.weight": "broken", "encoder.map.bias": "broken"}

    class Leaves(HyperNetwork):
        def generate(self, condition=None, task=None):
            made = super().generate(condition, task)
            return {n: nn.Parameter(t) if n == "0.weight" else t.detach() for n, t in made.items()}

    found = check_gradients(Leaves(mlp(), condition=4), {"x": X, "condition": C}).findings
    assert [f.name for f in found if f.what == "slot"] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert "it is a leaf" in found[0].words and "detach()" in found[1].words


def test_dead_units_and_unused_embeddings():
    hyper = of_tasks(mlp())
    with torch.no_grad():
        hyper.generator.body[0].bias.fill_(-1e6)
    report = check_gradients(hyper, {"x": X, "task": 2})
    found = {f.name: (f.what, f.problem) for f in report.findings}
    assert found["embeddings[2]"] == ("embedding", "zero")
    assert found["generator.body.0.weight"] == ("parameter", "zero")
    assert "embeddings[0]" not in found, "other tasks are not in the batch"
    hyper = of_tasks(mlp())
    hyper.freeze_tasks([2])
    hyper.generator.body[0].requires_grad_(False)
    report = check_gradients(hyper, {"x": X, "task": 2})
    assert report.ok
    assert report.frozen == ("generator.body.0.weight", "generator.body.0.bias", "task 2")
    assert "frozen, so without gradients: generator.body.0.weight" in str(report)


def test_a_chunk_that_nothing_is_taken_from():
    hyper = conditional(mlp(), "chunked", chunk_size=55)  # the second chunk is the last bias
    with torch.no_grad():
        hyper.generator.scale[3] = 0
    found = {f.name: f.problem for f in check_gradients(hyper, {"x": X, "condition": C}).findings}
    assert found == {"generator.chunk_embeddings[1]": "zero"}


class Encoder(nn.Module):
    """Codes from a table of its own, of which a batch may use a part."""

    def __init__(self):
        super().__init__()
        self.embeddings = nn.Parameter(torch.randn(5, 4, **DOUBLE))

    def forward(self, ids):
        return self.embeddings[ids]


def test_what_is_no_fault_is_not_reported():
    batch = {"x": X, "condition": torch.arange(len(X)) % 2}
    assert check_gradients(weft.HyperNetwork(mlp(), Encoder(), embedding_dim=4), batch).ok
    assert check_gradients(weft.HyperNetwork(mlp(), embedding_dim=0, kind="layerwise"), X).ok  # (1, 0) embeddings
    with torch.inference_mode():
        assert check_gradients(conditional(mlp()), {"x": X + 0, "condition": C + 0}).ok


def test_nan_is_like_nan():
    """Where the output is NaN, a tensor that is not used is still unused, not broken."""

    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(7, 2, **DOUBLE), nn.Linear(7, 2, **DOUBLE)

        def forward(self, x):
            return self.used(x) * torch.nan

    found = check_gradients(conditional(Half()), {"x": X, "condition": C}).findings
    assert {f.problem for f in found if "idle" in f.name} == {"unused"}


def test_loss_and_infinities():
    hyper = conditional(mlp())
    batch = {"x": X, "condition": C}
    first = check_gradients(hyper, batch, loss=lambda y: y[:, 0].square().sum())
    assert first.ok
    report = check_gradients(hyper, batch, loss=lambda y: (y - y.detach()).abs().sqrt().sum())
    assert {f.problem for f in report.findings} == {"not finite"}
    report = check_gradients(hyper, batch, loss=lambda y: y.detach().sum())
    assert {f.problem for f in report.findings} == {"broken"}
    assert isinstance(weft.hypernet.GradientReport((), 1, ()), weft.hypernet.GradientReport)
