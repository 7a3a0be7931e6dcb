"""Checks of what a member computes: its matrix, its product, its stages, its gradients, its initial law."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.func import functional_call

from weft.parametrizations import Parametrization
from weft.testing import oracles
from weft.testing.case import Case, assert_same

#: Leading shapes of an input: none, empty, one, several, and an empty one in the middle.
LEADING_SHAPES = ((), (0,), (1,), (3,), (2, 0, 3), (2, 3, 4))
LAW_SEEDS = 400  # the wanted 5 % are then more than three standard deviations, also for low rank


class _Product(nn.Module):
    """``linear`` as a forward pass, so that torch.func can put other parameters in."""

    def __init__(self, member: Parametrization) -> None:
        super().__init__()
        self.member = member

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return self.member.linear(x, bias)


def _members(case: Case) -> Iterator[Parametrization]:
    for shape in case.shapes:
        yield case.member(shape)


def dense_equals_oracle(case: Case) -> None:
    """``dense()`` is what the author's independent answer says."""
    for member in _members(case):
        assert_same(member.dense(), case.dense(member), 1e-12, "dense()")
        assert_same(member(), member.dense(), 0, "forward()")


def product_equals_dense(case: Case) -> None:
    """``linear`` is the product with ``dense()``, for every leading shape, with and without a bias."""
    for member in _members(case):
        rows, columns = member.shape
        matrix, bias = case.dense(member), torch.randn(rows, dtype=torch.float64)
        for lead in LEADING_SHAPES:
            x = torch.randn(*lead, columns, dtype=torch.float64)
            assert_same(member.linear(x), x @ matrix.T, 1e-12, f"linear(x) for leading shape {lead}")
            assert_same(member.linear(x, bias), x @ matrix.T + bias, 1e-12, f"linear(x, bias) for leading shape {lead}")
        transposed = torch.randn(columns, 5, dtype=torch.float64).T  # not contiguous
        assert_same(member.linear(transposed), transposed @ matrix.T, 1e-12, "linear of a non-contiguous input")


def rows_equal_dense(case: Case) -> None:
    """``rows`` picks rows of ``dense()``, for indices of every shape, also repeated ones, with the same gradients."""
    for member in _members(case):
        matrix = case.dense(member)
        for shape in ((), (0,), (5,), (2, 3)):
            index = torch.randint(0, member.shape[0], shape)
            assert_same(member.rows(index), matrix[index], 1e-12, f"rows(index) for an index of shape {shape}")
        index = torch.tensor([0, member.shape[0] - 1, 0])
        weights, parameters = torch.randn(3, member.shape[1], dtype=torch.float64), list(member.parameters())
        got = torch.autograd.grad((member.rows(index) * weights).sum(), parameters)
        want = torch.autograd.grad((member.dense()[index] * weights).sum(), parameters)
        for slope, expected in zip(got, want, strict=True):
            assert_same(slope, expected, 1e-11, "a gradient through rows")
        assert member.rows_cost(3) >= 0


def stages_equal_dense(case: Case) -> None:
    """The stages, where there are some, are the same map, and only one of them sees kernel positions."""
    for positions in (1, 3):
        for rows, columns in case.shapes:
            member = case.member((rows, columns * positions), positions=positions)
            stages = member.stages()
            if stages is None:
                continue
            identity = torch.eye(columns * positions, dtype=torch.float64)
            assert_same(
                oracles.apply_stages(stages, identity).T, case.dense(member), 1e-12, "the product of the stages"
            )
            plain = next((i for i, stage in enumerate(stages) if stage.inner == 1), 0)
            first = next((i for i, stage in enumerate(stages) if stage.inner % positions), plain)
            matrix, inner = stages[first]
            assert inner == 1, f"stage {first} cuts a run of {positions} kernel positions"
            assert matrix.shape[2] % positions == 0, f"stage {first} sees {matrix.shape[2]} columns, no whole channels"


