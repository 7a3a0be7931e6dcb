"""Checks of what a member stores and what its record says about it: state, copies, sizes, options."""

from __future__ import annotations

import copy
import inspect
import itertools
import math
import re
from typing import Any, get_args

import torch

from weft.errors import BudgetError, OptionError, SizeError
from weft.parametrizations import Parametrization, make
from weft.parametrizations.formulas import FUNCTIONS, evaluate, numbers_of
from weft.parametrizations.registry import OptimizerKind
from weft.testing.case import Case, assert_same


def _alternatives(formula: str, member: Parametrization, rows: int = 0) -> list[float]:
    """Values of a formula; those in parentheses after it, ``a (b for ...; c for ...)``, are alternatives."""
    values = {**numbers_of(member), "rows": rows}
    main, _, note = formula.partition(" (")
    alternatives = [part.partition(" for ")[0].strip() for part in note.split(";")]
    known = [
        text for text in (main, *alternatives) if text and set(re.findall(r"[a-z_]+", text)) <= {*values, *FUNCTIONS}
    ]
    return [evaluate(text, values) for text in known]


def formulas_count_right(case: Case) -> None:
    """Stored numbers and multiply-adds are those of the record's formulas."""
    record = case.record
    for shape in case.shapes:
        member = case.member(shape)
        numbers = sum(parameter.numel() for parameter in member.parameters())
        assert member.num_parameters == numbers, f"num_parameters is {member.num_parameters}, counted {numbers}"
        assert member.share == numbers / math.prod(shape), f"share is {member.share}"
        assert numbers in _alternatives(record.parameters, member), (
            f"stores {numbers}, the record says {record.parameters}"
        )
        for rows in (0, 1, 7):
            wanted = _alternatives(record.cost, member, rows)
            assert member.cost(rows) in wanted, (
                f"cost({rows}) is {member.cost(rows)}, the record says {record.cost} = {wanted}"
            )
        assert member.build_cost() >= 0


def record_names_parameters(case: Case) -> None:
    """Decay is decided for every parameter, rates have a positive value, nothing is named that does not exist."""
    record, member = case.record, case.member()
    parameters = {name for name, _ in member.named_parameters()}
    # What an option fixes is a buffer; what only some options make is declared in the class.
    tensors = parameters | {name for name, _ in member.named_buffers()} | set(inspect.get_annotations(type(member)))
    assert parameters <= set(record.weight_decay), f"no decay rule for {parameters - set(record.weight_decay)}"
    named = {*record.weight_decay, *record.lr_multiplier, *record.sgd_multiplier}
    assert named <= tensors, f"the record names parameters that are not there: {named - tensors}"
    for shape, optimizer in itertools.product(case.shapes, get_args(OptimizerKind)):
        factors = record.multipliers(case.member(shape), optimizer)
        assert all(0 < factor < math.inf for factor in factors.values()), f"learning rates times {factors}"
    for field in (record.title, record.summary, record.advice, record.source, *record.options.values()):
        assert field.strip(), f"the record of {record.name} leaves a text empty"


def parameters_are_plain(case: Case) -> None:
    """Parameters are contiguous dense leaf tensors with storages of their own; the state dict holds tensors only."""
    member = case.member()
    tensors = dict(member.state_dict())
    derived = {f"{m}.{n}".lstrip(".") for m, sub in member.named_modules() for n in sub._non_persistent_buffers_set}
    stored = {n for n, _ in [*member.named_parameters(), *member.named_buffers()]} - derived
    assert set(tensors) == stored, "hidden or extra state"
    for name, tensor in tensors.items():
        assert tensor.is_contiguous(), f"{name} is not contiguous"
        assert tensor.layout == torch.strided, f"{name} is not a plain dense tensor"
        assert not tensor.is_complex(), f"{name} is complex, which no export takes"
    addresses = [tensor.untyped_storage().data_ptr() for tensor in tensors.values()]
    assert len(addresses) == len(set(addresses)), "two tensors share one storage"


