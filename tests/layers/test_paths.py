"""Which way a product runs: what ``explain`` says is what happens, and the counts are those of torch."""

import itertools

import pytest
import torch
from tests.cases import CASES, DENSE, LOW_RANK, PHM, QUATERNION, RANK
from tests.toys import CanonicalKronecker
from torch.utils.flop_counter import FlopCounterMode

import weft
from weft.errors import OptionError
from weft.layers.paths import FEW_ROWS, MANY_ROWS, MOST_ROWS, Plan, machine, plan, seconds
from weft.parametrizations import Dense, Kronecker, LowRank
from weft.testing import Case, kinds

TOY = Case("canonical", CanonicalKronecker, lambda p: p.dense().detach())
KINDS = kinds()
ROWS = (1, 7, 8, 127, 128, 300)


def calls_of(layer, x, monkeypatch, times=3):
    """How often a few forward passes call linear, dense and stages of the parametrization."""
    counts = dict.fromkeys(("linear", "dense", "stages"), 0)

    def counted(name):
        method = getattr(type(layer.parametrization), name)

        def call(*args, **kwargs):
            counts[name] += 1
            return method(layer.parametrization, *args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for name in counts:
            patch.setattr(layer.parametrization, name, counted(name), raising=False)
        for _ in range(times):
            layer(x)
    return counts


def assert_explained(layer, x, monkeypatch):
    explanation = layer.explain(x)
    counts = calls_of(layer, x, monkeypatch)
    factors = max(counts["linear"], counts["stages"])
    if explanation.path in ("factored", "stages"):
        assert (factors, counts["dense"]) == (3, 0), f"{explanation}\n{counts}"
    elif explanation.path == "cached stages":
        assert (counts["linear"], counts["dense"]) == (0, 0) and counts["stages"] <= 1, f"{explanation}\n{counts}"
    else:
        dense = {"dense": 3, "cached": 1}[explanation.path]
        assert (factors, counts["dense"]) == (0, dense), f"{explanation}\n{counts}"
    return explanation.path


@pytest.mark.parametrize("path", ["auto", "factored", "dense"])
@pytest.mark.parametrize("kind", [KINDS["Linear"], KINDS["Conv2d"], KINDS["ConvTranspose1d"]], ids=repr)
@pytest.mark.parametrize("case", [*CASES, TOY], ids=repr)
def test_explained_path_is_the_one_that_runs(case, kind, path, monkeypatch):
    seen, modes = set(), itertools.product((True, False), repeat=3)
    for training, gradients, frozen in modes:
        for rows in ROWS[:: 1 if kind.cls is weft.Linear else 2]:
            layer = kind.layer(case, path=path).train(training).requires_grad_(not frozen)
            with torch.set_grad_enabled(gradients):
                seen.add(assert_explained(layer, kind.example(case, rows), monkeypatch))
    if path == "dense" and case is not DENSE:
        assert seen == {"dense", "cached"}
    if path == "factored" and case in (DENSE, LOW_RANK):
        assert seen == {"factored"}
    if path == "factored" and case in (RANK, QUATERNION):
        assert seen <= {"factored", "stages", "cached stages"}
        assert "stages" in seen or kind.cls is weft.Linear  # there is another factored product to choose


def test_explain_computes_nothing_and_leaves_the_cache(monkeypatch):
    layer, x = weft.PHMLinear(8, 8, path="dense").eval(), torch.randn(300, 8)
    with torch.no_grad():
        layer(x)
        entry = layer._cache.entry
        monkeypatch.setattr(layer.parametrization, "dense", None)
        layer.explain(x)
        assert layer._cache.entry is entry


_COUNTED_OTHERWISE = ("quaternion_rotation", "hodlr", "butterfly", "psm", "toeplitz_like")


@pytest.mark.parametrize("path", ["factored", "dense"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "case",
    # torch counts matrix products only, and padded ones as they run: not scatters, sums, gathers
    [case for case in CASES if case is not RANK and case.record.name not in _COUNTED_OTHERWISE],
    ids=repr,
)
def test_multiply_adds_are_those_that_torch_counts(case, training, path):
    for kind in (KINDS["Linear"], KINDS["Conv1d"], KINDS["Conv2d"]):
        for rows in (1, 5):
            layer, x = kind.layer(case, path=path, bias=False).train(training), kind.example(case, rows)
            with torch.no_grad():
                layer(x)  # fills the cache in evaluation
                explanation = layer.explain(x)
                if explanation.path == "cached stages":
                    continue  # the counter is a dispatch mode, under which no stages are kept: see test_stages.py
                with FlopCounterMode(display=False) as counter:
                    layer(x)
                with FlopCounterMode(display=False) as plain_counter:
                    layer.fold()(x)
            got = explanation.macs
            if explanation.path == "cached":  # the counter is a dispatch mode, under which the cache is bypassed
                got += layer.parametrization.build_cost()
            assert got == counter.get_total_flops() / 2, explanation
            assert explanation.dense_macs == explanation.rows * layer.weight.numel()
            folded = plain_counter.get_total_flops() / 2 - layer.parametrization.build_cost()
            assert explanation.dense_macs == folded or layer.parametrization.build_cost() == 0


def test_explanation_is_a_readable_table():
    text = str(weft.Linear(100, 50, parametrization="low_rank", rank=4).explain(torch.randn(30, 100)))
    for part in ("factored", "30", "18,000", "150,000", "multiply-adds", "predicted"):
        assert part in text


def test_reason_is_given():
    x = torch.randn(2, 8, 5, 5)
    assert "stored as it is" in weft.Linear(8, 8).explain(torch.randn(2, 8)).why
    assert "asked for" in weft.PHConv2d(8, 8, 3, path="dense").explain(x).why
    assert "no factored product" in weft.PHConv2d(8, 8, 3, n=2, groups=2).explain(x).why
    assert "in every call" in weft.PHConv2d(8, 8, 3).explain(x).why
    with torch.no_grad():
        assert "built once and kept" in weft.PHConv2d(8, 8, 3).eval().explain(x).why
    assert (
        "fastest for 2 rows"
        in weft.Linear(512, 512, parametrization="low_rank", rank=2).explain(torch.randn(2, 512)).why
    )


# ---------------------------------------------------------------- the model of the machine


def test_low_rank_of_a_large_matrix_always_wins():
    for way in ("dense", "cached"):
        member = LowRank((4096, 4096), rank=204, device="meta")
        assert plan(member, ("factored", way), torch.device("cpu"), 4) == Plan.always("factored")


def test_full_rank_of_a_large_matrix_never_wins():
    member = LowRank((2048, 2048), rank=2048, device="meta")
    assert plan(member, ("factored", "cached"), torch.device("cpu"), 4) == Plan.always("cached")


def test_products_of_blocks_win_where_the_matrix_is_large():
    member = Kronecker((2048, 2048), algebra="quaternion", device="meta")
    ways = ("factored", "cached stages", "cached")
    assert plan(member, ways, torch.device("cpu"), 4).some == "cached stages"
    small = Kronecker((64, 64), algebra="quaternion", device="meta")
    assert plan(small, ways, torch.device("cpu"), 4).some == "cached"
    learned = Kronecker((2048, 2048), n=4)
    assert seconds(learned, 64, "stages", torch.device("cpu"), 4) == float("inf")  # no gradients through a search


def test_all_layers_share_three_thresholds():
    answers = {}
    for rows in range(1, 1400):
        answers.setdefault(Plan("few", "some", "many", "most").way(rows), []).append(rows)
    assert (answers["few"][-1], answers["some"][0]) == (FEW_ROWS - 1, FEW_ROWS)
    assert (answers["some"][-1], answers["many"][0]) == (MANY_ROWS - 1, MANY_ROWS)
    assert (answers["many"][-1], answers["most"][0]) == (MOST_ROWS - 1, MOST_ROWS)


def test_plan_is_factored_only_where_that_wins_at_both_ends_of_a_range():
    cpu, disagreements = torch.device("cpu"), 0
    members = [Kronecker((size, size), n=4) for size in (64, 256, 1024)]
    members += [LowRank((size, size), rank=rank) for size, rank in ((128, 40), (512, 200), (1024, 450), (2048, 1000))]
    for member, way in itertools.product(members, ("dense", "cached")):
        ranges = ((1, 7), (8, 127), (128, 1023), (1024, 16384))
        for choice, ends in zip(plan(member, ("factored", way), cpu, 4), ranges, strict=True):
            ratios = [seconds(member, rows, "factored", cpu, 4) / seconds(member, rows, way, cpu, 4) for rows in ends]
            if max(ratios) > 1 or max(ratios) < 0.8:  # in between the choice leaves a margin for the rough model
                assert choice == ("factored" if max(ratios) < 1 else way), (member, way, ends)
            disagreements += min(ratios) < 0.8 and max(ratios) > 1
    assert disagreements  # else this shows nothing about the ends


def test_predicted_times_grow_with_work():
    cpu = torch.device("cpu")
    for member in (Dense((512, 512)), LowRank((512, 512), rank=64), Kronecker((512, 512), n=4)):
        for way in ("factored", "dense", "cached"):
            times = [seconds(member, rows, way, cpu, 4) for rows in (1, 64, 4096)]
            assert times == sorted(times)
            assert seconds(member, 64, way, cpu, 4, floor_s=1e-5) > times[1]
            assert seconds(member, 64, way, cpu, 8) >= times[1]
    member = Kronecker((512, 512), n=4)
    assert seconds(member, 64, "dense", cpu, 4) > seconds(member, 64, "cached", cpu, 4)
    assert machine(torch.device("cuda")).macs_per_s > machine(cpu).macs_per_s


def test_plan_follows_the_device_and_the_dtype():
    layer = weft.Linear(512, 512, parametrization="low_rank", rank=200)
    calls = []
    original = layer._replan
    layer.__dict__["_replan"] = lambda: calls.append(1) or original()
    layer.to(torch.bfloat16)
    assert calls


@pytest.mark.parametrize("argument", ["path", "init"])
def test_unknown_choices_are_refused_with_the_nearest(argument):
    misspelt = {"path": "factord", "init": "glorott"}[argument]
    with pytest.raises(OptionError, match=f"{argument} must be one of .*; did you mean '{misspelt[:5]}"):
        weft.Linear(8, 8, parametrization="dense", **{argument: misspelt})


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace.*deprecated")
@pytest.mark.parametrize("case", [DENSE, LOW_RANK, PHM], ids=repr)
def test_export_path_of_the_record_is_taken_under_tracing(case, monkeypatch):
    layer, x = KINDS["Linear"].layer(case).eval(), KINDS["Linear"].example(case)
    taken = []
    for name in ("linear", "dense"):
        method = getattr(layer.parametrization, name)
        monkeypatch.setattr(
            layer.parametrization, name, lambda *a, m=method, n=name: taken.append(n) or m(*a), raising=False
        )
    torch.jit.trace(layer, x, check_trace=False)
    assert ("linear" in taken) == (case.record.export_path == "factored")  # torch itself reads .weight, so dense() too