def dtypes_and_devices(case: Case) -> None:
    """``dtype`` and ``device`` reach every tensor, and results keep them."""
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        member = case.member(dtype=dtype)
        for name, tensor in [*member.named_parameters(), *member.named_buffers()]:
            if tensor.is_floating_point():
                assert tensor.dtype == dtype, f"{name} is {tensor.dtype}, asked for {dtype}"
        x = torch.randn(3, member.shape[1]).to(dtype)
        bias = torch.randn(member.shape[0]).to(dtype)
        assert member.dense().dtype == dtype, f"dense() is {member.dense().dtype} for {dtype}"
        got, want = member.linear(x, bias), x.double() @ case.dense(member).double().T + bias.double()
        assert got.dtype == dtype, f"linear is {got.dtype} for {dtype}"
        assert_same(got, want, 32 * torch.finfo(dtype).eps, f"linear in {dtype}")
    meta = case.member(device="meta")
    for name, tensor in [*meta.named_parameters(), *meta.named_buffers()]:
        assert tensor.is_meta, f"{name} is on {tensor.device}, asked for meta"
    assert meta.dense().shape == meta.shape
    assert meta.linear(torch.empty(3, meta.shape[1], dtype=torch.float64, device="meta")).shape == (3, meta.shape[0])


def gradients_are_right(case: Case) -> None:
    """First and second derivatives of ``linear`` agree with finite differences."""
    member = case.member()
    product, names = _Product(member), [name for name, _ in member.named_parameters()]
    x = torch.randn(2, member.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.randn(member.shape[0], dtype=torch.float64, requires_grad=True)

    def run(x: Tensor, bias: Tensor, *values: Tensor) -> Tensor:
        return functional_call(product, {f"member.{n}": v for n, v in zip(names, values, strict=True)}, (x, bias))

    inputs = (x, bias, *(p.detach().clone().requires_grad_() for p in member.parameters()))
    torch.autograd.gradcheck(run, inputs, fast_mode=True)
    torch.autograd.gradgradcheck(run, inputs, fast_mode=True)


def parameters_are_used(case: Case) -> None:
    """Every parameter gets a gradient, the same through ``linear`` as through ``dense()``."""
    for member in _members(case):
        x, g = torch.randn(5, member.shape[1]).double(), torch.randn(5, member.shape[0]).double()
        names, parameters = zip(*member.named_parameters(), strict=True)
        by_linear = torch.autograd.grad(member.linear(x), parameters, g)
        by_dense = torch.autograd.grad(member.dense(), parameters, g.T @ x)
        for name, a, b in zip(names, by_linear, by_dense, strict=True):
            assert float(b.abs().max()) > 0, f"{name} gets no gradient"
            assert_same(a, b, 1e-9, f"the gradient of {name} through linear")


def initial_law(case: Case) -> None:
    """Entries of ``dense()`` have mean 0 and the wanted variance, averaged over entries and draws."""
    for wanted in (None, 0.37):
        member = case.member(variance=wanted)
        variance = 1 / (3 * member.shape[1]) if wanted is None else wanted
        draws = []
        for seed in range(LAW_SEEDS):
            torch.manual_seed(seed)
            member.reset_parameters()
            draws.append(member.dense().detach().clone())
        entries = torch.stack(draws) / variance**0.5
        assert abs(float(entries.var()) - 1) < 0.05, (
            f"variance is {float(entries.var()):.3f} times the wanted {variance:.3g}"
        )
        assert abs(float(entries.mean())) < 0.05, f"mean is {float(entries.mean()):.3f} standard deviations"
        offset = float(entries.mean(0).abs().max())
        assert offset < 6 / LAW_SEEDS**0.5, f"an entry has a mean of {offset:.3f} standard deviations"


def reset_draws_anew(case: Case) -> None:
    """``reset_parameters`` draws new values, the same ones for the same seed, and those of the constructor."""
    torch.manual_seed(11)
    member = case.member()
    first = member.dense().detach().clone()
    member.reset_parameters()
    second = member.dense().detach().clone()
    assert not torch.allclose(first, second), "reset_parameters left the values as they were"
    torch.manual_seed(11)
    member.reset_parameters()
    assert_same(member.dense(), first, 0, "the draw after the same seed")
    assert all(parameter.grad_fn is None and parameter.is_leaf for parameter in member.parameters())


CHECKS = (
    dense_equals_oracle,
    product_equals_dense,
    rows_equal_dense,
    stages_equal_dense,
    dtypes_and_devices,
    gradients_are_right,
    parameters_are_used,
    initial_law,
    reset_draws_anew,
)
