"""Sums of Kronecker products: torch.kron, Hamilton's product, complex numbers, and the optima of the fits."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weft.errors import SizeError, UnknownNameError
from weft.parametrizations import Kronecker, multiplication_table
from weft.parametrizations.algebra import dimension
from weft.parametrizations.kronecker_fit import (
    best_blocks,
    best_mixing,
    kronecker_sum,
    nearest_kronecker_sum,
    rearrange,
)
from weft.testing import assert_same, oracles

repeatable = settings(derandomize=True, deadline=None, max_examples=50)


@repeatable
@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4))
def test_sum_is_that_of_torch_kron(n, rows, columns):
    mixing, blocks = torch.randn(n, n, n).double(), torch.randn(n, rows, columns).double()
    want = sum(torch.kron(a, s) for a, s in zip(mixing, blocks, strict=True))
    assert_same(kronecker_sum(mixing, blocks), want, 1e-12, "the sum")


def test_index_form():
    """W[p*O/n + o, q*I/n + c] = sum_i A[i, p, q] S[i, o, c]."""
    member = Kronecker((6, 9), n=3, dtype=torch.float64)
    matrix = member.dense()
    for p, o, q, c in itertools.product(range(3), range(2), range(3), range(3)):
        want = sum(member.mixing[i, p, q] * member.blocks[i, o, c] for i in range(3))
        assert_same(matrix[p * 2 + o, q * 3 + c], want, 1e-12, "an entry")


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_stored_numbers(n):
    member = Kronecker((12, 18), n=n)
    assert member.num_parameters == n**3 + 12 * 18 // n
    assert member.cost(7) == 7 * (12 * 18 + n * n * 12)
    assert member.build_cost() == n * 12 * 18
    assert f"n={n}, algebra=learned" in repr(member)


def test_default_number_of_components():
    assert Kronecker((8, 8)).n == 4
    assert Kronecker((8, 8), algebra="complex").n == 2
    assert Kronecker((8, 8), algebra="quaternion", n=4).n == 4


# ---------------------------------------------------------------- algebras


finite = st.floats(-2, 2, allow_subnormal=False)


@repeatable
@given(st.tuples(*[finite] * 4), st.tuples(*[finite] * 4))
def test_quaternion_layer_of_one_number_is_hamiltons_product(p, q):
    member = Kronecker((4, 4), algebra="quaternion", dtype=torch.float64)
    with torch.no_grad():
        member.blocks.copy_(torch.tensor(p, dtype=torch.float64).reshape(4, 1, 1))
    want = oracles.hamilton_product(p, q)
    for got in (
        member.linear(torch.tensor(q, dtype=torch.float64)),
        member.dense() @ torch.tensor(q, dtype=torch.float64),
    ):
        np.testing.assert_allclose(got.detach().numpy(), want, atol=1e-12)


def test_quaternion_layer_sums_hamilton_products_of_its_weights_and_inputs():
    member = Kronecker((8, 12), algebra="quaternion", dtype=torch.float64)
    x = torch.randn(12, dtype=torch.float64)
    got = member.linear(x).reshape(4, 2)
    for o in range(2):
        want = np.zeros(4)
        for c in range(3):
            weight, value = member.blocks[:, o, c].tolist(), x.reshape(4, 3)[:, c].tolist()
            want += oracles.hamilton_product(weight, value)
        np.testing.assert_allclose(got[:, o].detach().numpy(), want, atol=1e-12)


def test_complex_layer_is_complex_multiplication():
    member = Kronecker((6, 10), algebra="complex", dtype=torch.float64)
    weight = torch.complex(*member.blocks.detach()).numpy()
    x = torch.randn(7, 10, dtype=torch.float64)
    want = (x[:, :5].numpy() + 1j * x[:, 5:].numpy()) @ weight.T
    got = member.linear(x).detach().numpy()
    np.testing.assert_allclose(got[:, :3] + 1j * got[:, 3:], want, atol=1e-12)


@pytest.mark.parametrize("name", ["complex", "quaternion"])
def test_table_is_an_associative_division_algebra_with_one(name):
    table = multiplication_table(name, dtype=torch.float64)
    n = dimension(name)
    assert table.shape == (n, n, n)
    assert_same(table[0], torch.eye(n, dtype=torch.float64), 0, "multiplication by one")
    multiply = lambda a, b: torch.einsum("i,ipq,q->p", a, table, b)
    for _ in range(5):
        a, b, c = torch.randn(3, n, dtype=torch.float64)
        assert_same(multiply(multiply(a, b), c), multiply(a, multiply(b, c)), 1e-12, "(ab)c")
        assert float(multiply(a, b).norm()) == pytest.approx(float(a.norm() * b.norm()))  # the norm is multiplicative
    for i in range(1, n):  # the imaginary units
        assert_same(table[i] @ table[i], -torch.eye(n, dtype=torch.float64), 0, "the square of a unit")


def test_quaternion_units():
    one, i, j, k = multiplication_table("quaternion")
    assert_same(i @ j, k, 0, "ij")
    assert_same(j @ k, i, 0, "jk")
    assert_same(k @ i, j, 0, "ki")
    assert_same(i @ j @ k, -one, 0, "ijk")
    assert_same(i, torch.tensor([[0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 0, -1], [0, 0, 1, 0.0]]), 0, "i")


def test_fixed_table_is_no_parameter_and_is_restored():
    member = Kronecker((8, 8), algebra="quaternion", dtype=torch.float64)
    assert [name for name, _ in member.named_parameters()] == ["blocks"]
    assert member.num_parameters == 16
    assert "algebra=quaternion" in repr(member)
    member.mixing.zero_()
    member.reset_parameters()
    assert_same(member.mixing, multiplication_table("quaternion").double(), 0, "the table")


def test_unknown_algebra_is_refused_with_the_nearest():
    for call in (dimension, multiplication_table, lambda name: Kronecker((8, 8), algebra=name)):
        with pytest.raises(
            UnknownNameError, match=r"complex, .*quaternion.*got 'quarternion'; did you mean 'quaternion'"
        ):
            call("quarternion")


# ---------------------------------------------------------------- fits


def rearranged_by_loops(matrix, n):
    """One row per block, in row-major order of the blocks, each block flattened."""
    rows, columns = matrix.shape[0] // n, matrix.shape[1] // n
    out = np.zeros((n * n, rows * columns))
    for p, q in itertools.product(range(n), range(n)):
        out[p * n + q] = matrix[p * rows : (p + 1) * rows, q * columns : (q + 1) * columns].numpy().ravel()
    return out


@pytest.mark.parametrize(
    ("shape", "n"), [((8, 12), 2), ((12, 8), 4), ((9, 15), 3), ((5, 7), 1), ((4, 4), 4), ((6, 3), 3)]
)
def test_fit_of_a_learned_algebra_is_van_loans_optimum(shape, n):
    target = torch.randn(shape, dtype=torch.float64)
    loops = rearranged_by_loops(target, n)
    assert_same(rearrange(target, n), torch.from_numpy(loops), 0, "the rearranged matrix")
    member = Kronecker(shape, n=n, dtype=torch.float64)
    error = member.fit_(target)
    singular = np.linalg.svd(loops, compute_uv=False)
    want = math.sqrt((singular[n:] ** 2).sum() / (singular**2).sum())
    assert error == pytest.approx(want, abs=1e-9)
    assert oracles.weighted_error(oracles.sum_of_kroneckers(member.mixing, member.blocks), target) == pytest.approx(
        want, abs=1e-9
    )


def test_fitted_algebra_has_the_scale_of_a_fresh_one():
    """sum_i A[i, p, q]^2 is 1 on average, so that the learning rate of A means the same before and after a fit."""
    member = Kronecker((16, 24), n=4, dtype=torch.float64)
    fresh = member.mixing.detach().square().sum(0)
    assert_same(fresh, torch.ones(4, 4, dtype=torch.float64), 1e-12, "the energy of a fresh A")
    member.fit_(torch.randn(16, 24))
    assert float(member.mixing.detach().square().sum(0).mean()) == pytest.approx(1)


@pytest.mark.parametrize("name", ["complex", "quaternion"])
def test_fit_of_a_fixed_algebra_is_the_least_squares_projection(name):
    n = dimension(name)
    target = torch.randn(2 * n, 3 * n, dtype=torch.float64)
    member = Kronecker((2 * n, 3 * n), algebra=name, dtype=torch.float64)
    member.fit_(target)
    columns = []  # the matrix of each unit block, as columns of a linear system
    oracle = {"complex": oracles.complex_matrix, "quaternion": oracles.quaternion_matrix}[name]
    for index in range(member.blocks.numel()):
        unit = torch.zeros(member.blocks.numel(), dtype=torch.float64)
        unit[index] = 1
        columns.append(oracle(unit.reshape(member.blocks.shape)).flatten().numpy())
    best, *_ = np.linalg.lstsq(np.stack(columns, 1), target.flatten().numpy(), rcond=None)
    assert_same(member.blocks.flatten(), torch.from_numpy(best), 1e-10, "the blocks")


def outputs_of_unit_blocks(mixing, shape, x):
    """A linear system: one column per number of the blocks, the outputs X W^T of the matrix in which only it is one."""
    units = torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)
    return np.stack([(x @ oracles.sum_of_kroneckers(mixing, unit).T).flatten().numpy() for unit in units], 1)


def test_blocks_for_any_given_mixing_are_the_least_squares_solution():
    mixing, target = torch.randn(2, 2, 2).double(), torch.randn(4, 6, dtype=torch.float64)
    system = outputs_of_unit_blocks(mixing, (2, 2, 3), torch.eye(6, dtype=torch.float64))
    best, *_ = np.linalg.lstsq(system, target.T.flatten().numpy(), rcond=None)
    assert_same(best_blocks(mixing, target, None).flatten(), torch.from_numpy(best), 1e-10, "the blocks")


@pytest.mark.parametrize("samples", [40, 5])
def test_weighted_blocks_are_the_least_squares_solution(samples):
    mixing, shape = torch.randn(2, 2, 2).double(), (2, 2, 3)
    x = torch.randn(samples, 6, dtype=torch.float64) * torch.logspace(-1, 0, 6, dtype=torch.float64)
    target = torch.randn(4, 6, dtype=torch.float64)
    blocks = best_blocks(mixing, target, x.T @ x)
    system, wanted = outputs_of_unit_blocks(mixing, shape, x), (x @ target.T).flatten().numpy()
    best, *_ = np.linalg.lstsq(system, wanted, rcond=None)
    got = np.linalg.norm(system @ blocks.flatten().numpy() - wanted)
    assert got <= np.linalg.norm(system @ best - wanted) + 1e-7 * np.linalg.norm(wanted)


def test_weighted_mixing_is_the_least_squares_solution():
    blocks, target = torch.randn(2, 2, 3).double(), torch.randn(4, 6, dtype=torch.float64)
    x = torch.randn(40, 6, dtype=torch.float64)
    mixing = best_mixing(blocks, target, x.T @ x).clone().requires_grad_()
    loss = (x @ (kronecker_sum(mixing, blocks) - target).T).square().sum()
    (slope,) = torch.autograd.grad(loss, mixing)
    assert float(slope.abs().max()) < 1e-9 * float(loss.detach())  # the loss is convex in A, so this is its minimum


def test_weighted_fit_of_a_fixed_algebra_is_the_optimum():
    x = torch.randn(60, 8, dtype=torch.float64) * torch.logspace(-1, 0, 8, dtype=torch.float64)
    target = torch.randn(8, 8, dtype=torch.float64)
    member = Kronecker((8, 8), algebra="quaternion", dtype=torch.float64)
    member.fit_(target, x.T @ x)
    loss = (x @ (member.dense() - target).T).square().sum()
    (slope,) = torch.autograd.grad(loss, member.blocks)
    assert float(slope.abs().max()) < 1e-9 * float(loss.detach())


def test_weighted_fit_of_a_learned_algebra_improves_on_the_unweighted_one():
    x = torch.randn(100, 16, dtype=torch.float64) * torch.logspace(-2, 0, 16, dtype=torch.float64)
    target = torch.randn(16, 16, dtype=torch.float64)
    plain, weighted = Kronecker((16, 16), n=2, dtype=torch.float64), Kronecker((16, 16), n=2, dtype=torch.float64)
    plain.fit_(target)
    assert weighted.fit_(target, x.T @ x) < 0.95 * oracles.weighted_error(plain.dense(), target, x)


def test_fit_of_a_quaternion_matrix_by_a_learned_algebra_is_exact():
    target = Kronecker((8, 12), algebra="quaternion", dtype=torch.float64).dense().detach()
    mixing, blocks = nearest_kronecker_sum(target, 4)
    assert_same(kronecker_sum(mixing, blocks), target, 1e-12, "the fitted matrix")


# ---------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    ("shape", "positions", "n", "match"),
    [
        (
            (10, 12),
            1,
            4,
            r"out_features \(out_channels\): 4 does not divide 10; nearest sizes for n=4: 8 or 12; .*10: 1, 2, 5",
        ),
        (
            (12, 10),
            1,
            3,
            r"in_features \(in_channels\): 3 does not divide 10; nearest sizes for n=3: 9 or 12; .*10: 1, 2, 5",
        ),
        ((8, 18), 9, 4, r"in_channels\): 4 does not divide 2; nearest sizes for n=4: 4;"),  # 4 divides neither 2 nor 18
        ((8, 12), 2, 4, r"in_channels\): 4 does not divide 6"),  # 4 divides 12, but would cut the kernel of a channel
    ],
)
def test_sizes_that_n_does_not_divide_are_refused_with_the_nearest(shape, positions, n, match):
    with pytest.raises(SizeError, match=match):
        Kronecker(shape, n=n, positions=positions)
