"""Arithmetic of quaternions: Hamilton's formula, group laws, rotations as scipy knows them, gradients also at 0."""

import numpy as np
import pytest
import torch
from scipy.linalg import expm
from scipy.spatial.transform import Rotation

from weft.errors import OptionError, SizeError
from weft.quaternion import (
    conjugate,
    dropout_mask,
    hamilton_product,
    modulus,
    normalise,
    parts,
    quaternion_exp,
    rotation_matrix,
)
from weft.testing import assert_same, oracles

ONE = torch.tensor([1.0, 0, 0, 0], dtype=torch.float64)
DIMS = [((5, 12), -1), ((12,), 0), ((2, 8, 3, 3), 1), ((4, 6), -2)]


def numbers(*shape):
    return torch.randn(shape, dtype=torch.float64)


def one_by_one(q, dim):
    """(count, 4) rows of single quaternions, in the order of the dimensions left."""
    q = q.movedim(dim, 0)
    return q.reshape(4, -1).T.numpy()


# ---------------------------------------------------------------- layout


@pytest.mark.parametrize(("shape", "dim"), DIMS)
def test_parts_are_views_component_after_component(shape, dim):
    q = numbers(*shape)
    pieces = parts(q, dim)
    m = shape[dim] // 4
    for index, piece in enumerate(pieces):
        assert_same(piece, q.narrow(dim, index * m, m), 0, "a part")
        assert piece.untyped_storage().data_ptr() == q.untyped_storage().data_ptr()
    assert_same(torch.cat(pieces, dim), q, 0, "the parts together")


@pytest.mark.parametrize("call", [parts, conjugate, modulus, normalise, quaternion_exp, rotation_matrix])
def test_sizes_that_four_does_not_divide_are_refused(call):
    with pytest.raises(SizeError, match=r"dimension 1 of quaternions must be divisible by 4, got the shape \(4, 6\)"):
        call(torch.zeros(4, 6), 1)
    with pytest.raises(SizeError, match="divisible by 4"):
        call(torch.tensor(1.0))


# ---------------------------------------------------------------- products


@pytest.mark.parametrize(("shape", "dim"), DIMS)
def test_product_is_hamiltons(shape, dim):
    a, b = numbers(*shape), numbers(*shape)
    got = one_by_one(hamilton_product(a, b, dim), dim)
    for row, p, q in zip(got, one_by_one(a, dim), one_by_one(b, dim), strict=True):
        np.testing.assert_allclose(row, oracles.hamilton_product(p, q), atol=1e-13)


def test_products_broadcast():
    a, b = numbers(4), numbers(3, 2, 4)
    assert_same(hamilton_product(a, b), hamilton_product(a.expand(3, 2, 4), b), 0, "the product")
    assert hamilton_product(numbers(2, 8, 1, 1), numbers(8, 5, 5), dim=-3).shape == (2, 8, 5, 5)


def test_unit_quaternions_are_a_group():
    a, b, c = normalise(numbers(3, 7, 8))
    one = ONE.repeat_interleave(2).expand(7, 8)
    assert_same(
        hamilton_product(hamilton_product(a, b), c), hamilton_product(a, hamilton_product(b, c)), 1e-12, "(a b) c"
    )
    assert_same(hamilton_product(a, one), a, 0, "a 1")
    assert_same(hamilton_product(one, a), a, 0, "1 a")
    assert_same(hamilton_product(a, conjugate(a)), one, 1e-12, "a a*")
    assert_same(modulus(hamilton_product(a, b)), torch.ones(7, 2).double(), 1e-12, "|a b|")
    assert not torch.allclose(hamilton_product(a, b), hamilton_product(b, a))


def test_conjugate_turns_products_round():
    a, b = numbers(2, 7, 8)
    assert_same(conjugate(hamilton_product(a, b)), hamilton_product(conjugate(b), conjugate(a)), 1e-12, "(a b)*")
    assert_same(conjugate(conjugate(a)), a, 0, "a**")


