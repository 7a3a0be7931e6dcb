"""Rotations as weights: scipy's rotations, lengths that survive, nearest members, and the scale."""

import itertools

import numpy as np
import pytest
import torch
from scipy import optimize
from scipy.spatial.transform import Rotation

from weft.errors import FitError, OptionError, SizeError, UnknownNameError
from weft.parametrizations import QuaternionRotation, make
from weft.parametrizations.rotation import nearest_rotation
from weft.quaternion import rotation_matrix
from weft.testing import Case, assert_same, checks, oracles

OPTIONS = [
    {"quaternion_format": real, "scale": scale} for real, scale in itertools.product((True, False), (False, True))
]


def member_of(options, rows=2, columns=3, dtype=torch.float64, **more):
    n = 4 if options.get("quaternion_format", True) else 3
    return QuaternionRotation((rows * n, columns * n), dtype=dtype, **options, **more)


def blocks_of(matrix, n):
    """(o, c, 3, 3): what acts on the vectors."""
    rows, columns = matrix.shape[0] // n, matrix.shape[1] // n
    return matrix.reshape(n, rows, n, columns)[n - 3 :, :, n - 3 :].permute(1, 3, 0, 2)


# ---------------------------------------------------------------- the matrix


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_block_is_the_rotation_of_its_quaternion(options):
    member = member_of(options)
    if options["scale"]:
        torch.nn.init.normal_(member.scale)
    matrix = member.dense().detach()
    n, rows, columns = member.n, 2, 3
    for o, c in itertools.product(range(rows), range(columns)):
        block = matrix[o::rows, c::columns]
        want = np.zeros((n, n))
        rotation = Rotation.from_quat(member.quaternions[:, o, c].detach().numpy(), scalar_first=True)
        want[n - 3 :, n - 3 :] = rotation.as_matrix() * (member.scale[o, c].item() if options["scale"] else 1)
        np.testing.assert_allclose(block, want, atol=1e-13)
    assert_same(matrix, oracles.rotation_blocks(member.quaternions, member.scale, n), 1e-12, "dense()")


def test_one_block_turns_vectors_and_keeps_their_length():
    member = QuaternionRotation((4, 4), dtype=torch.float64)
    with torch.no_grad():
        member.quaternions.copy_(3 * torch.tensor([1.0, 0, 0, 1]).reshape(4, 1, 1))  # a quarter turn about z
    x = torch.tensor([9.0, 2, 5, 7]).double()  # the real part 9 is ignored
    assert_same(member.linear(x), torch.tensor([0.0, -5, 2, 7]), 1e-12, "the turned vector")
    other = QuaternionRotation((4, 4), dtype=torch.float64)
    x = torch.randn(10, 4, dtype=torch.float64)
    assert_same(other.linear(x).norm(dim=1), x[:, 1:].norm(dim=1), 1e-12, "the lengths")
    plain = QuaternionRotation((3, 3), quaternion_format=False, dtype=torch.float64)
    plain.load_state_dict(other.state_dict())
    assert_same(plain.linear(x[:, 1:]), other.linear(x)[:, 1:], 1e-12, "without the real part")


def test_length_of_the_quaternions_does_nothing_and_gets_no_gradient():
    member = member_of({"scale": True})
    matrix = member.dense()
    (slope,) = torch.autograd.grad((matrix * torch.randn_like(matrix)).sum(), member.quaternions)
    radial = (slope * member.quaternions).sum(0).abs().max()
    assert radial < 1e-10 * slope.norm()
    with torch.no_grad():
        member.quaternions.mul_(torch.rand(2, 3) + 0.1)
    assert_same(member.dense(), matrix, 1e-12, "dense()")


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_stored_numbers(options):
    member = member_of(options)
    names = {name for name, _ in member.named_parameters()}
    assert names == {"quaternions"} | ({"scale"} if options["scale"] else set())
    assert member.num_parameters == 4 * 6 + (6 if options["scale"] else 0)
    assert f"n={member.n}, scale={'learned' if options['scale'] else 1}" in repr(member)
    assert "weight_init='random'" in repr(member_of(options, weight_init="random"))


# ---------------------------------------------------------------- the initial law


