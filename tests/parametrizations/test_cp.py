"""The CP decomposition: ranks that mathematics knows, what the search promises, and its derivative."""

import itertools

import numpy as np
import pytest
import torch

from weft.parametrizations import multiplication_table
from weft.parametrizations.algebra import decompose
from weft.parametrizations.cp import (
    _jacobian,
    _jacobian_of_terms,
    amplification,
    compose,
    cp_approximate,
    cp_decompose,
    generic_rank,
)


def drawn(*sides, seed=0):
    return torch.randn(sides, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def sum_of_products(factors):
    """The tensor of the factors, one outer product after the other."""
    a, b, c = (factor.detach().numpy() for factor in factors)
    total = np.zeros((len(a), len(b), len(c)))
    for r in range(a.shape[1]):
        total += a[:, r, None, None] * b[None, :, r, None] * c[None, None, :, r]
    return total


def true_error(factors, tensor):
    return float(np.linalg.norm(sum_of_products(factors) - tensor.numpy()) / np.linalg.norm(tensor.numpy()))


def matrix_product(n):
    """The table of n x n matrices: (A B)[i, k] = sum_j A[i, j] B[j, k]."""
    table = torch.zeros(n * n, n * n, n * n, dtype=torch.float64)
    for i, j, k in itertools.product(range(n), repeat=3):
        table[i * n + j, i * n + k, j * n + k] = 1
    return table


def test_composed_tensor_is_the_sum_of_outer_products():
    factors = drawn(2, 5), drawn(3, 5, seed=1), drawn(4, 5, seed=2)
    np.testing.assert_allclose(compose(factors).numpy(), sum_of_products(factors), atol=1e-13)


def test_generic_ranks_are_those_of_the_literature():
    """Strassen 1983: n^3 / (3n - 2), rounded up, except for n = 3."""
    assert [generic_rank(n) for n in range(1, 9)] == [1, 2, 5, 7, 10, 14, 19, 24]


@pytest.mark.parametrize(("n", "rank"), [(1, 1), (2, 3), (3, 5), (4, 7), (5, 10)])
def test_almost_every_tensor_has_the_generic_rank(n, rank):
    for seed in range(5):
        tensor = drawn(n, n, n, seed=seed)
        factors, error = cp_decompose(tensor, rank)
        assert error <= 1e-12
        assert true_error(factors, tensor) <= 1e-11


@pytest.mark.slow
def test_eight_components_need_24_products():
    for seed in range(2):
        tensor = drawn(8, 8, 8, seed=seed)
        factors, error = cp_decompose(tensor, 24)
        assert error <= 1e-12
        assert true_error(factors, tensor) <= 1e-11
        assert amplification(factors) < 4


def test_strassens_seven_products_are_found_and_six_are_not():
    table = matrix_product(2)
    factors, error = cp_decompose(table, 7)
    assert error <= 1e-12
    assert true_error(factors, table) <= 1e-11
    assert cp_decompose(table, 6, restarts=3)[1] > 0.1


@pytest.mark.parametrize(("name", "rank", "wanted"), [("complex", 2, 0.5), ("quaternion", 7, 0.35)])
def test_fewer_products_than_the_rank_leave_an_error_that_is_told(name, rank, wanted):
    table = multiplication_table(name, dtype=torch.float64)
    factors, error = cp_decompose(table, rank)
    assert error == pytest.approx(wanted, abs=0.01)
    assert error == pytest.approx(true_error(factors, table), abs=1e-9)
    assert cp_decompose(table, rank + 1)[1] <= 1e-12


def test_no_sum_of_two_products_multiplies_dual_numbers():
    """They are a limit of sums of two products with ever larger terms: near is not there."""
    table = multiplication_table("dual", dtype=torch.float64)
    factors, error = cp_decompose(table, 2)
    assert error > 1e-6
    assert amplification(factors) > 20
    found, exact = decompose(table)
    assert exact <= 1e-12
    assert found[0].shape[1] == 3
    assert amplification(found) < 20


def test_tensors_of_lower_rank_are_decomposed_too():
    factors = drawn(4, 3), drawn(4, 3, seed=1), drawn(4, 3, seed=2)
    for rank in (3, 4, 7):
        assert cp_decompose(compose(factors), rank)[1] <= 1e-12


def test_tensors_need_not_be_cubes():
    factors = drawn(2, 3), drawn(5, 3, seed=1), drawn(4, 3, seed=2)
    found, error = cp_decompose(compose(factors), 3)
    assert [tuple(factor.shape) for factor in found] == [(2, 3), (5, 3), (4, 3)]
    assert error <= 1e-12


def test_the_zero_tensor_has_zero_factors():
    factors, error = cp_decompose(torch.zeros(3, 3, 3), 2)
    assert error == 0
    assert all(factor.shape == (3, 2) and not factor.any() for factor in factors)


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
def test_the_size_of_the_tensor_does_not_matter(scale):
    tensor = drawn(4, 4, 4) * scale
    factors, error = cp_decompose(tensor, 7)
    assert error <= 1e-12
    assert true_error(factors, tensor) <= 1e-11


def test_factors_are_balanced():
    factors, _ = cp_decompose(1e6 * drawn(4, 4, 4), 7)
    norms = torch.stack([factor.norm(dim=0) for factor in factors])
    torch.testing.assert_close(norms, norms[:1].expand_as(norms), rtol=1e-9, atol=0)


def test_the_seed_decides_and_nothing_else():
    tensor = drawn(4, 4, 4)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first, _ = cp_decompose(tensor, 7)
    assert torch.equal(torch.get_rng_state(), state), "the search draws from torch's global generator"
    torch.manual_seed(2)
    second, _ = cp_decompose(tensor, 7)
    other, _ = cp_decompose(tensor, 7, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.allclose(first[0], other[0], atol=1e-3)


def test_a_start_nearby_is_followed():
    tensor = drawn(4, 4, 4)
    factors, _ = cp_decompose(tensor, 7)
    moved = tensor + 1e-3 * drawn(4, 4, 4, seed=5)
    near, error = cp_decompose(moved, 7, start=factors, restarts=0)
    assert error <= 1e-12
    assert true_error(near, moved) <= 1e-11
    assert all((a - b).norm() < 0.1 * b.norm() for a, b in zip(near, factors, strict=True))


def test_a_start_that_leads_nowhere_is_given_up():
    tensor = drawn(4, 4, 4)
    zeros = tuple(torch.zeros(4, 7, dtype=torch.float64) for _ in range(3))  # no direction goes down from there
    assert cp_decompose(tensor, 7, start=zeros)[1] <= 1e-12


def cancelling(n, rank, size, seed=0):
    """Factors of which the first two terms are about ``size`` times as large as what is left of them."""
    factors = [drawn(n, rank, seed=seed + part) for part in range(3)]
    for part, factor in enumerate(factors):
        factor[:, 1] = factor[:, 0] + drawn(n, seed=seed + 10 + part) / size
    factors[0][:, 0] *= -size
    factors[0][:, 1] *= size
    return tuple(factors)


@pytest.mark.parametrize("n", [3, 4, 5])
def test_terms_are_not_much_larger_than_their_sum(n):
    for seed in range(10):
        tensor = drawn(n, n, n, seed=seed)
        factors, _ = cp_decompose(tensor, generic_rank(n))
        assert true_error(factors, tensor) <= 1e-11
        assert amplification(factors) < (6 if n == 5 else 4)


@pytest.mark.parametrize("size", [30, 3000])
def test_a_start_in_large_terms_is_given_up_for_a_calm_one(size):
    start = cancelling(4, 7, size)
    tensor = compose(start)
    assert amplification(start) > 10
    assert cp_decompose(tensor, 7, start=start, restarts=0)[1] <= 1e-12, "the start is a decomposition itself"
    factors, error = cp_decompose(tensor, 7, start=start)
    assert error <= 1e-12
    assert true_error(factors, tensor) <= 1e-11
    assert amplification(factors) < 4


@pytest.mark.parametrize("size", [50, 300])
def test_one_more_product_is_taken_where_the_fewest_are_too_large(size):
    """Two terms that nearly cancel are the only decomposition of this tensor into two."""
    start = cancelling(2, 2, size)
    tensor = compose(start)
    factors, error = decompose(tensor, 2, start=start)
    assert error <= 1e-11
    assert amplification(factors) > 10
    for begin in (None, start):
        factors, error = decompose(tensor, start=begin)
        assert true_error(factors, tensor) <= 1e-11
        assert factors[0].shape[1] == 3
        assert amplification(factors) < 4


def test_approximations_are_in_moderate_terms():
    """Two products come as near to dual numbers as one likes, in ever larger terms; here they end in smaller ones."""
    table = multiplication_table("dual", dtype=torch.float64)
    factors, error = cp_decompose(table, 2, approximate=True)
    assert error == pytest.approx(true_error(factors, table), abs=1e-9)
    assert error < 0.1
    assert amplification(factors) < 10
    again, other = cp_approximate(1e3 * table, tuple(10 * factor for factor in factors))
    assert other == pytest.approx(error, rel=0.1)
    assert other == pytest.approx(true_error(again, 1e3 * table), abs=1e-9)
    assert amplification(again) < 10
    exact = drawn(4, 3), drawn(4, 3, seed=1), drawn(4, 3, seed=2)
    assert cp_decompose(compose(exact), 3, approximate=True)[1] <= 1e-12
    noise = 1e-7 * drawn(4, 4, 4, seed=3)
    assert cp_decompose(compose(exact) + noise, 3, approximate=True)[1] <= 1e-6
    zero, none = cp_approximate(torch.zeros(2, 2, 2), tuple(torch.zeros(2, 3) for _ in range(3)))
    assert none == 0
    assert not compose(zero).any()


def test_derivative_of_the_terms():
    factors = drawn(2, 3), drawn(4, 3, seed=1), drawn(3, 3, seed=2)
    size = lambda *f: torch.stack([one_term(f, r).norm() for r in range(3)])
    parts = torch.autograd.functional.jacobian(size, factors)
    want = torch.cat([part.flatten(1) for part in parts], dim=1)
    torch.testing.assert_close(_jacobian_of_terms(factors), want, rtol=0, atol=1e-12)


def one_term(factors, r):
    """One term as a tensor."""
    a, b, c = (factor[:, r] for factor in factors)
    return a[:, None, None] * b[None, :, None] * c[None, None, :]


def test_single_precision_tensors_are_decomposed_in_double():
    tensor = drawn(4, 4, 4).float()
    factors, error = cp_decompose(tensor.requires_grad_(), 7)
    assert all(factor.dtype == torch.float64 and not factor.requires_grad for factor in factors)
    assert error <= 1e-12


def test_jacobian_is_the_derivative():
    factors = drawn(2, 3), drawn(4, 3, seed=1), drawn(3, 3, seed=2)
    parts = torch.autograd.functional.jacobian(lambda *f: compose(f).flatten(), factors)
    want = torch.cat([part.flatten(1) for part in parts], dim=1)
    torch.testing.assert_close(_jacobian(factors), want, rtol=0, atol=1e-12)


def test_amplification_compares_terms_with_their_sum():
    e, f = torch.eye(2, dtype=torch.float64)
    single = (e[:, None], e[:, None], e[:, None])
    assert amplification(single) == pytest.approx(1)
    # 5 e e e - 4 e e e: terms of norm sqrt(25 + 16), sum of norm 1.
    cancelling = (torch.stack([5 * e, -4 * e], 1), torch.stack([e, e], 1), torch.stack([e, e], 1))
    assert amplification(cancelling) == pytest.approx(41**0.5)
    orthogonal = tuple(torch.stack([e, f], 1) for _ in range(3))
    assert amplification(orthogonal) == pytest.approx(1)
