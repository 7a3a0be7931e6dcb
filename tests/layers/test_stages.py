"""Layers that run a product of stages: when they do, that it is right, and that nothing stale survives."""

import copy
import re

import pytest
import torch
from torch import nn

import weft
from weft.layers import conv as conv_module
from weft.layers.linear import run_stages
from weft.layers.paths import Plan
from weft.parametrizations import Stage, kronecker
from weft.testing import assert_same

MEMBERS = [
    {"n": 2},
    {"n": 4},
    {"n": 4, "rank": 4},
    {"n": 4, "rank": 7},
    {"algebra": "quaternion"},
    {"algebra": "split_complex"},
    {"algebra": "octonion"},
]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def linear(dtype: torch.dtype = torch.float64, **options: object) -> weft.Linear:
    """A small layer that runs its stages in evaluation, whatever is predicted to be the fastest."""
    layer = weft.Linear(24, 16, parametrization="kronecker", dtype=dtype, **options)
    layer._cached_plan = Plan.always("cached stages")
    return layer


@pytest.mark.parametrize("options", MEMBERS, ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)], ids=["fp32", "fp64"])
def test_stage_products_equal_the_dense_layer(options: dict, dtype: torch.dtype, tolerance: float) -> None:
    layer = linear(dtype, **options).eval()
    plain = layer.fold()
    for leading in ((), (1,), (3, 50), (0,), (300,)):
        x = torch.randn(*leading, 24, dtype=dtype)
        expected = plain(x)
        with torch.no_grad():
            got = layer(x)
        assert got.shape == expected.shape and got.is_contiguous()
        if expected.numel():
            assert (got - expected).abs().max() <= tolerance * expected.abs().max()


CHAINS = {
    "one": [(1, 6, 8, 1)],
    "low rank": [(1, 3, 8, 1), (1, 6, 3, 1)],
    "algebra": [(1, 5, 4, 2), (5, 3, 2, 1), (1, 2, 5, 3)],
    "mixes only": [(1, 3, 2, 4), (1, 2, 3, 4)],
    "groups that mix": [(2, 3, 4, 1), (3, 2, 1, 2), (2, 5, 3, 2)],
    "cut anew": [(4, 3, 2, 1), (2, 4, 6, 1), (1, 3, 4, 2)],
}


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("shapes", CHAINS.values(), ids=CHAINS)
def test_any_chain_of_stages_is_the_product_of_their_matrices(shapes: list, inference: bool) -> None:
    stages = [Stage(torch.randn(g, o, i, dtype=torch.float64), inner) for g, o, i, inner in shapes]
    x, matrix = torch.randn(2, 300, 8, dtype=torch.float64), torch.eye(8, dtype=torch.float64)
    for (groups, _, _, inner), stage in zip(shapes, stages, strict=True):
        blocks = [torch.kron(stage.matrix[g], torch.eye(inner, dtype=torch.float64)) for g in range(groups)]
        matrix = torch.block_diag(*blocks) @ matrix
    bias = torch.randn(len(matrix), dtype=torch.float64)
    assert_same(run_stages(x, stages, bias, inference), x @ matrix.T + bias, 1e-12)
    assert_same(run_stages(x[:, :1], stages, None, inference), x[:, :1] @ matrix.T, 1e-12)
    assert run_stages(x[:0], stages, bias, inference).shape == (0, 300, len(matrix))


@pytest.mark.parametrize("options", MEMBERS, ids=str)
@pytest.mark.parametrize("kind", ["Conv1d", "Conv2d", "Conv3d", "ConvTranspose2d"])
def test_stage_convolutions_equal_the_plain_ones(options: dict, kind: str) -> None:
    more = {"output_padding": 1} if "Transpose" in kind else {"padding_mode": "circular"}
    layer = getattr(weft, kind)(
        8,
        16,
        3,
        stride=2,
        padding=1,
        parametrization="kronecker",
        path="factored",
        dtype=torch.float64,
        **more,
        **options,
    ).eval()
    dims = int(kind[-2])
    x = torch.randn(2, 8, *range(5, 5 + dims), dtype=torch.float64)
    with torch.no_grad():
        assert "stages" in layer.explain(x).path
        torch.testing.assert_close(layer(x), layer.fold()(x), rtol=0, atol=1e-10)
        torch.testing.assert_close(layer(x[0]), layer.fold()(x[0]), rtol=0, atol=1e-10)


def test_explain_tells_the_number_of_products_and_their_error() -> None:
    for options, products in (({"n": 4}, 7), ({"algebra": "octonion"}, 25), ({"n": 4, "rank": 5}, 5)):
        layer = linear(**options).eval()
        with torch.no_grad():
            explanation = layer.explain(torch.randn(200, 24))
        count, error = re.match(r"(\d+) products of blocks \(error (\S+)\); ", explanation.why).groups()
        assert int(count) == products and 0 <= float(error) < 1e-11
        blocks = 24 * 16 // int(layer.parametrization.n) ** 2
        mixes = products * (24 + 16)
        assert explanation.macs == 200 * (products * blocks + mixes)