def test_rotations_start_uniform():
    """Haar measure: R is as R Q for every rotation Q, so <R, M> has the law of <R, Q M>; moments tell."""
    torch.manual_seed(0)
    blocks = blocks_of(QuaternionRotation((400, 400), dtype=torch.float64).dense().detach(), 4).reshape(-1, 3, 3)
    flat = blocks.reshape(-1, 9)
    assert flat.mean(0).abs().max() < 0.02
    assert_same(flat.T @ flat / len(flat), torch.eye(9) / 3, 0.06, "the second moments")
    angles = torch.arccos((blocks.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2)
    assert float(angles.mean()) == pytest.approx(np.pi / 2 + 2 / np.pi, rel=0.01)  # density (1 - cos t)/pi


@pytest.mark.parametrize("real", [True, False])
@pytest.mark.parametrize("law", [None, "unitary", "random", "quaternion"])
def test_scaled_rotations_start_with_the_wanted_mean_square(real, law):
    """For every draw, as a rotation has mean square 1/3 whatever it is."""
    for wanted in (None, 0.37):
        member = member_of({"scale": True, "quaternion_format": real}, 5, 6, variance=wanted, weight_init=law)
        variance = 1 / (3 * member.shape[1]) if wanted is None else wanted
        before = member.quaternions.detach().clone()
        for _ in range(2):
            assert float(member.dense().detach().square().mean()) == pytest.approx(variance)
            with torch.no_grad():
                member.scale.zero_()
            member.reset_parameters()
        assert not torch.equal(before, member.quaternions)


@pytest.mark.parametrize("options", [o for o in OPTIONS if o["scale"]], ids=str)
def test_scaled_rotations_pass_the_checks_that_others_are_excused_from(options):
    n = 4 if options["quaternion_format"] else 3
    case = Case(
        "scaled",
        lambda shape, **common: QuaternionRotation(shape, **options, **common),
        lambda p: oracles.rotation_blocks(p.quaternions, p.scale, p.n),
        ((2 * n, 3 * n), (3 * n, 2 * n), (2 * n, 2 * n)),
    )
    assert case.record.expected_failures
    for name in case.record.expected_failures:
        checks(case)[name](case)


# ---------------------------------------------------------------- fits


def test_nearest_rotation_is_that_of_procrustes():
    matrices = torch.randn(50, 3, 3, dtype=torch.float64)
    vectors, values = nearest_rotation(matrices)
    for matrix, vector, value in zip(matrices, vectors, values, strict=True):
        u, _, vh = np.linalg.svd(matrix.numpy())
        best = u @ np.diag([1, 1, np.linalg.det(u @ vh)]) @ vh
        got = rotation_matrix(vector[:, -1].contiguous()).squeeze(0)
        assert_same(got, torch.from_numpy(best), 1e-9, "the nearest rotation")
        assert float(value[-1]) == pytest.approx(float((got * matrix).sum()))
        least = rotation_matrix(vector[:, 0].contiguous()).squeeze(0)
        assert float(value[0]) == pytest.approx(float((least * matrix).sum()))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_fit_is_the_optimum(options):
    """No better member is found by a general search from many starts, block by block."""
    torch.manual_seed(1)
    member = member_of(options)
    target = torch.randn(member.shape, dtype=torch.float64)
    error = member.fit_(target)
    assert error == pytest.approx(oracles.weighted_error(member.dense(), target))
    got = blocks_of(member.dense().detach(), member.n)
    for block, wanted in zip(got.reshape(-1, 3, 3), blocks_of(target, member.n).reshape(-1, 3, 3), strict=True):

        def distance(values, wanted):
            rotation = Rotation.from_rotvec(values[:3]).as_matrix()
            return ((rotation * (values[3] if options["scale"] else 1) - wanted) ** 2).sum()

        starts = np.random.default_rng(0).standard_normal((8, 4))
        best = min(optimize.minimize(distance, start, wanted.numpy()).fun for start in starts)
        assert float((block - wanted).square().sum()) <= best + 1e-6


def test_reflections_need_a_negative_scale():
    target = torch.nn.functional.pad(-2 * torch.eye(3), (1, 0, 1, 0)).double()
    member = QuaternionRotation((4, 4), scale=True, dtype=torch.float64)
    assert member.fit_(target) < 1e-12
    assert member.scale.item() == pytest.approx(-2)


def problem(member, samples):
    """A target, and inputs that are correlated and of very different sizes."""
    columns = member.shape[1]
    x = torch.randn(samples, columns, dtype=torch.float64) @ torch.randn(columns, columns).double()
    return torch.randn(member.shape, dtype=torch.float64), x * torch.logspace(-1, 0, columns, dtype=torch.float64)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("samples", [60, 5])
def test_weighted_fit_is_better_than_the_plain_one(options, samples):
    member, plain = member_of(options, 3, 4), member_of(options, 3, 4)
    target, x = problem(member, samples)
    plain.fit_(target)
    error = member.fit_(target, x.T @ x)
    assert error == pytest.approx(oracles.weighted_error(member.dense(), target, x), abs=1e-9)
    assert error < 0.95 * oracles.weighted_error(plain.dense(), target, x)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_weighted_fit_ends_where_no_direction_goes_down(options):
    member = member_of(options, 3, 4)
    target, x = problem(member, 60)

    def slope():
        loss = (x @ (member.dense() - target).T).square().sum()
        return float(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(member.parameters()))]).norm())

    before = slope()
    with torch.no_grad():
        member._refine(target, x.T @ x, sweeps=1000, tolerance=0)
    assert slope() < 1e-5 * before


def test_weighted_fit_of_a_member_stays_there():
    source = member_of({"scale": True}, 3, 4)
    x = torch.randn(40, 16, dtype=torch.float64)
    member = member_of({"scale": True}, 3, 4)
    assert member.fit_(source.dense().detach(), x.T @ x) < 1e-10


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("shape", "options", "match"),
    [
        ((10, 8), {}, r"out_features \(out_channels\) must be divisible by 4 .*got 10; nearest sizes: 8 and 12"),
        ((8, 10), {"quaternion_format": False}, r"out_features .*divisible by 3 with quaternion_format=False, got 8"),
        (
            (8, 18),
            {"positions": 9},
            r"in_features \(in_channels\) must be divisible by 4 .*got 2; nearest sizes: 4 and 4",
        ),
    ],
)
def test_sizes_are_refused_with_the_nearest(shape, options, match):
    with pytest.raises(SizeError, match=match):
        QuaternionRotation(shape, **options)


def test_unknown_laws_and_shares_are_refused():
    with pytest.raises(UnknownNameError, match="did you mean 'unitary'"):
        QuaternionRotation((4, 4), weight_init="unitari")
    with pytest.raises(OptionError, match="1/4 of the dense numbers"):
        make("quaternion_rotation", (8, 8), share=0.5)


def test_a_zero_target_is_refused_without_a_scale():
    with pytest.raises(FitError, match="scale=True"):
        QuaternionRotation((8, 8)).fit_(torch.zeros(8, 8))
    assert QuaternionRotation((8, 8), scale=True).fit_(torch.zeros(8, 8)) == 0
