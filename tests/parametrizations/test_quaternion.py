"""Initial laws of quaternion weights, measured; and the table of layers with purely imaginary input."""

import numpy as np
import pytest
import torch
from scipy import stats

import weft
from weft.errors import OptionError, UnknownNameError
from weft.parametrizations import Kronecker, make, multiplication_table
from weft.parametrizations.quaternion import (
    INITIAL_LAWS,
    pure_input_table,
    quaternion_init,
    random_init,
    unitary_init,
)
from weft.testing import assert_same, oracles

COUNT = 20_000


def drawn(law, std=1.0, shape=(COUNT,), seed=0):
    return law(shape, std, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def follows(sample, law):
    """Whether a Kolmogorov-Smirnov test finds nothing against it; the seeds are fixed."""
    return stats.kstest(sample.flatten().numpy(), law).pvalue > 1e-4


def random_state():
    return repr(np.random.get_state())  # noqa: NPY002, numpy's global generator is what must be left alone


def polar(q):
    """Modulus, phase in -pi..pi up to the sign shared with the axis, and the axis of quaternions (4, ...)."""
    modulus, imaginary = q.norm(dim=0), q[1:].norm(dim=0)
    return modulus, torch.atan2(imaginary, q[0]), q[1:] / imaginary


# ---------------------------------------------------------------- the polar law


def test_modulus_is_chi_with_four_degrees_of_freedom():
    q = drawn(quaternion_init, std=0.3)
    assert q.shape == (4, COUNT)
    assert follows(polar(q)[0], stats.chi(4, scale=0.3).cdf)


def test_phase_is_uniform():
    """cos and |sin| fix the phase up to sign; the sign is that of the axis."""
    assert follows(polar(drawn(quaternion_init))[1], stats.uniform(0, np.pi).cdf)


def test_axis_is_uniform_on_the_sphere():
    """Archimedes: every coordinate of a uniform point is uniform; along every direction, not only along the axes."""
    axis = polar(drawn(quaternion_init))[2]
    directions = [[1, 0, 0], [0, 1, 0], [0, 0, 1], np.ones(3) / 3**0.5, np.array([1, -1, 0]) / 2**0.5]
    for direction in directions:
        height = torch.tensor(direction, dtype=torch.float64) @ axis
        assert follows(height, stats.uniform(-1, 2).cdf)


def test_modulus_phase_and_axis_are_independent():
    modulus, phase, axis = polar(drawn(quaternion_init))
    columns = np.stack([modulus, phase, *axis, modulus**2, phase**2, *axis**2])
    correlations = np.corrcoef(columns)[:5]
    for row, own in zip(correlations, range(5), strict=True):
        for column, value in enumerate(row):
            related = column % 5 == own or (column >= 7 and own >= 2)  # squares of the axis add up to one
            assert related or abs(value) < 0.03, f"{own} and {column} are correlated by {value:.3f}"


def test_real_part_has_three_times_the_variance_of_the_others():
    variances = drawn(quaternion_init, std=0.5).square().mean(1) / 0.25
    assert_same(variances, torch.tensor([2, 2 / 3, 2 / 3, 2 / 3]), 0.05, "the variances")
    assert_same(drawn(quaternion_init).mean(1) + 1, torch.ones(4), 0.05, "the means")


# ---------------------------------------------------------------- the other laws


def test_unitary_quaternions_have_one_modulus_and_every_direction():
    q = drawn(unitary_init, std=0.3)
    assert_same(q.norm(dim=0), torch.full((COUNT,), 0.6).double(), 1e-7, "the modulus")
    assert_same(unitary_init((7,)).norm(dim=0), torch.ones(7), 1e-6, "the modulus of the default")
    for direction in (np.eye(4)[0], np.ones(4) / 2, np.array([1, 0, 0, -1]) / 2**0.5):
        height = torch.tensor(direction, dtype=torch.float64) @ q / 0.6
        # On the sphere of four dimensions a coordinate has the density sqrt(1 - x^2): Wigner's semicircle.
        assert follows(height, stats.semicircular().cdf)


def test_random_quaternions_are_uniform_with_a_scale():
    q = drawn(random_init, std=0.3)
    for part in q:
        assert follows(part, stats.uniform(-0.3 * 3**0.5, 2 * 0.3 * 3**0.5).cdf)
    assert np.abs(np.corrcoef(q) - np.eye(4)).max() < 0.03


@pytest.mark.parametrize("law", INITIAL_LAWS)
def test_mean_variance_of_the_components_is_the_wanted_one(law):
    assert float(drawn(INITIAL_LAWS[law], std=0.3).square().mean()) == pytest.approx(0.09, rel=0.02)


@pytest.mark.parametrize("law", INITIAL_LAWS)
def test_draws_follow_torchs_generators_and_no_other(law):
    draw = INITIAL_LAWS[law]
    assert torch.equal(drawn(draw, seed=3), drawn(draw, seed=3))
    assert not torch.equal(drawn(draw, seed=3), drawn(draw, seed=4))
    before = random_state()
    torch.manual_seed(5)
    first = draw((3, 2), 0.1)
    torch.manual_seed(5)
    assert torch.equal(draw((3, 2), 0.1), first)
    assert random_state() == before
    assert first.shape == (4, 3, 2)
    assert draw((3,), 0.1, dtype=torch.bfloat16).dtype == torch.bfloat16
    assert draw((3,), 0.1, device="meta").is_meta


# ---------------------------------------------------------------- as laws of a family


@pytest.mark.parametrize("law", INITIAL_LAWS)
def test_members_draw_their_blocks_by_the_law(law):
    """With s the root of the wanted variance; again after a reset, also by name and after copies."""
    member = make("kronecker", (400, 400), algebra="quaternion", weight_init=law, variance=0.04, dtype=torch.float64)
    for _ in range(2):
        blocks = member.blocks.detach()
        assert float(member.dense().detach().square().mean()) == pytest.approx(0.04, rel=0.03)
        variances = blocks.square().mean((1, 2)) / 0.04
        if law == "quaternion":
            assert follows(blocks.norm(dim=0), stats.chi(4, scale=0.2).cdf)
            assert_same(variances, torch.tensor([2, 2 / 3, 2 / 3, 2 / 3]), 0.07, "the variances")
        else:
            assert_same(variances, torch.ones(4), 0.07, "the variances")
            assert (float(blocks.norm(dim=0).std()) < 1e-12) == (law == "unitary")
        before = blocks.clone()
        member.reset_parameters()
        assert not torch.equal(before, member.blocks)


@pytest.mark.parametrize("criterion", ["glorot", "he"])
@pytest.mark.parametrize("sizes", [(64, 128), (128, 64)])
def test_criteria_are_those_of_the_school(criterion, sizes):
    """s of the spec, from the quaternion fans, is the root of the layers' own Glorot and He variance."""
    inputs, outputs = sizes
    layer = weft.QuaternionConv2d(inputs, outputs, 3, criterion=criterion, weight_init="unitary", dtype=torch.float64)
    fan_in, fan_out = inputs // 4 * 9, outputs // 4 * 9
    s = 1 / np.sqrt(2 * (fan_in + fan_out)) if criterion == "glorot" else 1 / np.sqrt(2 * fan_in)
    moduli = layer.parametrization.blocks.detach().norm(dim=0)
    np.testing.assert_allclose(moduli, np.full((outputs // 4, fan_in), 2 * s), rtol=1e-12)


def test_laws_that_do_not_exist_are_refused():
    with pytest.raises(UnknownNameError, match=r"quaternion, unitary, random.*got 'unitry'; did you mean 'unitary'"):
        Kronecker((8, 8), algebra="quaternion", weight_init="unitry")
    with pytest.raises(OptionError, match="needs n=4 components, got n=2"):
        Kronecker((8, 8), algebra="complex", weight_init="unitary")


# ---------------------------------------------------------------- inputs without a real part


def test_real_part_of_pure_inputs_is_ignored():
    member = Kronecker((8, 12), algebra=pure_input_table(), dtype=torch.float64)
    x = torch.randn(5, 12, dtype=torch.float64)
    pure = x.clone()
    pure[:, :3] = 0
    want = pure @ oracles.quaternion_matrix(member.blocks).T
    assert_same(member.linear(x), want, 1e-12, "the output")
    assert_same(x @ member.dense().T, want, 1e-12, "the output by the matrix")
    assert_same(multiplication_table("quaternion")[:, :, 1:], pure_input_table()[:, :, 1:], 0, "the rest of the table")


@pytest.mark.parametrize("law", [None, *INITIAL_LAWS])
def test_pure_inputs_have_the_variance_of_three_quarters_of_the_inputs(law):
    """So that outputs are as large as those of other layers: the zeros count."""
    member = Kronecker((400, 400), algebra=pure_input_table(), weight_init=law, variance=0.04, dtype=torch.float64)
    weight = member.dense().detach()
    assert not weight[:, :100].any()
    assert float(weight[:, 100:].square().mean()) == pytest.approx(0.04 * 4 / 3, rel=0.03)
