"""Every family passes the contract, and the contract catches families that break it."""

import pytest
import torch
from tests.cases import CASES, LOW_RANK
from torch import nn

import weft
from weft.parametrizations import LowRank, registry
from weft.testing import Case, checks, oracles, parametrize_with_contract
from weft.testing.state import evaluate


@parametrize_with_contract(CASES)
def test_contract(case, check):
    check(case)


def test_every_family_has_a_case():
    assert {case.record.name for case in CASES} == set(weft.families())


def test_number_of_checks():
    assert len(checks()) == 24
    assert len(checks(LOW_RANK)) == 23  # fitting_is_refused is for families without fit_


# ---------------------------------------------------------------- families that break one promise each


class Sloppy(LowRank):
    """A low rank with a name of its own, for the faults below."""

    family = "sloppy"

    def __init__(self, shape, *, rank=3, **common):
        super().__init__(shape, rank=rank, **common)


class WrongOracle(Sloppy):
    def dense(self):
        return super().dense() * 1.001


class ForgetsBias(Sloppy):
    def linear(self, x, bias=None):
        return super().linear(x)


class FlattensRows(Sloppy):
    def linear(self, x, bias=None):
        return super().linear(x.reshape(-1, x.shape[-1]), bias)


class WrongRows(Sloppy):
    def rows(self, index):
        return super().rows(index % (self.shape[0] - 1))


class SwapsStages(Sloppy):
    def stages(self):
        return [stage._replace(matrix=stage.matrix * 2) for stage in super().stages()]


class IgnoresDtype(Sloppy):
    def __init__(self, shape, *, rank=3, dtype=None, **common):
        super().__init__(shape, rank=rank, dtype=torch.float64, **common)


class UnusedParameter(Sloppy):
    def __init__(self, shape, *, rank=3, device=None, dtype=None, **common):
        super().__init__(shape, rank=rank, device=device, dtype=dtype, **common)
        self.idle = nn.Parameter(torch.ones(2, device=device, dtype=dtype))


class BlockedGradient(Sloppy):
    def linear(self, x, bias=None):
        return torch.nn.functional.linear(x, self.left.detach() @ self.right, bias)


class WrongVariance(Sloppy):
    def reset_parameters(self):
        super().reset_parameters()
        with torch.no_grad():
            self.left.mul_(1.1)


class ForgetsReset(Sloppy):
    drawn = False

    def reset_parameters(self):
        if not self.drawn:
            super().reset_parameters()
        self.drawn = True


class KeepsGraph(Sloppy):
    def dense(self):
        self.last = super().dense()
        return self.last


class WrongCount(Sloppy):
    def cost(self, rows):
        return super().cost(rows) + 1


class WrongShare(Sloppy):
    @classmethod
    def _sized(cls, shape, budget, positions, options):
        return {"rank": max(1, super()._sized(shape, budget, positions, options)["rank"] - 1)}


class LiesAboutError(Sloppy):
    def fit_(self, target, gram=None):
        self.fit_error = super().fit_(target, gram) / 2
        return self.fit_error


class FitsBadly(Sloppy):
    def _fit(self, target, gram):
        super()._fit(target, gram)
        self.left.mul_(0.99)


class IgnoresGram(Sloppy):
    def _fit(self, target, gram):
        super()._fit(target, None)
        if gram is not None:
            self.left.mul_(0.9)


class AcceptsAnything(Sloppy):
    def fit_(self, target, gram=None):
        return 0.0


BROKEN = {
    WrongOracle: "dense_equals_oracle",
    ForgetsBias: "product_equals_dense",
    FlattensRows: "product_equals_dense",
    WrongRows: "rows_equal_dense",
    SwapsStages: "stages_equal_dense",
    IgnoresDtype: "dtypes_and_devices",
    UnusedParameter: "parameters_are_used",
    BlockedGradient: "parameters_are_used",
    WrongVariance: "initial_law",
    ForgetsReset: "reset_draws_anew",
    KeepsGraph: "copies_are_independent",
    WrongCount: "formulas_count_right",
    WrongShare: "shares_are_kept",
    LiesAboutError: "errors_are_true",
    FitsBadly: "residual_is_orthogonal",
    IgnoresGram: "weighted_fit_is_no_worse",
    AcceptsAnything: "bad_targets_are_refused",
}


def sloppy_case(monkeypatch, cls, **changes):
    """A case of a registered family whose class is ``cls``; the registry is put back after the test."""
    monkeypatch.setattr(registry, "_FAMILIES", {n: r for n, r in weft.families().items() if n != "sloppy"})
    low_rank = weft.families()["low_rank"]
    record = (
        {name: getattr(low_rank, name) for name in low_rank.__dataclass_fields__}
        | {"name": "sloppy", "cls": cls}
        | changes
    )
    weft.parametrizations.register(weft.parametrizations.Family(**record))
    return Case(cls.__name__, cls, lambda p: oracles.product_of_two(p.left, p.right))


@pytest.mark.parametrize(("cls", "name"), BROKEN.items(), ids=lambda value: getattr(value, "__name__", value))
def test_contract_catches(monkeypatch, cls, name):
    case = sloppy_case(monkeypatch, cls)
    with pytest.raises((AssertionError, RuntimeError)):
        checks(case)[name](case)


def test_contract_accepts_an_outsiders_family(monkeypatch):
    case = sloppy_case(monkeypatch, Sloppy)
    for check in checks(case).values():
        check(case)


def test_unregistered_family_is_refused_by_name(monkeypatch):
    monkeypatch.setattr(registry, "_FAMILIES", dict(weft.families()))
    with pytest.raises(weft.WeftError, match="Sloppy must be registered"):
        checks(Case("sloppy", Sloppy, lambda p: p.left @ p.right))


def test_expected_failures_are_strict_and_reasoned(monkeypatch):
    case = sloppy_case(monkeypatch, WrongVariance, expected_failures={"initial_law": "ten percent too large"})
    (parameters,) = parametrize_with_contract([case]).args[1:]
    marks = {parameter.id: parameter.marks for parameter in parameters}
    (mark,) = marks.pop("WrongVariance-initial_law")
    assert mark.name == "xfail"
    assert mark.kwargs == {"reason": "ten percent too large", "strict": True}
    assert not any(marks.values())


def test_no_fit_is_part_of_the_contract(monkeypatch):
    class NoFit(Sloppy):
        _fit = weft.Parametrization._fit

    case = sloppy_case(monkeypatch, NoFit, has_fit=False)
    assert "members_are_found_again" not in checks(case)
    checks(case)["fitting_is_refused"](case)
    lying = sloppy_case(monkeypatch, Sloppy, has_fit=False)
    with pytest.raises(AssertionError, match="no FitError"):
        checks(lying)["fitting_is_refused"](lying)


def test_formulas_are_evaluated():
    assert evaluate("min(rank, 2)*(out + in)^2 - log2(8)/3", {"rank": 3, "out": 1, "in": 2}) == 17
    with pytest.raises(weft.WeftError, match="holds 'other'"):
        evaluate("in*other", {"in": 2})