@pytest.mark.parametrize("kind", ["Conv2d", "ConvTranspose1d"])
def test_large_batches_are_convolved_a_few_samples_at_a_time(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conv_module, "_CHUNK_BYTES", 2**12)
    layer = getattr(weft, kind)(
        8, 16, 3, parametrization="kronecker", algebra="quaternion", path="factored", dtype=torch.float64
    ).eval()
    x, seen = torch.randn(7, 8, *(9,) * int(kind[-2]), dtype=torch.float64), []
    convolve = layer._convolve
    monkeypatch.setattr(layer, "_convolve", lambda x, *more: seen.append(len(x)) or convolve(x, *more))
    with torch.no_grad():
        assert_same(layer(x), layer.fold()(x), 1e-12)
    assert sum(seen) == 7 and len(seen) > 1


@pytest.mark.parametrize("options", [{"n": 4, "rank": 5}, {"algebra": "quaternion"}], ids=str)
@pytest.mark.parametrize("conv", [False, True])
def test_gradients_through_stages_equal_those_through_the_dense_weight(options: dict, conv: bool) -> None:
    if conv:
        layer = weft.Conv2d(8, 8, 3, parametrization="kronecker", dtype=torch.float64, **options)
        x = torch.randn(2, 8, 6, 6, dtype=torch.float64, requires_grad=True)
    else:
        layer = linear(**options)
        x = torch.randn(200, 24, dtype=torch.float64, requires_grad=True)
    gradients = []
    for plan in ("stages", "dense"):
        layer._plan = Plan.always(plan)
        loss = (layer(x) ** 3).sum()
        gradients.append(torch.autograd.grad(loss, [x, *layer.parameters()]))
    for by_stages, by_dense in zip(*gradients, strict=True):
        torch.testing.assert_close(by_stages, by_dense, rtol=1e-9, atol=1e-9)


def test_learned_algebra_is_decomposed_once_and_again_after_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    decompose = kronecker.decompose
    monkeypatch.setattr(kronecker, "decompose", lambda *a, **k: calls.append(1) or decompose(*a, **k))
    layer = linear(n=4)
    x = torch.randn(40, 24, dtype=torch.float64)
    layer(x)
    assert not calls, "training must not decompose"
    layer.eval()
    with torch.no_grad():
        for _ in range(3):
            layer(x)
    assert len(calls) == 1
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer(x).square().sum().backward()
    optimizer.step()
    with torch.no_grad():
        torch.testing.assert_close(layer(x), layer.fold()(x), rtol=0, atol=1e-10)
    assert len(calls) == 2


def test_stages_follow_every_change_of_the_parameters() -> None:
    layer = linear(algebra="quaternion").eval()
    x = torch.randn(40, 24, dtype=torch.float64)

    def check() -> torch.Tensor:
        with torch.no_grad():
            y = layer(x)
            torch.testing.assert_close(y, layer.fold()(x), rtol=0, atol=1e-10)
        return y

    first = check()
    with torch.no_grad():
        layer.parametrization.blocks.mul_(2)
    second = check()
    layer.load_state_dict(linear(algebra="quaternion").state_dict())
    third = check()
    layer.parametrization = linear(algebra="octonion").parametrization
    layer._cached_plan = Plan.always("cached stages")
    fourth = check()
    assert len({float(y.sum()) for y in (first, second, third, fourth)}) == 4
    assert not any("stage" in key for key in layer.state_dict())
    assert layer._stage_cache.entry is not None
    twin = copy.deepcopy(layer)
    assert twin._stage_cache.entry is None


def test_an_algebra_that_cannot_be_decomposed_runs_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fails(table: torch.Tensor, *a: object, **k: object) -> tuple:
        calls.append(1)
        return (torch.ones(4, 7),) * 3, 0.3

    monkeypatch.setattr(kronecker, "decompose", fails)
    layer = linear(n=4).eval()
    x = torch.randn(40, 24, dtype=torch.float64)
    with torch.no_grad():
        for _ in range(3):
            torch.testing.assert_close(layer(x), layer.fold()(x), rtol=0, atol=1e-10)
        assert layer.explain(x).path == "cached"
    assert len(calls) == 1, "the failure must be remembered, not searched for in every call"


def test_half_precision_never_runs_on_differences_of_blocks() -> None:
    layer = linear(torch.float32, algebra="quaternion").eval()
    x = torch.randn(200, 24)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert layer.explain(x).path == "cached" and layer(x).dtype == torch.bfloat16
    assert layer.bfloat16().parametrization.stage_shapes(True) is None


def test_explain_tells_products_and_multiply_adds() -> None:
    layer = weft.Linear(2048, 2048, parametrization="kronecker", algebra="quaternion").eval()
    with torch.no_grad():
        explanation = layer.explain(torch.empty(256, 2048))
    assert explanation.path == "cached stages" and "8 products" in explanation.why
    rows, block = 256, 512
    assert explanation.macs == rows * (8 * block * block + 8 * 4 * block * 2)


@pytest.mark.parametrize("options", [{"n": 4, "rank": 4}, {"algebra": "quaternion"}, {"n": 4}], ids=str)
def test_compile_and_export_are_exact(options: dict) -> None:
    model = nn.Sequential(linear(**options), nn.ReLU()).eval()
    x = torch.randn(30, 24, dtype=torch.float64)
    expected = weft.fold(model)(x)
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), expected, rtol=0, atol=1e-10)
        exported = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    for rows in (30, 3):
        torch.testing.assert_close(exported.module()(x[:rows]), expected[:rows], rtol=0, atol=1e-10)
