"""Effective rank: closed forms, and the published fall with depth."""

import math

import pytest
import torch

import weft
from weft.errors import FitError, SizeError


def test_closed_forms():
    q, _ = torch.linalg.qr(torch.randn(9, 6, dtype=torch.float64))
    assert float(weft.effective_rank(q)) == pytest.approx(math.log(6))
    assert float(weft.effective_rank(q.T, exponential=True)) == pytest.approx(6)
    values = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    assert float(weft.effective_rank(7 * torch.diag(values))) == pytest.approx(1.5 * math.log(2))
    assert float(weft.effective_rank(torch.outer(values, values))) == pytest.approx(0, abs=1e-12)
    assert float(weft.effective_rank(torch.zeros(3, 2))) == 0
    assert float(weft.effective_rank(1j * q)) == pytest.approx(math.log(6))
    edge = torch.diag(torch.tensor([2.0, 1.0, 0.0], dtype=torch.float64)).requires_grad_()
    weft.effective_rank(edge).backward()
    assert edge.grad.isfinite().all() and edge.grad.abs().max() > 0.1  # at a singular value of exactly 0 too
    batch = torch.randn(2, 4, 5)
    assert float(weft.effective_rank(batch)[1]) == pytest.approx(float(weft.effective_rank(batch[1])))


def test_products_of_more_random_matrices_have_a_smaller_one():
    """Mean of 20 products of d Gaussian 64 x 64 matrices."""
    published = {1: 3.94, 2: 3.75, 4: 3.45, 8: 3.02, 16: 2.48, 32: 1.92}
    for depth, want in published.items():
        factors = torch.randn(depth, 20, 64, 64, dtype=torch.float64)
        product = factors[0]
        for factor in factors[1:]:
            product = factor @ product
        assert float(weft.effective_rank(product).mean()) == pytest.approx(want, abs=0.06)


def test_layers_start_with_a_smaller_one_the_deeper_they_are():
    means = []
    for depth in (1, 2, 4, 8, 16):
        layers = [weft.EPLinear(64, 64, depth=depth, dtype=torch.float64) for _ in range(20)]
        means.append(sum(float(weft.effective_rank(layer.weight.detach())) for layer in layers) / 20)
    assert means == sorted(means, reverse=True)
    assert means[0] - means[-1] > 1


def test_bad_matrices_are_refused():
    with pytest.raises(SizeError, match="two dimensions"):
        weft.effective_rank(torch.randn(3))
    with pytest.raises(SizeError, match="no empty side"):
        weft.effective_rank(torch.randn(3, 0))
    with pytest.raises(FitError, match="not finite"):
        weft.effective_rank(torch.full((2, 2), float("nan")))
