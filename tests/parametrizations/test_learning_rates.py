"""The multipliers on learning rates: formulas against numbers by hand, and what a step does to the outputs."""

import pytest
import torch

from weft.errors import OptionError
from weft.parametrizations import family, make
from weft.parametrizations.formulas import evaluate, numbers_of

SIZED = {
    "dense": {},
    "low_rank": {"share": 0.15},
    "kronecker": {"n": 4},
    "sss": {"share": 0.2},
    "hodlr": {"share": 0.2},
    "monarch": {"share": 0.2},
    "butterfly": {},
    "psm": {"share": 0.15},
    "hedlr": {"share": 0.2},
    "hmat": {"share": 0.2},
}


def test_formulas_are_arithmetic_and_nothing_else():
    values = {"in": 12, "out": 8, "rank": 3, "inner": 5}
    assert evaluate("0.5*in/rank + max(out, 9) - 2^(inner - 3)", values) == 0.5 * 12 / 3 + 9 - 4
    assert evaluate("ceil(log2(out + 1))", values) == 4
    for formula in ("__import__('os')", "out.real", "out if in else 1", "-other", "open(out)", "(lambda: 1)()"):
        with pytest.raises(OptionError, match="none of"):
            evaluate(formula, values)


def test_numbers_of_a_member_are_its_sizes():
    member = make("monarch", (12, 8), blocks=4, variance=1.5)
    numbers = numbers_of(member)
    assert (numbers["out"], numbers["in"], numbers["blocks"], numbers["height"]) == (12, 8, 4, 3)
    assert numbers["num_parameters"] == 80
    assert numbers["gain"] == pytest.approx((3 * 8 * 1.5) ** 0.5)
    assert "training" not in numbers and "left" not in numbers
    assert numbers_of(make("dense", (12, 8)))["gain"] == 1


@pytest.mark.parametrize(
    ("name", "shape", "options", "adam", "sgd"),
    [
        ("dense", (6, 9), {}, {"weight": 1}, {"weight": 1}),
        (
            "low_rank",
            (48, 60),
            {"rank": 3},
            {"left": 0.3 * 20, "right": 0.5},
            {"left": 10, "right": 0.17 / 17**0.5},
        ),
        (
            "monarch",
            (60, 48),
            {"blocks": 4, "rank": 2},
            {"left": 0.3 * 6, "right": 1.2},
            {"left": 3, "right": 0.68 / (1 + 15 / 8) ** 0.5},
        ),
        ("kronecker", (8, 12), {"n": 4}, {"mixing": 1, "blocks": 2}, {"mixing": 1, "blocks": 1}),
        ("butterfly", (16, 12), {"depth": 2}, {"factors": 0.15}, {"factors": 0.15}),
        ("hedlr", (64, 48), {"numbers": 500, "depth": 3}, {"values": 1.2}, {"values": 0.15 * 16**0.33}),
        ("hmat", (64, 64), {"numbers": 999, "min_block": 8}, {"values": 1.2}, {"values": 0.15 * 16**0.33}),
        ("psm", (8, 32), {"nonzeros": 64}, {"values": 0.7 * 8}, {"values": 0.45 * 8}),
        (
            "hodlr",
            (32, 32),
            {"depth": 3, "rank": 2},
            {"left": 32 / (8 + 0.58 * 4) / 2, "right": 1.3},
            {"left": 32 / (8 + 0.33 * 4) / 2, "right": 0.5 / 0.55**0.5},
        ),
    ],
)
def test_multipliers_by_hand(name, shape, options, adam, sgd):
    member, record = make(name, shape, **options), family(name)
    assert record.multipliers(member) == pytest.approx(adam)
    assert record.multipliers(member, "adam") == pytest.approx(adam)
    assert record.multipliers(member, "sgd") == pytest.approx(sgd)


def test_members_that_are_dense_matrices_train_as_such():
    for name, options in (("hodlr", {"depth": 1}), ("sss", {"stages": 1})):
        member = make(name, (24, 16), **options)
        used = {n for n, p in member.named_parameters() if p.numel()}
        for optimizer in ("adam", "sgd"):
            factors = family(name).multipliers(member, optimizer)
            assert {factors[n] for n in used} == {1.0}


def change_of_outputs(member, x, slope, optimizer):
    """Root mean square change of the outputs in the first step, per unit of the learning rate."""
    factors = family(member.family).multipliers(member, optimizer)
    before = member.linear(x)
    gradients = torch.autograd.grad((before * slope).sum(), list(member.parameters()))
    with torch.no_grad():
        steps = [
            factors[name] * (gradient.sign() if optimizer == "adam" else gradient)
            for (name, _), gradient in zip(member.named_parameters(), gradients, strict=True)
        ]
        small = 1e-6 / max(float(step.abs().max()) for step in steps if step.numel())
        for parameter, step in zip(member.parameters(), steps, strict=True):
            parameter.sub_(small * step)
        return float((member.linear(x) - before).square().mean().sqrt() / small)


# One step of SGD is held to a third: a product bends more than a dense layer, and beyond it training diverges.
@pytest.mark.parametrize(("optimizer", "least"), [("adam", 0.15), ("sgd", 0.08)])
@pytest.mark.parametrize("variance_times_in", [1 / 3, 2])
@pytest.mark.parametrize("shape", [(128, 128), (512, 512), (128, 512), (512, 128)])
@pytest.mark.parametrize("name", SIZED)
def test_a_step_changes_the_outputs_as_that_of_a_dense_layer(name, shape, variance_times_in, optimizer, least):
    torch.manual_seed(0)
    kwargs = {"variance": variance_times_in / shape[1], "dtype": torch.float64}
    x, slope = torch.randn(16, shape[1]).double(), torch.randn(16, shape[0]).double()
    ours = change_of_outputs(make(name, shape, **SIZED[name], **kwargs), x, slope, optimizer)
    dense = change_of_outputs(make("dense", shape, **kwargs), x, slope, optimizer)
    assert least < ours / dense < 2
