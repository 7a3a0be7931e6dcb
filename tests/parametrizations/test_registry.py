"""Records, names and options."""

import dataclasses
import math
import re

import numpy as np
import pytest
import torch
from tests.toys import CanonicalKronecker

import weft
from weft.errors import OptionError, UnknownNameError, nearest_name
from weft.parametrizations import Dense, LowRank, check_options, families, family, make, record_of, register, registry


@pytest.fixture
def own_registry(monkeypatch):
    monkeypatch.setattr(registry, "_FAMILIES", dict(families()))


def record(**changes):
    return dataclasses.replace(family("low_rank"), **changes)


def test_families_are_listed_and_read_only():
    assert set(families()) >= {"dense", "kronecker", "low_rank"}
    assert weft.families() == families()
    with pytest.raises(TypeError):
        families()["mine"] = family("dense")
    with pytest.raises(dataclasses.FrozenInstanceError):
        family("dense").name = "other"


def test_every_record_is_complete():
    for name, facts in families().items():
        assert facts.name == name == facts.cls.family
        for text in (facts.title, facts.summary, facts.advice, facts.source, facts.parameters, facts.cost):
            assert text.strip()
        assert facts.sized_by == "share" or facts.sized_by in facts.options
        assert facts.launches >= 1
        assert 0 < facts.efficiency <= 1
        assert facts.export_path in ("factored", "dense")


def test_unknown_family_is_refused_with_the_nearest():
    for call in (family, lambda name: make(name, (4, 4)), lambda name: check_options(name, {})):
        with pytest.raises(UnknownNameError, match=r"one of .*dense, .*got 'lowrank'; did you mean 'low_rank'"):
            call("lowrank")
    with pytest.raises(UnknownNameError, match="got None"):
        family(None)
    with pytest.raises(UnknownNameError, match=r"got \['dense'\]"):
        family(["dense"])


def test_unknown_option_lists_what_there_is():
    with pytest.raises(
        OptionError, match=r"'low_rank' has no option 'ranks' \(it takes: share, rank\); did you mean 'rank'"
    ):
        check_options("low_rank", {"ranks": 3})
    with pytest.raises(
        OptionError, match=r"'kronecker' has no option 'q' \(it takes: n, algebra, rank, weight_init\)$"
    ):
        make("kronecker", (4, 4), q=2)
    assert check_options("low_rank", {"rank": 3, "dtype": None}) is family("low_rank")


def test_make_passes_common_arguments():
    member = make("low_rank", (4, 6), rank=2, positions=3, variance=0.5, device="meta")
    assert (member.positions, member.variance, member.left.is_meta) == (3, 0.5, True)
    member = make("low_rank", (40, 60), share=0.5, positions=3, variance=0.5, device="meta")
    assert (member.positions, member.variance, member.left.is_meta, member.rank) == (3, 0.5, True, 12)
    assert make("dense", (4, 6), share=None).share == 1


def test_record_of_a_member():
    assert record_of(LowRank((4, 4), rank=1)) is family("low_rank")
    assert record_of(CanonicalKronecker((4, 4))) is None

    class Impostor(CanonicalKronecker):
        family = "dense"

    assert record_of(Impostor((4, 4))) is None


@pytest.mark.usefixtures("own_registry")
def test_bad_records_are_refused():
    class Mine(LowRank):
        family = "mine"

        def __init__(self, shape, *, rank=1, twist=2, **common):
            super().__init__(shape, rank=rank, **common)

    with pytest.raises(OptionError, match="new and in lower case, got 'Mine'"):
        register(record(name="Mine", cls=Mine))
    with pytest.raises(OptionError, match="new and in lower case, got 'dense'"):
        register(record(name="dense", cls=Dense))
    with pytest.raises(OptionError, match=r"Mine.family must be 'other', got 'mine'"):
        register(record(name="other", cls=Mine))
    with pytest.raises(OptionError, match=r"options \['rank', 'twist'\], got \['rank'\]"):
        register(record(name="mine", cls=Mine))
    assert "mine" not in families()
    good = record(name="mine", cls=Mine, options={"rank": "rank", "twist": "twist"})
    assert register(good) is good
    assert weft.families()["mine"] is good
    assert make("mine", (4, 4), rank=2).rank == 2


def test_nearest_name():
    assert nearest_name("kroneker", ["dense", "kronecker"]) == "; did you mean 'kronecker'?"
    assert nearest_name("xyz", ["dense", "kronecker"]) == ""


@pytest.mark.parametrize(
    ("name", "option", "wrong", "kind"),
    [
        ("low_rank", "rank", 2.7, "a whole number"),
        ("low_rank", "rank", "x", "a whole number"),
        ("low_rank", "rank", True, "a whole number"),
        ("low_rank", "share", "0.5", "a number"),
        ("kronecker", "n", math.nan, "a whole number"),
        ("kronecker", "algebra", 0, "a name or a table"),
        ("kronecker", "algebra", 1.5, "a name or a table"),
        ("psm", "nonzeros", 60.7, "a whole number"),
        ("chain", "width", "1", "a number"),
        ("quaternion_rotation", "scale", "no", "True or False"),
    ],
)
def test_options_of_another_type_are_refused(name, option, wrong, kind):
    message = f"{option} of family '{name}' must be {kind}, got {wrong!r}"
    for call in (
        lambda options: make(name, (8, 8), **options),
        lambda options: weft.Linear(8, 8, parametrization=name, **options),
        lambda options: weft.convert(weft.Linear(8, 8).fold(), name, **options),
        lambda options: weft.LSTM(8, 8, parametrization=name, **options),
    ):
        with pytest.raises(OptionError, match=f"^{re.escape(message)}$"):
            call({option: wrong})


def test_options_of_kindred_types_are_taken():
    assert make("low_rank", (8, 8), rank=np.int64(2)).rank == 2
    assert make("chain", (8, 8), width=2).hidden == make("chain", (8, 8), width=np.float32(2)).hidden == 16
    table = torch.tensor([[[1.0, 0], [0, -1]], [[0, 1], [1, 0]]])
    for algebra in ("complex", table, table.numpy(), table.tolist()):
        assert make("kronecker", (8, 8), algebra=algebra).n == 2


def test_what_the_caller_gives_cannot_be_an_option():
    plain, gru = torch.nn.Linear(8, 8), torch.nn.GRU(8, 8)
    for call in (
        lambda: weft.convert(plain, "low_rank", rank=2, dtype=torch.float64),
        lambda: weft.Linear.from_dense(plain, "low_rank", rank=2, dtype=torch.float64),
        lambda: weft.GRU.from_dense(gru, "low_rank", rank=2, dtype=torch.float64),
        lambda: weft.approximate(plain.weight.detach(), "low_rank", rank=2, dtype=torch.float64),
    ):
        with pytest.raises(OptionError, match="dtype cannot be given"):
            call()


@pytest.mark.parametrize("where", ["0", ["0"]])
@pytest.mark.parametrize("change", [lambda m, **o: weft.convert(m, "low_rank", rank=2, **o), weft.overparameterize])
def test_names_are_no_function(change, where):
    with pytest.raises(OptionError, match="where must be a function"):
        change(torch.nn.Linear(8, 8), where=where)
