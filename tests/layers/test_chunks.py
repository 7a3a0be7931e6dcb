"""Many rows in evaluation run in chunks: the same numbers, each row once, and only where nobody looks on."""

import pytest
import torch

import weft
from weft.layers import chunks
from weft.testing import assert_same

FAMILIES = {
    "hodlr": {"depth": 3, "rank": 2},
    "sss": {"stages": 4, "state": 2},
    "monarch": {"blocks": 4, "rank": 2},
    "butterfly": {},
    "low_rank": {"rank": 3},
    "kronecker": {"algebra": "quaternion"},
}


@pytest.fixture
def small(monkeypatch):
    """Chunks of eight rows."""
    monkeypatch.setattr(chunks, "_CACHED", 1)
    monkeypatch.setattr(chunks, "_FEWEST", 8)
    monkeypatch.setattr(chunks, "_MOST", 8)


def layer(family, **options):
    return weft.Linear(
        16, 12, parametrization=family, path="factored", dtype=torch.float64, **(FAMILIES[family] | options)
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", [(35, 16), (3, 7, 16), (16, 16), (5, 16), (0, 16), (2, 0, 16), (16,)])
@pytest.mark.parametrize("bias", [True, False])
def test_chunks_change_nothing(small, family, shape, bias):
    module, x = layer(family, bias=bias).eval(), torch.randn(shape, dtype=torch.float64)
    want = torch.nn.functional.linear(x, module.parametrization.dense(), module.bias)
    with torch.no_grad():
        assert_same(module(x), want, 1e-12, "the product in chunks")
        assert module(x).is_contiguous()


def rows_of_the_products(module, monkeypatch):
    seen = []
    plain = type(module.parametrization).linear

    def linear(self, x, bias=None):
        seen.append(x.numel() // x.shape[-1])
        return plain(self, x, bias)

    monkeypatch.setattr(type(module.parametrization), "linear", linear)
    return seen


def test_only_many_rows_without_gradients_run_in_chunks(small, monkeypatch):
    module, x = layer("hodlr"), torch.randn(20, 16, dtype=torch.float64)
    seen = rows_of_the_products(module, monkeypatch)
    module(x)
    with torch.no_grad():
        module(x[:15])
        module(x)
        torch.func.vmap(module)(x.view(1, 20, 16))
    assert seen == [20, 15, 8, 8, 4, 20]


def test_half_precision_and_autocast(small):
    module, x = layer("monarch").float().eval(), torch.randn(40, 16)
    want = module(x).detach()
    with torch.no_grad():
        with torch.autocast("cpu"):
            assert module(x).dtype == torch.bfloat16
            assert_same(module(x), want, 0.05, "under autocast")
        assert_same(module.bfloat16()(x.bfloat16()), want, 0.05, "in bf16")


def test_rows_of_a_chunk():
    assert chunks.chunk_rows(0) == chunks.chunk_rows(2**12) == 256
    assert chunks.chunk_rows(2**21 // 200) == 200
    assert chunks.chunk_rows(10**9) == 128
