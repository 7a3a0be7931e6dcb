"""Bindings against slow loops from their definitions, in float64."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from weft.errors import OptionError, SizeError, UnknownNameError
from weft.superposition import FHRR, HRR, MAP, MBAT, Bundle, Unbinding, make_binding
from weft.superposition.binding import BINDINGS

F64 = torch.float64


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def hrr_loop(keys, x):
    """y[c] = sum_m k[m] x[(c + 1 + m - D/2) mod D] for even D; for odd D the centre is D // 2."""
    groups, inputs, size, points = x.shape
    y = np.zeros((groups, size, points))
    shift = 1 - size // 2 if size % 2 == 0 else -(size // 2)
    for g in range(groups):
        for c in range(size):
            for s in range(inputs):
                for m in range(size):
                    y[g, c] += keys[s, m] * x[g, s, (c + m + shift) % size]
    return y


@pytest.mark.parametrize("size", [6, 7, 1, 2])
@pytest.mark.parametrize("path", ["matrix", "fft", "auto"])
def test_hrr_is_the_circular_correlation_of_the_definition(size, path):
    bind = HRR(3, size, path=path, dtype=F64)
    x = torch.randn(2, 3, size, 5, dtype=F64)
    want = hrr_loop(bind.keys.detach().numpy(), x.numpy())
    np.testing.assert_allclose(bind(x).detach().numpy(), want, atol=1e-12)