def state_round_trip(case: Case) -> None:
    """The state dict, loaded strictly, makes the same member; also into one built on the meta device."""
    source = case.member()
    for target in (case.member(), case.member(device="meta").to_empty(device="cpu")):
        target.load_state_dict(source.state_dict(), strict=True)
        assert_same(target.dense(), source.dense(), 0, "dense() after loading the state")
    empty = case.member(device="meta").to_empty(device="cpu")
    with torch.no_grad():
        for tensor in [*empty.parameters(), *empty.buffers()]:
            tensor.fill_(1e30 if tensor.is_floating_point() else 1)
    empty.reset_parameters()
    assert float(empty.dense().detach().abs().max()) < 1e3, "reset_parameters does not restore every tensor"
    assert_same(empty.dense(), case.dense(empty), 1e-12, "dense() after to_empty and reset_parameters")


def copies_are_independent(case: Case) -> None:
    """A deep copy shares no storage; neither product nor matrix leaves anything behind on the member."""
    member = case.member()
    before = set(vars(member))
    loss = member.linear(torch.randn(2, member.shape[1]).double()).sum() + member.dense().sum()
    assert loss.requires_grad
    assert set(vars(member)) == before, f"a forward pass stored {set(vars(member)) - before}"
    original, twin = member.dense().detach().clone(), copy.deepcopy(member)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1.5)
    assert_same(member.dense(), original, 0, "dense() after its copy was changed")
    assert not torch.allclose(twin.dense(), original), "the copy did not change"


def bad_sizes_are_refused(case: Case) -> None:
    """Sides below 1 and positions that do not divide the columns raise SizeError."""
    rows, columns = case.shapes[0]
    for shape, positions in (((0, columns), 1), ((rows, 0), 1), ((rows, columns), columns + 1), ((rows, columns), 0)):
        try:
            case.member(shape, positions=positions)
        except SizeError:
            continue
        raise AssertionError(f"shape {shape} with positions {positions} was accepted")


def unknown_options_are_refused(case: Case) -> None:
    """A misspelt option raises OptionError with the right name in the message."""
    record = case.record
    option = next(iter(record.options), "share")
    misspelt: dict[str, Any] = {f"{option}x": 1}
    try:
        make(record.name, case.shapes[0], **misspelt)
    except OptionError as error:
        assert f"did you mean {option!r}" in str(error), f"the message does not name {option!r}: {error}"
        assert f"{option}x" in str(error), f"the message does not name {option}x: {error}"
    else:
        raise AssertionError(f"{option}x was accepted")


def shares_are_kept(case: Case) -> None:
    """``within`` gives the largest member inside the budget, and refuses impossible ones with a remedy that works."""
    record, name = case.record, case.record.name
    if record.sized_by != "share":
        try:
            make(name, case.shapes[0], share=0.5)
        except OptionError as error:
            assert record.sized_by in str(error), f"the message does not name {record.sized_by!r}: {error}"
            return
        raise AssertionError(f"{name} is sized by {record.sized_by} but took a share")
    for shape in (*case.shapes, (40, 24)):
        example = case.member(shape)
        same = make(name, shape, share=min(1.0, example.share * (1 + 1e-9)))
        assert same.num_parameters == example.num_parameters or example.share > 1, (
            "within missed a member of the very size"
        )
        for share in (-0.1, 0.0, 1.01, math.nan):
            _refused_share(name, shape, share)
        smallest = _refused_share(name, shape, 1e-9).smallest_share
        assert smallest is not None, "too small a share names no share that works"
        member = make(name, shape, share=smallest)
        assert member.num_parameters <= int(smallest * math.prod(shape)), "the smallest share is exceeded"
        just_too_small = (example.num_parameters - 0.5) / math.prod(shape)
        for share in (smallest, (1 + smallest) / 2, 1.0, min(1.0, max(smallest, just_too_small))):
            member = make(name, shape, share=share)
            assert member.num_parameters <= int(share * math.prod(shape)), f"share {share} is exceeded"


def _refused_share(name: str, shape: tuple[int, int], share: float) -> BudgetError:
    try:
        make(name, shape, share=share)
    except BudgetError as error:
        return error
    raise AssertionError(f"share {share} was accepted for {name} of shape {shape}")


CHECKS = (
    formulas_count_right,
    record_names_parameters,
    parameters_are_plain,
    state_round_trip,
    copies_are_independent,
    bad_sizes_are_refused,
    unknown_options_are_refused,
    shares_are_kept,
)