@pytest.mark.parametrize(("shape", "dim"), DIMS)
def test_modulus_is_the_euclidean_norm_and_multiplicative(shape, dim):
    a, b = numbers(*shape), numbers(*shape)
    np.testing.assert_allclose(modulus(a, dim).movedim(dim, 0).flatten(), np.linalg.norm(one_by_one(a, dim), axis=1))
    assert_same(modulus(hamilton_product(a, b, dim), dim), modulus(a, dim) * modulus(b, dim), 1e-12, "|a b|")
    assert_same(modulus(normalise(a, dim), dim), torch.ones_like(modulus(a, dim)), 1e-12, "|a/|a||")
    assert_same(normalise(a, dim) * torch.cat([modulus(a, dim)] * 4, dim), a, 1e-12, "a/|a| times |a|")


def test_zero_has_modulus_and_gradient_zero():
    q = torch.zeros(8, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(modulus(q).sum(), q)
    assert not slope.any()
    assert not normalise(q).any()
    (slope,) = torch.autograd.grad(normalise(q, eps=0.5).sum(), q)
    assert_same(slope, torch.full((8,), 2.0), 1e-12, "the gradient of q/eps")


# ---------------------------------------------------------------- exponential


def test_exponential_is_that_of_the_matrix():
    """e^q as a matrix is the exponential of the matrix that multiplies by q."""
    for q in [*numbers(10, 4), 1e-4 * numbers(4), numbers(4) * torch.tensor([1, 1e-9, 1e-9, 1e-9]), 5 * numbers(4)]:
        matrix = oracles.quaternion_matrix(q.reshape(4, 1, 1)).numpy()
        np.testing.assert_allclose(quaternion_exp(q).numpy(), expm(matrix)[:, 0], rtol=1e-10, atol=1e-12)


def test_exponential_of_channels_is_that_of_each_quaternion():
    q = numbers(2, 8, 3)
    want = torch.stack([quaternion_exp(q[:, m::2].movedim(1, -1)) for m in range(2)], -1)  # (2, 3, 4, m)
    assert_same(quaternion_exp(q, dim=1), want.permute(0, 2, 3, 1).reshape(2, 8, 3), 1e-12, "the exponential")


def test_exponential_turns_sums_into_products_along_one_axis():
    axis = numbers(4)
    first, second = 0.7 * axis, -1.9 * axis
    product = hamilton_product(quaternion_exp(first), quaternion_exp(second))
    assert_same(product, quaternion_exp(first + second), 1e-12, "e^p e^q")
    other = numbers(4)
    product = hamilton_product(quaternion_exp(axis), quaternion_exp(other))
    assert not torch.allclose(product, quaternion_exp(axis + other)), "quaternions of different axes do not commute"


@pytest.mark.parametrize("size", [0.0, 1e-9, 1e-3, 0.0316, 0.04, 1.0, 4.0])
def test_exponential_has_right_derivatives_everywhere(size):
    """Also where the series takes over from the functions, at |v| = 0.0316, and at v = 0."""
    v = size * normalise(torch.tensor([0.0, 1.0, -2.0, 0.5], dtype=torch.float64))
    q = (v + 0.3 * ONE).requires_grad_()
    assert torch.autograd.gradcheck(quaternion_exp, (q,))
    assert torch.autograd.gradgradcheck(quaternion_exp, (q,), atol=1e-4)
    want = torch.autograd.functional.jacobian(quaternion_exp, q)
    if size == 0:
        assert_same(want, np.exp(0.3) * torch.eye(4).double(), 1e-14, "the derivative at a real number")


def test_series_and_functions_meet_without_a_step():
    angles = torch.cat([torch.linspace(0.01, 1, 100), torch.tensor([0.0316, 0.03162, 0.03163, 0.0317])]).double()
    v = torch.zeros(len(angles), 4, dtype=torch.float64)
    v[:, 1] = angles
    assert_same(quaternion_exp(v)[:, :2], torch.stack([angles.cos(), angles.sin()], 1), 4e-16, "the exponential")


# ---------------------------------------------------------------- rotations


def test_rotations_are_those_of_scipy():
    q = numbers(50, 4)
    want = Rotation.from_quat(q.numpy(), scalar_first=True).as_matrix()
    np.testing.assert_allclose(rotation_matrix(q).squeeze(1).numpy(), want, atol=1e-13)


@pytest.mark.parametrize(("shape", "dim"), DIMS)
def test_rotations_of_channels(shape, dim):
    q = numbers(*shape)
    got = rotation_matrix(q, dim)
    expected_shape = list(shape)
    expected_shape[dim] //= 4
    assert got.shape == (*expected_shape, 3, 3)
    want = Rotation.from_quat(one_by_one(q, dim), scalar_first=True).as_matrix()
    np.testing.assert_allclose(got.movedim(dim if dim >= 0 else dim - 2, 0).reshape(-1, 3, 3).numpy(), want, atol=1e-13)


def test_rotation_is_conjugation_whatever_the_length():
    q, v = numbers(20, 4), numbers(20, 3)
    image = hamilton_product(hamilton_product(q, torch.nn.functional.pad(v, (1, 0))), conjugate(q))
    want = image / modulus(q).square()
    np.testing.assert_allclose(want[:, 0], 0, atol=1e-13)
    assert_same((rotation_matrix(q).squeeze(1) @ v[..., None]).squeeze(-1), want[:, 1:], 1e-12, "R v")
    assert_same(rotation_matrix(-3.7 * q), rotation_matrix(q), 1e-12, "the rotation of a multiple")


def test_rotations_are_a_homomorphism_into_the_rotation_group():
    a, b = numbers(2, 20, 4)
    assert_same(rotation_matrix(hamilton_product(a, b)), rotation_matrix(a) @ rotation_matrix(b), 1e-12, "R(a b)")
    assert_same(rotation_matrix(conjugate(a)), rotation_matrix(a).mT, 1e-12, "R(a*)")
    assert_same(torch.linalg.det(rotation_matrix(a)), torch.ones(20, 1).double(), 1e-12, "the determinant")


def test_rotation_matrix_has_right_gradients():
    q = numbers(3, 8).requires_grad_()
    assert torch.autograd.gradcheck(rotation_matrix, (q,))
    zero = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    assert_same(rotation_matrix(zero).squeeze(0), torch.eye(3), 0, "the rotation of 0")
    (slope,) = torch.autograd.grad(rotation_matrix(zero).sum(), zero)
    assert torch.isfinite(slope).all()


# ---------------------------------------------------------------- dropout


def test_dropout_drops_whole_quaternions():
    q = torch.ones(50, 400, 3)
    mask = dropout_mask(q, 0.3, dim=1)
    assert mask.shape == q.shape
    r, i, j, k = parts(mask, 1)
    assert torch.equal(r, i)
    assert torch.equal(r, j)
    assert torch.equal(r, k)
    assert_same(mask.unique(), torch.tensor([0.0, 1 / 0.7]), 1e-6, "the values of the mask")
    assert float((r == 0).double().mean()) == pytest.approx(0.3, abs=0.02)
    assert float(mask.mean()) == pytest.approx(1, abs=0.03)


def test_dropout_follows_its_generator_and_the_input():
    generator = lambda: torch.Generator().manual_seed(3)
    q = torch.ones(2, 40, dtype=torch.float64, requires_grad=True)
    first, second = dropout_mask(q, 0.5, generator=generator()), dropout_mask(q, 0.5, generator=generator())
    assert torch.equal(first, second)
    assert first.dtype == torch.float64
    assert not first.requires_grad
    assert not torch.equal(first, dropout_mask(q, 0.5))
    assert not (dropout_mask(q, 0.0) - 1).any()


@pytest.mark.parametrize("p", [-0.1, 1.0, 1.5, float("nan")])
def test_impossible_probabilities_are_refused(p):
    with pytest.raises(OptionError, match=r"p must be in \[0, 1\)"):
        dropout_mask(torch.ones(4), p)