def test_hrr_is_the_published_convolution_through_channels():
    size = 8
    bind = HRR(1, size, dtype=F64)
    x = torch.randn(3, 1, size, dtype=F64)
    through = nn.Conv1d(1, 1, size, padding=size // 2, padding_mode="circular", bias=False, dtype=F64)
    with torch.no_grad():
        through.weight.copy_(bind.keys[None])
        want = through(x)[:, :, 1:]
    torch.testing.assert_close(bind(x).detach(), want[:, 0])


@pytest.mark.parametrize("name", BINDINGS)
@pytest.mark.parametrize("space", [(), (5,), (3, 4), (2, 3, 2)])
def test_every_binding_is_its_matrices_on_every_point(name, space):
    bind = make_binding(name, 4, 6).double()
    for inputs in (1, 2, 4):
        x = torch.randn(3, inputs, 6, *space, dtype=F64)
        matrices = bind.matrices(bind.summed_keys(inputs))
        want = torch.zeros(3, 6, *space, dtype=F64)
        for s in range(inputs):
            want = want + torch.einsum("ij,gj...->gi...", matrices[s], x[:, s])
        torch.testing.assert_close(bind(x), want)


@pytest.mark.parametrize("name", BINDINGS)
@pytest.mark.parametrize("inputs", [1, 2, 4])
def test_fewer_inputs_are_the_same_as_repeating_them_over_the_slots(name, inputs):
    bind = make_binding(name, 4, 8).double()
    x = torch.randn(3, inputs, 8, 5, dtype=F64)
    repeated = x.repeat(1, 4 // inputs, 1, 1)  # slot r S + s holds input s
    torch.testing.assert_close(bind(x), bind(repeated))


@pytest.mark.parametrize("size", [7, 8])
def test_unitary_keys_make_binding_an_isometry_and_stay_so_in_training(size):
    bind = HRR(2, size, unitary=True, dtype=F64)
    optimizer = torch.optim.SGD(bind.parameters(), lr=0.3)
    x = torch.randn(4, 2, size, 3, dtype=F64)
    for _ in range(3):
        magnitudes = np.abs(np.fft.fft(bind.keys.detach().numpy()))
        np.testing.assert_allclose(magnitudes, 1, atol=1e-12)
        gram = bind.matrices(bind.keys) @ bind.matrices(bind.keys).mT
        torch.testing.assert_close(gram, torch.eye(size, dtype=F64).expand(2, -1, -1))
        optimizer.zero_grad()
        bind(x).pow(3).sum().backward()
        optimizer.step()


def test_keys_and_penalty_are_not_rounded_by_autocast():
    plain, unitary = HRR(4, 64), HRR(4, 64, unitary=True)
    with torch.no_grad():
        plain.vectors.mul_(1.001)
    want = plain.penalty(), unitary.keys
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close((plain.penalty(), unitary.keys), want, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_matrices_in_half_precision_are_orthogonal(dtype):
    matrix = MBAT(2, 8, dtype=dtype).vectors[1].detach().double()
    assert (matrix @ matrix.T - torch.eye(8)).abs().max() < 0.02


def test_an_empty_batch_has_no_spectrum():
    assert HRR(2, 8, path="fft")(torch.zeros(0, 2, 8)).shape == (0, 8)


def test_unitary_keys_reach_both_signs_of_their_real_frequencies():
    spectra = np.fft.rfft(HRR(200, 8, unitary=True, dtype=F64).keys.detach().numpy())
    for frequency in (0, 4):
        assert {-1, 1} == set(np.round(spectra[:, frequency].real).astype(int))


def test_initial_keys():
    normal, uniform = HRR(200, 64), HRR(200, 64, init="uniform")
    torch.testing.assert_close(normal.keys.norm(dim=1), torch.ones(200))
    assert abs(uniform.keys.norm(dim=1).mean() - 1 / math.sqrt(3)) < 0.01
    matrices = MBAT(2, 16).matrices(MBAT(2, 16).keys)
    torch.testing.assert_close(matrices @ matrices.mT, torch.eye(16).expand(2, -1, -1), atol=1e-5, rtol=0)
    assert abs(MBAT(4, 64, init="kaiming").keys.std() / math.sqrt(2 / 64) - 1) < 0.02
    assert set(MAP(4, 64).keys.unique().tolist()) == {-1.0, 1.0}


def test_fhrr_multiplies_complex_numbers():
    bind = FHRR(2, 6, dtype=F64)
    x = torch.randn(3, 2, 6, 4, dtype=F64)
    turned = torch.complex(x[:, :, :3], x[:, :, 3:]) * torch.polar(torch.ones((), dtype=F64), bind.vectors)[:, :, None]
    together = turned.sum(1)
    torch.testing.assert_close(bind(x), torch.cat([together.real, together.imag], dim=1))


def test_penalty_is_the_formula_and_0_for_orthonormal_keys():
    bind = HRR(3, 8, dtype=F64)
    with torch.no_grad():
        bind.vectors.copy_(torch.randn(3, 8, dtype=F64))
    k = bind.keys.detach().numpy()
    units = k / np.linalg.norm(k, axis=1, keepdims=True)
    pairs = [(0, 1), (0, 2), (1, 2)]
    want = sum((units[i] @ units[j]) ** 2 for i, j in pairs) / 3
    want += sum((np.linalg.norm(k[i]) - 1) ** 2 for i in range(3)) / 3
    assert bind.penalty().item() == pytest.approx(want, rel=1e-12)
    with torch.no_grad():
        bind.vectors.copy_(torch.linalg.qr(torch.randn(8, 8, dtype=F64))[0][:3])
    assert bind.penalty().item() < 1e-28
    assert HRR(1, 8).penalty().item() == pytest.approx(0, abs=1e-10)


def test_gradients_reach_keys_and_inputs_on_both_paths():
    x = torch.randn(2, 2, 5, 3, dtype=F64, requires_grad=True)
    for bind in (
        HRR(2, 5, path="fft", dtype=F64),
        HRR(2, 5, path="matrix", dtype=F64),
        HRR(2, 5, unitary=True, dtype=F64),
    ):
        assert torch.autograd.gradcheck(
            lambda x, k, bind=bind: torch.func.functional_call(bind, {"vectors": k}, (x,)), (x, bind.vectors)
        )


def test_frozen_keys_are_no_parameters_but_are_saved():
    bind = HRR(2, 8, trainable=False)
    assert not list(bind.parameters())
    assert "vectors" in bind.state_dict()


def test_half_precision_autocast_and_export():
    bind = HRR(2, 8)
    x = torch.randn(2, 2, 8, 3, 3)
    assert bind.bfloat16()(x.bfloat16()).dtype == torch.bfloat16
    assert HRR(2, 8, path="fft").bfloat16()(x.bfloat16()).dtype == torch.bfloat16
    bind = HRR(2, 8, unitary=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert bind(x).dtype == torch.bfloat16
    exported = torch.export.export(bind, (x,)).module()
    torch.testing.assert_close(exported(x), bind(x))


def test_unbinding_is_one_map_per_slot_and_the_mean_over_the_slots_of_an_input():
    unbind = Unbinding(4, 3).double()
    u = torch.randn(5, 3, 7, dtype=F64)
    weight, bias = unbind.weight.reshape(4, 3, 3), unbind.bias.reshape(4, 3)
    for inputs in (1, 2, 4):
        want = torch.zeros(5, inputs, 3, 7, dtype=F64)
        for slot in range(4):
            part = torch.einsum("ij,gjp->gip", weight[slot], u) + bias[slot][:, None]
            want[:, slot % inputs] += part.relu() * inputs / 4
        torch.testing.assert_close(unbind(u, inputs), want)
        torch.testing.assert_close(unbind(u[..., 0], inputs), want[..., 0])


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: HRR(0, 4), OptionError, "num_inputs must be at least 1, got 0"),
        (lambda: HRR(2, 0), OptionError, "channels must be at least 1"),
        (lambda: HRR(2, 4, init="unifrom"), OptionError, "did you mean 'uniform'"),
        (lambda: HRR(2, 4, path="slow"), OptionError, "path must be one of"),
        (lambda: FHRR(2, 5), OptionError, "channels must be even"),
        (lambda: MBAT(2, 4, init="x"), OptionError, "init must be one of"),
        (lambda: make_binding("hhr", 2, 4), UnknownNameError, "did you mean 'hrr'"),
        (lambda: make_binding("mbat", 2, 4, unitary=True), OptionError, "unitary"),
        (lambda: HRR(4, 4)(torch.randn(2, 3, 4)), SizeError, "must divide num_inputs=4: one of 1, 2, 4; got 3"),
        (lambda: HRR(4, 4)(torch.randn(2, 2, 5)), SizeError, "4 channels"),
        (lambda: Bundle(2, 4)(torch.randn(4)), SizeError, "x must be"),
        (lambda: Unbinding(2, 0), OptionError, "features must be at least 1"),
        (lambda: Unbinding(4, 3)(torch.randn(1, 3), 3), SizeError, "must divide"),
    ],
)
def test_bad_input_is_named(make, error, words):
    with pytest.raises(error, match=words):
        make()
